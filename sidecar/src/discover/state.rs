//! The client side of the delta protocol as a pure state machine: answers and wishes go in, requests
//! and changes of the directory come out.
//!
//! What arrived stays in force until the control plane names its removal: a lost stream, a refused
//! resource or an older epoch takes nothing away. No I/O, no clock, no lock.

mod accept;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use outrigger_proto::model::{Endpoint, FieldError, Proxy, ResourceType, Service, ServiceName, TrustBundle};
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource};

use super::status::Applied;

/// What one workload's sidecar knows of the mesh and asks for.
#[derive(Debug)]
pub struct State {
    own: ServiceName,
    proxy: Option<Held<Proxy>>,
    trust: Option<Held<TrustBundle>>,
    wanted: BTreeSet<ServiceName>,
    services: BTreeMap<ServiceName, Held<Service>>,
    absent: BTreeSet<ServiceName>,
    collections: BTreeMap<ServiceName, Collection>,
    /// True from [`connect`](Self::connect) to [`disconnect`](Self::disconnect).
    connected: bool,
}

/// A resource in force, and its bytes for the snapshot.
#[derive(Debug)]
struct Held<T> {
    version: String,
    value: Arc<T>,
    bytes: Vec<u8>,
    /// From the bootstrap file; the control plane does not know that we have it.
    from_file: bool,
}

/// One service's endpoints.
#[derive(Debug, Default)]
struct Collection {
    complete: bool,
    members: BTreeMap<Arc<str>, Held<Endpoint>>,
    /// Epochs of instances that left, so that a late message does not bring them back.
    gone: BTreeMap<Arc<str>, u64>,
}

/// What to do after an input.
#[derive(Debug, Default)]
pub struct Output {
    /// To send, in order. Empty while disconnected.
    pub requests: Vec<DeltaDiscoveryRequest>,
    /// To carry out on the directory, in order.
    pub changes: Vec<Change>,
    /// What happened to each resource.
    pub applied: Vec<Applied>,
    /// Unknown fields that were ignored.
    pub ignored: usize,
}

/// One change of the directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// The workload's own settings.
    Proxy(Box<Proxy>),
    /// What every workload trusts.
    Trust(Box<TrustBundle>),
    /// A service with its complete set of endpoints.
    Publish(Arc<Service>, Vec<Arc<Endpoint>>),
    /// The mesh has no such service.
    Absent(ServiceName),
}

impl State {
    /// Knows nothing yet and belongs to the workload of service `own`.
    #[must_use]
    pub fn new(own: ServiceName) -> Self {
        Self {
            own,
            proxy: None,
            trust: None,
            wanted: BTreeSet::new(),
            services: BTreeMap::new(),
            absent: BTreeSet::new(),
            collections: BTreeMap::new(),
            connected: false,
        }
    }

    /// Takes in the set of services that this sidecar wants; publishes what is known of new ones.
    pub fn want(&mut self, wanted: &HashSet<ServiceName>) -> Output {
        let wanted: BTreeSet<ServiceName> = wanted.iter().cloned().collect();
        let mut output = Output::default();
        let added: Vec<_> = wanted.difference(&self.wanted).cloned().collect();
        let dropped: Vec<_> = self.wanted.difference(&wanted).cloned().collect();
        self.wanted = wanted;
        for name in &dropped {
            self.forget(name, &mut output);
        }
        output
            .changes
            .extend(added.iter().filter_map(|name| self.publication(name)));
        if self.connected {
            let services = |names: &[ServiceName]| -> Vec<String> {
                names
                    .iter()
                    .filter(|n| **n != self.own)
                    .map(ToString::to_string)
                    .collect()
            };
            let collections =
                |names: &[ServiceName]| -> Vec<String> { names.iter().map(ServiceName::collection).collect() };
            for (kind, subscribe, unsubscribe) in [
                (ResourceType::Service, services(&added), services(&dropped)),
                (ResourceType::Endpoint, collections(&added), collections(&dropped)),
            ] {
                // A request without names would mean everything (xDS, "wildcard").
                if !subscribe.is_empty() || !unsubscribe.is_empty() {
                    output.requests.push(DeltaDiscoveryRequest {
                        type_url: kind.url().into(),
                        resource_names_subscribe: subscribe,
                        resource_names_unsubscribe: unsubscribe,
                        ..Default::default()
                    });
                }
            }
        }
        output
    }

