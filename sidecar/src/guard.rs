//! What this sidecar learnt of a service by calling it: breaker, ejected endpoints, places in use, the retry budget.
//!
//! One for each service, shared by all workers: they find the same. It survives a change of policy, because thresholds are
//! not kept here: each call brings the ones in force. Nothing of it is told to anybody but people: another caller may find
//! the same service well.

mod account;
pub mod events;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_proto::model::{Endpoint, Outcomes, Service, ServiceName};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use self::account::Account;
use self::events::{Event, Events, What};
use crate::balance::Standing;
use crate::observe::{GuardSnapshot, Guarding, Stats};
use crate::policy::breaker::{Admitted, Breaker, Change, Pass, State};
use crate::policy::budget::Budget;
use crate::policy::concurrency::Places;
use crate::policy::hedge::Latency;
use crate::policy::outlier::{Outlier, Turn};
pub use crate::policy::retry::Outcome;
use crate::policy::trip::{Cause, Sample};

/// One for each service that was called.
#[derive(Debug)]
pub struct Guards {
    /// Asked when configuration is applied, never by a request.
    all: Mutex<HashMap<ServiceName, Arc<Guard>>>,
    events: Arc<Events>,
    stats: Arc<Stats>,
}

/// What was learnt of one service.
#[derive(Debug)]
pub struct Guard {
    name: ServiceName,
    /// Tries of what may have been processed.
    pub budget: Budget,
    /// How long answers took, for hedging.
    pub latency: Latency,
    /// What was tried again, and how it went.
    pub counts: Counts,
    breaker: Breaker,
    places: Places,
    /// Opaque connections, and HTTP/1 connections, which carry one request at a time.
    connections: Places,
    pending: Places,
    /// Told whenever a place is given back.
    freed: Notify,
    panel: ArcSwap<Panel>,
    /// Rebuilding the panel, one at a time.
    rebuilding: Mutex<()>,
    /// Ejected endpoints: most requests find 0 here and look no further.
    ejected: AtomicU32,
    turn: Turn,
    events: Arc<Events>,
}

/// What was learnt of a service, and the policy by which a worker's view judges it.
#[derive(Debug)]
pub struct Home {
    /// What was learnt.
    pub guard: Arc<Guard>,
    /// The policy in force.
    pub service: Arc<Service>,
}

/// The endpoints of the newest view.
#[derive(Debug, Default)]
struct Panel {
    generation: u64,
    service: Option<Arc<Service>>,
    members: Vec<Arc<Member>>,
}

/// What was learnt of one endpoint.
#[derive(Debug)]
pub struct Member {
    name: String,
    epoch: u64,
    outlier: Outlier,
    places: Places,
}

/// Counts for people.
#[derive(Debug, Default)]
pub struct Counts {
    /// Tries of what was never sent, and of what may have been processed.
    pub again: [AtomicU64; 2],
    /// Of these the ones that were well.
    pub again_well: [AtomicU64; 2],
    /// Tries that the budget did not allow.
    pub unaffordable: AtomicU64,
    /// Second requests sent while the first was slow.
    pub hedges: AtomicU64,
    /// Those that answered first.
    pub hedges_won: AtomicU64,
}

/// Why a request may not be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barred {
    /// The breaker is open, for about so long.
    Open(Duration),
    /// All places are taken.
    Full,
    /// As many connections are open as may be.
    Connections,
}

/// A request that waits for a place, counted until dropped.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Guard);

impl Guards {
    /// None yet.
    #[must_use]
    pub fn new(events: Arc<Events>, stats: Arc<Stats>) -> Self {
        Self {
            all: Mutex::default(),
            events,
            stats,
        }
    }

    /// What was learnt of `name`.
    pub fn service(&self, name: &ServiceName) -> Arc<Guard> {
        let mut all = self.all.lock();
        if let Some(found) = all.get(name) {
            return found.clone();
        }
        // Services that nobody calls any more.
        all.retain(|_, guard| Arc::strong_count(guard) > 1);
        let guard = Arc::new(Guard::new(name.clone(), self.events.clone()));
        let known: Weak<dyn Guarding> = Arc::<Guard>::downgrade(&guard);
        self.stats.guards(known);
        all.insert(name.clone(), guard.clone());
        guard
    }
}

impl Guard {
    fn new(name: ServiceName, events: Arc<Events>) -> Self {
        let now = Instant::now();
        Self {
            name,
            budget: Budget::new(now),
            latency: Latency::new(now),
            counts: Counts::default(),
            breaker: Breaker::new(now),
            places: Places::default(),
            connections: Places::default(),
            pending: Places::default(),
            freed: Notify::new(),
            panel: ArcSwap::default(),
            rebuilding: Mutex::new(()),
            ejected: AtomicU32::new(0),
            turn: Turn::default(),
            events,
        }
    }

