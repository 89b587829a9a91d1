use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicBool;

use rcgen::KeyPair;

use super::super::signing::key::PrivateKey;
use super::super::signing::manifest::NEVER_SIGNED;
use super::super::signing::sign::Seal;
use super::*;

/// A folder that was signed, with who signed it.
struct Signed {
    home: tempfile::TempDir,
    bundle: Vec<u8>,
    trust: Trust,
}

const FILES: [(&str, &[u8]); 4] = [("config.json", b"{}"), ("deep/er/part.bin", b"part"), ("empty", b""), ("model.onnx", b"model")];

impl Signed {
    fn new() -> Self {
        Self::of(&FILES)
    }

    fn of(files: &[(&str, &[u8])]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = home.path().join("m").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let pair = KeyPair::generate().unwrap();
        let key = PrivateKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
        let digests = hash(&home.path().join("m"), &[], None, &Limits::TO_HASH).unwrap();
        let digests = digests.into_iter().map(|(name, seen)| (name, seen.digest)).collect();
        let manifest = Manifest::of_files(&digests, NEVER_SIGNED.map(str::to_owned).into()).unwrap();
        let bundle = Seal::with_key(key).bundle(&manifest, "m").unwrap();
        Self { home, bundle, trust: Trust::read(pair.public_key_pem().as_bytes()).unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join("m").join(name)
    }

    fn load_within(&self, limits: &Limits) -> Result<Folder, Fault> {
        Folder::signed(&self.path(""), &self.bundle, None, &self.trust, SystemTime::now(), limits)
    }

    fn load(&self) -> Result<Folder, Fault> {
        let loaded = self.load_within(&Limits::to_load(1 << 20));
        // What keeps nothing judges the same.
        let manifest = self.trust.verify(&self.bundle, SystemTime::now()).unwrap().manifest;
        assert_eq!(compare(&self.path(""), &manifest, None, &Limits::TO_HASH).is_ok(), loaded.is_ok());
        loaded
    }
}

#[test]
fn a_signed_folder_is_read_whole() {
    let signed = Signed::new();
    let folder = signed.load().unwrap();
    assert_eq!(folder.files().len(), FILES.len());
    for (name, bytes) in FILES {
        let file = folder.file(name).unwrap();
        assert_eq!((file.bytes().as_ref(), file.digest()), (bytes, Digest::of(bytes)), "{name}");
    }
    let all: Vec<u8> = FILES.iter().flat_map(|(_, bytes)| Digest::of(bytes).0).collect();
    assert_eq!(folder.digest(), Digest::of(&all));
    assert!(folder.signer().is_some() && folder.file("other").is_none());
}

#[test]
fn a_file_that_is_changed_missing_or_added_is_refused() {
    let signed = Signed::new();
    let changed = |name: &str| matches!(signed.load(), Err(Fault::Changed(told)) if told == name);
    fs::write(signed.path("model.onnx"), b"mOdel").unwrap();
    assert!(changed("model.onnx"));
    fs::write(signed.path("model.onnx"), b"model").unwrap();
    fs::write(signed.path("empty"), b"x").unwrap();
    assert!(changed("empty"));
    fs::write(signed.path("empty"), b"").unwrap();
    fs::write(signed.path("deep/er/other.py"), b"").unwrap();
    assert!(matches!(signed.load(), Err(Fault::Unlisted(names)) if names == ["deep/er/other.py"]));
    fs::remove_file(signed.path("deep/er/other.py")).unwrap();
    fs::remove_file(signed.path("config.json")).unwrap();
    assert!(matches!(signed.load(), Err(Fault::Missing(names)) if names == ["config.json"]));
    // Another file's name, in other letters, is another name.
    fs::write(signed.path("Config.json"), b"{}").unwrap();
    assert!(matches!(signed.load(), Err(Fault::Unlisted(names)) if names == ["Config.json"]));
    fs::rename(signed.path("Config.json"), signed.path("config.json")).unwrap();
    assert!(signed.load().is_ok());
}

#[test]
fn two_files_that_change_places_are_refused() {
    let signed = Signed::new();
    fs::rename(signed.path("model.onnx"), signed.path("x")).unwrap();
    fs::rename(signed.path("config.json"), signed.path("model.onnx")).unwrap();
    fs::rename(signed.path("x"), signed.path("config.json")).unwrap();
    assert!(matches!(signed.load(), Err(Fault::Changed(_))));
}

#[test]
fn what_git_keeps_at_the_top_is_left_alone_and_deeper_it_is_not() {
    let signed = Signed::new();
    fs::create_dir_all(signed.path(".git/objects")).unwrap();
    fs::write(signed.path(".git/objects/x"), b"x").unwrap();
    fs::write(signed.path(".gitattributes"), b"x").unwrap();
    symlink("/etc/passwd", signed.path(".github")).unwrap();
    let folder = signed.load().unwrap();
    assert!(folder.file(".gitattributes").is_none() && folder.files().len() == FILES.len());
    fs::write(signed.path("deep/.gitattributes"), b"x").unwrap();
    assert!(matches!(signed.load(), Err(Fault::Unlisted(_))));
    fs::remove_file(signed.path("deep/.gitattributes")).unwrap();
    fs::write(signed.path(".gitmodules"), b"x").unwrap();
    assert!(matches!(signed.load(), Err(Fault::Unlisted(_))));
}

#[test]
fn links_are_refused_wherever_they_lead() {
    for (place, target) in [("link", "model.onnx"), ("link", "/etc/passwd"), ("link", "."), ("link", "nowhere"), ("deep/er/up", "../..")] {
        let signed = Signed::new();
        symlink(target, signed.path(place)).unwrap();
        assert!(matches!(signed.load(), Err(Fault::Link(name)) if name == place), "{place} {target}");
    }
    // Even where what it leads to is what was signed: for a file, and for a folder on the way.
    let signed = Signed::new();
    fs::rename(signed.path("model.onnx"), signed.home.path().join("model.onnx")).unwrap();
    symlink("../model.onnx", signed.path("model.onnx")).unwrap();
    assert!(matches!(signed.load(), Err(Fault::Link(_))));
    let digests = BTreeMap::from([("model.onnx".to_owned(), Digest::of(b"model"))]);
    assert!(matches!(Folder::named(&signed.path(""), &digests, &Limits::to_load(100)), Err(Fault::Link(_))));
    let signed = Signed::new();
    fs::rename(signed.path("deep"), signed.home.path().join("deep")).unwrap();
    symlink("../deep", signed.path("deep")).unwrap();
    assert!(matches!(signed.load(), Err(Fault::Link(_))));
    let digests = BTreeMap::from([("deep/er/part.bin".to_owned(), Digest::of(b"part"))]);
    assert!(matches!(Folder::named(&signed.path(""), &digests, &Limits::to_load(100)), Err(Fault::Link(_))));
    // The folder itself is named by the operator, and may be one.
    let signed = Signed::new();
    symlink("m", signed.home.path().join("current")).unwrap();
    let current = signed.home.path().join("current");
    assert!(Folder::signed(&current, &signed.bundle, None, &signed.trust, SystemTime::now(), &Limits::to_load(100)).is_ok());
}

/// The other name may be writable for others: what counts is what was read.
#[test]
fn a_hard_link_is_its_content() {
    let signed = Signed::new();
    let outside = signed.home.path().join("outside");
    fs::rename(signed.path("model.onnx"), &outside).unwrap();
    fs::hard_link(&outside, signed.path("model.onnx")).unwrap();
    let folder = signed.load().unwrap();
    fs::write(&outside, b"other").unwrap();
    assert_eq!(folder.file("model.onnx").unwrap().bytes().as_ref(), b"model");
    assert!(matches!(signed.load(), Err(Fault::Changed(_))));
}

#[test]
fn pipes_and_sockets_are_refused_without_being_waited_for() {
    let signed = Signed::new();
    fs::remove_file(signed.path("model.onnx")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(signed.path("model.onnx")).status().unwrap();
    assert!(made.success());
    assert!(matches!(signed.load(), Err(Fault::NotAFile(_))));
    let digests = BTreeMap::from([("model.onnx".to_owned(), Digest::of(b""))]);
    assert!(matches!(Folder::named(&signed.path(""), &digests, &Limits::to_load(100)), Err(Fault::NotAFile(_))));
    assert!(matches!(Folder::named(Path::new("/dev/null"), &digests, &Limits::to_load(100)), Err(Fault::NotAFile(_))));
    let _socket = std::os::unix::net::UnixListener::bind(signed.path("socket")).unwrap();
    assert!(matches!(signed.load(), Err(Fault::NotAFile(_))));
}

#[test]
fn bytes_of_the_limit_are_read_and_one_more_is_not() {
    let signed = Signed::new();
    let bytes: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(signed.load_within(&Limits::to_load(bytes)).is_ok());
    assert!(matches!(signed.load_within(&Limits::to_load(bytes - 1)), Err(Fault::TooLarge { limit }) if limit == bytes as u64 - 1));
}

#[test]
fn entries_of_the_limit_are_listed_and_one_more_is_not() {
    let signed = Signed::new();
    // Four files and two folders.
    assert!(signed.load_within(&Limits { bytes: 100, entries: 6 }).is_ok());
    assert!(matches!(signed.load_within(&Limits { bytes: 100, entries: 5 }), Err(Fault::TooMany { limit: 5 })));
}

#[test]
fn folders_nest_to_the_limit_and_no_deeper() {
    let home = tempfile::tempdir().unwrap();
    let deep = vec!["d"; tree::MAX_DEPTH].join("/");
    fs::create_dir_all(home.path().join(&deep)).unwrap();
    fs::write(home.path().join(&deep).join("f"), b"x").unwrap();
    assert_eq!(names(home.path(), &Limits::TO_HASH).unwrap().len(), 1);
    fs::create_dir(home.path().join(&deep).join("d")).unwrap();
    assert!(matches!(names(home.path(), &Limits::TO_HASH), Err(Fault::TooDeep(_))));
}

#[test]
fn names_that_no_manifest_could_hold_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    for name in [&b"a\\b"[..], b"a\nb", b"\xff"] {
        let signed = Signed::new();
        fs::write(signed.path("").join(std::ffi::OsStr::from_bytes(name)), b"").unwrap();
        assert!(matches!(signed.load(), Err(Fault::Unspeakable(_))), "{name:?}");
    }
}

#[test]
fn only_what_a_policy_names_is_opened() {
    let signed = Signed::new();
    symlink("/etc/passwd", signed.path("not looked at")).unwrap();
    let digests = BTreeMap::from([("model.onnx".to_owned(), Digest::of(b"model")), ("deep/er/part.bin".to_owned(), Digest::of(b"part"))]);
    let folder = Folder::named(&signed.path(""), &digests, &Limits::to_load(100)).unwrap();
    assert_eq!(folder.files().len(), 2);
    assert!(folder.signer().is_none());
    let named = |name: &str, bytes: &[u8]| {
        Folder::named(&signed.path(""), &BTreeMap::from([(name.to_owned(), Digest::of(bytes))]), &Limits::to_load(100))
    };
    assert!(matches!(named("model.onnx", b"other"), Err(Fault::Changed(_))));
    assert!(matches!(named("nothing", b""), Err(Fault::Missing(_))));
    assert!(matches!(named("deep", b""), Err(Fault::NotAFile(_))));
    for name in ["../m/model.onnx", "/etc/passwd", "deep/../model.onnx", ""] {
        assert!(matches!(named(name, b"model"), Err(Fault::Unspeakable(_))), "{name}");
    }
    assert!(matches!(Folder::named(&signed.path(""), &BTreeMap::new(), &Limits::to_load(100)), Err(Fault::Empty)));
}

#[test]
fn a_signature_in_its_own_folder_is_left_out_and_no_other_file_is() {
    let signed = Signed::new();
    fs::write(signed.path("model.sig"), &signed.bundle).unwrap();
    let load = |signature: &Path| {
        let beside = signature_in(&signed.path(""), signature);
        Folder::signed(&signed.path(""), &signed.bundle, beside.as_deref(), &signed.trust, SystemTime::now(), &Limits::to_load(100))
    };
    assert!(load(&signed.path("model.sig")).is_ok());
    assert!(matches!(load(&signed.home.path().join("model.sig")), Err(Fault::Unlisted(_))));
    fs::write(signed.path("second.sig"), &signed.bundle).unwrap();
    assert!(matches!(load(&signed.path("model.sig")), Err(Fault::Unlisted(names)) if names == ["second.sig"]));
    assert_eq!(signature_in(&signed.path(""), &signed.path("deep/x.sig")).as_deref(), Some("deep/x.sig"));
    assert_eq!(signature_in(&signed.path(""), &signed.home.path().join("x.sig")), None);
}

#[test]
fn a_single_file_is_a_model_by_its_name_or_by_none() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("one.onnx");
    fs::write(&file, b"model").unwrap();
    assert_eq!(hash(&file, &[], None, &Limits::TO_HASH).unwrap().keys().collect::<Vec<_>>(), ["."]);
    let manifest = |names: &[&str]| {
        Manifest::of_files(&names.iter().map(|name| ((*name).to_owned(), Digest::of(b"model"))).collect(), vec![]).unwrap()
    };
    for names in [&["."][..], &["one.onnx"]] {
        assert!(compare(&file, &manifest(names), None, &Limits::TO_HASH).is_ok(), "{names:?}");
    }
    for names in [&["two.onnx"][..], &["one.onnx", "two.onnx"]] {
        assert!(compare(&file, &manifest(names), None, &Limits::TO_HASH).is_err(), "{names:?}");
    }
    fs::write(&file, b"other").unwrap();
    assert!(matches!(compare(&file, &manifest(&["."]), None, &Limits::TO_HASH), Err(Fault::Changed(_))));
    // In a folder, a nameless file is none.
    assert!(compare(home.path(), &manifest(&["."]), None, &Limits::TO_HASH).is_err());
}

