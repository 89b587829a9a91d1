//! Portcullis, a hardened gateway for inference: the map.
//!
//! It stands between applications and models. It knows who calls, decides what they may do, bounds how much, checks what
//! they send, watches for the theft of the model, gets the answer from a model server or from a model it runs itself
//! after verifying it, and leaves a signed record of what was answered by what.
//!
//! # The way of a request
//!
//! Nine folders, in the order of the alphabet, are the nine stops. Each takes the value that the stop before it made and
//! returns its own; the values have private fields, so that a request which skipped a check does not compile.
//!
//! | stop | value | what it does |
//! | --- | --- | --- |
//! | [`accept`] | [`accept::Peer`] | sockets, TLS, HTTP/1.1 and HTTP/2, strict framing, caps, deadlines |
//! | [`authenticate`] | [`authenticate::Caller`] | API keys, JWT, client certificates; strips identity that a client claims |
//! | [`authorize`] | [`authorize::Grant`] | names the target, judges it by Cedar, hands on the terms of every later stop |
//! | [`budget`] | [`budget::Permit`] | requests, tokens, calls in flight: reserved first, settled after |
//! | [`check`] | [`check::Input`] | the body within its cap, parsed once, held against schema and tensor contract |
//! | [`detect`] | [`detect::Cleared`] | what the input says of the one who sends it; with what care to answer |
//! | [`infer`] | [`infer::Answer`] | an upstream, or a verified model in this machine; shapes the answer |
//! | [`prove`] | [`prove::Receipt`] | a signed statement, written ahead before the answer leaves |
//! | [`record`] | [`record::Outcome`] | how it ended, counted once: metrics, spans, the security log |
//!
//! A folder uses only folders before it, and the leaves; a test reads the `use` lines and holds that.
//! [`pipeline`] is the whole way as one short function.
//!
//! # The house
//!
//! [`config`] compiles the policy folder into one immutable snapshot, [`reload`] replaces it whole or not at all,
//! [`error`] is the one exhaustive match from every way to fail to what a caller may read, [`serve`] opens and closes
//! everything in order, [`state`] keeps what is to outlive that, [`life`] tells what becomes of models, [`disk`] watches the files under them, [`across`] looks at callers together, [`admin`] is the operators' listener,
//! and [`cli`], [`keys`], [`logs`], [`models`], [`rollback`], [`witness`], [`mod@erase`] and [`demo`] are the commands.
//!
//! # The leaves
//!
//! They use nothing of the stops: [`clock`], [`digest`], [`event`], [`heavy`], [`mod@lines`], [`mistake`], [`mode`], [`outbound`], [`mod@say`], [`secret`], [`tlog`],
//! [`trail`], [`mod@unit`], [`verify`], which verifies a log offline, [`whole`], and [`wire`], which holds the formats that several stops read.
//!
//! # What holds everywhere
//!
//! * Closed when in doubt: no credential, no answer; a rule that cannot be evaluated denies; an unknown key stops the start.
//! * Every route is the same way, streaming or not, over HTTP or gRPC, to an upstream or in this process.
//! * Everything a stranger can fill is bounded, and full is an answer.
//! * The bytes that were checked are the bytes that are used.
//! * What was acknowledged is in the write-ahead file before the answer is released.
//! * No `unsafe` but in `infer/model/isolate.rs`, which raises the walls around a model's worker.

// Where nobody can be told, they panic: `say` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod accept;
pub mod authenticate;
pub mod authorize;
pub mod budget;
pub mod calibrate;
pub mod check;
pub mod detect;
pub mod infer;
pub mod prove;
pub mod record;

pub mod across;
pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod disk;
pub mod erase;
pub mod error;
pub mod exposure;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod keys;
pub mod life;
pub mod logs;
pub mod models;
pub mod pipeline;
pub mod reload;
pub mod rollback;
pub mod serve;
pub mod state;
pub mod witness;

pub mod clock;
pub mod digest;
pub mod event;
pub mod heavy;
pub mod lines;
pub mod mistake;
pub mod mode;
pub mod outbound;
pub mod say;
pub mod secret;
pub mod tlog;
pub mod trail;
pub mod unit;
pub mod verify;
pub mod whole;
pub mod wire;
