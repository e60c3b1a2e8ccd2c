//! Joins the rooms: what the registry decides is pushed, stored and told.
//!
//! Lock order: registry or rollout, then hub, authority or quotas. The sidecars' lock is never held together with another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_proto::model::{Endpoint, EndpointName, ResourceType};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::config::{self, ConfigErrors, Mesh};
use crate::events::{Event, Events};
use crate::identity::Authority;
use crate::push::hub::Hub;
use crate::push::table::Entry;
use crate::quota::Book;
use crate::registry::{Change, Lease, Millis, Refusal, Registry, Removal, Sender, SessionId, Terms};
use crate::rollout::{Applied, Rollout};
use crate::sidecars::Sidecars;
use crate::store::Store;

mod quota;
mod trust;

/// Everything that one control plane knows.
#[derive(Debug)]
pub struct Plane {
    /// What is pushed.
    pub hub: Arc<Mutex<Hub>>,
    /// What happened.
    pub events: Arc<Events>,
    /// What the sidecars say of themselves.
    pub sidecars: Mutex<Sidecars>,
    /// What outlives a crash.
    pub store: Store,
    /// Who is who.
    pub authority: Arc<Authority>,
    /// Who holds which share of the rates that instances keep together.
    pub quotas: Mutex<Book>,
    /// How long a registration lives.
    pub terms: Terms,
    registry: Mutex<Registry>,
    rollout: Mutex<Rollout>,
    /// The text of the last good configuration that was stored.
    stored: Option<String>,
    sessions: AtomicU64,
    started: Instant,
}

impl Plane {
    /// Opens the store and serves what it holds at once.
    #[must_use]
    pub fn open(
        state_dir: Option<&std::path::Path>,
        terms: Terms,
        events: Arc<Events>,
        authority: Arc<Authority>,
    ) -> Self {
        let (store, restored) = Store::open(state_dir, &events);
        let mut registry = Registry::new(terms, 0);
        let mut hub = Hub::default();
        // Trust is known from the start.
        for kind in [ResourceType::Proxy, ResourceType::Service, ResourceType::Endpoint] {
            hub.hold(kind);
        }
        for (endpoint, unhealthy) in restored.endpoints {
            let name = endpoint.name.to_string();
            match registry.restore(0, endpoint, unhealthy) {
                Some(Change::Serve(endpoint)) => put(&mut hub, &endpoint),
                // Its app was unwell before the restart: a client that missed this is told now.
                _ => {
                    hub.remove(ResourceType::Endpoint, &name);
                }
            }
        }
        let plane = Self {
            hub: Arc::new(Mutex::new(hub)),
            events,
            authority,
            sidecars: Mutex::default(),
            store,
            quotas: Mutex::new(Book::new(terms.lease)),
            terms,
            registry: Mutex::new(registry),
            rollout: Mutex::default(),
            stored: restored.config,
            sessions: AtomicU64::new(0),
            started: Instant::now(),
        };
        plane.tell_trust();
        plane
    }

