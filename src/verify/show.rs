//! What the statements of a log say. Nothing is verified beyond what it takes to read them.

use std::io;
use std::path::Path;

use serde_json::Value as Json;
use uuid::Uuid;

use super::entries::Entries;
use super::statement::Statement;

/// Which statements to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// All of them.
    All,
    /// The one of this receipt.
    Id(Uuid),
    /// The one with this number.
    Seq(u64),
    /// The one at this place in the tree.
    Index(u64),
}

/// The statements in `directory`, oldest first, as JSON; nothing is verified beyond what it takes to read them.
///
/// # Errors
/// When the folder cannot be read.
pub fn show(directory: &Path, select: Select) -> io::Result<impl Iterator<Item = io::Result<Json>>> {
    Ok(Entries::of_covered(directory)?.filter_map(move |entry| {
        let wanted = entry.and_then(|(index, entry)| {
            let statement = Statement::read(&entry).map_err(|error| io::Error::other(format!("entry {index}: {error}")))?;
            let wanted = match select {
                Select::All => true,
                Select::Id(id) => id == statement.id,
                Select::Seq(seq) => seq == statement.seq,
                Select::Index(wanted) => wanted == index,
            };
            Ok(wanted.then(|| statement.view()))
        });
        wanted.transpose()
    }))
}
