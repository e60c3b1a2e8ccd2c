//! Sidecars in static mode: an inbound one before every app, one caller that knows them all.
//!
//! ```text
//! test -> caller sidecar -> inbound sidecar -> app
//! ```

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use outrigger_proto::wire::mesh as wire;
use serde_json::{Value, json};

use crate::client;
use crate::http1::Head;
use crate::pki::Leaf;
use crate::process::{Process, accepts};
use crate::world::World;
use crate::{ports, wait};

/// What a mesh will be.
#[derive(Debug, Default)]
pub struct Plan {
    services: Vec<Spec>,
    ghosts: Vec<String>,
    caller: Value,
    inbound: Value,
    access_log: bool,
    workers: Option<usize>,
    labels: Value,
    ipv6: bool,
}

/// A change of a service's resource.
type Edit = Box<dyn FnOnce(&mut wire::Service) + Send>;

/// A change of the resource of a service's `i`th instance.
type EndpointEdit = Box<dyn Fn(usize, &mut wire::Endpoint) + Send>;

struct Spec {
    name: String,
    protocol: String,
    apps: Vec<SocketAddr>,
    timeout_ms: u32,
    bare: bool,
    edits: Vec<Edit>,
    endpoints: Vec<EndpointEdit>,
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    /// The sidecar beside the calling app, which is the test.
    pub caller: Sidecar,
    inbound: HashMap<(String, usize), Sidecar>,
    outbound: HashMap<String, SocketAddr>,
    proxy: SocketAddr,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The program.
    pub process: Process,
    /// Its admin listener.
    pub admin: SocketAddr,
    /// Its first listener: for an inbound sidecar where callers connect.
    pub listen: SocketAddr,
}

impl Plan {
    /// A service whose every app gets an inbound sidecar.
    #[must_use]
    pub fn service(mut self, name: &str, protocol: &str, apps: &[SocketAddr]) -> Self {
        self.services.push(Spec {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            apps: apps.to_vec(),
            timeout_ms: 0,
            bare: false,
            edits: Vec::new(),
            endpoints: Vec::new(),
        });
        self
    }

    /// A service whose endpoints are the apps themselves, without sidecars.
    #[must_use]
    pub fn bare_service(self, name: &str, protocol: &str, apps: &[SocketAddr]) -> Self {
        let mut plan = self.service(name, protocol, apps);
        if let Some(last) = plan.services.last_mut() {
            last.bare = true;
        }
        plan
    }

    /// The request deadline of the service named last.
    #[must_use]
    pub fn timeout_ms(mut self, ms: u32) -> Self {
        if let Some(last) = self.services.last_mut() {
            last.timeout_ms = ms;
        }
        self
    }

    /// Changes the resource of the service named last, as the caller gets it: policy, routes, limits.
    #[must_use]
    pub fn policy(mut self, edit: impl FnOnce(&mut wire::Service) + Send + 'static) -> Self {
        if let Some(last) = self.services.last_mut() {
            last.edits.push(Box::new(edit));
        }
        self
    }

