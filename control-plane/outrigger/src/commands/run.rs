//! `outrigger run`: one command with its sidecar beside a control plane that runs elsewhere.
//!
//! The sidecar starts first and stops last. Signals pass to the command, its exit code passes to the caller. The
//! bootstrap document goes through the sidecar's standard input, so that no file is left, however this ends.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd;
use outrigger_proto::model::ServiceName;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::supervise::console::Console;
use crate::supervise::keep::{self, Kept, Life, Seen, Want};
use crate::supervise::logs::Sink;
use crate::supervise::plan::{self, Call, Wiring};
use crate::supervise::ports::{Ports, loopback};
use crate::supervise::reap::{Exit, Reaper};
use crate::supervise::state::UpPort;
use crate::supervise::tree::{self, INSTANCE, RUN};
use crate::supervise::{ITSELF, admin, guard};

mod joining;

use joining::Joining;

/// Run one service with its sidecar, which joins the mesh of a running control plane.
///
/// It joins with a token, or on the machine of the control plane, as its user, without.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// The service that the command is an instance of; `namespace/service` outside of `default`.
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The control plane, https://HOST:PORT; else that of the running `outrigger up`, else https://127.0.0.1:7070.
    #[arg(long, value_name = "URL", env = "OUTRIGGER_CONTROL_PLANE", hide_env_values = true)]
    control_plane: Option<String>,
    /// Folder or mesh file of the running `outrigger up`; else this folder and those above it.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What it joins with, as `outrigger token create` prints it; others on this machine may see it, unlike a file.
    #[arg(long, value_name = "TOKEN", env = crate::plane::TOKEN, hide_env_values = true)]
    token: Option<String>,
    /// A file that holds the token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Where the sidecar listens for callers; any free port when absent.
    #[arg(long)]
    port: Option<u16>,
    /// The address of this machine at which callers on others reach the sidecar. The command stays on 127.0.0.1.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
    /// Where the command listens when it cannot be told; else it is told a free port as PORT.
    #[arg(long)]
    app_port: Option<u16>,
    /// What the command speaks on its port.
    #[arg(long, value_enum, default_value = "auto")]
    protocol: Speaks,
    /// Services that it calls.
    #[arg(long, value_delimiter = ',', value_name = "SERVICES")]
    calls: Vec<String>,
    /// A label of the instance, which subsets of the service's document choose by; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, Value)>,
    /// How to see that it is well: http:PATH, grpc, grpc:SERVICE, tcp, exec:COMMAND. What mesh.yaml says goes first.
    #[arg(long, value_name = "PROBE", value_parser = probe)]
    health: Option<Value>,
    /// Where the sidecar keeps its key, its certificate and the last good snapshot, to start again without a token and
    /// without a control plane; else in memory, and each start of it joins anew.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Speaks {
    Auto,
    Http,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

impl Speaks {
    /// Protocol and port name, which is the protocol's in the short form.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Auto => ("auto", "main"),
            Self::Http => ("http", "http"),
            Self::Http2 => ("http2", "http"),
            Self::Grpc => ("grpc", "grpc"),
            Self::Tcp => ("tcp", "tcp"),
            Self::Tls => ("tls", "tls"),
        }
    }
}

/// How long the sidecar may take to listen, and to leave after the command has ended.
const SIDECAR: Duration = Duration::from_secs(5);
const LEAVE: Duration = Duration::from_secs(3);

/// Runs `run`.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let code = crate::supervise::runtime()?.block_on(journey(args))?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn journey(args: &RunArgs) -> anyhow::Result<i32> {
    prctl::set_child_subreaper(true)?;
    let console = Console::silent();
    let reaper = Reaper::start()?;
    let mark = uuid::Uuid::new_v4().simple().to_string();
    let service = name(&args.service)?;
    let address = joining::control_plane(args)?;
    let joining = Joining::find(args, &service, &address).await?;
    let code = supervise(args, service, &address, &joining, Tools { console, reaper, mark }).await;
    joining.end().await;
    code
}

