//! Writes a file in the place of another, whole or not at all: whoever reads it meanwhile reads the old one or the new one.
//!
//! The new one has the owner, the group and the mode of the old one, and where that is a link it takes the place of what the link names. Access
//! lists and other extended attributes are not kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// What a file will be, written beside it. Dropped, it is gone.
#[must_use = "dropped, nothing is changed"]
#[derive(Debug)]
pub struct Ready {
    beside: PathBuf,
    file: PathBuf,
}

/// The file itself, where `file` is a link.
///
/// # Errors
/// When it is a link to nothing, or one that leads whoever runs the command where he who made it could not write: it is neither his who
/// runs it, nor his who has the file, nor root's.
pub fn target(file: &Path) -> io::Result<PathBuf> {
    let Some(link) = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_symlink) else { return Ok(file.to_owned()) };
    let target = fs::canonicalize(file)?;
    let trusted = [0, rustix::process::geteuid().as_raw(), fs::metadata(&target)?.uid()];
    if trusted.contains(&link.uid()) {
        return Ok(target);
    }
    let why = format!("it is a link of user {} to a file of another, {}: nothing is changed", link.uid(), target.display());
    Err(io::Error::new(ErrorKind::PermissionDenied, why))
}

/// The folder that a file lies in.
#[must_use]
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `bytes` beside `file`, as `file` will be; with `mode`, as the umask leaves it, where there is no such file yet.
///
/// # Errors
/// When it cannot be written, or not be given to the owner of the file: who reads the file now could not read it any more.
pub fn ready(file: &Path, bytes: &[u8], mode: u32) -> io::Result<Ready> {
    let file = target(file)?;
    let mut name = file.file_name().ok_or(ErrorKind::InvalidFilename)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = file.with_file_name(name);
    // One that a process of this number left behind.
    let _ = fs::remove_file(&beside);
    let there = match fs::metadata(&file) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // Nobody else's to read before it is known whose it is.
    let mode = if there.is_some() { 0o600 } else { mode };
    let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let ready = Ready { beside, file };
    if let Some(there) = there {
        let made = out.metadata()?;
        let (uid, gid) = (there.uid(), there.gid());
        if (made.uid(), made.gid()) != (uid, gid) {
            fchown(&out, Some(uid), Some(gid)).map_err(|error| {
                let why = "nothing is changed: it belongs to user";
                io::Error::new(error.kind(), format!("{why} {uid} and group {gid}, and a new one cannot be given to them: {error}"))
            })?;
        }
        out.set_permissions(there.permissions())?;
    }
    out.write_all(bytes).and_then(|()| out.sync_all())?;
    Ok(ready)
}

impl Ready {
    /// Puts it in place.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn put(self) -> io::Result<()> {
        fs::rename(&self.beside, &self.file)?;
        // The new name must outlive a loss of power, for with the old file what was taken back would be there again.
        File::open(folder_of(&self.file))?.sync_all()
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
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    use std::os::unix::process::CommandExt;
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

    fn changed(file: &Path) -> io::Result<()> {
        ready(file, b"a = 2\n", 0o644)?.put()
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
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 2\n");
    }

    #[test]
    fn a_link_stays_one_and_what_it_names_is_changed() {
        let (folder, file) = file();
        let link = folder.path().join("link.toml");
        symlink("callers.toml", &link).unwrap();
        changed(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 2\n");
        fs::remove_file(&file).unwrap();
        assert!(changed(&link).is_err(), "a link to nothing is not replaced either");
    }

    /// Root alone can be led so.
    #[test]
    fn a_link_of_somebody_elses_leads_to_his_own_files_alone() {
        if !is_root() {
            eprintln!("not root: there is no link of somebody else to be had");
            return;
        }
        let (folder, file) = file();
        let link = folder.path().join("link.toml");
        symlink("callers.toml", &link).unwrap();
        lchown(&link, Some(NOBODY), Some(NOBODY)).unwrap();
        let refused = changed(&link).unwrap_err().to_string();
        assert!(refused.contains("a link of user 65534 to a file of another"), "{refused}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 1\n");
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        changed(&link).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 2\n");
    }

    #[test]
    fn what_is_not_put_in_place_leaves_nothing_behind() {
        let (folder, file) = file();
        drop(ready(&file, b"x", 0o644).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Where the rename fails: a folder has come to lie there.
        let ready = ready(&file, b"x", 0o644).unwrap();
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(ready.put().is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Root alone has a file of somebody else to try it with.
    #[test]
    fn who_cannot_give_a_file_to_its_owner_changes_nothing() {
        if !is_root() {
            eprintln!("not root: there is no file of somebody else to be had");
            return;
        }
        let (folder, file) = file();
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        // As another user, who may write to the folder and read the file.
        let output = Command::new("/proc/self/exe")
            .args(["--exact", "whole::tests::changes_what_another_test_says", "--ignored"])
            .env(CHANGES, &file)
            .uid(1_000)
            .gid(1_000)
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
        let why = changed(Path::new(&file)).unwrap_err().to_string();
        assert!(why.contains("nothing is changed: it belongs to user 65534"), "{why}");
    }
}
