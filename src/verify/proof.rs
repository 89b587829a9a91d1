//! What shows that an entry is in the log, in the two languages of the field: COSE receipts (RFC 9942, in transparent statements of
//! RFC 9943) and C2SP tlog-proof. Both are made when they are asked for, from one checkpoint that is signed already.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ciborium::Value;
use serde_json::{Value as Json, json};

use super::cbor::{Writer, canonical};
use super::statement::{Statement, to_be_signed};
use crate::tlog::merkle::{self, Hash};
use crate::tlog::vkey::Vkey;

/// COSE header parameter `receipts` (RFC 9943).
const RECEIPTS: u64 = 394;
/// COSE header parameter `vds`, the kind of verifiable data structure (RFC 9942).
const VDS: u64 = 395;
/// COSE header parameter `vdp`, its proofs (RFC 9942).
const VDP: u64 = 396;
/// What stands before the size in the subject of a root.
const SUBJECT: &str = "urn:portcullis:tree:";
/// The data structure RFC9162_SHA256.
const RFC9162_SHA256: u64 = 1;

/// The root of a tree, signed as COSE_Sign1: the root is its payload, and detached in the receipts that rest on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRoot {
    protected: Vec<u8>,
    root: Hash,
    signature: Vec<u8>,
}

impl SignedRoot {
    /// Signs `root` for the log `origin` with `sign`, the log key's of this `kid`; `time` is in seconds since 1970.
    ///
    /// A receipt of RFC 9942 covers the root alone, and a path may fit more than one size: the subject of the claims (RFC 9943 asks
    /// for one) names the size.
    pub(crate) fn sign(root: Hash, size: u64, origin: &str, kid: &[u8], time: u64, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Self {
        let mut protected = Writer::with_room(origin.len() + 64);
        protected.map(4).uint(1).negative(7).uint(4).bytes(kid);
        protected.uint(15).map(3).uint(1).text(origin).uint(2).text(&format!("{SUBJECT}{size}")).uint(6).uint(time);
        protected.uint(VDS).uint(RFC9162_SHA256);
        let protected = protected.done();
        let signature = sign(&to_be_signed(&protected, &root)).to_vec();
        Self { protected, root, signature }
    }

    /// Its bytes, as `checkpoint.cose` holds them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_room(self.protected.len() + 112);
        to.tag(18).array(4).bytes(&self.protected).map(0).bytes(&self.root).bytes(&self.signature);
        to.done()
    }

    /// Reads the bytes of `checkpoint.cose`, in their one encoding.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let Value::Tag(18, inner) = canonical(bytes)? else { return None };
        let [Value::Bytes(protected), Value::Map(unprotected), Value::Bytes(root), Value::Bytes(signature)] =
            <[Value; 4]>::try_from(inner.into_array().ok()?).ok()?
        else {
            return None;
        };
        unprotected.is_empty().then_some(Self { protected, root: root.try_into().ok()?, signature })
    }

    /// How many leaves the tree has, as the subject of the claims says.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        let Value::Map(header) = canonical(&self.protected)? else { return None };
        size_of(&header)
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Hash {
        &self.root
    }

    /// Whether `vkey`, a log key, signed it.
    #[must_use]
    pub fn signed_by(&self, vkey: &Vkey) -> bool {
        vkey.verifies(&to_be_signed(&self.protected, &self.root), &self.signature)
    }

    /// The COSE receipt (RFC 9942) of the leaf `index` in the tree of `size` leaves with this root.
    #[must_use]
    pub fn receipt(&self, index: u64, size: u64, path: &[Hash]) -> Vec<u8> {
        let mut proof = Writer::with_room(path.len() * 34 + 24);
        proof.array(3).uint(size).uint(index).array(path.len());
        for hash in path {
            proof.bytes(hash);
        }
        let proof = proof.done();
        let mut to = Writer::with_room(self.protected.len() + proof.len() + 96);
        to.tag(18).array(4).bytes(&self.protected);
        to.map(1).uint(VDP).map(1).negative(0).array(1).bytes(&proof);
        to.null().bytes(&self.signature);
        to.done()
    }
}

/// The statement with its receipt in the unprotected header: a transparent statement (RFC 9943). None where `entry` is no statement.
#[must_use]
pub fn transparent(entry: &[u8], receipt: &[u8]) -> Option<Vec<u8>> {
    let Value::Tag(18, inner) = canonical(entry)? else { return None };
    let [Value::Bytes(protected), Value::Map(_), Value::Bytes(payload), Value::Bytes(signature)] =
        <[Value; 4]>::try_from(inner.into_array().ok()?).ok()?
    else {
        return None;
    };
    let mut to = Writer::with_room(entry.len() + receipt.len() + 16);
    to.tag(18).array(4).bytes(&protected).map(1).uint(RECEIPTS).array(1).bytes(receipt).bytes(&payload).bytes(&signature);
    Some(to.done())
}

