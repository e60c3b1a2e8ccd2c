//! Gathers what the rooms know into the shapes of the JSON. Takes one lock at a time.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_proto::features;
use outrigger_proto::model::{EndpointName, ResourceType, ServiceName};
use serde_json::Value;

use super::view::{
    AppliedView, CheckView, ConfigErrorView, ConfigStatus, ConfigView, DocumentView, EndpointState, EndpointView,
    PortView, RefusedView, RouteView, RoutesView, ServiceDetail, ServiceDiff, ServiceView, SidecarView, StaleView,
};
use crate::config::{self, Mesh, ServiceDoc};
use crate::plane::Plane;
use crate::push::stream::Key;
use crate::registry::{Lease, Millis, Registry};
use crate::sidecars::Sidecar;

/// Every service that is configured or has registrations.
pub(super) fn names(plane: &Plane) -> BTreeSet<ServiceName> {
    let mut names: BTreeSet<_> = plane.rollout().catalog.iter().map(|(name, _)| name.clone()).collect();
    names.extend(plane.registry().leases().map(|l| l.endpoint.name.service.clone()));
    names
}

pub(super) fn services(plane: &Plane) -> Vec<ServiceView> {
    let withheld = withheld(plane);
    names(plane)
        .iter()
        .map(|name| summary(plane, name, &withheld))
        .collect()
}

pub(super) fn service(plane: &Plane, name: &ServiceName) -> Option<ServiceDetail> {
    if !names(plane).contains(name) {
        return None;
    }
    let service = summary(plane, name, &withheld(plane));
    let instances = endpoints(plane, Some(name));
    let rollout = plane.rollout();
    let entry = rollout.catalog.get(name);
    let calls = |document: &ServiceDoc| document.calls.iter().map(ToString::to_string).collect();
    let callers = rollout.catalog.iter().filter(|(_, e)| e.document.calls.contains(name));
    Some(ServiceDetail {
        service,
        calls: entry.map(|e| calls(&e.document)).unwrap_or_default(),
        callers: callers.map(|(caller, _)| caller.to_string()).collect(),
        policy: entry.map(|e| json(&e.service.resource)),
        proxy: entry.map(|e| json(&e.proxy.resource)),
        document: entry.map(|e| DocumentView {
            location: format!("{}:{}", e.document.location.file, e.document.location.line),
            run: e.document.run.clone(),
            replicas: e.document.replicas,
            labels: e.document.labels.clone(),
            weight: e.document.weight,
        }),
        settings: entry
            .map(|e| e.document.settings.iter().map(Into::into).collect())
            .unwrap_or_default(),
        routes: entry.map(|e| routes_of(&e.document)).unwrap_or_default(),
        instances,
    })
}

fn routes_of(document: &ServiceDoc) -> Vec<RouteView> {
    config::routes(document).iter().map(Into::into).collect()
}

/// The routes of `service`, or of every service that has some.
pub(super) fn routes(plane: &Plane, service: Option<&ServiceName>) -> Vec<RoutesView> {
    let rollout = plane.rollout();
    let documents = rollout.catalog.iter().map(|(_, entry)| &entry.document);
    let wanted = documents.filter(|document| match service {
        Some(name) => document.name == *name,
        None => !document.traffic.routes.is_empty(),
    });
    let view = |document: &ServiceDoc| RoutesView {
        service: document.name.to_string(),
        routes: routes_of(document),
    };
    wanted.map(view).collect()
}

/// What `mesh` would change of what is in force.
pub(super) fn diff(plane: &Plane, mesh: &Mesh) -> Vec<ServiceDiff> {
    let rollout = plane.rollout();
    let old = rollout.catalog.iter().map(|(_, entry)| &entry.document);
    config::changes(old, &mesh.services).iter().map(Into::into).collect()
}

