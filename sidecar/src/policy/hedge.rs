//! When a second request is worth while: after the time that 95 of 100 answers took lately.
//!
//! A histogram of four buckets an octave whose counts are halved every 10 s, so that half a minute ago hardly matters. The
//! answer is the upper end of a bucket: at most a quarter too long.

use std::time::{Duration, Instant};

use super::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use super::window::Origin;

/// How long answers took lately.
#[derive(Debug)]
pub struct Latency {
    origin: Origin,
    /// The stretch of time for which the counts were halved last.
    halved: AtomicU64,
    buckets: [AtomicU32; BUCKETS],
}

const BUCKETS: usize = 100;
/// Counts are halved so often.
const HALF: Duration = Duration::from_secs(10);
/// Fewer answers tell nothing about the 95th of 100.
const ENOUGH: u64 = 20;

impl Latency {
    /// Nothing seen.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            origin: Origin::new(now),
            halved: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Takes in how long one answer took.
    pub fn record(&self, now: Instant, took: Duration) {
        self.decay(now);
        if let Some(bucket) = self.buckets.get(index(took)) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    /// The time that 95 of 100 answers took; none while too few were seen.
    #[must_use]
    pub fn p95(&self, now: Instant) -> Option<Duration> {
        self.decay(now);
        let counts = self.buckets.each_ref().map(|b| u64::from(b.load(Relaxed)));
        let all: u64 = counts.iter().sum();
        if all < ENOUGH {
            return None;
        }
        let mut seen = 0;
        let at = counts.iter().position(|n| {
            seen += n;
            seen * 100 >= all * 95
        })?;
        Some(upper(at))
    }

    fn decay(&self, now: Instant) {
        let stretch = self.origin.millis(now) / u64::try_from(HALF.as_millis()).unwrap_or(1);
        let before = self.halved.load(Relaxed);
        if before >= stretch || self.halved.compare_exchange(before, stretch, Relaxed, Relaxed).is_err() {
            return;
        }
        let by = u32::try_from(stretch - before).unwrap_or(u32::MAX);
        for bucket in &self.buckets {
            let n = bucket.load(Relaxed);
            if n > 0 {
                // What is counted meanwhile stays: only the part that goes is taken away.
                bucket.fetch_sub(n - n.checked_shr(by).unwrap_or(0), Relaxed);
            }
        }
    }
}

/// Four buckets an octave, from 4 µs.
fn index(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(4);
    let octave = 61 - micros.leading_zeros();
    let quarter = micros >> octave & 3;
    (usize::try_from(octave).unwrap_or(0) * 4 + usize::try_from(quarter).unwrap_or(0)).min(BUCKETS - 1)
}

fn upper(index: usize) -> Duration {
    let (octave, quarter) = (index / 4, index % 4);
    let quarter = u64::try_from(quarter).unwrap_or(0);
    Duration::from_micros((5 + quarter) << octave)
}
