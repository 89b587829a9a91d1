//! The program, serving a folder.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::client::{Client, Dial, Http};
use super::folder::Shown;
use super::{Folder, PATIENCE, PROGRAM};

/// A running gateway; killed when dropped.
pub struct Gateway {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    said: watch::Receiver<Vec<String>>,
    roots: Arc<rustls::RootCertStore>,
}

impl Gateway {
    /// Serves `folder`; `before` are words to put before the program, such as a shell that limits it.
    pub async fn start(folder: &Folder, before: &[&str]) -> Self {
        let policies = folder.policies();
        let mut words: Vec<&str> = before.to_vec();
        words.extend([PROGRAM, "serve", "--policies", policies.to_str().unwrap()]);
        let mut child =
            Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, said) = watch::channel(Vec::new());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                tell.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gateway = Self { child, address: unknown, admin: unknown, said, roots: folder.roots() };
        let address = |line: String| line.rsplit(' ').next().unwrap().parse().unwrap();
        gateway.address = address(gateway.says("ready on ").await);
        gateway.admin = address(gateway.says("operators on ").await);
        gateway
    }

    /// Waits for a line on stderr that holds `words`.
    pub async fn says(&self, words: &str) -> String {
        let mut said = self.said.clone();
        let found = |lines: &Vec<String>| lines.iter().any(|line| line.contains(words));
        let lines = match tokio::time::timeout(PATIENCE, said.wait_for(found)).await {
            Ok(Ok(lines)) => lines.clone(),
            _ => panic!("never said {words:?}: {:#?}", self.said.borrow()),
        };
        lines.into_iter().find(|line| line.contains(words)).unwrap()
    }

    /// What it said so far.
    pub fn said(&self) -> Vec<String> {
        self.said.borrow().clone()
    }

    /// A connection of HTTP/2.
    pub async fn h2(&self) -> Client {
        self.dial().http(Http::Two).connect().await.unwrap()
    }

    /// A connection of HTTP/1.1.
    pub async fn h1(&self) -> Client {
        self.dial().http(Http::One).connect().await.unwrap()
    }

    /// A connection of HTTP/2 that shows a certificate.
    pub async fn with_certificate(&self, shown: Shown) -> Client {
        self.dial().certificate(shown).connect().await.unwrap()
    }

    /// A connection to be.
    pub fn dial(&self) -> Dial {
        Dial::to(self.address, self.roots.clone())
    }

    /// A connection to be to the operators' listener, where that has TLS.
    pub fn dial_admin(&self) -> Dial {
        Dial::to(self.admin, self.roots.clone())
    }

    /// `GET path` on the operators' listener: the status and the body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let asked = async {
            let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    /// Asks for `path` until `holds`; for what no event tells.
    pub async fn admin_until(&self, path: &str, holds: impl Fn(u16, &str) -> bool) {
        let asked = Instant::now();
        loop {
            let (status, body) = self.admin(path).await;
            if holds(status, &body) {
                return;
            }
            assert!(asked.elapsed() < PATIENCE, "{path} stays {status}: {body}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The policy in force, as the metrics tell it.
    pub async fn policy(&self) -> String {
        let (_, metrics) = self.admin("/metrics").await;
        let at = metrics.find("portcullis_policy_info{digest=\"").expect("the metric of the policy") + 31;
        metrics[at..at + 64].to_owned()
    }

    /// The value of a metric, 0 where it was never set; `name` with its labels as they are written.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, metrics) = self.admin("/metrics").await;
        let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Limits a resource of the running program, by the name that prlimit(1) has for it.
    pub fn limit(&self, resource: &str, most: u64) {
        let set = Command::new("prlimit").args([format!("--pid={}", self.child.id()), format!("--{resource}={most}")]).status().unwrap();
        assert!(set.success());
    }

    /// Waits for the program's end.
    pub async fn ended(mut self) -> ExitStatus {
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(asked.elapsed() < PATIENCE, "it does not end: {:#?}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks it to stop, waits for its end, and tells what it said.
    pub async fn stop(self) -> Vec<String> {
        self.signal("TERM");
        let said = self.said.clone();
        let status = self.ended().await;
        assert!(status.success(), "{status}: {:#?}", said.borrow());
        said.borrow().to_vec()
    }

    /// Kills it without a word, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
