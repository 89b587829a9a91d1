//! Server-sent events (WHATWG HTML, section 9.2), split from a stream of bytes so that nothing of it is lost.
//!
//! The blocks put end to end are the very bytes that came. What is told of a block (its event and data) is what a
//! browser or a client library would read in it.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

/// The longest event block, unless another bound is given: 1 MiB; a whole answer of the responses API stands in its last event.
pub const BLOCK: usize = 1024 * 1024;

/// The comment in which the gateway gives its statement (`prove::stream`); a header and a trailer have the same name. No other may write it.
pub const STATEMENT: &str = "provenance-statement";

/// An event block is longer than the bound: the upstream broke the protocol (`infer.protocol`, 502, or the end of the stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an event of the stream is too long")
    }
}

impl std::error::Error for TooLong {}

/// Finds where event blocks end in bytes as they pass, and keeps none of them.
///
/// A block is its lines and the blank line behind them; a blank line more is a block of its own. A carriage return at the end of what
/// came waits for the byte after it, so that blocks are the same however the stream was cut.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Whether the line that is being looked at has nothing in it so far.
    blank: bool,
    /// After a carriage return that was the last byte: whether the line that it ends is blank.
    after_cr: Option<bool>,
    /// How much of a byte order mark has come; none once the stream has begun otherwise.
    mark: Option<usize>,
}

const BYTE_ORDER_MARK: &[u8; 3] = b"\xEF\xBB\xBF";

impl Ends {
    /// At the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { blank: true, after_cr: None, mark: Some(0) }
    }

    /// Whether the block has ended unless a line feed comes next.
    #[must_use]
    pub fn ended_by_return(&self) -> bool {
        self.after_cr == Some(true)
    }

    /// How many of `bytes` belong to the block that is being looked at, where that ends in them, which may be none; the rest is then to be
    /// asked for. `None` where it does not end, and all of `bytes` were looked at.
    pub fn next_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        if let (Some(ended), Some(first)) = (self.after_cr, bytes.first()) {
            self.after_cr = None;
            at = usize::from(*first == b'\n');
            if ended {
                return Some(at);
            }
        }
        while let Some(byte) = bytes.get(at) {
            if let Some(came) = self.mark {
                if *byte == BYTE_ORDER_MARK[came] {
                    self.mark = Some(came + 1).filter(|came| *came < BYTE_ORDER_MARK.len());
                    at += 1;
                    continue;
                }
                // What only began like one is the beginning of a line.
                (self.blank, self.mark) = (came == 0, None);
            }
            at += match byte {
                b'\n' => 1,
                b'\r' => match bytes.get(at + 1) {
                    Some(next) => 1 + usize::from(*next == b'\n'),
                    None => {
                        self.after_cr = Some(std::mem::replace(&mut self.blank, true));
                        return None;
                    }
                },
                _ => {
                    self.blank = false;
                    at += memchr::memchr2(b'\n', b'\r', &bytes[at..]).unwrap_or(bytes.len() - at);
                    continue;
                }
            };
            if std::mem::replace(&mut self.blank, true) {
                return Some(at);
            }
        }
        None
    }
}

impl Default for Ends {
    fn default() -> Self {
        Self::new()
    }
}

/// Splits a stream of bytes into event blocks, wherever its chunks begin and end.
#[derive(Debug)]
pub struct Splitter {
    buffer: BytesMut,
    most: usize,
    ends: Ends,
    /// How much of the buffer has been looked at.
    seen: usize,
    first: bool,
    too_long: bool,
}

impl Splitter {
    /// A splitter whose blocks have at most so many bytes, line ends included.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { buffer: BytesMut::new(), most, ends: Ends::new(), seen: 0, first: true, too_long: false }
    }

    /// Takes what came. [`Splitter::next_block`] is to be asked until it has no more before the next chunk, or chunks pile up.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// How many bytes wait to be split.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.len()
    }

    /// The next block that is whole, with the blank line that ends it. A carriage return at the end of what came waits for the byte
    /// after it (or [`Splitter::finish`]), so that blocks are the same however the stream was cut.
    ///
    /// # Errors
    /// [`TooLong`], again and again, once a block passes the bound.
    pub fn next_block(&mut self) -> Result<Option<Block>, TooLong> {
        if self.too_long {
            return Err(TooLong);
        }
        let end = self.ends.next_end(&self.buffer[self.seen..]).map(|more| self.seen + more);
        self.seen = self.buffer.len();
        self.too_long = end.unwrap_or(self.seen) > self.most;
        match end {
            _ if self.too_long => Err(TooLong),
            Some(end) => Ok(Some(self.take(end))),
            None => Ok(None),
        }
    }

    /// What is left when the stream has ended: a block that no blank line ended, which clients do not dispatch. Nothing where it ended well.
    #[must_use]
    pub fn finish(mut self) -> Option<Block> {
        (!self.buffer.is_empty()).then(|| self.take(self.buffer.len()))
    }

    fn take(&mut self, end: usize) -> Block {
        let raw = self.buffer.split_to(end).freeze();
        let start = if self.first && raw.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        (self.seen, self.first) = (0, false);
        Block { raw, start }
    }
}

