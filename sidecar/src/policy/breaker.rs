//! One caller stops calling a service, and finds out by a few requests when it may again.
//!
//! The whole state is one number, so that every change is one exchange of it and all workers see the same: what it is, how
//! often it opened in a row, a generation that grows with each change, and until when it is open or how many probes there
//! are. An outcome counts only for the generation in which its request was let through.

use std::time::{Duration, Instant};

use outrigger_proto::model::Breaker as Settings;

use super::atomic::{AtomicU64, Ordering::Relaxed};
use super::trip::{Cause, Sample, Tally};
use super::window::Origin;

/// The breaker of one caller and service.
#[derive(Debug)]
pub struct Breaker {
    origin: Origin,
    state: AtomicU64,
    tally: Tally,
}

/// The right to send one request, as the breaker gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// There is no breaker.
    Free,
    /// It is closed.
    Closed(u16),
    /// One of the few that find out whether the service is well.
    Probe(u16),
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It may; a change came with it when it is the first probe.
    Yes(Pass, Option<Change>),
    /// It may not, for about so long.
    No(Duration),
}

/// What became of the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// No request passes for so long.
    Opened(Cause, Duration),
    /// Probes are sent.
    Probing,
    /// All pass.
    Closed,
}

/// What the breaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All pass.
    Closed,
    /// None pass.
    Open,
    /// Probes are out.
    HalfOpen,
}

/// The state, unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    kind: Kind,
    /// Times that it opened without closing between.
    openings: u8,
    generation: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Closed,
    /// Until then, milliseconds.
    Open(u64),
    HalfOpen {
        /// Probes let through that were not given back.
        out: u8,
        /// Probes that were well.
        well: u8,
        /// Seconds at which it began, of 2^24.
        since: u32,
    },
}

const SECONDS: u32 = 0x00ff_ffff;
const MILLIS: u64 = (1 << 40) - 1;

impl Word {
    fn read(word: u64) -> Self {
        let payload = word & MILLIS;
        let byte = |shift: u32| u8::try_from(payload >> shift & 0xff).unwrap_or(0);
        Self {
            kind: match word >> 62 {
                1 => Kind::Open(payload),
                2 => Kind::HalfOpen {
                    out: byte(32),
                    well: byte(24),
                    since: u32::try_from(payload & u64::from(SECONDS)).unwrap_or(0),
                },
                _ => Kind::Closed,
            },
            openings: u8::try_from(word >> 56 & 0x3f).unwrap_or(0),
            generation: u16::try_from(word >> 40 & 0xffff).unwrap_or(0),
        }
    }

    fn pack(self) -> u64 {
        let (tag, payload) = match self.kind {
            Kind::Closed => (0, 0),
            Kind::Open(until) => (1, until.min(MILLIS)),
            Kind::HalfOpen { out, well, since } => (
                2,
                u64::from(out) << 32 | u64::from(well) << 24 | u64::from(since & SECONDS),
            ),
        };
        tag << 62 | u64::from(self.openings.min(0x3f)) << 56 | u64::from(self.generation) << 40 | payload
    }

    fn next(self, kind: Kind) -> Self {
        Self {
            kind,
            generation: self.generation.wrapping_add(1),
            ..self
        }
    }
}

