//! A real control plane, and sidecars that learn from it and register with it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::client;
use crate::mesh::{Sidecar, start};
use crate::process::Process;
use crate::world::World;
use crate::{ports, wait};

/// A running control plane that can be killed and started again.
#[derive(Debug)]
pub struct Control {
    /// Where it listens, for sidecars and people.
    pub addr: SocketAddr,
    config: PathBuf,
    state: PathBuf,
    process: Option<Process>,
}

/// How long a lease lasts in these tests, in seconds.
const LEASE: &str = "2s";

impl Control {
    /// Starts a control plane with `mesh_yaml`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(world: &World, mesh_yaml: &str) -> Result<Self> {
        let mut control = Self {
            addr: ports::free()?,
            config: world.write("config/mesh.yaml", mesh_yaml)?,
            state: world.dir().join("control-plane"),
            process: None,
        };
        control.restart(world).await?;
        Ok(control)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Starts it again on the same port with the state that it left.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self, world: &World) -> Result<()> {
        self.kill()?;
        let mut command = world.program("outrigger")?;
        command
            .args([
                "control-plane",
                "--listen",
                &self.addr.to_string(),
                "--lease",
                LEASE,
                "--grace",
                "1s",
            ])
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--config")
            .arg(&self.config);
        self.process = Some(world.spawn("control-plane", command)?);
        let addr = self.addr;
        wait::until("the control plane answers", || async move {
            client::get(addr, "/healthz").await.is_ok_and(|a| a.status() == 200)
        })
        .await
    }

    /// Fails when it ended or panicked.
    ///
    /// # Errors
    /// When it is not well, with its output.
    pub fn check_well(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("the control plane was killed")?;
        process.check_alive()?;
        let output = process.output();
        ensure!(!output.contains("panicked at"), "the control plane panicked:\n{output}");
        Ok(())
    }

    /// The JSON of a `/v1` path.
    ///
    /// # Errors
    /// When it does not answer 200 with JSON.
    pub async fn json(&self, path: &str) -> Result<Value> {
        client::get_ok(self.addr, path).await?.json()
    }

    /// Sends a configuration; the status and the answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn apply(&self, mesh_yaml: &str) -> Result<(u16, String)> {
        let request = format!(
            "POST /v1/config HTTP/1.1\r\nHost: {}\r\nContent-Type: application/yaml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{mesh_yaml}",
            self.addr,
            mesh_yaml.len()
        );
        let answer = client::once(self.addr, &request).await?;
        Ok((answer.status(), answer.text()))
    }

    /// Replaces the watched file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, mesh_yaml: &str) -> Result<()> {
        Ok(std::fs::write(&self.config, mesh_yaml)?)
    }

    /// How many endpoints of `service` callers may use; the list shows withdrawn ones as well.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn endpoints(&self, service: &str) -> Result<usize> {
        let all = self.json("/v1/endpoints").await?;
        let list = all
            .as_array()
            .or_else(|| all["endpoints"].as_array())
            .cloned()
            .unwrap_or_default();
        let name = format!("default/{service}");
        Ok(list
            .iter()
            .filter(|e| e["service"] == name && e["state"] != "unhealthy")
            .count())
    }

    /// Waits until it knows `n` endpoints of `service`.
    ///
    /// # Errors
    /// After the usual deadline.
    pub async fn wait_endpoints(&self, service: &str, n: usize) -> Result<()> {
        let found = wait::until(&format!("{n} endpoints of {service}"), || async {
            self.endpoints(service).await.is_ok_and(|found| found == n)
        })
        .await;
        match found {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.json("/v1/endpoints").await?)),
        }
    }

    /// A sidecar before `app` that registers as an instance of `service`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn workload(&self, world: &World, service: &str, i: usize, app: SocketAddr) -> Result<Sidecar> {
        let listen = ports::free()?;
        let instance = format!("{service}-{i}");
        let config = json!({
            "service": service,
            "instance": instance,
            "admin": ports::free()?,
            "control_plane": format!("http://{}", self.addr),
            "state_dir": world.dir().join("state").join(&instance),
            "inbound": [{"name": "http", "protocol": "http", "listen": listen, "app": app}],
        });
        let mut sidecar = start(world, &instance, config, listen, false)?;
        sidecar.ready().await?;
        Ok(sidecar)
    }

    /// A sidecar of a caller of `service`; its first listener leads there.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn caller(&self, world: &World, service: &str, state_dir: PathBuf) -> Result<Sidecar> {
        let listen = ports::free()?;
        let config = json!({
            "service": "caller",
            "instance": "caller-0",
            "admin": ports::free()?,
            "control_plane": format!("http://{}", self.addr),
            "state_dir": state_dir,
            "outbound": [{"service": service, "listen": listen}],
        });
        let mut sidecar = start(world, "caller", config, listen, false)?;
        sidecar.ready().await?;
        Ok(sidecar)
    }
}
