//! Who must have cosigned a checkpoint (C2SP tlog-policy): witnesses, groups of them, and the quorum.

use std::collections::HashMap;
use std::fmt;

use super::vkey::{Kind, Vkey};

/// The most bytes of a policy file.
pub const MAX_POLICY: usize = 256 << 10;
/// The most logs, witnesses and groups of each; the specification asks for 32.
pub const MAX_OF_EACH: usize = 64;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The logs that are accepted; where there are none, the log is known from elsewhere.
    pub logs: Vec<Vkey>,
    /// The witnesses that are known.
    pub witnesses: Vec<Witness>,
    /// Which of them are enough.
    pub quorum: Quorum,
}

/// A witness of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Its key.
    pub key: Vkey,
    /// The prefix of its URLs, where the policy tells.
    pub url: Option<String>,
}

/// Which witnesses are enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// None are needed.
    Nobody,
    /// This one, by its place.
    Witness(usize),
    /// At least so many of these.
    Of(usize, Vec<Quorum>),
}

impl Quorum {
    /// At least `count` of the witnesses at the places below `of`.
    #[must_use]
    pub fn any(count: usize, of: usize) -> Self {
        Self::Of(count, (0..of).map(Self::Witness).collect())
    }

    /// Whether the witnesses of which `cosigned` is true are enough.
    pub fn met(&self, cosigned: &impl Fn(usize) -> bool) -> bool {
        match self {
            Self::Nobody => true,
            Self::Witness(place) => cosigned(*place),
            Self::Of(count, members) => members.iter().filter(|member| member.met(cosigned)).count() >= *count,
        }
    }
}

/// What is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAPolicy {
    /// The line, from 1; the one after the last where something is missing.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub what: &'static str,
}

impl fmt::Display for NotAPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for NotAPolicy {}

impl Policy {
    /// Reads a policy file. Beyond the specification it must be UTF-8, which the names of keys are anyway.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAPolicy> {
        let wrong = |what| NotAPolicy { line: 1, what };
        if bytes.len() > MAX_POLICY {
            return Err(wrong("the policy is longer than 256 KiB"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("the policy is not UTF-8"))?;
        let mut reader = Reader::default();
        let mut count = 0;
        for (place, line) in text.split_terminator('\n').enumerate() {
            count = place + 1;
            reader.line(line).map_err(|what| NotAPolicy { line: count, what })?;
        }
        let last = |what| NotAPolicy { line: count + 1, what };
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(last("the last line has no end"));
        }
        let quorum = reader.quorum.ok_or(last("there is no `quorum` line; `quorum none` asks for no witness"))?;
        Ok(Self { logs: reader.logs, witnesses: reader.witnesses, quorum })
    }
}

#[derive(Default)]
struct Reader<'a> {
    logs: Vec<Vkey>,
    witnesses: Vec<Witness>,
    groups: usize,
    /// Witnesses and groups that were defined and are not yet in a group.
    free: HashMap<&'a str, Quorum>,
    names: HashMap<&'a str, Quorum>,
    quorum: Option<Quorum>,
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), &'static str> {
        if line.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
            return Err("a control character other than tab");
        }
        let words: Vec<&str> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
        match *words {
            [] => Ok(()),
            [first, ..] if first.starts_with('#') => Ok(()),
            // An address is nothing that a verifier uses.
            ["log", key] | ["log", key, _] => {
                let key = read(key, &[Kind::Log, Kind::MlDsa44], "a log has a verifier key of the kind 0x01 or 0x06")?;
                if self.logs.iter().any(|log| log.key.bytes() == key.key.bytes()) {
                    return Err("two logs have one key");
                }
                self.logs.push(key);
                bounded(self.logs.len())
            }
            ["witness", name, key] => self.witness(name, key, None),
            ["witness", name, key, url] => self.witness(name, key, Some(url.to_owned())),
            ["group", name, count, ref members @ ..] => self.group(name, count, members),
            ["quorum", "none"] if self.quorum.is_none() => {
                self.quorum = Some(Quorum::Nobody);
                Ok(())
            }
            ["quorum", name] if self.quorum.is_none() => {
                self.quorum = Some(self.names.get(name).ok_or("`quorum` names nothing that an earlier line defines")?.clone());
                Ok(())
            }
            ["quorum", _] => Err("there are two `quorum` lines"),
            _ => Err("a line is `log VKEY [URL]`, `witness NAME VKEY [URL]`, `group NAME all|any|K NAME…` or `quorum NAME`"),
        }
    }

    fn witness(&mut self, name: &'a str, key: &str, url: Option<String>) -> Result<(), &'static str> {
        let key = read(key, &[Kind::Cosigner, Kind::MlDsa44], "a witness has a verifier key of the kind 0x04 or 0x06")?;
        if self.witnesses.iter().any(|witness| witness.key.key.bytes() == key.key.bytes()) {
            return Err("two witnesses have one key");
        }
        self.define(name, Quorum::Witness(self.witnesses.len()))?;
        self.witnesses.push(Witness { key, url });
        bounded(self.witnesses.len())
    }

    fn group(&mut self, name: &'a str, count: &str, members: &[&'a str]) -> Result<(), &'static str> {
        let mut of = Vec::new();
        for member in members {
            of.push(self.free.remove(member).ok_or("a member is defined by no earlier line, or is in a group already")?);
        }
        let count = match count {
            "any" => Some(1),
            "all" => Some(of.len()),
            _ => super::decimal(count).and_then(|count| usize::try_from(count).ok()),
        };
        let count = count
            .filter(|count| (1..=of.len()).contains(count))
            .ok_or("a group is `all`, `any` or a number from 1 to that of its members")?;
        self.define(name, Quorum::Of(count, of))?;
        self.groups += 1;
        bounded(self.groups)
    }

    fn define(&mut self, name: &'a str, what: Quorum) -> Result<(), &'static str> {
        if name == "none" || self.names.insert(name, what.clone()).is_some() {
            return Err("this name is taken");
        }
        self.free.insert(name, what);
        Ok(())
    }
}

