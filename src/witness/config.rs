//! The witness's configuration.
//!
//! ```toml
//! listen = "127.0.0.1:9700"
//! tls = "off"                     # or [tls] certificate = …, key = …; plain HTTP on loopback alone
//! name = "witness.example/w1"
//! key = "witness.pem"
//! directory = "state"
//!
//! [[log]]
//! origin = "gateway.example/portcullis/node1"
//! keys = ["gateway.example/portcullis/node1+…+…"]
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::accept::config::{Deadlines, Limits, TlsChoice};
use crate::accept::{Accept, LEAST_UNREAD, Tls};
use crate::mistake::{Mistake, keys};
use crate::prove::key::Exposed;
use crate::tlog::checkpoint::is_origin;
use crate::tlog::cosignature::Cosigner;
use crate::tlog::vkey::{Kind, MAX_NAME, Vkey, is_name};

/// Connections open at once.
pub const MAX_CONNECTIONS: usize = 256;
/// Connections open at once from one address.
pub const MAX_CONNECTIONS_PER_ADDRESS: usize = 64;
/// How long a stop waits for requests in flight.
pub const DRAIN: Duration = Duration::from_secs(5);
/// The most logs.
pub const MAX_LOGS: usize = 10_000;
/// The most keys of one log.
pub const MAX_KEYS: usize = 16;

/// The configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on.
    pub listen: Spanned<SocketAddr>,
    /// `[tls]` with the keys of the gateway's `[accept.tls]`, or `tls = "off"`, which binds loopback alone.
    pub tls: Spanned<TlsChoice>,
    /// The witness's name in its signature lines: a URL without its scheme.
    pub name: Spanned<String>,
    /// The file of its key, Ed25519 in PKCS#8 PEM.
    pub key: PathBuf,
    /// What it remembers; made where it does not exist.
    pub directory: PathBuf,
    /// The logs that it witnesses.
    pub log: Vec<LogConfig>,
}

/// `[[log]]`: one log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Its origin, as its checkpoints write it.
    pub origin: Spanned<String>,
    /// Its verifier keys, of the kinds 0x01 and 0x06: one of them must have signed a checkpoint.
    pub keys: Spanned<Vec<String>>,
}

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// Every mistake, with its place.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let config: Self = keys::read(text)?;
        let mut mistakes = Vec::new();
        if !is_name(config.name.get_ref()) {
            let what = format!("a name has 1 to {MAX_NAME} bytes, and neither spaces nor `+`, such as \"witness.example/w1\"");
            mistakes.push(Mistake::at(config.name.span(), what));
        }
        if matches!(config.tls.get_ref(), TlsChoice::Off) && !config.listen.get_ref().ip().is_loopback() {
            let what = "plain HTTP (tls = \"off\") is served on loopback alone: listen on 127.0.0.1 or [::1], or give [tls]";
            mistakes.push(Mistake::at(config.listen.span(), what));
        }
        if config.log.len() > MAX_LOGS {
            mistakes.push(Mistake::of_file(format!("there are more than {MAX_LOGS} logs")));
        }
        let mut origins = std::collections::HashSet::new();
        for log in &config.log {
            if !is_origin(log.origin.get_ref()) {
                mistakes.push(Mistake::at(log.origin.span(), "an origin is one line of 1 to 255 bytes"));
            }
            if !origins.insert(log.origin.get_ref()) {
                mistakes.push(Mistake::at(log.origin.span(), "this origin is there twice; one log has one table with all its keys"));
            }
            mistakes.extend(log.mistake().map(|what| Mistake::at(log.keys.span(), what)));
        }
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The key under the witness's name, and whether others than its owner may read its file.
    ///
    /// # Errors
    /// When the file has no key.
    pub fn cosigner(&self, base: &Path) -> Result<(Cosigner, Exposed), Vec<Mistake>> {
        super::key::cosigner(self.name.get_ref(), &base.join(&self.key)).map_err(|what| vec![Mistake::of_file(what)])
    }

    /// The listener, not yet open.
    ///
    /// # Errors
    /// Every mistake in the files of its TLS.
    pub fn accept(&self, base: &Path) -> Result<Accept, Vec<Mistake>> {
        let tls = match self.tls.get_ref() {
            TlsChoice::Off => None,
            TlsChoice::On(tls) => Some(Tls::load(tls, base)?),
        };
        let limits = Limits {
            max_connections: MAX_CONNECTIONS,
            max_connections_per_address: MAX_CONNECTIONS_PER_ADDRESS,
            max_header_bytes: 16 << 10,
            max_headers: 100,
            max_streams: 16,
            max_unread: LEAST_UNREAD,
            deadlines: Deadlines::default(),
            drain: DRAIN,
        };
        Ok(Accept::from_parts(*self.listen.get_ref(), limits, tls))
    }
}

