//! Whether bytes are a Python pickle: a walk over its opcodes (CPython's `pickletools`), which runs nothing and remembers nothing.
//!
//! Protocols 0 and 1 have no mark at their start, and what follows the opcode STOP is never read, so neither end tells them. What does is
//! that the opcodes can be read up to STOP and leave a value. Text does not do that by chance.

/// How many opcodes are read at most. Whatever reads as opcodes for so long is a pickle, or pretends to be one.
const OPCODES: usize = 4_096;

/// Whether `bytes` read as a pickle of protocols 0 to 5.
pub(super) fn is_pickle(bytes: &[u8]) -> bool {
    if let [0x80, 0..=5, ..] = bytes {
        return true;
    }
    let mut rest = bytes;
    let mut depth = 0_usize;
    // How deep the stack was at each mark.
    let mut marks: Vec<usize> = Vec::new();
    for read in 0..OPCODES {
        let Some((opcode, after)) = rest.split_first() else { return false };
        rest = after;
        let Some(arguments) = arguments(*opcode, rest) else { return false };
        rest = &rest[arguments..];
        match effect(*opcode) {
            Effect::Stop => return depth > 0 && read > 0,
            Effect::Mark => marks.push(depth),
            Effect::ToMark(gives) => {
                let Some(below) = marks.pop() else { return false };
                depth = below + gives;
            }
            Effect::Takes(takes, gives) => {
                let Some(fewer) = depth.checked_sub(takes) else { return false };
                depth = fewer + gives;
            }
        }
    }
    true
}

enum Effect {
    Stop,
    Mark,
    /// Takes everything down to the last mark, gives so many.
    ToMark(usize),
    /// Takes so many values, gives so many.
    Takes(usize, usize),
}

fn effect(opcode: u8) -> Effect {
    match opcode {
        b'.' => Effect::Stop,
        b'(' => Effect::Mark,
        b't' | b'l' | b'd' | b'o' | b'i' | 0x91 => Effect::ToMark(1),
        b'1' | b'e' | b'u' | 0x90 => Effect::ToMark(0),
        b'0' => Effect::Takes(1, 0),
        b'2' => Effect::Takes(1, 2),
        b'a' | b'b' | b'R' | 0x81 | 0x86 | 0x93 => Effect::Takes(2, 1),
        b's' | 0x87 | 0x92 => Effect::Takes(3, 1),
        b'p' | b'q' | b'r' | 0x94 | 0x85 | b'Q' | 0x98 => Effect::Takes(1, 1),
        0x80 | 0x95 => Effect::Takes(0, 0),
        _ => Effect::Takes(0, 1),
    }
}

/// How many bytes of arguments an opcode has; `None` for what is no opcode, or whose arguments are not of their kind or run past the end.
fn arguments(opcode: u8, rest: &[u8]) -> Option<usize> {
    let line = |rest: &[u8]| memchr::memchr(b'\n', rest);
    let fits = |length: usize| (length <= rest.len()).then_some(length);
    let counted = |width: usize| {
        let length = rest.get(..width)?;
        let length = length.iter().rev().try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add(usize::from(*byte)))?;
        length.checked_add(width).and_then(fits)
    };
    let word =
        |line: &[u8]| !line.is_empty() && line.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'<' | b'>'));
    let number = |line: &[u8]| !line.is_empty() && line.iter().all(|byte| byte.is_ascii_digit() || b"+-.eELinfa".contains(byte));
    match opcode {
        b'.'
        | b'('
        | b')'
        | b'0'
        | b'1'
        | b'2'
        | b'N'
        | b'Q'
        | b'R'
        | b'a'
        | b'b'
        | b'd'
        | b'e'
        | b'l'
        | b'o'
        | b's'
        | b't'
        | b'u'
        | b']'
        | b'}'
        | 0x81
        | 0x85..=0x89
        | 0x8f..=0x94
        | 0x97
        | 0x98 => Some(0),
        b'I' | b'L' | b'F' | b'g' | b'p' => line(rest).filter(|end| number(&rest[..*end])).map(|end| end + 1),
        b'S' => line(rest).filter(|end| matches!(rest[..*end], [b'\'', .., b'\''] | [b'"', .., b'"'])).map(|end| end + 1),
        b'V' | b'P' => line(rest).map(|end| end + 1),
        b'c' | b'i' => {
            let first = line(rest).filter(|end| word(&rest[..*end]))?;
            let second = line(&rest[first + 1..]).filter(|end| word(&rest[first + 1..first + 1 + end]))?;
            Some(first + second + 2)
        }
        b'K' | b'h' | b'q' | 0x80 | 0x82 => fits(1),
        b'M' | 0x83 => fits(2),
        b'J' | b'j' | b'r' | 0x84 => fits(4),
        b'G' | 0x95 => fits(8),
        b'U' | b'C' | 0x8a | 0x8c => counted(1),
        b'T' | b'X' | b'B' | 0x8b => counted(4),
        0x8d | 0x8e | 0x96 => counted(8),
        _ => None,
    }
}
