//! How many at a time, exact over all workers.

use super::atomic::{AtomicU32, Ordering::Relaxed};

/// Places in use.
#[derive(Debug)]
pub struct Places(AtomicU32);

impl Default for Places {
    fn default() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Places {
    /// Takes a place when fewer than `limit` are in use.
    pub fn take(&self, limit: u32) -> bool {
        let mut used = self.0.load(Relaxed);
        while used < limit {
            match self.0.compare_exchange_weak(used, used + 1, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
        false
    }

    /// Gives a place back that was taken.
    pub fn give_back(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Places in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.0.load(Relaxed)
    }
}
