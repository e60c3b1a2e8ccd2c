//! Every resource with its version, as it is now. Holds wire bytes; refuses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use outrigger_proto::features;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::mesh;
use prost::Message as _;

/// One resource as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Depends on the content alone, so it is the same after a restart.
    pub version: String,
    /// The encoded message.
    pub bytes: Vec<u8>,
    /// What a client must implement to be sent this.
    pub needs: Vec<&'static str>,
}

impl Entry {
    /// An endpoint.
    #[must_use]
    pub fn endpoint(wire: &mesh::Endpoint) -> Self {
        Self::new(wire.encode_to_vec(), vec![features::RESOURCES_V1])
    }

    /// A service; opaque ports need a sidecar that knows them, mutual TLS one that has an identity, and
    /// routes one that takes them.
    #[must_use]
    pub fn service(wire: &mesh::Service) -> Self {
        let opaque =
            |p: &mesh::Port| p.protocol == mesh::Protocol::Tcp as i32 || p.protocol == mesh::Protocol::Tls as i32;
        let mut needs = vec![features::RESOURCES_V1];
        needs.extend(wire.ports.iter().any(opaque).then_some(features::OPAQUE));
        needs.extend(is_mutual(wire.mode).then_some(features::MTLS));
        needs.extend((!wire.routes.is_empty() || !wire.subsets.is_empty()).then_some(features::ROUTES));
        Self::new(wire.encode_to_vec(), needs)
    }

    /// One workload's own settings; rules of who may call need a sidecar that keeps them, and rate limits of all instances
    /// together one that takes its share: another would let through the whole rate by itself.
    #[must_use]
    pub fn proxy(wire: &mesh::Proxy) -> Self {
        let mut needs = vec![features::RESOURCES_V1];
        needs.extend(is_mutual(wire.mode).then_some(features::MTLS));
        needs.extend(wire.access.is_some().then_some(features::ACCESS));
        needs.extend(wire.rate_limits.iter().any(|l| l.mesh).then_some(features::QUOTA));
        Self::new(wire.encode_to_vec(), needs)
    }

    /// What everybody trusts.
    #[must_use]
    pub fn trust(wire: &mesh::TrustBundle) -> Self {
        Self::new(wire.encode_to_vec(), vec![features::MTLS])
    }

    fn new(bytes: Vec<u8>, needs: Vec<&'static str>) -> Self {
        let version = content_version(&bytes);
        Self { version, bytes, needs }
    }
}

fn is_mutual(mode: i32) -> bool {
    mode == mesh::Mode::Strict as i32 || mode == mesh::Mode::Permissive as i32
}

/// A version that depends on `bytes` alone (FNV-1a, 64 bits): stable across restarts and builds.
#[must_use]
pub fn content_version(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Every resource of every type.
#[derive(Debug, Default)]
pub struct Table {
    kinds: BTreeMap<ResourceType, Kind>,
}

/// The resources of one type.
#[derive(Debug, Default)]
struct Kind {
    entries: BTreeMap<String, Arc<Entry>>,
    /// While true, a client that has a resource which is absent here keeps it: this control plane
    /// may only not have heard of it again yet.
    held: bool,
    /// Names whose removal was stated while held.
    gone: BTreeSet<String>,
}

impl Table {
    /// Puts or replaces a resource; false when nothing changed.
    pub fn put(&mut self, kind: ResourceType, name: &str, entry: Entry) -> bool {
        let kind = self.kinds.entry(kind).or_default();
        kind.gone.remove(name);
        if kind.entries.get(name).is_some_and(|e| **e == entry) {
            return false;
        }
        kind.entries.insert(name.to_owned(), Arc::new(entry));
        true
    }

    /// Removes a resource; false when it was not here and clients may not have it either.
    pub fn remove(&mut self, kind: ResourceType, name: &str) -> bool {
        let kind = self.kinds.entry(kind).or_default();
        let stated = kind.held && kind.gone.insert(name.to_owned());
        kind.entries.remove(name).is_some() || stated
    }

    /// From now on absent resources of `kind` are only absent; see [`Table::release`].
    pub fn hold(&mut self, kind: ResourceType) {
        self.kinds.entry(kind).or_default().held = true;
    }

    /// From now on absent resources of `kind` are removed; false when nothing was held.
    pub fn release(&mut self, kind: ResourceType) -> bool {
        let kind = self.kinds.entry(kind).or_default();
        kind.gone.clear();
        std::mem::replace(&mut kind.held, false)
    }

    /// True when a client that has `name`, which is absent here, must be told so.
    #[must_use]
    pub fn removal_is_known(&self, kind: ResourceType, name: &str) -> bool {
        self.kinds.get(&kind).is_none_or(|k| !k.held || k.gone.contains(name))
    }

    /// One resource.
    #[must_use]
    pub fn get(&self, kind: ResourceType, name: &str) -> Option<&Arc<Entry>> {
        self.kinds.get(&kind)?.entries.get(name)
    }

    /// Every resource of `kind` whose name starts with `prefix`.
    pub fn under<'a>(
        &'a self,
        kind: ResourceType,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Arc<Entry>)> {
        self.kinds.get(&kind).into_iter().flat_map(move |k| {
            k.entries
                .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
                .take_while(move |(name, _)| name.starts_with(prefix))
        })
    }
}
