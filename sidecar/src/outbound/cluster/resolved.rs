//! One view, resolved: who can be reached, and who is next.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use http::uri::Uri;
use outrigger_proto::model::{Endpoint, HashOn, Policy, Protocol, Service, ServiceName};
use smallvec::SmallVec;

use super::Cluster;
use crate::balance::{self, Ask, Picker, Resort, Sight, Standing};
use crate::connect::Upstream;
use crate::directory::traffic::Traffic;
use crate::directory::{Destination, View};
use crate::guard::{Home, Member};
use crate::observe::Cell;
use crate::outbound::hash;

/// One view, resolved.
#[derive(Debug)]
pub struct Resolved {
    pub(super) generation: u64,
    /// The port's name.
    pub port: Arc<str>,
    /// How the port is spoken.
    pub protocol: Protocol,
    /// The service and its policy.
    pub service: Arc<Service>,
    /// What all workers learnt of it.
    pub home: Arc<Home>,
    /// Endpoints that have the port: the service's, then those of services it fails over to.
    pub endpoints: Vec<Target>,
    /// All of the service's own and each subset of them, then what it fails over to, in order.
    pub(super) groups: Vec<Group>,
    pub(super) own_groups: usize,
    pub(super) others: Vec<Other>,
    /// Routes and faults.
    pub traffic: Option<Arc<Traffic>>,
    /// The other services that routes lead to, in the order of [`Traffic::others`].
    pub routed: Vec<Arc<Cluster>>,
    /// What requests are balanced by.
    pub(super) hash: Option<HashOn>,
    /// The own service, for [`HashOn::Caller`].
    pub(super) caller: Box<str>,
}

/// One endpoint.
#[derive(Debug)]
pub struct Target {
    /// As it is registered.
    pub endpoint: Arc<Endpoint>,
    /// Its connections.
    pub upstream: Arc<Upstream>,
    /// What it serves.
    pub side: Arc<Side>,
    /// What was learnt of it.
    pub member: Arc<Member>,
}

/// A service's port.
#[derive(Debug)]
pub struct Side {
    /// The service: another one than was called, after failover.
    pub service: ServiceName,
    /// The port's name there.
    pub port: Arc<str>,
    /// What was learnt of that service.
    pub home: Arc<Home>,
}

/// Endpoints that one request chooses among.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) subset: Option<Arc<str>>,
    pub(super) size: usize,
    pub(super) picker: Picker,
}

/// A service that is failed over to, as it was when this was built.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) destination: Arc<Destination>,
    pub(super) view: Option<Arc<View>>,
}

/// What a request wants of the endpoints. The default: any.
#[derive(Debug, Clone, Default)]
pub struct Aim {
    /// One of this subset.
    pub subset: Option<Arc<str>>,
    /// The one of this hash, when the service is balanced so.
    pub hash: Option<u64>,
}

/// Endpoints tried by one request.
pub type Tried = SmallVec<[usize; 4]>;

impl Resolved {
    /// What holds for requests that match no route.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.service.policy
    }

    /// What a request with this head wants; counts one without the value that the hash is of.
    #[must_use]
    pub fn aim(&self, subset: Option<Arc<str>>, uri: &Uri, headers: &HeaderMap, cell: &Cell) -> Aim {
        let hash = self.hash.as_ref().and_then(|on| {
            let hash = hash::of(on, uri, headers, &self.caller);
            if hash.is_none() {
                cell.unhashed();
            }
            hash
        });
        Aim { subset, hash }
    }

    /// What an opaque connection wants: nothing of it but the caller can be hashed.
    #[must_use]
    pub fn aim_opaque(&self, cell: &Cell) -> Aim {
        self.aim(None, &Uri::default(), &HeaderMap::new(), cell)
    }

    /// The endpoint for the next try: another one while there is one that is well and was not tried.
    #[must_use]
    pub fn pick(&self, now: Instant, aim: &Aim, tried: &Tried, resort: Resort) -> Option<(usize, &Target)> {
        let ask = Ask {
            now,
            hash: aim.hash,
            tried,
        };
        let seen = Seen {
            endpoints: &self.endpoints,
            now,
        };
        let pickers = self.aimed(aim).map(|g| &g.picker);
        let picked = balance::choose(pickers, &ask, resort, &mut |k| fastrand::usize(..k), &seen)?;
        Some((picked, self.endpoints.get(picked)?))
    }

    /// How many endpoints a request may try.
    #[must_use]
    pub fn choices(&self, aim: &Aim) -> usize {
        self.aimed(aim).map(|g| g.size).sum()
    }

    /// Whether the service has a subset of this name.
    #[must_use]
    pub fn has_subset(&self, name: &str) -> bool {
        let own = self.groups.iter().take(self.own_groups);
        own.into_iter().any(|g| g.subset.as_deref() == Some(name))
    }

    /// The groups of a request: its own, then what is failed over to.
    fn aimed(&self, aim: &Aim) -> impl Iterator<Item = &Group> + Clone {
        // The first one is all of them; no name has to be compared for most requests.
        let mut own = self.groups.iter().take(self.own_groups);
        let chosen = own.find(|g| g.subset == aim.subset);
        chosen.into_iter().chain(self.groups.iter().skip(self.own_groups))
    }

    /// Whether nothing has changed since this was built. One atomic load, and one for each service failed over to.
    pub(super) fn is_current(&self, destination: &Destination) -> bool {
        self.generation == destination.generation() && self.others.iter().all(Other::is_current)
    }

    /// The numbers that `newer` has for `tried`; those that are gone are left out.
    pub(super) fn translate(&self, tried: &Tried, newer: &Self) -> Tried {
        let place = |at: &usize| {
            let old = &self.endpoints.get(*at)?.endpoint;
            let same = |t: &Target| t.endpoint.name == old.name && t.endpoint.epoch == old.epoch;
            newer.endpoints.iter().position(same)
        };
        tried.iter().filter_map(place).collect()
    }
}

impl Other {
    pub(super) fn now(destination: Arc<Destination>) -> Self {
        Self {
            view: destination.view(),
            destination,
        }
    }

    fn is_current(&self) -> bool {
        self.destination.generation() == self.view.as_ref().map_or(0, |v| v.generation)
    }
}

/// The endpoints as this worker sees them now.
struct Seen<'a> {
    endpoints: &'a [Target],
    now: Instant,
}

impl Sight for Seen<'_> {
    fn standing(&self, endpoint: usize) -> Standing {
        self.endpoints
            .get(endpoint)
            .map_or(Standing::Ejected, |t| t.side.home.standing(self.now, &t.member))
    }

    fn in_flight(&self, endpoint: usize) -> u32 {
        self.endpoints.get(endpoint).map_or(0, |t| t.upstream.in_flight())
    }

    fn latency(&self, endpoint: usize) -> f64 {
        self.endpoints
            .get(endpoint)
            .map_or(f64::MAX, |t| t.upstream.latency(self.now))
    }
}
