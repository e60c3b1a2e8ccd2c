//! A destination as one worker sees it: its view, resolved to connections.
//!
//! Rebuilt when the view changes; endpoints that stay keep their connections and their load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority;
use outrigger_proto::features;
use outrigger_proto::model::{Endpoint, Mode, Policy, Protocol, Service, ServiceName};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::balance::p2c;
use crate::connect::{Route, Security, Upstream, Wire};
use crate::directory::{Destination, Known, View};
use crate::observe::{Cell, Direction, Key};
use crate::reason::Reason;
use crate::shared::Shared;

/// How long a request waits for configuration that was asked for and has not come.
const PATIENCE: Duration = Duration::from_secs(3);

/// A destination as one worker sees it.
#[derive(Debug)]
pub struct Cluster {
    destination: Arc<Destination>,
    /// The port's name; none for the service's first.
    port: Option<Arc<str>>,
    shared: Arc<Shared>,
    resolved: Mutex<Option<Arc<Resolved>>>,
    /// Counters of this worker.
    pub cell: Arc<Cell>,
    /// Stands for a missing authority.
    pub authority: Authority,
}

/// One view, resolved.
#[derive(Debug)]
pub struct Resolved {
    generation: u64,
    /// The port's name.
    pub port: Arc<str>,
    /// How the port is spoken.
    pub protocol: Protocol,
    /// The service and its policy.
    pub service: Arc<Service>,
    /// Endpoints that have the port.
    pub endpoints: Vec<Target>,
}

/// One endpoint.
#[derive(Debug)]
pub struct Target {
    endpoint: Arc<Endpoint>,
    /// Its connections.
    pub upstream: Arc<Upstream>,
}

/// Endpoints tried by one request.
pub type Tried = SmallVec<[usize; 4]>;

impl Cluster {
    /// A destination's port as the calling worker sees it.
    #[must_use]
    pub fn new(destination: Arc<Destination>, port: Option<&str>, shared: Arc<Shared>) -> Self {
        let name = &destination.name;
        let authority = Authority::try_from(format!("{}.{}", name.service(), name.namespace()))
            .unwrap_or(Authority::from_static("service"));
        let cell = shared.stats.cell(Key {
            direction: Direction::Outbound,
            service: name.as_str().into(),
            port: port.unwrap_or_default().into(),
        });
        Self {
            port: port.map(Arc::from),
            resolved: Mutex::new(None),
            cell,
            authority,
            shared,
            destination,
        }
    }

    /// The service called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.destination.name.as_str()
    }

    /// The service called.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.destination.name
    }

    /// What is known now; waits a moment for what was asked for.
    ///
    /// # Errors
    /// When the mesh does not know the service or the port, or does not know yet.
    pub async fn resolve(&self) -> Result<Arc<Resolved>, Reason> {
        let generation = self.destination.generation();
        if let Some(resolved) = &*self.resolved.lock()
            && resolved.generation == generation
        {
            return Ok(resolved.clone());
        }
        let known = match &*self.destination.known() {
            Known::Waiting => self.destination.wait(PATIENCE).await,
            known => Arc::new(known.clone()),
        };
        match &*known {
            Known::Present(view) => self.rebuild(view),
            Known::Absent => Err(Reason::UnknownService),
            Known::Waiting => Err(Reason::NotReady),
        }
    }

    fn rebuild(&self, view: &View) -> Result<Arc<Resolved>, Reason> {
        let port = match &self.port {
            Some(name) => view.service.ports.iter().find(|p| p.name == *name),
            None => view.service.ports.first(),
        };
        let port = port.ok_or(Reason::UnknownPort)?;
        let max_age = self.shared.directory.proxy().limits.max_connection_age;
        let mut slot = self.resolved.lock();
        let old = slot.as_ref().map_or(&[][..], |r| &r.endpoints);
        let endpoints = view
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let security = security(endpoint, &view.service);
                let address = match security {
                    Security::Mutual(_) => endpoint.mesh_socket(&port.name)?,
                    Security::Plain | Security::Impossible(_) => endpoint.socket(&port.name)?,
                };
                let route = Route {
                    address,
                    wire: wire(endpoint, port.protocol),
                    security,
                    weight: endpoint.weight,
                    connect_timeout: view.service.connect_timeout,
                    max_age,
                };
                let same = |t: &&Target| {
                    t.endpoint.name == endpoint.name && t.endpoint.epoch == endpoint.epoch && t.upstream.route == route
                };
                let upstream = match old.iter().find(same) {
                    Some(kept) => kept.upstream.clone(),
                    None => Arc::new(Upstream::new(route, self.shared.clone())),
                };
                Some(Target {
                    endpoint: endpoint.clone(),
                    upstream,
                })
            })
            .collect();
        let resolved = Arc::new(Resolved {
            generation: view.generation,
            port: port.name.clone(),
            protocol: port.protocol,
            service: view.service.clone(),
            endpoints,
        });
        *slot = Some(resolved.clone());
        Ok(resolved)
    }

    /// Closes connections nobody used for `idle`.
    pub fn prune(&self, now: Instant, idle: Duration) {
        if let Some(resolved) = &*self.resolved.lock() {
            resolved.endpoints.iter().for_each(|t| t.upstream.prune(now, idle));
        }
    }
}

impl Resolved {
    /// What holds for requests that match no route.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.service.policy
    }

    /// The endpoint for the next try: another one while there is one that was not tried.
    #[must_use]
    pub fn pick(&self, now: Instant, tried: &Tried) -> Option<(usize, &Arc<Upstream>)> {
        let load = |i: usize| self.endpoints.get(i).map(|t| t.upstream.load(now));
        let fresh = p2c::pick(
            self.endpoints.len(),
            |k| fastrand::usize(..k),
            |i| load(i).filter(|_| !tried.contains(&i)),
        );
        let picked = fresh.or_else(|| p2c::pick(self.endpoints.len(), |k| fastrand::usize(..k), load))?;
        Some((picked, &self.endpoints.get(picked)?.upstream))
    }
}

/// How an endpoint is spoken to: never in plain when the service's mode says TLS.
fn security(endpoint: &Endpoint, service: &Service) -> Security {
    match service.mode {
        Mode::Off => Security::Plain,
        Mode::Strict | Mode::Permissive if endpoint.meshed && endpoint.has(features::MTLS) => {
            Security::Mutual(service.name.clone())
        }
        // Still on its way into the mesh.
        Mode::Permissive => Security::Plain,
        Mode::Strict if endpoint.meshed => {
            Security::Impossible("its sidecar is too old for mutual TLS, and the service's mode is strict")
        }
        Mode::Strict => Security::Impossible("it has no sidecar, and the service's mode is strict"),
    }
}

/// What an endpoint's listener speaks. Opaque ports have no HTTP at all; their wire is never used.
fn wire(endpoint: &Endpoint, protocol: Protocol) -> Wire {
    match protocol {
        _ if endpoint.meshed && endpoint.has(features::EXTENDED_CONNECT) => Wire::Mesh,
        Protocol::Http2 | Protocol::Grpc => Wire::Http2,
        _ => Wire::Http1,
    }
}
