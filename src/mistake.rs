//! A mistake in a policy file, told so that a person can mend it: where, what is wrong, what would be right.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

pub mod keys;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file it is in; filled by `config`, which knows which file it reads, where the part that found it does not.
    pub file: Option<PathBuf>,
    /// Where in the file's text, in bytes; `config` turns it into a line.
    pub span: Option<Range<usize>>,
    /// Its line and column, where it is in another file than the one being read.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what would be right.
    pub what: String,
    /// Whether it is no more than that a file is not here, or may not be read by whoever looks. Where policies are checked, keys and
    /// certificates rarely are.
    pub absent: bool,
}

impl Mistake {
    /// A mistake at `span` of the file that is being read.
    #[must_use]
    pub fn at(span: Range<usize>, what: impl Into<String>) -> Self {
        Self { file: None, span: Some(span), place: None, what: what.into(), absent: false }
    }

    /// A mistake of the file as a whole, or one whose place is not known. Where its text begins with the whole name of a key, as
    /// `answer.top`, it is told at that key, if the file has it.
    #[must_use]
    pub fn of_file(what: impl Into<String>) -> Self {
        Self { file: None, span: None, place: None, what: what.into(), absent: false }
    }

    /// The same mistake, in another file than the one being read.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// The same mistake, at this line and column of that file.
    #[must_use]
    pub fn on_line(mut self, place: Option<(usize, usize)>) -> Self {
        self.place = place;
        self
    }

    /// The same mistake, of a file that could not be opened, and why.
    #[must_use]
    pub fn unopened(mut self, error: &io::Error) -> Self {
        self.absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
        self
    }
}

impl Mistake {
    /// What the TOML parser or serde found, with the nearest known key where one was misspelt.
    #[must_use]
    pub fn of_toml(error: &toml::de::Error) -> Self {
        Self { file: None, span: error.span(), place: None, what: with_nearest(error.message()), absent: false }
    }

    /// `FILE:LINE:COLUMN: what`, where `text` is the file's content.
    #[must_use]
    pub fn located(&self, file: &std::path::Path, text: &str) -> String {
        let place = match (&self.file, &self.span) {
            (Some(_), _) => self.place,
            (None, Some(span)) => Some(place(text, span.start)),
            (None, None) => {
                let key = self.what.split(' ').next().filter(|word| word.contains('.'));
                key.and_then(|key| keys::place(text, key)).map(|span| place(text, span.start))
            }
        };
        let file = self.file.as_deref().unwrap_or(file).display();
        match place {
            Some((line, column)) => format!("{file}:{line}:{column}: {}", self.what),
            None => format!("{file}: {}", self.what),
        }
    }
}

/// The line and column at `offset` of `text`, from 1.
#[must_use]
pub fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1)
}

/// What the standard library says of a text that is no address and port: a host's name, for instance.
const NO_ADDRESS: &str = "invalid socket address syntax";

/// serde says "unknown field `a`, expected one of `b`, `c`"; a person wants to hear which of them was meant.
fn with_nearest(message: &str) -> String {
    if message.trim_end() == NO_ADDRESS {
        return "an address is an IP address and a port, such as \"127.0.0.1:8443\", or \"[::]:8443\" for all that this machine has"
            .to_owned();
    }
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.trim_end().to_owned() };
    let Some((unknown, rest)) = rest.split_once('`') else { return message.to_owned() };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    match nearest(unknown, known.iter().copied()) {
        Some(nearest) => format!("unknown key `{unknown}`; did you mean `{nearest}`?"),
        None if known.is_empty() => format!("unknown key `{unknown}`; no keys are known here"),
        None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}

/// The one of `known` that `word` was probably meant to be.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Below this two words are no more alike than any two words.
    const ALIKE: f64 = 0.7;
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}: {}", file.display(), self.what),
            None => f.write_str(&self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its keys matter")]
    struct Keys {
        listen: Option<String>,
        max_body: Option<String>,
    }

    #[test]
    fn a_misspelt_key_is_told_with_its_line_and_the_nearest_one() {
        let text = "listen = \"a\"\n  max_bdy = \"1MiB\"\n";
        let mistake = Mistake::of_toml(&toml::from_str::<Keys>(text).unwrap_err());
        assert_eq!(mistake.located(Path::new("gateway.toml"), text), "gateway.toml:2:3: unknown key `max_bdy`; did you mean `max_body`?");
        let mistake = Mistake::of_toml(&toml::from_str::<Keys>("zzz = 1").unwrap_err());
        assert_eq!(mistake.what, "unknown key `zzz`; known here: listen, max_body");
    }

    #[test]
    fn what_is_no_address_is_told_with_one_that_is() {
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only its type matters")]
        struct Listens {
            listen: toml::Spanned<std::net::SocketAddr>,
        }
        for wrong in ["localhost:8443", "127.0.0.1", ":8443", "*:8443", "127.0.0.1:70000"] {
            let text = format!("listen = \"{wrong}\"");
            let told = Mistake::of_toml(&toml::from_str::<Listens>(&text).unwrap_err()).located(Path::new("gateway.toml"), &text);
            assert!(told.starts_with("gateway.toml:1:10: ") && told.contains("127.0.0.1:8443"), "{told}");
        }
    }
}
