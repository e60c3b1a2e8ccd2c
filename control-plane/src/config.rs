//! mesh.yaml: reads what a person wrote and makes one validated [`Mesh`], or says everything that is wrong with it.
//!
//! Text becomes a tree that knows its positions (`tree`), the tree is compared with the schema of the raw types
//! (`check`), and only then become raw types validated ones (`reader`, `access`, `service`, `whole`). A mistake in one
//! place hides no other: the walk goes on and every error is reported with file, line, column and a hint. The schema,
//! `explain` and the checks read the same field docs (`raw`), so that they cannot say different things.
//!
//! It refuses YAML tags, merge keys and unknown keys, and never half-accepts: one error means no mesh. It reads
//! mesh.yaml and nothing else: no environment, no secret, no network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use outrigger_proto::model::{
    Access, AccessLog, Dependency, Drain, External, Health, Limits, Mode, Port, Protocol, Service, ServiceName,
};

mod access;
mod check;
mod codes;
mod conflict;
mod edit;
mod error;
mod explain;
mod matches;
mod origin;
mod protect;
mod raw;
mod reader;
mod route;
mod service;
mod settings;
mod suggest;
#[cfg(test)]
mod tests;
mod traffic;
mod tree;
mod whole;
mod words;

pub use codes::{Code, code, codes};
pub use edit::{Edit, EditError, edit};
pub use error::{ConfigError, ConfigErrors, render};
pub use explain::{Explanation, explain, fields, schema};
pub use origin::{Level, Source};
pub use settings::{Change, RouteRow, ServiceChange, Setting, changes, routes};
pub use suggest::closest;
pub use traffic::Traffic;

/// The namespace of the mesh's own identities; nobody's service is in it.
pub const RESERVED_NAMESPACE: &str = "outrigger";

/// The file that a folder is read from.
pub const FILE: &str = "mesh.yaml";

/// A whole mesh as somebody described it, valid in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Shown to people; the folder's name unless the file says otherwise.
    pub name: String,
    /// Of services that name no other.
    pub namespace: String,
    /// One line to show when everything is up.
    pub hint: Option<String>,
    /// In the order of the file; names are unique.
    pub services: Vec<ServiceDoc>,
    /// The folder of the file; relative paths in it are counted from here. None when read from text.
    pub root: Option<PathBuf>,
    /// What may be wanted all the same, in the order of the lines.
    pub warnings: Vec<ConfigError>,
}

impl Mesh {
    /// The document of `name`.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&ServiceDoc> {
        self.services.iter().find(|service| service.name == *name)
    }
}

/// One service: how it is started and the policy of its traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDoc {
    /// `namespace/service`.
    pub name: ServiceName,
    /// Shown in tables.
    pub language: Option<String>,
    /// Command run before the first start; a shell line.
    pub build: Option<String>,
    /// Command that starts the app; a shell line. None: somebody else starts it.
    pub run: Option<String>,
    /// Where both run; absolute when the mesh has a root, else as written.
    pub dir: Option<PathBuf>,
    /// Variables for the app beside those that the mesh sets.
    pub env: BTreeMap<String, EnvValue>,
    /// Copies that run, of all versions; at least 1.
    pub replicas: u32,
    /// What runs; at least one. The only one is called after nobody when the document has no `versions`.
    pub versions: Vec<VersionDoc>,
    /// At least one; names are unique, the first is the default.
    pub ports: Vec<PortDoc>,
    /// How the sidecar asks the app whether it is well.
    pub health: Health,
    /// What the app needs to be useful. Files are counted from the folder of mesh.yaml, where `up` runs the sidecars.
    pub depends: Vec<Dependency>,
    /// Services that it calls; all of them are in the mesh.
    pub calls: Vec<ServiceName>,
    /// What holds for requests to it.
    pub traffic: Traffic,
    /// How callers reach it.
    pub mode: Mode,
    /// Who may call it.
    pub access: Access,
    /// True when the app may listen where others reach it past its sidecar.
    pub exposed_app: bool,
    /// What it may reach outside the mesh.
    pub external: External,
    /// Bounds on what clients may ask.
    pub limits: Limits,
    /// How its sidecar leaves.
    pub drain: Drain,
    /// Whether requests are logged.
    pub access_log: AccessLog,
    /// `version`, `zone`, … of its endpoints.
    pub labels: BTreeMap<String, String>,
    /// Relative share of requests of each endpoint; at least 1.
    pub weight: u32,
    /// Where the document stands.
    pub location: Location,
    /// Everything that it says or takes over, and where from; without variables, which may be secret.
    pub settings: Vec<Setting>,
}

impl ServiceDoc {
    /// What callers need to know.
    #[must_use]
    pub fn resource(&self) -> Service {
        let traffic = self.traffic.clone();
        let port = |port: &PortDoc| Port {
            name: port.name.as_str().into(),
            protocol: port.protocol,
        };
        Service {
            name: self.name.clone(),
            ports: self.ports.iter().map(port).collect(),
            mode: self.mode,
            connect_timeout: traffic.connect_timeout,
            balance: traffic.balance,
            slow_start: traffic.slow_start,
            zone: traffic.zone,
            failover: traffic.failover,
            policy: traffic.policy,
            retry_budget: traffic.retry_budget,
            breaker: traffic.breaker,
            outlier: traffic.outlier,
            concurrency: traffic.concurrency,
            routes: traffic.routes,
            subsets: traffic.subsets,
            faults: traffic.faults,
        }
    }
}

/// Instances of a service that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionDoc {
    /// None for the only one of a service without `versions`.
    pub name: Option<String>,
    /// Command that starts the app; a shell line. None: somebody else starts it.
    pub run: Option<String>,
    /// Copies that run; at least 1.
    pub replicas: u32,
    /// The service's, and its own.
    pub labels: BTreeMap<String, String>,
    /// Relative share of requests of each endpoint; at least 1.
    pub weight: u32,
    /// The service's, and its own.
    pub env: BTreeMap<String, EnvValue>,
}

/// A named port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortDoc {
    /// Unique in the service.
    pub name: String,
    /// How the bytes are spoken.
    pub protocol: Protocol,
    /// Where the sidecar listens for callers; none: any free port.
    pub port: Option<u16>,
    /// Where the app listens when it cannot be told; none: it is told a free port.
    pub app_port: Option<u16>,
    /// True when the server speaks first, so that a permissive port needs a second one for the mesh.
    pub server_first: bool,
}

/// The value of a variable, or where it comes from; secrets are only ever referred to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// As written.
    Plain(String),
    /// From a variable of the supervisor's own environment.
    FromEnv(String),
    /// The content of a file, without the last line end. Absolute when the mesh has a root.
    FromFile(PathBuf),
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// As it was named by whoever asked.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

/// Reads a file, or `mesh.yaml` in a folder.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Mesh, ConfigErrors> {
    let file = if path.is_dir() {
        path.join(FILE)
    } else {
        path.to_path_buf()
    };
    let shown = file.display().to_string();
    let text = std::fs::read(&file)
        .map_err(|error| ConfigErrors::unreadable(&shown, &error.to_string()))
        .and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| {
                ConfigErrors::unreadable(
                    &shown,
                    &format!("not UTF-8 from byte {}", error.utf8_error().valid_up_to()),
                )
            })
        })?;
    let absolute = std::path::absolute(&file).unwrap_or(file);
    whole::read(&shown, &text, absolute.parent(), SystemTime::now())
}

/// Reads `text`; `name` stands for the file in errors.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(name: &str, text: &str) -> Result<Mesh, ConfigErrors> {
    whole::read(name, text, None, SystemTime::now())
}
