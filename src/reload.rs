//! Policies reload on change and on SIGHUP: all or nothing, and the last good ones stay.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::task::JoinSet;

use crate::clock::Moment;
use crate::config::{self, AtStart, Engines, Loaded, Made};
use crate::disk::Sought;
use crate::event::{Event, Name};
use crate::pipeline::House;
use crate::prove::{Change, Changed};
use crate::say::aside;
use crate::serve::{keep_keys, watched};

/// How often the folder is looked at. Looking costs a few system calls a file, and works on every file system and
/// with every way of swapping files, where notifications do not.
const EVERY: Duration = Duration::from_millis(500);

/// How long the folder must have been still before it is read: a file that is being written is not read half.
const STILL: Duration = Duration::from_millis(100);

/// How often that is waited for.
const MOST_WAITS: usize = 20;

/// What is looked at, beside the files that policies name: text that policies consist of. Logs and models are not; a
/// model is named by its digest, so that a changed one shows in its policy file; [`crate::disk`] looks at the files under those that run, and
/// those that were refused are sought.
const ENDINGS: [&str; 9] = ["toml", "cedar", "json", "pem", "crt", "crl", "key", "token", "onnxsig"];

/// Reloads until the house is gone.
///
/// `hangup` asks for one at once; `seen` is what the folder looked like before it was read for `made`, and `at_start` what stands in force until the end; `_keeping` are the tasks that keep the issuers' keys fresh; `tls` makes new handshakes use what the files hold now.
pub async fn watch(
    house: Arc<House>,
    mut hangup: Signal,
    dir: PathBuf,
    (mut made, at_start): (Made, AtStart),
    mut _keeping: JoinSet<()>,
    mut seen: Look,
    tls: impl Fn(&config::Listeners) -> Result<(), Vec<String>>,
) {
    seen.goes_on_with(made.named());
    let mut sought = Seeking::default();
    loop {
        let forced = tokio::select! {
            () = tokio::time::sleep(EVERY) => false,
            _ = hangup.recv() => true,
        };
        if forced {
            house.recorder.reopen();
        }
        let mut look = Look::at(&dir, made.named());
        if look == seen && !forced && !sought.has_come() {
            continue;
        }
        // Whoever writes there all the time does not keep what is taken back in force.
        for _ in 0..MOST_WAITS {
            tokio::time::sleep(STILL).await;
            let again = Look::at(&dir, made.named());
            if again == look {
                break;
            }
            look = again;
        }
        seen = look;
        let (reading, kept) = (dir.clone(), made.clone());
        let loaded = tokio::task::spawn_blocking(move || config::load(&reading, Moment::now(), &kept, Engines::All)).await;
        made.take_refused().iter().for_each(|refusal| house.tell_refused(refusal));
        let accepted = match loaded {
            Ok(Ok(loaded)) => accept(&house, (&dir, loaded), &at_start, &tls).await,
            Ok(Err(mistakes)) => Err(mistakes),
            // To end here would be to take in no revocation ever again.
            Err(_) => Err(vec!["the gateway failed while it read them".to_owned()]),
        };
        match accepted {
            Ok(accepted) => {
                (made, _keeping) = accepted;
                sought = Seeking::default();
                // Files that are named only now were not looked at before they were read.
                seen.goes_on_with(made.named());
            }
            Err(mistakes) => {
                sought = Seeking::of(made.take_sought());
                refuse(&house, &mistakes);
            }
        }
    }
}

/// Puts everything in force, or nothing.
async fn accept(
    house: &House,
    (dir, loaded): (&Path, Loaded),
    started: &AtStart,
    tls: &impl Fn(&config::Listeners) -> Result<(), Vec<String>>,
) -> Result<(Made, JoinSet<()>), Vec<String>> {
    let Loaded { at_start, listeners, mut snapshot, made, turns, .. } = loaded;
    snapshot.authenticator = snapshot.authenticator.going_on_from(&house.policy.load().authenticator);
    let keeping = keep_keys(&snapshot).await.map_err(|why| vec![why])?;
    listeners.as_ref().map_or(Ok(()), tls)?;
    made.tend();
    let digest = snapshot.digest;
    house.shards.current().tell(&Change { changed: Changed::Accepted, which: None, reason: None, policy: Some(digest) });
    let (gone, come): (Vec<_>, Vec<_>) = turns.iter().partition(|turn| turn.changed == Changed::Retired);
    // What answers next stands in the log before its first answer does; what does not answer any more, after its last way was taken.
    come.into_iter().for_each(|turn| house.tell_turn(turn, digest));
    let told = watched::told(&snapshot, Some(&house.policy.load()), dir);
    house.policy.store(Arc::new(snapshot));
    gone.into_iter().for_each(|turn| house.tell_turn(turn, digest));
    house.stale.store(false, Ordering::Relaxed);
    told.iter().for_each(|line| aside!("portcullis: {line}"));
    let waiting = started.waiting(&at_start);
    let mut event = Event::new(Name::PolicyReloaded, SystemTime::now()).with("policy", digest.to_string());
    if !waiting.is_empty() {
        event = event.with("restart", serde_json::json!(waiting));
    }
    house.events.tell(event);
    if !waiting.is_empty() && waiting != **house.waiting.load() {
        aside!("portcullis: warning: what has changed here in gateway.toml waits for a restart: {}", waiting.join(", "));
    }
    house.waiting.store(Arc::new(waiting));
    Ok((made, keeping))
}

