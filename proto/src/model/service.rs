//! A service and its policy, as callers need it.

use std::sync::Arc;
use std::time::Duration;

use super::name::label;
use super::policy::{millis, optional, or};
use super::{
    Breaker, Concurrency, Destination, Fault, FieldError, HashOn, Outlier, Policy, RetryBudget, Route, ServiceName,
    Subset, duration,
};
use crate::wire::mesh as wire;

/// A service and its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `namespace/service`.
    pub name: ServiceName,
    /// At least one; names are unique. The first is the default.
    pub ports: Vec<Port>,
    /// Bound on making one connection. Default 1 s.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// An endpoint that has just come gets its share by and by. Default at once.
    pub slow_start: Option<Duration>,
    /// Endpoints of the caller's zone first. Default no.
    pub zone: Option<ZonePreference>,
    /// Where requests go while there is no usable endpoint, in order.
    pub failover: Vec<Destination>,
    /// What holds for requests that match no route.
    pub policy: Policy,
    /// Over all tries of what may have been processed, of one caller.
    pub retry_budget: RetryBudget,
    /// When one caller stops calling the service. Default never.
    pub breaker: Option<Breaker>,
    /// When one caller stops using an endpoint.
    pub outlier: Outlier,
    /// Bounds of one caller.
    pub concurrency: Concurrency,
    /// The first that matches is taken.
    pub routes: Vec<Route>,
    /// Named sets of endpoints.
    pub subsets: Vec<Subset>,
    /// Failures on purpose.
    pub faults: Vec<Fault>,
    /// What callers must speak.
    pub mode: Mode,
}

impl Service {
    /// A service with these ports and every default; callers must speak what `mode` says.
    #[must_use]
    pub fn new(name: ServiceName, ports: Vec<Port>, mode: Mode) -> Self {
        Self {
            name,
            ports,
            connect_timeout: Duration::from_secs(1),
            balance: Balance::default(),
            slow_start: None,
            zone: None,
            failover: Vec::new(),
            policy: Policy::default(),
            retry_budget: RetryBudget::default(),
            breaker: None,
            outlier: Outlier::default(),
            concurrency: Concurrency::default(),
            routes: Vec::new(),
            subsets: Vec::new(),
            faults: Vec::new(),
            mode,
        }
    }
}

/// Endpoints of the caller's zone first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonePreference {
    /// While the own zone has at least this share of its endpoints usable, it gets everything; below, the rest overflows
    /// to the others. Default 70.
    pub healthy_percent: u32,
}

/// How the ports of a workload are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Mutual TLS of the mesh and nothing else.
    Strict,
    /// Mutual TLS of the mesh, and plain clients for a migration.
    Permissive,
    /// Plain. What an absent field means: the control plane always says the mode.
    #[default]
    Off,
}

impl Mode {
    /// Reads the wire number; 0 is [`Mode::Off`].
    ///
    /// # Errors
    /// When the number names no mode.
    pub fn try_from_wire(number: i32) -> Result<Self, FieldError> {
        Ok(match wire::Mode::try_from(number) {
            Ok(wire::Mode::Strict) => Self::Strict,
            Ok(wire::Mode::Permissive) => Self::Permissive,
            Ok(wire::Mode::Unspecified | wire::Mode::Disabled) => Self::Off,
            Err(_) => return Err(FieldError::new("mode", format!("{number} is unknown"))),
        })
    }

    /// The spelling in files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
            Self::Off => "off",
        }
    }
}

/// A named port and how it is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Unique in the service.
    pub name: Arc<str>,
    /// How the bytes are spoken.
    pub protocol: Protocol,
}

/// How the bytes of a port are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Detected from the first bytes.
    Auto,
    /// HTTP/1.x towards the app.
    Http,
    /// HTTP/2 by prior knowledge towards the app.
    Http2,
    /// gRPC: HTTP/2 by prior knowledge, the mesh's own answers in gRPC's form.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The app's own TLS, passed through as opaque bytes.
    Tls,
}

