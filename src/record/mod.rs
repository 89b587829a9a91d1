//! The stop `record`.