impl Breaker {
    /// A closed one.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            origin: Origin::new(now),
            state: AtomicU64::new(0),
            tally: Tally::default(),
        }
    }

    /// What it is; an open one stays open until the first request after its time.
    #[must_use]
    pub fn state(&self) -> State {
        match Word::read(self.state.load(Relaxed)).kind {
            Kind::Closed => State::Closed,
            Kind::Open(_) => State::Open,
            Kind::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Asks for one request. What it gives has to come back by [`record`](Self::record) or [`abandon`](Self::abandon).
    pub fn admit(&self, now: Instant, settings: &Settings) -> Admitted {
        let millis = self.origin.millis(now);
        let seconds = u32::try_from((millis / 1000) & u64::from(SECONDS)).unwrap_or(0);
        let probes = u8::try_from(settings.probes.max(1)).unwrap_or(u8::MAX);
        let first = Kind::HalfOpen {
            out: 1,
            well: 0,
            since: seconds,
        };
        let mut seen = self.state.load(Relaxed);
        loop {
            let word = Word::read(seen);
            let (next, change) = match word.kind {
                Kind::Closed => return Admitted::Yes(Pass::Closed(word.generation), None),
                Kind::Open(until) if millis < until => {
                    return Admitted::No(Duration::from_millis(until - millis));
                }
                Kind::Open(_) => (word.next(first), Some(Change::Probing)),
                Kind::HalfOpen { out, well, since } if out < probes => {
                    let kind = Kind::HalfOpen {
                        out: out + 1,
                        well,
                        since,
                    };
                    (Word { kind, ..word }, None)
                }
                // A probe that never ends would keep everybody out: after the time that it was open for, others are sent.
                Kind::HalfOpen { since, .. } => {
                    let patience = cooldown(settings, word.openings).as_secs().saturating_add(1);
                    let waited = u64::from(seconds.wrapping_sub(since) & SECONDS);
                    if waited <= patience {
                        return Admitted::No(Duration::from_secs(patience - waited));
                    }
                    (word.next(first), None)
                }
            };
            match self.state.compare_exchange_weak(seen, next.pack(), Relaxed, Relaxed) {
                Ok(_) => return Admitted::Yes(Pass::Probe(next.generation), change),
                Err(now) => seen = now,
            }
        }
    }

    /// A request that was let through ended.
    pub fn record(&self, now: Instant, pass: Pass, settings: &Settings, sample: Sample) -> Option<Change> {
        let millis = self.origin.millis(now);
        match pass {
            Pass::Free => None,
            Pass::Closed(generation) => {
                let seen = self.state.load(Relaxed);
                let word = Word::read(seen);
                if word.kind != Kind::Closed || word.generation != generation {
                    return None;
                }
                let cause = self.tally.note(millis, &settings.trip, sample)?;
                self.open(seen, millis, settings, cause)
            }
            Pass::Probe(generation) => self.probed(millis, generation, settings, sample),
        }
    }

    /// A request that was let through told nothing of the service: its caller gave up, or it was never sent.
    pub fn abandon(&self, pass: Pass) {
        let Pass::Probe(generation) = pass else { return };
        let mut seen = self.state.load(Relaxed);
        loop {
            let word = Word::read(seen);
            let kind = match word.kind {
                Kind::HalfOpen { out, well, since } if word.generation == generation && out > 0 => Kind::HalfOpen {
                    out: out - 1,
                    well,
                    since,
                },
                _ => return,
            };
            match self
                .state
                .compare_exchange_weak(seen, Word { kind, ..word }.pack(), Relaxed, Relaxed)
            {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn probed(&self, millis: u64, generation: u16, settings: &Settings, sample: Sample) -> Option<Change> {
        let slow = settings.trip.slow_percent > 0 && settings.trip.slow.is_some_and(|limit| sample.took > limit);
        let probes = u8::try_from(settings.probes.max(1)).unwrap_or(u8::MAX);
        let mut seen = self.state.load(Relaxed);
        loop {
            let word = Word::read(seen);
            let Kind::HalfOpen { out, well, since } = word.kind else {
                return None;
            };
            if word.generation != generation {
                return None;
            }
            if sample.failed || slow {
                if let Some(change) = self.open(seen, millis, settings, Cause::Probe) {
                    return Some(change);
                }
                seen = self.state.load(Relaxed);
                continue;
            }
            let closes = well + 1 >= probes;
            let next = match closes {
                true => Word {
                    openings: 0,
                    ..word.next(Kind::Closed)
                },
                false => Word {
                    kind: Kind::HalfOpen {
                        out,
                        well: well + 1,
                        since,
                    },
                    ..word
                },
            };
            if closes {
                // Before anybody is let through again: old failures count for nothing.
                self.tally.clear();
            }
            match self.state.compare_exchange_weak(seen, next.pack(), Relaxed, Relaxed) {
                Ok(_) => return closes.then_some(Change::Closed),
                Err(now) => seen = now,
            }
        }
    }

    /// Opens; none when somebody else changed the state meanwhile.
    fn open(&self, seen: u64, millis: u64, settings: &Settings, cause: Cause) -> Option<Change> {
        let word = Word::read(seen);
        let openings = word.openings.saturating_add(1);
        let cooldown = cooldown(settings, openings);
        let until = millis.saturating_add(u64::try_from(cooldown.as_millis()).unwrap_or(u64::MAX));
        let next = Word {
            openings,
            ..word.next(Kind::Open(until))
        };
        // The strong form: a spurious failure would lose the change for a caller that does not try again.
        self.state
            .compare_exchange(seen, next.pack(), Relaxed, Relaxed)
            .ok()
            .map(|_| Change::Opened(cause, cooldown))
    }
}

/// How long the `openings`th opening in a row lasts.
fn cooldown(settings: &Settings, openings: u8) -> Duration {
    let doubled = 1u32
        .checked_shl(u32::from(openings.saturating_sub(1)))
        .unwrap_or(u32::MAX);
    settings
        .cooldown
        .saturating_mul(doubled)
        .min(settings.max_cooldown.max(settings.cooldown))
}