impl Protocol {
    /// True when the mesh reads requests on this port.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// The spelling in files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Balance {
    /// The better of two random endpoints by peak-EWMA latency times requests in flight.
    #[default]
    P2cPeakEwma,
    /// The one of two random endpoints with fewer requests in flight.
    LeastRequest,
    /// One after another, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// By hash on a ring of endpoints.
    Ring(Hash),
    /// By hash in a Maglev table.
    Maglev(Hash),
}

/// How requests with one value keep to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hash {
    /// What the hash is taken of. A request without it goes to the better of two random endpoints.
    pub on: HashOn,
    /// Times the average load, percent, that one endpoint may get. Default 125.
    pub bound_percent: u32,
}

impl TryFrom<wire::Service> for Service {
    type Error = FieldError;

    fn try_from(wire: wire::Service) -> Result<Self, FieldError> {
        let name = wire.name.parse()?;
        if wire.ports.is_empty() {
            return Err(FieldError::new("ports", "a service needs at least one port"));
        }
        let mut ports: Vec<Port> = Vec::with_capacity(wire.ports.len());
        for (i, port) in wire.ports.into_iter().enumerate() {
            let port = Port::try_from(port).map_err(|e| e.under(format!("ports[{i}]")))?;
            if ports.iter().any(|p| p.name == port.name) {
                return Err(FieldError::new(
                    format!("ports[{i}].name"),
                    format!("`{}` stands twice", port.name),
                ));
            }
            ports.push(port);
        }
        let mut policy = Policy::try_from(wire.policy.unwrap_or_default()).map_err(|e| e.under("policy"))?;
        policy.timeout = optional(wire.timeout_ms, "timeout_ms")?;
        let service = Self {
            name,
            ports,
            connect_timeout: duration(wire.connect_timeout_ms, "connect_timeout_ms", Duration::from_secs(1))?,
            balance: Balance::try_from_wire(wire.balance, wire.hash, wire.hash_bound_percent)?,
            slow_start: optional(wire.slow_start_ms, "slow_start_ms")?,
            zone: wire.zone.map(|z| ZonePreference {
                healthy_percent: or(z.healthy_percent, 70).min(100),
            }),
            failover: list(wire.failover, "failover")?,
            policy,
            retry_budget: RetryBudget::try_from(wire.retry_budget.unwrap_or_default())
                .map_err(|e| e.under("retry_budget"))?,
            breaker: wire
                .breaker
                .map(Breaker::try_from)
                .transpose()
                .map_err(|e| e.under("breaker"))?,
            outlier: Outlier::try_from(wire.outlier.unwrap_or_default()).map_err(|e| e.under("outlier"))?,
            concurrency: wire.concurrency.unwrap_or_default().into(),
            routes: list(wire.routes, "routes")?,
            subsets: list(wire.subsets, "subsets")?,
            faults: list(wire.faults, "faults")?,
            mode: Mode::try_from_wire(wire.mode)?,
        };
        crate::routes::check(&service)?;
        Ok(service)
    }
}

impl From<&Service> for wire::Service {
    fn from(service: &Service) -> Self {
        let (balance, hash) = match &service.balance {
            Balance::P2cPeakEwma => (wire::Balance::P2cPeakEwma, None),
            Balance::LeastRequest => (wire::Balance::LeastRequest, None),
            Balance::RoundRobin => (wire::Balance::RoundRobin, None),
            Balance::Random => (wire::Balance::Random, None),
            Balance::Ring(hash) => (wire::Balance::Ring, Some(hash)),
            Balance::Maglev(hash) => (wire::Balance::Maglev, Some(hash)),
        };
        let port = |port: &Port| wire::Port {
            name: port.name.to_string(),
            protocol: port.protocol.wire().into(),
        };
        Self {
            name: service.name.to_string(),
            ports: service.ports.iter().map(port).collect(),
            timeout_ms: service.policy.timeout.map_or(0, millis),
            connect_timeout_ms: millis(service.connect_timeout),
            balance: balance.into(),
            hash: hash.map(|h| (&h.on).into()),
            hash_bound_percent: hash.map_or(0, |h| h.bound_percent),
            slow_start_ms: service.slow_start.map_or(0, millis),
            zone: service.zone.map(|z| wire::ZonePreference {
                healthy_percent: z.healthy_percent,
            }),
            failover: service.failover.iter().map(Into::into).collect(),
            policy: Some((&service.policy).into()),
            retry_budget: Some((&service.retry_budget).into()),
            breaker: service.breaker.as_ref().map(Into::into),
            outlier: Some((&service.outlier).into()),
            concurrency: Some((&service.concurrency).into()),
            routes: service.routes.iter().map(Into::into).collect(),
            subsets: service.subsets.iter().map(Into::into).collect(),
            faults: service.faults.iter().map(Into::into).collect(),
            mode: match service.mode {
                Mode::Strict => wire::Mode::Strict,
                Mode::Permissive => wire::Mode::Permissive,
                Mode::Off => wire::Mode::Disabled,
            }
            .into(),
        }
    }
}

