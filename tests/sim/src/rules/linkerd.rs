//! Linkerd's rules: P2C over peak EWMA (decay 10 s), consecutive-failure breaker (7 in a row, back-off 1 s to 60 s, one
//! probe), retries of failures with at most 1 more try unless it is set, under the ServiceProfile's budget (ratio 20 %,
//! minimum 10 a second, 10 s window). Sources: linkerd2-proxy `failure-accrual`, `retry`, `pool/p2c`; Linkerd's
//! documents on circuit breaking and retries.

use std::time::{Duration, Instant};

use outrigger_sidecar::balance::ewma::PeakEwma;

use super::{Outcome, Rules};
use crate::server::{ms, secs};
use crate::world::Nanos;

/// Linkerd's rules.
#[derive(Debug)]
pub struct Linkerd {
    zero: Instant,
    endpoints: Vec<Endpoint>,
    /// Times of requests and of retries in the last 10 s.
    deposits: std::collections::VecDeque<Nanos>,
    withdrawals: std::collections::VecDeque<Nanos>,
}

#[derive(Debug, Clone)]
struct Endpoint {
    number: usize,
    load: PeakEwma,
    in_flight: u32,
    row: u32,
    trips: u32,
    open_until: Nanos,
    probing: bool,
}

impl Linkerd {
    /// With no endpoint yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            zero: Instant::now(),
            endpoints: Vec::new(),
            deposits: std::collections::VecDeque::new(),
            withdrawals: std::collections::VecDeque::new(),
        }
    }

    fn at(&self, now: Nanos) -> Instant {
        self.zero + Duration::from_nanos(now)
    }
}

impl Default for Linkerd {
    fn default() -> Self {
        Self::new()
    }
}

impl Rules for Linkerd {
    fn endpoints(&mut self, now: Nanos, endpoints: &[usize]) {
        let at = self.at(now);
        let old = std::mem::take(&mut self.endpoints);
        let endpoint = |number: &usize| {
            let kept = old.iter().find(|e| e.number == *number).cloned();
            kept.unwrap_or(Endpoint {
                number: *number,
                load: PeakEwma::new(at),
                in_flight: 0,
                row: 0,
                trips: 0,
                open_until: 0,
                probing: false,
            })
        };
        self.endpoints = endpoints.iter().map(endpoint).collect();
    }

    fn pick(&mut self, now: Nanos, rng: &mut fastrand::Rng, tried: &[usize], _hedge: bool) -> Option<usize> {
        let at = self.at(now);
        if tried.is_empty() {
            self.deposits.push_back(now);
        }
        let usable: Vec<usize> = (0..self.endpoints.len())
            .filter(|i| {
                self.endpoints
                    .get(*i)
                    .is_some_and(|e| e.row < 7 || (e.open_until <= now && !e.probing))
            })
            .collect();
        // All tripped: fails fast.
        if usable.is_empty() {
            return None;
        }
        let mut one = || usable.get(rng.usize(..usable.len())).copied().unwrap_or(0);
        let (a, b) = (one(), one());
        let load = |i: usize| {
            self.endpoints
                .get(i)
                .map_or(0.0, |e| e.load.latency(at) * f64::from(e.in_flight + 1))
        };
        let picked = if load(b) < load(a) { b } else { a };
        if let Some(endpoint) = self.endpoints.get_mut(picked) {
            endpoint.in_flight += 1;
            endpoint.probing |= endpoint.row >= 7;
        }
        Some(picked)
    }

    fn ended(&mut self, now: Nanos, endpoint: usize, outcome: Outcome, took: Nanos) {
        let at = self.at(now);
        let Some(it) = self.endpoints.get_mut(endpoint) else {
            return;
        };
        it.in_flight = it.in_flight.saturating_sub(1);
        if outcome != Outcome::Cancelled {
            it.load.observe(at, Duration::from_nanos(took));
        }
        match outcome {
            Outcome::Cancelled => it.probing = false,
            Outcome::Good | Outcome::Overloaded => (it.row, it.trips, it.probing) = (0, 0, false),
            Outcome::Failed | Outcome::FailedFinally | Outcome::Refused | Outcome::Timeout => {
                it.row += 1;
                it.probing = false;
                if it.row >= 7 {
                    it.open_until = now + secs(1.0).saturating_mul(1 << it.trips.min(6)).min(secs(60.0));
                    it.trips += 1;
                }
            }
        }
    }

    fn again(&mut self, now: Nanos, _rng: &mut fastrand::Rng, outcome: Outcome, tries: u32, _: Nanos) -> Option<Nanos> {
        let retried = matches!(outcome, Outcome::Failed | Outcome::FailedFinally | Outcome::Refused);
        if !retried || tries > 1 {
            return None;
        }
        let old = now.saturating_sub(secs(10.0));
        for list in [&mut self.deposits, &mut self.withdrawals] {
            while list.front().is_some_and(|t| *t < old) {
                list.pop_front();
            }
        }
        let allowed = self.deposits.len() / 5 + 100;
        (self.withdrawals.len() < allowed).then(|| {
            self.withdrawals.push_back(now);
            ms(0.0)
        })
    }

    fn timeout(&self) -> Option<Nanos> {
        Some(secs(1.0))
    }
}