fn refuse(house: &House, mistakes: &[String]) {
    house.stale.store(true, Ordering::Relaxed);
    mistakes.iter().for_each(|mistake| aside!("portcullis: policies refused, the last good ones stay: {mistake}"));
    // The first few are enough to know what to mend; a folder can hold any number.
    let told: Vec<&String> = mistakes.iter().take(8).collect();
    house.events.tell(Event::new(Name::PolicyRefused, SystemTime::now()).with("mistakes", serde_json::json!(told)));
    // A mistake may quote what the file holds, and what the provenance log holds it holds for ever: so it has their number alone.
    let (reason, stays) = (format!("{} mistake(s)", mistakes.len()), house.policy.load().digest);
    house.shards.current().tell(&Change { changed: Changed::Refused, which: None, reason: Some(&reason), policy: Some(stays) });
}

/// What files look like from outside: names, times, lengths and identities.
type Files = Vec<(PathBuf, Option<SystemTime>, u64, u64)>;

/// What the folder and the files that policies name look like.
#[derive(PartialEq, Eq)]
pub struct Look {
    policies: Files,
    named: Files,
}

/// What policies that were refused name, as it was before they were read, and as it was when it was looked at last.
#[derive(Default)]
struct Seeking {
    refused: Sought,
    last: Sought,
}

impl Seeking {
    fn of(refused: Sought) -> Self {
        Self { last: refused.clone(), refused }
    }

    /// Whether it is otherwise than it was, and has been since the last look: a file that is on its way is not read again and again.
    fn has_come(&mut self) -> bool {
        let now = self.refused.again();
        let still = now == self.last;
        self.last = now;
        still && self.last != self.refused
    }
}

impl Look {
    /// Looks at `dir`, and at the files `named`.
    #[must_use]
    pub fn at(dir: &Path, named: &[PathBuf]) -> Self {
        let mut policies = Vec::new();
        Self::walk(dir, 0, &mut policies);
        policies.sort();
        let named = named.iter().map(|path| Self::file(path.clone(), std::fs::metadata(path).ok().as_ref())).collect();
        Self { policies, named }
    }

    /// Looks at these files as well from now on; what was seen of them before stays seen.
    fn goes_on_with(&mut self, named: &[PathBuf]) {
        if !self.named.iter().map(|(path, ..)| path).eq(named) {
            self.named = Self::at(Path::new(""), named).named;
        }
    }

    fn file(path: PathBuf, meta: Option<&Metadata>) -> (PathBuf, Option<SystemTime>, u64, u64) {
        let modified = meta.and_then(|meta| meta.modified().ok());
        (path, modified, meta.map_or(0, Metadata::len), meta.map_or(0, MetadataExt::ino))
    }

    fn walk(dir: &Path, depth: u8, files: &mut Files) {
        // Deeper than any policy folder is laid out, and more files than one has.
        if depth > 4 || files.len() > 10_000 {
            return;
        }
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if meta.is_dir() {
                Self::walk(&path, depth + 1, files);
            } else if path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| ENDINGS.contains(&ending)) {
                files.push(Self::file(path, Some(&meta)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sought_has_come_once_it_is_still_and_not_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.onnx");
        let mut seeking = Seeking::of(Sought::at([file.clone()]));
        assert!(!seeking.has_come() && !Seeking::default().has_come());
        for length in 1..4 {
            std::fs::write(&file, "x".repeat(length)).unwrap();
            assert!(!seeking.has_come(), "{length}");
        }
        assert!(seeking.has_come());
        std::fs::remove_file(&file).unwrap();
        assert!(!seeking.has_come() && !seeking.has_come(), "it is as it was");
    }

    #[test]
    fn a_named_file_is_looked_at_wherever_it_lies_and_whatever_it_is_called() {
        let (policies, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let named = [policies.path().join("issuer.jwks"), elsewhere.path().join("clients")];
        named.iter().for_each(|file| std::fs::write(file, "before").unwrap());
        for file in &named {
            let mut seen = Look::at(policies.path(), &[]);
            seen.goes_on_with(&named);
            assert!(seen == Look::at(policies.path(), &named));
            std::fs::write(file, "revoked").unwrap();
            // Once named, a file is not forgotten as it is now: a change while it was read would be lost.
            seen.goes_on_with(&named);
            assert!(seen != Look::at(policies.path(), &named), "{}", file.display());
        }
    }
}
