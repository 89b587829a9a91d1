//! What the gateway and a worker say to each other, each read by the other side's own code over a socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::fuzz::worker;
use portcullis_fuzz::{seed, seeds, within};

/// What the worker's side sets aside for a call whose length is only claimed (256 MiB of pages that nobody touches), and a little.
const CALL: usize = 264 << 20;

/// What the gateway's side may set aside: a frame without tensors, what is read ahead, and what is read of it.
const ANSWER: usize = 8 << 20;

fuzz_target!(init: seeds(made), |data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let places: &[usize] = match mode >> 4 {
        0 => &[0],
        1 => &[1],
        2 => &[2],
        3 => &[2, 0, 1],
        4 => &[],
        _ => &[0, 1, 2],
    };
    match mode % 4 {
        0 => within(ANSWER, || worker::starts(rest)),
        1 => within(ANSWER, || worker::answers(places, rest)),
        2 => within(ANSWER, || worker::greets(usize::from(mode >> 4), rest)),
        _ => within(CALL, || worker::calls(rest)),
    }
});

fn made() -> Vec<Vec<u8>> {
    let [walls, signature, answer, call] = worker::bodies();
    let reason = [&1_u64.to_le_bytes()[..], &7_u32.to_le_bytes(), b"because"].concat();
    // Engine 1, no walls, process 1, memory, room, no library, one file; no options; its name and its length.
    let numbers = [1_u64, 0, 1, 1 << 30, 1 << 20, 0, 1].map(u64::to_le_bytes).concat();
    let greeting = [&numbers[..], &0_u32.to_le_bytes(), &5_u32.to_le_bytes(), b"model", &5_u64.to_le_bytes()].concat();
    vec![
        seed(0, [worker::frame(2, 0, &walls), worker::frame(3, 0, &signature)].concat()),
        seed(0, worker::frame(4, 0, &reason)),
        seed(1 | 0x50, worker::frame(6, 7, &answer)),
        seed(1, worker::frame(7, 7, &reason)),
        seed(2 | 0x20, &greeting),
        seed(2 | 0x10, &numbers),
        seed(3, [worker::frame(5, 1, &call), worker::frame(5, 2, &call)].concat()),
    ]
}
