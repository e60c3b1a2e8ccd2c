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
    /// At least one; names are unique.
    pub ports: Vec<EndpointPort>,
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

/// One named port of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Unique in the endpoint.
    pub name: Arc<str>,
    /// Not 0.
    pub port: u16,
    /// Where the mesh's TLS is spoken, when that is another port.
    pub mesh_port: Option<u16>,
}

impl Endpoint {
    /// The address of the port called `name`.
    #[must_use]
    pub fn socket(&self, name: &str) -> Option<SocketAddr> {
        let port = self.ports.iter().find(|p| &*p.name == name)?;
        Some(SocketAddr::new(self.address, port.port))
    }

    /// Where the port called `name` speaks the mesh's TLS.
    #[must_use]
    pub fn mesh_socket(&self, name: &str) -> Option<SocketAddr> {
        let port = self.ports.iter().find(|p| &*p.name == name)?;
        Some(SocketAddr::new(self.address, port.mesh_port.unwrap_or(port.port)))
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
        let mut ports: Vec<EndpointPort> = Vec::with_capacity(wire.ports.len());
        for (i, port) in wire.ports.into_iter().enumerate() {
            let port = EndpointPort::try_from(port).map_err(|e| e.under(format!("ports[{i}]")))?;
            if ports.iter().any(|p| p.name == port.name) {
                return Err(FieldError::new(
                    format!("ports[{i}].name"),
                    format!("`{}` stands twice", port.name),
                ));
            }
            ports.push(port);
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

impl TryFrom<wire::EndpointPort> for EndpointPort {
    type Error = FieldError;

    fn try_from(wire: wire::EndpointPort) -> Result<Self, FieldError> {
        label(&wire.name, "name")?;
        let number = |n: u32, path: &str| {
            let wrong = || FieldError::new(path, format!("{n} is not 1 to 65535"));
            u16::try_from(n).ok().filter(|n| *n != 0).ok_or_else(wrong)
        };
        Ok(Self {
            port: number(wire.port, "port")?,
            mesh_port: match wire.mesh_port {
                0 => None,
                n => Some(number(n, "mesh_port")?),
            },
            name: wire.name.into(),
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
                .map(|p| wire::EndpointPort {
                    name: p.name.to_string(),
                    port: u32::from(p.port),
                    mesh_port: p.mesh_port.map_or(0, u32::from),
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
