//! From a view to what a worker needs of it: who can be reached, how, and in which order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use outrigger_proto::features;
use outrigger_proto::model::{Balance, Endpoint, EndpointName, Mode, Port, Protocol, Service, ServiceName};

use super::Cluster;
use super::resolved::{Group, Other, Resolved, Side, Target};
use crate::balance::{Candidate, Picker, Setting};
use crate::connect::{Route, Security, Upstream, Wire};
use crate::directory::{Destination, Directory, Set, View};
use crate::guard::Home;
use crate::reason::Reason;
use crate::shared::Shared;

/// The label that says where an instance runs.
const ZONE: &str = "zone";

/// Everything that one build reads and fills.
struct Build<'a> {
    shared: &'a Arc<Shared>,
    zone: Option<&'a String>,
    /// Endpoints of the resolved before: who stays keeps connections and load.
    old: HashMap<&'a EndpointName, &'a Target>,
    endpoints: Vec<Target>,
    groups: Vec<Group>,
}

/// The other services that `view`'s fails over to. They are wanted from now on.
pub(super) fn others(view: &View, directory: &Directory) -> Vec<Arc<Destination>> {
    let named = view.service.failover.iter().filter_map(|to| to.service.as_ref());
    let mut others: Vec<Arc<Destination>> = Vec::new();
    for name in named.filter(|name| **name != view.service.name) {
        if !others.iter().any(|o| o.name == *name) {
            others.push(directory.destination(name));
        }
    }
    others
}

/// Resolves `view` for the port called `port`, or the first.
pub(super) fn build(
    view: &View,
    port: Option<&str>,
    before: Option<&Resolved>,
    shared: &Arc<Shared>,
) -> Result<Resolved, Reason> {
    let own = find(&view.service, port).ok_or(Reason::UnknownPort)?;
    let old = before.map_or(&[][..], |r| &r.endpoints);
    let mut build = Build {
        shared,
        zone: shared.bootstrap.labels.get(ZONE),
        old: old.iter().map(|t| (&t.endpoint.name, t)).collect(),
        endpoints: Vec::new(),
        groups: Vec::new(),
    };
    let seats = build.targets(view, own);
    for set in &view.sets {
        build.group(view, set, &seats);
    }
    let own_groups = build.groups.len();
    let others: Vec<Other> = others(view, &shared.directory).into_iter().map(Other::now).collect();
    let mut seated: HashMap<&str, Vec<Option<usize>>> = HashMap::new();
    for to in &view.service.failover {
        let other = to
            .service
            .as_ref()
            .and_then(|name| others.iter().find(|o| o.destination.name == *name));
        let subset = to.subset.as_deref();
        let (view, seats) = match other {
            // A subset of its own.
            None => (view, &seats),
            Some(Other { view: Some(view), .. }) => {
                // Its port of that name, or its first.
                let Some(port) = find(&view.service, port) else {
                    continue;
                };
                let seats = seated
                    .entry(view.service.name.as_str())
                    .or_insert_with(|| build.targets(view, port));
                (&**view, &*seats)
            }
            // Not known, or not any more.
            Some(_) => continue,
        };
        if let Some(set) = view.sets.iter().find(|s| s.subset.as_deref() == subset) {
            build.group(view, set, seats);
        }
    }
    drop(seated);
    let (endpoints, groups) = (build.endpoints, build.groups);
    Ok(Resolved {
        generation: view.generation,
        port: own.name.clone(),
        protocol: own.protocol,
        caller: shared.name.as_str().into(),
        hash: match &view.service.balance {
            Balance::Ring(hash) | Balance::Maglev(hash) => Some(hash.on.clone()),
            _ => None,
        },
        home: Arc::new(Home {
            guard: shared.guards.service(&view.service.name),
            service: view.service.clone(),
        }),
        service: view.service.clone(),
        endpoints,
        groups,
        own_groups,
        others,
        routed: routed(view, port, before, shared),
        traffic: view.traffic.clone(),
    })
}