    /// Milliseconds since this control plane started.
    #[must_use]
    pub fn now(&self) -> Millis {
        Millis::try_from(self.started.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// The part of every id that is the same in the whole mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.authority.trust_domain()
    }

    /// A number for a new session, larger than those before.
    #[must_use]
    pub fn next_session(&self) -> SessionId {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The registrations, to look at.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    /// The configuration, to look at.
    pub fn rollout(&self) -> MutexGuard<'_, Rollout> {
        self.rollout.lock()
    }

    /// Puts a configuration into force and tells those who use what changed, or refuses it whole.
    ///
    /// # Errors
    /// When it was not valid: nothing changed.
    pub fn apply(&self, origin: &str, mesh: Result<Mesh, ConfigErrors>, text: &str) -> Result<Applied, ConfigErrors> {
        let mut rollout = self.rollout.lock();
        let mesh = mesh.inspect_err(|errors| {
            rollout.refuse(origin, errors.clone());
            let reasons = errors.errors.iter().map(config::ConfigError::one_line).collect();
            let origin = origin.to_owned();
            self.events.record(Event::ConfigRefused { origin, reasons });
        })?;
        for warning in &mesh.warnings {
            tracing::warn!(origin, "{}", warning.one_line());
        }
        let applied = rollout.take(origin, &mesh);
        self.quotas.lock().set(quota::limits(&rollout.catalog));
        {
            let mut hub = self.hub.lock();
            for (name, entry) in rollout.catalog.iter() {
                hub.put(ResourceType::Proxy, name.as_str(), Entry::proxy(&entry.proxy.resource));
                hub.put(
                    ResourceType::Service,
                    name.as_str(),
                    Entry::service(&entry.service.resource),
                );
            }
            for kind in [ResourceType::Proxy, ResourceType::Service] {
                for name in &applied.changes.removed {
                    hub.remove(kind, name.as_str());
                }
                // From here on the catalog is complete, so what is absent does not exist.
                hub.release(kind);
            }
        }
        self.store.put_config(text);
        self.events.record(Event::ConfigApplied {
            version: applied.version.clone(),
            origin: origin.to_owned(),
            changed: applied.changes.names().iter().map(ToString::to_string).collect(),
        });
        Ok(applied)
    }

    /// Puts the last good configuration of an earlier run into force, unless it is also what the
    /// file `newer` holds.
    pub fn apply_stored(&self, newer: Option<&str>) {
        if let Some(text) = self.stored.as_deref().filter(|text| newer != Some(text)) {
            // A refusal is in the events and in the status; there is nobody to answer.
            let _refused = self.apply("last good", config::parse("last good", text), text).is_err();
        }
    }

    /// See [`Registry::register`].
    ///
    /// # Errors
    /// See there; and when its identity was revoked.
    pub fn register(&self, endpoint: Endpoint, session: SessionId) -> Result<(), Refusal> {
        let now = self.now();
        // Asked under the registry's lock: a session that is about to be cut does not register after
        // `tell_trust` took its endpoint away.
        self.decide(|registry| match self.authority.bars(&endpoint.name) {
            true => Err(Refusal::Barred(endpoint.name)),
            false => registry.register(now, endpoint, session),
        })
    }

    /// See [`Registry::renew`].
    ///
    /// # Errors
    /// See there.
    pub fn renew(&self, sender: &Sender) -> Result<(), Refusal> {
        let now = self.now();
        self.decide(|registry| registry.renew(now, sender))
    }

    /// See [`Registry::health`].
    ///
    /// # Errors
    /// See there.
    pub fn health(&self, sender: &Sender, unhealthy: Option<String>) -> Result<(), Refusal> {
        let now = self.now();
        self.decide(|registry| registry.health(now, sender, unhealthy))
    }

    /// See [`Registry::withdraw`].
    ///
    /// # Errors
    /// See there.
    pub fn withdraw(&self, sender: &Sender, reason: &str) -> Result<(), Refusal> {
        let now = self.now();
        self.decide(|registry| registry.withdraw(now, sender, reason))
    }

    /// Lets time pass: leases lapse, and the hold after a start ends.
    pub fn tick(&self) {
        let now = self.now();
        let over =
            self.decide(|registry| Ok::<_, Refusal>(registry.tick(now))).is_ok() && now >= self.registry().hold_until();
        if over {
            self.hub.lock().release(ResourceType::Endpoint);
        }
        self.sidecars.lock().forget(now);
    }

    /// Runs one decision and carries it out before the next one is made.
    fn decide(&self, decision: impl FnOnce(&mut Registry) -> Result<Vec<Change>, Refusal>) -> Result<(), Refusal> {
        let mut registry = self.registry.lock();
        let changes = decision(&mut registry)?;
        for change in changes {
            match change {
                Change::Serve(endpoint) => {
                    put(&mut self.hub.lock(), &endpoint);
                    self.store.put_endpoint(&endpoint, None);
                    let (endpoint, epoch) = (endpoint.name.to_string(), endpoint.epoch);
                    self.events.record(Event::Registered { endpoint, epoch });
                }
                Change::Remove(name, removal) => self.remove(&name, removal, registry.lease(&name)),
                Change::Stale(service, stale) => self.events.record(Event::StaleAlarm {
                    service: service.to_string(),
                    lapsed: stale.lapsed,
                    of: stale.of,
                }),
                Change::Fresh(service) => {
                    let service = service.to_string();
                    self.events.record(Event::StaleOver { service });
                }
            }
        }
        Ok(())
    }

    fn remove(&self, name: &EndpointName, removal: Removal, lease: Option<&Lease>) {
        let endpoint = name.to_string();
        self.hub.lock().remove(ResourceType::Endpoint, &endpoint);
        match lease {
            // Unwell but registered: a restart must not serve it.
            Some(lease) => self.store.put_endpoint(&lease.endpoint, lease.unhealthy.as_deref()),
            None => self.store.remove_endpoint(name),
        }
        self.events.record(match removal {
            Removal::Left(reason) | Removal::Unhealthy(reason) => Event::Withdrawn { endpoint, reason },
            Removal::Lapsed => Event::Lapsed { endpoint },
        });
    }
}

fn put(hub: &mut Hub, endpoint: &Endpoint) {
    let wire = endpoint.clone().into();
    hub.put(
        ResourceType::Endpoint,
        &endpoint.name.to_string(),
        Entry::endpoint(&wire),
    );
}