    /// A new stream begins: what to ask, and what is held already so that only differences come.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.connected = true;
        // What a snapshot held and nobody asked for since is not worth keeping once somebody can be asked.
        let known: Vec<_> = self.services.keys().chain(self.collections.keys()).cloned().collect();
        for name in known {
            if !self.wanted.contains(&name) {
                self.forget(&name, &mut Output::default());
            }
        }
        ResourceType::ALL
            .into_iter()
            .map(|kind| DeltaDiscoveryRequest {
                type_url: kind.url().into(),
                resource_names_subscribe: self.names(kind),
                initial_resource_versions: self
                    .held(kind)
                    .filter(|(_, version, _)| !version.is_empty())
                    .map(|(name, version, _)| (name, version.to_owned()))
                    .collect(),
                ..Default::default()
            })
            .filter(|request| !request.resource_names_subscribe.is_empty())
            .collect()
    }

    /// The stream ended; everything known stays.
    pub fn disconnect(&mut self) {
        self.connected = false;
    }

    /// Everything in force, to be carried out once more: nobody knows whether it was.
    #[must_use]
    pub fn again(&self) -> Output {
        let mut output = Output::default();
        let own = self.proxy.iter().map(|p| Change::Proxy(Box::new((*p.value).clone())));
        let trust = self.trust.iter().map(|t| Change::Trust(Box::new((*t.value).clone())));
        output.changes.extend(own.chain(trust));
        output
            .changes
            .extend(self.wanted.iter().filter_map(|name| self.publication(name)));
        for kind in ResourceType::ALL {
            output.applied.extend(self.held(kind).map(|(name, version, _)| Applied {
                kind,
                name,
                version: version.to_owned(),
                rejection: None,
                removed: false,
            }));
        }
        output
    }

    /// Services that are wanted and not known, for the mode in which nobody can be asked.
    #[must_use]
    pub fn unknown(&self) -> Vec<ServiceName> {
        self.wanted
            .iter()
            .filter(|name| self.publication(name).is_none())
            .cloned()
            .collect()
    }

    /// Everything that the control plane sent and that is in force, as answers that
    /// [`restore`](Self::restore) takes back.
    #[must_use]
    pub fn snapshot(&self) -> Vec<DeltaDiscoveryResponse> {
        ResourceType::ALL
            .into_iter()
            .map(|kind| DeltaDiscoveryResponse {
                type_url: kind.url().into(),
                resources: self
                    .held(kind)
                    .filter(|(_, version, _)| !version.is_empty())
                    .map(|(name, version, bytes)| WireResource {
                        name,
                        version: version.to_owned(),
                        resource: Some(prost_types::Any {
                            type_url: kind.url().into(),
                            value: bytes.to_vec(),
                        }),
                        aliases: Vec::new(),
                    })
                    .collect(),
                removed_resources: match kind {
                    ResourceType::Endpoint => self
                        .collections
                        .iter()
                        .filter(|(_, c)| c.complete && c.members.is_empty())
                        .map(|(name, _)| name.collection())
                        .collect(),
                    _ => Vec::new(),
                },
                ..Default::default()
            })
            .collect()
    }

    /// The names that this sidecar is subscribed to.
    fn names(&self, kind: ResourceType) -> Vec<String> {
        match kind {
            ResourceType::TrustBundle => vec![TrustBundle::NAME.to_owned()],
            ResourceType::Proxy => vec![self.own.to_string()],
            ResourceType::Service => {
                let others = self.wanted.iter().filter(|n| **n != self.own);
                std::iter::once(&self.own)
                    .chain(others)
                    .map(ToString::to_string)
                    .collect()
            }
            ResourceType::Endpoint => self.wanted.iter().map(ServiceName::collection).collect(),
        }
    }

    /// Name, version (empty when from the file) and bytes of everything in force.
    fn held(&self, kind: ResourceType) -> Box<dyn Iterator<Item = (String, &str, &[u8])> + '_> {
        fn parts<T>(name: String, held: &Held<T>) -> (String, &str, &[u8]) {
            (name, if held.from_file { "" } else { &held.version }, &held.bytes)
        }
        match kind {
            ResourceType::TrustBundle => Box::new(self.trust.iter().map(|h| parts(TrustBundle::NAME.to_owned(), h))),
            ResourceType::Proxy => Box::new(self.proxy.iter().map(|h| parts(h.value.name.to_string(), h))),
            ResourceType::Service => Box::new(self.services.iter().map(|(name, h)| parts(name.to_string(), h))),
            ResourceType::Endpoint => Box::new(
                self.collections
                    .values()
                    .flat_map(|c| c.members.values())
                    .map(|h| parts(h.value.name.to_string(), h)),
            ),
        }
    }

    /// Lets go of a service that is no longer wanted.
    fn forget(&mut self, name: &ServiceName, output: &mut Output) {
        self.absent.remove(name);
        if let Some(collection) = self.collections.remove(name) {
            let members = collection.members.into_values();
            output
                .applied
                .extend(members.map(|m| removed(ResourceType::Endpoint, m.value.name.to_string())));
        }
        if *name != self.own && self.services.remove(name).is_some() {
            output.applied.push(removed(ResourceType::Service, name.to_string()));
        }
    }

    /// What is to be published for `name` now; nothing while it is not complete.
    fn publication(&self, name: &ServiceName) -> Option<Change> {
        if !self.wanted.contains(name) {
            return None;
        }
        if self.absent.contains(name) {
            return Some(Change::Absent(name.clone()));
        }
        let service = self.services.get(name)?;
        let collection = self.collections.get(name).filter(|c| c.complete)?;
        let endpoints = collection.members.values().map(|m| m.value.clone()).collect();
        Some(Change::Publish(service.value.clone(), endpoints))
    }
}

fn removed(kind: ResourceType, name: String) -> Applied {
    Applied {
        kind,
        name,
        version: String::new(),
        rejection: None,
        removed: true,
    }
}

fn field_error(path: &str, reason: impl Into<String>) -> FieldError {
    FieldError {
        path: path.into(),
        reason: reason.into(),
    }
}
