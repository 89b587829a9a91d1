//! A file of the policies that a command changes: what it does not change stays as it is, and so do the file's owner, its group, its mode
//! and its place behind a link. Its access lists and other extended attributes do not.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use toml_edit::DocumentMut;

use crate::cli::No;

/// A file that was read.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    file: PathBuf,
    /// What it holds.
    pub(crate) document: DocumentMut,
    /// Whether its lines end as those of Windows do.
    crlf: bool,
}

/// What a file will be, written beside it. Dropped, it is gone.
#[must_use = "dropped, nothing is changed"]
pub(crate) struct Ready {
    beside: PathBuf,
    file: PathBuf,
}

/// The file itself, where `file` is a link.
///
/// # Errors
/// When it is a link to nothing.
pub(super) fn target(file: &Path) -> Result<PathBuf, No> {
    let link = fs::symlink_metadata(file).is_ok_and(|meta| meta.is_symlink());
    if link { fs::canonicalize(file).map_err(told(file)) } else { Ok(file.to_owned()) }
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

/// The folder that a file lies in.
pub(super) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn told(file: &Path) -> impl Fn(std::io::Error) -> No {
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
        Ok(Self { file: target(file)?, document, crlf })
    }

    /// Writes what the file will be beside it, with the owner, the group and the mode that the file has.
    ///
    /// # Errors
    /// When it cannot be written, or not be given to the owner of the file: a gateway that runs as somebody else than who revokes a key
    /// could not read the file any more, and would go on with the key.
    pub(crate) fn ready(&self) -> Result<Ready, No> {
        let beside = self.file.with_extension("toml.new");
        // One that a run left behind.
        let _ = fs::remove_file(&beside);
        let there = match fs::metadata(&self.file) {
            Ok(there) => Some(there),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(told(&self.file)(error)),
        };
        let mode = if there.is_some() { 0o600 } else { 0o666 };
        let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(told(&beside))?;
        let ready = Ready { beside, file: self.file.clone() };
        if let Some(there) = there {
            let made = out.metadata().map_err(told(&ready.beside))?;
            let (uid, gid) = (there.uid(), there.gid());
            if (made.uid(), made.gid()) != (uid, gid) {
                fchown(&out, Some(uid), Some(gid)).map_err(|error| {
                    let file = self.file.display();
                    No::because(format!(
                        "{file}: nothing is changed: it belongs to user {uid} and group {gid}, and a new one cannot be given to them: {error}"
                    ))
                })?;
            }
            out.set_permissions(there.permissions()).map_err(told(&ready.beside))?;
        }
        let text = self.document.to_string();
        let text = if self.crlf { text.replace('\n', "\r\n") } else { text };
        out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(told(&ready.beside))?;
        Ok(ready)
    }
}

impl Ready {
    /// Puts it in place, whole: a gateway that reads the file meanwhile sees the old one or the new one.
    ///
    /// # Errors
    /// When it cannot be.
    pub(crate) fn put(self) -> Result<(), No> {
        fs::rename(&self.beside, &self.file).map_err(told(&self.file))?;
        // The new name must outlive a loss of power, for with the old file what was taken back would be there again.
        let folder = folder_of(&self.file);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(told(folder))
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // Once it was put there is none.
        let _ = fs::remove_file(&self.beside);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::process::Command;

    use super::*;

    const NOBODY: u32 = 65_534;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("callers.toml");
        fs::write(&file, "a = 1\n").unwrap();
        (folder, file)
    }

    fn changed(file: &Path) -> Result<(), No> {
        let mut edit = Edit::of(file)?;
        edit.document["b"] = toml_edit::value(2);
        edit.ready()?.put()
    }

    #[test]
    fn a_file_keeps_its_owner_its_group_and_its_mode() {
        let (_folder, file) = file();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        if is_root() {
            chown(&file, Some(NOBODY), Some(NOBODY - 1)).unwrap();
        } else {
            eprintln!("not root: the owner is ours before and after");
        }
        let before = fs::metadata(&file).unwrap();
        changed(&file).unwrap();
        let after = fs::metadata(&file).unwrap();
        let of = |meta: &fs::Metadata| (meta.uid(), meta.gid(), meta.mode());
        assert_eq!(of(&before), of(&after));
        assert_ne!(before.ino(), after.ino(), "it is replaced, and not written over");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 1\nb = 2\n");
    }

    #[test]
    fn a_link_stays_one_and_what_it_names_is_changed() {
        let (folder, file) = file();
        let link = folder.path().join("link.toml");
        symlink("callers.toml", &link).unwrap();
        changed(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 1\nb = 2\n");
        fs::remove_file(&file).unwrap();
        assert!(changed(&link).is_err(), "a link to nothing is not replaced either");
    }

    #[test]
    fn what_is_not_put_in_place_leaves_nothing_behind() {
        let (folder, file) = file();
        drop(Edit::of(&file).unwrap().ready().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Where the rename fails: a folder has come to lie there.
        let ready = Edit::of(&file).unwrap().ready().unwrap();
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(ready.put().is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn lines_end_as_they_did() {
        let (_folder, file) = file();
        for (before, after) in [("a = 1\r\n# c\r\n", "a = 1\r\nb = 2\r\n# c\r\n"), ("a = 1\n", "a = 1\nb = 2\n"), ("", "b = 2\n")] {
            fs::write(&file, before).unwrap();
            changed(&file).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
    }

    /// Root alone can give files to others, and be refused to in a user namespace of its own, where `nobody` is not mapped.
    #[test]
    fn who_cannot_give_a_file_to_its_owner_changes_nothing() {
        if !is_root() {
            eprintln!("not root: there is no file of somebody else to be had");
            return;
        }
        let (folder, file) = file();
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let test = std::env::current_exe().unwrap();
        // As another user, who may write to the folder and read the file.
        let output = Command::new("setpriv")
            .args(["--reuid=1000", "--regid=1000", "--clear-groups"])
            .arg(test)
            .args(["--exact", "keys::edit::tests::changes_what_another_test_says", "--ignored"])
            .env(CHANGES, &file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!((fs::read_to_string(&file).unwrap(), fs::metadata(&file).unwrap().uid()), ("a = 1\n".into(), NOBODY));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    const CHANGES: &str = "PORTCULLIS_TEST_CHANGES";

    #[test]
    #[ignore = "another test starts it as another user"]
    fn changes_what_another_test_says() {
        let file = std::env::var_os(CHANGES).unwrap();
        let No(why) = changed(Path::new(&file)).unwrap_err();
        assert!(why[0].contains("nothing is changed: it belongs to user 65534"), "{why:?}");
    }
}