impl Default for Splitter {
    fn default() -> Self {
        Self::new(BLOCK)
    }
}

/// An event of one line of data, with its type where it has one.
#[must_use]
pub fn event(kind: Option<&str>, data: &serde_json::Value) -> Bytes {
    let kind = kind.map(|kind| format!("event: {kind}\n")).unwrap_or_default();
    format!("{kind}data: {data}\n\n").into()
}

/// One event block: its lines and the blank line behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    raw: Bytes,
    /// Behind the byte order mark, where there is one.
    start: usize,
}

impl Block {
    /// Its bytes as they came.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Its bytes as they came.
    #[must_use]
    pub fn into_raw(self) -> Bytes {
        self.raw
    }

    /// The event's type; the last one holds where several are given.
    #[must_use]
    pub fn event(&self) -> Option<&[u8]> {
        self.lines().filter_map(|line| field(line.content, b"event")).last()
    }

    /// The event's data; several lines are joined by line feeds. `None` where there is no data line, as in a comment.
    #[must_use]
    pub fn data(&self) -> Option<Cow<'_, [u8]>> {
        let mut lines = self.lines().filter_map(|line| field(line.content, b"data"));
        let mut data = Cow::Borrowed(lines.next()?);
        for line in lines {
            let joined = data.to_mut();
            joined.push(b'\n');
            joined.extend_from_slice(line);
        }
        Some(data)
    }

    /// The data as a part of the buffer, where it stands in one line: to parse and edit it without a copy.
    #[must_use]
    pub fn data_line(&self) -> Option<Bytes> {
        match self.data()? {
            Cow::Borrowed(data) => Some(self.raw.slice_ref(data)),
            Cow::Owned(data) => Some(data.into()),
        }
    }

    /// The block with other data, and every other line as it was. A block without data stays as it is.
    #[must_use]
    pub fn with_data(&self, data: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(self.raw.len() + data.len());
        out.extend_from_slice(&self.raw[..self.start]);
        let mut written = false;
        for line in self.lines() {
            if field(line.content, b"data").is_none() {
                out.extend_from_slice(line.content);
                out.extend_from_slice(line.end);
            } else if !written {
                written = true;
                for part in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(part);
                    out.extend_from_slice(line.end);
                }
            }
        }
        out.freeze()
    }

    /// The block with a comment (`: ` and `text`, which holds no line end) before its first line, which ends as that line does. `None` for a
    /// block without data: clients dispatch it nowhere, and some break on it.
    #[must_use]
    pub fn with_comment(&self, text: &str) -> Option<Bytes> {
        self.data()?;
        let end = self.lines().next().map_or(&b""[..], |line| line.end);
        let end = if end.is_empty() { b"\n" } else { end };
        let (mark, lines) = self.raw.split_at(self.start);
        Some([mark, b": ", text.as_bytes(), end, lines].concat().into())
    }

    /// The block without the text of comments that begin with `name`. Their colon stays, so that every line and the block end where they did.
    #[must_use]
    pub fn without_comments(self, name: &str) -> Self {
        let named =
            |line: &Line<'_>| line.content.strip_prefix(b":").is_some_and(|text| text.trim_ascii_start().starts_with(name.as_bytes()));
        if memchr::memmem::find(&self.raw, name.as_bytes()).is_none() || !self.lines().any(|line| named(&line)) {
            return self;
        }
        let mut out = BytesMut::with_capacity(self.raw.len());
        out.extend_from_slice(&self.raw[..self.start]);
        for line in self.lines() {
            out.extend_from_slice(if named(&line) { b":" } else { line.content });
            out.extend_from_slice(line.end);
        }
        Self { raw: out.freeze(), start: self.start }
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut rest = &self.raw[self.start..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
            let (content, behind) = rest.split_at(length);
            let end = if behind.starts_with(b"\r\n") { 2 } else { behind.len().min(1) };
            let (end, behind) = behind.split_at(end);
            rest = behind;
            Some(Line { content, end })
        })
    }
}

struct Line<'b> {
    content: &'b [u8],
    end: &'b [u8],
}

