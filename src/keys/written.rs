//! How keys are written in `callers.toml`: as `[[api_key]]`, or in an array of inline tables. A gateway takes both.

use toml_edit::{ArrayOfTables, DocumentMut, Item, RawString, Table, TableLike, Value};

use crate::cli::No;

/// Every key.
pub(super) fn keys(document: &DocumentMut) -> Vec<&dyn TableLike> {
    match document.get("api_key") {
        Some(Item::ArrayOfTables(tables)) => tables.iter().map(|table| table as &dyn TableLike).collect(),
        Some(Item::Value(Value::Array(keys))) => keys.iter().filter_map(Value::as_inline_table).map(|key| key as &dyn TableLike).collect(),
        _ => Vec::new(),
    }
}

/// Whether it is the key of this id.
pub(super) fn is(key: &dyn TableLike, id: &str) -> bool {
    key.get("id").and_then(Item::as_str) == Some(id)
}

/// Writes one key more, as the others are written.
///
/// # Errors
/// When `api_key` is neither.
pub(super) fn put_in(document: &mut DocumentMut, key: Table) -> Result<(), No> {
    match document.entry("api_key").or_insert(Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(tables) => tables.push(key),
        Item::Value(Value::Array(keys)) => keys.push(key.into_inline_table()),
        _ => return Err(No::because("`api_key` is not written as [[api_key]]")),
    }
    Ok(())
}

/// Takes out the key of this id; `false` where there is none. What stands above it stays, but for comments right above it, which are about
/// it: those at the head of the file are about the file.
pub(super) fn take_out(document: &mut DocumentMut, id: &str) -> bool {
    let mut taken = false;
    match document.get_mut("api_key") {
        Some(Item::ArrayOfTables(tables)) => {
            let mut gone = Vec::new();
            loop {
                let Some(at) = tables.iter().position(|key| is(key, id)) else { break };
                let above = tables.get(at).map(|key| (key.position(), text(key.decor().prefix())));
                tables.remove(at);
                gone.extend(above);
                taken = true;
            }
            gone.into_iter().for_each(|(position, above)| keep(document, position.unwrap_or(isize::MAX), &above));
        }
        Some(Item::Value(Value::Array(keys))) => {
            loop {
                let Some(at) = keys.iter().position(|key| key.as_inline_table().is_some_and(|key| is(key, id))) else { break };
                let above = keys.get(at).map(|key| text(key.decor().prefix())).unwrap_or_default();
                keys.remove(at);
                taken = true;
                // A comment behind a comma is of the key before it, and lies with the one after it.
                if !above.contains('#') {
                    continue;
                }
                match keys.get_mut(at) {
                    Some(next) => {
                        let below = text(next.decor().prefix());
                        next.decor_mut().set_prefix(above + &below);
                    }
                    None => {
                        let below = text(Some(keys.trailing()));
                        keys.set_trailing(above + &below);
                    }
                }
            }
        }
        _ => {}
    }
    taken
}

fn text(raw: Option<&RawString>) -> String {
    raw.and_then(RawString::as_str).unwrap_or_default().to_owned()
}

/// Keeps of `above`, which stood above a table that is gone, what is not about that table: above the table after it, or at the end.
fn keep(document: &mut DocumentMut, position: isize, above: &str) {
    let root = document.as_table();
    let first = root.iter().all(|(_, item)| !item.is_value()) && lowest(root, isize::MIN).is_none_or(|lowest| lowest > position);
    let kept = if first { above } else { above.rsplit_once("\n\n").map_or("", |(kept, _)| kept) };
    if kept.trim().is_empty() {
        return;
    }
    let over = |below: &str| {
        let apart = if below.starts_with('\n') || below.is_empty() { "" } else { "\n" };
        format!("{}\n{apart}{}", kept.trim_end_matches('\n'), if below.is_empty() { "\n" } else { below })
    };
    let next = lowest(root, position).and_then(|next| at(document.as_table_mut(), next));
    match next {
        Some(next) => {
            let above = over(&text(next.decor().prefix()));
            next.decor_mut().set_prefix(above);
        }
        None => {
            let trailing = text(Some(document.trailing()));
            document.set_trailing(format!("{}\n{trailing}", kept.trim_end_matches('\n')));
        }
    }
}

/// The first place behind `after` where a table has its header.
fn lowest(table: &Table, after: isize) -> Option<isize> {
    let place = |table: &Table| table.position().filter(|place| *place > after).into_iter().chain(lowest(table, after)).min();
    let below = |(_, item): (&str, &Item)| match item {
        Item::Table(table) => place(table),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(place).min(),
        _ => None,
    };
    table.iter().filter_map(below).min()
}

/// The table that has its header there.
fn at(table: &mut Table, place: isize) -> Option<&mut Table> {
    fn here(table: &mut Table, place: isize) -> Option<&mut Table> {
        if table.position() == Some(place) { Some(table) } else { at(table, place) }
    }
    table.iter_mut().find_map(|(_, item)| match item {
        Item::Table(table) => here(table, place),
        Item::ArrayOfTables(tables) => tables.iter_mut().find_map(|table| here(table, place)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(text: &str, id: &str) -> String {
        let mut document = text.parse().unwrap();
        assert!(take_out(&mut document, id), "{text}");
        assert!(!take_out(&mut document, id));
        document.to_string()
    }

    #[test]
    fn what_stands_above_a_key_stays_unless_it_is_about_that_key() {
        let head = "#:schema callers.schema.json\n# Who may call.\n\n";
        let key = |id: &str| format!("[[api_key]]\nid = \"{id}\"\n");
        let issuer = "\n[[issuer]]\nissuer = \"i\"\n[issuer.claims]\ncaller = \"sub\"\n";
        let (a, b) = (key("a"), key("b"));
        for (before, after) in [
            (format!("{head}{a}{issuer}"), format!("{head}{}", &issuer[1..])),
            (format!("{head}{a}"), "#:schema callers.schema.json\n# Who may call.\n".to_owned()),
            (format!("# ours\n{a}\n{b}"), format!("# ours\n\n{b}")),
            (format!("{b}\n# of the batch\n{a}{issuer}"), format!("{b}{issuer}")),
            (format!("{b}\n# the batch\n\n# a\n{a}{issuer}"), format!("{b}\n# the batch\n{issuer}")),
            (format!("{issuer}\n# the batch\n\n# a\n{a}"), format!("{issuer}\n# the batch\n")),
            (format!("{a}\n# the end\n"), "\n# the end\n".to_owned()),
        ] {
            assert_eq!(without(&before, "a"), after, "{before}");
        }
    }

    #[test]
    fn keys_in_an_array_are_keys() {
        let text = "api_key = [\n  { id = \"a\", roles = [] }, # of a\n  { id = \"b\" }, # of b\n]\n";
        let document: DocumentMut = text.parse().unwrap();
        assert_eq!(keys(&document).len(), 2);
        assert_eq!(without(text, "a"), "api_key = [ # of a\n  { id = \"b\" }, # of b\n]\n");
        let last = without(text, "b");
        assert!(last.contains("# of a") && last.contains("# of b") && !last.contains("\"b\""), "{last}");
        assert!(last.parse::<DocumentMut>().is_ok());
        let mut document: DocumentMut = "api_key = [{ id = \"a\" }]\n".parse().unwrap();
        let mut key = Table::new();
        key["id"] = toml_edit::value("c");
        put_in(&mut document, key).unwrap();
        assert_eq!(document.to_string(), "api_key = [{ id = \"a\" }, { id = \"c\" }]\n");
    }
}
