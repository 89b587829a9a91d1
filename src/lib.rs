//! Portcullis, a hardened gateway for inference.

pub mod accept;
pub mod authenticate;
pub mod authorize;
pub mod budget;
pub mod check;
pub mod detect;
pub mod infer;
pub mod prove;
pub mod record;

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod error;
pub mod keys;
pub mod pipeline;
pub mod reload;
pub mod serve;

pub mod clock;
pub mod digest;
pub mod event;
pub mod mistake;
pub mod outbound;
pub mod secret;
pub mod trail;
pub mod unit;
pub mod wire;