#[test]
fn files_in_parts_are_held_to_every_part_and_to_their_length() {
    let home = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take((2 << 20) + 77).collect();
    fs::write(home.path().join("w"), &bytes).unwrap();
    fs::write(home.path().join("empty"), b"").unwrap();
    let size = 700_001;
    let parts: Vec<&[u8]> = bytes.chunks(size).collect();
    let digests: Vec<Digest> = parts.iter().map(|part| Digest::of(part)).collect();
    let resources: Vec<serde_json::Value> = digests
        .iter()
        .enumerate()
        .map(|(at, digest)| {
            let (from, to) = (at * size, (at * size + parts[at].len()));
            serde_json::json!({ "name": format!("w:{from}:{to}"), "algorithm": "sha256", "digest": digest.to_string() })
        })
        .collect();
    let root = Digest::of(&digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>());
    let statement = serde_json::json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": [{ "name": "m", "digest": { "sha256": root.to_string() } }],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": { "resources": resources,
            "serialization": { "method": "shards", "hash_type": "sha256", "shard_size": size, "allow_symlinks": false } },
    });
    let manifest = Manifest::from_statement(statement.to_string().as_bytes()).unwrap();
    let judge = || compare(home.path(), &manifest, None, &Limits::TO_HASH);
    assert_eq!(judge().unwrap()["w"], Seen { digest: Digest::of(&bytes), length: bytes.len() as u64 });
    for change in [0, size - 1, size, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[change] ^= 1;
        fs::write(home.path().join("w"), &changed).unwrap();
        assert!(matches!(judge(), Err(Fault::Changed(_))), "{change}");
    }
    for length in [bytes.len() - 1, bytes.len() + 1] {
        let mut changed = bytes.clone();
        changed.resize(length, 0);
        fs::write(home.path().join("w"), &changed).unwrap();
        assert!(matches!(judge(), Err(Fault::Changed(_))), "{length}");
    }
}