    /// What was learnt of each of `endpoints`, the view of `generation`. An endpoint that stays keeps what is known of it;
    /// one that begins anew (another epoch) is a new one. Takes a lock: once a view and worker.
    pub fn members(&self, generation: u64, service: &Arc<Service>, endpoints: &[Arc<Endpoint>]) -> Vec<Arc<Member>> {
        let _one = self.rebuilding.lock();
        let old = self.panel.load_full();
        let members: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let name = endpoint.name.to_string();
                let same = old.members.iter().find(|m| m.epoch == endpoint.epoch && m.name == name);
                same.cloned()
                    .unwrap_or_else(|| Arc::new(Member::new(name, endpoint.epoch)))
            })
            .collect();
        // A worker that is behind must not bring back what has left.
        if generation >= old.generation {
            for gone in old
                .members
                .iter()
                .filter(|m| !members.iter().any(|n| Arc::ptr_eq(m, n)))
            {
                if gone.outlier.forget() {
                    self.ejected.fetch_sub(1, Relaxed);
                }
            }
            let members = members.clone();
            self.panel.store(Arc::new(Panel {
                generation,
                service: Some(service.clone()),
                members,
            }));
        }
        // More places, perhaps.
        self.freed.notify_waiters();
        members
    }

    fn standing(&self, now: Instant, service: &Service, member: &Member) -> Standing {
        if self.ejected.load(Relaxed) > 0 && service.outlier.trip.is_some() {
            if member.outlier.is_ejected(now) {
                return Standing::Ejected;
            }
            if member.outlier.comes_back(now) {
                self.came_back(member);
            }
        }
        match service.concurrency.endpoint_requests {
            Some(limit) if member.places.used() >= limit => Standing::Full,
            _ => Standing::Ready,
        }
    }

    /// Asks the breaker for one request.
    ///
    /// # Errors
    /// When it is open, with about how long.
    pub fn pass(&self, now: Instant, service: &Service) -> Result<Pass, Barred> {
        let Some(settings) = &service.breaker else {
            return Ok(Pass::Free);
        };
        match self.breaker.admit(now, settings) {
            Admitted::Yes(pass, change) => {
                if let Some(change) = change {
                    self.changed(change);
                }
                Ok(pass)
            }
            Admitted::No(left) => Err(Barred::Open(left)),
        }
    }

    /// True while every request passes the breaker.
    #[must_use]
    pub fn is_closed(&self, service: &Service) -> bool {
        service.breaker.is_none() || self.breaker.state() == State::Closed
    }

    /// True while requests wait for a place: whoever comes later waits behind them.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.pending.used() > 0
    }

    /// Joins those who wait for a place; none when too many do.
    pub fn wait(&self, limit: u32) -> Option<Waiting<'_>> {
        // Not made unless it is one: its end gives a place back.
        self.pending.take(limit).then(|| Waiting(self))
    }

    /// Gives back a pass that was not used.
    pub fn abandon(&self, pass: Pass) {
        self.breaker.abandon(pass);
    }

    fn record(&self, now: Instant, service: &Service, member: &Arc<Member>, sample: Sample) {
        let Some(cause) = member.outlier.record(now, &service.outlier, sample) else {
            return;
        };
        let panel = self.panel.load();
        // It has left the view meanwhile.
        if !panel.members.iter().any(|m| Arc::ptr_eq(m, member)) {
            return;
        }
        let back = |i: usize| {
            if let Some(member) = panel.members.get(i) {
                self.came_back(member);
            }
        };
        let all = panel.members.iter().map(|m| &m.outlier);
        if let Some(lasts) = self.turn.eject(now, &service.outlier, &member.outlier, all, back) {
            self.ejected.fetch_add(1, Relaxed);
            self.ejected_now(member, cause, lasts);
        }
    }

    fn record_pass(&self, now: Instant, service: &Service, pass: Pass, sample: Sample) {
        let change = match &service.breaker {
            Some(settings) => self.breaker.record(now, pass, settings, sample),
            None => return self.breaker.abandon(pass),
        };
        if let Some(change) = change {
            self.changed(change);
        }
    }

    fn came_back(&self, member: &Member) {
        self.ejected.fetch_sub(1, Relaxed);
        tracing::info!(service = %self.name, endpoint = member.name, "endpoint is used again");
        self.tell(Some(member), What::Returned, String::new(), None);
    }

    fn ejected_now(&self, member: &Member, cause: Cause, lasts: Duration) {
        tracing::warn!(service = %self.name, endpoint = member.name, %cause, next_probe_in = ?lasts, "endpoint ejected");
        self.tell(Some(member), What::Ejected, cause.to_string(), Some(lasts));
    }

    fn changed(&self, change: Change) {
        match change {
            Change::Opened(cause, lasts) => {
                tracing::warn!(service = %self.name, %cause, next_probe_in = ?lasts, "breaker opened");
                self.tell(None, What::BreakerOpened, cause.to_string(), Some(lasts));
            }
            Change::Probing => {
                tracing::info!(service = %self.name, "breaker lets probes through");
                self.tell(None, What::BreakerProbing, String::new(), None);
            }
            Change::Closed => {
                tracing::info!(service = %self.name, "breaker closed");
                self.tell(None, What::BreakerClosed, String::new(), None);
            }
        }
    }

    fn tell(&self, member: Option<&Member>, what: What, cause: String, next: Option<Duration>) {
        self.events.push(Event {
            at: std::time::SystemTime::now(),
            service: self.name.clone(),
            endpoint: member.map(|m| m.name.clone()),
            what,
            cause,
            next,
        });
    }
}

