//! One workload's own settings.

use std::time::Duration;

use super::service::list;
use super::{Access, Admission, FieldError, Limits, Mode, PriorityRule, RateLimit, ServiceName, duration};
use crate::wire::mesh as wire;

/// One workload's own settings: what its sidecar does for the app beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `namespace/service`.
    pub name: ServiceName,
    /// How the sidecar asks its app whether it is well.
    pub health: Health,
    /// Services that the app calls.
    pub calls: Vec<ServiceName>,
    /// What the app may reach outside the mesh.
    pub external: External,
    /// Bounds on what clients may ask of the sidecar.
    pub limits: Limits,
    /// How the sidecar leaves.
    pub drain: Drain,
    /// Whether requests are logged.
    pub access_log: AccessLog,
    /// What the app needs to be useful.
    pub depends: Vec<Dependency>,
    /// How callers reach the workload's ports.
    pub mode: Mode,
    /// Who may call.
    pub access: Access,
    /// True when the app may listen on an address that others reach past the sidecar.
    pub exposed_app: bool,
    /// How many requests the app gets at a time. Default as many as come.
    pub admission: Option<Admission>,
    /// How many a second.
    pub rate_limits: Vec<RateLimit>,
    /// Which requests matter more; the first that matches.
    pub priorities: Vec<PriorityRule>,
}

impl Proxy {
    /// The defaults for `name`.
    #[must_use]
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            health: Health::default(),
            calls: Vec::new(),
            external: External::Allow,
            limits: Limits::default(),
            drain: Drain::default(),
            access_log: AccessLog::Off,
            depends: Vec::new(),
            mode: Mode::default(),
            access: Access::default(),
            exposed_app: false,
            admission: None,
            rate_limits: Vec::new(),
            priorities: Vec::new(),
        }
    }
}

/// Whether requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessLog {
    /// Not at all.
    #[default]
    Off,
    /// One JSON object a line.
    Json,
}

/// How the sidecar asks its app whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Time between two probes. Default 2 s.
    pub interval: Duration,
    /// Bound on one probe. Default 1 s.
    pub timeout: Duration,
    /// Consecutive successes before a failing app counts as well. Default 1.
    pub healthy_threshold: u32,
    /// Consecutive failures before a healthy app counts as failing. Default 2.
    pub unhealthy_threshold: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp { port: None },
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            healthy_threshold: 1,
            unhealthy_threshold: 2,
        }
    }
}

/// One way to ask. A port of none means the app's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `GET path` answers 2xx or 3xx.
    Http {
        /// Starts with `/`.
        path: String,
        /// Port name.
        port: Option<String>,
    },
    /// `grpc.health.v1.Health/Check` answers SERVING.
    Grpc {
        /// Empty for the server as a whole.
        service: String,
        /// Port name.
        port: Option<String>,
    },
    /// A connection is accepted.
    Tcp {
        /// Port name.
        port: Option<String>,
    },
    /// The command exits with 0.
    Exec {
        /// Program and arguments; never empty.
        command: Vec<String>,
    },
}

/// Something the app needs to be useful.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Shown to people.
    pub name: String,
    /// How it is checked.
    pub check: DependencyCheck,
}

/// How a dependency is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DependencyCheck {
    /// The file exists and is readable.
    File(String),
    /// `host:port` accepts a connection.
    Tcp(String),
    /// The URL answers 2xx or 3xx.
    Http(String),
}

/// What the app may reach outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum External {
    /// Anything but link-local metadata addresses.
    #[default]
    Allow,
    /// Nothing.
    Deny,
    /// These hosts; `*.example.com` matches every name below it.
    List(Vec<String>),
}

/// How the sidecar leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Keeps serving this long after it left the registry. Default 500 ms.
    pub delay: Duration,
    /// Then waits this long for what is open. Default 10 s.
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(500),
            deadline: Duration::from_secs(10),
        }
    }
}

impl TryFrom<wire::Proxy> for Proxy {
    type Error = FieldError;

