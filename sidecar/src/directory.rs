//! What this sidecar knows of the mesh: services and their endpoints, as immutable views.
//!
//! `discover` writes, the journeys read. A destination exists from its first use on; reading its
//! view is one atomic load. Knows nothing of streams, sockets or requests.

pub mod traffic;
mod view;

pub use view::{Set, View};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_proto::access::{Call, Rules, Verdict};
use outrigger_proto::model::{AccessLog, Endpoint, FieldError, Mode, Proxy, Service, ServiceName};
use parking_lot::Mutex;
use tokio::sync::watch;

use self::traffic::Traffic;
use crate::observe::{Gauge, Stats};
use crate::protect::{Protection, Quotas};

/// All that is known, shared by every thread.
#[derive(Debug)]
pub struct Directory {
    /// The workload's service.
    own: ServiceName,
    stats: Arc<Stats>,
    quotas: Arc<Quotas>,
    destinations: Mutex<HashMap<ServiceName, Arc<Destination>>>,
    /// Grows whenever the set of wanted services changes; `discover` subscribes by it.
    wanted: watch::Sender<u64>,
    proxy: ArcSwap<Proxy>,
    admission: ArcSwap<Admission>,
    /// Copied out of the settings: read once a request.
    logs_requests: AtomicBool,
    proxy_changed: watch::Sender<()>,
    /// Views get numbers so that a worker sees with one comparison that its own is old.
    generation: AtomicU64,
    started: std::time::Instant,
}

/// Who may come in, as the workload's settings say it: read once a connection and once a request.
#[derive(Debug)]
pub struct Admission {
    /// How callers reach the workload.
    pub mode: Mode,
    /// None when the rules could not be read: then nobody may.
    rules: Option<Rules>,
    /// What bounds those who may; none: nothing does.
    pub protection: Option<Arc<Protection>>,
    trust_domain: Box<str>,
}

impl Admission {
    fn new(proxy: &Proxy, trust_domain: &str, protection: Option<Arc<Protection>>) -> Self {
        let rules = Rules::compile(&proxy.access, trust_domain)
            .inspect_err(|error| tracing::error!(%error, "nobody may call: the rules of who may cannot be read"));
        Self {
            mode: proxy.mode,
            rules: rules.ok(),
            protection,
            trust_domain: trust_domain.into(),
        }
    }

    /// What the rules say of `call`.
    #[must_use]
    pub fn decide(&self, call: &Call<'_>) -> Verdict<'_> {
        let refused = Verdict::Denied {
            rule: "the rules cannot be read",
        };
        self.rules.as_ref().map_or(refused, |rules| rules.decide(call))
    }
}

/// What bounds the requests to the app; what was in force stays when it cannot be read.
fn protection(
    proxy: &Proxy,
    before: Option<&Arc<Protection>>,
    quotas: &Quotas,
    stats: &Stats,
) -> Option<Arc<Protection>> {
    let now = std::time::Instant::now();
    match Protection::new(proxy, before.map(|b| &**b), quotas, stats, now) {
        Ok(protection) => {
            quotas.replace(protection.as_ref().map(Protection::quotas).unwrap_or_default());
            protection.map(Arc::new)
        }
        Err(error) => {
            tracing::error!(%error, "the bounds of requests stay as they were: the new ones cannot be read");
            before.cloned()
        }
    }
}

/// Stands for the own trust domain while there is no identity; no caller has been let in then.
const NO_TRUST_DOMAIN: &str = "none";

/// One service as a caller sees it.
#[derive(Debug)]
pub struct Destination {
    /// `namespace/service`.
    pub name: ServiceName,
    state: ArcSwap<Known>,
    changed: watch::Sender<()>,
    /// Declared in the bootstrap or the Proxy resource: never forgotten.
    pinned: AtomicBool,
    /// Milliseconds since the directory began.
    last_used: AtomicU64,
}

/// What is known of a destination.
#[derive(Debug, Clone)]
pub enum Known {
    /// Asked for; the answer is not complete yet.
    Waiting,
    /// The mesh has no such service.
    Absent,
    /// The service and its complete set of endpoints.
    Present(Arc<View>),
}

impl Directory {
    /// An empty directory for the workload whose settings start as `proxy`.
    #[must_use]
    pub fn new(proxy: Proxy, quotas: Arc<Quotas>, stats: Arc<Stats>) -> Self {
        Self {
            own: proxy.name.clone(),
            destinations: Mutex::new(HashMap::new()),
            wanted: watch::Sender::new(0),
            logs_requests: AtomicBool::new(proxy.access_log == AccessLog::Json),
            admission: ArcSwap::from_pointee(Admission::new(
                &proxy,
                NO_TRUST_DOMAIN,
                protection(&proxy, None, &quotas, &stats),
            )),
            proxy: ArcSwap::from_pointee(proxy),
            stats,
            quotas,
            proxy_changed: watch::Sender::new(()),
            generation: AtomicU64::new(0),
            started: std::time::Instant::now(),
        }
    }