/// A writer swaps the file, by writing into it and by putting another in its place, as fast as it can; whatever is loaded hashes to what
/// was named.
#[test]
fn in_a_thousand_races_with_a_writer_nothing_is_loaded_but_what_was_signed() {
    let good = vec![0x67; 100_000];
    let signed = Signed::of(&[("config.json", b"{}"), ("model.onnx", &good)]);
    let evil = vec![0x65; 100_000];
    let path = signed.path("model.onnx");
    let (aside, stop) = (signed.home.path().join("aside"), AtomicBool::new(false));
    let mut loaded = 0;
    let mut refused = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::write(&path, &evil).unwrap();
                fs::write(&path, &good).unwrap();
                fs::write(&aside, &evil).unwrap();
                fs::rename(&aside, &path).unwrap();
                fs::write(&aside, &good).unwrap();
                fs::rename(&aside, &path).unwrap();
                std::thread::yield_now();
            }
        });
        for _ in 0..1000 {
            match signed.load_within(&Limits::to_load(1 << 20)) {
                Ok(folder) => {
                    let file = folder.file("model.onnx").unwrap();
                    assert_eq!(file.bytes().as_ref(), good);
                    assert_eq!((Digest::of(file.bytes()), file.digest()), (Digest::of(&good), Digest::of(&good)));
                    loaded += 1;
                }
                Err(Fault::Changed(name)) if name == "model.onnx" => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Both happened, or there was no race.
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
}

#[test]
fn as_many_files_as_the_bound_are_loaded_and_one_more_is_not() {
    let home = tempfile::tempdir().unwrap();
    let mut digests = BTreeMap::new();
    for number in 0..MAX_FILES {
        let name = format!("{number}.bin");
        fs::write(home.path().join(&name), &name).unwrap();
        digests.insert(name.clone(), Digest::of(name.as_bytes()));
    }
    let limits = Limits::to_load(1 << 20);
    assert_eq!(Folder::named(home.path(), &digests, &limits).unwrap().files().len(), MAX_FILES);
    digests.insert("one.bin".into(), Digest::of(b""));
    assert!(matches!(Folder::named(home.path(), &digests, &limits), Err(Fault::TooMany { limit: MAX_FILES })));
}