/// What one run is done with.
struct Tools {
    console: Console,
    reaper: Reaper,
    mark: String,
}

async fn supervise(
    args: &RunArgs,
    service: ServiceName,
    control_plane: &str,
    joining: &Joining,
    tools: Tools,
) -> anyhow::Result<i32> {
    let Tools { console, reaper, mark } = tools;
    let mut signals = forwarded()?;
    let setup = Setup::new(args, service, &mark, control_plane, joining)?;

    let sink = Sink::memory("sidecar");
    let sidecar = keep::keep("sidecar", setup.sidecar.clone(), sink, LEAVE, &reaper, &console);
    sidecar.want(Want::Run);
    if let Err(error) = listens(&sidecar, setup.admin).await {
        sidecar.want(Want::Kill);
        sidecar.stopped().await;
        return Err(error);
    }

    let (life, seen) = watch::channel(Seen {
        life: Life::Stopped,
        starts: 1,
        since: Instant::now(),
    });
    let announcer = tokio::spawn(admin::announce(setup.admin, seen, sidecar.seen.clone()));
    let teller = tokio::spawn(joining::tell(setup.admin));
    let started = setup.spawn(&reaper, &args.command);
    let exit = match started {
        Ok(mut app) => {
            life.send_modify(|seen| seen.life = Life::Running { pid: app.pid.as_raw() });
            loop {
                tokio::select! {
                    exit = app.exited() => break Ok(exit),
                    Some(signal) = signals.recv() => { kill(app.pid, signal).ok(); }
                }
            }
        }
        Err(error) => Err(anyhow!("cannot start `{}`: {error}", args.command[0].to_string_lossy())),
    };
    let ended = exit.as_ref().copied().unwrap_or(Exit::Code(127));
    life.send_modify(|seen| {
        seen.life = Life::Ended {
            exit: ended,
            looping: false,
        }
    });

    // The command may have left children; like it, they go before the sidecar.
    let marks = [format!("{RUN}={mark}"), format!("{INSTANCE}={}", setup.instance)];
    tree::end(&reaper, Duration::from_secs(2), || tree::marked(&marks)).await;
    sidecar.want(Want::Stop);
    sidecar.stopped().await;
    announcer.abort();
    teller.abort();
    tree::end(&reaper, Duration::from_secs(1), || tree::descendants(unistd::getpid())).await;
    exit.map(Exit::shell_code)
}

