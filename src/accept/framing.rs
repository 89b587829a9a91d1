//! The strict reading of HTTP/1.1 bytes that the HTTP library, which forgives more, reads after it (RFC 9112).
//!
//! It follows the framing of each message on a connection and nothing else: where lines end, where the head ends, how
//! long the body is. It does not judge names, paths or hosts; `head` does, with the library's parse. The two must never
//! differ on where a message ends; where this reading sees two answers there is no message.

/// The place of the first byte that is not strict HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) usize);

/// Where a connection is in the message it carries.
#[derive(Debug)]
pub(super) struct Framing {
    at: At,
    /// What the head has told so far; unused in a body.
    told: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first byte of a request line; true once an empty line was skipped (RFC 9112 §2.2 allows one).
    Start(bool),
    /// Inside that empty line.
    StartLf,
    /// In the request line.
    Line,
    /// At the first byte of a header line, or of the empty line that ends the head.
    NameStart,
    /// In a header's name.
    Name,
    /// In a header's value.
    Value,
    /// After a CR, where only LF may stand; what follows it.
    Lf(After),
    /// In a body of known length: how much is left.
    Sized(u64),
    /// In a chunk's size: the digits and their value so far.
    Size(u8, u64),
    /// In a chunk's extension, which has tokens alone; true where one must begin; how long it is.
    Extension(bool, u16),
    /// In a chunk: how much is left.
    Chunk(u64),
    /// After a chunk, where CR must stand.
    ChunkCr,
    /// At the first byte of a trailer line, or of the empty line that ends the message.
    TrailerStart,
    /// In a trailer line.
    Trailer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Line,
    Header,
    Head,
    Size(u64),
    Chunk,
    Trailer,
    Trailers,
}

#[derive(Debug, Default)]
struct Told {
    /// The last bytes of the request line, to know the version.
    tail: [u8; 8],
    name: Short<17>,
    value: Short<20>,
    length: Option<u64>,
    chunked: bool,
}

impl Told {
    /// Takes note of more of the request line.
    fn line(&mut self, more: &[u8]) {
        let last = more.len().min(self.tail.len());
        self.tail.rotate_left(last);
        let from = self.tail.len() - last;
        self.tail[from..].copy_from_slice(&more[more.len() - last..]);
    }
}

/// The first `N` bytes of something, in lower case, and how long it is.
#[derive(Clone, Copy, Debug)]
struct Short<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Self {
        Self { bytes: [0; N], length: 0 }
    }
}

impl<const N: usize> Short<N> {
    fn extend(&mut self, more: &[u8]) {
        let free = self.bytes.get_mut(self.length..).unwrap_or_default();
        for (slot, byte) in free.iter_mut().zip(more) {
            *slot = byte.to_ascii_lowercase();
        }
        self.length = self.length.saturating_add(more.len());
    }

