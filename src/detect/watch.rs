//! Watching what callers ask and are told: families of evidence, each bet on, in bounds that honest callers taught.

mod bounds;
mod calibrate;
mod families;
mod near;
mod noise;
mod rows;
mod space;
mod state;
mod wealth;
