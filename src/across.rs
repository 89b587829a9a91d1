//! Looks across callers in the background: what many did together, of whom each showed too little to be told of.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;
use crate::detect::language::habits::SPAN;
use crate::pipeline::House;

/// How often.
pub const EVERY: Duration = Duration::from_secs(SPAN);

/// Looks at a span's end, one after the other, until the task is dropped.
pub async fn watch(house: Arc<House>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let looking = house.clone();
        let look = move || looking.detector.look_across(&looking.events, Moment::now());
        // Off the threads that answer. One that panicked has told nobody; the next begins anew.
        let _ = tokio::task::spawn_blocking(look).await;
    }
}
