//! A latency histogram with power-of-two buckets, one writer.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets: bucket `i` counts what took less than `2^i` µs; the last has no bound.
pub(super) const BUCKETS: usize = 28;

/// One writer's latencies.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// Merged latencies.
#[derive(Debug, Clone)]
pub struct HistogramSnapshot {
    /// Count per bucket, not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Sum of all latencies, nanoseconds.
    pub sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum_ns: 0,
        }
    }
}

impl Histogram {
    pub(super) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = (u64::BITS - micros.leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(index.min(BUCKETS - 1)) {
            bucket.store(bucket.load(Relaxed) + 1, Relaxed);
        }
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.store(self.sum_ns.load(Relaxed).wrapping_add(ns), Relaxed);
    }

    pub(super) fn merge(&self, into: &mut HistogramSnapshot) {
        for (from, to) in self.buckets.iter().zip(&mut into.buckets) {
            *to += from.load(Relaxed);
        }
        into.sum_ns = into.sum_ns.wrapping_add(self.sum_ns.load(Relaxed));
    }
}

impl HistogramSnapshot {
    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The upper bound of bucket `i`; none for the last.
    #[must_use]
    pub fn upper_bound(i: usize) -> Option<Duration> {
        (i + 1 < BUCKETS).then(|| Duration::from_micros(1 << i))
    }

    /// The upper bound of the bucket in which the share `q` (0 to 1) ends; zero when empty.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let count = self.count();
        if count == 0 {
            return Duration::ZERO;
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a count of requests fits f64 well enough for a quantile"
        )]
        let target = (count as f64 * q).ceil();
        let mut seen = 0u64;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            if seen as f64 >= target {
                return Duration::from_micros(1 << i.min(BUCKETS - 1));
            }
        }
        Duration::from_micros(1 << (BUCKETS - 1))
    }
}
