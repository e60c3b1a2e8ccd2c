//! When a row of outcomes is too bad: the criteria that a breaker and an ejection share.

use std::fmt;
use std::time::Duration;

use outrigger_proto::model::Trip;

use super::atomic::{AtomicU32, Ordering::Relaxed};
use super::window::{Counter, stretch};

/// What one try told about who answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The outcome is among the failures.
    pub failed: bool,
    /// To the head of the answer.
    pub took: Duration,
}

/// Why it was too bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// So many failures in a row.
    Row(u32),
    /// So many failures, percent, of so many.
    Rate(u64, u64),
    /// So many slow answers, percent, of so many.
    Slow(u64, u64),
    /// A probe failed.
    Probe,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(n) => write!(f, "{n} failures in a row"),
            Self::Rate(percent, of) => write!(f, "{percent} % of {of} requests failed"),
            Self::Slow(percent, of) => write!(f, "{percent} % of {of} answers were slow"),
            Self::Probe => f.write_str("a probe failed"),
        }
    }
}

/// The outcomes lately.
#[derive(Debug)]
pub struct Tally {
    row: AtomicU32,
    all: Counter,
    failed: Counter,
    slow: Counter,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            row: AtomicU32::new(0),
            all: Counter::default(),
            failed: Counter::default(),
            slow: Counter::default(),
        }
    }
}

impl Tally {
    /// Takes in one outcome at `millis`; the cause, when it is one too many.
    pub fn note(&self, millis: u64, trip: &Trip, sample: Sample) -> Option<Cause> {
        let row = self.row(trip, sample.failed);
        // Nobody asks for a rate: no more to count.
        let (rated, timed) = (trip.rate_percent > 0, trip.slow_percent > 0);
        if !rated && !timed {
            return row;
        }
        let at = stretch(millis, trip.window);
        self.all.add(at);
        let slow = timed && trip.slow.is_some_and(|limit| sample.took > limit);
        if rated && sample.failed {
            self.failed.add(at);
        }
        if slow {
            self.slow.add(at);
        }
        let share = |counter: &Counter, most: u32| {
            let all = self.all.sum(at);
            let percent = counter.sum(at).min(all) * 100 / all.max(1);
            (all >= u64::from(trip.min_requests) && percent >= u64::from(most)).then_some((percent, all))
        };
        let failing = (rated && sample.failed)
            .then(|| share(&self.failed, trip.rate_percent))
            .flatten();
        let slowing = slow.then(|| share(&self.slow, trip.slow_percent)).flatten();
        row.or(failing.map(|(percent, of)| Cause::Rate(percent, of)))
            .or(slowing.map(|(percent, of)| Cause::Slow(percent, of)))
    }

    fn row(&self, trip: &Trip, failed: bool) -> Option<Cause> {
        if !failed {
            // Most requests are well and write nothing here.
            if self.row.load(Relaxed) != 0 {
                self.row.store(0, Relaxed);
            }
            return None;
        }
        let row = self.row.fetch_add(1, Relaxed).saturating_add(1);
        (trip.consecutive > 0 && row >= trip.consecutive).then_some(Cause::Row(row))
    }

    /// Begins anew.
    pub fn clear(&self) {
        self.row.store(0, Relaxed);
        [&self.all, &self.failed, &self.slow]
            .into_iter()
            .for_each(Counter::clear);
    }
}
