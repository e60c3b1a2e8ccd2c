//! A mesh as the resources that sidecars are given, and what changes from one mesh to the next.
//!
//! Pure: no I/O, no clock. A resource's version is a hash of its content, so that the same description gives the same
//! version on every machine and after every restart. It knows neither endpoints (the registry's) nor who asks.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_proto::model::ServiceName;
use outrigger_proto::wire::mesh as wire;

use crate::config::{Mesh, ServiceDoc};

mod policy;
#[cfg(test)]
mod tests;

/// What a mesh gives its sidecars, by service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    entries: BTreeMap<ServiceName, Entry>,
}

/// The resources of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What its own sidecars do.
    pub proxy: Versioned<wire::Proxy>,
    /// What callers need to know.
    pub service: Versioned<wire::Service>,
    /// The document that both were made from.
    pub document: ServiceDoc,
}

/// A resource and the hash of its content.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// 16 hexadecimal digits.
    pub version: String,
    /// The wire message.
    pub resource: T,
}

/// What differs between two catalogs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services whose `Proxy` is new or different.
    pub proxies: BTreeSet<ServiceName>,
    /// Services whose `Service` is new or different.
    pub services: BTreeSet<ServiceName>,
    /// Services that are gone.
    pub removed: BTreeSet<ServiceName>,
}

impl Changes {
    /// True when nothing differs for any sidecar.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.proxies.is_empty() && self.services.is_empty() && self.removed.is_empty()
    }

    /// Every service that is new, different or gone.
    #[must_use]
    pub fn names(&self) -> BTreeSet<ServiceName> {
        self.proxies
            .iter()
            .chain(&self.services)
            .chain(&self.removed)
            .cloned()
            .collect()
    }
}

impl Catalog {
    /// Makes the resources of every service of `mesh`.
    #[must_use]
    pub fn new(mesh: &Mesh) -> Self {
        let entries = mesh.services.iter().map(|document| {
            let entry = Entry {
                proxy: versioned(policy::proxy(document)),
                service: versioned(policy::service(document)),
                document: document.clone(),
            };
            (document.name.clone(), entry)
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// The resources of `name`.
    #[must_use]
    pub fn get(&self, name: &ServiceName) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Every service, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Entry)> {
        self.entries.iter()
    }

    /// The hash of everything that sidecars see.
    #[must_use]
    pub fn version(&self) -> String {
        let mut hash = FNV_START;
        for (name, entry) in &self.entries {
            for part in [name.as_str(), &entry.proxy.version, &entry.service.version] {
                hash = fnv(hash, part.as_bytes());
            }
        }
        format!("{hash:016x}")
    }

    /// What a sidecar that had `self` must be told to have `next`.
    #[must_use]
    pub fn changes(&self, next: &Self) -> Changes {
        let mut changes = Changes::default();
        for (name, entry) in &next.entries {
            let before = self.entries.get(name);
            if before.is_none_or(|old| old.proxy.version != entry.proxy.version) {
                changes.proxies.insert(name.clone());
            }
            if before.is_none_or(|old| old.service.version != entry.service.version) {
                changes.services.insert(name.clone());
            }
        }
        changes.removed = self
            .entries
            .keys()
            .filter(|name| !next.entries.contains_key(*name))
            .cloned()
            .collect();
        changes
    }
}

fn versioned<T: prost::Message>(resource: T) -> Versioned<T> {
    Versioned {
        version: format!("{:016x}", fnv(FNV_START, &resource.encode_to_vec())),
        resource,
    }
}

/// FNV-1a, 64 bits: stable across builds and machines, which the standard hasher does not promise.
fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;
