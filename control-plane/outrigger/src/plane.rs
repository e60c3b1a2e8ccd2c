//! Where the control plane is, and asking its HTTP/JSON interface.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::exit::Failure;
use crate::http::{self as client, Ask, Reply};

/// How the control plane is found.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Target {
    /// Address of the control plane; else that of the running `outrigger up`, else http://127.0.0.1:7070
    #[arg(long, env = "OUTRIGGER_CONTROL_PLANE", hide_env_values = true, value_name = "URL")]
    pub(crate) control_plane: Option<String>,
    /// Folder or mesh file of the running `outrigger up`; else this folder and those above it
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// A control plane to ask.
#[derive(Debug, Clone)]
pub(crate) struct Plane {
    address: String,
}

impl Target {
    /// The control plane that this leads to.
    pub(crate) fn plane(&self) -> Plane {
        let address = self
            .control_plane
            .clone()
            .or_else(|| self.running())
            .unwrap_or_else(|| DEFAULT.to_owned());
        let address = if address.contains("://") {
            address
        } else {
            format!("http://{address}")
        };
        Plane {
            address: address.trim_end_matches('/').to_owned(),
        }
    }

    fn running(&self) -> Option<String> {
        if let Some(dir) = &self.dir {
            let folder = if dir.is_file() { dir.parent()? } else { dir };
            return of_folder(folder);
        }
        let here = std::env::current_dir().ok()?;
        here.ancestors().find_map(of_folder)
    }
}

/// The control plane of the `up` that runs in `folder`: of mesh.yaml, or of another mesh file there.
fn of_folder(folder: &Path) -> Option<String> {
    let home = folder.join(".outrigger");
    let others = std::fs::read_dir(&home)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    std::iter::once(home.clone()).chain(others).find_map(|home| {
        let text = std::fs::read(home.join("run/up.json")).ok()?;
        let up: Value = serde_json::from_slice(&text).ok()?;
        let pid = i32::try_from(up.get("pid")?.as_i64()?).ok()?;
        // A description outlives a killed `up`; it must not send anybody to a stranger's port.
        let alive = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok();
        let address = up.get("control_plane")?.as_str()?;
        (alive && !address.is_empty()).then(|| address.to_owned())
    })
}

impl Plane {
    /// `GET path`, as JSON.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let reply = self.ask(path, Ask::get()).await?;
        self.read(reply, path)
    }

    /// `POST path` with `body`; the answer as it is.
    pub(crate) async fn post(&self, path: &str, body: Bytes) -> anyhow::Result<Reply> {
        self.ask(
            path,
            Ask {
                method: Method::POST,
                body,
                ..Ask::default()
            },
        )
        .await
    }

    /// A sidecar's admin page as JSON, whatever its status says.
    pub(crate) async fn admin(&self, address: &str, page: &str) -> anyhow::Result<Value> {
        let reply = client::send(&format!("http://{address}{page}"), Ask::get(), PATIENCE).await?;
        Ok(serde_json::from_slice(&reply.body)?)
    }

    async fn ask(&self, path: &str, ask: Ask) -> anyhow::Result<Reply> {
        client::send(&format!("{}{path}", self.address), ask, PATIENCE)
            .await
            .map_err(|error| {
                Failure::Unreachable {
                    address: self.address.clone(),
                    reason: error.to_string(),
                }
                .into()
            })
    }

    fn read(&self, reply: Reply, path: &str) -> anyhow::Result<Value> {
        if reply.status.is_success() {
            return serde_json::from_slice(&reply.body)
                .map_err(|error| anyhow::anyhow!("{}{path} answered something else than JSON: {error}", self.address));
        }
        let said = said(&reply.body);
        if reply.status == StatusCode::NOT_FOUND {
            let said = if said.is_empty() {
                format!("{path} does not exist")
            } else {
                said
            };
            return Err(Failure::NotFound(said).into());
        }
        anyhow::bail!("{}{path} answered {}: {said}", self.address, reply.status)
    }
}

/// The message in an error's body, else the body's beginning.
pub(crate) fn said(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|json| {
        ["message", "error", "reason"]
            .iter()
            .find_map(|key| json.get(key)?.as_str())
    });
    match message {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).trim().chars().take(300).collect(),
    }
}

/// `user` and `other/user` as the two parts of a name.
pub(crate) fn service_name(text: &str) -> Result<(String, String), Failure> {
    let (namespace, service) = text.split_once('/').unwrap_or(("default", text));
    match outrigger_proto::model::ServiceName::new(namespace, service) {
        Ok(_) => Ok((namespace.to_owned(), service.to_owned())),
        Err(error) => Err(Failure::Usage(error.reason)),
    }
}

const DEFAULT: &str = "http://127.0.0.1:7070";
/// For one question to something on this machine.
const PATIENCE: Duration = Duration::from_secs(10);
