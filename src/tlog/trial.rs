//! A log to try witnesses with.

use super::add_checkpoint::AddCheckpoint;
use super::checkpoint::Checkpoint;
use super::cosignature::sign_ml_dsa_44;
use super::merkle::tests::{Leaves, leaves};
use super::merkle::{consistency, root};
use super::note::{self, Note};
use super::signature::{Ed25519Key, MlDsa44Key};
use super::vkey::{PublicKey, Vkey};

pub(crate) struct Log {
    pub(crate) origin: String,
    leaves: Vec<[u8; 32]>,
    ed25519: Ed25519Key,
    ml_dsa_44: MlDsa44Key,
}

impl Log {
    /// A log of 64 leaves.
    pub(crate) fn new(origin: &str, seed: u8) -> Self {
        let keys = (Ed25519Key::from_seed(&[seed; 32]).unwrap(), MlDsa44Key::from_seed(&[seed; 32]).unwrap());
        Self { origin: origin.into(), leaves: leaves(64).0, ed25519: keys.0, ml_dsa_44: keys.1 }
    }

    /// The same log with other entries from number `at` on.
    pub(crate) fn forked(origin: &str, seed: u8, at: usize) -> Self {
        let mut log = Self::new(origin, seed);
        log.leaves[at..].iter_mut().for_each(|leaf| leaf[0] ^= 1);
        log
    }

    pub(crate) fn vkeys(&self) -> [Vkey; 2] {
        [PublicKey::Log(self.ed25519.public()), PublicKey::MlDsa44(self.ml_dsa_44.public())]
            .map(|key| Vkey { name: self.origin.clone(), key })
    }

    pub(crate) fn checkpoint(&self, size: usize) -> Checkpoint {
        let Ok(root) = root(size as u64, &mut Leaves(self.leaves.clone()));
        Checkpoint { origin: self.origin.clone(), size: size as u64, root, extensions: Vec::new() }
    }

    pub(crate) fn sign(&self, checkpoint: &Checkpoint) -> Note {
        let text = checkpoint.to_string();
        let second = sign_ml_dsa_44(&self.ml_dsa_44, &self.origin, checkpoint, 1).unwrap();
        Note::new(&text, vec![note::sign(&self.ed25519, &self.origin, &text), second]).unwrap()
    }

    pub(crate) fn note(&self, size: usize) -> Note {
        self.sign(&self.checkpoint(size))
    }

    pub(crate) fn proof(&self, old: usize, new: usize) -> Vec<[u8; 32]> {
        let Ok(proof) = consistency(old as u64, new as u64, &mut Leaves(self.leaves.clone()));
        proof
    }

    pub(crate) fn request(&self, old: usize, new: usize) -> AddCheckpoint {
        AddCheckpoint::new(old as u64, self.proof(old, new), self.note(new)).unwrap()
    }
}
