//! How many requests the app gets at a time: places, exact over all workers, and a limit that is found by watching how
//! long answers take.
//!
//! `gradient` is Gradient2 of Netflix's concurrency-limits: limit ← limit · g + √limit, where g is the long-term latency
//! times a tolerance by the present one, between ½ and 1. A long-term value creeps up while an app is overloaded for
//! long, so it is measured anew now and then as Envoy's adaptive concurrency filter does, with few requests in flight:
//! half of the limit (as BBRv2's ProbeRTT; Envoy's 3 would starve a large app), and only while the limit binds. `aimd`
//! is `AIMDLimit` of the same library: one more where all is well, a tenth less after a failure or lateness.
//!
//! Latency is the mean over a window. Whoever ends a window finds the next limit; the others go on meanwhile.

use std::time::Instant;

use outrigger_proto::model::{Admission, Limit};

use super::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// A window lasts at least so long, in microseconds.
const WINDOW: u64 = 100_000;
/// And has so many answers, unless these are rarer than one in a tenth of [`PATIENCE`].
const ANSWERS: u64 = 10;
/// Longest window with any answer; longest wait for requests to end before a measurement.
const PATIENCE: u64 = 1_000_000;
/// Latency up to so many times the long-term value is no reason to shrink.
const TOLERANCE: f64 = 1.25;
/// For `aimd`, later than so many times the long-term value is late.
const LATE: f64 = 1.5;
/// Windows between two measurements.
const ROUND: u32 = 50;
/// Windows before the next one when the last one found something new.
const SOON: u32 = 5;
/// States of [`Limiter::turn`] beyond counting: requests end before a measurement; it runs.
const DRAINING: u32 = u32::MAX - 1;
const MEASURING: u32 = u32::MAX;

/// Bits for the sum of a window's latencies, in microseconds: half a year.
const SUM: u32 = 44;

/// Places at the app.
#[derive(Debug)]
pub struct Limiter {
    began: Instant,
    used: AtomicU32,
    /// In force.
    limit: AtomicU32,
    /// Most places in use in this window.
    peak: AtomicU32,
    /// Answers of this window in the upper bits, the sum of their latencies in the lower.
    answers: AtomicU64,
    failures: AtomicU32,
    /// When the window may end, in microseconds.
    end: AtomicU64,
    /// Requests that began before do not count.
    since: AtomicU64,
    /// Windows since the last measurement, or what it does.
    turn: AtomicU32,
    /// The limit found, as bits of an `f64`.
    found: AtomicU64,
    /// The long-term latency in microseconds, as bits of an `f64`; 0: not known.
    usual: AtomicU64,
}

impl Limiter {
    /// Without anybody at the app.
    #[must_use]
    pub fn new(settings: &Admission, now: Instant) -> Self {
        let first = first(settings);
        Self {
            began: now,
            used: AtomicU32::new(0),
            limit: AtomicU32::new(first),
            peak: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            end: AtomicU64::new(WINDOW),
            since: AtomicU64::new(0),
            turn: AtomicU32::new(ROUND),
            found: AtomicU64::new(f64::from(first).to_bits()),
            usual: AtomicU64::new(0),
        }
    }

    /// Goes on under other settings, as near to where it is as they allow.
    pub fn set(&self, settings: &Admission) {
        let limit = match settings.limit {
            Limit::Fixed(n) => n,
            _ => self.limit.load(SeqCst).clamp(settings.min, settings.max),
        };
        self.turn.store(0, SeqCst);
        self.since.store(0, SeqCst);
        self.found.store(f64::from(limit).to_bits(), SeqCst);
        self.limit.store(limit, SeqCst);
    }

    /// Takes a place when one is free.
    pub fn take(&self) -> bool {
        let mut used = self.used.load(SeqCst);
        while used < self.limit.load(SeqCst) {
            match self.used.compare_exchange_weak(used, used + 1, SeqCst, SeqCst) {
                Ok(_) => {
                    if used + 1 > self.peak.load(SeqCst) {
                        self.peak.fetch_max(used + 1, SeqCst);
                    }
                    return true;
                }
                Err(now) => used = now,
            }
        }
        false
    }

    /// Takes a place beyond the limit.
    pub fn take_more(&self) {
        self.used.fetch_add(1, SeqCst);
    }

    /// Gives a place back that was taken.
    pub fn give_back(&self) {
        self.used.fetch_sub(1, SeqCst);
    }