    fn try_from(wire: wire::Proxy) -> Result<Self, FieldError> {
        let name = wire.name.parse()?;
        let calls = wire
            .calls
            .iter()
            .enumerate()
            .map(|(i, c)| {
                c.parse()
                    .map_err(|e: FieldError| FieldError::new(format!("calls[{i}]"), e.reason))
            })
            .collect::<Result<_, _>>()?;
        let depends = wire
            .depends
            .into_iter()
            .enumerate()
            .map(|(i, d)| Dependency::try_from(d).map_err(|e| e.under(format!("depends[{i}]"))))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            calls,
            depends,
            health: wire.health.map_or_else(
                || Ok(Health::default()),
                |h| h.try_into().map_err(|e: FieldError| e.under("health")),
            )?,
            external: wire.external.map_or_else(
                || Ok(External::Allow),
                |x| x.try_into().map_err(|e: FieldError| e.under("external")),
            )?,
            limits: wire.limits.map_or_else(
                || Ok(Limits::default()),
                |l| l.try_into().map_err(|e: FieldError| e.under("limits")),
            )?,
            drain: wire.drain.map_or_else(
                || Ok(Drain::default()),
                |d| d.try_into().map_err(|e: FieldError| e.under("drain")),
            )?,
            access_log: match wire::AccessLog::try_from(wire.access_log) {
                Ok(wire::AccessLog::Unspecified | wire::AccessLog::Off) => AccessLog::Off,
                Ok(wire::AccessLog::Json) => AccessLog::Json,
                Err(_) => return Err(FieldError::new("access_log", format!("{} is unknown", wire.access_log))),
            },
            mode: Mode::try_from_wire(wire.mode)?,
            access: wire.access.map_or_else(
                || Ok(Access::default()),
                |a| a.try_into().map_err(|e: FieldError| e.under("access")),
            )?,
            exposed_app: wire.exposed_app,
            admission: wire
                .admission
                .map(Admission::try_from)
                .transpose()
                .map_err(|e| e.under("admission"))?,
            rate_limits: list(wire.rate_limits, "rate_limits")?,
            priorities: list(wire.priorities, "priorities")?,
        })
    }
}

impl TryFrom<wire::Health> for Health {
    type Error = FieldError;

    fn try_from(wire: wire::Health) -> Result<Self, FieldError> {
        let default = Self::default();
        let port = |name: String| (!name.is_empty()).then_some(name);
        let probe = match wire.probe {
            None => default.probe,
            Some(wire::health::Probe::Http(p)) if p.path.starts_with('/') => Probe::Http {
                path: p.path,
                port: port(p.port),
            },
            Some(wire::health::Probe::Http(p)) => {
                return Err(FieldError::new(
                    "probe.http.path",
                    format!("`{}` does not start with /", p.path),
                ));
            }
            Some(wire::health::Probe::Grpc(p)) => Probe::Grpc {
                service: p.service,
                port: port(p.port),
            },
            Some(wire::health::Probe::Tcp(p)) => Probe::Tcp { port: port(p.port) },
            Some(wire::health::Probe::Exec(p)) if p.command.is_empty() => {
                return Err(FieldError::new("probe.exec.command", "needs a program"));
            }
            Some(wire::health::Probe::Exec(p)) => Probe::Exec { command: p.command },
        };
        let or = |n: u32, default: u32| if n == 0 { default } else { n };
        Ok(Self {
            probe,
            interval: duration(wire.interval_ms, "interval_ms", default.interval)?,
            timeout: duration(wire.timeout_ms, "timeout_ms", default.timeout)?,
            healthy_threshold: or(wire.healthy_threshold, default.healthy_threshold),
            unhealthy_threshold: or(wire.unhealthy_threshold, default.unhealthy_threshold),
        })
    }
}

impl TryFrom<wire::Dependency> for Dependency {
    type Error = FieldError;

    fn try_from(wire: wire::Dependency) -> Result<Self, FieldError> {
        let check = match wire.check {
            Some(wire::dependency::Check::File(path)) => DependencyCheck::File(path),
            Some(wire::dependency::Check::Tcp(address)) => DependencyCheck::Tcp(address),
            Some(wire::dependency::Check::Http(url)) => DependencyCheck::Http(url),
            None => return Err(FieldError::new("check", "one of file, tcp, http is needed")),
        };
        Ok(Self { name: wire.name, check })
    }
}

impl TryFrom<wire::External> for External {
    type Error = FieldError;

    fn try_from(wire: wire::External) -> Result<Self, FieldError> {
        use wire::external::Mode;
        Ok(match Mode::try_from(wire.mode) {
            Ok(Mode::Unspecified | Mode::Allow) => Self::Allow,
            Ok(Mode::Deny) => Self::Deny,
            Ok(Mode::List) => Self::List(wire.hosts),
            Err(_) => return Err(FieldError::new("mode", format!("{} is unknown", wire.mode))),
        })
    }
}

impl TryFrom<wire::Drain> for Drain {
    type Error = FieldError;

    fn try_from(wire: wire::Drain) -> Result<Self, FieldError> {
        let default = Self::default();
        Ok(Self {
            delay: duration(wire.delay_ms, "delay_ms", default.delay)?,
            deadline: duration(wire.deadline_ms, "deadline_ms", default.deadline)?,
        })
    }
}
