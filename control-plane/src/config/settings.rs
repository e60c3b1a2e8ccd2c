//! What is in force for a service as a list of keys, values and where each comes from: what `describe` shows and what
//! `config diff` compares. Values are spelled as in mesh.yaml.

use std::time::Duration;

use outrigger_proto::model::{
    AccessLog, Balance, DependencyCheck, External, HashOn, Limit, Policy, Principal, Probe, RateLimitBy, Rule, Trip,
};
use serde::Serialize;

use super::ServiceDoc;
use super::origin::{Level, Origins, Source};
use super::tree::Node;
use super::words::shown_outcomes;

mod diff;
mod route;

pub use diff::{Change, ServiceChange, changes};
pub use route::{RouteRow, routes};

/// One value in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The path of the key, for example `retry.attempts`; `routes.NAME.timeout` in a route.
    pub key: String,
    /// As mesh.yaml spells it.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
}

/// Collects settings.
struct List<'a> {
    origins: Origins<'a>,
    out: Vec<Setting>,
}

impl List<'_> {
    /// A value at the path that its key says.
    fn put(&mut self, key: &str, value: impl Into<String>) {
        let path: Vec<&str> = key.split('.').collect();
        let source = self.origins.source(&path);
        self.push(key.to_owned(), value.into(), source);
    }

    fn push(&mut self, key: String, value: String, source: Source) {
        self.out.push(Setting { key, value, source });
    }
}

/// Everything that holds for `service`; `head` is the mesh document.
pub(super) fn of(service: &ServiceDoc, origins: Origins<'_>, head: Option<&Node>) -> Vec<Setting> {
    let mut list = List {
        origins,
        out: Vec::with_capacity(96),
    };
    callers(&mut list, service);
    route::all(&mut list, service);
    own(&mut list, service);
    access(&mut list, service, head);
    instances(&mut list, service);
    list.out
}

