//! `/config`: what this sidecar runs with, as it understood it.

use std::collections::BTreeMap;

use outrigger_proto::model::{AccessLog, DependencyCheck, External, Probe, Proxy, Service, Trailers, Underscores};
use outrigger_proto::wire::mesh as wire;
use serde_json::{Value, json};

use crate::directory::Known;
use crate::discover::status::Outcome;
use crate::shared::Shared;

/// Makes the page.
pub(in crate::admin) fn config(shared: &Shared) -> Value {
    let mut destinations = shared.directory.all();
    destinations.sort_by(|a, b| a.name.cmp(&b.name));
    let destinations: Vec<Value> = destinations
        .iter()
        .map(|d| match &*d.known() {
            Known::Waiting => json!({"name": d.name.as_str(), "state": "waiting"}),
            Known::Absent => json!({"name": d.name.as_str(), "state": "absent"}),
            Known::Present(view) => json!({
                "name": d.name.as_str(),
                "state": "present",
                "generation": view.generation,
                "service": service(&view.service),
                "endpoints": view.endpoints.iter().map(|e| wire::Endpoint::from((**e).clone())).collect::<Vec<_>>(),
            }),
        })
        .collect();
    let versions: BTreeMap<&'static str, BTreeMap<String, Value>> =
        shared
            .discovery
            .resources()
            .into_iter()
            .fold(BTreeMap::new(), |mut all, ((kind, name), outcome)| {
                all.entry(kind.message()).or_default().insert(name, version(&outcome));
                all
            });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "admin": shared.admin.borrow().as_ref().map(ToString::to_string),
        "bootstrap": shared.bootstrap,
        "proxy": proxy(&shared.directory.proxy()),
        "destinations": destinations,
        "resources": versions,
    })
}

fn version(outcome: &Outcome) -> Value {
    match &outcome.refused {
        None => json!({"applied": outcome.version}),
        Some((version, why)) => json!({
            "applied": outcome.version,
            "rejected": {"version": version, "field": why.path, "reason": why.reason},
        }),
    }
}

fn service(service: &Service) -> Value {
    json!({
        "ports": service.ports.iter().map(|p| json!({"name": *p.name, "protocol": p.protocol.as_str()})).collect::<Vec<_>>(),
        "timeout_ms": service.policy.timeout.map(|t| t.as_millis()),
        "connect_timeout_ms": service.connect_timeout.as_millis(),
        "balance": service.balance.as_str(),
    })
}

fn proxy(proxy: &Proxy) -> Value {
    let health = &proxy.health;
    let probe = match &health.probe {
        Probe::Http { path, port } => json!({"http": {"path": path, "port": port}}),
        Probe::Grpc { service, port } => json!({"grpc": {"service": service, "port": port}}),
        Probe::Tcp { port } => json!({"tcp": {"port": port}}),
        Probe::Exec { command } => json!({"exec": {"command": command}}),
    };
    let limits = &proxy.limits;
    json!({
        "name": proxy.name.as_str(),
        "health": {
            "probe": probe,
            "interval_ms": health.interval.as_millis(),
            "timeout_ms": health.timeout.as_millis(),
            "healthy_threshold": health.healthy_threshold,
            "unhealthy_threshold": health.unhealthy_threshold,
        },
        "calls": proxy.calls.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "external": match &proxy.external {
            External::Allow => json!("allow"),
            External::Deny => json!("deny"),
            External::List(hosts) => json!(hosts),
        },
        "limits": {
            "max_connections": limits.max_connections,
            "max_header_bytes": limits.max_header_bytes,
            "max_headers": limits.max_headers,
            "header_timeout_ms": limits.header_timeout.as_millis(),
            "idle_timeout_ms": limits.idle_timeout.as_millis(),
            "max_connection_age_ms": limits.max_connection_age.as_millis(),
            "max_connections_per_listener": limits.max_connections_per_listener,
            "max_streams": limits.max_streams,
            "max_buffered_bytes": limits.max_buffered_bytes,
            "file_reserve": limits.file_reserve,
            "max_resets_per_second": limits.max_resets,
            "max_control_frames_per_second": limits.max_control_frames,
            "underscores": match limits.underscores {
                Underscores::Reject => "reject",
                Underscores::Drop => "drop",
                Underscores::Allow => "allow",
            },
            "trailers": match limits.trailers {
                Trailers::Pass => "pass",
                Trailers::Drop => "drop",
            },
        },
        "drain": {"delay_ms": proxy.drain.delay.as_millis(), "deadline_ms": proxy.drain.deadline.as_millis()},
        "access_log": match proxy.access_log {
            AccessLog::Off => "off",
            AccessLog::Json => "json",
        },
        "depends": proxy.depends.iter().map(|d| match &d.check {
            DependencyCheck::File(path) => json!({"name": d.name, "file": path}),
            DependencyCheck::Tcp(address) => json!({"name": d.name, "tcp": address}),
            DependencyCheck::Http(url) => json!({"name": d.name, "http": url}),
        }).collect::<Vec<_>>(),
    })
}