    /// The workload's own settings.
    #[must_use]
    pub fn proxy(&self) -> Arc<Proxy> {
        self.proxy.load_full()
    }

    /// Replaces the workload's own settings.
    pub fn set_proxy(&self, proxy: Proxy) {
        self.logs_requests
            .store(proxy.access_log == AccessLog::Json, Ordering::Relaxed);
        let before = self.admission.load_full();
        let protection = protection(&proxy, before.protection.as_ref(), &self.quotas, &self.stats);
        let admission = Admission::new(&proxy, &before.trust_domain, protection);
        self.proxy.store(Arc::new(proxy));
        self.admission.store(Arc::new(admission));
        self.proxy_changed.send_replace(());
    }

    /// Who may come in. One atomic load.
    #[must_use]
    pub fn admission(&self) -> arc_swap::Guard<Arc<Admission>> {
        self.admission.load()
    }

    /// Tells which trust domain services and namespaces without one belong to: the own identity's. Cheap
    /// when nothing changes, so that it may be told for every connection.
    pub fn belongs_to(&self, trust_domain: &str) {
        let before = self.admission.load();
        if *before.trust_domain != *trust_domain {
            // Rarely, and whoever comes second compiles the same again.
            let admission = Admission::new(&self.proxy.load(), trust_domain, before.protection.clone());
            self.admission.store(Arc::new(admission));
        }
    }

    /// Puts into the gauges what changes with every request, for whoever is about to read them.
    pub fn measure(&self) {
        let figures = self.admission.load().protection.as_ref().and_then(|p| p.figures());
        let gauges = [Gauge::AdmissionLimit, Gauge::AdmissionInFlight, Gauge::AdmissionQueued];
        for (gauge, figure) in gauges.into_iter().zip(figures.unwrap_or_default()) {
            self.stats.set(gauge, figure.into());
        }
    }

    /// True when requests are to be logged.
    #[must_use]
    pub fn logs_requests(&self) -> bool {
        self.logs_requests.load(Ordering::Relaxed)
    }

    /// Changes whenever [`proxy`](Self::proxy) is replaced.
    #[must_use]
    pub fn proxy_changes(&self) -> watch::Receiver<()> {
        self.proxy_changed.subscribe()
    }

    /// The destination called `name`, declared for good.
    pub fn declare(&self, name: &ServiceName) -> Arc<Destination> {
        self.enter(name, true)
    }

    /// The destination called `name`; wanted from now on until it is idle.
    pub fn destination(&self, name: &ServiceName) -> Arc<Destination> {
        self.enter(name, false)
    }

    fn enter(&self, name: &ServiceName, pinned: bool) -> Arc<Destination> {
        let mut all = self.destinations.lock();
        if let Some(found) = all.get(name) {
            found.touch(self.now());
            // The same object stays: others hold it and would not see a successor's views.
            found.pinned.fetch_or(pinned, Ordering::Relaxed);
            return found.clone();
        }
        let made = Arc::new(Destination {
            name: name.clone(),
            state: ArcSwap::from_pointee(Known::Waiting),
            changed: watch::Sender::new(()),
            pinned: AtomicBool::new(pinned),
            last_used: AtomicU64::new(self.now()),
        });
        all.insert(name.clone(), made.clone());
        drop(all);
        self.wanted.send_modify(|n| *n += 1);
        made
    }

