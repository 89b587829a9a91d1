//! Doors through which the fuzz targets (`fuzz/`) reach what is private. They are built with `--cfg fuzzing` alone, so that no release has them.
//!
//! A door hands bytes to the very code that reads a stranger's, and panics where something was accepted that should not have been.

pub use crate::accept::fuzz as accept;
pub use crate::infer::model::worker::fuzz as worker;
pub use crate::verify::fuzz as log;