    /// All of it, if it was no longer than `N`.
    fn whole(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

/// The longest chunk extension, in bytes; they are ignored and have no use here.
const MAX_EXTENSION: u16 = 256;

impl Framing {
    pub(super) fn new() -> Self {
        Self { at: At::Start(false), told: Told::default() }
    }

    /// Whether a head has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.at, At::StartLf | At::Line | At::NameStart | At::Name | At::Value | At::Lf(After::Line | After::Header | After::Head))
    }

    /// Whether no body has begun: before a head, or in one.
    pub(super) fn before_body(&self) -> bool {
        self.in_head() || matches!(self.at, At::Start(_))
    }

    /// Reads on.
    ///
    /// # Errors
    /// Where the first wrong byte stands in `bytes`; nothing may be read after it.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let mut at = 0;
        while at < bytes.len() {
            let left = (bytes.len() - at) as u64;
            match self.at {
                At::Sized(rest) if rest > left => {
                    self.at = At::Sized(rest - left);
                    return Ok(());
                }
                At::Sized(rest) => {
                    self.at = At::Start(false);
                    at += rest as usize;
                }
                At::Chunk(rest) if rest > left => {
                    self.at = At::Chunk(rest - left);
                    return Ok(());
                }
                At::Chunk(rest) => {
                    self.at = At::ChunkCr;
                    at += rest as usize;
                }
                // Most of a head: what neither ends its part of the line nor is wrong there, at once.
                At::Line => {
                    let run = run(&bytes[at..], |byte| matches!(byte, b' '..=b'~') && byte != b'#');
                    self.told.line(&bytes[at..at + run]);
                    at += run;
                    at += self.step(bytes, at)?;
                }
                At::Name => {
                    let run = run(&bytes[at..], token);
                    self.told.name.extend(&bytes[at..at + run]);
                    at += run;
                    at += self.step(bytes, at)?;
                }
                At::Value => {
                    let run = run(&bytes[at..], |byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
                    self.told.value.extend(&bytes[at..at + run]);
                    at += run;
                    at += self.step(bytes, at)?;
                }
                _ => at += self.step(bytes, at)?,
            }
        }
        Ok(())
    }

    /// Reads the byte at `at`, if there is one, and tells how many that was.
    fn step(&mut self, bytes: &[u8], at: usize) -> Result<usize, Wrong> {
        let Some(byte) = bytes.get(at) else { return Ok(0) };
        self.at = self.byte(*byte).ok_or(Wrong(at))?;
        Ok(1)
    }

    /// Where one byte outside a body leads; `None` if it may not stand here.
    fn byte(&mut self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::Start(false), b'\r') => At::StartLf,
            (At::StartLf, b'\n') => At::Start(true),
            (At::Start(_), b'A'..=b'Z' | b'a'..=b'z') => {
                self.told = Told::default();
                At::Line
            }
            // Every other byte that may stand in it was read with its run. A fragment is never sent (RFC 9112 §3.2), and the library
            // drops it unseen.
            (At::Line, b'\r') => At::Lf(After::Line),
            (At::NameStart, b'\r') => At::Lf(After::Head),
            // A line that begins with a blank goes on with the last one (obs-fold, RFC 9112 §5.2), or hides a header.
            (At::NameStart, _) if token(byte) => {
                (self.told.name, self.told.value) = (Short::default(), Short::default());
                self.told.name.extend(&[byte]);
                At::Name
            }
            (At::Name, b':') => At::Value,
            (At::Value, b'\r') => {
                self.header()?;
                At::Lf(After::Header)
            }
            (At::Lf(after), b'\n') => self.after(after)?,
            (At::Size(digits, size), _) if byte.is_ascii_hexdigit() && digits < 16 => {
                let digit = char::from(byte).to_digit(16)?;
                At::Size(digits + 1, (size << 4) | u64::from(digit))
            }
            (At::Size(1.., size), b'\r') => At::Lf(After::Size(size)),
            (At::Size(1.., size), b';') => {
                self.told.length = Some(size);
                At::Extension(true, 0)
            }
            (At::Extension(false, _), b'\r') => At::Lf(After::Size(self.told.length?)),
            (At::Extension(true, length), _) if token(byte) => At::Extension(false, length + 1),
            (At::Extension(false, length), b';') if length < MAX_EXTENSION => At::Extension(true, length + 1),
            // A quoted value (RFC 9112 §7.1.1) may hold what looks like the next extension; whether it is closed, and where the line ends then,
            // others tell otherwise. No client sends any.
            (At::Extension(false, length), b'=') if length < MAX_EXTENSION => At::Extension(true, length + 1),
            (At::Extension(false, length), _) if token(byte) && length < MAX_EXTENSION => At::Extension(false, length + 1),
            (At::ChunkCr, b'\r') => At::Lf(After::Chunk),
            (At::TrailerStart, b'\r') => At::Lf(After::Trailers),
            (At::TrailerStart, _) if token(byte) => At::Trailer,
            (At::Trailer, b'\r') => At::Lf(After::Trailer),
            (At::Trailer, b'\t' | b' '..=b'~' | 0x80..) => At::Trailer,
            _ => return None,
        })
    }

    /// Where the end of a line leads; `None` if the message that ends its head here is ambiguous.
    fn after(&mut self, after: After) -> Option<At> {
        Some(match after {
            After::Line | After::Header => At::NameStart,
            After::Head => match (self.told.chunked, self.told.length) {
                // Two lengths, or a coding that HTTP/1.0 does not know (RFC 9112 §6.1).
                (true, Some(_)) => return None,
                (true, None) if &self.told.tail != b"HTTP/1.1" => return None,
                (true, None) => At::Size(0, 0),
                (false, None | Some(0)) => At::Start(false),
                (false, Some(length)) => At::Sized(length),
            },
            After::Size(0) => At::TrailerStart,
            After::Size(size) => At::Chunk(size),
            After::Chunk => At::Size(0, 0),
            After::Trailer => At::TrailerStart,
            After::Trailers => At::Start(false),
        })
    }

    /// Takes note of a header that tells the length; `None` if it tells it twice or in a way that is not understood.
    fn header(&mut self) -> Option<()> {
        let name = self.told.name.whole().unwrap_or_default();
        if name == b"transfer-encoding" {
            if self.told.chunked || trimmed(self.told.value.whole()?) != b"chunked" {
                return None;
            }
            self.told.chunked = true;
        } else if name == b"content-length" {
            let digits = trimmed(self.told.value.whole()?);
            if self.told.length.is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return None;
            }
            self.told.length = Some(std::str::from_utf8(digits).ok()?.parse().ok()?);
        }
        Some(())
    }
}

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
fn token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let (mut table, mut byte, others) = ([false; 256], 0, b"!#$%&'*+-.^_`|~");
        while byte < 256 {
            table[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let mut at = 0;
        while at < others.len() {
            table[others[at] as usize] = true;
            at += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

/// How many bytes at the beginning are of a kind.
fn run(bytes: &[u8], kind: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|byte| !kind(*byte)).unwrap_or(bytes.len())
}

fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<At, Wrong> {
        let mut whole = Framing::new();
        let result = whole.read(bytes);
        // However the bytes are cut, the reading is the same.
        let mut cut = Framing::new();
        let each = bytes.iter().enumerate().try_for_each(|(at, byte)| cut.read(&[*byte]).map_err(|_| Wrong(at)));
        assert_eq!(result, each);
        result?;
        if !matches!(whole.at, At::Sized(0)) {
            assert_eq!(whole.at, cut.at);
        }
        Ok(whole.at)
    }

    #[test]
    fn honest_messages_follow_each_other() {
        let bytes = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\
            POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding:chunked\r\n\r\n3;a=b;c\r\nabc\r\n0\r\nx: y\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n";
        assert_eq!(read(bytes), Ok(At::Start(false)));
    }

    #[test]
    fn what_is_not_strict_is_refused() {
        let wrong: [&[u8]; 31] = [
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nHost: a\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\rb",
            b"GET / HTTP/1.1\r\nHost: a\0",
            b"GET / HTTP/1.1\r\n folded: a\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n",
            b"GET /#a HTTP/1.1\r\n",
            b"GET\t/ HTTP/1.1\r\n",
            b"GET /\x80 HTTP/1.1\r\n",
            b"\nGET",
            b"\r\n\r\nGET",
            b" GET",
            b"P / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
            b"P / HTTP/1.1\r\nContent-Length: +1\r\n",
            b"P / HTTP/1.1\r\nContent-Length: 1, 1\r\n",
            b"P / HTTP/1.1\r\nContent-Length: \r\n",
            b"P / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n",
            b"P / HTTP/1.1\r\nContent-Length: 0x1\r\n",
            b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            b"P / HTTP/1.1\r\nTransfer-Encoding: ,chunked\r\n",
            b"P / HTTP/1.1\r\nTransfer-Encoding: identity, chunked\r\n",
            b"P / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n",
            b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\x0b\r\n",
            b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            b"P / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"P / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"\x16\x03\x01",
            b"GET / HTTP/1.1\r\nA: b\x7f",
        ];
        for bytes in wrong {
            assert!(read(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn chunks_are_strict() {
        let head = b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for chunks in [
            &b"\r\n"[..],
            b"g",
            b"0x1\r\n",
            b"+1\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1\n",
            b"1\r\nab",
            b"1\r\na\n",
            b"1;\r\n",
            b"1; a\r\n",
            b"1;a\n",
            b"1;a\x01\r\n",
            b"1;a=\r\n",
            b"1;a==b\r\n",
            b"1;\"a\"\r\n",
            b"1;a=\"\r\n",
            b"1;a=\"b\"\r\n",
            b"1;a=b\"\r\n",
            b"10000000000000000",
            b"0\r\n a: b\r\n",
            b"0\r\na: b\n",
        ] {
            assert!(read(&[&head[..], chunks].concat()).is_err(), "{}", chunks.escape_ascii());
        }
    }

    #[test]
    fn an_extension_at_the_limit_passes_and_one_past_it_does_not() {
        let message =
            |length: usize| format!("P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0;{}\r\n\r\n", "a".repeat(length)).into_bytes();
        assert_eq!(read(&message(MAX_EXTENSION.into())), Ok(At::Start(false)));
        assert!(read(&message(usize::from(MAX_EXTENSION) + 1)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_no_cut_changes_it(bytes: Vec<u8>, text in "[A-Z a-z:0-9\r\n;/.]{0,200}") {
            let _ = read(&bytes);
            let _ = read(text.as_bytes());
        }
    }
}
