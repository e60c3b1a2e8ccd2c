//! Who serves what, and for how long: registrations under leases.
//!
//! Pure: `now` is an argument in milliseconds of any monotonic clock, nothing here sleeps, logs or
//! stores. Every operation answers with the [`Change`]s that the other rooms push, store and show.
//!
//! The rules, which the tests spell out one by one:
//! - A late message (older boot epoch, or an older session of the same epoch) changes nothing.
//! - A clean leave and a failing health check count at once; a lost connection changes nothing,
//!   because the lease runs on.
//! - After a restart nothing expires until restored leases have had one lease time plus grace.
//! - When more than half of a service's leases lapse within one lease time, the set of that time
//!   stays and is marked stale. A set never becomes empty by expiry alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_proto::model::{Endpoint, EndpointName, ServiceName};

mod expiry;
#[cfg(test)]
mod tests;

/// Milliseconds of a monotonic clock.
pub type Millis = u64;

/// Grows with every `Hello`; tells a sidecar's new session from its old one.
pub type SessionId = u64;

/// How long a registration lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// A registration that is not renewed for this long lapses.
    pub lease: Millis,
    /// What restored leases get on top after a restart.
    pub grace: Millis,
}

/// What an operation changed, for those who push, store and show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The endpoint is served as it stands here now.
    Serve(Arc<Endpoint>),
    /// The endpoint is served no more; it may not have been before, when its app was unwell.
    Remove(EndpointName, Removal),
    /// The service's last set is kept although these of its leases lapsed.
    Stale(ServiceName, Stale),
    /// The service is no longer stale.
    Fresh(ServiceName),
}

/// Why an endpoint is served no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Its sidecar said that it leaves.
    Left(String),
    /// Its sidecar said that the app is not well.
    Unhealthy(String),
    /// Its lease ran out.
    Lapsed,
}

/// The alarm of a service whose last set is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    /// When the alarm was raised.
    pub since: Millis,
    /// How many leases lapsed.
    pub lapsed: usize,
    /// Of how many.
    pub of: usize,
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A later start of the same instance is known.
    #[error("epoch {given} is older than {known}, which is registered")]
    OldEpoch {
        /// The message's epoch.
        given: u64,
        /// The latest epoch seen.
        known: u64,
    },
    /// A later session of the same epoch has spoken.
    #[error("a later session of this instance is open")]
    OldSession,
    /// Nothing is registered under this name.
    #[error("{0} is not registered; register again")]
    Unknown(EndpointName),
    /// It may not serve.
    #[error("{0} is revoked; `outrigger certs allow` lets it in again")]
    Barred(EndpointName),
}

/// Who sends a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The instance.
    pub name: EndpointName,
    /// Its boot epoch.
    pub epoch: u64,
    /// Its session.
    pub session: SessionId,
}

/// What is known of one registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What was registered.
    pub endpoint: Arc<Endpoint>,
    /// Why it is not served although registered.
    pub unhealthy: Option<String>,
    /// When it was registered, renewed or restored last.
    pub renewed: Millis,
    /// When it lapses.
    pub expires: Millis,
    /// True once it lapsed and is kept all the same.
    pub lapsed: bool,
    session: SessionId,
}

impl Lease {
    /// Who registered it.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender {
            name: self.endpoint.name.clone(),
            epoch: self.endpoint.epoch,
            session: self.session,
        }
    }

    fn served(&self) -> bool {
        self.unhealthy.is_none()
    }
}

/// The leases of one service.
#[derive(Debug, Default)]
struct Set {
    leases: BTreeMap<EndpointName, Lease>,
    /// Removed by expiry within the last lease time: they come back if the rest lapses too.
    recent: BTreeMap<EndpointName, (Millis, Lease)>,
    stale: Option<Stale>,
}

/// The latest word of an instance, kept after it left so that late messages are recognised.
#[derive(Debug, Clone, Copy)]
struct Seen {
    epoch: u64,
    session: SessionId,
    at: Millis,
}

/// All registrations.
#[derive(Debug)]
pub struct Registry {
    terms: Terms,
    /// Nothing expires before this time.
    hold_until: Millis,
    sets: BTreeMap<ServiceName, Set>,
    seen: BTreeMap<EndpointName, Seen>,
}

