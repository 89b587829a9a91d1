//! Keys of a TOML file, with their places: where one stands that a mistake names, and all that nobody knows.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Mistake;

/// The most unknown keys of one file that are told: each costs a reading, and a file of more is something else.
const MOST: usize = 32;

/// What `text` says.
///
/// # Errors
/// What is wrong: every key that is not known, in the order of their names, up to the first of anything else, which ends it.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Mistake>> {
    let mut error = match toml::from_str(text) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    let Ok(mut document) = DeTable::parse(text) else { return Err(vec![Mistake::of_toml(&error)]) };
    let mut mistakes = Vec::new();
    while mistakes.len() < MOST {
        let mistake = Mistake::of_toml(&error);
        let unknown = unknown(error.message()).zip(error.span());
        let Some(at) = unknown.and_then(|(key, span)| take_out(document.get_mut(), key, &span)) else {
            // A key that is missing since it was misspelt was told already.
            let misspelt = missing(error.message()).is_some_and(|key| mistakes.iter().any(|told| meant(told, key)));
            mistakes.extend((!misspelt).then_some(mistake));
            break;
        };
        mistakes.push(Mistake { span: Some(at), ..mistake });
        match T::deserialize(toml::Deserializer::from(document.clone())) {
            Ok(_) => break,
            Err(next) => error = next,
        }
    }
    Err(mistakes)
}

/// Where the value of the key `name`, written with dots, stands in `text`.
#[must_use]
pub fn place(text: &str, name: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    find(document.get_ref(), name).map(|(_, value)| value.span())
}

/// The key `name`, written with dots, and its value.
#[must_use]
pub fn find<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<(Range<usize>, &'t Spanned<DeValue<'i>>)> {
    let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
    let (key, value) = table.iter().find(|(key, _)| *key.get_ref() == first)?;
    match (rest, value.get_ref()) {
        (None, _) => Some((key.span(), value)),
        (Some(rest), DeValue::Table(table)) => find(table, rest),
        (Some(_), _) => None,
    }
}

fn unknown(message: &str) -> Option<&str> {
    Some(message.strip_prefix("unknown field `")?.split_once('`')?.0)
}

fn missing(message: &str) -> Option<&str> {
    Some(message.trim_end().strip_prefix("missing field `")?.split_once('`')?.0)
}

fn meant(told: &Mistake, key: &str) -> bool {
    told.what.ends_with(&format!("did you mean `{key}`?"))
}

/// Takes the first key called `name` out that stands within `span`, and tells where it stood.
fn take_out(table: &mut DeTable<'_>, name: &str, span: &Range<usize>) -> Option<Range<usize>> {
    let within = |key: Range<usize>| span.start <= key.start && key.end <= span.end;
    let found = table.keys().find(|key| *key.get_ref() == name && within(key.span())).cloned();
    if let Some(key) = found {
        table.remove(&key);
        return Some(key.span());
    }
    table.iter_mut().find_map(|(_, value)| take_out_below(value, name, span))
}

fn take_out_below(value: &mut Spanned<DeValue<'_>>, name: &str, span: &Range<usize>) -> Option<Range<usize>> {
    match value.get_mut() {
        DeValue::Table(table) => take_out(table, name, span),
        DeValue::Array(items) => items.iter_mut().find_map(|item| take_out_below(item, name, span)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its keys matter")]
    struct Outer {
        listen: String,
        inner: Option<Inner>,
        #[serde(default)]
        each: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its keys matter")]
    struct Inner {
        max_body: Option<u32>,
    }

    fn told(text: &str) -> Vec<String> {
        let mistakes = read::<Outer>(text).unwrap_err();
        mistakes.iter().map(|mistake| mistake.located(std::path::Path::new("f"), text)).collect()
    }

    #[test]
    fn every_unknown_key_is_told_wherever_it_stands() {
        let text = "listen = \"a\"\nlisten2 = [\n 1,\n]\nzzz.y = 1\n[inner]\nmax_bdy = 1\n[[each]]\n[[each]]\nmax_boddy = { x = 1 }\n[other]\nlisten2 = 1\n";
        let lines = told(text);
        let places: Vec<&str> = lines.iter().map(|line| line.split(": ").next().unwrap()).collect();
        let mut sorted = places.clone();
        sorted.sort_by_key(|place| place[2..].split(':').next().unwrap().parse::<u32>().unwrap());
        assert_eq!(sorted, ["f:2:1", "f:5:1", "f:7:1", "f:10:1", "f:11:2"], "{lines:?}");
        assert!(lines.iter().filter(|line| line.contains("did you mean")).count() >= 3, "{lines:?}");
    }

    #[test]
    fn what_else_is_wrong_is_told_after_them_and_a_misspelt_key_is_not_missing() {
        assert_eq!(told("lsten = \"a\"\n"), ["f:1:1: unknown key `lsten`; did you mean `listen`?"]);
        let lines = told("aaa = 1\nlisten = 5\n");
        assert!(lines.len() == 2 && lines[0].contains("aaa") && lines[1].starts_with("f:2:10: "), "{lines:?}");
        assert_eq!(told("zzz = 1\n").len(), 2);
        let many: String = (0..100).map(|n| format!("zzz{n} = 1\n")).collect();
        assert_eq!(told(&many).len(), MOST);
        assert_eq!(told("listen = \n").len(), 1);
    }

    #[test]
    fn a_key_is_found_by_its_whole_name() {
        let text = "listen = 1\n[a.b]\nc = { d = 2 }\n";
        assert_eq!(place(text, "a.b.c.d").map(|at| &text[at]), Some("2"));
        assert_eq!(place(text, "listen").map(|at| &text[at]), Some("1"));
        assert!(place(text, "a.c").is_none() && place(text, "listen.x").is_none());
    }
}
