//! A caller's sidecar in a mesh of which a test says every moment who is in it.
//!
//! ```text
//! test -> caller's sidecar -> apps
//!             ^ services and endpoints, from a scripted control plane
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, anyhow, ensure};
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use outrigger_proto::wire::mesh as wire;
use serde_json::json;

use crate::client::get;
use crate::control_script::{Script, resource, response};
use crate::mesh::{PORT, Sidecar, start};
use crate::world::World;
use crate::{ports, wait};

/// A running mesh.
#[derive(Debug)]
pub struct Fleet {
    /// The sidecar beside the calling app, which is the test. Its first listener leads to the first service.
    pub caller: Sidecar,
    script: Script,
    known: Arc<Known>,
}

#[derive(Debug, Default)]
struct Known {
    services: Mutex<BTreeMap<String, wire::Service>>,
    endpoints: Mutex<BTreeMap<String, wire::Endpoint>>,
    /// Versions, epochs and nonces.
    count: AtomicUsize,
}

/// A plain service with one port of `protocol` and every default.
#[must_use]
pub fn service(name: &str, protocol: wire::Protocol) -> wire::Service {
    wire::Service {
        name: format!("default/{name}"),
        ports: vec![wire::Port {
            name: PORT.to_owned(),
            protocol: protocol.into(),
        }],
        mode: wire::Mode::Disabled.into(),
        ..wire::Service::default()
    }
}

impl Fleet {
    /// Starts a caller of the first of `services`; the apps of `there` are its instances from the start.
    ///
    /// # Errors
    /// When a program does not come up.
    pub async fn start(world: &World, services: Vec<wire::Service>, there: &[SocketAddr]) -> Result<Self> {
        let first = services.first().context("a service")?.name.clone();
        let known = Arc::new(Known::default());
        known.with(&known.services, |all| {
            all.extend(services.into_iter().map(|s| (s.name.clone(), s)));
        })?;
        for (i, at) in there.iter().enumerate() {
            let endpoint = known.endpoint(first.trim_start_matches("default/"), i, *at);
            known.with(&known.endpoints, |all| all.insert(endpoint.name.clone(), endpoint))?;
        }
        let answering = Arc::clone(&known);
        let script = Script::start(move |request| answering.answer(request)).await?;
        let listen = ports::free()?;
        let config = json!({
            "service": "caller",
            "instance": "caller-0",
            "admin": ports::free()?,
            "workers": 1,
            "control_plane": format!("http://{}", script.addr),
            "outbound": [{"service": first, "listen": listen}],
        });
        let mut caller = start(world, "caller", config, listen, false)?;
        caller.ready().await?;
        let fleet = Self { caller, script, known };
        let (admin, first) = (fleet.caller.admin, first.as_str());
        wait::until("the caller knows the service", || async move {
            let config = get(admin, "/config")
                .await
                .and_then(|page| page.json())
                .unwrap_or_default();
            let is = |d: &serde_json::Value| d["name"] == first && d["state"] == "present";
            config["destinations"].as_array().is_some_and(|all| all.iter().any(is))
        })
        .await?;
        Ok(fleet)
    }

    /// An instance of `service` comes, or comes again; returns when the caller knows it.
    ///
    /// # Errors
    /// When it refuses it.
    pub async fn come(&self, service: &str, i: usize, at: SocketAddr) -> Result<()> {
        let endpoint = self.known.endpoint(service, i, at);
        let version = endpoint.epoch.to_string();
        let sent = resource(ResourceType::Endpoint.url(), &endpoint.name, &version, &endpoint);
        self.known
            .with(&self.known.endpoints, |all| all.insert(endpoint.name.clone(), endpoint))?;
        self.push(ResourceType::Endpoint, vec![sent], &[]).await
    }

    /// An instance leaves; returns when the caller knows it.
    ///
    /// # Errors
    /// When it does not take it.
    pub async fn go(&self, service: &str, i: usize) -> Result<()> {
        let name = instance(service, i);
        self.known.with(&self.known.endpoints, |all| all.remove(&name))?;
        self.push(ResourceType::Endpoint, Vec::new(), &[&name]).await
    }

    /// Changes a service; returns when the caller knows it.
    ///
    /// # Errors
    /// When it refuses it.
    pub async fn change(&self, service: &str, edit: impl FnOnce(&mut wire::Service)) -> Result<()> {
        let name = format!("default/{service}");
        let changed = self.known.with(&self.known.services, |all| {
            let service = all.get_mut(&name)?;
            edit(service);
            Some(service.clone())
        })?;
        let version = self.known.next().to_string();
        let sent = resource(
            ResourceType::Service.url(),
            &name,
            &version,
            &changed.context("no such service")?,
        );
        self.push(ResourceType::Service, vec![sent], &[]).await
    }

    async fn push(&self, kind: ResourceType, resources: Vec<Resource>, removed: &[&str]) -> Result<()> {
        let nonce = format!("pushed-{}", self.known.next());
        self.script
            .push(response(kind.url(), &nonce, resources, removed))
            .await?;
        let verdict = self.script.verdict(&nonce).await?;
        ensure!(verdict.error_detail.is_none(), "refused: {:?}", verdict.error_detail);
        Ok(())
    }
}

impl Known {
    fn next(&self) -> usize {
        self.count.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn with<T, R>(&self, all: &Mutex<T>, with: impl FnOnce(&mut T) -> R) -> Result<R> {
        Ok(with(&mut *all.lock().map_err(|_| anyhow!("a test panicked"))?))
    }

    fn endpoint(&self, service: &str, i: usize, at: SocketAddr) -> wire::Endpoint {
        wire::Endpoint {
            name: instance(service, i),
            address: at.ip().to_string(),
            ports: vec![wire::EndpointPort {
                name: PORT.to_owned(),
                port: u32::from(at.port()),
                mesh_port: 0,
            }],
            epoch: self.next() as u64,
            ..wire::Endpoint::default()
        }
    }

    /// Answers a subscription: what there is, and that there is no more.
    fn answer(&self, request: &DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> {
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        let kind = ResourceType::from_url(&request.type_url);
        for name in &request.resource_names_subscribe {
            let before = resources.len();
            let version = self.next().to_string();
            match kind {
                Some(ResourceType::Service) => {
                    let found = self.with(&self.services, |all| all.get(name).cloned());
                    resources.extend(
                        found
                            .ok()
                            .flatten()
                            .map(|s| resource(&request.type_url, name, &version, &s)),
                    );
                }
                Some(ResourceType::Endpoint) => {
                    let prefix = name.trim_end_matches('*');
                    let found = self.with(&self.endpoints, |all| all.values().cloned().collect::<Vec<_>>());
                    let members = found
                        .unwrap_or_default()
                        .into_iter()
                        .filter(|e| e.name.starts_with(prefix));
                    resources.extend(members.map(|e| resource(&request.type_url, &e.name, &e.epoch.to_string(), &e)));
                }
                _ => {}
            }
            if resources.len() == before {
                removed.push(name.as_str());
            }
        }
        let nothing = resources.is_empty() && removed.is_empty();
        let nonce = format!("answer-{}", self.next());
        (!nothing)
            .then(|| response(&request.type_url, &nonce, resources, &removed))
            .into_iter()
            .collect()
    }
}

fn instance(service: &str, i: usize) -> String {
    format!("default/{service}/{service}-{i}")
}
