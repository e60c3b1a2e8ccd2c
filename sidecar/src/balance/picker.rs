//! How one set of endpoints is balanced, as one worker does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_proto::model::Balance;

use super::pool::{By, Member, Pool};
use super::stride::Stride;
use super::table::Table;
use super::{Ask, Sight, Standing};

/// How old the count of endpoints that are well may be, in milliseconds. Counting all at every request would cost what
/// there are.
const COUNTED: u32 = 10;

/// So many requests at a time of one worker are no load, whatever the bound: with few in flight the average is about one,
/// and two values that happen to come together would part one from its endpoint.
pub(super) const FEW: u32 = 8;

/// One endpoint to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its number among the service's; what is picked.
    pub endpoint: usize,
    /// Its place in the list that the hash table was made of.
    pub slot: usize,
    /// Relative share of requests, not 0.
    pub weight: u32,
    /// Whether it is in the caller's own zone.
    pub near: bool,
    /// When it came; none: it was there from the start.
    pub since: Option<Instant>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// By what.
    pub balance: &'a Balance,
    /// For [`Balance::Ring`] and [`Balance::Maglev`].
    pub table: Option<Arc<Table>>,
    /// How long an endpoint that has just come warms up. Not under a hash, which would move values twice.
    pub slow_start: Option<Duration>,
    /// The own zone gets everything while so many percent of its endpoints are well. Not under a hash, whose values
    /// would depend on the caller.
    pub near_percent: Option<u32>,
    /// Fewer percent that are well, and all are used; 0: never.
    pub panic_percent: u32,
    /// Where round robin begins.
    pub seed: u64,
}

/// Chooses among the endpoints of one service or subset.
#[derive(Debug)]
pub struct Picker {
    how: How,
    /// Own zone; all of them when zones do not matter.
    near: Pool,
    far: Pool,
    near_percent: u32,
    panic_percent: u32,
    built: Instant,
    /// What was counted last; see [`Health::pack`].
    health: AtomicU64,
}

#[derive(Debug)]
enum How {
    Two(By),
    Turns { near: Stride, far: Stride },
    Random,
    Hash(Hashed),
}

#[derive(Debug)]
struct Hashed {
    table: Arc<Table>,
    /// By slot: the member. A table has the endpoints of all ports.
    seats: Box<[u32]>,
    bound_percent: u32,
}

/// Which endpoints a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    /// Well and not tried.
    Fresh,
    /// Ejected and not tried.
    Ejected,
    /// Well and tried.
    Tried,
}

impl Picker {
    /// Chooses among `candidates` from `now` on.
    #[must_use]
    pub fn new(candidates: &[Candidate], setting: Setting<'_>, now: Instant) -> Self {
        let how = match (setting.balance, setting.table) {
            (Balance::Ring(hash) | Balance::Maglev(hash), Some(table)) => How::Hash(Hashed {
                seats: seats(candidates),
                bound_percent: hash.bound_percent,
                table,
            }),
            (Balance::LeastRequest, _) => How::Two(By::InFlight),
            (Balance::Random, _) => How::Random,
            (Balance::RoundRobin, _) => How::Turns {
                near: Stride::new(setting.seed),
                far: Stride::new(setting.seed.rotate_left(32)),
            },
            (Balance::P2cPeakEwma | Balance::Ring(_) | Balance::Maglev(_), _) => How::Two(By::Latency),
        };
        let hashed = matches!(how, How::Hash(_));
        let slow_start = setting.slow_start.filter(|s| !hashed && !s.is_zero());
        let near_percent = setting
            .near_percent
            .filter(|_| !hashed && candidates.iter().any(|c| c.near));
        let pool = |near: bool| {
            let chosen = candidates.iter().filter(|c| (near_percent.is_none() || c.near) == near);
            let member = |c: &Candidate| Member {
                endpoint: c.endpoint,
                weight: c.weight.max(1),
                since: c.since.filter(|_| slow_start.is_some()),
            };
            Pool::new(chosen.map(member).collect(), slow_start)
        };
        Self {
            how,
            near: pool(true),
            far: pool(false),
            near_percent: near_percent.unwrap_or(0),
            panic_percent: setting.panic_percent,
            built: now,
            health: AtomicU64::new(0),
        }
    }

