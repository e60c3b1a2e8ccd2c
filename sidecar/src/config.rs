//! The bootstrap file: what a sidecar is told before it can ask anyone.
//!
//! Who the workload is, which sockets to open, where the control plane listens. Policy is not here:
//! it comes as resources, pushed by the control plane or written in the same file (static mode).
//! Knows no other room.

mod identity;
mod listen;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use outrigger_proto::model::{FieldError, Protocol, Service, ServiceName};
use outrigger_proto::wire::mesh as wire;
use serde::{Deserialize, Serialize};

pub use identity::{Files, Identity, Secret};
pub use listen::{Admin, Telemetry};

/// Everything local that a sidecar is told. Immutable after load.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The workload's namespace. Default `default`.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// The workload's service name.
    pub service: String,
    /// The instance id, unique in the service. Default random.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// Boot epoch; grows at every start of the instance. Default: the time in milliseconds.
    #[serde(default = "default_epoch")]
    pub epoch: u64,
    /// `version`, `zone`, …
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Relative share of requests. Default 1.
    #[serde(default)]
    pub weight: u32,
    /// The address that is registered. Default 127.0.0.1.
    #[serde(default = "default_address")]
    pub address: IpAddr,
    /// For example `https://127.0.0.1:7070`; absent in static mode. `http://` only without `identity`.
    #[serde(default)]
    pub control_plane: Option<String>,
    /// Who the workload is and how it proves it; absent: everything is plain.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// Where the last good snapshot and the workload's key are kept; absent: in memory only.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// The admin listener: a loopback address or `unix:/path`. Default a free port of 127.0.0.1.
    #[serde(default = "default_admin")]
    pub admin: Admin,
    /// A listener for metrics and health alone; may be on any address.
    #[serde(default)]
    pub telemetry: Option<Telemetry>,
    /// Data workers; 0 means one a core, at most 4.
    #[serde(default)]
    pub workers: usize,
    /// Allows listeners on addresses that are not loopback. There is no identity yet, so anyone
    /// who can reach such a listener can use it.
    #[serde(default)]
    pub insecure: bool,
    /// Ports of the app that others call.
    #[serde(default)]
    pub inbound: Vec<Inbound>,
    /// Whether listening sockets come over standard input, and when they are used. Default `no`.
    #[serde(default)]
    pub handed: Handed,
    /// Services that the app calls, one local listener each.
    #[serde(default)]
    pub outbound: Vec<Outbound>,
    /// The listener for `HTTP_PROXY`.
    #[serde(default)]
    pub http_proxy: Option<SocketAddr>,
    /// Where access-log lines go: a path, or `-` for standard output.
    #[serde(default)]
    pub access_log: Option<String>,
    /// Lets the admin listener inject panics (`POST /debug/panic?in=PLACE`). For tests; off otherwise.
    #[serde(default)]
    pub debug: bool,
    /// Resources to start with; all there is in static mode.
    #[serde(default)]
    pub resources: Resources,
}

/// Listening sockets that come over standard input, a unix socket: one message whose rights they are. Each is used for
/// the listener of its address. Sidecars that were handed the same one share its queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handed {
    /// None.
    #[default]
    No,
    /// Used at once.
    AtOnce,
    /// Used as soon as the app is well for the first time: until then somebody else serves, or clients wait in the queue.
    WhenWell,
}

/// One port of the app.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inbound {
    /// The port's name in the service.
    pub name: String,
    /// `http`, `http2`, `grpc`, `tcp`, `tls` or `auto`.
    #[serde(with = "outrigger_proto::names::protocol")]
    pub protocol: i32,
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Where sidecars connect instead, for a protocol whose server speaks first: under `permissive` there is
    /// nothing on `listen` by which TLS could be told from a silent client.
    #[serde(default)]
    pub mesh_listen: Option<SocketAddr>,
    /// Where the app listens.
    pub app: SocketAddr,
}

/// One service that the app calls.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// `service` or `namespace/service`.
    pub service: String,
    /// The port's name; absent: the service's first.
    #[serde(default)]
    pub port: Option<String>,
    /// Where the app connects.
    pub listen: SocketAddr,
}

