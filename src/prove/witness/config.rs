//! `[[prove.witness]]`, `prove.quorum` and `prove.witness_policy` of `gateway.toml`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::{LIMITS, Peer, Witnesses};
use crate::mistake::Mistake;
use crate::outbound::{Alpn, ClientTls, Kept, fetchable};
use crate::prove::Config;
use crate::tlog::policy::{MAX_OF_EACH, MAX_POLICY, Policy, Quorum};
use crate::tlog::vkey::{Kind, Vkey};

/// `[[prove.witness]]`: one witness.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// The prefix of its URLs: `https`, or `http` on loopback.
    pub url: Spanned<String>,
    /// Its verifier key, or a list of them under one name: a cosignature by one of them counts.
    pub key: Spanned<Keys>,
    /// The prefix of the URL that its checkpoints are read from; `url` unless given.
    pub monitor: Option<Spanned<String>>,
    /// The authorities of its certificate, PEM; the system's unless given.
    pub ca: Option<Spanned<PathBuf>>,
}

/// One key or several, as they are written.
#[derive(Clone, Debug)]
pub struct Keys(pub Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a verifier key or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Keys, E> {
                Ok(Keys(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(key) = list.next_element()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        from.deserialize_any(OneOrMore)
    }
}

/// What is wrong with the witnesses, as far as the text of `gateway.toml` says.
pub(in crate::prove) fn mistakes(config: &Config) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut seen: Vec<Vkey> = Vec::new();
    for witness in &config.witness {
        for url in [Some(&witness.url), witness.monitor.as_ref()].into_iter().flatten() {
            let fault = fetchable(url.get_ref(), &LIMITS).err().map(|fault| fault.to_string());
            let fault = fault.or_else(|| url.get_ref().contains('?').then(|| "must not have a query".to_owned()));
            mistakes.extend(fault.map(|fault| Mistake::at(url.span(), format!("a witness's URL {fault}"))));
        }
        match keys(witness.key.get_ref()) {
            Err(what) => mistakes.push(Mistake::at(witness.key.span(), what)),
            Ok(keys) if keys.iter().any(|key| seen.iter().any(|other| other.key.bytes() == key.key.bytes())) => {
                mistakes.push(Mistake::at(witness.key.span(), "another witness has this key, and one witness counts once"));
            }
            Ok(keys) => seen.extend(keys),
        }
    }
    if config.witness.len() > MAX_OF_EACH {
        mistakes.push(Mistake::of_file(format!("there are more than {MAX_OF_EACH} witnesses")));
    }
    if let Some(quorum) = &config.quorum {
        let count = config.witness.len();
        if !(1..=count).contains(quorum.get_ref()) {
            let what = match count {
                0 => "prove.quorum needs witnesses: [[prove.witness]]".to_owned(),
                _ => format!("prove.quorum must be from 1 to {count}, the number of witnesses"),
            };
            mistakes.push(Mistake::at(quorum.span(), what));
        }
    }
    if let Some(policy) = config.witness_policy.as_ref().filter(|_| !config.witness.is_empty()) {
        mistakes.push(Mistake::at(policy.span(), "name the witnesses in prove.witness_policy or in [[prove.witness]], not in both"));
    }
    mistakes
}

fn keys(keys: &Keys) -> Result<Vec<Vkey>, &'static str> {
    let keys: Option<Vec<Vkey>> = keys.0.iter().map(|key| key.parse().ok()).collect();
    let keys = keys.ok_or("a witness's key is a verifier key, NAME+HASH+BASE64, such as `portcullis witness key` prints")?;
    let [first, rest @ ..] = &keys[..] else { return Err("a witness has one key at least") };
    if !keys.iter().all(|key| matches!(key.kind(), Kind::Cosigner | Kind::MlDsa44)) {
        return Err("a witness's key is one for cosignatures: of the kind 0x04 (Ed25519) or 0x06 (ML-DSA-44)");
    }
    if rest.iter().any(|key| key.name != first.name) {
        return Err("the keys of one witness have one name");
    }
    Ok(keys)
}

impl Witnesses {
    /// The keys of the witnesses that `config` names, for those who verify; none where it has mistakes, which [`Self::resolve`] tells.
    #[must_use]
    pub fn keys_of(config: &Config, base: &Path) -> Vec<Vkey> {
        Self::resolve(config, base).ok().flatten().map_or_else(Vec::new, |witnesses| witnesses.keys().cloned().collect())
    }

