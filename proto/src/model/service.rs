//! A service and its policy, as callers need it.

use std::sync::Arc;
use std::time::Duration;

use super::name::label;
use super::{FieldError, ServiceName, duration};
use crate::wire::mesh as wire;

/// A service and its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `namespace/service`.
    pub name: ServiceName,
    /// At least one; names are unique. The first is the default.
    pub ports: Vec<Port>,
    /// Bound on a whole request that is not a stream; none means no bound.
    pub timeout: Option<Duration>,
    /// Bound on making one connection. Default 1 s.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// What callers must speak.
    pub mode: Mode,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// The better of two random endpoints by peak-EWMA latency times requests in flight.
    #[default]
    P2cPeakEwma,
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
        Ok(Self {
            name,
            ports,
            timeout: match wire.timeout_ms {
                0 => None,
                ms => Some(duration(ms, "timeout_ms", Duration::ZERO)?),
            },
            connect_timeout: duration(wire.connect_timeout_ms, "connect_timeout_ms", Duration::from_secs(1))?,
            balance: match wire::Balance::try_from(wire.balance) {
                Ok(wire::Balance::Unspecified | wire::Balance::P2cPeakEwma) => Balance::P2cPeakEwma,
                Err(_) => return Err(FieldError::new("balance", format!("{} is unknown", wire.balance))),
            },
            mode: Mode::try_from_wire(wire.mode)?,
        })
    }
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
