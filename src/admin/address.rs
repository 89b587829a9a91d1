//! Where commands find the admin listener of a gateway, and how they ask it.
//!
//! On this machine it speaks plain HTTP. Elsewhere it speaks TLS and demands a client certificate, of which commands have none: what they
//! ask and hear never leaves this machine.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use crate::outbound::Origin;

/// A TLS record that holds an alert begins so: what a listener with TLS says to who speaks without.
const ALERT: [u8; 2] = [21, 3];

/// The address of an admin listener: `IP:PORT`, `HOST:PORT`, or either behind `http://` or `https://`.
#[derive(Clone, Debug)]
pub struct Address {
    written: String,
    origin: Origin,
}

/// What a listener answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The first line, for people.
    pub line: String,
    /// The body.
    pub body: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "write it like 127.0.0.1:9443, localhost:9443 or http://127.0.0.1:9443";
        let url = if text.contains("://") {
            text.trim_end_matches('/').to_owned()
        } else {
            let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
            let bare_v6 = host.contains(':') && !host.starts_with('[');
            if bare_v6 || port.parse::<u16>().is_err() {
                return Err(EXPECTED.to_owned());
            }
            format!("http://{text}")
        };
        let origin = Origin::parse(&url).map_err(|error| format!("{error}; {EXPECTED}"))?;
        Ok(Self { written: text.to_owned(), origin })
    }
}

impl Address {
    /// What is at `path`, of at most so many bytes with its head. Each step may take `patience`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn get(&self, path: &str, patience: Duration, most: u64) -> Result<Answer, String> {
        // HTTP/1.0: the answer ends with the connection, and has no chunks.
        self.exchange(|address| format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n"), patience, most)
    }

    /// Asks for what `body`, JSON, says; `more` are header lines.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn post(&self, path: &str, more: &str, body: &str, patience: Duration, most: u64) -> Result<Answer, String> {
        let request = |address| {
            let length = body.len();
            let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{more}");
            format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        };
        self.exchange(request, patience, most)
    }

    fn exchange(&self, request: impl FnOnce(SocketAddr) -> String, patience: Duration, most: u64) -> Result<Answer, String> {
        let address = self.local()?;
        let asked = || -> io::Result<Vec<u8>> {
            let mut socket = TcpStream::connect_timeout(&address, patience)?;
            socket.set_read_timeout(Some(patience))?;
            socket.set_write_timeout(Some(patience))?;
            socket.write_all(request(address).as_bytes())?;
            let mut answer = Vec::new();
            match socket.take(most).read_to_end(&mut answer) {
                // Who speaks TLS says so and hangs up, and may do that roughly.
                Err(error) if answer.is_empty() => Err(error),
                _ => Ok(answer),
            }
        };
        let answer = asked().map_err(|error| format!("{self} does not answer: {error}"))?;
        if answer.starts_with(&ALERT) {
            return Err(self.speaks_tls());
        }
        let broken = || format!("{self} does not answer: its answer broke off");
        let answer = String::from_utf8(answer).map_err(|_| format!("{self} does not speak HTTP"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
        let line = head.lines().next().unwrap_or_default();
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| format!("{self} does not speak HTTP"))?;
        Ok(Answer { status, line: line.escape_debug().to_string(), body: body.to_owned() })
    }

    /// The address on this machine.
    fn local(&self) -> Result<SocketAddr, String> {
        if self.origin.is_https() {
            return Err(self.speaks_tls());
        }
        let found = (self.origin.host(), self.origin.port()).to_socket_addrs().map_err(|error| format!("{self}: {error}"))?;
        let here = found.into_iter().find(|address| address.ip().to_canonical().is_loopback());
        here.ok_or_else(|| format!("{self}: without TLS the admin listener is on this machine alone, as 127.0.0.1:PORT"))
    }

    fn speaks_tls(&self) -> String {
        format!("{self} speaks TLS, and this command shows no client certificate; curl --cert … does")
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn local(text: &str) -> Result<SocketAddr, String> {
        text.parse::<Address>()?.local()
    }

    #[test]
    fn an_address_may_be_written_in_any_way_and_is_of_this_machine() {
        let here = Ok(SocketAddr::from(([127, 0, 0, 1], 9443)));
        for written in ["127.0.0.1:9443", "http://127.0.0.1:9443", "http://127.0.0.1:9443/"] {
            assert_eq!(local(written), here, "{written}");
        }
        for written in ["localhost:9443", "http://localhost:9443/", "[::1]:9443", "http://[::1]:9443"] {
            assert!(local(written).is_ok_and(|address| address.ip().is_loopback()), "{written}");
        }
        for elsewhere in ["192.0.2.1:9443", "http://192.0.2.1:9443"] {
            assert!(local(elsewhere).is_err_and(|why| why.contains("on this machine alone")), "{elsewhere}");
        }
        assert!(local("https://127.0.0.1:9443").is_err_and(|why| why.contains("speaks TLS")));
        for wrong in ["", "here", "127.0.0.1", "::1", "::1:9443", "127.0.0.1:many", "ftp://127.0.0.1", "http://u@127.0.0.1:9443"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    /// What a command hears where a listener says this, and hangs up.
    fn heard(said: &'static [u8]) -> Result<Answer, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let listening = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 4_096];
            let length = socket.read(&mut request).unwrap();
            socket.write_all(said).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let heard = address.get("/readyz", PATIENCE, 4_096);
        assert!(listening.join().unwrap().starts_with("GET /readyz HTTP/1.0\r\nhost: 127.0.0.1:"));
        heard
    }

    #[test]
    fn one_that_speaks_tls_is_told_and_nothing_of_it_is_printed() {
        let why = heard(b"\x15\x03\x03\x00\x02\x02\x32").unwrap_err();
        assert!(why.contains("speaks TLS") && !why.contains(char::is_control), "{why}");
        for said in [&b"\x1b[2J\x00"[..], b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n"] {
            let why = heard(said).unwrap_err();
            assert!(!why.contains(char::is_control), "{why}");
        }
        let answer = heard(b"HTTP/1.1 503 Service\x1b Unavailable\r\nx: y\r\n\r\nnot yet").unwrap();
        assert_eq!((answer.status, &*answer.body), (503, "not yet"));
        assert!(!answer.line.contains(char::is_control));
    }
}
