//! `portcullis model rollback`: gives the traffic of a model back to the version that served before, in the files under `models/`.
//!
//! The version that is taken back is the latest, in the order of versions, that has a share; the one that gets all is the latest
//! before it that has a share too, else the latest before it at all. It never goes forward, so that whoever calls it twice does not
//! come back to where he began. Where versions are not ordered, such as hashes, `--to` names the one.
//!
//! The version that gets all is written first and the others after it, each file whole: whenever a gateway looks, some version has a
//! share, and every file says its own.

use std::path::{Path, PathBuf};

use clap::Args;
use toml_edit::{Item, Table, value};

use crate::authorize::traffic::{DEFAULT_SHARE, by_version};
use crate::cli::No;
use crate::keys::{Edit, hold_folder, told};
use crate::say::say;
use crate::whole::Ready;

/// The example of the command's help.
pub const EXAMPLE: &str = "Example:\n  portcullis model rollback digits --policies policies";

/// The share of the version that gets all; as the others get none, any other would do.
const ALL: u32 = DEFAULT_SHARE;

/// `portcullis model rollback`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The model's name.
    name: String,
    /// The version that gets all; the one before the latest that has a share without it.
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// The policy folder.
    #[arg(long, default_value = "policies", value_name = "DIR")]
    policies: PathBuf,
    /// One line of JSON: {"model","to","from"}, with the versions that have no share any more.
    #[arg(long)]
    json: bool,
}

/// A file that can answer for the name.
struct Version {
    file: PathBuf,
    edit: Edit,
    version: String,
    share: u32,
}

/// Does it.
///
/// # Errors
/// There is no such model or version, nothing before the present, or a file cannot be read or written.
pub fn run(arguments: &Arguments) -> Result<(), No> {
    let folder = arguments.policies.join("models");
    let _held = hold_folder(&folder)?;
    let versions = versions(&folder, &arguments.name)?;
    let shares: Vec<(&str, u32)> = versions.iter().map(|version| (&*version.version, version.share)).collect();
    let to = before(&shares, arguments.to.as_deref()).map_err(|why| No::because(format!("`{}`: {why}", arguments.name)))?;
    let mut from: Vec<&str> = Vec::new();
    let (chosen, others): (Vec<&Version>, Vec<&Version>) = versions.iter().partition(|version| version.version == to);
    // All of it is ready before any of it is in place.
    let mut ready = Vec::new();
    for version in chosen {
        ready.push(with_share(version, ALL)?);
    }
    for version in others.into_iter().filter(|version| version.share > 0) {
        ready.push(with_share(version, 0)?);
        from.push(&version.version);
    }
    ready.into_iter().try_for_each(Ready::put).map_err(told(&folder))?;
    if arguments.json {
        say!("{}", serde_json::json!({ "model": arguments.name, "to": to, "from": from }))?;
    } else {
        say!("{}: version \"{to}\" gets all of the traffic", arguments.name)?;
        from.iter().try_for_each(|version| say!("{}: version \"{version}\" gets none", arguments.name))?;
    }
    Ok(())
}

/// The version that gets all, of those that can answer with their shares.
fn before(versions: &[(&str, u32)], wanted: Option<&str>) -> Result<String, String> {
    if versions.is_empty() {
        return Err("no file under models/ has a version of this name that answers".to_owned());
    }
    if let Some(wanted) = wanted {
        let known = versions.iter().any(|(version, _)| *version == wanted);
        return if known { Ok(wanted.to_owned()) } else { Err(format!("there is no version \"{wanted}\" that answers")) };
    }
    let latest =
        |versions: &mut dyn Iterator<Item = (&str, u32)>| versions.map(|(version, _)| version.to_owned()).max_by(|a, b| by_version(a, b));
    let serving = || versions.iter().copied().filter(|(_, share)| *share > 0);
    let present = latest(&mut serving()).ok_or("no version has a share of the traffic: say which with --to")?;
    let earlier = |(version, _): &(&str, u32)| by_version(version, &present).is_lt();
    let found = latest(&mut serving().filter(earlier)).or_else(|| latest(&mut versions.iter().copied().filter(earlier)));
    found.ok_or_else(|| format!("there is no version before \"{present}\"; --to names another"))
}

