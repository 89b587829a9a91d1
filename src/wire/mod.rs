//! The formats that several stops read and write: bodies, strict JSON, OpenAI, Anthropic, Open Inference Protocol
//! (JSON, binary tensors, gRPC) and server-sent events.
//!
//! Nothing here decides anything about a caller. What cannot be read is an error with a static reason.

pub mod anthropic;
pub mod asked;
pub mod body;
pub mod dialect;
pub mod grpc;
pub mod json;
pub mod oip;
pub mod openai;
pub mod read;
pub mod said;
pub mod shape;
pub mod sse;
pub mod tensor;

pub use asked::Asked;
pub use body::Body;
pub use dialect::Dialect;
pub use said::Said;
pub use shape::Shape;