impl Counts {
    /// A try after one of `class` ended; none: it was the first.
    pub fn tried(&self, class: Option<usize>, well: bool) {
        let Some(class) = class else { return };
        if let Some(counter) = self.again.get(class) {
            counter.fetch_add(1, Relaxed);
        }
        if let Some(counter) = self.again_well.get(class).filter(|_| well) {
            counter.fetch_add(1, Relaxed);
        }
    }
}

impl Home {
    /// Whether `member` may be used: it is not ejected, and has a place. One atomic load where nothing is ejected or
    /// bounded.
    #[must_use]
    pub fn standing(&self, now: Instant, member: &Member) -> Standing {
        self.guard.standing(now, &self.service, member)
    }

    /// Opens the account of one try at `member` of `at`, whose `failures` are the route's: takes its places, one among the
    /// connections too when the try has a connection `alone`. What was taken comes back when there are none.
    ///
    /// # Errors
    /// [`Barred::Full`] and [`Barred::Connections`].
    pub fn open(
        self: &Arc<Self>,
        now: Instant,
        at: &Arc<Self>,
        member: &Arc<Member>,
        failures: &Outcomes,
        pass: Pass,
        alone: bool,
    ) -> Result<Account, Barred> {
        let requests = self.service.concurrency.requests;
        if requests.is_some_and(|limit| !self.guard.places.take(limit)) {
            self.guard.breaker.abandon(pass);
            return Err(Barred::Full);
        }
        // From here on dropping the account gives everything back.
        let mut account = Account::new(now, self, at, member, failures, pass, requests.is_some());
        match at.service.concurrency.endpoint_requests {
            Some(limit) if !member.places.take(limit) => return Err(Barred::Full),
            limit => account.at_member(limit.is_some()),
        }
        match self.service.concurrency.connections.filter(|_| alone) {
            Some(limit) if !self.guard.connections.take(limit) => return Err(Barred::Connections),
            limit => account.connected(limit.is_some()),
        }
        Ok(account)
    }
}

impl Guarding for Guard {
    fn snapshot(&self, now: Instant) -> GuardSnapshot {
        let panel = self.panel.load();
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        GuardSnapshot {
            service: self.name.to_string(),
            breaker: match self.breaker.state() {
                State::Closed => 0,
                State::HalfOpen => 1,
                State::Open => 2,
            },
            ejected: panel
                .members
                .iter()
                .filter(|m| m.outlier.is_ejected(now))
                .map(|m| m.name.clone())
                .collect(),
            budget_left: panel
                .service
                .as_ref()
                .map_or(0, |service| self.budget.left(now, &service.retry_budget)),
            again: self.counts.again.each_ref().map(read),
            again_well: self.counts.again_well.each_ref().map(read),
            unaffordable: read(&self.counts.unaffordable),
            hedges: read(&self.counts.hedges),
            hedges_won: read(&self.counts.hedges_won),
            in_flight: self.places.used(),
            connections: self.connections.used(),
            pending: self.pending.used(),
        }
    }
}

impl Member {
    fn new(name: String, epoch: u64) -> Self {
        Self {
            name,
            epoch,
            outlier: Outlier::new(Instant::now()),
            places: Places::default(),
        }
    }
}

impl Waiting<'_> {
    /// Told of a place that was given back after this was made.
    pub fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.freed.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pending.give_back();
    }
}
