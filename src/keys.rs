//! `portcullis key`: API keys in `callers.toml`. The secret is shown once, the file keeps its SHA-256 digest.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use crate::accept::config::AUTH_FAILURES;
use crate::authenticate::{self, Authenticator, Failures, api_key};
use crate::cli::No;
use crate::clock::Moment;
use crate::mistake::Mistake;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a key and write its digest to `callers.toml`.
    #[command(after_help = "Example:\n  portcullis key new batch-job --tenant acme --role app --tier gold --policies policies")]
    New {
        /// The key's id: the caller's name is `api_key:ID`.
        id: String,
        /// The tenant.
        #[arg(long, default_value = "")]
        tenant: String,
        /// A role; may be given more than once.
        #[arg(long = "role")]
        roles: Vec<String>,
        /// The tier.
        #[arg(long, default_value = "")]
        tier: String,
        /// When it ends: an RFC 3339 date and time.
        #[arg(long, value_parser = datetime)]
        expires: Option<toml_edit::Datetime>,
        /// The policy folder.
        #[arg(long, default_value = "policies", value_name = "DIR")]
        policies: PathBuf,
        /// One line of JSON: {"id","secret","sha256"}.
        #[arg(long)]
        json: bool,
    },
    /// List the keys: never a secret, which nobody has.
    #[command(after_help = "Example:\n  portcullis key list --policies policies")]
    List {
        /// The policy folder.
        #[arg(long, default_value = "policies", value_name = "DIR")]
        policies: PathBuf,
        /// One line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a key out of `callers.toml`; a running gateway notices within a second.
    #[command(after_help = "Example:\n  portcullis key revoke batch-job --policies policies")]
    Revoke {
        /// The key's id.
        id: String,
        /// The policy folder.
        #[arg(long, default_value = "policies", value_name = "DIR")]
        policies: PathBuf,
    },
}

fn datetime(text: &str) -> Result<toml_edit::Datetime, String> {
    let parsed: toml_edit::Datetime = text.parse().map_err(|_| "write it like 2027-01-01T00:00:00Z".to_owned())?;
    if parsed.date.is_some() && parsed.time.is_some() && parsed.offset.is_some() {
        Ok(parsed)
    } else {
        Err("it needs a date, a time and an offset".to_owned())
    }
}

/// Does it.
///
/// # Errors
/// The file cannot be read or written, an id is taken or unknown.
pub fn run(verb: Verb) -> Result<(), No> {
    match verb {
        Verb::New { id, tenant, roles, tier, expires, policies, json } => {
            let key = new(&policies.join("callers.toml"), &id, &tenant, &roles, &tier, expires)?;
            if json {
                println!("{}", serde_json::json!({ "id": id, "secret": key.secret, "sha256": key.sha256 }));
            } else {
                println!("{}\n", key.secret);
                println!("This is the only time it is shown. Its digest stands in {}.", policies.join("callers.toml").display());
            }
            Ok(())
        }
        Verb::List { policies, json } => list(&policies.join("callers.toml"), json),
        Verb::Revoke { id, policies } => revoke(&policies.join("callers.toml"), &id),
    }
}

/// A new key, before its secret is forgotten.
pub struct NewKey {
    /// What the caller sends.
    pub secret: String,
    /// What the file keeps.
    pub sha256: String,
}

/// Adds a key to `file`, which is made if it is not there.
///
/// # Errors
/// The id is not usable or taken, the file is not TOML, or cannot be written.
pub fn new(file: &Path, id: &str, tenant: &str, roles: &[String], tier: &str, expires: Option<toml_edit::Datetime>) -> Result<NewKey, No> {
    if id.is_empty() || id.len() > 128 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(No::because("an id is 1 to 128 letters, digits, `-`, `_` or `.`"));
    }
    let _held = hold(file)?;
    let mut document = read(file)?;
    if keys(&document).any(|key| key.get("id").and_then(Item::as_str) == Some(id)) {
        return Err(No::because(format!("a key called `{id}` stands in {} already", file.display())));
    }
    let (secret, sha256) = api_key::generate();
    let (secret, sha256) = (String::from_utf8_lossy(secret.expose()).into_owned(), sha256.to_string());
    let mut key = Table::new();
    key["id"] = value(id);
    key["sha256"] = value(&sha256);
    if !tenant.is_empty() {
        key["tenant"] = value(tenant);
    }
    key["roles"] = value(roles.iter().collect::<Array>());
    if !tier.is_empty() {
        key["tier"] = value(tier);
    }
    if let Some(expires) = expires {
        key["expires"] = value(expires);
    }
    let tables = document.entry("api_key").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    tables.as_array_of_tables_mut().ok_or_else(|| No::because("`api_key` is not written as [[api_key]]"))?.push(key);
    holds(file, &document)?;
    write(file, &document)?;
    Ok(NewKey { secret, sha256 })
}

/// Whether a gateway would take these keys. It would refuse the whole folder for one bad name, and then go on with the
/// keys that it has, revoked ones among them.
fn holds(file: &Path, document: &DocumentMut) -> Result<(), No> {
    let told = |mistakes: Vec<Mistake>| No(mistakes.iter().map(|mistake| format!("{}: {}", file.display(), mistake.what)).collect());
    let mut keys = DocumentMut::new();
    keys["api_key"] = document["api_key"].clone();
    let keys: authenticate::Config = toml::from_str(&keys.to_string()).map_err(|error| told(vec![Mistake::of_toml(&error)]))?;
    let failures = Arc::new(Failures::new(AUTH_FAILURES.rate, AUTH_FAILURES.burst));
    Authenticator::compile(&keys, Path::new("."), failures, Moment::now()).map(drop).map_err(told)
}