    /// Labels of the `i`th endpoint of the service named last.
    #[must_use]
    pub fn labels(self, i: usize, labels: Value) -> Self {
        self.endpoints(move |at, endpoint| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if let Some(labels) = labels.as_object().filter(|_| at == i) {
                endpoint
                    .labels
                    .extend(labels.iter().map(|(key, value)| (key.clone(), text(value))));
            }
        })
    }

    /// Changes the resource of each instance of the service named last: labels, weight.
    #[must_use]
    pub fn endpoints(mut self, edit: impl Fn(usize, &mut wire::Endpoint) + Send + 'static) -> Self {
        if let Some(last) = self.services.last_mut() {
            last.endpoints.push(Box::new(edit));
        }
        self
    }

    /// The labels of the caller's own instance, for example its zone.
    #[must_use]
    pub fn caller_labels(mut self, labels: Value) -> Self {
        self.labels = labels;
        self
    }

    /// How many data workers the caller's sidecar has.
    #[must_use]
    pub fn workers(mut self, n: usize) -> Self {
        self.workers = Some(n);
        self
    }

    /// Sidecars listen, and are found, at `::1`.
    #[must_use]
    pub fn over_ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// A listener to a service that the mesh does not know.
    #[must_use]
    pub fn ghost(mut self, name: &str) -> Self {
        self.ghosts.push(name.to_owned());
        self
    }

    /// Settings of the caller's own `Proxy` resource, for example `external`.
    #[must_use]
    pub fn caller(mut self, proxy: Value) -> Self {
        self.caller = proxy;
        self
    }

    /// Settings of every inbound sidecar's `Proxy` resource.
    #[must_use]
    pub fn inbound(mut self, proxy: Value) -> Self {
        self.inbound = proxy;
        self
    }

    /// Has every sidecar print JSON lines about its requests.
    #[must_use]
    pub fn access_log(mut self) -> Self {
        self.access_log = true;
        self
    }

    /// Starts everything and waits until it accepts.
    ///
    /// # Errors
    /// When a program does not come up.
    pub async fn start(mut self, world: &World) -> Result<Mesh> {
        let (mut inbound, mut outbound) = (HashMap::new(), HashMap::new());
        let (mut services, mut endpoints, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
        for mut spec in std::mem::take(&mut self.services) {
            let service = json!({
                "name": format!("default/{}", spec.name),
                "ports": [{"name": PORT, "protocol": spec.protocol}],
                "timeout_ms": spec.timeout_ms,
                "mode": mode(world, spec.bare),
            });
            let mut service: wire::Service = serde_json::from_value(service)?;
            if world.authority().is_some() {
                // Handshakes of many programs at once take longer than the second that is the default, and are not
                // what is tested; a test of that says so itself.
                service.connect_timeout_ms = 15_000;
            }
            spec.edits.drain(..).for_each(|edit| edit(&mut service));
            services.push(serde_json::to_value(service)?);
            let listen = self.free()?;
            listeners.push(json!({"service": spec.name, "port": PORT, "listen": listen}));
            outbound.insert(spec.name.clone(), listen);
            for (i, app) in spec.apps.iter().enumerate() {
                let dial = if spec.bare {
                    *app
                } else {
                    let sidecar = self.start_inbound(world, &spec, i, *app)?;
                    let listen = sidecar.listen;
                    inbound.insert((spec.name.clone(), i), sidecar);
                    listen
                };
                let mut endpoint: wire::Endpoint = serde_json::from_value(endpoint(&spec.name, i, dial, !spec.bare))?;
                spec.endpoints.iter().for_each(|edit| edit(i, &mut endpoint));
                endpoints.push(serde_json::to_value(endpoint)?);
            }
        }
        for ghost in &self.ghosts {
            let listen = ports::free()?;
            listeners.push(json!({"service": ghost, "listen": listen}));
            outbound.insert(ghost.clone(), listen);
        }
        let proxy = ports::free()?;
        let mut config = json!({
            "service": "caller",
            "instance": "caller-0",
            "admin": ports::free()?,
            "outbound": listeners,
            "http_proxy": proxy,
            "resources": {
                "proxy": own("caller", &self.caller),
                "services": services,
                "endpoints": endpoints,
            },
        });
        if self.labels.is_object() {
            config["labels"] = self.labels.clone();
        }
        if let Some(workers) = self.workers {
            config["workers"] = json!(workers);
        }
        secure(world, "caller", &mut config)?;
        let caller = start(world, "caller", config, proxy, self.access_log)?;
        let mut mesh = Mesh {
            caller,
            inbound,
            outbound,
            proxy,
        };
        mesh.ready().await?;
        Ok(mesh)
    }

    /// Where a sidecar may listen.
    fn free(&self) -> Result<SocketAddr> {
        let mut listen = ports::free()?;
        if self.ipv6 {
            listen.set_ip(Ipv6Addr::LOCALHOST.into());
        }
        Ok(listen)
    }

    fn start_inbound(&self, world: &World, spec: &Spec, i: usize, app: SocketAddr) -> Result<Sidecar> {
        let listen = self.free()?;
        let name = format!("{}-{i}", spec.name);
        let mut config = json!({
            "service": spec.name,
            "instance": name,
            "admin": ports::free()?,
            "inbound": [{"name": PORT, "protocol": spec.protocol, "listen": listen, "app": app}],
            "resources": {
                "proxy": own(&spec.name, &self.inbound),
                "services": [{
                    "name": format!("default/{}", spec.name),
                    "ports": [{"name": PORT, "protocol": spec.protocol}],
                    "timeout_ms": spec.timeout_ms,
                    "mode": mode(world, false),
                }],
            },
        });
        secure(world, &spec.name, &mut config)?;
        start(world, &name, config, listen, self.access_log)
    }
}

impl Mesh {
    /// Where the calling app reaches `service`.
    ///
    /// # Errors
    /// When the plan has no such service.
    pub fn to(&self, service: &str) -> Result<SocketAddr> {
        self.outbound
            .get(service)
            .copied()
            .with_context(|| format!("no service {service}"))
    }

    /// The calling app's `HTTP_PROXY`.
    #[must_use]
    pub fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// The sidecar before the `i`th app of `service`.
    ///
    /// # Errors
    /// When the plan has none.
    pub fn inbound(&mut self, service: &str, i: usize) -> Result<&mut Sidecar> {
        self.inbound
            .get_mut(&(service.to_owned(), i))
            .with_context(|| format!("no sidecar {service}-{i}"))
    }

    /// Fails when any sidecar is gone or panicked: a test that ends well leaves all of them well.
    ///
    /// # Errors
    /// When one is not, with its output.
    pub fn check_well(&mut self) -> Result<()> {
        self.caller.check_well()?;
        self.inbound.values_mut().try_for_each(Sidecar::check_well)
    }

