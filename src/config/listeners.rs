//! The ports that `gateway.toml` names: how they stand to each other, and what both need to be opened.

use std::net::SocketAddr;
use std::path::Path;

use super::Gateway;
use crate::accept::Accept;
use crate::admin;
use crate::mistake::Mistake;

/// Both listeners, with the files of their TLS, not yet open.
#[derive(Debug)]
pub struct Listeners {
    /// The data plane's.
    pub accept: Accept,
    /// The operators', if there is one.
    pub admin: Option<Accept>,
}

impl Listeners {
    /// Those of `gateway`; relative paths are relative to `dir`.
    pub(super) fn resolve(gateway: &Gateway, dir: &Path) -> Result<Self, Vec<Mistake>> {
        let accept = Accept::new(&gateway.accept, dir);
        let admin = gateway.admin.as_ref().map(|admin| admin::resolve(admin, dir)).transpose();
        let shared = shared(gateway);
        match (accept, admin, shared) {
            (Ok(accept), Ok(admin), None) => Ok(Self { accept, admin }),
            (accept, admin, shared) => {
                Err([accept.err().unwrap_or_default(), admin.err().unwrap_or_default(), Vec::from_iter(shared)].concat())
            }
        }
    }
}

/// The mistake of naming one port for both.
fn shared(gateway: &Gateway) -> Option<Mistake> {
    let admin = &gateway.admin.as_ref()?.listen;
    let accept = gateway.accept.listen.get_ref();
    let what = format!("accept.listen is {accept}, and both cannot be opened: give the operators another port");
    meet(*accept, *admin.get_ref()).then(|| Mistake::at(admin.span(), what))
}

/// Whether the system would refuse one of them while the other is open.
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |one: SocketAddr, other: SocketAddr| one.ip().is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let same = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() == other.port() && one.port() != 0 && (same || all(one, other) || all(other, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_listeners_meet_where_the_system_would_refuse_the_second() {
        for (one, other, meets) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "[::1]:1", true),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
        ] {
            let (a, b) = (one.parse().unwrap(), other.parse().unwrap());
            assert!(meet(a, b) == meets && meet(b, a) == meets, "{one} {other}");
        }
    }
}
