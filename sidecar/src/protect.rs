//! What keeps the app from more requests than it can answer: rate limits, places at the app, the queue before them.
//!
//! Compiled when the workload's settings change; what was counted goes on where the settings stay the same. Shared by
//! all workers, so that limits are exact whatever their number.

mod gate;
mod quota;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proto::model::{FieldError, Priority, Proxy, RateLimit, RateLimitBy, SpiffeId};
use outrigger_proto::routes::{Asked, Matches, Routes};

pub use self::gate::{Gate, Held, Met, Place, Queued, Shed};
pub use self::quota::{Quota, Quotas, Standing};
use crate::observe::Stats;
use crate::observe::count::{Count, Family};
use crate::policy::rate::{At, Bucket, Keyed, Rate};

/// Callers or header values that have a bucket of their own; 16 bytes each.
const KEYS: usize = 16_384;

/// What the workload's settings say of it.
#[derive(Debug)]
pub struct Protection {
    limits: Vec<Limited>,
    priorities: Routes,
    /// In the order of the rules.
    given: Vec<Priority>,
    gate: Option<Arc<Gate>>,
    /// The moment from which buckets count.
    began: Instant,
}

/// One rate limit.
#[derive(Debug)]
struct Limited {
    setting: RateLimit,
    name: Arc<str>,
    matches: Matches,
    rate: Rate,
    /// Only a share of the rate holds here.
    quota: Option<Arc<Quota>>,
    buckets: Arc<Buckets>,
    refused: Count,
}

#[derive(Debug)]
enum Buckets {
    One(Bucket),
    /// With what keys are hashed by: nobody outside can choose keys that hash alike.
    Each(Keyed, RandomState),
}

/// Requests that were not handed to the app, by priority and cause.
#[derive(Debug)]
pub struct Sheds([[Count; 3]; 3]);

/// A rate limit says no.
#[derive(Debug)]
pub struct TooMany {
    /// Whose.
    pub limit: Arc<str>,
    /// When it says yes again, unless others come first.
    pub wait: Duration,
}

impl Protection {
    /// Of `proxy`; none when it asks for nothing. What `before` has counted goes on. Limits of all instances together are
    /// [`quotas`](Self::quotas) from then on.
    ///
    /// # Errors
    /// When a match is not one; the resource should have been refused.
    pub fn new(
        proxy: &Proxy,
        before: Option<&Self>,
        quotas: &Quotas,
        stats: &Stats,
        now: Instant,
    ) -> Result<Option<Self>, FieldError> {
        let gate = before.and_then(|b| b.gate.clone());
        let gate = match (proxy.admission, gate) {
            (None, gate) => {
                if let Some(gate) = gate {
                    gate.open();
                }
                None
            }
            (Some(settings), Some(gate)) => {
                gate.set(settings);
                Some(gate)
            }
            (Some(settings), None) => Some(Arc::new(Gate::new(settings, Sheds::new(stats), now))),
        };
        if gate.is_none() && proxy.rate_limits.is_empty() {
            return Ok(None);
        }
        let began = before.map_or(now, |b| b.began);
        let limits = proxy.rate_limits.iter().map(|setting| {
            let named = before.and_then(|b| b.limits.iter().find(|l| *l.name == *setting.name));
            let counted = match named {
                Some(old) if old.setting == *setting => Counted::of(old),
                _ => {
                    let share = named.and_then(|old| old.quota.as_ref()).map(|quota| quota.share());
                    let share = share.unwrap_or_else(|| quotas.start());
                    Counted::new(setting, share, (began, now), stats)
                }
            };
            Limited::new(setting, counted, stats)
        });
        let rules = proxy.priorities.iter().map(|rule| &*rule.matches);
        Ok(Some(Self {
            limits: limits.collect::<Result<_, _>>()?,
            priorities: Routes::of(rules).map_err(|(_, error)| error)?,
            given: proxy.priorities.iter().map(|rule| rule.priority).collect(),
            gate,
            began,
        }))
    }

    /// Counts a request at every rate limit that it meets.
    ///
    /// # Errors
    /// When one of them says no; the others do not count it then.
    pub fn count(&self, asked: &Asked<'_>, caller: Option<&SpiffeId>, now: Instant) -> Result<(), TooMany> {
        let at = At::new(self.began, now);
        for (i, limit) in self.limits.iter().enumerate() {
            if let Err(wait) = limit.take(asked, caller, at) {
                for earlier in self.limits.iter().take(i) {
                    earlier.put_back(asked, caller);
                }
                limit.refused.add();
                return Err(TooMany {
                    limit: limit.name.clone(),
                    wait,
                });
            }
        }
        Ok(())
    }