/// The same messages that the control plane pushes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// The workload's own settings.
    pub proxy: Option<wire::Proxy>,
    /// Services that it calls.
    pub services: Vec<wire::Service>,
    /// Their instances.
    pub endpoints: Vec<wire::Endpoint>,
}

/// Why a bootstrap file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a bootstrap file; the message holds line and column.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A value is wrong.
    #[error("{0}")]
    Value(#[from] FieldError),
}

impl Bootstrap {
    /// Reads and checks `path` (YAML, of which JSON is a part).
    ///
    /// # Errors
    /// When the file cannot be read, has unknown keys or wrong types, or a value is invalid.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        let parsed: Self = serde_saphyr::from_str(&text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: e.to_string(),
        })?;
        parsed.check()?;
        Ok(parsed)
    }

    /// The workload's full service name.
    ///
    /// # Errors
    /// When a part is not a name; a checked bootstrap never fails here.
    pub fn name(&self) -> Result<ServiceName, FieldError> {
        ServiceName::new(&self.namespace, &self.service)
    }

    /// The full name of the service that an outbound listener leads to.
    ///
    /// # Errors
    /// When it is not a name; a checked bootstrap never fails here.
    pub fn outbound_name(&self, outbound: &Outbound) -> Result<ServiceName, FieldError> {
        match outbound.service.contains('/') {
            true => outbound.service.parse(),
            false => ServiceName::new(&self.namespace, &outbound.service),
        }
    }

    /// Checks names, protocols, and that every listener is on loopback unless `insecure`.
    ///
    /// # Errors
    /// The first value that is wrong, by field path.
    pub fn check(&self) -> Result<(), FieldError> {
        self.name()?;
        self.check_identity()?;
        for (i, outbound) in self.outbound.iter().enumerate() {
            self.outbound_name(outbound).map_err(|e| FieldError {
                path: format!("outbound[{i}].service"),
                reason: e.reason,
            })?;
            self.check_listener(outbound.listen, format!("outbound[{i}].listen"))?;
        }
        for (i, inbound) in self.inbound.iter().enumerate() {
            Protocol::try_from_wire(inbound.protocol)?;
            // With an identity, only proven callers are let in there.
            if self.identity.is_none() {
                self.check_listener(inbound.listen, format!("inbound[{i}].listen"))?;
            }
            if let Some(listen) = inbound.mesh_listen.filter(|_| self.identity.is_none()) {
                self.check_listener(listen, format!("inbound[{i}].mesh_listen"))?;
            }
        }
        if let Some(proxy) = self.http_proxy {
            self.check_listener(proxy, "http_proxy".into())?;
        }
        if let Admin::Tcp(admin) = self.admin
            && !admin.ip().is_loopback()
        {
            return Err(FieldError {
                path: "admin".into(),
                reason: format!("{admin} is not loopback; `telemetry` may be anywhere and shows metrics and health"),
            });
        }
        if self.telemetry.is_some_and(|t| t.tls) && self.identity.is_none() {
            return Err(FieldError {
                path: "telemetry.tls".into(),
                reason: "needs an identity".into(),
            });
        }
        for service in &self.resources.services {
            Service::try_from(service.clone())?;
        }
        Ok(())
    }

    fn check_identity(&self) -> Result<(), FieldError> {
        let url = self.control_plane.as_deref();
        match &self.identity {
            Some(identity) => identity.check(url),
            None if url.is_some_and(|url| url.starts_with("https://")) => Err(FieldError {
                path: "identity".into(),
                reason: "https:// to the control plane needs an identity: at least `identity: {token: ...}`".into(),
            }),
            None => Ok(()),
        }
    }

    fn check_listener(&self, at: SocketAddr, path: String) -> Result<(), FieldError> {
        if at.ip().is_loopback() || self.insecure {
            return Ok(());
        }
        Err(FieldError {
            path,
            reason: format!(
                "{at} is not loopback, and without an identity anybody could use it; set insecure: true to mean it"
            ),
        })
    }
}

fn default_namespace() -> String {
    "default".into()
}

fn default_instance() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(12).collect()
}

fn default_epoch() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn default_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

fn default_admin() -> Admin {
    Admin::Tcp(SocketAddr::new(default_address(), 0))
}
