//! `outrigger control-plane`: the control plane, in the foreground.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::output;
use crate::plane::address;
use crate::supervise::tree;
use clap::Args;
use outrigger_control_plane::identity::{self, CaFiles};
use outrigger_control_plane::server::{self, Options};
use tokio::signal::unix::{SignalKind, signal};

/// Run the control plane
#[derive(Debug, Clone, Args)]
pub(crate) struct ControlPlaneArgs {
    /// Where it listens for sidecars, and for people elsewhere who have a token
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The socket for people on this machine: this user and root; else control-plane.sock in --state-dir, or without
    /// one where the other commands look for it
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Where its state outlives it, the mesh's keys among it; without, it is kept in memory only
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The first part of every identity, fixed when the mesh's root is made; `outrigger.local` when absent
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// A certificate authority to issue from, PEM, instead of one that is made
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Its private key, PEM, readable by its owner only
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// The certificates between it and the root, and the root, PEM; when it is not a root itself
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_chain: Option<PathBuf>,
    /// How long a sidecar's certificate is good; it is renewed at half of that
    #[arg(long, default_value = "12h", value_parser = duration, value_name = "DURATION")]
    leaf_ttl: Duration,
    /// A mesh.yaml, or the folder of one; watched for changes
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A registration that is not renewed for this long ends
    #[arg(long, default_value = "15s", value_parser = duration, value_name = "DURATION")]
    lease: Duration,
    /// What leases get on top after a restart of the control plane
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    grace: Duration,
}

impl ControlPlaneArgs {
    /// Where its socket is: as said, in the state folder, or where the other commands look for it.
    fn socket(&self) -> Option<PathBuf> {
        let default = || match self.state_dir {
            Some(_) => None,
            None => Some(address::runtime_folder()?.join(address::SOCKET)),
        };
        self.socket.clone().or_else(default)
    }

    /// What to do next with a mesh that nobody has joined yet; nothing under `up`, whose services join unseen.
    fn hint(&self) -> Option<String> {
        let supervised = std::env::var_os(tree::RUN).is_some();
        if supervised || self.state_dir.as_deref().is_some_and(identity::has_begun) {
            return None;
        }
        let in_state = || self.state_dir.as_ref().map(|folder| folder.join(server::SOCKET));
        let socket = std::path::absolute(self.socket().or_else(in_state)?).ok()?;
        let default = address::runtime_folder().is_some_and(|folder| folder.join(address::SOCKET) == socket);
        let option = match default {
            true => String::new(),
            false => format!(" --control-plane {}", quoted(&format!("unix:{}", socket.display()))),
        };
        Some(format!(
            "socket: {}\nA service joins with a token, which this prints:\n  outrigger token create --service \
             NAME{option}\n",
            socket.display()
        ))
    }

    /// What it issues certificates with.
    fn identity(&self) -> identity::Options {
        let brought = self.ca_cert.clone().zip(self.ca_key.clone());
        identity::Options {
            trust_domain: self.trust_domain.clone(),
            ca: brought.map(|(cert, key)| CaFiles {
                cert,
                key,
                chain: self.ca_chain.clone(),
            }),
            leaf_ttl: self.leaf_ttl,
        }
    }
}

/// Runs `control-plane` until SIGTERM or SIGINT.
pub(crate) fn control_plane(args: &ControlPlaneArgs) -> anyhow::Result<ExitCode> {
    outrigger_sidecar::init_logs();
    let options = Options {
        listen: args.listen,
        state_dir: args.state_dir.clone(),
        config: args.config.clone(),
        lease: args.lease,
        grace: args.grace,
        socket: args.socket(),
        identity: args.identity(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let hint = args.hint();
        let shutdown = async move {
            // Waited for from the moment on when both doors are open, so what is said here can be done.
            if let Some(hint) = hint {
                // A standard output that nobody reads is no reason not to serve.
                output::print(&hint).ok();
            }
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        server::run(options, shutdown).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-+@%".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_millis(100) => Ok(duration),
        Ok(_) => Err("at least 100ms".to_owned()),
        Err(_) => Err("write for example 500ms, 2s or 5m".to_owned()),
    }
}