    /// The door to the app, when there is one, and how much the request matters there.
    #[must_use]
    pub fn gate(&self, asked: &Asked<'_>) -> Option<(&Arc<Gate>, Priority)> {
        let gate = self.gate.as_ref()?;
        // A path that can be read in two ways is of no importance in particular.
        let found = self.priorities.find(asked).ok().flatten();
        let priority = found.and_then(|f| self.given.get(f.route)).copied();
        Some((gate, priority.unwrap_or_default()))
    }

    /// The limits of all instances together.
    #[must_use]
    pub fn quotas(&self) -> Vec<Arc<Quota>> {
        self.limits.iter().filter_map(|limit| limit.quota.clone()).collect()
    }

    /// Limit of requests at the app, how many are there, and how many wait.
    #[must_use]
    pub fn figures(&self) -> Option<[u32; 3]> {
        self.gate.as_ref().map(|gate| gate.figures())
    }
}

impl Limited {
    fn new(setting: &RateLimit, counted: Counted, stats: &Stats) -> Result<Self, FieldError> {
        Ok(Self {
            setting: setting.clone(),
            name: setting.name.as_str().into(),
            matches: Matches::compile(&setting.matches)?,
            rate: Rate::new(setting.requests, setting.period, setting.burst),
            quota: counted.quota,
            buckets: counted.buckets,
            refused: stats.counts.get(Family::RateLimited, &[("limit", &setting.name)]),
        })
    }

    /// A path that can be read in two ways meets every limit: otherwise it would be a way past them.
    fn meets(&self, asked: &Asked<'_>) -> bool {
        self.matches.meets(asked).unwrap_or(true)
    }

    fn take(&self, asked: &Asked<'_>, caller: Option<&SpiffeId>, at: At) -> Result<(), Duration> {
        if !self.meets(asked) {
            return Ok(());
        }
        let rate = self.quota.as_ref().map_or(self.rate, |quota| quota.rate());
        match &*self.buckets {
            Buckets::One(bucket) => bucket.take(at, &rate),
            Buckets::Each(buckets, hash) => buckets.take(self.key(hash, asked, caller), at, &rate),
        }
    }

    fn put_back(&self, asked: &Asked<'_>, caller: Option<&SpiffeId>) {
        if !self.meets(asked) {
            return;
        }
        let rate = self.quota.as_ref().map_or(self.rate, |quota| quota.now());
        match &*self.buckets {
            Buckets::One(bucket) => bucket.put_back(&rate),
            Buckets::Each(buckets, hash) => buckets.put_back(self.key(hash, asked, caller), &rate),
        }
    }

    fn key(&self, hash: &RandomState, asked: &Asked<'_>, caller: Option<&SpiffeId>) -> u64 {
        match &self.setting.by {
            RateLimitBy::Header(name) => hash.hash_one((asked.field)(name)),
            _ => hash.hash_one(caller.map(SpiffeId::as_str)),
        }
    }
}

/// What goes on while a limit stays the same.
struct Counted {
    buckets: Arc<Buckets>,
    quota: Option<Arc<Quota>>,
}

impl Counted {
    fn of(limit: &Limited) -> Self {
        Self {
            buckets: limit.buckets.clone(),
            quota: limit.quota.clone(),
        }
    }

    /// `share`: how much of it holds here if it is one of all instances together.
    fn new(setting: &RateLimit, share: u32, (began, now): (Instant, Instant), stats: &Stats) -> Self {
        let bucket = || match setting.mesh && share < RateLimit::WHOLE {
            // Whoever joins brings no burst of its own.
            true => {
                let whole = Rate::new(setting.requests, setting.period, setting.burst);
                Bucket::scarce(At::new(began, now), &whole.part(share, RateLimit::WHOLE))
            }
            false => Bucket::default(),
        };
        let buckets = Arc::new(match setting.by {
            RateLimitBy::All => Buckets::One(bucket()),
            RateLimitBy::Caller | RateLimitBy::Header(_) => Buckets::Each(Keyed::new(KEYS), RandomState::new()),
        });
        let quota = || Arc::new(Quota::new(setting, share, buckets.clone(), began, stats));
        Self {
            quota: setting.mesh.then(quota),
            buckets,
        }
    }
}

impl Sheds {
    fn new(stats: &Stats) -> Self {
        Self([Priority::Low, Priority::Normal, Priority::High].map(|priority| {
            ["queue_full", "displaced", "queue_timeout"].map(|cause| {
                let labels = [("priority", priority.as_str()), ("cause", cause)];
                stats.counts.get(Family::Shed, &labels)
            })
        }))
    }

    fn count(&self, priority: Priority, shed: Shed) {
        let count = self
            .0
            .get(priority as usize)
            .and_then(|causes| causes.get(shed as usize));
        if let Some(count) = count {
            count.add();
        }
    }
}
