//! What a monitor reads of the log: its checkpoint, tiles and bundles as C2SP tlog-tiles serves them, and what they are to be checked with.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::archive::Archive;
use super::ledger::Ledger;
use super::publisher::retried;
use crate::tlog::PublicKey;
use crate::tlog::tile::Tile;
use crate::verify::folder::{CHECKPOINT, CHECKPOINT_COSE};

/// Where the log's files begin.
pub const PREFIX: &str = "/log/";
/// Where the log is described.
pub const WELL_KNOWN: &str = "/.well-known/portcullis-log.json";

/// A file of the log, as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Its media type.
    pub media_type: &'static str,
    /// Whether it stays as it is: tiles do, checkpoints do not.
    pub immutable: bool,
    /// Its bytes.
    pub bytes: Bytes,
}

impl LogFile {
    pub(super) fn fresh(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self { media_type, immutable: false, bytes: bytes.into() }
    }
}

impl Ledger {
    /// What is at this path, on a thread that may block; nothing where there is no such file, or not yet.
    ///
    /// Every partial tile of every checkpoint is served, also where the file has grown since.
    pub async fn serve(&self, path: &str) -> Option<LogFile> {
        if path == WELL_KNOWN {
            return Some(LogFile::fresh("application/json", self.description().to_string()));
        }
        self.0.archive.serve(path.strip_prefix(PREFIX)?).await
    }
}

impl Archive {
    /// The file of this name, as [`Ledger::serve`] gives it.
    pub(super) async fn serve(self: &Arc<Self>, name: &str) -> Option<LogFile> {
        let published = self.newest_for_others();
        if name == CHECKPOINT {
            return (published.size > 0).then(|| LogFile::fresh("text/plain; charset=utf-8", published.note.clone()));
        }
        if name == CHECKPOINT_COSE {
            return Some(LogFile::fresh("application/cose; cose-type=\"cose-sign1\"", published.signed_root.as_ref()?.encode()));
        }
        let tile = Tile::parse(name)?;
        let archive = self.clone();
        let bytes = tokio::task::spawn_blocking(move || {
            retried(&archive.published, |published| archive.files.read_grown(tile, published.size).ok())
        });
        let bytes = bytes.await.ok().flatten()?;
        Some(LogFile { media_type: "application/octet-stream", immutable: true, bytes: bytes.into() })
    }
}

impl Ledger {
    /// The log's name and keys, and where its files are.
    pub(super) fn description(&self) -> serde_json::Value {
        let vkeys = self.all_vkeys();
        let cose: Vec<_> = vkeys
            .iter()
            .filter(|vkey| !matches!(vkey.key, PublicKey::MlDsa44(_)))
            .map(|vkey| {
                let (kid, x) = (hex(&vkey.kid()), hex(vkey.key.bytes()));
                json!({ "kid": kid, "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x })
            })
            .collect();
        json!({
            "origin": vkeys[0].name,
            "vkeys": vkeys.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "cose_keys": cose,
            "checkpoint": format!("{PREFIX}{CHECKPOINT}"),
            "checkpoint_cose": format!("{PREFIX}{CHECKPOINT_COSE}"),
            "tiles": format!("{PREFIX}tile/"),
            "checkpoint_every_ms": super::publisher::CHECKPOINT_EVERY.as_millis() as u64,
        })
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::config::Terms;
    use crate::prove::ledger::tests::{answer, house};
    use crate::tlog::{Checkpoint, Note, tile};

    #[tokio::test]
    async fn the_log_is_served_as_a_monitor_reads_it() {
        let house = house();
        let mut last = None;
        for _ in 0..3 {
            let receipt = answer(&house.ledger, &Terms { mode: crate::prove::Mode::Included, ..Terms::default() }).await.unwrap();
            last = receipt.id();
        }
        let checkpoint = house.ledger.serve("/log/checkpoint").await.unwrap();
        assert!(!checkpoint.immutable);
        let note = Note::parse(&checkpoint.bytes).unwrap();
        assert!(note.open(&house.ledger.vkeys()).is_ok());
        let size = Checkpoint::parse(note.text()).unwrap().size;
        assert!(size >= 5, "two at the opening, and the answers");
        assert!(house.ledger.serve("/log/checkpoint.cose").await.is_some());
        // Each width that there ever was a checkpoint of, though one file alone is left.
        for width in 1..=size {
            let bundle = house.ledger.serve(&format!("/log/tile/entries/000.p/{width}")).await.unwrap();
            assert_eq!(tile::entries(&bundle.bytes).unwrap().len() as u64, width);
            assert!(bundle.immutable);
            assert_eq!(house.ledger.serve(&format!("/log/tile/0/000.p/{width}")).await.unwrap().bytes.len() as u64, width * 32);
        }
        let description: serde_json::Value = serde_json::from_slice(&house.ledger.serve(WELL_KNOWN).await.unwrap().bytes).unwrap();
        assert_eq!(description["origin"], "gw.example/node1");
        for nothing in
            ["/log/", "/log/tile/0/000", "/log/tile/0/001.p/1", "/log/../provenance.key", "/log/wal-00000000", "/log/keys.vkey", "/"]
        {
            assert_eq!(house.ledger.serve(nothing).await, None, "{nothing}");
        }
        assert!(house.ledger.serve(&format!("/log/tile/0/000.p/{}", size + 1)).await.is_none());
        assert!(last.is_some());
    }
}