    /// Names of all wanted services.
    #[must_use]
    pub fn wanted(&self) -> HashSet<ServiceName> {
        self.destinations.lock().keys().cloned().collect()
    }

    /// Changes whenever [`wanted`](Self::wanted) does.
    #[must_use]
    pub fn wanted_changes(&self) -> watch::Receiver<u64> {
        self.wanted.subscribe()
    }

    /// Forgets destinations that nobody declared and nobody used for `idle`; returns their names.
    pub fn forget_idle(&self, idle: Duration) -> Vec<ServiceName> {
        let limit = self
            .now()
            .saturating_sub(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        let mut gone = Vec::new();
        self.destinations.lock().retain(|name, d| {
            let keep = d.pinned.load(Ordering::Relaxed)
                || d.last_used.load(Ordering::Relaxed) >= limit
                || Arc::strong_count(d) > 1;
            if !keep {
                gone.push(name.clone());
            }
            keep
        });
        if !gone.is_empty() {
            self.wanted.send_modify(|n| *n += 1);
        }
        gone
    }

    /// Publishes a service with its complete set of endpoints.
    pub fn publish(&self, service: Arc<Service>, endpoints: Vec<Arc<Endpoint>>) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let name = service.name.clone();
        let before = self.destinations.lock().get(&name).and_then(|d| d.view());
        // Outside of the lock: hash tables take milliseconds.
        let now = std::time::Instant::now();
        let traffic = match self.traffic(&service, before.as_deref()) {
            Ok(traffic) => traffic,
            Err(error) => {
                tracing::error!(service = %name, %error, "what was known of the service stays: its routes cannot be followed");
                return;
            }
        };
        let view = View::new(generation, service, endpoints, before.as_deref(), traffic, now);
        self.set(&name, Known::Present(Arc::new(view)));
    }

    /// The routes and faults of `service`: those of `before` while the service is the same.
    fn traffic(&self, service: &Arc<Service>, before: Option<&View>) -> Result<Option<Arc<Traffic>>, FieldError> {
        if let Some(before) = before.filter(|b| Arc::ptr_eq(&b.service, service)) {
            return Ok(before.traffic.clone());
        }
        let traffic = Traffic::new(service, &self.own, &self.stats.counts)?.map(Arc::new);
        for other in traffic.iter().flat_map(|t| &t.others) {
            // Known before the first request goes there.
            self.destination(other);
        }
        self.stats.counts.prune();
        Ok(traffic)
    }

    /// Publishes that the mesh has no service called `name`.
    pub fn publish_absent(&self, name: &ServiceName) {
        self.set(name, Known::Absent);
    }

    fn set(&self, name: &ServiceName, known: Known) {
        if let Some(destination) = self.destinations.lock().get(name) {
            destination.state.store(Arc::new(known));
            destination.changed.send_replace(());
        }
    }

    /// Every destination, for the admin pages.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Destination>> {
        self.destinations.lock().values().cloned().collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Destination {
    /// What is known now. One atomic load.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        self.state.load_full()
    }

    /// The view, when there is one. One atomic load and one reference count.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        match &**self.state.load() {
            Known::Present(view) => Some(view.clone()),
            _ => None,
        }
    }

    /// The number of the current view; 0 when there is none. No reference count.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match &**self.state.load() {
            Known::Present(view) => view.generation,
            _ => 0,
        }
    }

    /// Waits until the destination is known, at most `limit`.
    ///
    /// # Cancel safety
    /// Safe: nothing is consumed.
    pub async fn wait(&self, limit: Duration) -> Arc<Known> {
        let mut changed = self.changed.subscribe();
        let known = async {
            while matches!(&**self.state.load(), Known::Waiting) {
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        // A time-out leaves it unknown, which the caller sees.
        drop(tokio::time::timeout(limit, known).await);
        self.known()
    }

    fn touch(&self, now: u64) {
        self.last_used.store(now, Ordering::Relaxed);
    }
}
