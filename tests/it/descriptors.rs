//! A stranger who opens connections until there are no descriptors left.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends the process however the test ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn livez(admin: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn connections_of_strangers_leave_descriptors_to_operators_and_policies() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path();
    let gateway = "[accept]\nlisten = \"127.0.0.1:0\"\ntls = \"off\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [prove]\ndirectory = \"../log\"\norigin = \"localhost/test\"\nkey = \"provenance.key\"\n";
    let gateway = gateway.replace("../log", folder.path().join("log").to_str().unwrap());
    fs::create_dir(policies.join("models")).unwrap();
    fs::write(policies.join("gateway.toml"), gateway).unwrap();
    fs::write(policies.join("provenance.key"), portcullis::prove::key::Key::generate_pem().expose()).unwrap();
    fs::write(policies.join("callers.toml"), "").unwrap();
    fs::write(policies.join("access.cedar"), "permit (principal, action, resource);").unwrap();
    let model = "name = \"m\"\n[backend.upstream]\nprotocol = \"openai\"\nurls = [\"http://127.0.0.1:9\"]\n";
    fs::write(policies.join("models/m.toml"), model).unwrap();

    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$0\" serve --policies \"$1\"", env!("CARGO_BIN_EXE_portcullis")]).arg(policies);
    let mut gateway = Ended(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut told = BufReader::new(gateway.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut before = Vec::new();
    let mut told_of = |what| loop {
        let line = told.next().unwrap_or_else(|| panic!("it did not start: {before:?}"));
        if let Some(address) = line.strip_prefix(what) {
            break address.parse::<SocketAddr>().unwrap();
        }
        before.push(line);
    };
    let admin = told_of("portcullis: operators on ");
    let address = told_of("portcullis: ready on ");

    let mut held: Vec<TcpStream> = (0..96).map(|_| TcpStream::connect(address).unwrap()).collect();
    // Those past the cap are closed at once; one that is answered shows that all before it were taken.
    held.iter_mut().for_each(|stream| drop(stream.write_all(b"GET / HT")));
    assert!(livez(admin).unwrap().starts_with("HTTP/1.1 200"));
    // A reload still reads its files.
    fs::write(policies.join("callers.toml"), "# changed\nsurprise = 1\n").unwrap();
    let refused = told.find(|line| line.contains("policies refused")).unwrap();
    assert!(refused.contains("surprise"), "{refused}");
}
