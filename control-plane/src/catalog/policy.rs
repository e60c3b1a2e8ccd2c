//! A service's document in the words of the wire.
//!
//! Defaults are written out: what a sidecar does must not depend on which version's built-in numbers it carries.

use std::time::Duration;

use outrigger_proto::model::{
    Access, AccessLog, Dependency, DependencyCheck, External, Health, Mode, Principal, Priority, PriorityRule, Probe,
    Trailers, Underscores,
};
use outrigger_proto::wire::mesh as wire;

use crate::config::{ServiceDoc, Traffic};

/// What the service's own sidecars do.
pub(super) fn proxy(document: &ServiceDoc) -> wire::Proxy {
    let limits = &document.limits;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    wire::Proxy {
        name: document.name.to_string(),
        health: Some(health(&document.health)),
        calls: document.calls.iter().map(ToString::to_string).collect(),
        external: Some(external(&document.external)),
        limits: Some(wire::Limits {
            max_connections: count(limits.max_connections),
            max_header_bytes: count(limits.max_header_bytes),
            max_headers: count(limits.max_headers),
            header_timeout_ms: millis(limits.header_timeout),
            idle_timeout_ms: millis(limits.idle_timeout),
            max_connection_age_ms: millis(limits.max_connection_age),
            max_connections_per_listener: count(limits.max_connections_per_listener),
            max_streams: limits.max_streams,
            max_buffered_bytes: limits.max_buffered_bytes as u64,
            file_reserve: count(limits.file_reserve),
            max_resets_per_second: limits.max_resets,
            max_control_frames_per_second: limits.max_control_frames,
            underscores: match limits.underscores {
                Underscores::Reject => wire::Underscores::Reject,
                Underscores::Drop => wire::Underscores::Drop,
                Underscores::Allow => wire::Underscores::Allow,
            } as i32,
            trailers: match limits.trailers {
                Trailers::Pass => wire::Trailers::Pass,
                Trailers::Drop => wire::Trailers::Drop,
            } as i32,
        }),
        drain: Some(wire::Drain {
            delay_ms: millis(document.drain.delay),
            deadline_ms: millis(document.drain.deadline),
        }),
        access_log: match document.access_log {
            AccessLog::Off => wire::AccessLog::Off,
            AccessLog::Json => wire::AccessLog::Json,
        } as i32,
        depends: document.depends.iter().map(dependency).collect(),
        exposed_app: document.exposed_app,
        mode: mode(document.mode),
        access: Some(access(&document.access)),
        admission: document.traffic.admission.as_ref().map(Into::into),
        rate_limits: document.traffic.rate_limits.iter().map(Into::into).collect(),
        priorities: priorities(&document.traffic),
    }
}

/// How much requests matter at the service's own sidecars: its list, then what its routes say, then what it says itself.
fn priorities(traffic: &Traffic) -> Vec<wire::Priority> {
    let routes = traffic.routes.iter().map(|route| PriorityRule {
        matches: route.matches.to_vec(),
        priority: route.policy.priority,
    });
    let rest = PriorityRule {
        matches: Vec::new(),
        priority: traffic.policy.priority,
    };
    let mut said: Vec<_> = routes.chain([rest]).collect();
    if said.iter().all(|rule| rule.priority == Priority::Normal) {
        said.clear();
    }
    traffic.priorities.iter().chain(&said).map(Into::into).collect()
}

/// What callers need to know.
pub(super) fn service(document: &ServiceDoc) -> wire::Service {
    (&document.resource()).into()
}

fn mode(mode: Mode) -> i32 {
    (match mode {
        Mode::Strict => wire::Mode::Strict,
        Mode::Permissive => wire::Mode::Permissive,
        Mode::Off => wire::Mode::Disabled,
    }) as i32
}

fn access(access: &Access) -> wire::Access {
    use wire::access::Default as Decision;
    let rule = |rule: &outrigger_proto::model::Rule| wire::Rule {
        name: rule.name.clone(),
        from: rule.from.iter().map(principal).collect(),
        ports: rule.ports.clone(),
        methods: rule.methods.clone(),
        paths: rule.paths.clone(),
        grpc: rule.grpc.clone(),
    };
    wire::Access {
        default: match access.default_allow {
            true => Decision::Allow,
            false => Decision::Deny,
        } as i32,
        default_source: access.default_source.clone(),
        rules: access.rules.iter().map(rule).collect(),
        audit: access.audit,
    }
}

fn principal(principal: &Principal) -> wire::Principal {
    use wire::principal::Who;
    wire::Principal {
        who: Some(match principal {
            Principal::Unauthenticated => Who::Unauthenticated(true),
            Principal::Authenticated => Who::Authenticated(true),
            Principal::TrustDomain(domain) => Who::TrustDomain(domain.clone()),
            Principal::Namespace(namespace) => Who::Namespace(namespace.clone()),
            Principal::Service(service) => Who::Service(service.to_string()),
            Principal::Id(id) => Who::Id(id.to_string()),
        }),
    }
}

fn health(health: &Health) -> wire::Health {
    let port = |port: &Option<String>| port.clone().unwrap_or_default();
    wire::Health {
        probe: Some(match &health.probe {
            Probe::Http { path, port: name } => wire::health::Probe::Http(wire::HttpProbe {
                path: path.clone(),
                port: port(name),
            }),
            Probe::Grpc { service, port: name } => wire::health::Probe::Grpc(wire::GrpcProbe {
                service: service.clone(),
                port: port(name),
            }),
            Probe::Tcp { port: name } => wire::health::Probe::Tcp(wire::TcpProbe { port: port(name) }),
            Probe::Exec { command } => wire::health::Probe::Exec(wire::ExecProbe {
                command: command.clone(),
            }),
        }),
        interval_ms: millis(health.interval),
        timeout_ms: millis(health.timeout),
        healthy_threshold: health.healthy_threshold,
        unhealthy_threshold: health.unhealthy_threshold,
    }
}

fn external(external: &External) -> wire::External {
    let (mode, hosts) = match external {
        External::Allow => (wire::external::Mode::Allow, Vec::new()),
        External::Deny => (wire::external::Mode::Deny, Vec::new()),
        External::List(hosts) => (wire::external::Mode::List, hosts.clone()),
    };
    wire::External {
        mode: mode as i32,
        hosts,
    }
}

fn dependency(dependency: &Dependency) -> wire::Dependency {
    use wire::dependency::Check;
    wire::Dependency {
        name: dependency.name.clone(),
        check: Some(match &dependency.check {
            DependencyCheck::File(path) => Check::File(path.clone()),
            DependencyCheck::Tcp(address) => Check::Tcp(address.clone()),
            DependencyCheck::Http(url) => Check::Http(url.clone()),
        }),
    }
}

/// Whole milliseconds; a part of one counts as one, since 0 has another meaning on the wire.
fn millis(duration: Duration) -> u32 {
    let whole = duration.as_nanos().div_ceil(1_000_000);
    u32::try_from(whole).unwrap_or(u32::MAX)
}