/// What holds for one request.
fn policy(policy: &Policy) -> [(&'static str, String); 12] {
    [
        ("timeout", optional(policy.timeout)),
        ("retry.attempts", policy.retry.attempts.to_string()),
        ("retry.per_try", optional(policy.per_try)),
        ("retry.on", shown_outcomes(&policy.retry.on)),
        ("retry.backoff", time(policy.retry.backoff)),
        ("retry.max_backoff", time(policy.retry.max_backoff)),
        ("idempotent", policy.idempotent.to_string()),
        (
            "hedge",
            policy.hedge.map_or_else(
                || "off".to_owned(),
                |hedge| format!("after {}", hedge.after.map_or_else(|| "p95".to_owned(), time)),
            ),
        ),
        ("failures", shown_outcomes(&policy.failures)),
        ("idle_timeout", optional(policy.idle)),
        ("queue_timeout", time(policy.queue)),
        ("priority", policy.priority.as_str().to_owned()),
    ]
}

fn callers(list: &mut List<'_>, service: &ServiceDoc) {
    let traffic = &service.traffic;
    for (key, value) in policy(&traffic.policy) {
        list.put(key, value);
    }
    list.put("retry.budget.percent", format!("{}%", traffic.retry_budget.percent));
    list.put(
        "retry.budget.min_per_second",
        traffic.retry_budget.min_per_second.to_string(),
    );
    list.put("connect_timeout", time(traffic.connect_timeout));
    match &traffic.breaker {
        None => list.put("breaker", "off"),
        Some(breaker) => {
            trip(list, "breaker", &breaker.trip);
            list.put("breaker.cooldown", time(breaker.cooldown));
            list.put("breaker.max_cooldown", time(breaker.max_cooldown));
            list.put("breaker.probes", breaker.probes.to_string());
        }
    }
    let outlier = &traffic.outlier;
    match &outlier.trip {
        None => list.put("outlier", "off"),
        Some(found) => {
            trip(list, "outlier", found);
            list.put("outlier.ejection", time(outlier.ejection));
            list.put("outlier.max_ejection", time(outlier.max_ejection));
            list.put("outlier.max_ejected", format!("{}%", outlier.max_ejected_percent));
            list.put("outlier.panic", format!("{}%", outlier.panic_percent));
        }
    }
    let bound = |n: Option<u32>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let bounds = &traffic.concurrency;
    list.put("concurrency.requests", bound(bounds.requests));
    list.put("concurrency.endpoint_requests", bound(bounds.endpoint_requests));
    list.put("concurrency.pending", bounds.pending.to_string());
    list.put("concurrency.connections", bound(bounds.connections));
    list.put("balance", balance(&traffic.balance));
    list.put("slow_start", optional(traffic.slow_start));
    match traffic.zone {
        None => list.put("zone", "off"),
        Some(zone) => list.put("zone.healthy", format!("{}%", zone.healthy_percent)),
    }
    if !traffic.failover.is_empty() {
        let to: Vec<String> = traffic
            .failover
            .iter()
            .map(|to| route::destination(to, service))
            .collect();
        list.put("failover", to.join(", "));
    }
    for subset in &traffic.subsets {
        let labels: Vec<String> = subset
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let key = format!("subsets.{}", subset.name);
        let source = match list.origins.find(&["subsets", &subset.name]) {
            Some((level, span)) => list.origins.at(level, span),
            None => list.origins.source(&["versions", &subset.name]),
        };
        list.push(key, labels.join(", "), source);
    }
}

fn trip(list: &mut List<'_>, key: &str, trip: &Trip) {
    let mut put = |name: &str, value: String| list.put(&format!("{key}.{name}"), value);
    put("failures", trip.consecutive.to_string());
    put("rate", format!("{}%", trip.rate_percent));
    put("slow", optional(trip.slow));
    put("slow_rate", format!("{}%", trip.slow_percent));
    put("min_requests", trip.min_requests.to_string());
    put("window", time(trip.window));
}

/// What its own sidecars do.
fn own(list: &mut List<'_>, service: &ServiceDoc) {
    let traffic = &service.traffic;
    match &traffic.admission {
        None => list.put("admission", "off"),
        Some(admission) => {
            list.put(
                "admission.limit",
                match admission.limit {
                    Limit::Fixed(n) => n.to_string(),
                    Limit::Gradient => "gradient".to_owned(),
                    Limit::Aimd => "aimd".to_owned(),
                },
            );
            if !matches!(admission.limit, Limit::Fixed(_)) {
                list.put("admission.min", admission.min.to_string());
                list.put("admission.max", admission.max.to_string());
                list.put("admission.initial", admission.initial.to_string());
            }
            list.put("admission.queue", time(admission.queue));
            list.put("admission.queue_length", admission.queue_length.to_string());
        }
    }
    for (i, limit) in traffic.rate_limits.iter().enumerate() {
        let by = match &limit.by {
            RateLimitBy::All => String::new(),
            RateLimitBy::Caller => " by caller".to_owned(),
            RateLimitBy::Header(name) => format!(" by header {name}"),
        };
        let value = format!(
            "{}/{}, burst {}{by}{}, {}",
            limit.requests,
            time(limit.period),
            limit.burst,
            if limit.mesh { ", of all instances together" } else { "" },
            route::matches(&limit.matches)
        );
        let source = list.origins.source(&["rate_limits", &i.to_string()]);
        list.push(format!("rate_limits.{}", limit.name), value, source);
    }
    if !traffic.priorities.is_empty() {
        let one = |rule: &outrigger_proto::model::PriorityRule| {
            format!("{}: {}", rule.priority.as_str(), route::matches(&rule.matches))
        };
        let all: Vec<String> = traffic.priorities.iter().map(one).collect();
        list.put("priorities", all.join("; "));
    }
    let limits = &service.limits;
    let numbers = [
        ("limits.max_connections", limits.max_connections),
        (
            "limits.max_connections_per_listener",
            limits.max_connections_per_listener,
        ),
        ("limits.max_header_bytes", limits.max_header_bytes),
        ("limits.max_headers", limits.max_headers),
        ("limits.max_streams", limits.max_streams as usize),
        ("limits.max_buffered_mib", limits.max_buffered_bytes >> 20),
        ("limits.file_reserve", limits.file_reserve),
        ("limits.max_resets", limits.max_resets as usize),
        ("limits.max_control_frames", limits.max_control_frames as usize),
    ];
    for (key, number) in numbers {
        list.put(key, number.to_string());
    }
    list.put("limits.header_timeout", time(limits.header_timeout));
    list.put("limits.idle_timeout", time(limits.idle_timeout));
    list.put("limits.max_connection_age", time(limits.max_connection_age));
    list.put("limits.underscores", format!("{:?}", limits.underscores).to_lowercase());
    list.put("limits.trailers", format!("{:?}", limits.trailers).to_lowercase());
    list.put("drain.delay", time(service.drain.delay));
    list.put("drain.deadline", time(service.drain.deadline));
    list.put(
        "access_log",
        match service.access_log {
            AccessLog::Off => "off",
            AccessLog::Json => "json",
        },
    );
    list.put(
        "external",
        match &service.external {
            External::Allow => "allow".to_owned(),
            External::Deny => "deny".to_owned(),
            External::List(hosts) => hosts.join(", "),
        },
    );
}

fn access(list: &mut List<'_>, service: &ServiceDoc, head: Option<&Node>) {
    list.put("mode", service.mode.as_str());
    let access = &service.access;
    let namespace = ["namespaces", service.name.namespace(), "access", "default"];
    let inherited = |path: &[&str]| {
        let head = head?;
        let key = path.last()?;
        let parent = head.inside(path.get(..path.len() - 1)?);
        parent
            .get(key)
            .filter(|node| !node.is_null())
            .map(|node| list.origins.at(Level::Mesh, &node.span))
    };
    let default = if access.default_allow { "anybody" } else { "nobody" };
    let (value, source) = match list.origins.find(&["allow"]) {
        Some((level, span)) => {
            let rules: Vec<String> = access.rules.iter().map(rule).collect();
            let value = if rules.is_empty() {
                "nobody".to_owned()
            } else {
                rules.join("; ")
            };
            (value, list.origins.at(level, span))
        }
        None => {
            let source = inherited(&namespace).or_else(|| inherited(&["access", "default"]));
            (default.to_owned(), source.unwrap_or_else(Source::built_in))
        }
    };
    list.push("allow".to_owned(), value, source);
    list.put("audit", access.audit.to_string());
    list.put("exposed_app", service.exposed_app.to_string());
}

fn rule(rule: &Rule) -> String {
    let who = |principal: &Principal| match principal {
        Principal::Unauthenticated => "unauthenticated".to_owned(),
        Principal::Authenticated => "*".to_owned(),
        Principal::TrustDomain(domain) => format!("spiffe://{domain}/*"),
        Principal::Namespace(namespace) => format!("{namespace}/*"),
        Principal::Service(service) => service.to_string(),
        Principal::Id(id) => id.to_string(),
    };
    let from: Vec<String> = rule.from.iter().map(who).collect();
    let parts = [
        ("ports", &rule.ports),
        ("methods", &rule.methods),
        ("paths", &rule.paths),
        ("grpc", &rule.grpc),
    ];
    let rest: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(key, list)| format!(" {key} {}", list.join("|")))
        .collect();
    format!("{}{}", from.join("|"), rest.concat())
}