    /// The witnesses that `config` names for its origin, if it names any; relative paths are relative to `base`. Nothing
    /// is connected yet.
    ///
    /// # Errors
    /// Every mistake in the configuration and in the files it names.
    pub fn resolve(config: &Config, base: &Path) -> Result<Option<Self>, Vec<Mistake>> {
        let mistakes = mistakes(config);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        if let Some(path) = &config.witness_policy {
            let (peers, quorum) = of_policy(&base.join(path.get_ref())).map_err(|what| vec![Mistake::at(path.span(), what)])?;
            return Ok((!peers.is_empty()).then(|| Self::new(config.origin.get_ref(), peers, quorum)));
        }
        if config.witness.is_empty() {
            return Ok(None);
        }
        let mut peers = Vec::new();
        let mut mistakes = Vec::new();
        for witness in &config.witness {
            match peer(witness, base) {
                Ok(peer) => peers.push(peer),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let count = config.quorum.as_ref().map_or(peers.len(), |quorum| *quorum.get_ref());
        let quorum = Quorum::any(count, peers.len());
        Ok(Some(Self::new(config.origin.get_ref(), peers.into_iter().enumerate().collect(), quorum)))
    }
}

fn peer(witness: &WitnessConfig, base: &Path) -> Result<Peer, Mistake> {
    let tls = match &witness.ca {
        None => client_tls(None).map_err(Mistake::of_file)?,
        Some(path) => {
            let file = base.join(path.get_ref());
            let told = |what: String| Mistake::at(path.span(), format!("{}: {what}", file.display()));
            let pem = std::fs::read(&file).map_err(|error| told(error.to_string()).unopened(&error))?;
            client_tls(Some(&pem)).map_err(told)?
        }
    };
    let keys = keys(witness.key.get_ref()).map_err(|what| Mistake::at(witness.key.span(), what))?;
    let kept = |url: &Spanned<String>| {
        Kept::new(url.get_ref(), tls.clone(), LIMITS).map_err(|fault| Mistake::at(url.span(), format!("a witness's URL {fault}")))
    };
    Ok(Peer::new(keys, kept(&witness.url)?, kept(witness.monitor.as_ref().unwrap_or(&witness.url))?))
}

fn client_tls(ca: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    ClientTls::build(ca, Alpn::Http1).map_err(|mistake| mistake.to_string())
}

/// The witnesses of a policy file that have a URL, each with its place in the policy.
fn of_policy(file: &Path) -> Result<(Vec<(usize, Peer)>, Quorum), String> {
    use std::io::Read;
    let told = |what: &dyn fmt::Display| format!("{}: {what}", file.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| told(&error))?;
    opened.take(MAX_POLICY as u64 + 1).read_to_end(&mut bytes).map_err(|error| told(&error))?;
    let policy = Policy::parse(&bytes).map_err(|mistake| told(&mistake))?;
    let reachable = |place: usize| policy.witnesses.get(place).is_some_and(|witness| witness.url.is_some());
    if !policy.quorum.met(&reachable) {
        return Err(told(&"the quorum needs witnesses that have no URL, and a log must ask them"));
    }
    let tls = client_tls(None)?;
    let mut peers = Vec::new();
    for (place, witness) in policy.witnesses.into_iter().enumerate() {
        let Some(url) = &witness.url else { continue };
        let kept =
            || Kept::new(url, tls.clone(), LIMITS).map_err(|fault| told(&format_args!("the URL of {}: it {fault}", witness.key.name)));
        let (submit, monitor) = (kept()?, kept()?);
        peers.push((place, Peer::new(vec![witness.key.clone()], submit, monitor)));
    }
    Ok((peers, policy.quorum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::signature::{Ed25519Key, MlDsa44Key};
    use crate::tlog::vkey::PublicKey;

    fn cosigner(name: &str, seed: u8) -> String {
        Vkey { name: name.into(), key: PublicKey::Cosigner(Ed25519Key::from_seed(&[seed; 32]).unwrap().public()) }.to_string()
    }

    fn ml_dsa(name: &str, seed: u8) -> String {
        Vkey { name: name.into(), key: PublicKey::MlDsa44(MlDsa44Key::from_seed(&[seed; 32]).unwrap().public()) }.to_string()
    }

    fn config(more: &str) -> (Config, String) {
        let text = format!("directory = \"d\"\norigin = \"o\"\nkey = \"k\"\n{more}");
        (toml::from_str(&text).unwrap(), text)
    }

    fn witness(key: &str) -> String {
        format!("[[witness]]\nurl = \"https://w.example/{}\"\nkey = {key}\n", key.len())
    }

    #[test]
    fn witnesses_read_as_written() {
        let none = config("").0;
        assert!(Witnesses::resolve(&none, Path::new(".")).unwrap().is_none());
        let two = format!(
            "{}{}",
            witness(&format!("\"{}\"", cosigner("a", 1))),
            witness(&format!("[\"{}\", \"{}\"]", cosigner("b", 2), ml_dsa("b", 2)))
        );
        let all = Witnesses::resolve(&config(&two).0, Path::new(".")).unwrap().unwrap();
        assert_eq!(all.names().collect::<Vec<_>>(), ["a", "b"]);
        assert!(all.enough(&[0, 1]) && !all.enough(&[0]) && !all.enough(&[1]));
        let one = Witnesses::resolve(&config(&format!("quorum = 1\n{two}")).0, Path::new(".")).unwrap().unwrap();
        assert!(one.enough(&[1]) && !one.enough(&[]));
    }

    #[test]
    fn a_mistake_is_told_where_it_is() {
        let (a, log) = (cosigner("a", 1), format!("x+00000000+{}", "A"));
        let note = Vkey { name: "a".into(), key: PublicKey::Log([1; 32]) }.to_string();
        let one = witness(&format!("\"{a}\""));
        for (bad, at) in [
            (witness(&format!("\"{log}\"")), &*format!("\"{log}\"")),
            (witness(&format!("\"{note}\"")), &*format!("\"{note}\"")),
            (witness("[]"), "[]"),
            (witness(&format!("[\"{a}\", \"{}\"]", ml_dsa("b", 1))), &*format!("[\"{a}\", \"{}\"]", ml_dsa("b", 1))),
            (format!("{one}{}", witness(&format!("\"{}\"", cosigner("b", 1)))), &*format!("\"{}\"", cosigner("b", 1))),
            (one.replace("https://w.example/", "http://w.example/"), &*format!("\"http://w.example/{}\"", a.len() + 2)),
            (one.replace("https://w.example/", "https://w.example/?"), &*format!("\"https://w.example/?{}\"", a.len() + 2)),
            (format!("quorum = 0\n{one}"), "0"),
            (format!("quorum = 2\n{one}"), "2"),
            ("quorum = 1\n".into(), "1"),
            (format!("witness_policy = \"p\"\n{one}"), "\"p\""),
        ] {
            let (config, text) = config(&bad);
            let mistakes = mistakes(&config);
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert_eq!(&text[mistakes[0].span.clone().unwrap()], at, "{}", mistakes[0].what);
            assert!(Witnesses::resolve(&config, Path::new(".")).is_err());
        }
        let many = |count: u8| config(&(0..count).map(|at| witness(&format!("\"{}\"", cosigner("a", at)))).collect::<String>()).0;
        assert!(mistakes(&many(MAX_OF_EACH as u8)).is_empty());
        assert_eq!(mistakes(&many(MAX_OF_EACH as u8 + 1)).len(), 1);
        let authority = config(&format!("{one}ca = \"nowhere.pem\"\n"));
        assert_eq!(Witnesses::resolve(&authority.0, Path::new(".")).unwrap_err().len(), 1);
    }

    #[test]
    fn a_policy_file_names_them_too() {
        let folder = tempfile::tempdir().unwrap();
        let resolve = |policy: &str| {
            std::fs::write(folder.path().join("p"), policy).unwrap();
            Witnesses::resolve(&config("witness_policy = \"p\"\n").0, folder.path())
        };
        let (a, b) = (cosigner("a", 1), cosigner("b", 2));
        let both = format!("witness A {a}\nwitness B {b} https://b.example/\n");
        let witnesses = resolve(&format!("{both}group g any A B\nquorum g\n")).unwrap().unwrap();
        // The first has no URL: it cannot be asked, and keeps its place.
        assert_eq!(witnesses.names().collect::<Vec<_>>(), ["b"]);
        assert!(witnesses.enough(&[0]) && !witnesses.enough(&[]));
        assert!(resolve("quorum none\n").unwrap().is_none());
        for bad in [
            format!("{both}quorum A\n"),
            format!("{both}group g all A B\nquorum g\n"),
            format!("witness A {a} http://a.example\nquorum A\n"),
            "x\n".into(),
        ] {
            let mistakes = resolve(&bad).unwrap_err();
            assert_eq!(mistakes.len(), 1);
            assert!(mistakes[0].span.is_some());
        }
    }
}
