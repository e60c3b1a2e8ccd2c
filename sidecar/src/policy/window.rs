//! Counts over the time just gone, written by every worker.
//!
//! A ring of ten buckets. Each is one number: which stretch of time it counts, and how many. Whoever comes first in a
//! new stretch takes the bucket over; nobody waits for anybody.

use std::time::{Duration, Instant};

use super::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets of a window.
pub const BUCKETS: u64 = 10;

/// A moment as a number, so that it fits beside other things into an atomic.
#[derive(Debug, Clone, Copy)]
pub struct Origin(Instant);

impl Origin {
    /// Counts from `now` on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Milliseconds since the origin; 0 before it.
    #[must_use]
    pub fn millis(self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The stretch of time that `millis` falls into, of a window as long as `window`.
#[must_use]
pub fn stretch(millis: u64, window: Duration) -> u64 {
    let width = u64::try_from(window.as_millis()).unwrap_or(u64::MAX) / BUCKETS;
    millis / width.max(1)
}

/// Counts something over a window. The length is the caller's: with another one it begins anew.
#[derive(Debug)]
pub struct Counter {
    /// The stretch in the upper half, the count in the lower.
    buckets: [AtomicU64; BUCKETS as usize],
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counter {
    /// Counts one in `stretch`.
    pub fn add(&self, stretch: u64) {
        let tag = tag(stretch);
        if let Some(bucket) = self.bucket(stretch) {
            let mut seen = bucket.load(Relaxed);
            loop {
                let next = match seen >> 32 == tag {
                    true if seen & COUNT == COUNT => return,
                    true => seen + 1,
                    false => tag << 32 | 1,
                };
                match bucket.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                    Ok(_) => return,
                    Err(now) => seen = now,
                }
            }
        }
    }

    /// Takes back one that was counted in `stretch`.
    pub fn undo(&self, stretch: u64) {
        let tag = tag(stretch);
        if let Some(bucket) = self.bucket(stretch) {
            let mut seen = bucket.load(Relaxed);
            // Another stretch has the bucket by now: what was counted has gone with it.
            while seen >> 32 == tag && seen & COUNT > 0 {
                match bucket.compare_exchange_weak(seen, seen - 1, Relaxed, Relaxed) {
                    Ok(_) => return,
                    Err(now) => seen = now,
                }
            }
        }
    }

    /// How many in the window that ends with `stretch`.
    #[must_use]
    pub fn sum(&self, stretch: u64) -> u64 {
        let now = tag(stretch);
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Relaxed))
            .filter(|seen| now.wrapping_sub(seen >> 32) & COUNT < BUCKETS)
            .map(|seen| seen & COUNT)
            .sum()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for bucket in &self.buckets {
            if bucket.load(Relaxed) & COUNT != 0 {
                bucket.store(0, Relaxed);
            }
        }
    }

    fn bucket(&self, stretch: u64) -> Option<&AtomicU64> {
        self.buckets.get(usize::try_from(stretch % BUCKETS).unwrap_or(0))
    }
}

const COUNT: u64 = 0xffff_ffff;

fn tag(stretch: u64) -> u64 {
    stretch & COUNT
}