fn instances(list: &mut List<'_>, service: &ServiceDoc) {
    let health = &service.health;
    let port = |port: &Option<String>| port.as_ref().map(|port| format!(" at {port}")).unwrap_or_default();
    let probe = match &health.probe {
        Probe::Http { path, port: at } => format!("http {path}{}", port(at)),
        Probe::Grpc { service, port: at } => format!("grpc {service}{}", port(at)),
        Probe::Tcp { port: at } => format!("tcp{}", port(at)),
        Probe::Exec { command } => format!("exec {}", command.join(" ")),
    };
    let probe_key = ["http", "grpc", "tcp", "exec"]
        .into_iter()
        .find(|key| list.origins.find(&["health", key]).is_some());
    let source = probe_key.map_or_else(Source::built_in, |key| list.origins.source(&["health", key]));
    list.push("health".to_owned(), probe, source);
    list.put("health.every", time(health.interval));
    list.put("health.timeout", time(health.timeout));
    list.put("health.healthy", health.healthy_threshold.to_string());
    list.put("health.unhealthy", health.unhealthy_threshold.to_string());
    let names: Vec<String> = service.calls.iter().map(ToString::to_string).collect();
    let ports: Vec<String> = service
        .ports
        .iter()
        .map(|port| format!("{} {}", port.name, port.protocol.as_str()))
        .collect();
    let key = if list.origins.find(&["ports"]).is_some() {
        "ports"
    } else {
        "protocol"
    };
    list.put(key, ports.join(", "));
    if !names.is_empty() {
        list.put("calls", names.join(", "));
    }
    for (i, dependency) in service.depends.iter().enumerate() {
        let source = list.origins.source(&["depends", &i.to_string()]);
        list.push(
            format!("depends.{}", dependency.name),
            match &dependency.check {
                DependencyCheck::File(path) => format!("file {path}"),
                DependencyCheck::Tcp(address) => format!("tcp {address}"),
                DependencyCheck::Http(url) => format!("http {url}"),
            },
            source,
        );
    }
    for (key, value) in &service.labels {
        let source = list.origins.source(&["labels", key]);
        list.push(format!("labels.{key}"), value.clone(), source);
    }
    list.put("weight", service.weight.to_string());
    if let Some(language) = &service.language {
        list.put("language", language.as_str());
    }
    if let Some(build) = &service.build {
        list.put("build", build.as_str());
    }
    for version in &service.versions {
        let run = version.run.as_deref().unwrap_or("none");
        match &version.name {
            None => {
                list.put("run", run);
                list.put("replicas", version.replicas.to_string());
            }
            Some(name) => {
                let labels: Vec<String> = version
                    .labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let value = format!(
                    "{} of `{run}` with {}, weight {}",
                    version.replicas,
                    labels.join(" "),
                    version.weight
                );
                let source = list.origins.source(&["versions", name]);
                list.push(format!("versions.{name}"), value, source);
            }
        }
    }
}

/// How an endpoint is chosen, in words.
fn balance(balance: &Balance) -> String {
    match balance {
        Balance::Ring(hash) | Balance::Maglev(hash) => {
            format!(
                "{} by {}, bound {}%",
                balance.as_str(),
                hash_on(&hash.on),
                hash.bound_percent
            )
        }
        _ => balance.as_str().to_owned(),
    }
}

/// What a hash is taken of, in words.
fn hash_on(on: &HashOn) -> String {
    match on {
        HashOn::Header(name) => format!("header {name}"),
        HashOn::Cookie(name) => format!("cookie {name}"),
        HashOn::Query(name) => format!("query {name}"),
        HashOn::PathSegment(n) => format!("path_segment {n}"),
        HashOn::Caller => "caller".to_owned(),
    }
}

fn optional(time_: Option<Duration>) -> String {
    time_.map_or_else(|| "none".to_owned(), time)
}

/// `1s500ms`: what the reader takes, without blanks.
fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}