async fn listens(sidecar: &Kept, address: SocketAddr) -> anyhow::Result<()> {
    let until = Instant::now() + SIDECAR;
    while !admin::alive(address).await {
        let ended = matches!(
            sidecar.seen.borrow().life,
            Life::Ended { .. } | Life::Unstartable { .. }
        );
        if ended || Instant::now() > until {
            bail!(
                "the sidecar does not start:\n  {}",
                sidecar.sink.last_lines().join("\n  ")
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// What is decided before anything starts.
struct Setup {
    instance: String,
    env: Vec<(String, String)>,
    sidecar: keep::Launch,
    admin: SocketAddr,
}

impl Setup {
    fn new(
        args: &RunArgs,
        service: ServiceName,
        mark: &str,
        control_plane: &str,
        joining: &Joining,
    ) -> anyhow::Result<Self> {
        let mut ports = Ports::default();
        let mut choose = |asked: Option<u16>| match asked {
            Some(asked) => ports.fixed(asked).map_err(|problem| anyhow!(problem)),
            None => ports.free().map_err(Into::into),
        };
        let (protocol, port) = args.protocol.names();
        let inbound = [UpPort {
            name: port.to_owned(),
            protocol: protocol.to_owned(),
            listen: SocketAddr::new(args.address, choose(args.port)?),
            mesh_listen: None,
            app: loopback(choose(args.app_port)?),
        }];
        let mut calls = Vec::new();
        for callee in &args.calls {
            calls.push(Call {
                service: name(callee)?,
                listeners: vec![(None, loopback(choose(None)?))],
            });
        }
        let (admin, proxy) = (loopback(choose(None)?), loopback(choose(None)?));
        // Others may run instances of the same service beside the same control plane.
        let fresh = format!("{}-{}", service.service(), mark.get(..8).unwrap_or(mark));
        let instance = joining::instance(args.state_dir.as_deref(), fresh)?;
        let wiring = Wiring {
            ports: &inbound,
            calls: &calls,
            proxy,
            service: &service,
            instance: &instance,
        };
        let mut document = wiring.bootstrap(admin, None);
        document["control_plane"] = json!(format!("https://{control_plane}"));
        document["address"] = json!(args.address);
        document["identity"] = joining.identity(args.state_dir.as_deref());
        document["state_dir"] = json!(args.state_dir);
        document["labels"] = args.label.iter().cloned().collect::<serde_json::Map<_, _>>().into();
        if let Some(probe) = &args.health {
            document["resources"] = json!({"proxy": {"name": service.as_str(), "health": {"probe": probe}}});
        }
        let mut env = wiring.environment();
        env.push((RUN.to_owned(), mark.to_owned()));

        let program = OsString::from(ITSELF);
        let sidecar_name = format!("{instance}.sidecar");
        let marks = vec![format!("{RUN}={mark}"), format!("{INSTANCE}={sidecar_name}")];
        let here = std::env::current_dir()?;
        let mut sidecar = plan::sidecar(program, Path::new("/dev/stdin"), here, &sidecar_name, marks);
        sidecar.env.push((RUN.to_owned(), mark.to_owned()));
        sidecar.stdin = Some(document.to_string());
        Ok(Self {
            instance,
            env,
            sidecar,
            admin,
        })
    }

    /// Starts the command with our own standard streams.
    fn spawn(&self, reaper: &Reaper, words: &[OsString]) -> io::Result<crate::supervise::reap::Running> {
        let (program, args) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // It is for the sidecar, and the sidecar is told otherwise.
            .env_remove(crate::plane::TOKEN);
        if !io::stdin().is_terminal() {
            // On a terminal it stays in our group, or it could not read from it.
            command.process_group(0);
        }
        guard::tie(&mut command, Signal::SIGKILL);
        reaper.spawn(&mut command)
    }
}

/// The signals that pass to the command. What a terminal sends reaches it without us.
fn forwarded() -> io::Result<mpsc::Receiver<Signal>> {
    let (tell, signals) = mpsc::channel(8);
    let by_terminal = io::stdin().is_terminal();
    for number in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        let mut stream = signal(SignalKind::from_raw(number as i32))?;
        let tell = tell.clone();
        // Its owner is the receiver: the task ends when that is dropped.
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let sent_already = by_terminal && matches!(number, Signal::SIGINT | Signal::SIGQUIT | Signal::SIGWINCH);
                if !sent_already && tell.send(number).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(signals)
}

fn name(text: &str) -> anyhow::Result<ServiceName> {
    let (namespace, service) = text.split_once('/').unwrap_or(("default", text));
    ServiceName::new(namespace, service).map_err(|error| anyhow!("service `{text}`: {error}"))
}

fn label(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), json!(value))),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn probe(text: &str) -> Result<Value, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest) {
        ("http", path) if path.starts_with('/') => Ok(json!({"http": {"path": path}})),
        ("http", _) => Err("http needs a path, such as http:/healthz".to_owned()),
        ("grpc", service) => Ok(json!({"grpc": {"service": service}})),
        ("tcp", "") => Ok(json!({"tcp": {}})),
        ("exec", command) if !command.is_empty() => Ok(json!({"exec": {"command": ["/bin/sh", "-c", command]}})),
        _ => Err("one of http:PATH, grpc, grpc:SERVICE, tcp, exec:COMMAND".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_written_as_kind_and_detail() {
        assert_eq!(probe("http:/healthz"), Ok(json!({"http": {"path": "/healthz"}})));
        assert_eq!(probe("grpc"), Ok(json!({"grpc": {"service": ""}})));
        assert_eq!(probe("tcp"), Ok(json!({"tcp": {}})));
        assert!(probe("http").is_err() && probe("exec:").is_err() && probe("ping").is_err());
    }
}
