//! What callers are called in a recording: HMAC-SHA-256 of their names under a key of the day.
//!
//! The key lies beside the recording, so that a caller keeps its pseudonym over restarts, and is written over by the next day's: from then
//! on nobody can tell whose a pseudonym was, nor join two days of a caller. Where it is not, whoever has both files can try names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::file::{Error, beside, open_secret};
use crate::clock::rfc3339;
use crate::digest::Digest;
use crate::secret::Secret;

/// Bytes of the key.
const KEY: usize = 32;

/// Hexadecimal digits of a pseudonym.
const DIGITS: usize = 32;

/// A file of a key is shorter.
const MOST_BYTES: u64 = 1_024;

/// The key of a day.
pub(super) struct Pseudonyms {
    day: u64,
    secret: Secret,
    key: hmac::Key,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    day: u64,
    key: String,
}

impl Pseudonyms {
    /// Those of `day` in the recording at `path`; new ones where the file beside it holds none of that day.
    pub(super) fn of(path: &Path, day: u64) -> Result<Self, Error> {
        match open_secret(&beside(path), OpenOptions::new().read(true)) {
            Ok(file) => {
                if let Some(known) = Self::read(&file).filter(|known| known.is_of(day)) {
                    return Ok(known);
                }
            }
            Err(Error::Unopened(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Beside(Box::new(error))),
        }
        let new = Self::new(day);
        new.keep(path)?;
        Ok(new)
    }

    /// Others, of `day`.
    pub(super) fn new(day: u64) -> Self {
        Self::under(day, Secret::random(KEY))
    }

    fn under(day: u64, secret: Secret) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        Self { day, secret, key }
    }

    fn read(file: &File) -> Option<Self> {
        let mut text = String::new();
        file.take(MOST_BYTES).read_to_string(&mut text).ok()?;
        let Kept { day, key } = serde_json::from_str(&text).ok()?;
        let key = STANDARD.decode(key).ok().filter(|key| key.len() == KEY)?;
        Some(Self::under(day, Secret::new(key)))
    }

    /// Puts the key where the next start finds it, over that of the day before.
    pub(super) fn keep(&self, path: &Path) -> Result<(), Error> {
        let place = beside(path);
        let mut new = place.clone().into_os_string();
        new.push(".new");
        // One that a run left behind may be anybody's to read.
        let _ = fs::remove_file(&new);
        let mut file = open_secret(Path::new(&new), OpenOptions::new().write(true).create_new(true))?;
        let kept = Kept { day: self.day, key: STANDARD.encode(self.secret.expose()) };
        let written = serde_json::to_writer(&mut file, &kept).map_err(io::Error::from).and_then(|()| file.flush());
        written.and_then(|()| fs::rename(&new, place)).inspect_err(|_| drop(fs::remove_file(&new)))?;
        Ok(())
    }

    /// Whether they hold on `day`: a request may come to be written a little after its day, and a clock that was days ahead was wrong.
    pub(super) fn is_of(&self, day: u64) -> bool {
        self.day == day || self.day == day + 1
    }

    /// What all names of the day begin with.
    pub(super) fn day(&self) -> String {
        label(self.day)
    }

    /// What a caller is called.
    pub(super) fn name(&self, caller: &str) -> String {
        let tag = hmac::sign(&self.key, caller.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(tag.as_ref());
        self.day() + &Digest(bytes).to_string()[..DIGITS]
    }
}

/// The date of a day since 1970-01-01, and a full stop.
fn label(day: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(day.saturating_mul(86_400))).unwrap_or(UNIX_EPOCH);
    rfc3339(time).split('T').next().unwrap_or_default().to_owned() + "."
}
