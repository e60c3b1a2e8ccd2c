//! The resource types and how one is read from an `Any`.

use prost::Message as _;

use super::{Endpoint, FieldError, Proxy, Service, TrustBundle};
use crate::skew::{self, Skew};
use crate::wire::mesh as wire;

/// A type of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// One workload's own settings.
    Proxy,
    /// A service and its policy.
    Service,
    /// One running instance.
    Endpoint,
    /// What every workload trusts.
    TrustBundle,
}

impl ResourceType {
    /// Every type, in the order in which a sidecar asks.
    pub const ALL: [Self; 4] = [Self::TrustBundle, Self::Proxy, Self::Service, Self::Endpoint];

    /// `type.googleapis.com/outrigger.mesh.v1.X`.
    #[must_use]
    pub fn url(self) -> &'static str {
        match self {
            Self::Proxy => "type.googleapis.com/outrigger.mesh.v1.Proxy",
            Self::Service => "type.googleapis.com/outrigger.mesh.v1.Service",
            Self::Endpoint => "type.googleapis.com/outrigger.mesh.v1.Endpoint",
            Self::TrustBundle => "type.googleapis.com/outrigger.mesh.v1.TrustBundle",
        }
    }

    /// The type whose [`url`](Self::url) this is.
    #[must_use]
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }

    /// The message's full name.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Proxy => "outrigger.mesh.v1.Proxy",
            Self::Service => "outrigger.mesh.v1.Service",
            Self::Endpoint => "outrigger.mesh.v1.Endpoint",
            Self::TrustBundle => "outrigger.mesh.v1.TrustBundle",
        }
    }
}

/// A validated resource of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// One workload's own settings.
    Proxy(Box<Proxy>),
    /// A service and its policy.
    Service(Box<Service>),
    /// One running instance.
    Endpoint(Box<Endpoint>),
    /// What every workload trusts.
    TrustBundle(Box<TrustBundle>),
}

impl Resource {
    /// Reads one resource of `kind` and counts the unknown fields that were ignored.
    ///
    /// # Errors
    /// When the bytes are no such message, a must-understand field is unknown, or a value is invalid.
    pub fn decode(kind: ResourceType, bytes: &[u8]) -> Result<(Self, usize), FieldError> {
        let Skew {
            must_understand,
            ignored,
        } = skew::walk(kind.message(), bytes)?;
        if let Some(first) = must_understand.into_iter().next() {
            return Err(FieldError::new(
                first.path,
                format!("field {} must be understood and is not known here", first.number),
            ));
        }
        let malformed = |e: prost::DecodeError| FieldError::new("", format!("malformed message: {e}"));
        let resource = match kind {
            ResourceType::Proxy => Self::Proxy(Box::new(wire::Proxy::decode(bytes).map_err(malformed)?.try_into()?)),
            ResourceType::Service => {
                Self::Service(Box::new(wire::Service::decode(bytes).map_err(malformed)?.try_into()?))
            }
            ResourceType::Endpoint => {
                Self::Endpoint(Box::new(wire::Endpoint::decode(bytes).map_err(malformed)?.try_into()?))
            }
            ResourceType::TrustBundle => {
                let bundle = wire::TrustBundle::decode(bytes).map_err(malformed)?;
                Self::TrustBundle(Box::new(bundle.try_into()?))
            }
        };
        Ok((resource, ignored))
    }

    /// The resource's full name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Proxy(p) => p.name.to_string(),
            Self::Service(s) => s.name.to_string(),
            Self::Endpoint(e) => e.name.to_string(),
            Self::TrustBundle(_) => TrustBundle::NAME.to_owned(),
        }
    }
}
