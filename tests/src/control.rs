//! A real control plane, and sidecars that join it, learn from it and register with it. People ask it by its socket.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::mesh::{Sidecar, start};
use crate::process::Process;
use crate::world::World;
use crate::{ports, wait};

/// A running control plane that can be killed and started again.
#[derive(Debug)]
pub struct Control {
    /// Where it listens for sidecars.
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
        Self::start_at(world, mesh_yaml, ports::free()?, "control-plane").await
    }

    /// [`start`](Self::start) at an address, with its state in the folder `name`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_at(world: &World, mesh_yaml: &str, addr: SocketAddr, name: &str) -> Result<Self> {
        let mut control = Self {
            addr,
            config: world.write(&format!("config/{name}/mesh.yaml"), mesh_yaml)?,
            state: world.dir().join(name),
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
        wait::until("the control plane answers", || async {
            self.ask("GET", "/healthz", "")
                .await
                .is_ok_and(|(status, _)| status == 200)
        })
        .await?;
        Ok(())
    }

    /// One request as an operator: the status and the body.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        wait::soon("the control plane's answer", async {
            // The folder's descriptor keeps the path short enough for a socket (proc(5)).
            let folder = std::fs::File::open(&self.state)?;
            let socket = format!("/proc/self/fd/{}/control-plane.sock", folder.as_raw_fd());
            let mut stream = UnixStream::connect(socket).await?;
            let kind = if body.starts_with('{') { "json" } else { "yaml" };
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            Ok((status.context("no status")?, body.to_owned()))
        })
        .await
    }

    /// How a sidecar of `service` joins: where the control plane is, and its identity.
    async fn joining(&self, service: &str) -> Result<Value> {
        let control_plane = format!("https://{}", self.addr);
        if self.process.is_none() {
            // It has joined before, or it cannot.
            return Ok(json!({ "control_plane": control_plane, "identity": {} }));
        }
        Ok(json!({ "control_plane": control_plane, "identity": { "token": self.token(service).await? } }))
    }

    /// A token with which one instance of `service` joins.
    ///
    /// # Errors
    /// When none is given.
    pub async fn token(&self, service: &str) -> Result<String> {
        let wanted = json!({ "service": service }).to_string();
        let (status, made) = self.ask("POST", "/v1/tokens", &wanted).await?;
        ensure!(status == 201, "no token: {made}");
        let made: Value = serde_json::from_str(&made)?;
        Ok(made["token"].as_str().context("no token")?.to_owned())
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
        let (status, body) = self.ask("GET", path, "").await?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Sends a configuration; the status and the answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn apply(&self, mesh_yaml: &str) -> Result<(u16, String)> {
        self.ask("POST", "/v1/config", mesh_yaml).await
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
        self.calling_workload(world, service, i, app, &[]).await
    }

    /// The same, and the app calls services: each at an address of its own.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn calling_workload(
        &self,
        world: &World,
        service: &str,
        i: usize,
        app: SocketAddr,
        calls: &[(&str, SocketAddr)],
    ) -> Result<Sidecar> {
        let listen = ports::free()?;
        let instance = format!("{service}-{i}");
        let outbound = |(service, listen): &(&str, SocketAddr)| json!({"service": service, "listen": listen});
        let config = json!({
            "service": service,
            "instance": instance,
            "admin": ports::free()?,
            "state_dir": world.dir().join("state").join(&instance),
            "inbound": [{"name": "http", "protocol": "http", "listen": listen, "app": app}],
            "outbound": calls.iter().map(outbound).collect::<Vec<_>>(),
        });
        let config = both(config, self.joining(service).await?);
        let mut sidecar = start(world, &instance, config, listen, false)?;
        sidecar.ready().await?;
        Ok(sidecar)
    }

    /// The command line, led here.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn command(&self, world: &World, args: &[&str]) -> Result<Command> {
        let mut command = world.program("outrigger")?;
        let socket = self.state.join("control-plane.sock");
        command
            .args(args)
            .env("OUTRIGGER_CONTROL_PLANE", format!("unix:{}", socket.display()));
        Ok(command)
    }

    /// What a command of the command line prints; it has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn say(&self, world: &World, args: &[&str]) -> Result<String> {
        let mut command = self.command(world, args)?;
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = wait::soon("the command's end", async { Ok(output.await??) }).await?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success(),
            "{args:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// A sidecar of a caller of `service`; its first listener leads there.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn caller(&self, world: &World, service: &str, state_dir: PathBuf) -> Result<Sidecar> {
        self.any_caller(world, service, state_dir, true).await
    }

    /// The same, and its certificate is in memory only.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn forgetful_caller(&self, world: &World, service: &str, state_dir: PathBuf) -> Result<Sidecar> {
        self.any_caller(world, service, state_dir, false).await
    }

    async fn any_caller(&self, world: &World, service: &str, state_dir: PathBuf, persist: bool) -> Result<Sidecar> {
        let listen = ports::free()?;
        let config = json!({
            "service": "caller",
            "instance": "caller-0",
            "admin": ports::free()?,
            "state_dir": state_dir,
            "outbound": [{"service": service, "listen": listen}],
        });
        let mut config = both(config, self.joining("caller").await?);
        config["identity"]["persist"] = persist.into();
        let mut sidecar = start(world, "caller", config, listen, false)?;
        sidecar.ready().await?;
        Ok(sidecar)
    }
}

fn both(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}