/// The C2SP tlog-proof of the leaf `index` under a checkpoint.
#[must_use]
pub fn tlog_proof(index: u64, path: &[Hash], checkpoint: &str) -> String {
    let path: String = path.iter().map(|hash| STANDARD.encode(hash) + "\n").collect();
    format!("c2sp.org/tlog-proof@v1\nindex {index}\n{path}\n{checkpoint}")
}

/// Where an entry stands in the tree of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Inclusion<'a> {
    /// Its place, from 0.
    pub index: u64,
    /// How many leaves the tree has.
    pub size: u64,
    /// The hashes that lead from the entry to the root.
    pub path: &'a [Hash],
    /// The root.
    pub root: &'a Hash,
    /// The checkpoint, a signed note.
    pub checkpoint: &'a str,
}

/// The receipt for people: where it stands, the statement, what that says, and what shows that the log has it.
#[must_use]
pub fn json(entry: &[u8], statement: &Statement, state: &str, inclusion: Option<&Inclusion<'_>>) -> Json {
    let mut view = json!({
        "id": statement.id.hyphenated().to_string(),
        "log": statement.issuer,
        "state": state,
        "statement": STANDARD.encode(entry),
        "view": statement.view(),
    });
    if let Some(Inclusion { index, size, path, root, checkpoint }) = inclusion {
        view["inclusion"] = json!({
            "index": index,
            "size": size,
            "path": path.iter().map(|hash| STANDARD.encode(hash)).collect::<Vec<_>>(),
            "root": STANDARD.encode(root),
            "checkpoint": checkpoint,
        });
    }
    view
}

/// The size in the claims of a protected header.
fn size_of(header: &[(Value, Value)]) -> Option<u64> {
    let field = |map: &[(Value, Value)], key: i64| map.iter().find(|(name, _)| *name == Value::from(key)).map(|(_, value)| value.clone());
    let size = field(field(header, 15)?.as_map()?, 2)?.into_text().ok()?.strip_prefix(SUBJECT)?.to_owned();
    size.parse().ok().filter(|number: &u64| number.to_string() == size)
}

/// Checks a COSE receipt of `entry`; says which index and size it proves.
///
/// # Errors
/// With what does not hold.
pub fn verify_receipt(receipt: &[u8], entry: &[u8], vkey: &Vkey) -> Result<(u64, u64), &'static str> {
    const FORM: &str = "not a COSE receipt as this log makes them";
    let Some(Value::Tag(18, inner)) = canonical(receipt) else { return Err(FORM) };
    let parts = inner.into_array().ok().and_then(|parts| <[Value; 4]>::try_from(parts).ok());
    let Some([Value::Bytes(protected), Value::Map(unprotected), Value::Null, Value::Bytes(signature)]) = parts else { return Err(FORM) };
    let Some(Value::Map(header)) = canonical(&protected) else { return Err(FORM) };
    let field = |map: &[(Value, Value)], key: i64| map.iter().find(|(name, _)| *name == Value::from(key)).map(|(_, value)| value.clone());
    if field(&header, 1) != Some(Value::from(-8)) || field(&header, VDS as i64) != Some(Value::from(RFC9162_SHA256)) {
        return Err("the receipt is of another algorithm, or of another kind of tree");
    }
    let proofs = field(&unprotected, VDP as i64).and_then(|vdp| field(vdp.as_map()?, -1)).and_then(|proofs| proofs.into_array().ok());
    let Some([Value::Bytes(proof)]) = proofs.and_then(|proofs| <[Value; 1]>::try_from(proofs).ok()) else { return Err(FORM) };
    let Some([size, index, path]) = canonical(&proof).and_then(|proof| <[Value; 3]>::try_from(proof.into_array().ok()?).ok()) else {
        return Err(FORM);
    };
    let number = |value: Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
    let hashes = path.into_array().ok().and_then(|path| {
        path.into_iter().map(|hash| hash.into_bytes().ok().and_then(|hash| Hash::try_from(hash).ok())).collect::<Option<Vec<Hash>>>()
    });
    let (Some(size), Some(index), Some(path)) = (number(size), number(index), hashes) else { return Err(FORM) };
    if size_of(&header) != Some(size) {
        return Err("the receipt is of a tree of another size");
    }
    let root = merkle::root_of_inclusion(index, size, &merkle::leaf(entry), &path).map_err(|_| "the path is not one of such a leaf")?;
    let root = SignedRoot { protected, root, signature };
    if root.signed_by(vkey) { Ok((index, size)) } else { Err("the root to which the path leads is not the one that was signed") }
}
