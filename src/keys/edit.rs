//! A file of the policies that a command changes: what it does not change stays as it is.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml_edit::DocumentMut;

use crate::cli::No;
use crate::whole::{self, Ready};

/// A file that was read.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    file: PathBuf,
    /// What it holds.
    pub(crate) document: DocumentMut,
    /// Whether its lines end as those of Windows do.
    crlf: bool,
}

/// Holds `folder` against other commands until dropped.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn hold_folder(folder: &Path) -> Result<File, No> {
    let held = File::open(folder).map_err(told(folder))?;
    held.lock().map_err(told(folder))?;
    Ok(held)
}

/// An error of `file`.
pub(crate) fn told(file: &Path) -> impl Fn(std::io::Error) -> No {
    move |error| No::because(format!("{}: {error}", file.display()))
}

impl Edit {
    /// Reads a file; one that is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read, or is not TOML.
    pub(crate) fn of(file: &Path) -> Result<Self, No> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(told(file)(error)),
        };
        let crlf = text.contains('\n') && text.matches('\n').count() == text.matches("\r\n").count();
        let text = if crlf { text.replace("\r\n", "\n") } else { text };
        let document = text.parse().map_err(|error| No::because(format!("{}: {error}", file.display())))?;
        Ok(Self { file: file.to_owned(), document, crlf })
    }

    /// Writes what the file will be beside it.
    ///
    /// # Errors
    /// When it cannot be written, or not be given to the owner of the file: a gateway that runs as somebody else than who revokes a key
    /// could not read the file any more, and would go on with the key.
    pub(crate) fn ready(&self) -> Result<Ready, No> {
        let text = self.document.to_string();
        let text = if self.crlf { text.replace('\n', "\r\n") } else { text };
        whole::ready(&self.file, text.as_bytes(), 0o666).map_err(told(&self.file))
    }

    /// Writes it in the place of the file.
    ///
    /// # Errors
    /// As [`Edit::ready`], or when it cannot take that place.
    pub(crate) fn put(&self) -> Result<(), No> {
        self.ready()?.put().map_err(told(&self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_they_did() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("callers.toml");
        for (before, after) in [("a = 1\r\n# c\r\n", "a = 1\r\nb = 2\r\n# c\r\n"), ("a = 1\n", "a = 1\nb = 2\n"), ("", "b = 2\n")] {
            fs::write(&file, before).unwrap();
            let mut edit = Edit::of(&file).unwrap();
            edit.document["b"] = toml_edit::value(2);
            edit.put().unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
    }
}