    async fn ready(&mut self) -> Result<()> {
        for addr in self.outbound.values() {
            self.caller.process.check_alive()?;
            accepts(*addr).await?;
        }
        self.caller.ready().await?;
        for sidecar in self.inbound.values_mut() {
            sidecar.ready().await?;
        }
        Ok(())
    }
}

impl Sidecar {
    /// `GET path` on the admin listener.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn admin(&self, path: &str) -> Result<client::Answer> {
        client::get(self.admin, path).await
    }

    /// The JSON of `/stats`.
    ///
    /// # Errors
    /// When it does not answer 200 with JSON.
    pub async fn stats(&self) -> Result<Value> {
        client::get_ok(self.admin, "/stats").await?.json()
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub async fn metrics(&self) -> Result<String> {
        Ok(client::get_ok(self.admin, "/metrics").await?.text())
    }

    /// Makes the next one that comes by `place` panic.
    ///
    /// # Errors
    /// When the admin listener refuses.
    pub async fn panic(&self, place: &str) -> Result<()> {
        let request = format!(
            "POST /debug/panic?in={place} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.admin
        );
        let answer = client::once(self.admin, &request).await?;
        ensure!(answer.status() == 202, "{answer:?}");
        Ok(())
    }

    /// Fails when the program is gone or a task of it panicked.
    ///
    /// # Errors
    /// When it is not well, with its output.
    pub fn check_well(&mut self) -> Result<()> {
        self.process.check_alive()?;
        let output = self.process.output();
        ensure!(!output.contains("panicked at"), "a task panicked:\n{output}");
        Ok(())
    }

    /// Waits until the sidecar is up; an app that is down does not matter.
    ///
    /// # Errors
    /// When it ends or never answers.
    pub async fn ready(&mut self) -> Result<()> {
        let admin = self.admin;
        let end = tokio::time::Instant::now() + wait::SOON;
        loop {
            self.process.check_alive()?;
            if client::get(admin, "/livez").await.is_ok_and(|a| a.status() == 200) {
                break;
            }
            ensure!(tokio::time::Instant::now() < end, "{admin}/livez never answered 200");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        accepts(self.listen).await
    }
}

/// Writes `config` and starts a sidecar with it.
///
/// # Errors
/// When it cannot be started.
pub fn start(world: &World, name: &str, mut config: Value, listen: SocketAddr, access_log: bool) -> Result<Sidecar> {
    if access_log {
        config["access_log"] = json!("-");
    }
    // A test may inject a panic into any sidecar.
    if config["debug"].is_null() {
        config["debug"] = json!(true);
    }
    let admin = config["admin"].as_str().context("admin")?.parse()?;
    let path = world.write(&format!("{name}.yaml"), &serde_json::to_string_pretty(&config)?)?;
    let mut command = world.program("outrigger-sidecar")?;
    command.arg("--config").arg(path);
    Ok(Sidecar {
        process: world.spawn(name, command)?,
        admin,
        listen,
    })
}

/// One endpoint resource.
#[must_use]
pub fn endpoint(service: &str, i: usize, at: SocketAddr, meshed: bool) -> Value {
    let capabilities: &[&str] = if meshed { outrigger_proto::features::ALL } else { &[] };
    json!({
        "name": format!("default/{service}/{service}-{i}"),
        "address": at.ip(),
        "ports": [{"name": PORT, "port": at.port()}],
        "epoch": 1,
        "capabilities": capabilities,
        "meshed": meshed,
    })
}

fn mode(world: &World, bare: bool) -> &'static str {
    match world.authority() {
        Some(_) if !bare => "strict",
        _ => "off",
    }
}

/// Gives the sidecar of `service` an identity and makes it strict, in a secure world.
///
/// # Errors
/// When its certificate cannot be made.
pub fn secure(world: &World, service: &str, config: &mut Value) -> Result<()> {
    let Some(authority) = world.authority() else {
        return Ok(());
    };
    let name = config["instance"].as_str().unwrap_or(service).to_owned();
    let files = authority.issue(world.dir(), &name, &Leaf::of(service))?;
    config["identity"] = files.identity();
    let proxy = &mut config["resources"]["proxy"];
    if proxy["mode"].is_null() {
        proxy["mode"] = json!("strict");
    }
    // Judges' programs listen on every address.
    proxy["exposed_app"] = json!(true);
    Ok(())
}

fn own(name: &str, settings: &Value) -> Value {
    let mut proxy = if settings.is_object() {
        settings.clone()
    } else {
        json!({})
    };
    proxy["name"] = json!(format!("default/{name}"));
    proxy
}

/// Checks that an app saw `name: value` and returns nothing else.
///
/// # Errors
/// When it did not.
pub fn saw(head: &Head, name: &str, value: &str) -> Result<()> {
    ensure!(
        head.all(name).any(|v| v == value),
        "the app did not see `{name}: {value}`, but {head:?}"
    );
    Ok(())
}

/// The name of every service's one port.
pub const PORT: &str = "main";