fn read(key: &str, kinds: &[Kind], otherwise: &'static str) -> Result<Vkey, &'static str> {
    key.parse().ok().filter(|key: &Vkey| kinds.contains(&key.kind())).ok_or(otherwise)
}

fn bounded(count: usize) -> Result<(), &'static str> {
    if count > MAX_OF_EACH { Err("more than 64 logs, witnesses or groups") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::signature::Ed25519Key;
    use super::super::vkey::PublicKey;
    use super::*;

    fn key(kind: fn([u8; 32]) -> PublicKey, seed: u8) -> String {
        Vkey { name: "w".into(), key: kind(Ed25519Key::from_seed(&[seed; 32]).unwrap().public()) }.to_string()
    }

    fn witness(name: &str, seed: u8) -> String {
        format!("witness {name} {}\n", key(PublicKey::Cosigner, seed))
    }

    fn parsed(text: &str) -> Result<Policy, NotAPolicy> {
        Policy::parse(text.as_bytes())
    }

    #[test]
    fn the_specifications_example_means_what_it_says() {
        let mut text = format!("log {}\n\n", key(PublicKey::Log, 0));
        (1..=3).for_each(|at| text += &witness(&format!("X{at}"), at));
        text += "group X-witnesses 2 X1 X2 X3\n";
        (1..=3).for_each(|at| text += &witness(&format!("Y{at}"), at + 3));
        text += "group Y-witnesses any Y1 Y2 Y3\n# both\n \t\ngroup\tX-and-Y  all X-witnesses Y-witnesses\nquorum X-and-Y\n";
        let policy = parsed(&text).unwrap();
        assert_eq!((policy.logs.len(), policy.witnesses.len()), (1, 6));
        let met = |cosigned: &[usize]| policy.quorum.met(&|place| cosigned.contains(&place));
        assert!(met(&[0, 2, 4]) && met(&[0, 1, 2, 3, 4, 5]));
        assert!(!met(&[]) && !met(&[0, 1, 2]) && !met(&[0, 3, 4, 5]));
    }

    #[test]
    fn one_witness_or_none_may_be_the_quorum() {
        let one = parsed(&format!("{}{}quorum b\n", witness("a", 1), witness("b", 2))).unwrap();
        assert!(one.quorum.met(&|place| place == 1) && !one.quorum.met(&|place| place == 0));
        assert!(parsed("quorum none\n").unwrap().quorum.met(&|_| false));
        let addressed = format!("witness a {} https://w.example/p\nquorum a\n", key(PublicKey::Cosigner, 1));
        assert_eq!(parsed(&addressed).unwrap().witnesses[0].url.as_deref(), Some("https://w.example/p"));
        assert!(Quorum::any(2, 3).met(&|place| place != 1) && !Quorum::any(2, 3).met(&|place| place == 1));
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let (a, b) = (witness("a", 1), witness("b", 2));
        for (line, bad) in [
            (1, String::new()),
            (2, a.clone()),
            (2, "quorum none".into()),
            (2, "quorum none\nquorum none\n".into()),
            (1, "quorum a\n".into()),
            (2, format!("{a}quorum b\n")),
            (1, format!("quorum a\n{a}")),
            (1, "witness none x\n".into()),
            (2, format!("{a}{}", witness("a", 2))),
            (2, format!("{a}{}", witness("b", 1))),
            (1, format!("witness a {}\n", key(PublicKey::Log, 1))),
            (1, format!("log {}\n", key(PublicKey::Cosigner, 1))),
            (2, format!("log {0}\nlog {0}\n", key(PublicKey::Log, 1))),
            (3, format!("{a}{b}group g 3 a b\nquorum g\n")),
            (3, format!("{a}{b}group g 0 a b\nquorum g\n")),
            (3, format!("{a}{b}group g 01 a b\nquorum g\n")),
            (3, format!("{a}{b}group g some a b\nquorum g\n")),
            (3, format!("{a}{b}group g any\nquorum g\n")),
            (3, format!("{a}{b}group g any a a\nquorum g\n")),
            (4, format!("{a}{b}group g any a\ngroup h any a b\nquorum h\n")),
            (3, format!("{a}{b}group g any g\nquorum g\n")),
            (3, format!("{a}{b}group a any b\nquorum a\n")),
            (1, "sth else\n".into()),
            (1, "quorum none\r\n".into()),
            (1, "quorum none\u{7f}\n".into()),
        ] {
            assert_eq!(parsed(&bad).map_err(|why| why.line), Err(line), "{bad}");
        }
        assert!(Policy::parse(b"# \xff\nquorum none\n").is_err());
    }

    #[test]
    fn a_policy_is_bounded_in_bytes_and_names() {
        let comment = |length: usize| format!("quorum none\n#{}\n", "x".repeat(length - 14));
        assert_eq!(comment(MAX_POLICY).len(), MAX_POLICY);
        assert!(parsed(&comment(MAX_POLICY)).is_ok());
        assert!(parsed(&comment(MAX_POLICY + 1)).is_err());
        let many = |count: usize| (0..count).map(|at| witness(&format!("w{at}"), at as u8)).collect::<String>() + "quorum none\n";
        assert!(parsed(&many(MAX_OF_EACH)).is_ok());
        assert_eq!(parsed(&many(MAX_OF_EACH + 1)).map_err(|why| why.line), Err(MAX_OF_EACH + 1));
    }
}