pub(super) fn endpoints(plane: &Plane, service: Option<&ServiceName>) -> Vec<EndpointView> {
    let now = plane.now();
    let registry = plane.registry();
    let all = registry
        .leases()
        .filter(|l| service.is_none_or(|s| l.endpoint.name.service == *s));
    all.map(|lease| endpoint(lease, now)).collect()
}

pub(super) fn sidecars(plane: &Plane) -> Vec<SidecarView> {
    let now = plane.now();
    let (mut withheld, mut rejected, mut subscribed) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for client in plane.hub.lock().clients() {
        subscribed.insert(client.node.clone());
        withheld.insert(client.node.clone(), client.withheld.clone());
        rejected.insert(client.node.clone(), client.rejected.clone());
    }
    let mut registrations: BTreeMap<EndpointName, (Millis, EndpointState)> = plane
        .registry()
        .leases()
        .map(|l| (l.endpoint.name.clone(), (now.saturating_sub(l.renewed), state(l))))
        .collect();
    let sidecars = plane.sidecars.lock();
    let view = |(name, sidecar): (&EndpointName, &Sidecar)| {
        let node = name.to_string();
        let (lease_age_ms, state) = registrations.remove(name).unzip();
        let (applied, mut refused) = statuses(sidecar);
        for ((kind, resource), version) in rejected.remove(&node).unwrap_or_default() {
            if !refused.iter().any(|r| r.resource == resource && r.version == version) {
                let (kind, reason) = (short(kind.url()), Some("refused".to_owned()));
                refused.push(AppliedView {
                    kind,
                    resource,
                    version,
                    reason,
                });
            }
        }
        let withheld = withheld.remove(&node).unwrap_or_default();
        SidecarView {
            service: name.service.to_string(),
            instance: name.instance.to_string(),
            admin: sidecar.hello.admin.clone(),
            version: sidecar.hello.version.clone(),
            connected: sidecar.session.is_some(),
            subscribed: subscribed.contains(&node),
            epoch: sidecar.hello.epoch,
            features: sidecar.hello.features.clone(),
            heard_ms: now.saturating_sub(sidecar.heard),
            lease_age_ms,
            state,
            applied,
            rejected: refused,
            degraded: withheld
                .iter()
                .map(|((_, resource), need)| needs(resource, need))
                .collect(),
            checks: sidecar.checks.iter().map(check).collect(),
            name: node,
        }
    };
    sidecars.iter().map(view).collect()
}

pub(super) fn config(plane: &Plane) -> ConfigView {
    let rollout = plane.rollout();
    let good = rollout.good.as_ref();
    let refused = rollout.refused.as_ref().map(|mark| RefusedView {
        origin: mark.origin.clone(),
        at: mark.at.clone(),
        reasons: mark.what.errors.iter().map(ConfigErrorView::from).collect(),
    });
    ConfigView {
        status: match (&refused, good) {
            (Some(_), _) => ConfigStatus::Refused,
            (None, Some(_)) => ConfigStatus::Applied,
            (None, None) => ConfigStatus::None,
        },
        version: good.map(|mark| mark.what.0.clone()),
        mesh: good.map(|mark| mark.what.1.clone()),
        origin: good.map(|mark| mark.origin.clone()),
        at: good.map(|mark| mark.at.clone()),
        refused,
    }
}

