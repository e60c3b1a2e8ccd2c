//! The sidecar's own code: `balance` picks, `policy` decides. Nothing here decides; it asks in the order in which
//! `outbound` asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proto::model::{Balance, Breaker as BreakerSettings, Mode, Outcomes, Retry, Service, Trip};
use outrigger_sidecar::balance::ewma::PeakEwma;
use outrigger_sidecar::balance::{self, Ask, Candidate, Node, Picker, Resort, Sight, Standing, Table};
use outrigger_sidecar::policy::backoff;
use outrigger_sidecar::policy::breaker::{Admitted, Breaker, Pass};
use outrigger_sidecar::policy::budget::Budget;
use outrigger_sidecar::policy::outlier::{Outlier, Turn};
use outrigger_sidecar::policy::trip::Sample;

use super::{Outcome, Rules};
use crate::scenes::Movement;
use crate::server::secs;
use crate::world::Nanos;

/// What a failure counts for in the load of an endpoint, as in `connect::Upstream::penalize`.
const PENALTY: Duration = Duration::from_secs(1);

/// What the service's document says.
#[derive(Debug, Clone)]
pub struct Setting(Service);

impl Default for Setting {
    /// Nothing: the defaults, and a time-out.
    fn default() -> Self {
        let name = "default/service".parse();
        // The name is a constant and valid.
        let Ok(name) = name else { unreachable!("a valid name") };
        let mut service = Service::new(name, Vec::new(), Mode::Strict);
        service.policy.timeout = Some(Duration::from_secs(1));
        Self(service)
    }
}

impl Setting {
    /// `retry: {attempts: 3}` for requests that may be done twice.
    #[must_use]
    pub fn retrying() -> Self {
        let mut this = Self::default();
        this.0.policy.idempotent = true;
        this.0.policy.retry = Retry {
            attempts: 3,
            on: Outcomes::retried(),
            ..Retry::default()
        };
        this
    }

    /// `retry: {attempts: 3, per_try: 250ms}` for requests that may be done twice.
    #[must_use]
    pub fn retrying_soon() -> Self {
        let mut this = Self::retrying();
        this.0.policy.per_try = Some(Duration::from_millis(250));
        this
    }

    /// `breaker: {failures: 5}`.
    #[must_use]
    pub fn breaking() -> Self {
        let mut this = Self::default();
        this.0.breaker = Some(BreakerSettings {
            trip: Trip {
                consecutive: 5,
                ..Trip::default()
            },
            cooldown: Duration::from_secs(10),
            max_cooldown: Duration::from_secs(300),
            probes: 3,
        });
        this
    }

    /// `slow_start: 20s`.
    #[must_use]
    pub fn slow_start() -> Self {
        let mut this = Self::default();
        this.0.slow_start = Some(Duration::from_secs(20));
        this
    }
}

/// One caller with one worker.
pub struct Outrigger {
    zero: Instant,
    service: Service,
    endpoints: Vec<Endpoint>,
    picker: Picker,
    turn: Turn,
    breaker: Breaker,
    budget: Budget,
    told: bool,
}

#[derive(Clone)]
struct Endpoint {
    number: usize,
    load: PeakEwma,
    in_flight: u32,
    health: Arc<Outlier>,
    since: Option<Instant>,
}

impl Outrigger {
    /// With no endpoint yet.
    #[must_use]
    pub fn new(setting: Setting) -> Self {
        let zero = Instant::now();
        let mut this = Self {
            zero,
            service: setting.0,
            endpoints: Vec::new(),
            picker: Picker::new(&[], picking(&Balance::default(), None, 0), zero),
            turn: Turn::default(),
            breaker: Breaker::new(zero),
            budget: Budget::new(zero),
            told: false,
        };
        this.rebuild(zero);
        this
    }

    fn at(&self, now: Nanos) -> Instant {
        self.zero + Duration::from_nanos(now)
    }

    fn rebuild(&mut self, now: Instant) {
        let candidates: Vec<Candidate> = self
            .endpoints
            .iter()
            .enumerate()
            .map(|(i, e)| Candidate {
                endpoint: i,
                slot: i,
                weight: 1,
                near: false,
                since: e.since,
            })
            .collect();
        let service = &self.service;
        let setting = picking(&service.balance, service.slow_start, service.outlier.panic_percent);
        self.picker = Picker::new(&candidates, setting, now);
    }
}

fn picking(balance: &Balance, slow_start: Option<Duration>, panic_percent: u32) -> balance::Setting<'_> {
    balance::Setting {
        balance,
        table: None,
        slow_start,
        near_percent: None,
        panic_percent,
        seed: 0,
    }
}

struct Seen<'a> {
    now: Instant,
    endpoints: &'a [Endpoint],
}

impl Sight for Seen<'_> {
    fn standing(&self, endpoint: usize) -> Standing {
        match self.endpoints.get(endpoint) {
            Some(e) if e.health.is_ejected(self.now) => Standing::Ejected,
            _ => Standing::Ready,
        }
    }

    fn in_flight(&self, endpoint: usize) -> u32 {
        self.endpoints.get(endpoint).map_or(0, |e| e.in_flight)
    }

    fn latency(&self, endpoint: usize) -> f64 {
        self.endpoints.get(endpoint).map_or(1.0, |e| e.load.latency(self.now))
    }
}