impl Balance {
    fn try_from_wire(number: i32, hash: Option<wire::HashOn>, bound: u32) -> Result<Self, FieldError> {
        let hash = || {
            let on = hash.ok_or_else(|| FieldError::new("hash", "it does not say what the hash is taken of"))?;
            Ok(Hash {
                on: HashOn::try_from(on).map_err(|e| e.under("hash"))?,
                bound_percent: match bound {
                    0 => 125,
                    101.. => bound,
                    _ => {
                        return Err(FieldError::new(
                            "hash_bound_percent",
                            format!("{bound} is not above 100"),
                        ));
                    }
                },
            })
        };
        Ok(match wire::Balance::try_from(number) {
            Ok(wire::Balance::Unspecified | wire::Balance::P2cPeakEwma) => Self::P2cPeakEwma,
            Ok(wire::Balance::LeastRequest) => Self::LeastRequest,
            Ok(wire::Balance::RoundRobin) => Self::RoundRobin,
            Ok(wire::Balance::Random) => Self::Random,
            Ok(wire::Balance::Ring) => Self::Ring(hash()?),
            Ok(wire::Balance::Maglev) => Self::Maglev(hash()?),
            Err(_) => return Err(FieldError::new("balance", format!("{number} is unknown"))),
        })
    }

    /// The spelling in files.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::P2cPeakEwma => "p2c_peak_ewma",
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::Ring(_) => "ring",
            Self::Maglev(_) => "maglev",
        }
    }
}

/// Converts a list, naming the one that is not valid.
pub(super) fn list<W, M: TryFrom<W, Error = FieldError>>(wire: Vec<W>, path: &str) -> Result<Vec<M>, FieldError> {
    let one = |(i, item): (usize, W)| M::try_from(item).map_err(|e| e.under(format!("{path}[{i}]")));
    wire.into_iter().enumerate().map(one).collect()
}

impl TryFrom<wire::Port> for Port {
    type Error = FieldError;

    fn try_from(wire: wire::Port) -> Result<Self, FieldError> {
        label(&wire.name, "name")?;
        Ok(Self {
            name: wire.name.into(),
            protocol: Protocol::try_from_wire(wire.protocol)?,
        })
    }
}

impl Protocol {
    fn wire(self) -> wire::Protocol {
        match self {
            Self::Auto => wire::Protocol::Auto,
            Self::Http => wire::Protocol::Http,
            Self::Http2 => wire::Protocol::Http2,
            Self::Grpc => wire::Protocol::Grpc,
            Self::Tcp => wire::Protocol::Tcp,
            Self::Tls => wire::Protocol::Tls,
        }
    }

    /// Reads the wire number; 0 is [`Protocol::Auto`].
    ///
    /// # Errors
    /// When the number names no protocol.
    pub fn try_from_wire(number: i32) -> Result<Self, FieldError> {
        Ok(match wire::Protocol::try_from(number) {
            Ok(wire::Protocol::Unspecified | wire::Protocol::Auto) => Self::Auto,
            Ok(wire::Protocol::Http) => Self::Http,
            Ok(wire::Protocol::Http2) => Self::Http2,
            Ok(wire::Protocol::Grpc) => Self::Grpc,
            Ok(wire::Protocol::Tcp) => Self::Tcp,
            Ok(wire::Protocol::Tls) => Self::Tls,
            Err(_) => return Err(FieldError::new("protocol", format!("{number} is unknown"))),
        })
    }
}