/// The value of a line that sets this field: what is behind the colon and one space, or nothing where there is no colon.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let rest = line.strip_prefix(name)?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]], most: usize) -> Result<Vec<Block>, TooLong> {
        let mut splitter = Splitter::new(most);
        let mut blocks = Vec::new();
        for chunk in chunks {
            splitter.push(chunk);
            while let Some(block) = splitter.next_block()? {
                blocks.push(block);
            }
        }
        blocks.extend(splitter.finish());
        Ok(blocks)
    }

    fn read(stream: &[u8]) -> Vec<(Option<String>, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        split(&[stream], BLOCK).unwrap().iter().map(|block| (block.event().map(text), block.data().as_deref().map(text))).collect()
    }

    #[test]
    fn events_are_read_as_clients_read_them() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            read(b"data: {\"a\":1}\n\n: ping\n\nevent: message_start\ndata:x\ndata:  y\nid: 3\n\ndata\n\ndata: [DONE]\n\n"),
            [(None, some("{\"a\":1}")), (None, None), (some("message_start"), some("x\n y")), (None, some("")), (None, some("[DONE]")),]
        );
        assert_eq!(read(b"\xEF\xBB\xBFdata: x\r\n\r\ndatabase: y\r\rdata: z\r\r"), [(None, some("x")), (None, None), (None, some("z"))]);
        assert_eq!(read(b"data: x\n"), [(None, some("x"))]);
        assert_eq!(read(b""), []);
    }

    #[test]
    fn a_block_comes_out_as_soon_as_its_blank_line_is_there() {
        let mut splitter = Splitter::default();
        splitter.push(b"data: x\n");
        assert_eq!(splitter.next_block(), Ok(None));
        splitter.push(b"\nda");
        assert_eq!(splitter.next_block().unwrap().unwrap().raw(), "data: x\n\n");
        assert_eq!(splitter.next_block(), Ok(None));
    }

    #[test]
    fn a_block_may_have_as_many_bytes_as_the_bound_and_no_more() {
        assert_eq!(split(&[b"data: 12\n\n", b"data: 34\n\n"], 10).unwrap().len(), 2);
        assert_eq!(split(&[b"data: 123\n\n"], 10), Err(TooLong));
        assert_eq!(split(&[b"data: 12", b"345"], 10), Err(TooLong));
        assert_eq!(split(&[b"\n\n\n\n\n\n\n\n\n\n\n\n"], 10).unwrap().len(), 12);
    }

    #[test]
    fn data_is_replaced_and_the_other_lines_stay() {
        let blocks = split(&[b"\xEF\xBB\xBFevent: e\r\ndata: x\r\n: c\r\ndata: y\r\n\r\n", b": ping\n\n"], BLOCK).unwrap();
        assert_eq!(&blocks[0].with_data(b"{}")[..], b"\xEF\xBB\xBFevent: e\r\ndata: {}\r\n: c\r\n\r\n");
        assert_eq!(&blocks[0].with_data(b"{\n}")[..], b"\xEF\xBB\xBFevent: e\r\ndata: {\r\ndata: }\r\n: c\r\n\r\n");
        assert_eq!(&blocks[1].with_data(b"{}")[..], b": ping\n\n");
    }

    #[test]
    fn a_comment_stands_before_the_first_line_and_ends_as_it_does() {
        let with = |stream: &'static [u8]| split(&[stream], BLOCK).unwrap()[0].with_comment("a=b");
        assert_eq!(with(b"data: [DONE]\n\n").unwrap(), ": a=b\ndata: [DONE]\n\n");
        assert_eq!(with(b"event: e\r\ndata: x\r\n\r\n").unwrap(), ": a=b\r\nevent: e\r\ndata: x\r\n\r\n");
        assert_eq!(with(b"data: x\r\r").unwrap(), ": a=b\rdata: x\r\r");
        assert_eq!(with(b"data: x").unwrap(), ": a=b\ndata: x");
        assert_eq!(with(b"\xEF\xBB\xBFdata: x\n\n").unwrap(), b"\xEF\xBB\xBF: a=b\ndata: x\n\n"[..]);
        assert_eq!((with(b": ping\n\n"), with(b"\n"), with(b"event: e\n\n")), (None, None, None));
    }

    #[test]
    fn of_comments_of_a_name_the_colon_is_left_and_every_other_line_as_it_was() {
        let without = |stream: &'static [u8]| split(&[stream], BLOCK).unwrap().remove(0).without_comments("a=").into_raw();
        for stream in [&b"data: : a=b\n\n"[..], b": b\ndata: a=b\n\n", b"data: x\r\n: xa=b\r\n\r\n", b"a=b\n\n"] {
            assert_eq!(without(stream), stream);
        }
        assert_eq!(without(b": a=b\n\n"), ":\n\n");
        assert_eq!(without(b": a=b"), ":");
        assert_eq!(without(b"data: x\r:a=b\n: \ta=c\r\n: d\n\n"), "data: x\r:\n:\r\n: d\n\n");
        assert_eq!(without(b"\xEF\xBB\xBF: a=b\ndata: x\n\n"), b"\xEF\xBB\xBF:\ndata: x\n\n"[..]);
    }

    proptest! {
        #[test]
        fn blocks_end_to_end_are_what_came_however_it_was_cut(
            stream in "(\u{FEFF}|data: ?|event:|:|[a-zé]|\r|\n|\r\n|\n\n|\r\n\r\n){0,40}",
            cuts in proptest::collection::vec(0_usize..200, 0..12),
        ) {
            let stream = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).chain([0, stream.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let blocks = split(&chunks, BLOCK).unwrap();
            prop_assert_eq!(blocks.iter().flat_map(|block| block.raw().to_vec()).collect::<Vec<u8>>(), stream);
            let bytewise: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&blocks, &split(&bytewise, BLOCK).unwrap());
            prop_assert_eq!(&blocks, &split(&[stream], BLOCK).unwrap());
        }
    }
}