/// The other services that routes of `view`'s lead to; those that stay keep their connections.
fn routed(view: &View, port: Option<&str>, before: Option<&Resolved>, shared: &Arc<Shared>) -> Vec<Arc<Cluster>> {
    let old = before.map_or(&[][..], |r| &r.routed);
    let cluster = |name: &ServiceName| match old.iter().find(|c| c.service() == name) {
        Some(kept) => kept.clone(),
        None => Arc::new(Cluster::routed(
            shared.directory.destination(name),
            port,
            shared.clone(),
        )),
    };
    let names = view.traffic.iter().flat_map(|t| &t.others);
    names.map(cluster).collect()
}

fn find<'v>(service: &'v Service, port: Option<&str>) -> Option<&'v Port> {
    match port {
        Some(name) => service.ports.iter().find(|p| &*p.name == name),
        None => service.ports.first(),
    }
}

impl Build<'_> {
    /// Adds the endpoints of `view` that have the port; returns the number of each.
    fn targets(&mut self, view: &View, port: &Port) -> Vec<Option<usize>> {
        let max_age = self.shared.directory.proxy().limits.max_connection_age;
        let guard = self.shared.guards.service(&view.service.name);
        let members = guard.members(view.generation, &view.service, &view.endpoints);
        let side = Arc::new(Side {
            home: Arc::new(Home {
                guard,
                service: view.service.clone(),
            }),
            service: view.service.name.clone(),
            port: port.name.clone(),
        });
        let mut seats = Vec::with_capacity(view.endpoints.len());
        for (endpoint, member) in view.endpoints.iter().zip(members) {
            let security = security(endpoint, &view.service);
            let address = match security {
                Security::Mutual(_) => endpoint.mesh_socket(&port.name),
                Security::Plain | Security::Impossible(_) => endpoint.socket(&port.name),
            };
            let Some(address) = address else {
                seats.push(None);
                continue;
            };
            let route = Route {
                address,
                wire: wire(endpoint, port.protocol),
                security,
                weight: endpoint.weight,
                connect_timeout: view.service.connect_timeout,
                max_age,
                keep: view.service.concurrency.connections.is_none(),
            };
            let old = self.old.get(&endpoint.name);
            let same = old.filter(|t| t.endpoint.epoch == endpoint.epoch && t.upstream.route == route);
            let upstream = match same {
                Some(kept) => kept.upstream.clone(),
                None => Arc::new(Upstream::new(route, self.shared.clone())),
            };
            seats.push(Some(self.endpoints.len()));
            self.endpoints.push(Target {
                endpoint: endpoint.clone(),
                upstream,
                side: side.clone(),
                member,
            });
        }
        seats
    }

    /// Adds the set of `view` as a group to choose from.
    fn group(&mut self, view: &View, set: &Set, seats: &[Option<usize>]) {
        let candidate = |(slot, at): (usize, &usize)| {
            let endpoint = view.endpoints.get(*at)?;
            Some(Candidate {
                endpoint: (*seats.get(*at)?)?,
                slot,
                weight: endpoint.weight,
                near: self.zone.is_some_and(|zone| endpoint.labels.get(ZONE) == Some(zone)),
                since: view.since.get(*at).copied().flatten(),
            })
        };
        let candidates: Vec<Candidate> = set.members.iter().enumerate().filter_map(candidate).collect();
        let service = &view.service;
        let setting = Setting {
            balance: &service.balance,
            table: set.table.clone(),
            slow_start: service.slow_start,
            near_percent: service.zone.map(|z| z.healthy_percent),
            panic_percent: service.outlier.panic_percent,
            seed: fastrand::u64(..),
        };
        self.groups.push(Group {
            subset: set.subset.clone(),
            size: candidates.len(),
            picker: Picker::new(&candidates, setting, Instant::now()),
        });
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
        Mode::Strict if endpoint.meshed => Security::Impossible(
            "its sidecar has no identity or is too old for mutual TLS, and the service's mode is strict",
        ),
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
