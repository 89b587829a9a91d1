//! Client certificates: the name that TLS verified is the caller's.

use std::collections::HashMap;
use std::sync::Arc;

use super::Identity;
use super::config::{self, Certificate};
use crate::accept::ClientCertificate;
use crate::mistake::Mistake;
use crate::trail::Who;

/// Which names are callers, the most exact first.
pub(super) struct Names(Vec<Pattern>);

struct Pattern {
    /// The name, or what stands before the `*`; DNS names in lower case.
    text: String,
    wild: bool,
    uri: bool,
    tenant: Arc<str>,
    tier: Arc<str>,
    roles: Vec<Arc<str>>,
}

impl Names {
    /// Reads the patterns of `callers.toml`, and tells what is wrong with them.
    pub(super) fn compile(certificates: &[Certificate], mistakes: &mut Vec<Mistake>) -> Self {
        let mut seen = HashMap::new();
        let mut patterns = Vec::new();
        for certificate in certificates {
            let (written, place) = (certificate.san.get_ref().as_str(), certificate.san.span());
            config::once(&mut seen, written, place.clone(), "this san", mistakes);
            config::names(&place, &certificate.tenant, &certificate.tier, &certificate.roles, mistakes);
            let (text, wild) = written.strip_suffix('*').map_or((written, false), |text| (text, true));
            let uri = text.split_once("://");
            let wrong = if text.is_empty() {
                Some("san must say more than \"*\", which would be every certificate")
            } else if !is_plain(text) {
                Some("san must be at most 256 visible ASCII characters")
            } else if text.contains('*') {
                Some("san may have one \"*\", at its end")
            } else if wild && uri.is_some_and(|(_, rest)| !rest.contains('/')) {
                // `spiffe://acme.ex*` would be `spiffe://acme.example` and `spiffe://acme.exploit.example` alike.
                Some("\"*\" must stand after the trust domain's \"/\", as in \"spiffe://acme.example/*\"")
            } else {
                None
            };
            if let Some(wrong) = wrong {
                mistakes.push(Mistake::at(place, wrong));
                continue;
            }
            patterns.push(Pattern {
                text: if uri.is_some() { text.to_owned() } else { text.to_ascii_lowercase() },
                wild,
                uri: uri.is_some(),
                tenant: certificate.tenant.as_str().into(),
                tier: certificate.tier.as_str().into(),
                roles: certificate.roles.iter().map(|role| role.as_str().into()).collect(),
            });
        }
        patterns.sort_by_key(|pattern| (pattern.wild, std::cmp::Reverse(pattern.text.len())));
        Self(patterns)
    }

    /// Who holds this certificate: its first name that a pattern fits, by the most exact one that does.
    pub(super) fn verify(&self, certificate: &ClientCertificate) -> Option<Arc<Identity>> {
        let (name, pattern) = certificate
            .names
            .iter()
            .filter(|name| is_plain(name))
            .find_map(|name| self.0.iter().find(|pattern| pattern.fits(name)).map(|pattern| (name, pattern)))?;
        let name = if pattern.uri { name.to_string() } else { name.to_ascii_lowercase() };
        let who = Who {
            caller: format!("cert:{name}").into(),
            tenant: pattern.tenant.clone(),
            tier: pattern.tier.clone(),
            method: "certificate",
        };
        Some(Arc::new(Identity { who: Arc::new(who), roles: pattern.roles.clone() }))
    }
}

impl Pattern {
    /// In a URI the `*` is any rest that is not empty; in a DNS name it stays within one label.
    fn fits(&self, name: &str) -> bool {
        if self.uri {
            return if self.wild { name.strip_prefix(&self.text).is_some_and(|rest| !rest.is_empty()) } else { name == self.text };
        }
        let name = name.to_ascii_lowercase();
        if self.wild {
            name.strip_prefix(&self.text).is_some_and(|rest| !rest.is_empty() && !rest.contains(['.', ':', '/']))
        } else {
            name == self.text
        }
    }
}

fn is_plain(name: &str) -> bool {
    name.len() <= config::MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Config;
    use crate::digest::Digest;

    fn compile(sans: &[&str]) -> (Names, usize) {
        let text: String = sans
            .iter()
            .enumerate()
            .map(|(n, san)| format!("[[certificate]]\nsan = {san:?}\ntenant = \"t{n}\"\nroles = [\"service\"]\n"))
            .collect();
        let config: Config = toml::from_str(&text).unwrap();
        let mut mistakes = Vec::new();
        (Names::compile(&config.certificate, &mut mistakes), mistakes.len())
    }

    fn who(names: &Names, sans: &[&str]) -> Option<(String, String)> {
        let certificate = ClientCertificate { names: sans.iter().map(|name| (*name).into()).collect(), fingerprint: Digest::default() };
        names.verify(&certificate).map(|identity| (identity.who.caller.to_string(), identity.who.tenant.to_string()))
    }

    fn some(caller: &str, tenant: &str) -> Option<(String, String)> {
        Some((caller.into(), tenant.into()))
    }

    #[test]
    fn the_most_exact_pattern_decides() {
        let (names, mistakes) = compile(&[
            "spiffe://acme.example/*",
            "spiffe://acme.example/batch/*",
            "spiffe://acme.example/batch/one",
            "Node.example",
            "worker-*",
        ]);
        assert_eq!(mistakes, 0);
        assert_eq!(who(&names, &["spiffe://acme.example/web"]), some("cert:spiffe://acme.example/web", "t0"));
        assert_eq!(who(&names, &["spiffe://acme.example/batch/two"]), some("cert:spiffe://acme.example/batch/two", "t1"));
        assert_eq!(who(&names, &["spiffe://acme.example/batch/one"]), some("cert:spiffe://acme.example/batch/one", "t2"));
        assert_eq!(who(&names, &["unknown", "NODE.example"]), some("cert:node.example", "t3"));
        assert_eq!(who(&names, &["worker-7"]), some("cert:worker-7", "t4"));
    }

    #[test]
    fn names_that_only_look_alike_do_not_fit() {
        let (names, _) = compile(&["spiffe://acme.example/*", "worker-*", "node.example"]);
        for name in [
            "spiffe://acme.example/",
            "spiffe://acme.example",
            "spiffe://acme.example.evil/web",
            "SPIFFE://acme.example/web",
            "worker-1.evil.example",
            "worker-",
            "node.example.evil",
            "anode.example",
            "spiffe://acme.example/a\nb",
            "",
        ] {
            assert_eq!(who(&names, &[name]), None, "{name:?}");
        }
        assert_eq!(who(&names, &[]), None);
    }

    #[test]
    fn patterns_that_are_too_wide_are_mistakes() {
        for san in ["*", "", "spiffe://*", "spiffe://acme.ex*", "a*b*", "*.example", "a\tb"] {
            assert_eq!(compile(&[san]).1, 1, "{san:?}");
        }
        assert_eq!(compile(&["a.example", "a.example"]).1, 1);
    }
}
