//! Turns a mesh into what is to be started: ports, environments, bootstrap files, commands.
//!
//! Everything that can be wrong with this machine (a port in use, a secret that is missing) is found here, all of it at
//! once, before the first process starts. Secrets go into the child's environment and nowhere else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use outrigger_control_plane::config::{EnvValue, Mesh, PortDoc, ServiceDoc, VersionDoc};
use outrigger_proto::model::{Protocol, ServiceName};
use parking_lot::Mutex;
use serde_json::json;

use super::ITSELF;
use super::back::Site;
use super::build::Step;
use super::fleet::Plan;
use super::keep::Launch;
use super::ports::{Ports, loopback};
use super::state::UpPort;
use super::tokens::{self, Tokens};
use super::tree::{INSTANCE, RUN};
use super::workload::{Instance, sidecar_name};

/// How long an app may take to end when asked to.
pub(crate) const APP_GRACE: Duration = Duration::from_secs(10);
/// A laptop sleeps and loses its state; certificates that live shortly leave less behind.
const LEAF_TTL: &str = "1h";
/// Where the control plane listens when that port is free and nobody said otherwise.
pub(crate) const CONTROL_PLANE_PORT: u16 = 7070;

/// The build steps of a mesh in its order.
pub(crate) fn steps(mesh: &Mesh, root: &Path) -> Vec<Step> {
    let step = |service: &ServiceDoc| {
        let command = service.build.clone()?;
        Some(Step {
            command,
            dir: dir(service, root),
        })
    };
    mesh.services.iter().filter_map(step).collect()
}

/// Plans the control plane and all instances of `mesh`.
pub(crate) fn plan(mesh: Mesh, site: &Site, control_plane_port: Option<u16>) -> anyhow::Result<Plan> {
    let mut planner = Planner::new(&mesh, site, Doors::default(), Ports::default());
    // What is fixed comes first, or a free choice could take it.
    let fixed = planner.reserve();
    let control_plane = planner.control_plane_port(control_plane_port)?;
    let mut instances = Vec::new();
    for service in &mesh.services {
        if service.run.is_none() {
            site.console.note(&format!(
                "{} has no `run`: start it with `outrigger run`",
                service.name.service()
            ));
            continue;
        }
        // Fixed ports are the first instance's; the file refuses them for several.
        let mut first = true;
        for (index, version) in service.versions.iter().enumerate() {
            for number in 1..=version.replicas {
                let origin = Origin {
                    service: service.name.clone(),
                    version: index,
                    first,
                };
                let one = Numbered {
                    version,
                    number,
                    origin,
                    handed: "at_once",
                };
                instances.push(planner.instance(service, &one, control_plane, &fixed)?);
                first = false;
            }
        }
    }
    if !planner.problems.is_empty() {
        bail!(planner.problems.join("\n"));
    }
    let control = planner.control_plane(control_plane);
    let hint = mesh.hint.clone().or_else(|| hint(&mesh));
    let services = mesh.services.iter().filter(|service| service.run.is_some());
    let tokens = Tokens::new(&site.layout, services.map(|service| service.name.clone()).collect());
    let (doors, ports, site) = (planner.doors, planner.ports, site.clone());
    Ok(Plan {
        mesh: mesh.name.clone(),
        hint,
        control: Some(control),
        control_plane,
        tokens: Some(tokens),
        again: Some(Again {
            mesh,
            site,
            control_plane,
            doors,
            ports: Mutex::new(ports),
        }),
        instances,
    })
}

/// The sockets of fixed ports. They are ours, and the sidecars of one port's instances take turns on one.
type Doors = BTreeMap<u16, Arc<TcpListener>>;

/// Which of the instances of mesh.yaml one is.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Its service.
    pub(crate) service: ServiceName,
    /// Its version's place in the service.
    version: usize,
    /// Whether the service's fixed ports are its.
    first: bool,
}

/// What is needed to plan an instance while the mesh is up.
#[derive(Debug)]
pub(crate) struct Again {
    mesh: Mesh,
    /// Where things lie.
    pub(crate) site: Site,
    control_plane: SocketAddr,
    doors: Doors,
    ports: Mutex<Ports>,
}

impl Again {
    /// Whether two instances of what `origin` says can run at a time: not when the app itself has a fixed port.
    pub(crate) fn twice(&self, origin: &Origin) -> bool {
        let service = self.mesh.service(&origin.service);
        service.is_some_and(|service| service.ports.iter().all(|port| port.app_port.is_none()))
    }

