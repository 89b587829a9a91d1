//! Server-sent events of an upstream, split into blocks: the same however the stream was cut, and no byte is lost.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use portcullis::wire::sse::{Block, Splitter};
use portcullis_fuzz::{seeds, within};

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let [cut, most, stream @ ..] = data else { return };
    let most = 16 * usize::from(*most);
    // Every byte may be a block, and all blocks of both readings are held at once.
    within(256 * data.len() + (1 << 16), || {
        let whole = split(stream, stream.len(), most);
        let pieces = split(stream, usize::from(*cut), most);
        let raw = |blocks: &[Block]| blocks.iter().map(|block| block.raw().clone()).collect::<Vec<Bytes>>();
        if let (Some(whole), Some(pieces)) = (&whole, &pieces) {
            assert_eq!(raw(whole), raw(pieces), "blocks depend on the cut");
        }
        assert_eq!(whole.is_some(), pieces.is_some(), "the bound depends on the cut");
        let Some(blocks) = whole else { return };
        assert_eq!(raw(&blocks).concat(), stream, "bytes are lost or added");
        for (place, block) in blocks.iter().enumerate() {
            assert!(block.raw().len() <= most);
            hold(block, place == 0);
        }
    });
});

/// The blocks of a stream that comes in pieces of `cut` bytes; none where one is too long.
fn split(stream: &[u8], cut: usize, most: usize) -> Option<Vec<Block>> {
    let (mut splitter, mut blocks) = (Splitter::new(most), Vec::new());
    for chunk in stream.chunks(cut.max(1)) {
        splitter.push(chunk);
        while let Some(block) = splitter.next_block().ok()? {
            blocks.push(block);
        }
    }
    blocks.extend(splitter.finish());
    Some(blocks)
}

/// A block with other data has those data and the same type. A byte order mark has its meaning before the first one alone.
fn hold(block: &Block, first: bool) {
    let again = |bytes: Bytes| alone(&bytes, first);
    let _ = block.event();
    assert_eq!(block.data().as_deref(), block.data_line().as_deref());
    let Some(other) = again(block.with_data(b"{\"a\":1}")) else { return };
    assert_eq!(other.data().is_some(), block.data().is_some());
    if let Some(data) = other.data() {
        assert_eq!(&data[..], b"{\"a\":1}");
    }
    assert_eq!(other.event(), block.event());
    if let Some(commented) = block.with_comment("x").and_then(again) {
        assert_eq!((commented.data(), commented.event()), (block.data(), block.event()));
    }
}

/// The block that these bytes are, at the beginning of a stream or behind an empty one.
fn alone(bytes: &[u8], first: bool) -> Option<Block> {
    let mut splitter = Splitter::new(usize::MAX);
    if !first {
        splitter.push(b"\n");
        splitter.next_block().expect("no bound").expect("an empty block");
    }
    splitter.push(bytes);
    splitter.next_block().expect("no bound").or_else(|| splitter.finish())
}

fn made() -> Vec<Vec<u8>> {
    let streams: [&[u8]; 6] = [
        b"data: {\"a\":1}\n\ndata: [DONE]\n\n",
        b"event: message_start\r\ndata: {}\r\ndata: x\r\n\r\n: comment\r\n\r\n",
        b"\xef\xbb\xbfid: 1\rdata\r\rretry: 5\r\r",
        b"\xef\xbbdata: a\n\r\n\r\r\ndata: b",
        b"event: a\nevent: b\ndata:c\ndata:  d\n\n",
        b"\n\n\r\r\n\ndata: \xff\n\n",
    ];
    streams.iter().map(|stream| [&[5, 64], *stream].concat()).collect()
}
