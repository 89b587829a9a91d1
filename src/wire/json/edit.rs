//! Edits of a checked buffer that leave every other byte as it was.

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::is_space;

/// One edit of a top-level member. The text is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Sets the member; it is added at the end where it is missing.
    Set(String),
    /// Sets the member where it stands; a missing one stays missing.
    Replace(String),
    /// Sets a member of the member, which is made an object where it is missing or null.
    SetIn(&'static str, String),
}

impl Edit {
    /// [`Edit::Set`] to a string.
    #[must_use]
    pub fn set_text(text: &str) -> Self {
        Self::Set(Value::from(text).to_string())
    }

    /// [`Edit::Replace`] by a string.
    #[must_use]
    pub fn replace_text(text: &str) -> Self {
        Self::Replace(Value::from(text).to_string())
    }
}

/// Edits members of a top-level object in a buffer that [`parse`](super::parse) has accepted, and leaves every other byte as it was.
/// `None` where the buffer is no such object (or, for [`Edit::SetIn`], the member is neither object nor null). Without a change it is the same buffer.
///
/// The spans come from serde_json's own reader; its `raw_value` feature is not used, because it gives a magic key a meaning in every other parse of the program.
#[must_use]
pub fn edit(bytes: &Bytes, edits: &[(&str, Edit)]) -> Option<Bytes> {
    let members = members(bytes)?;
    let mut changes: Vec<(usize, usize, String)> = Vec::with_capacity(edits.len());
    let mut added = String::new();
    let mut add = |key: &str, text: &str| {
        if !members.list.is_empty() || !added.is_empty() {
            added.push(',');
        }
        added.push_str(&Value::from(key).to_string());
        added.push(':');
        added.push_str(text);
    };
    for (key, change) in edits {
        let found = members.list.iter().find(|member| member.key == *key);
        match (change, found) {
            (Edit::Set(text) | Edit::Replace(text), Some(member)) => changes.push((member.start, member.end, text.clone())),
            (Edit::Set(text), None) => add(key, text),
            (Edit::Replace(_), None) => {}
            (Edit::SetIn(inner, text), Some(member)) if &bytes[member.start..member.end] == b"null" => {
                changes.push((member.start, member.end, format!("{{{}:{text}}}", Value::from(*inner))));
            }
            (Edit::SetIn(inner, text), Some(member)) => {
                let part = edit(&bytes.slice(member.start..member.end), &[(*inner, Edit::Set(text.clone()))])?;
                changes.push((member.start, member.end, String::from_utf8(part.to_vec()).ok()?));
            }
            (Edit::SetIn(inner, text), None) => add(key, &format!("{{{}:{text}}}", Value::from(*inner))),
        }
    }
    if !added.is_empty() {
        changes.push((members.insert_at, members.insert_at, added));
    }
    if changes.is_empty() {
        return Some(bytes.clone());
    }
    changes.sort_by_key(|change| change.0);
    let mut out = BytesMut::with_capacity(bytes.len() + changes.iter().map(|change| change.2.len()).sum::<usize>());
    let mut from = 0;
    for (start, end, text) in &changes {
        out.extend_from_slice(bytes.get(from..*start)?);
        out.extend_from_slice(text.as_bytes());
        from = *end;
    }
    out.extend_from_slice(&bytes[from..]);
    Some(out.freeze())
}

struct Member {
    key: String,
    start: usize,
    end: usize,
}

struct Members {
    list: Vec<Member>,
    /// Just behind the last value, or behind the opening brace.
    insert_at: usize,
}

fn members(bytes: &[u8]) -> Option<Members> {
    let mut at = token(bytes, 0, b'{')?;
    let mut list = Vec::new();
    let mut insert_at = at;
    if token(bytes, at, b'}').is_some() {
        return Some(Members { list, insert_at });
    }
    loop {
        let mut keys = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<String>();
        let key = keys.next()?.ok()?;
        at = token(bytes, at + keys.byte_offset(), b':')?;
        let start = at + bytes[at..].iter().position(|byte| !is_space(*byte))?;
        let mut values = serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        at = start + values.byte_offset();
        list.push(Member { key, start, end: at });
        insert_at = at;
        match token(bytes, at, b',') {
            Some(next) => at = next,
            None => return token(bytes, at, b'}').map(|_| Members { list, insert_at }),
        }
    }
}

/// Behind the token, where it stands next.
fn token(bytes: &[u8], at: usize, wanted: u8) -> Option<usize> {
    let next = at + bytes.get(at..)?.iter().position(|byte| !is_space(*byte))?;
    (bytes[next] == wanted).then_some(next + 1)
}
