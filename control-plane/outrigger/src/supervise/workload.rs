//! An app with its sidecar: the sidecar starts first and stops last, and always knows whether its app lives.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_proto::model::Drain;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::admin;
use super::console::Console;
use super::keep::{self, Kept, Launch, Life, Want};
use super::logs::Sink;
use super::plan::Origin;
use super::reap::Reaper;
use super::state::{Layout, UpPort, UpService};

/// How long an app waits for its sidecar to listen before it starts all the same.
const SIDECAR_PATIENCE: Duration = Duration::from_secs(5);
/// How often a starting sidecar is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What is needed to run one instance.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    /// The service.
    pub(crate) service: String,
    /// The instance's name, such as `user-1`.
    pub(crate) name: String,
    /// The language, for people.
    pub(crate) language: String,
    /// The app.
    pub(crate) app: Launch,
    /// How long the app may take to end.
    pub(crate) app_grace: Duration,
    /// The sidecar and its admin address.
    pub(crate) sidecar: Option<(Launch, SocketAddr)>,
    /// How long the sidecar may take to leave.
    pub(crate) drain: Drain,
    /// What it is in mesh.yaml, where it comes from one.
    pub(crate) origin: Option<Origin>,
    /// Its ports.
    pub(crate) ports: Vec<UpPort>,
}

/// A running instance.
#[derive(Debug)]
pub(crate) struct Workload {
    /// What it was made from.
    pub(crate) instance: Instance,
    /// The app.
    pub(crate) app: Kept,
    /// The sidecar.
    pub(crate) sidecar: Option<Kept>,
    announcer: Option<AbortHandle>,
}

/// What is known of an instance; also what `ps -o json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The service.
    pub(crate) service: String,
    /// The instance.
    pub(crate) instance: String,
    /// The language.
    pub(crate) language: String,
    /// running, restarting, crash loop, stopped.
    pub(crate) state: String,
    /// ok, degraded, failing, starting, unreachable.
    pub(crate) health: String,
    /// Why not ok.
    pub(crate) reason: Option<String>,
    /// How many times the app was started again.
    pub(crate) restarts: u64,
    /// For how long it has been in this state.
    pub(crate) age_seconds: u64,
    /// The app's process.
    pub(crate) app_pid: Option<i32>,
    /// The sidecar's process.
    pub(crate) sidecar_pid: Option<i32>,
    /// How many times the sidecar was started again.
    pub(crate) sidecar_restarts: u64,
    /// How callers have to come: `strict` (mutual TLS), `permissive` or `off`.
    #[serde(default)]
    pub(crate) mtls: String,
    /// Where callers reach it.
    pub(crate) address: String,
}

impl Row {
    /// Whether the instance serves.
    pub(crate) fn healthy(&self) -> bool {
        self.state == "running" && matches!(self.health.as_str(), "ok" | "degraded")
    }

    /// Whether waiting longer is of no use.
    pub(crate) fn hopeless(&self) -> bool {
        self.state == "crash loop"
    }
}

impl Workload {
    /// Sets the processes up without starting them.
    pub(crate) fn new(instance: Instance, layout: &Layout, reaper: &Reaper, console: &Console) -> Self {
        let name = instance.name.clone();
        let sink = Sink::new(&name, &layout.log(&name), Some(console.clone()), console);
        let app = keep::keep(&name, instance.app.clone(), sink, instance.app_grace, reaper, console);
        let sidecar = instance.sidecar.as_ref().map(|(launch, _)| {
            let name = sidecar_name(&instance.name);
            let sink = Sink::new(&name, &layout.log(&name), None, console);
            let grace = instance.drain.delay + instance.drain.deadline + Duration::from_secs(1);
            keep::keep(&name, launch.clone(), sink, grace, reaper, console)
        });
        let announcer = match (&sidecar, &instance.sidecar) {
            (Some(sidecar), Some((_, admin))) => {
                let task = admin::announce(*admin, app.seen.clone(), sidecar.seen.clone());
                Some(tokio::spawn(task).abort_handle())
            }
            _ => None,
        };
        Self {
            instance,
            app,
            sidecar,
            announcer,
        }
    }