impl Rules for Outrigger {
    fn endpoints(&mut self, now: Nanos, endpoints: &[usize]) {
        let at = self.at(now);
        let old = std::mem::take(&mut self.endpoints);
        let told = std::mem::replace(&mut self.told, true);
        let endpoint = |number: &usize| {
            let kept = old.iter().find(|e| e.number == *number).cloned();
            kept.unwrap_or_else(|| Endpoint {
                number: *number,
                load: PeakEwma::new(at),
                in_flight: 0,
                health: Arc::new(Outlier::new(self.zero)),
                since: told.then_some(at),
            })
        };
        self.endpoints = endpoints.iter().map(endpoint).collect();
        self.rebuild(at);
    }

    fn admit(&mut self, now: Nanos) -> Option<Pass> {
        let at = self.at(now);
        let pass = match &self.service.breaker {
            None => Pass::Free,
            Some(settings) => match self.breaker.admit(at, settings) {
                Admitted::Yes(pass, _) => pass,
                Admitted::No(_) => return None,
            },
        };
        self.budget.request(at);
        Some(pass)
    }

    fn over(&mut self, now: Nanos, pass: Pass, failed: Option<bool>, took: Nanos) {
        let at = self.at(now);
        let Some(settings) = &self.service.breaker else { return };
        match failed {
            None => self.breaker.abandon(pass),
            Some(failed) => {
                let took = Duration::from_nanos(took);
                self.breaker.record(at, pass, settings, Sample { failed, took });
            }
        }
    }

    fn pick(&mut self, now: Nanos, rng: &mut fastrand::Rng, tried: &[usize], _hedge: bool) -> Option<usize> {
        let at = self.at(now);
        let seen = Seen {
            now: at,
            endpoints: &self.endpoints,
        };
        let ask = Ask {
            now: at,
            hash: None,
            tried,
        };
        let picked = balance::choose(
            std::iter::once(&self.picker),
            &ask,
            Resort::default(),
            &mut |k| rng.usize(..k),
            &seen,
        )?;
        self.endpoints.get_mut(picked)?.in_flight += 1;
        Some(picked)
    }

    fn ended(&mut self, now: Nanos, endpoint: usize, outcome: Outcome, took: Nanos) {
        let at = self.at(now);
        let settings = self.service.outlier;
        let took = Duration::from_nanos(took);
        let Some(it) = self.endpoints.get_mut(endpoint) else {
            return;
        };
        it.in_flight = it.in_flight.saturating_sub(1);
        let failed = match outcome {
            Outcome::Cancelled => return,
            Outcome::Good | Outcome::Overloaded => false,
            Outcome::Failed | Outcome::FailedFinally | Outcome::Refused | Outcome::Timeout => true,
        };
        match outcome {
            Outcome::Refused | Outcome::Timeout => it.load.penalize(at, PENALTY),
            _ => it.load.observe(at, took),
        }
        let health = it.health.clone();
        if health.record(at, &settings, Sample { failed, took }).is_some() {
            let all = self.endpoints.iter().map(|e| &*e.health);
            self.turn.eject(at, &settings, &health, all, |_| {});
        }
    }

    fn again(
        &mut self,
        now: Nanos,
        rng: &mut fastrand::Rng,
        outcome: Outcome,
        tries: u32,
        _spent: Nanos,
    ) -> Option<Nanos> {
        let at = self.at(now);
        let retry = &self.service.policy.retry;
        match outcome {
            // Never sent: one for each endpoint, at once and without the budget.
            Outcome::Refused => (tries as usize <= self.endpoints.len()).then_some(0),
            Outcome::Failed | Outcome::Timeout
                if tries < retry.attempts && self.budget.take(at, &self.service.retry_budget) =>
            {
                let wait = backoff::wait(tries - 1, retry.backoff, retry.max_backoff, rng.f64());
                u64::try_from(wait.as_nanos()).ok()
            }
            _ => None,
        }
    }

    fn timeout(&self) -> Option<Nanos> {
        Some(self.service.policy.timeout.map_or(secs(1.0), |t| t.as_nanos() as Nanos))
    }

    fn per_try(&self) -> Option<Nanos> {
        self.service.policy.per_try.map(|t| t.as_nanos() as Nanos)
    }

    /// Made after retries, or with the budget exhausted: no caller up the chain tries again.
    fn answers_are_final(&self, _tries: u32) -> bool {
        self.service.policy.retry.attempts > 1
    }
}

/// Keys that move when one of `n` endpoints leaves a hash.
pub(crate) fn movement(n: usize) -> Movement {
    const KEYS: u64 = 100_000;
    let node = |i: usize| Node {
        key: balance::hash(format!("default/service/instance-{i}").as_bytes()),
        weight: 1,
    };
    let all: Vec<Node> = (0..n).map(node).collect();
    let gone = n / 2;
    let left: Vec<Node> = (0..n).filter(|i| *i != gone).map(node).collect();
    let key = |k: u64| balance::hash(&k.to_le_bytes());
    let moved = |before: &Table, after: &Table| {
        let place = |slot: usize| if slot >= gone { slot + 1 } else { slot };
        let moves = |k: &u64| before.slot(key(*k)) != after.slot(key(*k)).map(place);
        (0..KEYS).filter(moves).count() as f64 / KEYS as f64
    };
    let ring = Table::ring(&all);
    let own = (0..KEYS).filter(|k| ring.slot(key(*k)) == Some(gone)).count() as f64 / KEYS as f64;
    Movement {
        ring: moved(&ring, &Table::ring(&left)),
        maglev: moved(&Table::maglev(&all), &Table::maglev(&left)),
        least: own,
    }
}
