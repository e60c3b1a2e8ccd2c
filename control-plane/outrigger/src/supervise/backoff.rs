//! How long to wait before a restart: exponential with jitter, forgotten after a good while alive. Pure: no clock here.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A process that lived this long had not failed to start.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
/// So many quick exits in a row are called a crash loop.
const LOOP: u32 = 3;

/// The restarts of one process.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    quick_exits: u32,
}

impl Backoff {
    /// The wait before the next start of a process that lived for `alive`; `jitter` lies in 0..1.
    pub(crate) fn after(&mut self, alive: Duration, jitter: f64) -> Duration {
        if alive >= FORGIVEN_AFTER {
            self.quick_exits = 0;
        }
        let full = FIRST.saturating_mul(1 << self.quick_exits.min(16)).min(LONGEST);
        self.quick_exits = self.quick_exits.saturating_add(1);
        // Half fixed, half random: services that fell together do not come back in step.
        full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// Whether the process ends again and again soon after its start.
    pub(crate) fn crash_loop(&self) -> bool {
        self.quick_exits >= LOOP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_reset_after_a_long_life() {
        let mut backoff = Backoff::default();
        let short = Duration::from_millis(5);
        let waits: Vec<u128> = (0..9).map(|_| backoff.after(short, 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!(backoff.crash_loop());
        assert_eq!(backoff.after(Duration::from_secs(31), 1.0).as_millis(), 100);
        assert!(!backoff.crash_loop());
    }

    #[test]
    fn jitter_never_takes_more_than_half() {
        assert_eq!(Backoff::default().after(Duration::ZERO, 0.0).as_millis(), 50);
    }
}
