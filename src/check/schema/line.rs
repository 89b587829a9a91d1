//! Where in the text of a schema something stands: JSON that was parsed has lost its lines.

use serde::de::{DeserializeOwned, IgnoredAny};

/// Where the value begins that `pointer` (RFC 6901) leads to in `text`, which is JSON. In bytes.
pub(super) fn position(text: &str, pointer: &str) -> Option<usize> {
    let mut at = past_space(text, 0);
    for step in pointer.split('/').skip(1) {
        at = member(text, at, &step.replace("~1", "/").replace("~0", "~"))?;
    }
    Some(at)
}

/// Where the member `step` of what begins at `at` begins.
fn member(text: &str, at: usize, step: &str) -> Option<usize> {
    let object = match text.as_bytes().get(at)? {
        b'{' => true,
        b'[' => false,
        _ => return None,
    };
    let mut at = past_space(text, at + 1);
    for index in 0.. {
        // Nothing stands in it, which is seen here alone: past a comma there is more.
        if matches!(text.as_bytes().get(at)?, b']' | b'}') {
            return None;
        }
        if object {
            let (key, after) = value::<String>(text, at)?;
            // Past the colon.
            at = past_space(text, past_space(text, after) + 1);
            if key == step {
                return Some(at);
            }
        } else if step.parse() == Ok(index) {
            return Some(at);
        }
        let (IgnoredAny, after) = value(text, at)?;
        at = past_space(text, after);
        if text.as_bytes().get(at)? != &b',' {
            break;
        }
        at = past_space(text, at + 1);
    }
    None
}

/// The value that begins at `at`, and where it ends, by serde_json's own reader.
fn value<T: DeserializeOwned>(text: &str, at: usize) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_str(text.get(at..)?).into_iter();
    let value = values.next()?.ok()?;
    Some((value, at + values.byte_offset()))
}

fn past_space(text: &str, at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + (rest.len() - rest.trim_start().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_found_by_its_pointer() {
        let text = " {\"a\" : [1 , {\"b/c\":true, \"~\":\"}\"}],\n\t\"d\": null, \"\\u0065\": {} } ";
        for (pointer, begins) in [
            ("", "{\"a\""),
            ("/a", "[1"),
            ("/a/0", "1 ,"),
            ("/a/1", "{\"b"),
            ("/a/1/b~1c", "true"),
            ("/a/1/~0", "\"}\""),
            ("/d", "null"),
            ("/e", "{} }"),
        ] {
            let at = position(text, pointer);
            assert!(at.is_some_and(|at| text[at..].starts_with(begins)), "{pointer}: {at:?}");
        }
        for none in ["/b", "/a/2", "/a/x", "/d/a", "/a/0/0"] {
            assert_eq!(position(text, none), None, "{none}");
        }
        assert_eq!(position("{}", "/a"), None);
        assert_eq!(position("[]", "/0"), None);
    }
}