impl Registry {
    /// An empty registry that starts at `now`: nothing expires for one lease time plus grace.
    #[must_use]
    pub fn new(terms: Terms, now: Millis) -> Self {
        Self {
            terms,
            hold_until: now + terms.lease + terms.grace,
            sets: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Takes back a registration that was stored before a restart. It is served at once.
    pub fn restore(&mut self, now: Millis, endpoint: Endpoint, unhealthy: Option<String>) -> Option<Change> {
        let endpoint = Arc::new(endpoint);
        let name = endpoint.name.clone();
        let lease = Lease {
            endpoint: Arc::clone(&endpoint),
            unhealthy,
            renewed: now,
            expires: now + self.terms.lease + self.terms.grace,
            lapsed: false,
            session: 0,
        };
        self.see(now, &name, endpoint.epoch, 0);
        let served = lease.served();
        self.set(&name.service).leases.insert(name, lease);
        served.then_some(Change::Serve(endpoint))
    }

    /// Registers `endpoint`, or replaces what an older or equal epoch registered.
    ///
    /// # Errors
    /// When a later epoch or session of the same instance is known.
    pub fn register(&mut self, now: Millis, endpoint: Endpoint, session: SessionId) -> Result<Vec<Change>, Refusal> {
        let name = endpoint.name.clone();
        self.admit(now, &name, endpoint.epoch, session)?;
        let endpoint = Arc::new(endpoint);
        let lease = Lease {
            endpoint: Arc::clone(&endpoint),
            unhealthy: None,
            renewed: now,
            expires: now + self.terms.lease,
            lapsed: false,
            session,
        };
        let set = self.set(&name.service);
        set.recent.remove(&name);
        let before = set.leases.insert(name.clone(), lease);
        let same = before.is_some_and(|b| b.served() && b.endpoint == endpoint);
        let mut changes = Vec::new();
        if !same {
            changes.push(Change::Serve(endpoint));
        }
        self.settle(now, &name.service, &mut changes);
        Ok(changes)
    }

    /// Keeps the lease of the sender alive.
    ///
    /// # Errors
    /// When the sender is outdated or has no registration.
    pub fn renew(&mut self, now: Millis, sender: &Sender) -> Result<Vec<Change>, Refusal> {
        self.touch(now, sender)?;
        let mut changes = Vec::new();
        self.settle(now, &sender.name.service, &mut changes);
        Ok(changes)
    }

    /// The sender's app is well again, or not (`Some` says why). Counts as a renewal.
    ///
    /// # Errors
    /// When the sender is outdated or has no registration.
    pub fn health(&mut self, now: Millis, sender: &Sender, unhealthy: Option<String>) -> Result<Vec<Change>, Refusal> {
        let lease = self.touch(now, sender)?;
        let mut changes = Vec::new();
        match (&lease.unhealthy, &unhealthy) {
            (None, Some(reason)) => {
                let reason = Removal::Unhealthy(reason.clone());
                changes.push(Change::Remove(sender.name.clone(), reason));
            }
            (Some(_), None) => changes.push(Change::Serve(Arc::clone(&lease.endpoint))),
            _ => {}
        }
        lease.unhealthy = unhealthy;
        self.settle(now, &sender.name.service, &mut changes);
        Ok(changes)
    }

    /// The sender leaves: its registration ends at once.
    ///
    /// # Errors
    /// When the sender is outdated. Leaving twice is fine.
    pub fn withdraw(&mut self, now: Millis, sender: &Sender, reason: &str) -> Result<Vec<Change>, Refusal> {
        self.admit(now, &sender.name, sender.epoch, sender.session)?;
        let mut changes = Vec::new();
        let Some(set) = self.sets.get_mut(&sender.name.service) else {
            return Ok(changes);
        };
        set.recent.remove(&sender.name);
        if set.leases.remove(&sender.name).is_some() {
            changes.push(Change::Remove(sender.name.clone(), Removal::Left(reason.to_owned())));
        }
        self.settle(now, &sender.name.service, &mut changes);
        Ok(changes)
    }

    /// Ends the registrations of those who may no longer serve, also of those that lapsed lately: they must not
    /// come back with the last set of a service.
    pub fn expel(&mut self, now: Millis, barred: impl Fn(&EndpointName) -> bool, reason: &str) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut touched = Vec::new();
        for (service, set) in &mut self.sets {
            set.recent.retain(|name, _| !barred(name));
            let before = changes.len();
            set.leases.retain(|name, _| {
                let gone = barred(name);
                if gone {
                    changes.push(Change::Remove(name.clone(), Removal::Left(reason.to_owned())));
                }
                !gone
            });
            if changes.len() > before {
                touched.push(service.clone());
            }
        }
        for service in touched {
            self.settle(now, &service, &mut changes);
        }
        changes
    }

    /// Every registration, served or not, by service.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.sets.values().flat_map(|set| set.leases.values())
    }

    /// The registrations of one service.
    pub fn of(&self, service: &ServiceName) -> impl Iterator<Item = &Lease> {
        self.sets.get(service).into_iter().flat_map(|set| set.leases.values())
    }

    /// One registration.
    #[must_use]
    pub fn lease(&self, name: &EndpointName) -> Option<&Lease> {
        self.sets.get(&name.service)?.leases.get(name)
    }

    /// The alarm of a service whose last set is kept.
    #[must_use]
    pub fn stale(&self, service: &ServiceName) -> Option<Stale> {
        self.sets.get(service)?.stale
    }

    /// Until when nothing expires because this registry has just started.
    #[must_use]
    pub fn hold_until(&self) -> Millis {
        self.hold_until
    }

    fn set(&mut self, service: &ServiceName) -> &mut Set {
        self.sets.entry(service.clone()).or_default()
    }

    /// Refuses what an outdated sender says and remembers the sender otherwise.
    fn admit(&mut self, now: Millis, name: &EndpointName, epoch: u64, session: SessionId) -> Result<(), Refusal> {
        if let Some(seen) = self.seen.get(name) {
            if epoch < seen.epoch {
                let known = seen.epoch;
                return Err(Refusal::OldEpoch { given: epoch, known });
            }
            if epoch == seen.epoch && session < seen.session {
                return Err(Refusal::OldSession);
            }
        }
        self.see(now, name, epoch, session);
        Ok(())
    }

    fn see(&mut self, at: Millis, name: &EndpointName, epoch: u64, session: SessionId) {
        self.seen.insert(name.clone(), Seen { epoch, session, at });
    }

    /// The sender's lease, renewed. A later epoch than the registered one has to register first.
    fn touch(&mut self, now: Millis, sender: &Sender) -> Result<&mut Lease, Refusal> {
        self.admit(now, &sender.name, sender.epoch, sender.session)?;
        let unknown = || Refusal::Unknown(sender.name.clone());
        let set = self.sets.get_mut(&sender.name.service).ok_or_else(unknown)?;
        let lease = set.leases.get_mut(&sender.name).ok_or_else(unknown)?;
        if lease.endpoint.epoch != sender.epoch {
            return Err(unknown());
        }
        lease.session = sender.session;
        lease.renewed = now;
        lease.expires = now + self.terms.lease;
        lease.lapsed = false;
        Ok(lease)
    }
}
