//! `portcullis key`: API keys in `callers.toml`. The secret is shown once, the file keeps its SHA-256 digest.

mod edit;
mod written;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Subcommand;
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::accept::config::AUTH_FAILURES;
use crate::authenticate::{self, Authenticator, Failures, api_key};
use crate::cli::No;
use crate::clock::{Moment, from_rfc3339};
use crate::mistake::Mistake;
use crate::say::{self, aside, say};
use crate::whole::{folder_of, target};
pub(crate) use edit::{Edit, hold_folder, told};
use written::{is, keys, put_in, take_out};

/// Examples of the commands.
pub const EXAMPLE: &str =
    "Examples:\n  portcullis key new batch-job --tenant acme --role app --policies policies\n  portcullis key list --policies policies";

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a key and write its digest to `callers.toml`.
    #[command(after_help = "Example:\n  portcullis key new batch-job --tenant acme --role app --tier gold --policies policies")]
    New {
        /// The key's id: the caller's name is `api_key:ID`.
        #[arg(value_parser = usable)]
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

fn usable(id: &str) -> Result<String, &'static str> {
    let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if plain && (1..=128).contains(&id.len()) { Ok(id.to_owned()) } else { Err("an id is 1 to 128 letters, digits, `-`, `_` or `.`") }
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
            let file = callers(&policies)?;
            let over = expires.and_then(|expires| from_rfc3339(&expires.to_string())).is_some_and(|expires| expires <= SystemTime::now());
            let key = new(&file, &id, &tenant, &roles, &tier, expires)?;
            if over {
                aside!("portcullis: warning: the key has ended before it began: --expires is in the past");
            }
            tell_secret(&file, &id, &key, json).map_err(|unsaid| {
                // A secret that was not told whole is one that nobody has.
                let what = match revoke(&file, &id) {
                    Ok(()) => "the key was taken back".to_owned(),
                    Err(No(why)) => format!("revoke the key, of which nobody has the secret ({})", why.join("; ")),
                };
                No::because(format!("{unsaid}; {what}"))
            })
        }
        Verb::List { policies, json } => list(&callers(&policies)?, json),
        Verb::Revoke { id, policies } => revoke(&callers(&policies)?, &id),
    }
}

/// The file of the keys in a policy folder.
fn callers(policies: &Path) -> Result<PathBuf, No> {
    let file = policies.join("callers.toml");
    if file.exists() || policies.join("gateway.toml").exists() {
        return Ok(file);
    }
    Err(No::because(format!("{}: no policy folder: neither gateway.toml nor callers.toml lies there", policies.display())))
}

fn tell_secret(file: &Path, id: &str, key: &NewKey, json: bool) -> Result<(), say::Unsaid> {
    if json {
        let told = serde_json::json!({ "id": id, "secret": key.secret, "sha256": key.sha256 });
        return say::line_or_none(format_args!("{told}"));
    }
    say::line_or_none(format_args!("{}\n", key.secret))?;
    say!("This is the only time it is shown. Its digest stands in {}.", file.display())
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
    usable(id).map_err(No::because)?;
    let file = &target(file).map_err(told(file))?;
    let _held = hold_folder(folder_of(file))?;
    let mut edit = Edit::of(file)?;
    if keys(&edit.document).into_iter().any(|key| is(key, id)) {
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
    put_in(&mut edit.document, key)?;
    holds(file, &edit.document)?;
    edit.put()?;
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

fn list(file: &Path, json: bool) -> Result<(), No> {
    let edit = Edit::of(file)?;
    for key in keys(&edit.document) {
        let text = |name: &str| key.get(name).and_then(Item::as_str).unwrap_or_default().to_owned();
        let expires = key.get("expires").and_then(Item::as_datetime).map(ToString::to_string).unwrap_or_default();
        let roles: Vec<&str> = key.get("roles").and_then(Item::as_array).into_iter().flatten().filter_map(|role| role.as_str()).collect();
        if json {
            let (id, tenant, tier, sha256) = (text("id"), text("tenant"), text("tier"), text("sha256"));
            say!(
                "{}",
                serde_json::json!({ "id": id, "tenant": tenant, "roles": roles, "tier": tier, "expires": expires, "sha256": sha256 })
            )?;
        } else {
            say!("{:<24} {:<16} {:<24} {:<8} {expires}", text("id"), text("tenant"), roles.join(","), text("tier"))?;
        }
    }
    Ok(())
}

fn revoke(file: &Path, id: &str) -> Result<(), No> {
    let file = &target(file).map_err(told(file))?;
    // Without it a command that read the file before the key was revoked would write the key back.
    let _held = hold_folder(folder_of(file))?;
    let mut edit = Edit::of(file)?;
    if !take_out(&mut edit.document, id) {
        return Err(No::because(format!("no key called `{id}` stands in {}", file.display())));
    }
    edit.put()
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
    fn keys_in_an_array_are_listed_made_and_revoked_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("callers.toml");
        let digest = "9d0e2c8b0f6a4d3f7c15b8e6a2d94c03f1e87b5a6c2d40e9831f7a5b6c0d2e14";
        std::fs::write(&file, format!("api_key = [{{ id = \"x\", sha256 = \"{digest}\" }}]\n")).unwrap();
        assert!(new(&file, "x", "", &[], "", None).is_err_and(|No(why)| why[0].contains("already")));
        new(&file, "y", "", &[], "", None).unwrap();
        assert_eq!(keys(&Edit::of(&file).unwrap().document).len(), 2);
        revoke(&file, "x").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(digest) && text.contains("\"y\""), "{text}");
    }

    #[test]
    fn a_folder_that_holds_no_policies_has_no_keys_and_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        let policies = || dir.path().to_owned();
        for verb in [
            Verb::List { policies: policies(), json: false },
            Verb::Revoke { id: "a".into(), policies: policies() },
            Verb::New {
                id: "a".into(),
                tenant: "".into(),
                roles: vec![],
                tier: "".into(),
                expires: None,
                policies: policies(),
                json: true,
            },
        ] {
            let No(why) = run(verb).unwrap_err();
            assert!(why[0].contains("no policy folder"), "{why:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
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
        assert_eq!(keys(&Edit::of(&file).unwrap().document).len(), 40);
    }
}
