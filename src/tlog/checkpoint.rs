//! Checkpoints (C2SP tlog-checkpoint v1): the head of a log's tree, as the text of a note.

use std::fmt;

use super::vkey::MAX_NAME;
use super::{base64, decimal, from_base64};
use crate::digest::Digest;

/// The longest origin in bytes: an ML-DSA-44 cosignature has one byte for the length of it.
pub const MAX_ORIGIN: usize = MAX_NAME;

/// The head of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// How many leaves the tree has; at most 2^63 - 1.
    pub size: u64,
    /// The tree's root (RFC 6962 §2.1).
    pub root: [u8; 32],
    /// Lines that the log added, without their newlines. Nobody audits them, and logs had better add none; they are kept
    /// because an Ed25519 signature covers them.
    pub extensions: Vec<String>,
}

/// The text is no checkpoint: its first line that is wrong, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotACheckpoint(pub usize);

impl fmt::Display for NotACheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("line 1 of the checkpoint is no origin of 1 to 255 bytes"),
            2 => f.write_str("line 2 of the checkpoint is no tree size in decimal without leading zeros"),
            3 => f.write_str("line 3 of the checkpoint is no root of 32 bytes in canonical base64"),
            line => write!(f, "line {line} of the checkpoint is empty or has no end"),
        }
    }
}

impl std::error::Error for NotACheckpoint {}

impl Checkpoint {
    /// Reads a note's text.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, NotACheckpoint> {
        let count = text.split('\n').count();
        let mut lines = text.strip_suffix('\n').ok_or(NotACheckpoint(count))?.split('\n');
        let origin = lines.next().filter(|line| is_origin(line)).ok_or(NotACheckpoint(1))?;
        let size = lines.next().and_then(decimal).ok_or(NotACheckpoint(2))?;
        let root = lines.next().and_then(from_base64).and_then(|root| root.try_into().ok()).ok_or(NotACheckpoint(3))?;
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        match extensions.iter().position(|line| !is_line(line)) {
            Some(place) => Err(NotACheckpoint(place + 4)),
            None => Ok(Self { origin: origin.into(), size, root, extensions }),
        }
    }

    /// In lower-case hex, what a witness's monitoring URL calls this log.
    #[must_use]
    pub fn origin_hash(origin: &str) -> String {
        Digest::of(origin.as_bytes()).to_string()
    }
}

/// Whether a log may have this origin: one line, not empty, at most [`MAX_ORIGIN`] bytes.
#[must_use]
pub fn is_origin(origin: &str) -> bool {
    is_line(origin) && origin.len() <= MAX_ORIGIN
}

fn is_line(line: &str) -> bool {
    !line.is_empty() && !line.bytes().any(|byte| byte < b' ')
}

/// The text, each line with its newline.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.size, base64(&self.root))?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the specification.
    const EXAMPLE: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn the_specifications_example_reads_and_prints_as_it_was() {
        let checkpoint = Checkpoint::parse(EXAMPLE).unwrap();
        assert_eq!((checkpoint.origin.as_str(), checkpoint.size), ("example.com/behind-the-sofa", 20_852_163));
        assert_eq!(checkpoint.root[..3], [0x0a, 0xc5, 0x18]);
        assert_eq!(checkpoint.to_string(), EXAMPLE);
        let extended = format!("{EXAMPLE}one more\n— and one\n");
        let checkpoint = Checkpoint::parse(&extended).unwrap();
        assert_eq!(checkpoint.extensions, ["one more", "— and one"]);
        assert_eq!(checkpoint.to_string(), extended);
    }

    #[test]
    fn the_first_wrong_line_is_told() {
        let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        for (line, bad) in [
            (1, String::new()),
            (1, format!("\n1\n{root}\n")),
            (1, format!("a\tb\n1\n{root}\n")),
            (1, format!("{}\n1\n{root}\n", "a".repeat(MAX_ORIGIN + 1))),
            (2, "a\n".into()),
            (2, format!("a\n01\n{root}\n")),
            (2, format!("a\n-1\n{root}\n")),
            (2, format!("a\n1 \n{root}\n")),
            (2, format!("a\n9223372036854775808\n{root}\n")),
            (3, "a\n1\n".into()),
            (3, format!("a\n1\n{}\n", &root[1..])),
            (3, format!("a\n1\n{}\n", root.replace("2I=", "2J="))),
            (3, format!("a\n1\n{root} \n")),
            (3, "a\n1\nAAAA\n".into()),
            (4, format!("a\n1\n{root}\n\n")),
            (5, format!("a\n1\n{root}\nx\n\n")),
            (4, format!("a\n1\n{root}\nx")),
            (3, format!("a\n1\n{root}")),
        ] {
            assert_eq!(Checkpoint::parse(&bad), Err(NotACheckpoint(line)), "{bad:?}");
        }
        assert!(Checkpoint::parse(&format!("{}\n0\n{root}\n", "a".repeat(MAX_ORIGIN))).is_ok());
    }
}
