//! A mistake in a policy file, told so that a person can mend it: where, what is wrong, what would be right.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file it is in; filled by `config`, which knows which file it reads, where the part that found it does not.
    pub file: Option<PathBuf>,
    /// Where in the file's text, in bytes; `config` turns it into a line.
    pub span: Option<Range<usize>>,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl Mistake {
    /// A mistake at `span` of the file that is being read.
    #[must_use]
    pub fn at(span: Range<usize>, what: impl Into<String>) -> Self {
        Self { file: None, span: Some(span), what: what.into() }
    }

    /// A mistake of the file as a whole, or one whose place is not known.
    #[must_use]
    pub fn of_file(what: impl Into<String>) -> Self {
        Self { file: None, span: None, what: what.into() }
    }

    /// The same mistake, in another file than the one being read.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}: {}", file.display(), self.what),
            None => f.write_str(&self.what),
        }
    }
}
