//! One caller stops using an endpoint for a while.
//!
//! The state of an endpoint is one number: whether it is ejected, how often in a row, and until when. Time alone brings it
//! back. How many may be ejected is decided over all of them, by one worker at a time: another that comes at the same
//! moment leaves it be, and the endpoint's next failure asks again.

use std::time::{Duration, Instant};

use outrigger_proto::model::Outlier as Settings;

use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::trip::{Cause, Sample, Tally};
use super::window::Origin;

/// One endpoint as one caller sees it.
#[derive(Debug)]
pub struct Outlier {
    origin: Origin,
    state: AtomicU64,
    tally: Tally,
}

/// Lets one worker at a time count who is ejected.
#[derive(Debug)]
pub struct Turn(AtomicBool);

const EJECTED: u64 = 1 << 63;
const TIMES: u32 = 48;
const MILLIS: u64 = (1 << TIMES) - 1;

impl Outlier {
    /// One that nobody has used yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            origin: Origin::new(now),
            state: AtomicU64::new(0),
            tally: Tally::default(),
        }
    }

    /// Takes in one outcome; the cause, when the endpoint should be ejected for it.
    pub fn record(&self, now: Instant, settings: &Settings, sample: Sample) -> Option<Cause> {
        let trip = settings.trip.as_ref()?;
        // Requests that were on their way when it was ejected tell nothing new.
        if self.state.load(Ordering::Relaxed) & EJECTED != 0 {
            return None;
        }
        self.tally.note(self.origin.millis(now), trip, sample)
    }

    /// True while it is ejected.
    #[must_use]
    pub fn is_ejected(&self, now: Instant) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        state & EJECTED != 0 && self.origin.millis(now) < state & MILLIS
    }

    /// Ends an ejection whose time is over; true for the one who ended it.
    pub fn comes_back(&self, now: Instant) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        if state & EJECTED == 0 || self.origin.millis(now) < state & MILLIS {
            return false;
        }
        // Before outcomes count again: those from before the ejection are old.
        self.tally.clear();
        self.state
            .compare_exchange(state, state & !EJECTED, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Ends an ejection of an endpoint that has left; true when it was ejected.
    pub fn forget(&self) -> bool {
        self.state.fetch_and(!EJECTED, Ordering::Relaxed) & EJECTED != 0
    }

    /// Ejects it, and tells for how long: the time times the number of ejections in a row. One that was well for as long as
    /// it had been ejected begins at one again.
    fn eject(&self, now: Instant, settings: &Settings) -> Duration {
        let millis = self.origin.millis(now);
        let before = self.state.load(Ordering::Relaxed);
        let (times, ended) = (before >> TIMES & 0x7fff, before & MILLIS);
        let last = time(settings, times);
        let well_for = Duration::from_millis(millis.saturating_sub(ended));
        let times = if times > 0 && well_for < last { times + 1 } else { 1 };
        let lasts = time(settings, times);
        let until = millis
            .saturating_add(u64::try_from(lasts.as_millis()).unwrap_or(MILLIS))
            .min(MILLIS);
        self.state
            .store(EJECTED | times.min(0x7fff) << TIMES | until, Ordering::Relaxed);
        lasts
    }
}

fn time(settings: &Settings, times: u64) -> Duration {
    let times = u32::try_from(times).unwrap_or(u32::MAX);
    settings
        .ejection
        .saturating_mul(times)
        .min(settings.max_ejection.max(settings.ejection))
}

impl Default for Turn {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl Turn {
    /// Ejects `one` of `all` unless too many are ejected already; tells for how long. `back` hears of those whose time
    /// was over.
    pub fn eject<'a>(
        &self,
        now: Instant,
        settings: &Settings,
        one: &Outlier,
        all: impl ExactSizeIterator<Item = &'a Outlier> + Clone,
        mut back: impl FnMut(usize),
    ) -> Option<Duration> {
        // Acquire and release: the next one's turn sees what this one ejected.
        if self.0.swap(true, Ordering::Acquire) {
            return None;
        }
        for (i, other) in all.clone().enumerate() {
            if other.comes_back(now) {
                back(i);
            }
        }
        let ejected = all.clone().filter(|o| o.is_ejected(now)).count();
        let free = ejected < most(all.len(), settings.max_ejected_percent) && !one.is_ejected(now);
        let lasts = free.then(|| one.eject(now, settings));
        self.0.store(false, Ordering::Release);
        lasts
    }
}

/// How many of `total` may be ejected.
#[must_use]
pub fn most(total: usize, percent: u32) -> usize {
    total.saturating_mul(usize::try_from(percent.min(100)).unwrap_or(0)) / 100
}

/// Whether so few are usable that all are used, ejected or not.
#[must_use]
pub fn panics(total: usize, ejected: usize, percent: u32) -> bool {
    ejected > 0 && total.saturating_sub(ejected) * 100 < total.saturating_mul(usize::try_from(percent).unwrap_or(0))
}