/// The files of the name that answer, as they are written.
fn versions(folder: &Path, name: &str) -> Result<Vec<Version>, No> {
    let told = |error: std::io::Error| No::because(format!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(told)? {
        let file = entry.map_err(told)?.path();
        let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || file.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let edit = Edit::of(&file)?;
        let document = &edit.document;
        if document.get("name").and_then(Item::as_str) != Some(name) {
            continue;
        }
        let said = |key: &str| document.get("traffic").and_then(Item::as_table_like).and_then(|traffic| traffic.get(key));
        if said("shadow").and_then(Item::as_bool) == Some(true) {
            continue;
        }
        let share = said("share").map_or(Some(i64::from(DEFAULT_SHARE)), Item::as_integer).and_then(|share| u32::try_from(share).ok());
        let share = share.ok_or_else(|| No::because(format!("{}: `traffic.share` is no weight", file.display())))?;
        let version = document.get("version").and_then(Item::as_str).unwrap_or_default().to_owned();
        found.push(Version { file, edit, version, share });
    }
    found.sort_by(|a, b| by_version(&a.version, &b.version));
    Ok(found)
}

/// The file with another share, and nothing else of it changed.
fn with_share(version: &Version, share: u32) -> Result<Ready, No> {
    let mut edit = version.edit.clone();
    let traffic = edit.document.entry("traffic").or_insert_with(|| Item::Table(Table::new())).as_table_like_mut();
    let traffic = traffic.ok_or_else(|| No::because(format!("{}: `traffic` is not written as [traffic]", version.file.display())))?;
    match traffic.get_mut("share") {
        // What stands beside the number stays.
        Some(there) => match there.as_value_mut() {
            Some(number) => {
                let decor = number.decor().clone();
                *number = i64::from(share).into();
                *number.decor_mut() = decor;
            }
            None => *there = value(i64::from(share)),
        },
        None => _ = traffic.insert("share", value(i64::from(share))),
    }
    edit.ready()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("models")).unwrap();
        files.iter().for_each(|(file, text)| fs::write(folder.path().join("models").join(file), text).unwrap());
        folder
    }

    fn rolled_back(folder: &tempfile::TempDir, to: Option<&str>) -> Result<(), String> {
        let arguments = Arguments { name: "m".to_owned(), to: to.map(str::to_owned), policies: folder.path().to_owned(), json: false };
        run(&arguments).map_err(|No(lines)| lines.concat())
    }

    fn shares(folder: &tempfile::TempDir) -> Vec<(String, u32)> {
        let versions = versions(&folder.path().join("models"), "m").unwrap_or_default();
        versions.into_iter().map(|version| (version.version, version.share)).collect()
    }

    #[test]
    fn the_version_before_the_latest_that_serves_gets_all() {
        let cases: [(&[(&str, u32)], &str); 6] = [
            (&[("1", 0), ("2", 100)], "1"),
            (&[("1", 90), ("2", 10)], "1"),
            (&[("1", 90), ("2", 0), ("3", 10)], "1"),
            (&[("1", 0), ("2", 0), ("3", 10)], "2"),
            (&[("9", 1), ("10", 1)], "9"),
            (&[("1", 5), ("2", 0)], ""),
        ];
        for (shares, expected) in cases {
            assert_eq!(before(shares, None).unwrap_or_default(), expected, "{shares:?}");
        }
        assert_eq!(before(&[("1", 5), ("2", 0)], Some("2")), Ok("2".to_owned()));
        assert!(before(&[("1", 5)], Some("3")).is_err() && before(&[], None).is_err() && before(&[("1", 0), ("2", 0)], None).is_err());
    }

    #[test]
    fn shares_are_edited_and_comments_stay_and_twice_is_not_forward_again() {
        let folder = folder(&[
            ("m-1.toml", "# the old one\nname = \"m\"\nversion = \"1\"\n[traffic]\nshare = 0 # none since May\n"),
            ("m-2.toml", "name = \"m\" # new\nversion = \"2\"\n"),
            ("m-3.toml", "name = \"m\"\nversion = \"3\"\ntraffic = { shadow = true }\n"),
            ("other.toml", "name = \"other\"\nversion = \"1\"\n"),
            (".m-4.toml", "name = \"m\"\nversion = \"4\"\n"),
        ]);
        rolled_back(&folder, None).unwrap();
        assert_eq!(shares(&folder), [("1".to_owned(), 100), ("2".to_owned(), 0)]);
        let text = fs::read_to_string(folder.path().join("models/m-1.toml")).unwrap();
        assert_eq!(text, "# the old one\nname = \"m\"\nversion = \"1\"\n[traffic]\nshare = 100 # none since May\n");
        assert!(fs::read_to_string(folder.path().join("models/m-2.toml")).unwrap().starts_with("name = \"m\" # new\n"));
        assert_eq!(fs::read_to_string(folder.path().join("models/other.toml")).unwrap(), "name = \"other\"\nversion = \"1\"\n");
        assert!(rolled_back(&folder, None).unwrap_err().contains("no version before \"1\""));
        rolled_back(&folder, Some("2")).unwrap();
        assert_eq!(shares(&folder), [("1".to_owned(), 0), ("2".to_owned(), 100)]);
        assert!(rolled_back(&folder, Some("3")).unwrap_err().contains("\"3\""), "a shadow cannot be given traffic so");
    }

    #[test]
    fn a_share_that_is_none_is_told() {
        let folder = folder(&[("m.toml", "name = \"m\"\n[traffic]\nshare = -1\n")]);
        assert!(rolled_back(&folder, None).unwrap_err().contains("no weight"));
    }
}