impl LogConfig {
    /// Its keys; those that are none were mistakes.
    #[must_use]
    pub fn vkeys(&self) -> Vec<Vkey> {
        self.keys.get_ref().iter().filter_map(|key| key.parse().ok()).collect()
    }

    fn mistake(&self) -> Option<&'static str> {
        let keys = self.vkeys();
        if keys.len() != self.keys.get_ref().len() || !(1..=MAX_KEYS).contains(&keys.len()) {
            return Some("a log has 1 to 16 verifier keys, NAME+HASH+BASE64, as keys.vkey has them");
        }
        let signs = |key: &Vkey| matches!(key.kind(), Kind::Log | Kind::MlDsa44);
        (!keys.iter().all(signs)).then_some("a log's checkpoints are signed by keys of the kinds 0x01 and 0x06 alone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::vkey::PublicKey;

    fn key(kind: fn([u8; 32]) -> PublicKey) -> String {
        Vkey { name: "l".into(), key: kind([1; 32]) }.to_string()
    }

    fn text() -> String {
        let log = format!("[[log]]\norigin = \"l\"\nkeys = [\"{}\"]\n", key(PublicKey::Log));
        format!("listen = \"127.0.0.1:0\"\ntls = \"off\"\nname = \"w\"\nkey = \"k\"\ndirectory = \"d\"\n{log}")
    }

    #[test]
    fn a_configuration_reads_and_each_mistake_is_told_where_it_is() {
        let good = text();
        assert_eq!(Config::parse(&good).unwrap().log[0].vkeys().len(), 1);
        let log = key(PublicKey::Log);
        for (bad, at) in [
            (good.replace("\"w\"", "\"w w\""), "\"w w\""),
            (good.replace("\"w\"", "\"w+\""), "\"w+\""),
            (good.replace("\"l\"", "\"\""), "\"\""),
            (good.replace("127.0.0.1", "0.0.0.0"), "\"0.0.0.0:0\""),
            (good.replace(&log, "x"), "[\"x\"]"),
            (good.replace(&format!("\"{log}\""), ""), "[]"),
            (good.replace(&log, &key(PublicKey::Cosigner)), &*format!("[\"{}\"]", key(PublicKey::Cosigner))),
            (good.replace(&log, &key(PublicKey::Statement)), &*format!("[\"{}\"]", key(PublicKey::Statement))),
            (good.replace("name", "names"), "names"),
        ] {
            let mistakes = Config::parse(&bad).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{bad}\n{mistakes:?}");
            assert_eq!(&bad[mistakes[0].span.clone().unwrap()], at, "{}", mistakes[0].what);
        }
        let (_, table) = good.split_once("[[log]]").unwrap();
        assert_eq!(Config::parse(&format!("{good}[[log]]{table}")).unwrap_err().len(), 1);
        let keys = |count: usize| good.replace(&format!("\"{log}\""), &vec![format!("\"{log}\""); count].join(","));
        assert!(Config::parse(&keys(MAX_KEYS)).is_ok());
        assert!(Config::parse(&keys(MAX_KEYS + 1)).is_err());
    }

    #[test]
    fn logs_are_bounded() {
        let many = |count: usize| {
            let (head, table) = text().split_once("[[log]]").map(|(head, table)| (head.to_owned(), table.to_owned())).unwrap();
            head + &(0..count).map(|at| format!("[[log]]{}", table.replace("\"l\"", &format!("\"{at}\"")))).collect::<String>()
        };
        assert!(Config::parse(&many(MAX_LOGS)).is_ok());
        assert_eq!(Config::parse(&many(MAX_LOGS + 1)).unwrap_err().len(), 1);
    }
}
