//! One running instance of a service.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::name::label;
use super::{EndpointName, FieldError};
use crate::wire::mesh as wire;

/// One running instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `namespace/service/instance`.
    pub name: EndpointName,
    /// Where callers dial.
    pub address: IpAddr,
    /// Named ports; at least one, names unique, numbers not 0.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Grows at every start of the same instance; a late message of an older epoch changes nothing.
    pub epoch: u64,
    /// `version`, `zone`, …
    pub labels: BTreeMap<String, String>,
    /// Relative share of requests, 1 to 1,000,000.
    pub weight: u32,
    /// What its sidecar understands on the wire; see [`crate::features`].
    pub capabilities: Vec<String>,
    /// True when a sidecar receives the traffic.
    pub meshed: bool,
}

impl Endpoint {
    /// The address of the port called `name`.
    #[must_use]
    pub fn socket(&self, name: &str) -> Option<SocketAddr> {
        self.ports
            .iter()
            .find(|(n, _)| &**n == name)
            .map(|(_, port)| SocketAddr::new(self.address, *port))
    }

    /// True when its sidecar says that it implements `feature`.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.capabilities.iter().any(|c| c == feature)
    }
}

impl TryFrom<wire::Endpoint> for Endpoint {
    type Error = FieldError;

    fn try_from(wire: wire::Endpoint) -> Result<Self, FieldError> {
        let name = wire.name.parse()?;
        let address: IpAddr = wire
            .address
            .parse()
            .map_err(|_| FieldError::new("address", format!("`{}` is not an IP address", wire.address)))?;
        if wire.ports.is_empty() {
            return Err(FieldError::new("ports", "an endpoint needs at least one port"));
        }
        let mut ports: Vec<(Arc<str>, u16)> = Vec::with_capacity(wire.ports.len());
        for (i, port) in wire.ports.into_iter().enumerate() {
            label(&port.name, "name").map_err(|e| e.under(format!("ports[{i}]")))?;
            let number = u16::try_from(port.port).ok().filter(|n| *n != 0).ok_or_else(|| {
                FieldError::new(format!("ports[{i}].port"), format!("{} is not 1 to 65535", port.port))
            })?;
            if ports.iter().any(|(n, _)| **n == *port.name) {
                return Err(FieldError::new(
                    format!("ports[{i}].name"),
                    format!("`{}` stands twice", port.name),
                ));
            }
            ports.push((port.name.into(), number));
        }
        if wire.weight > 1_000_000 {
            return Err(FieldError::new(
                "weight",
                format!("{} is more than 1000000", wire.weight),
            ));
        }
        Ok(Self {
            name,
            address,
            ports,
            epoch: wire.epoch,
            labels: wire.labels,
            weight: wire.weight.max(1),
            capabilities: wire.capabilities,
            meshed: wire.meshed,
        })
    }
}

impl From<Endpoint> for wire::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            name: endpoint.name.to_string(),
            address: endpoint.address.to_string(),
            ports: endpoint
                .ports
                .into_iter()
                .map(|(name, port)| wire::EndpointPort {
                    name: name.to_string(),
                    port: u32::from(port),
                })
                .collect(),
            epoch: endpoint.epoch,
            labels: endpoint.labels,
            weight: endpoint.weight,
            capabilities: endpoint.capabilities,
            meshed: endpoint.meshed,
        }
    }
}
