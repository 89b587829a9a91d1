//! What a log sends to a witness (C2SP tlog-witness v1, `add-checkpoint`): the size of the tree that the witness knows, the
//! proof that the new tree goes on from it, and the checkpoint of the new one.

use std::fmt;

use super::checkpoint::{Checkpoint, NotACheckpoint};
use super::note::{Malformed, Note};
use super::{base64, decimal, from_base64};

/// The most bytes of a request: room for a checkpoint with [`super::note::MAX_SIGNATURES`] ML-DSA-44 signatures.
pub const MAX_REQUEST: usize = 256 << 10;
/// The most hashes of a proof, as the specification has it.
pub const MAX_PROOF: usize = 63;
/// The media type of a 409's body, which is the size that the witness knows, and a newline.
pub const SIZE_TYPE: &str = "text/x.tlog.size";

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddCheckpoint {
    old: u64,
    proof: Vec<[u8; 32]>,
    note: Note,
    checkpoint: Checkpoint,
}

/// What is wrong with bytes that should be a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotARequest {
    /// More than [`MAX_REQUEST`] bytes.
    TooLong,
    /// No empty line before the checkpoint, or no UTF-8 before it.
    NoHead,
    /// The first line is not `old` and a size.
    OldSize,
    /// A line of the proof is not canonical base64 of 32 bytes.
    ProofLine,
    /// More than [`MAX_PROOF`] of them.
    TooManyProofLines,
    /// What follows is no note.
    Note(Malformed),
    /// What follows is a note, and no checkpoint.
    Checkpoint(NotACheckpoint),
}

impl fmt::Display for NotARequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => f.write_str("the request is longer than 256 KiB"),
            Self::NoHead => f.write_str("no empty line before a checkpoint"),
            Self::OldSize => f.write_str("the first line is not \"old\", a space and a tree size"),
            Self::ProofLine => f.write_str("a proof line is not canonical base64 of 32 bytes"),
            Self::TooManyProofLines => f.write_str("more than 63 proof lines"),
            Self::Note(why) => why.fmt(f),
            Self::Checkpoint(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for NotARequest {}

impl AddCheckpoint {
    /// A request for `note`, for a witness that knows the tree of `old` leaves.
    ///
    /// # Errors
    /// When the note is no checkpoint, or the proof too long.
    pub fn new(old: u64, proof: Vec<[u8; 32]>, note: Note) -> Result<Self, NotARequest> {
        if proof.len() > MAX_PROOF {
            return Err(NotARequest::TooManyProofLines);
        }
        let checkpoint = Checkpoint::parse(note.text()).map_err(NotARequest::Checkpoint)?;
        Ok(Self { old, proof, note, checkpoint })
    }

    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotARequest> {
        if bytes.len() > MAX_REQUEST {
            return Err(NotARequest::TooLong);
        }
        let head = bytes.windows(2).position(|pair| pair == b"\n\n").ok_or(NotARequest::NoHead)?;
        let mut lines = std::str::from_utf8(&bytes[..head]).map_err(|_| NotARequest::NoHead)?.split('\n');
        let old = lines.next().and_then(|line| line.strip_prefix("old ")).and_then(decimal).ok_or(NotARequest::OldSize)?;
        let mut proof = Vec::new();
        for line in lines {
            if proof.len() == MAX_PROOF {
                return Err(NotARequest::TooManyProofLines);
            }
            proof.push(from_base64(line).and_then(|hash| hash.try_into().ok()).ok_or(NotARequest::ProofLine)?);
        }
        Self::new(old, proof, Note::parse(&bytes[head + 2..]).map_err(NotARequest::Note)?)
    }

    /// The size of the tree that the witness is said to know.
    #[must_use]
    pub fn old(&self) -> u64 {
        self.old
    }

    /// That the new tree goes on from the old one (RFC 6962 §2.1.2).
    #[must_use]
    pub fn proof(&self) -> &[[u8; 32]] {
        &self.proof
    }

    /// The checkpoint with its signatures.
    #[must_use]
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// The checkpoint as its text says.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// The request's body.
impl fmt::Display for AddCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        self.proof.iter().try_for_each(|hash| writeln!(f, "{}", base64(hash)))?;
        write!(f, "\n{}", self.note)
    }
}

