//! Endpoints to draw from by weight, of which some may be warming up.

use std::time::{Duration, Instant};

use super::Sight;

/// Draws before all are looked at. Each is a few nanoseconds, and looking at all is exact.
const DRAWS: usize = 4;
/// An endpoint that has just come begins with this share (Envoy: `min_weight_percent`, 10 % of its weight).
const LEAST_SHARE: f64 = 0.1;
/// An endpoint drawn by weight is given up for another only when that one is better by this factor: weights hold
/// unless an endpoint is clearly worse.
const CLEARLY: f64 = 2.0;

/// One endpoint of a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// Its number among the service's.
    pub(super) endpoint: usize,
    /// Relative share of requests, not 0.
    pub(super) weight: u32,
    /// When it came; none: it was there from the start.
    pub(super) since: Option<Instant>,
}

/// Endpoints to draw from.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) members: Box<[Member]>,
    /// Sums of the weights up to each member; none when all are equal.
    sums: Option<Box<[u64]>>,
    /// How long an endpoint warms up, and when the last one has.
    warming: Option<(Duration, Instant)>,
    /// The largest weight.
    pub(super) heaviest: u32,
}

/// What two endpoints are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Peak-EWMA latency times the requests it would have (Finagle, "Aperture Load Balancers").
    Latency,
    /// Requests in flight.
    InFlight,
}

impl Pool {
    pub(super) fn new(members: Vec<Member>, slow_start: Option<Duration>) -> Self {
        let heaviest = members.iter().map(|m| m.weight).max().unwrap_or(1);
        let equal = members.iter().all(|m| m.weight == heaviest);
        let sums = (!equal).then(|| {
            let sums = members.iter().scan(0u64, |sum, m| {
                *sum += u64::from(m.weight);
                Some(*sum)
            });
            sums.collect()
        });
        let last = members.iter().filter_map(|m| m.since).max();
        Self {
            sums,
            warming: slow_start.and_then(|window| Some((window, last? + window))),
            members: members.into(),
            heaviest,
        }
    }

    /// True while an endpoint warms up.
    pub(super) fn warms(&self, now: Instant) -> bool {
        self.warming.is_some_and(|(_, end)| now < end)
    }

    /// True when everything has the same share.
    pub(super) fn level(&self, now: Instant) -> bool {
        self.sums.is_none() && !self.warms(now)
    }

    /// How much of its weight a member has at its age (Envoy, "Slow start mode", aggression 1: linear).
    pub(super) fn share(&self, at: usize, now: Instant) -> f64 {
        let (Some((window, _)), Some(since)) = (self.warming, self.members.get(at).and_then(|m| m.since)) else {
            return 1.0;
        };
        let age = now.saturating_duration_since(since);
        (age.as_secs_f64() / window.as_secs_f64()).clamp(LEAST_SHARE, 1.0)
    }

    /// One of those for which `ok` holds, by weight, other than `except`; none only when there is none.
    pub(super) fn draw(
        &self,
        now: Instant,
        chance: &mut impl FnMut(usize) -> usize,
        except: Option<usize>,
        ok: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let n = self.members.len();
        if n <= usize::from(except.is_some()) {
            return None;
        }
        let ok = |at: usize| Some(at) != except && self.members.get(at).is_some_and(|m| ok(m.endpoint));
        let level = self.level(now);
        for _ in 0..DRAWS {
            let at = match except {
                // Any other, in one draw: shift past it.
                Some(except) if level => (except + 1 + chance(n - 1)) % n,
                _ => self.any(now, chance),
            };
            if ok(at) {
                return Some(at);
            }
        }
        self.look(now, chance, ok)
    }

    /// Any member, by weight.
    fn any(&self, now: Instant, chance: &mut impl FnMut(usize) -> usize) -> usize {
        let by_weight = |chance: &mut dyn FnMut(usize) -> usize| match &self.sums {
            None => chance(self.members.len()),
            Some(sums) => {
                let total = sums.last().copied().unwrap_or(1);
                let point = chance(usize::try_from(total).unwrap_or(usize::MAX)) as u64;
                sums.partition_point(|sum| *sum <= point)
            }
        };
        let mut at = by_weight(chance);
        if self.warms(now) {
            // Rejection: exact but for the one in thirty who is refused every time while all are cold.
            for _ in 0..32 {
                if (chance(FINE) as f64) < self.share(at, now) * FINE as f64 {
                    break;
                }
                at = by_weight(chance);
            }
        }
        at
    }

    /// Looks at all: few are left to choose from.
    fn look(&self, now: Instant, chance: &mut impl FnMut(usize) -> usize, ok: impl Fn(usize) -> bool) -> Option<usize> {
        let weight = |at: usize, m: &Member| (self.share(at, now) * f64::from(m.weight) * 1024.0) as u64;
        let all = || self.members.iter().enumerate().filter(|(at, _)| ok(*at));
        let total: u64 = all().map(|(at, m)| weight(at, m)).sum();
        let mut left = chance(usize::try_from(total.max(1)).unwrap_or(usize::MAX)) as u64;
        // Another worker may have ejected one meanwhile; the last one seen stands for it.
        let mut last = None;
        for (at, member) in all() {
            last = Some(at);
            let weight = weight(at, member);
            if left < weight {
                break;
            }
            left -= weight;
        }
        last
    }

    /// The better of two random ones (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    pub(super) fn better_of_two(
        &self,
        by: By,
        now: Instant,
        chance: &mut impl FnMut(usize) -> usize,
        sight: &impl Sight,
        ok: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.draw(now, chance, None, &ok)?;
        let Some(second) = self.draw(now, chance, Some(first), &ok) else {
            return Some(first);
        };
        let better = match self.level(now) {
            true => self.load(by, second, 1.0, sight) < self.load(by, first, 1.0, sight),
            // One that warms up gets what it was drawn for and no more, however fast it seems.
            false if self.share(second, now) < 1.0 => false,
            false => {
                let clearly = match by {
                    By::Latency => CLEARLY,
                    By::InFlight => 1.0,
                };
                let load = |at: usize| self.load(by, at, self.relative(at, now), sight);
                load(second) * clearly < load(first)
            }
        };
        Some(if better { second } else { first })
    }

    /// A member's weight now, relative to the heaviest.
    fn relative(&self, at: usize, now: Instant) -> f64 {
        let weight = self.members.get(at).map_or(1, |m| m.weight);
        self.share(at, now) * f64::from(weight) / f64::from(self.heaviest)
    }

    fn load(&self, by: By, at: usize, weight: f64, sight: &impl Sight) -> f64 {
        let Some(member) = self.members.get(at) else {
            return f64::INFINITY;
        };
        let in_flight = f64::from(sight.in_flight(member.endpoint)) / weight;
        match by {
            By::InFlight => in_flight,
            // Never zero: an idle endpoint still differs from another by its requests in flight.
            By::Latency => sight.latency(member.endpoint).max(1.0) * (in_flight + 1.0),
        }
    }
}

/// Steps of the chance that an endpoint that warms up is taken.
const FINE: usize = 1 << 16;
