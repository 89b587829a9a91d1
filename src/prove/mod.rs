//! The stop `prove`.