    /// One more instance of what `origin` says, under the first name that is not `taken`. It shares the fixed ports.
    pub(crate) fn beside(&self, origin: &Origin, taken: impl Fn(&str) -> bool) -> anyhow::Result<Instance> {
        let service = self.mesh.service(&origin.service).context("no such service")?;
        let version = service.versions.get(origin.version).context("no such version")?;
        let number = (1..)
            .find(|number| !taken(&name(service, version, *number)))
            .unwrap_or_default();
        let one = Numbered {
            version,
            number,
            origin: origin.clone(),
            // The old one serves until then.
            handed: "when_well",
        };
        let fixed: Vec<u16> = self.doors.keys().copied().collect();
        let mut ports = std::mem::take(&mut *self.ports.lock());
        ports.settled();
        let mut planner = Planner::new(&self.mesh, &self.site, self.doors.clone(), ports);
        let instance = planner.instance(service, &one, self.control_plane, &fixed);
        *self.ports.lock() = std::mem::take(&mut planner.ports);
        let instance = instance?;
        if !planner.problems.is_empty() {
            bail!(planner.problems.join("\n"));
        }
        Ok(instance)
    }
}

/// One of the instances of a service.
struct Numbered<'a> {
    version: &'a VersionDoc,
    /// From 1, of the version.
    number: u32,
    origin: Origin,
    /// When it uses the sockets that it is handed.
    handed: &'static str,
}

fn name(service: &ServiceDoc, version: &VersionDoc, number: u32) -> String {
    match &version.name {
        None => format!("{}-{number}", service.name.service()),
        Some(version) => format!("{}-{version}-{number}", service.name.service()),
    }
}

struct Planner<'a> {
    mesh: &'a Mesh,
    site: &'a Site,
    ports: Ports,
    doors: Doors,
    problems: Vec<String>,
    program: OsString,
}

impl<'a> Planner<'a> {
    fn new(mesh: &'a Mesh, site: &'a Site, doors: Doors, ports: Ports) -> Self {
        Self {
            mesh,
            site,
            ports,
            doors,
            problems: Vec::new(),
            program: OsString::from(ITSELF),
        }
    }

    fn reserve(&mut self) -> Vec<u16> {
        let mut fixed = Vec::new();
        for service in &self.mesh.services {
            let problem = |problem| format!("{}: {problem}", service.name.service());
            for port in &service.ports {
                if let Some(number) = port.port {
                    match self.ports.door(number) {
                        Ok(door) => {
                            fixed.push(number);
                            // Without `run` it is for somebody else's sidecar.
                            if service.run.is_some() {
                                self.doors.insert(number, Arc::new(door));
                            }
                        }
                        Err(error) => self.problems.push(problem(error)),
                    }
                }
                if let Some(number) = port.app_port {
                    match self.ports.fixed(number) {
                        Ok(number) => fixed.push(number),
                        Err(error) => self.problems.push(problem(error)),
                    }
                }
            }
        }
        fixed
    }

    fn control_plane_port(&mut self, asked: Option<u16>) -> anyhow::Result<SocketAddr> {
        let port = match asked {
            Some(port) => self.ports.fixed(port).unwrap_or_else(|problem| {
                self.problems.push(format!("control plane: {problem}"));
                port
            }),
            None => match self.ports.fixed(CONTROL_PLANE_PORT) {
                Ok(port) => port,
                // Another mesh may be up on this machine.
                Err(_) => self.ports.free()?,
            },
        };
        Ok(loopback(port))
    }

    fn control_plane(&self, listen: SocketAddr) -> Launch {
        let layout = &self.site.layout;
        Launch {
            program: self.program.clone(),
            args: vec![
                "control-plane".into(),
                "--listen".into(),
                listen.to_string().into(),
                "--state-dir".into(),
                layout.state.join("control-plane").into(),
                "--config".into(),
                layout.mesh.clone().into(),
                "--socket".into(),
                // Counted from the folder it runs in: a socket's path has 107 bytes.
                relative(&layout.plane_socket(), &layout.root).into(),
                "--leaf-ttl".into(),
                LEAF_TTL.into(),
            ],
            dir: layout.root.clone(),
            env: mesh_env(super::fleet::CONTROL_PLANE),
            stdin: None,
            listeners: Vec::new(),
            marks: self.marks(super::fleet::CONTROL_PLANE),
        }
    }