    /// True when a request without the value that the hash is of is no ordinary one.
    #[must_use]
    pub fn is_hash(&self) -> bool {
        matches!(self.how, How::Hash(_))
    }

    /// One endpoint of this pass; none only when there is none.
    pub(super) fn pick(
        &self,
        ask: &Ask<'_>,
        among: Among,
        chance: &mut impl FnMut(usize) -> usize,
        sight: &impl Sight,
    ) -> Option<usize> {
        let health = self.health(ask.now, sight);
        let tried = |endpoint: usize| ask.tried.contains(&endpoint);
        let well = |endpoint: usize| sight.standing(endpoint) == Standing::Ready;
        match among {
            Among::Fresh if health.panic => {
                let usable = |endpoint: usize| sight.standing(endpoint) != Standing::Full && !tried(endpoint);
                self.by_zone(ask, health, chance, sight, usable)
            }
            Among::Fresh => self.by_zone(ask, health, chance, sight, |endpoint| {
                well(endpoint) && !tried(endpoint)
            }),
            Among::Tried => self.by_zone(ask, health, chance, sight, |endpoint| well(endpoint) && tried(endpoint)),
            Among::Ejected if self.panic_percent == 0 => None,
            Among::Ejected => self.by_zone(ask, health, chance, sight, |endpoint| {
                sight.standing(endpoint) == Standing::Ejected && !tried(endpoint)
            }),
        }
    }

    fn by_zone(
        &self,
        ask: &Ask<'_>,
        health: Health,
        chance: &mut impl FnMut(usize) -> usize,
        sight: &impl Sight,
        ok: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if self.far.members.is_empty() {
            return self.of(&self.near, ask, chance, sight, &ok);
        }
        let (first, second) = match health.stays(chance) {
            true => (&self.near, &self.far),
            false => (&self.far, &self.near),
        };
        self.of(first, ask, chance, sight, &ok)
            .or_else(|| self.of(second, ask, chance, sight, &ok))
    }

    fn of(
        &self,
        pool: &Pool,
        ask: &Ask<'_>,
        chance: &mut impl FnMut(usize) -> usize,
        sight: &impl Sight,
        ok: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let now = ask.now;
        let at = match (&self.how, ask.hash) {
            (How::Two(by), _) => pool.better_of_two(*by, now, chance, sight, ok),
            (How::Random, _) => pool.draw(now, chance, None, ok),
            (How::Turns { near, .. }, _) if std::ptr::eq(pool, &raw const self.near) => near.next(pool, now, ok),
            (How::Turns { far, .. }, _) => far.next(pool, now, ok),
            (How::Hash(hashed), Some(hash)) => hashed.pick(hash, pool, sight, ok),
            (How::Hash(_), None) => pool.better_of_two(By::Latency, now, chance, sight, ok),
        };
        pool.members.get(at?).map(|m| m.endpoint)
    }

    /// How many are well, as counted lately.
    fn health(&self, now: Instant, sight: &impl Sight) -> Health {
        // A division of 128 bits would cost as much as all the rest.
        let age = now.saturating_duration_since(self.built);
        let tick = (age.as_secs() * 100 + u64::from(age.subsec_millis() / COUNTED) + 1) & Health::TICKS;
        let kept = self.health.load(Relaxed);
        if kept & Health::TICKS == tick {
            return Health::unpack(kept);
        }
        let health = self.count(sight);
        self.health.store(health.pack() | tick, Relaxed);
        health
    }