/// What each node cannot be told.
type Withheld = Vec<(String, BTreeMap<Key, &'static str>)>;

fn withheld(plane: &Plane) -> Withheld {
    let hub = plane.hub.lock();
    let lacking = hub.clients().filter(|c| !c.withheld.is_empty());
    lacking.map(|c| (c.node.clone(), c.withheld.clone())).collect()
}

fn needs(who: &str, feature: &str) -> String {
    format!("{who}: needs sidecar >= {}", features::since(feature))
}

fn summary(plane: &Plane, name: &ServiceName, withheld: &Withheld) -> ServiceView {
    let now = plane.now();
    let (registered, endpoints, stale) = {
        let registry: &Registry = &plane.registry();
        let served = registry.of(name).filter(|l| l.unhealthy.is_none()).count();
        (registry.of(name).count(), served, registry.stale(name))
    };
    let concerns = |kind: ResourceType, resource: &str| match kind {
        ResourceType::Endpoint => resource
            .rsplit_once('/')
            .is_some_and(|(service, _)| service == name.as_str()),
        ResourceType::Proxy | ResourceType::Service => resource == name.as_str(),
        ResourceType::TrustBundle => false,
    };
    let degraded: BTreeSet<String> = withheld
        .iter()
        .flat_map(|(node, keys)| keys.iter().map(move |(key, need)| (node, key, need)))
        .filter(|(_, (kind, resource), _)| concerns(*kind, resource))
        .map(|(node, _, need)| needs(node, need))
        .collect();
    let rollout = plane.rollout();
    let entry = rollout.catalog.get(name);
    let ports = entry.map(|e| e.document.ports.iter());
    ServiceView {
        name: name.to_string(),
        namespace: name.namespace().to_owned(),
        service: name.service().to_owned(),
        language: entry.and_then(|e| e.document.language.clone()),
        configured: entry.is_some(),
        version: entry.map(|e| e.service.version.clone()),
        ports: ports
            .into_iter()
            .flatten()
            .map(|p| PortView {
                name: p.name.clone(),
                protocol: p.protocol.as_str().to_owned(),
            })
            .collect(),
        endpoints,
        registered,
        stale: stale.map(|s| StaleView {
            since_ms: now.saturating_sub(s.since),
            lapsed: s.lapsed,
            of: s.of,
        }),
        degraded: degraded.into_iter().collect(),
    }
}

fn state(lease: &Lease) -> EndpointState {
    match (&lease.unhealthy, lease.lapsed) {
        (Some(_), _) => EndpointState::Unhealthy,
        (None, true) => EndpointState::Stale,
        (None, false) => EndpointState::Serving,
    }
}

fn endpoint(lease: &Lease, now: Millis) -> EndpointView {
    let endpoint = &lease.endpoint;
    EndpointView {
        name: endpoint.name.to_string(),
        service: endpoint.name.service.to_string(),
        instance: endpoint.name.instance.to_string(),
        address: endpoint.address.to_string(),
        ports: endpoint.ports.iter().map(|p| (p.name.to_string(), p.port)).collect(),
        state: state(lease),
        reason: lease.unhealthy.clone(),
        epoch: endpoint.epoch,
        labels: endpoint.labels.clone(),
        weight: endpoint.weight,
        meshed: endpoint.meshed,
        capabilities: endpoint.capabilities.clone(),
        lease_age_ms: now.saturating_sub(lease.renewed),
        lease_left_ms: lease.expires.saturating_sub(now),
    }
}

/// What it runs with, and what it refused.
fn statuses(sidecar: &Sidecar) -> (Vec<AppliedView>, Vec<AppliedView>) {
    let (mut applied, mut refused) = (Vec::new(), Vec::new());
    for ((kind, resource), status) in &sidecar.applied {
        let view = |version: &str, reason: Option<String>| AppliedView {
            kind: short(kind),
            resource: resource.clone(),
            version: version.to_owned(),
            reason,
        };
        if !status.applied.is_empty() {
            applied.push(view(&status.applied, None));
        }
        if let Some((version, why)) = &status.refused {
            refused.push(view(version, Some(why.clone())));
        }
    }
    (applied, refused)
}

fn check(check: &outrigger_proto::wire::agent::Check) -> CheckView {
    CheckView {
        name: check.name.clone(),
        ok: check.ok,
        reason: check.reason.clone(),
    }
}

fn short(url: &str) -> String {
    url.rsplit('.').next().unwrap_or(url).to_owned()
}

fn json(resource: &impl serde::Serialize) -> Value {
    serde_json::to_value(resource).unwrap_or(Value::Null)
}
