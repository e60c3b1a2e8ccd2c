//! Peak-EWMA: a latency that rises at once and falls slowly.
//!
//! As in Finagle's `p2c.PeakEwma`: a sample above the average replaces it, a sample below moves it by
//! the time that passed. The load of an endpoint is that latency times the requests it would have (`pool.rs`).

use std::time::{Duration, Instant};

/// Time in which an old latency fades to about a third.
const DECAY: Duration = Duration::from_secs(10);
/// Assumed before the first answer.
const INITIAL: Duration = Duration::from_millis(10);

/// One endpoint's latency as one caller saw it.
#[derive(Debug, Clone, Copy)]
pub struct PeakEwma {
    nanos: f64,
    at: Instant,
}

impl PeakEwma {
    /// Before the first answer.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            nanos: INITIAL.as_secs_f64() * 1e9,
            at: now,
        }
    }

    /// Takes in one answer's latency.
    pub fn observe(&mut self, now: Instant, took: Duration) {
        let sample = took.as_secs_f64() * 1e9;
        let faded = self.faded(now);
        self.nanos = if sample > self.nanos {
            sample
        } else {
            faded + sample * (1.0 - Self::keep(now.saturating_duration_since(self.at)))
        };
        self.at = now;
    }

    /// Counts a failed connection as an answer of `penalty`.
    pub fn penalize(&mut self, now: Instant, penalty: Duration) {
        self.observe(now, penalty);
    }

    /// What an answer takes now, in nanoseconds.
    #[must_use]
    pub fn latency(&self, now: Instant) -> f64 {
        self.faded(now)
    }

    fn faded(&self, now: Instant) -> f64 {
        self.nanos * Self::keep(now.saturating_duration_since(self.at))
    }

    fn keep(elapsed: Duration) -> f64 {
        if elapsed.is_zero() {
            1.0
        } else {
            (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_fade_with_time() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(start);
        ewma.observe(start, Duration::from_secs(1));
        let peak = ewma.latency(start);
        assert!(peak >= 0.9e9, "{peak}");
        let later = start + Duration::from_secs(10);
        let faded = ewma.latency(later);
        assert!(faded < peak * 0.4 && faded > peak * 0.3, "{faded}");
    }
}