    /// Starts the sidecar, then the app.
    pub(crate) async fn start(&self) {
        if let (Some(sidecar), Some((_, admin))) = (&self.sidecar, &self.instance.sidecar) {
            sidecar.want(Want::Run);
            let listens = async {
                while !admin::alive(*admin).await {
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::time::timeout(SIDECAR_PATIENCE, listens).await.ok();
        }
        self.app.want(Want::Run);
    }

    /// Ends the app.
    pub(crate) async fn stop_app(&self, want: Want) {
        self.app.want(want);
        self.app.stopped().await;
    }

    /// Ends the sidecar.
    pub(crate) async fn stop_sidecar(&self, want: Want) {
        if let Some(sidecar) = &self.sidecar {
            sidecar.want(want);
            sidecar.stopped().await;
        }
    }

    /// Where its sidecar is told what to do.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.instance.sidecar.as_ref().map(|(_, admin)| *admin)
    }

    /// What is known of it now.
    pub(crate) async fn row(&self) -> Row {
        let seen = self.app.seen.borrow().clone();
        let (state, reason) = match &seen.life {
            Life::Stopped => ("stopped", None),
            Life::Running { .. } => ("running", None),
            Life::Ended { exit, looping: true } => ("crash loop", Some(exit.to_string())),
            Life::Ended { exit, looping: false } => ("restarting", Some(exit.to_string())),
            Life::Unstartable { reason } => ("crash loop", Some(reason.clone())),
        };
        let (state, reason) = match self.broken_sidecar() {
            Some(broken) => ("crash loop", Some(broken)),
            None => (state, reason),
        };
        let admin::Health {
            status: health,
            reason: why,
            mtls,
        } = self.health(&seen.life).await;
        Row {
            service: self.instance.service.clone(),
            instance: self.instance.name.clone(),
            language: self.instance.language.clone(),
            state: state.to_owned(),
            health,
            reason: reason.or(why),
            restarts: seen.starts.saturating_sub(1),
            age_seconds: seen.since.elapsed().as_secs(),
            app_pid: seen.life.pid(),
            sidecar_pid: self
                .sidecar
                .as_ref()
                .and_then(|sidecar| sidecar.seen.borrow().life.pid()),
            sidecar_restarts: self
                .sidecar
                .as_ref()
                .map_or(0, |one| one.seen.borrow().starts.saturating_sub(1)),
            mtls,
            address: address(&self.instance.ports),
        }
    }

    async fn health(&self, life: &Life) -> admin::Health {
        let told = |status: &str, reason| admin::Health {
            status: status.to_owned(),
            reason,
            mtls: "-".to_owned(),
        };
        match (life, &self.instance.sidecar) {
            (Life::Running { .. }, Some((_, admin))) => match admin::health(*admin).await {
                Ok(health) => health,
                Err(error) => told("unreachable", Some(format!("sidecar: {error}"))),
            },
            (Life::Running { .. }, None) => told("ok", None),
            _ => told("failing", None),
        }
    }

    /// Why its sidecar does not run and will not, when that is so.
    fn broken_sidecar(&self) -> Option<String> {
        match &self.sidecar.as_ref()?.seen.borrow().life {
            Life::Ended { exit, looping: true } => Some(format!("the sidecar {exit}")),
            Life::Unstartable { reason } => Some(format!("the sidecar: {reason}")),
            _ => None,
        }
    }

    /// The last lines of whichever of the two ends again and again; else the app's.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        match &self.sidecar {
            Some(sidecar) if self.broken_sidecar().is_some() => sidecar.sink.last_lines(),
            _ => self.app.sink.last_lines(),
        }
    }

    /// Its entry in `up.json`.
    pub(crate) fn entry(&self, layout: &Layout) -> UpService {
        UpService {
            service: self.instance.service.clone(),
            instance: self.instance.name.clone(),
            app_pid: self.app.seen.borrow().life.pid(),
            sidecar_pid: self
                .sidecar
                .as_ref()
                .and_then(|sidecar| sidecar.seen.borrow().life.pid()),
            admin: self.instance.sidecar.as_ref().map(|(_, admin)| *admin),
            ports: self.instance.ports.clone(),
            log: layout.log(&self.instance.name),
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        if let Some(announcer) = &self.announcer {
            announcer.abort();
        }
    }
}

/// The name of an instance's sidecar as a process.
pub(crate) fn sidecar_name(instance: &str) -> String {
    format!("{instance}.sidecar")
}

fn address(ports: &[UpPort]) -> String {
    match ports.first() {
        None => "-".to_owned(),
        Some(port) if matches!(port.protocol.as_str(), "http" | "auto") => format!("http://{}", port.listen),
        Some(port) => port.listen.to_string(),
    }
}