    fn count(&self, sight: &impl Sight) -> Health {
        let well = |pool: &Pool| {
            let ejected = |m: &&Member| sight.standing(m.endpoint) == Standing::Ejected;
            pool.members.len() - pool.members.iter().filter(ejected).count()
        };
        let (near, far) = (well(&self.near), well(&self.far));
        let all = self.near.members.len() + self.far.members.len();
        let enough = near * 100 >= self.near_percent as usize * self.near.members.len();
        // Without any that is well, what it fails over to comes first.
        let panic = near + far > 0 && (near + far) * 100 < self.panic_percent as usize * all;
        let stay = match enough || far == 0 {
            true => Health::ALL as usize,
            false => Health::ALL as usize * near * 100 / (self.near_percent as usize * self.near.members.len()).max(1),
        };
        Health {
            panic,
            stay: stay as u32,
        }
    }
}

/// What a count of the endpoints says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Health {
    /// So few are well that all are used.
    panic: bool,
    /// How many requests of [`Self::ALL`] stay in the own zone.
    stay: u32,
}

impl Health {
    /// All requests.
    const ALL: u32 = 1 << 15;
    /// The bits in which the moment of the count is kept.
    const TICKS: u64 = (1 << 47) - 1;

    fn pack(self) -> u64 {
        u64::from(self.stay) << 47 | u64::from(self.panic) << 63
    }

    fn unpack(packed: u64) -> Self {
        Self {
            panic: packed >> 63 == 1,
            stay: (packed >> 47) as u32 & 0xffff,
        }
    }

    fn stays(self, chance: &mut impl FnMut(usize) -> usize) -> bool {
        self.stay >= Self::ALL || chance(Self::ALL as usize) < self.stay as usize
    }
}

impl Hashed {
    /// The endpoint of `hash`, or the next of its walk that is usable and below the bound: "Consistent Hashing with
    /// Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam 2016). When none is both, the next that is usable.
    fn pick(&self, hash: u64, pool: &Pool, sight: &impl Sight, ok: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.table.start(hash);
        let n = pool.members.len();
        let usable = |at: usize| pool.members.get(at).is_some_and(|m| ok(m.endpoint));
        let (mut bound, mut fallback, mut before) = (None, None, usize::MAX);
        // Far enough to come by all of them, nearly always.
        let walk = (0..8 * n + 64).filter_map(|k| self.table.at(start + k));
        let members = walk.filter_map(|slot| self.seats.get(slot).map(|at| *at as usize));
        for at in members.chain((0..n).map(|k| (hash as usize % n.max(1) + k) % n.max(1))) {
            if at == before || !usable(at) {
                continue;
            }
            before = at;
            if self.has_room(at, pool, sight, &mut bound) {
                return Some(at);
            }
            fallback = fallback.or(Some(at));
        }
        fallback
    }

    /// Whether one more keeps the member within its part of the bound.
    fn has_room(&self, at: usize, pool: &Pool, sight: &impl Sight, sums: &mut Option<(u64, u64)>) -> bool {
        let Some(member) = pool.members.get(at) else {
            return false;
        };
        let in_flight = sight.in_flight(member.endpoint);
        // Most often, and then nothing has to be summed up.
        if in_flight < FEW {
            return true;
        }
        let (total, weights) = *sums.get_or_insert_with(|| {
            let well = pool
                .members
                .iter()
                .filter(|m| sight.standing(m.endpoint) != Standing::Ejected);
            well.fold((0, 0), |(total, weights), m| {
                (
                    total + u64::from(sight.in_flight(m.endpoint)),
                    weights + u64::from(m.weight),
                )
            })
        });
        let part = u128::from(self.bound_percent) * u128::from(total + 1) * u128::from(member.weight);
        u128::from(in_flight) < part.div_ceil(100 * u128::from(weights.max(1)))
    }
}

fn seats(candidates: &[Candidate]) -> Box<[u32]> {
    let slots = candidates.iter().map(|c| c.slot + 1).max().unwrap_or(0);
    // Past the end: not of this port.
    let mut seats = vec![u32::MAX; slots];
    for (at, candidate) in (0u32..).zip(candidates) {
        if let Some(seat) = seats.get_mut(candidate.slot) {
            *seat = at;
        }
    }
    seats.into()
}
