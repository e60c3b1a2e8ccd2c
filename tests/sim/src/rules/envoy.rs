//! Envoy as Istio sets it up by default: least request of two, 2 retries on connect failure, refused stream and
//! unavailable, previous hosts avoided, back-off 25 to 250 ms, no more than 3 retries at a time a cluster; outlier
//! detection as Envoy's defaults have it once it is switched on (5 consecutive failures, interval 10 s, 30 s times the
//! number of ejections, at most 10 % but one always). Sources: Envoy `v3 RetryPolicy`, `OutlierDetection`,
//! `CircuitBreakers.Thresholds`; Istio `DestinationRule` and `HTTPRetry`.

use super::{Outcome, Rules};
use crate::server::{ms, secs};
use crate::world::Nanos;

/// Envoy's defaults.
#[derive(Debug, Default)]
pub struct Envoy {
    hosts: Vec<Host>,
    /// Retries waiting or under way.
    retries: u32,
    swept: Nanos,
}

#[derive(Debug, Default, Clone)]
struct Host {
    number: usize,
    in_flight: u32,
    row: u32,
    ejections: u32,
    until: Nanos,
}

const INTERVAL_S: f64 = 10.0;

impl Envoy {
    fn ejected(&self, now: Nanos) -> usize {
        self.hosts.iter().filter(|h| h.until > now).count()
    }
}

impl Rules for Envoy {
    fn endpoints(&mut self, _now: Nanos, endpoints: &[usize]) {
        let old = std::mem::take(&mut self.hosts);
        let host = |number: &usize| {
            let kept = old.iter().find(|h| h.number == *number).cloned();
            kept.unwrap_or(Host {
                number: *number,
                ..Host::default()
            })
        };
        self.hosts = endpoints.iter().map(host).collect();
    }

    fn pick(&mut self, now: Nanos, rng: &mut fastrand::Rng, tried: &[usize], _hedge: bool) -> Option<usize> {
        // Panic: with less than half of the hosts healthy, all are used.
        let panic = (self.hosts.len() - self.ejected(now)) * 2 < self.hosts.len();
        let usable: Vec<usize> = (0..self.hosts.len())
            .filter(|i| panic || self.hosts.get(*i).is_some_and(|h| h.until <= now))
            .collect();
        if usable.is_empty() {
            return None;
        }
        let mut picked = 0;
        // Five reselections to find one that was not tried.
        for _ in 0..=5 {
            let mut one = || usable.get(rng.usize(..usable.len())).copied().unwrap_or(0);
            let (a, b) = (one(), one());
            let load = |i: usize| self.hosts.get(i).map_or(0, |h| h.in_flight);
            picked = if load(b) < load(a) { b } else { a };
            if !tried.contains(&picked) {
                break;
            }
        }
        if !tried.is_empty() {
            self.retries = self.retries.saturating_sub(1);
        }
        if let Some(host) = self.hosts.get_mut(picked) {
            host.in_flight += 1;
        }
        Some(picked)
    }

    fn ended(&mut self, now: Nanos, endpoint: usize, outcome: Outcome, _took: Nanos) {
        if now - self.swept > secs(INTERVAL_S) {
            self.swept = now;
            for host in &mut self.hosts {
                if host.until <= now && host.ejections > 0 {
                    host.ejections -= 1;
                }
            }
        }
        let (ejected, hosts) = (self.ejected(now), self.hosts.len());
        let Some(host) = self.hosts.get_mut(endpoint) else {
            return;
        };
        host.in_flight = host.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Good | Outcome::Overloaded => host.row = 0,
            Outcome::Cancelled => {}
            Outcome::Failed | Outcome::FailedFinally | Outcome::Refused | Outcome::Timeout => {
                host.row += 1;
                let most = (hosts / 10).max(1);
                if host.row >= 5 && host.until <= now && ejected < most {
                    host.row = 0;
                    host.ejections += 1;
                    host.until = now + secs(30.0).saturating_mul(u64::from(host.ejections)).min(secs(300.0));
                }
            }
        }
    }

    fn again(&mut self, _now: Nanos, rng: &mut fastrand::Rng, outcome: Outcome, tries: u32, _: Nanos) -> Option<Nanos> {
        let retried = matches!(outcome, Outcome::Failed | Outcome::FailedFinally | Outcome::Refused);
        if !retried || tries > 2 || self.retries >= 3 {
            return None;
        }
        self.retries += 1;
        let window = ms(25.0).saturating_mul(1 << tries.min(10)).min(ms(250.0));
        Some(rng.u64(..window))
    }

    fn timeout(&self) -> Option<Nanos> {
        Some(secs(1.0))
    }
}
