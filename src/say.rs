//! What commands tell: answers on standard output, and what stands beside them on standard error.
//!
//! A reader that has seen enough closes the pipe, which is no failure: nothing more is told, and the exit code says what it would have said.
//! Whatever else keeps a line from being written is an error, since half an answer reads like a whole one.

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, Stdout, Write};

/// What was to be told could not be written.
#[derive(Debug)]
pub struct Unsaid(io::Error);

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standard output: {}", self.0)
    }
}

impl std::error::Error for Unsaid {}

/// Tells a line, written as for `println!`. It is an expression of `Result<(), Unsaid>`.
macro_rules! say {
    ($($line:tt)*) => { $crate::say::line(format_args!($($line)*)) };
}
pub(crate) use say;

/// Tells a line beside the answer, written as for `eprintln!`.
macro_rules! aside {
    ($($line:tt)*) => { $crate::say::beside(format_args!($($line)*)) };
}
pub(crate) use aside;

/// Tells a line beside the answer. Where that cannot be, nobody can be told of it either, and what goes on goes on: a gateway whose standard
/// error is on a full disk is none that ends.
pub fn beside(line: fmt::Arguments<'_>) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Tells a line.
///
/// # Errors
/// When it cannot be written, though somebody reads.
pub fn line(line: fmt::Arguments<'_>) -> Result<(), Unsaid> {
    heard(write_line(line)).map(drop)
}

/// Tells a line that must not be lost.
///
/// # Errors
/// When it cannot be written, or nobody reads.
pub fn line_or_none(line: fmt::Arguments<'_>) -> Result<(), Unsaid> {
    write_line(line).map_err(Unsaid)
}

/// Tells these bytes as they are.
///
/// # Errors
/// When they cannot be written, though somebody reads.
pub fn bytes(bytes: &[u8]) -> Result<(), Unsaid> {
    let mut out = io::stdout().lock();
    heard(out.write_all(bytes).and_then(|()| out.flush())).map(drop)
}

// In one piece: whoever reads beside other writers has whole lines.
fn write_line(line: fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush())
}

/// Whether anybody reads on.
fn heard(written: io::Result<()>) -> Result<bool, Unsaid> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Unsaid(error)),
    }
}

/// Many lines, which are written in large pieces.
#[derive(Debug)]
pub struct Lines<W: Write = Stdout>(BufWriter<W>);

impl Default for Lines {
    fn default() -> Self {
        Self(BufWriter::new(io::stdout()))
    }
}

impl<W: Write> Lines<W> {
    /// Tells a line more. `false` once nobody reads any more.
    ///
    /// # Errors
    /// When lines cannot be written, though somebody reads.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<bool, Unsaid> {
        heard(writeln!(self.0, "{line}"))
    }

    /// Writes what was told and is not written yet: without it nothing is known of the last lines.
    ///
    /// # Errors
    /// As [`Lines::line`].
    pub fn flush(&mut self) -> Result<bool, Unsaid> {
        heard(self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure_and_all_else_is() {
        let told = |kind| {
            let mut lines = Lines(BufWriter::new(Broken(kind)));
            (lines.line("x".repeat(9_000)).ok(), Lines(BufWriter::new(Broken(kind))).line("x").ok(), lines.flush().ok())
        };
        assert_eq!(told(ErrorKind::BrokenPipe).0, Some(false));
        assert_eq!((told(ErrorKind::StorageFull).0, told(ErrorKind::StorageFull).1), (None, Some(true)));
        let mut lines = Lines(BufWriter::new(Broken(ErrorKind::StorageFull)));
        assert!(lines.line("x").is_ok_and(|heard| heard) && lines.flush().is_err());
    }
}