    /// Places in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used.load(SeqCst)
    }

    /// Places at this moment.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.load(SeqCst)
    }

    /// The answer of a request that has its place since `began` has come; true when the limit may be another now.
    pub fn answered(&self, settings: &Admission, began: Instant, now: Instant, failed: bool) -> bool {
        if matches!(settings.limit, Limit::Fixed(_)) {
            return false;
        }
        let at = self.micros(now);
        let turn = self.turn.load(SeqCst);
        if turn == DRAINING {
            return self.drained(at);
        }
        if failed {
            // How long a failure takes says nothing of how long answers do.
            self.failures.fetch_add(1, SeqCst);
        } else if self.micros(began) >= self.since.load(SeqCst) {
            let took = u64::try_from(now.saturating_duration_since(began).as_micros()).unwrap_or(u64::MAX);
            self.answers.fetch_add(1 << SUM | took.clamp(1, 1 << 30), SeqCst);
        }
        let end = self.end.load(SeqCst);
        let answers = self.answers.load(SeqCst) >> SUM;
        let failures = u64::from(self.failures.load(SeqCst));
        if at < end || (answers + failures < ANSWERS && at < end + PATIENCE) {
            return false;
        }
        // Who moves the end has the window.
        if self.end.compare_exchange(end, at + WINDOW, SeqCst, SeqCst).is_err() {
            return false;
        }
        self.window(settings, turn, at);
        true
    }

    /// Begins to measure when as few are left as are wanted, or gives up.
    fn drained(&self, at: u64) -> bool {
        let end = self.end.load(SeqCst);
        let few = self.used() <= self.limit();
        if !few && at < end {
            return false;
        }
        if self.end.compare_exchange(end, at + WINDOW, SeqCst, SeqCst).is_err() {
            return false;
        }
        self.forget();
        self.since.store(at, SeqCst);
        if few {
            self.turn.store(MEASURING, SeqCst);
        } else {
            self.over(0);
        }
        !few
    }

    fn window(&self, settings: &Admission, turn: u32, at: u64) {
        let (peak, failures) = (self.peak.load(SeqCst), self.failures.load(SeqCst));
        let answers = self.answers.load(SeqCst);
        self.forget();
        let usual = f64::from_bits(self.usual.load(SeqCst));
        #[expect(clippy::cast_precision_loss, reason = "a mean needs no more than f64 has")]
        let mean = match answers >> SUM {
            0 => None,
            n => Some((answers & ((1 << SUM) - 1)) as f64 / n as f64),
        };
        if turn == MEASURING {
            let Some(mean) = mean else { return self.over(0) };
            // Upwards by steps: one odd measurement is not believed whole.
            let most = if usual > 0.0 { usual * 2.0 } else { mean };
            self.usual.store(mean.min(most).to_bits(), SeqCst);
            let news = mean < usual * 0.9 || mean > usual * 1.1;
            return self.over(if news { ROUND - SOON } else { 0 });
        }
        let found = f64::from_bits(self.found.load(SeqCst));
        let binds = peak >= self.limit();
        let mut slow = 1.0;
        if let Some(mean) = mean {
            let usual = match usual {
                none if none <= 0.0 => mean,
                // While the limit binds, what is slower may be slow because of the limit.
                usual if mean < usual => usual * 0.9 + mean * 0.1,
                usual if !binds => usual * 0.95 + mean * 0.05,
                usual => usual,
            };
            self.usual.store(usual.to_bits(), SeqCst);
            slow = mean / usual;
        }
        let next = match settings.limit {
            Limit::Aimd if failures > 0 || slow > LATE => found * 0.9,
            // Who does not use the half of it needs no more, and tells nothing of it.
            _ if f64::from(peak) * 2.0 < found => found,
            Limit::Aimd => found + 1.0,
            _ => {
                let gradient = (TOLERANCE / slow).clamp(0.5, 1.0);
                (found + found * gradient + found.sqrt()) / 2.0
            }
        };
        let next = next.clamp(f64::from(settings.min), f64::from(settings.max));
        self.found.store(next.to_bits(), SeqCst);
        // At the bottom and still slow: the long-term value may be that of better times.
        let step = if slow > TOLERANCE && next < f64::from(settings.min) * 1.5 {
            ROUND / SOON
        } else {
            1
        };
        let turn = turn.saturating_add(step).min(ROUND);
        if turn == ROUND && binds {
            self.limit
                .store(whole((next / 2.0).max(f64::from(settings.min))), SeqCst);
            self.end.store(at + PATIENCE, SeqCst);
            self.turn.store(DRAINING, SeqCst);
        } else {
            self.limit.store(whole(next), SeqCst);
            self.turn.store(turn, SeqCst);
        }
    }

    /// A measurement is over.
    fn over(&self, turn: u32) {
        self.limit.store(whole(f64::from_bits(self.found.load(SeqCst))), SeqCst);
        self.turn.store(turn, SeqCst);
    }

    fn forget(&self) {
        self.answers.store(0, SeqCst);
        self.failures.store(0, SeqCst);
        self.peak.store(self.used(), SeqCst);
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }
}

fn first(settings: &Admission) -> u32 {
    match settings.limit {
        Limit::Fixed(n) => n,
        _ => settings.initial.clamp(settings.min, settings.max),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is between the least and the largest limit, which are u32"
)]
fn whole(limit: f64) -> u32 {
    limit.round() as u32
}
