//! What the JSON pages say. Reads shared state; changes nothing.

mod config;
mod stats;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::serving;
use crate::health::{self, Check, Life};
use crate::register::LeaseState;
use crate::shared::Shared;

pub(super) use config::config;
pub(super) use stats::stats;

/// `/health`.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    /// `ok`, `degraded`, `failing` or `starting`.
    status: &'static str,
    service: String,
    instance: String,
    app: App,
    dependencies: Vec<Dependency>,
    /// What does not keep requests away and still wants a person.
    findings: Vec<Finding>,
    lease: Lease,
    identity: Identity,
    control_plane: ControlPlane,
    config: Config,
    draining: bool,
}

/// More is on `/identity`.
#[derive(Debug, Serialize)]
struct Identity {
    state: &'static str,
    /// How callers have to come: `strict`, `permissive` or `off`.
    mode: &'static str,
    /// What a person should do something about before it bites.
    warning: Option<String>,
}

#[derive(Debug, Serialize)]
struct App {
    ok: bool,
    state: &'static str,
    reason: String,
    /// Since when the state is what it is.
    age_ms: u64,
    /// Since the last probe ended.
    checked_ms: Option<u64>,
    pid: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Dependency {
    name: String,
    ok: bool,
    reason: String,
    age_ms: u64,
}

#[derive(Debug, Serialize)]
struct Finding {
    finding: &'static str,
    says: String,
    age_ms: u64,
}

#[derive(Debug, Serialize)]
struct Lease {
    state: &'static str,
    reason: String,
    age_ms: u64,
}

#[derive(Debug, Serialize)]
struct ControlPlane {
    /// None in static mode.
    address: Option<String>,
    connected: bool,
    reason: String,
    age_ms: u64,
}

#[derive(Debug, Serialize)]
struct Config {
    /// Version of the workload's own settings; empty when they are the file's.
    version: String,
    resources: usize,
    /// Resources refused, with the reason; their predecessors are in force.
    rejected: BTreeMap<String, String>,
}

impl Health {
    /// True when requests can be sent here.
    pub(super) fn serves(&self) -> bool {
        matches!(self.status, "ok" | "degraded")
    }
}

/// Makes `/health`.
pub(super) fn health(shared: &Shared) -> Health {
    let app = shared.app.now();
    let (connected, since, reason) = shared.discovery.connection();
    let is_static = shared.bootstrap.control_plane.is_none();
    let resources = shared.discovery.resources();
    let rejected: BTreeMap<String, String> = resources
        .iter()
        .filter_map(|((_, name), o)| {
            o.refused
                .as_ref()
                .map(|(version, why)| (name.clone(), format!("{version}: {why}")))
        })
        .collect();
    let (lease, renewed, refusal) = shared.lease.now();
    let identity = shared.identity.page();
    let well = app.dependencies.iter().all(|c| c.ok)
        && (is_static || connected)
        && rejected.is_empty()
        && lease != LeaseState::Refused
        && matches!(identity.state, "off" | "valid");
    let status = match (app.life, well) {
        // Nothing passes without an identity.
        _ if identity.state == "joining" => "starting",
        _ if identity.state == "expired" => "failing",
        (Life::Starting, _) => "starting",
        (Life::Failing | Life::Exited, _) => "failing",
        (Life::Well, true) => "ok",
        (Life::Well, false) => "degraded",
    };
    let own = (outrigger_proto::model::ResourceType::Proxy, shared.name.to_string());
    Health {
        status,
        service: shared.name.to_string(),
        instance: shared.bootstrap.instance.clone(),
        dependencies: app.dependencies.iter().map(Dependency::from).collect(),
        findings: app.findings.iter().map(Finding::from).collect(),
        app: App {
            ok: app.ok(),
            state: app.life.as_str(),
            age_ms: age(app.since),
            checked_ms: app.checked.map(age),
            pid: app.pid,
            reason: app.reason,
        },
        lease: Lease {
            state: lease.as_str(),
            reason: refusal,
            age_ms: age(renewed),
        },
        identity: Identity {
            warning: identity
                .warning
                .or(identity.last_error.filter(|_| identity.state == "joining")),
            state: identity.state,
            mode: shared.directory.admission().mode.as_str(),
        },
        control_plane: ControlPlane {
            address: shared.bootstrap.control_plane.clone(),
            connected,
            reason,
            age_ms: age(since),
        },
        config: Config {
            version: resources.get(&own).map(|o| o.version.clone()).unwrap_or_default(),
            resources: resources.len(),
            rejected,
        },
        draining: !serving(shared),
    }
}

/// Why no new work should be sent here; none when it should.
pub(super) fn not_ready(shared: &Shared) -> Option<String> {
    if !serving(shared) {
        return Some("the sidecar drains".into());
    }
    if let Some(reason) = shared.identity.not_ready() {
        return Some(reason);
    }
    let app = shared.app.now();
    if !app.ok() {
        return Some(format!("the app is {}: {}", app.life.as_str(), app.reason));
    }
    app.dependencies
        .iter()
        .find(|c| !c.ok)
        .map(|c| format!("{}: {}", c.name, c.reason))
}

impl From<&Check> for Dependency {
    fn from(check: &Check) -> Self {
        Self {
            name: check.name.clone(),
            ok: check.ok,
            reason: check.reason.clone(),
            age_ms: age(check.at),
        }
    }
}

impl From<&health::Finding> for Finding {
    fn from(found: &health::Finding) -> Self {
        Self {
            finding: found.name,
            says: found.says.clone(),
            age_ms: age(found.at),
        }
    }
}

fn age(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
