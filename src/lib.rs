//! Portcullis, a hardened gateway for inference.

pub mod accept;
pub mod admin;
pub mod authenticate;
pub mod authorize;
pub mod budget;
pub mod check;
pub mod detect;
pub mod infer;
pub mod prove;
pub mod record;

pub mod clock;
pub mod digest;
pub mod event;
pub mod mistake;
pub mod outbound;
pub mod secret;
pub mod trail;
pub mod unit;
pub mod wire;
