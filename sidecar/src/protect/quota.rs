//! Rate limits that all instances of the service keep together: how much of them this one lets through, and how much is
//! asked of it.
//!
//! The control plane divides; here are the share that it said last and the figures that it divides by. Nothing is known here
//! of sessions. A share that grows lets through more from then on, never more at once: what has been spent elsewhere is not
//! spent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use outrigger_proto::model::RateLimit;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Buckets;
use crate::observe::Stats;
use crate::observe::count::{Count, Family};
use crate::policy::rate::{At, Rate};

/// All such limits, for whoever speaks with the control plane.
#[derive(Debug)]
pub struct Quotas {
    /// What an instance that was told nothing lets through.
    start: u32,
    metered: Mutex<Metered>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Metered {
    /// When it was measured last.
    at: Instant,
    all: Vec<(Arc<Quota>, Meter)>,
}

/// One limit's share.
#[derive(Debug)]
pub struct Quota {
    name: Arc<str>,
    requests: u64,
    period: Duration,
    /// Of all instances together.
    whole: Rate,
    share: AtomicU32,
    buckets: Arc<Buckets>,
    began: Instant,
    asked: Count,
    shown: Count,
}

/// What is asked of a limit lately.
#[derive(Debug, Default, Clone, Copy)]
struct Meter {
    counted: u64,
    /// In millionths of the limit's rate.
    asked: u32,
}

/// One limit as it stands; in millionths of its rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The limit's name.
    pub limit: Arc<str>,
    /// Requests that came lately, let through or not.
    pub asked: u32,
    /// What this sidecar lets through.
    pub share: u32,
}

impl Quotas {
    /// None yet. `divided`: there is a control plane that divides; otherwise this sidecar has all of each limit.
    #[must_use]
    pub fn new(divided: bool) -> Self {
        Self {
            start: if divided { RateLimit::START } else { RateLimit::WHOLE },
            metered: Mutex::new(Metered {
                at: Instant::now(),
                all: Vec::new(),
            }),
            changed: watch::Sender::new(()),
        }
    }

    /// What a limit begins with that no share is known of.
    pub(super) fn start(&self) -> u32 {
        self.start
    }

    /// Replaces the set; what was measured of those that stay stays.
    pub fn replace(&self, quotas: Vec<Arc<Quota>>) {
        let mut metered = self.metered.lock();
        if quotas.is_empty() && metered.all.is_empty() {
            return;
        }
        let with_meter = |quota: Arc<Quota>| {
            let old = metered.all.iter().find(|(old, _)| old.name == quota.name);
            let meter = old.map_or_else(|| Meter::from(&*quota), |(_, meter)| *meter);
            (quota, meter)
        };
        let all = quotas.into_iter().map(with_meter).collect();
        metered.all = all;
        drop(metered);
        self.changed.send_replace(());
    }

    /// Changes whenever the set does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Measures what was asked since the last time.
    pub fn measure(&self, now: Instant) {
        let mut metered = self.metered.lock();
        let span = now.saturating_duration_since(metered.at);
        metered.at = now;
        for (quota, meter) in &mut metered.all {
            meter.measure(quota, span);
        }
    }

    /// Every limit as it stands.
    #[must_use]
    pub fn standing(&self) -> Vec<Standing> {
        let standing = |(quota, meter): &(Arc<Quota>, Meter)| Standing {
            limit: quota.name.clone(),
            asked: meter.asked,
            share: quota.share.load(SeqCst),
        };
        self.metered.lock().all.iter().map(standing).collect()
    }

    /// From now on lets through `share` millionths of a limit; nothing happens when there is none of that name.
    pub fn set(&self, limit: &str, share: u32, now: Instant) {
        let quota = {
            let metered = self.metered.lock();
            metered
                .all
                .iter()
                .find(|(q, _)| &*q.name == limit)
                .map(|(q, _)| q.clone())
        };
        if let Some(quota) = quota {
            quota.set(share, now);
        }
    }
}

impl Quota {
    pub(super) fn new(setting: &RateLimit, share: u32, buckets: Arc<Buckets>, began: Instant, stats: &Stats) -> Self {
        let labels = [("limit", setting.name.as_str())];
        let shown = stats.counts.get(Family::RateShare, &labels);
        shown.set(share.into());
        Self {
            name: setting.name.as_str().into(),
            requests: setting.requests.max(1),
            period: setting.period,
            whole: Rate::new(setting.requests, setting.period, setting.burst),
            share: AtomicU32::new(share),
            buckets,
            began,
            asked: stats.counts.get(Family::RateAsked, &labels),
            shown,
        }
    }

    /// Counts a request and says which rate holds for it here and now: two atomics and a division.
    pub(super) fn rate(&self) -> Rate {
        self.asked.add();
        self.now()
    }

    /// What holds here and now.
    pub(super) fn now(&self) -> Rate {
        self.whole.part(self.share.load(SeqCst), RateLimit::WHOLE)
    }

    pub(super) fn share(&self) -> u32 {
        self.share.load(SeqCst)
    }

    /// Called by one task only.
    fn set(&self, share: u32, now: Instant) {
        let share = share.clamp(1, RateLimit::WHOLE);
        let before = self.share.load(SeqCst);
        if share == before {
            return;
        }
        tracing::debug!(limit = %self.name, share, before, "another share of a rate limit");
        let part = |share| self.whole.part(share, RateLimit::WHOLE);
        let refill = || {
            let at = At::new(self.began, now);
            // Buckets of keys keep how full they are instead: there may be thousands.
            if let Buckets::One(bucket) = &*self.buckets {
                bucket.change(at, &part(before), &part(share));
            }
        };
        // In this order a request in between finds less than it might, not more.
        if share > before {
            refill();
            self.share.store(share, SeqCst);
        } else {
            self.share.store(share, SeqCst);
            refill();
        }
        self.shown.set(share.into());
    }
}

impl From<&Quota> for Meter {
    fn from(quota: &Quota) -> Self {
        Self {
            counted: quota.asked.value(),
            asked: 0,
        }
    }
}

impl Meter {
    /// A moving mean over the limit's period, over a minute at most; half of it is new when the period is a second.
    fn measure(&mut self, quota: &Quota, span: Duration) {
        let counted = quota.asked.value();
        let came = counted.saturating_sub(std::mem::replace(&mut self.counted, counted));
        let whole = u128::from(quota.requests) * span.as_nanos().max(1);
        let now = u128::from(came) * quota.period.as_nanos() * u128::from(RateLimit::WHOLE) / whole;
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        let inertia = 1 + u32::try_from(quota.period.as_secs()).unwrap_or(u32::MAX).clamp(1, 59);
        // Rounded up, so that it arrives.
        let step = now.abs_diff(self.asked).div_ceil(inertia);
        self.asked = match now > self.asked {
            true => self.asked + step,
            false => self.asked - step,
        };
    }
}