    fn instance(
        &mut self,
        service: &ServiceDoc,
        one: &Numbered<'_>,
        control_plane: SocketAddr,
        fixed: &[u16],
    ) -> anyhow::Result<Instance> {
        let version = one.version;
        let name = name(service, version, one.number);
        let ports = self.inbound(service, one.origin.first, fixed)?;
        // A port that was chosen freely is nobody's door.
        let doors = ports.iter().filter_map(|port| self.doors.get(&port.listen.port()));
        let doors: Vec<_> = doors.cloned().collect();
        let calls = self.outbound(service)?;
        let (admin, proxy) = (loopback(self.ports.free()?), loopback(self.ports.free()?));
        let wiring = Wiring {
            ports: &ports,
            calls: &calls,
            proxy,
            service: &service.name,
            instance: &name,
        };
        let mut env = wiring.environment();
        for (key, value) in &version.env {
            match resolve(key, value) {
                Ok(value) => env.push((key.to_owned(), value)),
                Err(problem) => self.problems.push(format!("{}: {problem}", service.name.service())),
            }
        }
        let mut app = Launch::shell(
            version.run.as_deref().unwrap_or_default(),
            dir(service, &self.site.layout.root),
        );
        app.env = env;
        app.marks = self.marks(&name);
        if !app.dir.is_dir() {
            self.problems
                .push(format!("{}: no folder {}", service.name.service(), app.dir.display()));
        }

        let bootstrap = self.site.layout.run.join(format!("{name}.sidecar.json"));
        let mut document = wiring.bootstrap(admin, Some(control_plane));
        document["handed"] = json!(if doors.is_empty() { "no" } else { one.handed });
        document["labels"] = json!(version.labels);
        document["weight"] = json!(version.weight);
        document["state_dir"] = json!(self.site.layout.state.join("sidecars").join(&name));
        document["identity"] = json!({"token_file": Tokens::file(&self.site.layout, &service.name)});
        tokens::write(&bootstrap, &serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("cannot write {}", bootstrap.display()))?;
        let mut sidecar = self.sidecar(&name, &bootstrap);
        sidecar.listeners = doors;
        Ok(Instance {
            service: service.name.service().to_owned(),
            name,
            language: service.language.clone().unwrap_or_else(|| "-".to_owned()),
            app,
            app_grace: APP_GRACE,
            sidecar: Some((sidecar, admin)),
            drain: service.drain,
            origin: Some(one.origin.clone()),
            ports,
        })
    }

    fn sidecar(&self, instance: &str, bootstrap: &Path) -> Launch {
        let name = sidecar_name(instance);
        sidecar(
            self.program.clone(),
            bootstrap,
            self.site.layout.root.clone(),
            &name,
            self.marks(&name),
        )
    }

    fn inbound(&mut self, service: &ServiceDoc, first: bool, fixed: &[u16]) -> anyhow::Result<Vec<UpPort>> {
        let mut ports = Vec::new();
        for port in &service.ports {
            // A fixed port can have one listener: the first replica. The others are reached through the mesh.
            let mut choose = |asked: Option<u16>| match asked {
                Some(asked) if first && fixed.contains(&asked) => Ok(asked),
                _ => self.ports.free(),
            };
            let (listen, app) = (loopback(choose(port.port)?), loopback(choose(port.app_port)?));
            if !first && port.app_port.is_some() {
                let problem = "several replicas cannot share one `app_port`";
                self.problems.push(format!("{}: {problem}", service.name.service()));
            }
            let mesh_listen = port.server_first.then(|| self.ports.free()).transpose()?.map(loopback);
            ports.push(UpPort {
                name: port.name.clone(),
                protocol: port.protocol.as_str().to_owned(),
                listen,
                mesh_listen,
                app,
            });
        }
        Ok(ports)
    }

    fn outbound(&mut self, service: &ServiceDoc) -> anyhow::Result<Vec<Call>> {
        let mut calls = Vec::new();
        for callee in &service.calls {
            let ports: &[PortDoc] = self.mesh.service(callee).map_or(&[], |callee| &callee.ports);
            let mut listeners = Vec::new();
            for port in ports {
                listeners.push((Some(port.name.clone()), loopback(self.ports.free()?)));
            }
            if listeners.is_empty() {
                listeners.push((None, loopback(self.ports.free()?)));
            }
            calls.push(Call {
                service: callee.clone(),
                listeners,
            });
        }
        Ok(calls)
    }

    fn marks(&self, instance: &str) -> Vec<String> {
        vec![format!("{RUN}={}", self.site.run), format!("{INSTANCE}={instance}")]
    }
}

/// What our own programs are given: their mark, and no colours, as their lines go to files.
fn mesh_env(name: &str) -> Vec<(String, String)> {
    vec![
        (INSTANCE.to_owned(), name.to_owned()),
        ("NO_COLOR".to_owned(), "1".to_owned()),
    ]
}

/// The command of a sidecar.
pub(crate) fn sidecar(program: OsString, bootstrap: &Path, dir: PathBuf, name: &str, marks: Vec<String>) -> Launch {
    Launch {
        program,
        args: vec!["sidecar".into(), "--config".into(), bootstrap.into()],
        dir,
        env: mesh_env(name),
        stdin: None,
        listeners: Vec::new(),
        marks,
    }
}

