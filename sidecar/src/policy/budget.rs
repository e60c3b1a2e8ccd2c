//! How many tries of what may have been processed one caller may make to one service.
//!
//! A share of the requests of the last 10 s, and a floor so that a caller of few requests gets a retry at all. As in
//! Finagle's `RetryBudget`, whose deposits expire after 10 s and whose floor is a reserve over the same time: a service that
//! fails for everybody gets at most that much more load.

use std::time::{Duration, Instant};

use outrigger_proto::model::RetryBudget;

use super::window::{Counter, Origin, stretch};

/// How long a request counts.
pub const WINDOW: Duration = Duration::from_secs(10);

/// One caller's tries to one service.
#[derive(Debug)]
pub struct Budget {
    origin: Origin,
    requests: Counter,
    spent: Counter,
}

impl Budget {
    /// Nothing requested, nothing spent.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            origin: Origin::new(now),
            requests: Counter::default(),
            spent: Counter::default(),
        }
    }

    /// A request begins.
    pub fn request(&self, now: Instant) {
        self.requests.add(self.stretch(now));
    }

    /// Takes a token for one more try; false when there is none.
    pub fn take(&self, now: Instant, limit: &RetryBudget) -> bool {
        let at = self.stretch(now);
        // Spent first and looked at after: of two that come at once neither sees a token that the other has.
        self.spent.add(at);
        if self.spent.sum(at) <= self.allowed(at, limit) {
            return true;
        }
        self.spent.undo(at);
        false
    }

    /// Tokens left.
    #[must_use]
    pub fn left(&self, now: Instant, limit: &RetryBudget) -> u64 {
        let at = self.stretch(now);
        self.allowed(at, limit).saturating_sub(self.spent.sum(at))
    }

    fn allowed(&self, at: u64, limit: &RetryBudget) -> u64 {
        let share = self.requests.sum(at).saturating_mul(u64::from(limit.percent)) / 100;
        share.saturating_add(u64::from(limit.min_per_second) * WINDOW.as_secs())
    }

    fn stretch(&self, now: Instant) -> u64 {
        stretch(self.origin.millis(now), WINDOW)
    }
}