/// The size in a 409's body.
#[must_use]
pub fn size_in_conflict(body: &[u8]) -> Option<u64> {
    decimal(std::str::from_utf8(body).ok()?.strip_suffix('\n')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the specification.
    const EXAMPLE: &str = "old 20852014\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\njrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n\
        5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n\n\
        example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
        — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
        — example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=\n";

    fn parsed(text: &str) -> Result<AddCheckpoint, NotARequest> {
        AddCheckpoint::parse(text.as_bytes())
    }

    #[test]
    fn the_specifications_example_reads_and_prints_as_it_was() {
        let request = parsed(EXAMPLE).unwrap();
        assert_eq!((request.old(), request.proof().len(), request.checkpoint().size), (20_852_014, 4, 20_852_163));
        assert_eq!(request.note().lines().len(), 2);
        assert_eq!(request.to_string(), EXAMPLE);
        let (_, note) = EXAMPLE.split_once("\n\n").unwrap();
        let first = format!("old 0\n\n{note}");
        assert_eq!(parsed(&first).unwrap().to_string(), first);
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        let (head, note) = EXAMPLE.split_once("\n\n").unwrap();
        for (bad, why) in [
            (String::new(), NotARequest::NoHead),
            (format!("{head}\n"), NotARequest::NoHead),
            (format!("\n\n{note}"), NotARequest::OldSize),
            (EXAMPLE.replacen("old ", "old  ", 1), NotARequest::OldSize),
            (EXAMPLE.replacen("old 2", "old 02", 1), NotARequest::OldSize),
            (EXAMPLE.replacen("old 2", "new 2", 1), NotARequest::OldSize),
            (EXAMPLE.replacen("old 20852014", "old 9223372036854775808", 1), NotARequest::OldSize),
            (EXAMPLE.replacen("kaw=\n", "kax=\n", 1), NotARequest::ProofLine),
            (EXAMPLE.replacen("kaw=\n", "kaw=\r\n", 1), NotARequest::ProofLine),
            (EXAMPLE.replacen("PlRN", "", 1), NotARequest::ProofLine),
            (format!("old 1\n\nx\n\n{note}"), NotARequest::Checkpoint(NotACheckpoint(2))),
            (format!("old 1\n\n\n{note}"), NotARequest::Checkpoint(NotACheckpoint(1))),
            (EXAMPLE.trim_end().into(), NotARequest::Note(Malformed::TornLine)),
            (format!("{EXAMPLE}\n"), NotARequest::Note(Malformed::NoSignature)),
        ] {
            assert_eq!(parsed(&bad), Err(why), "{bad:?}");
        }
        assert_eq!(AddCheckpoint::parse(b"old \xff\n\n"), Err(NotARequest::NoHead));
    }

    #[test]
    fn a_request_is_bounded_in_bytes_and_hashes() {
        let (_, note) = EXAMPLE.split_once("\n\n").unwrap();
        let of = |count: usize| format!("old 5\n{}\n{note}", "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n".repeat(count));
        assert_eq!(parsed(&of(MAX_PROOF)).unwrap().proof().len(), MAX_PROOF);
        assert_eq!(parsed(&of(MAX_PROOF + 1)), Err(NotARequest::TooManyProofLines));
        let note = Note::parse(note.as_bytes()).unwrap();
        assert_eq!(AddCheckpoint::new(5, vec![[0; 32]; MAX_PROOF + 1], note), Err(NotARequest::TooManyProofLines));
        let extended = |length: usize| {
            let without = EXAMPLE.replacen("q2I=\n", "q2I=\n!\n", 1);
            without.replacen('!', &"x".repeat(length + 1 - without.len()), 1)
        };
        assert_eq!(extended(MAX_REQUEST).len(), MAX_REQUEST);
        assert!(parsed(&extended(MAX_REQUEST)).is_ok());
        assert_eq!(parsed(&extended(MAX_REQUEST + 1)), Err(NotARequest::TooLong));
    }

    #[test]
    fn a_conflict_tells_one_size() {
        assert_eq!(size_in_conflict(b"20852014\n"), Some(20_852_014));
        assert_eq!(size_in_conflict(b"0\n"), Some(0));
        for bad in ["", "\n", "1", "01\n", "1\n\n", "1 \n", "-1\n", "18446744073709551616\n"] {
            assert_eq!(size_in_conflict(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