/// A service that is called, with a local listener for each of its ports, the first one first.
#[derive(Debug)]
pub(crate) struct Call {
    /// The callee.
    pub(crate) service: ServiceName,
    /// Port name (none: whatever its first is called) and where the sidecar listens for it.
    pub(crate) listeners: Vec<(Option<String>, SocketAddr)>,
}

/// Who listens where, for one instance: the app is told by its environment, the sidecar by its bootstrap file.
#[derive(Debug)]
pub(crate) struct Wiring<'a> {
    /// Its ports.
    pub(crate) ports: &'a [UpPort],
    /// What it calls.
    pub(crate) calls: &'a [Call],
    /// Where the sidecar listens for `HTTP_PROXY`.
    pub(crate) proxy: SocketAddr,
    /// Its service.
    pub(crate) service: &'a ServiceName,
    /// Its name.
    pub(crate) instance: &'a str,
}

impl Wiring<'_> {
    /// The variables that the app is given.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        let mut set = |name: String, value: String| {
            env.insert(name, value);
        };
        set("HOST".to_owned(), "127.0.0.1".to_owned());
        for (index, port) in self.ports.iter().enumerate() {
            let number = port.app.port().to_string();
            if index == 0 {
                set("PORT".to_owned(), number.clone());
            }
            set(format!("PORT_{}", variable(&port.name)), number);
        }
        for call in self.calls {
            let callee = variable(call.service.service());
            for (index, (name, address)) in call.listeners.iter().enumerate() {
                if let Some(name) = name {
                    set(format!("{callee}_{}_ADDR", variable(name)), address.to_string());
                }
                if index == 0 {
                    set(format!("{callee}_ADDR"), address.to_string());
                    set(format!("{callee}_URL"), format!("http://{address}"));
                }
            }
        }
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
            set(name.to_owned(), format!("http://{}", self.proxy));
        }
        for name in ["NO_PROXY", "no_proxy"] {
            set(name.to_owned(), "127.0.0.1,localhost,::1".to_owned());
        }
        set("OUTRIGGER_SERVICE".to_owned(), self.service.service().to_owned());
        set(INSTANCE.to_owned(), self.instance.to_owned());
        env.into_iter().collect()
    }

    /// The bootstrap file of the sidecar. Its epoch is left out: each start of a sidecar is a new one.
    pub(crate) fn bootstrap(&self, admin: SocketAddr, control_plane: Option<SocketAddr>) -> serde_json::Value {
        let inbound: Vec<_> = self
            .ports
            .iter()
            .map(|port| {
                let mut inbound =
                    json!({"name": port.name, "protocol": port.protocol, "listen": port.listen, "app": port.app});
                if let Some(listen) = port.mesh_listen {
                    inbound["mesh_listen"] = json!(listen);
                }
                inbound
            })
            .collect();
        let outbound: Vec<_> = self
            .calls
            .iter()
            .flat_map(|call| {
                call.listeners
                    .iter()
                    .map(|(port, listen)| json!({"service": call.service.as_str(), "port": port, "listen": listen}))
            })
            .collect();
        json!({
            "namespace": self.service.namespace(),
            "service": self.service.service(),
            "instance": self.instance,
            "control_plane": control_plane.map(|address| format!("https://{address}")),
            "admin": admin,
            "inbound": inbound,
            "outbound": outbound,
            "http_proxy": self.proxy,
            "access_log": "-",
        })
    }
}

/// A service's or port's name as a part of a variable's name.
fn variable(name: &str) -> String {
    name.to_uppercase()
        .replace(|letter: char| !letter.is_ascii_alphanumeric(), "_")
}

fn resolve(key: &str, value: &EnvValue) -> Result<String, String> {
    match value {
        EnvValue::Plain(value) => Ok(value.clone()),
        EnvValue::FromEnv(name) => std::env::var(name)
            .map_err(|error| format!("env {key}: the variable {name} of your environment is missing ({error})")),
        EnvValue::FromFile(path) => fs::read_to_string(path)
            .map(|text| {
                text.strip_suffix('\n')
                    .map(|text| text.trim_end_matches('\r'))
                    .unwrap_or(&text)
                    .to_owned()
            })
            .map_err(|error| format!("env {key}: cannot read {}: {error}", path.display())),
    }
}

fn dir(service: &ServiceDoc, root: &Path) -> PathBuf {
    service
        .dir
        .as_ref()
        .map_or_else(|| root.to_path_buf(), |dir| root.join(dir))
}

fn relative(path: &Path, root: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}

fn hint(mesh: &Mesh) -> Option<String> {
    mesh.services.iter().find_map(|service| {
        let first = service.ports.first()?;
        let speaks_http = matches!(first.protocol, Protocol::Http | Protocol::Auto);
        first
            .port
            .filter(|_| speaks_http)
            .map(|port| format!("curl -i http://127.0.0.1:{port}/"))
    })
}
