//! The memory that all whole answers share. An answer takes its share before it is buffered and gives it back with its
//! last byte; when there is none left the request is refused, and the process lives.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Error;

/// What all buffered answers of the gateway may hold together, in bytes.
pub(super) const ALL: usize = 256 << 20;

/// The grain of a share, in bytes.
const GRAIN: usize = 4096;

/// The shared memory.
#[derive(Debug)]
pub(super) struct Memory(Arc<Semaphore>);

/// A part of it.
#[derive(Debug)]
pub(super) struct Share {
    permit: OwnedSemaphorePermit,
    of: Arc<Semaphore>,
}

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL / GRAIN)))
    }
}

impl Memory {
    /// A share of no bytes, which can grow.
    pub(super) fn share(&self) -> Result<Share, Error> {
        let permit = self.0.clone().try_acquire_many_owned(0).map_err(|_| FULL)?;
        Ok(Share { permit, of: self.0.clone() })
    }
}

const FULL: Error = Error::Unavailable("the memory for answers is full");

impl Share {
    /// Makes the share at least `bytes` long.
    ///
    /// # Errors
    /// There is not so much left.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Error> {
        let grains = bytes.div_ceil(GRAIN);
        let more = grains.saturating_sub(self.permit.num_permits());
        if more > 0 {
            let more = u32::try_from(more).map_err(|_| FULL)?;
            self.permit.merge(self.of.clone().try_acquire_many_owned(more).map_err(|_| FULL)?);
        }
        Ok(())
    }
}

impl Share {
    /// Makes it one of no bytes again.
    pub(super) fn give_back(&mut self) {
        drop(self.permit.split(self.permit.num_permits()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_can_be_taken_and_not_one_grain_more_and_it_comes_back() {
        let memory = Memory::default();
        let mut all = memory.share().unwrap();
        all.grow_to(ALL).unwrap();
        all.grow_to(10).unwrap();
        let mut more = memory.share().unwrap();
        more.grow_to(0).unwrap();
        assert_eq!(more.grow_to(1), Err(FULL));
        all.give_back();
        more.grow_to(1).unwrap();
        assert_eq!(all.grow_to(ALL), Err(FULL));
    }
}