/// Holds the folder of `file` against other commands until dropped: without it one that read the file before a key was
/// revoked would write the key back.
fn hold(file: &Path) -> Result<File, No> {
    hold_folder(file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Holds `folder` against other commands until dropped.
pub(crate) fn hold_folder(folder: &Path) -> Result<File, No> {
    let told = |error: std::io::Error| No::because(format!("{}: {error}", folder.display()));
    let held = File::open(folder).map_err(told)?;
    held.lock().map_err(told)?;
    Ok(held)
}

fn list(file: &Path, json: bool) -> Result<(), No> {
    let document = read(file)?;
    for key in keys(&document) {
        let text = |name: &str| key.get(name).and_then(Item::as_str).unwrap_or_default().to_owned();
        let expires = key.get("expires").and_then(Item::as_datetime).map(ToString::to_string).unwrap_or_default();
        let roles: Vec<&str> = key.get("roles").and_then(Item::as_array).into_iter().flatten().filter_map(|role| role.as_str()).collect();
        if json {
            let (id, tenant, tier, sha256) = (text("id"), text("tenant"), text("tier"), text("sha256"));
            println!(
                "{}",
                serde_json::json!({ "id": id, "tenant": tenant, "roles": roles, "tier": tier, "expires": expires, "sha256": sha256 })
            );
        } else {
            println!("{:<24} {:<16} {:<24} {:<8} {expires}", text("id"), text("tenant"), roles.join(","), text("tier"));
        }
    }
    Ok(())
}

fn revoke(file: &Path, id: &str) -> Result<(), No> {
    let held = hold(file)?;
    let mut document = read(file)?;
    let tables = document.get_mut("api_key").and_then(Item::as_array_of_tables_mut);
    let before = tables.as_ref().map_or(0, |tables| tables.len());
    if let Some(tables) = tables {
        tables.retain(|key| key.get("id").and_then(Item::as_str) != Some(id));
        if tables.len() < before {
            write(file, &document)?;
            // The new name must outlive a loss of power, for with the old file the key would be back.
            return held.sync_all().map_err(|error| No::because(format!("{}: {error}", file.display())));
        }
    }
    Err(No::because(format!("no key called `{id}` stands in {}", file.display())))
}

fn keys(document: &DocumentMut) -> impl Iterator<Item = &Table> {
    document.get("api_key").and_then(Item::as_array_of_tables).into_iter().flatten()
}

pub(crate) fn read(file: &Path) -> Result<DocumentMut, No> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(No::because(format!("{}: {error}", file.display()))),
    };
    text.parse().map_err(|error| No::because(format!("{}: {error}", file.display())))
}

/// Whole or not at all: a gateway that reads the file meanwhile sees the old one or the new one.
pub(crate) fn write(file: &Path, document: &DocumentMut) -> Result<(), No> {
    let told = |error: std::io::Error| No::because(format!("{}: {error}", file.display()));
    let beside = file.with_extension("toml.new");
    let mut out = File::create(&beside).map_err(told)?;
    out.write_all(document.to_string().as_bytes()).and_then(|()| out.sync_all()).map_err(told)?;
    if let Ok(meta) = std::fs::metadata(file) {
        std::fs::set_permissions(&beside, meta.permissions()).map_err(told)?;
    }
    std::fs::rename(&beside, file).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_key_is_added_listed_once_and_taken_back_and_comments_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("callers.toml");
        std::fs::write(&file, "# ours\n[[issuer]]\nissuer = \"i\" # theirs\n").unwrap();
        let key = new(&file, "a", "acme", &["app".to_owned()], "gold", None).unwrap();
        assert_eq!(Digest::of(key.secret.as_bytes()).to_string(), key.sha256);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("# ours") && text.contains("# theirs") && text.contains(&key.sha256) && !text.contains(&key.secret));
        assert!(new(&file, "a", "", &[], "", None).is_err());
        assert!(new(&file, "no spaces", "", &[], "", None).is_err());
        revoke(&file, "a").unwrap();
        assert!(revoke(&file, "a").is_err());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&key.sha256) && text.contains("# theirs"));
    }

    #[test]
    fn what_a_gateway_would_refuse_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("callers.toml");
        assert!(new(&file, "ops@acme", "", &[], "", None).is_err());
        assert!(new(&file, "a", "ac\nme", &[], "", None).is_err());
        assert!(new(&file, "a", "", &[String::new()], "", None).is_err());
        assert!(new(&file, "a", "", &[], &"x".repeat(257), None).is_err());
        assert!(new(&file, "a", "", &[], "", Some("1969-01-01T00:00:00Z".parse().unwrap())).is_err());
        assert!(!file.exists());
    }

    #[test]
    fn a_key_that_was_revoked_does_not_come_back_with_one_that_is_made_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("callers.toml");
        for round in 0..10 {
            let id = format!("leaked-{round}");
            new(&file, &id, "", &[], "", None).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    (0..4).for_each(|n| drop(new(&file, &format!("new-{round}-{n}"), "", &[], "", None).map_err(|_| panic!("{n}"))))
                });
                scope.spawn(|| revoke(&file, &id).map_err(|_| panic!("{round}")).unwrap());
            });
            assert!(revoke(&file, &id).is_err(), "{round}");
        }
        assert_eq!(keys(&read(&file).unwrap()).count(), 40);
    }
}
