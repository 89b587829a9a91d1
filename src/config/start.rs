//! What of `gateway.toml` is in force from the start of the gateway on, so that a change of it waits for the next.

use std::collections::BTreeMap;

/// The keys of `gateway.toml` that are read at the start alone, and what they say. All others are read anew with the policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AtStart(BTreeMap<String, toml::Value>);

/// Tables that are read at the start alone.
const TABLES: [&str; 5] = ["accept", "admin", "prove", "record", "state"];
/// What in them is not.
const ANEW: [&str; 3] = ["accept.tls", "accept.max_body", "admin.tls"];

impl AtStart {
    /// Those of a file that reads as a configuration.
    pub(super) fn of(text: &str) -> Self {
        let mut keys = BTreeMap::new();
        for (name, table) in text.parse::<toml::Table>().unwrap_or_default() {
            if TABLES.contains(&&*name) {
                flatten(name, table, &mut keys);
            }
        }
        Self(keys)
    }

    /// The keys that say something else in `now`, or stand in one of the two alone.
    #[must_use]
    pub fn waiting(&self, now: &Self) -> Vec<String> {
        let differs = |key: &&String| self.0.get(*key) != now.0.get(*key);
        let all: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        all.into_iter().filter(differs).cloned().collect()
    }
}

fn flatten(name: String, value: toml::Value, keys: &mut BTreeMap<String, toml::Value>) {
    if ANEW.contains(&&*name) {
        return;
    }
    match value {
        toml::Value::Table(table) => {
            table.into_iter().for_each(|(key, value)| flatten(format!("{name}.{key}"), value, keys));
        }
        value => drop(keys.insert(name, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_at_the_start_alone_waits_and_the_rest_does_not() {
        const START: &str = "[accept]\nlisten = \"127.0.0.1:1\"\ndrain = \"10s\"\nmax_body = \"1MiB\"\n[accept.tls]\nkey = \"k\"\n\
            [prove]\nkeep = \"9d\"\n[[prove.witness]]\nurl = \"a\"\n[budget.default]\nin_flight = 1\n";
        let at_start = AtStart::of(START);
        let waiting = |from: &str, to: &str| at_start.waiting(&AtStart::of(&START.replacen(from, to, 1)));
        for (from, to) in [("\"1MiB\"", "\"2MiB\""), ("\"k\"", "\"l\""), ("in_flight = 1", "in_flight = 2"), ("drain = ", "drain   =  ")] {
            assert_eq!(waiting(from, to), Vec::<String>::new(), "{from}");
        }
        for (from, to, key) in [
            ("\"10s\"", "\"11s\"", "accept.drain"),
            ("drain = \"10s\"\n", "", "accept.drain"),
            ("[accept.tls]", "[accept.deadlines]\nidle = \"1s\"\n[accept.tls]", "accept.deadlines.idle"),
            ("url = \"a\"", "url = \"b\"", "prove.witness"),
            ("[budget", "[record]\nsample = 0.5\n[budget", "record.sample"),
            ("[budget", "[admin]\nlisten = \"127.0.0.1:2\"\n[budget", "admin.listen"),
            ("[budget", "[state]\ndirectory = \"s\"\n[budget", "state.directory"),
        ] {
            assert_eq!(waiting(from, to), [key], "{from}");
        }
    }
}
