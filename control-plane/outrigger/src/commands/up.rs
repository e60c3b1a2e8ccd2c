//! `outrigger up`: builds, starts and follows a whole mesh; and the two hidden roles behind it.
//!
//! `up` is the front itself, or with `-d` the caller that waits until the front behind it says that all is up. The
//! front starts the supervisor. What each of them does lies in `supervise`.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anstream::ColorChoice;
use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{self, Pid};
use outrigger_control_plane::config;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::supervise::back::{self, Attach, Site};
use crate::supervise::fleet::Plan;
use crate::supervise::front::{self, Signals};
use crate::supervise::state::Layout;
use crate::supervise::{ITSELF, build, plan};

/// Build and start everything that a mesh.yaml describes, and follow the logs.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// The folder of mesh.yaml, or a file like it.
    #[arg(default_value = ".", value_name = "DIR")]
    pub(crate) target: PathBuf,
    /// Return as soon as everything is healthy and leave it running.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Leave the `build` steps out.
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Where the control plane listens; 7070 or, when that is taken, any free port.
    #[arg(long, value_name = "PORT")]
    pub(crate) control_plane_port: Option<u16>,
}

/// What `up` starts behind itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct SuperviseArgs {
    #[command(flatten)]
    up: UpArgs,
    /// Be the front, not the supervisor.
    #[arg(long)]
    front: bool,
}

/// The name of the hidden subcommand.
pub(crate) const SUPERVISE: &str = "__supervise";

/// Runs `up`.
pub(crate) fn up(args: &UpArgs) -> anyhow::Result<ExitCode> {
    if args.detach { detach(args) } else { front(args) }
}

/// Runs the hidden subcommand.
pub(crate) fn supervise(args: &SuperviseArgs) -> anyhow::Result<ExitCode> {
    if args.front {
        front(&args.up)
    } else {
        supervisor(&args.up)
    }
}

fn front(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&args.target)?;
    if args.detach {
        // A terminal that is closed must not end what was detached from it.
        unistd::setsid().context("cannot detach from the terminal")?;
    }
    let mut command = itself(args)?;
    command.stdin(if args.detach { Stdio::inherit() } else { Stdio::null() });
    let spawned = || {
        if args.detach {
            let_go(&layout).ok();
        }
    };
    let code = crate::supervise::runtime()?.block_on(front::run(&layout, command, spawned))?;
    Ok(ExitCode::from(code))
}

/// Lets go of the caller's pipe and terminal; the supervisor behind us does so when all is up.
fn let_go(layout: &Layout) -> io::Result<()> {
    unistd::dup2_stdin(File::open("/dev/null")?)?;
    fs::create_dir_all(layout.logs())?;
    let log = File::create(layout.log("up"))?;
    unistd::dup2_stdout(&log)?;
    unistd::dup2_stderr(&log)?;
    Ok(())
}

fn supervisor(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&args.target)?;
    let attach = if args.detach { Attach::Detach } else { Attach::Follow };
    let code =
        crate::supervise::runtime()?.block_on(back::run(layout, attach, async |site| prepare(args, site).await))?;
    Ok(ExitCode::from(code))
}

async fn prepare(args: &UpArgs, site: &Site) -> anyhow::Result<Plan> {
    let mesh = config::load(&site.layout.mesh)?;
    for warning in &mesh.warnings {
        site.console.note(&format!("warning: {}", warning.one_line()));
    }
    if !args.no_build {
        build::run(
            &plan::steps(&mesh, &site.layout.root),
            &site.layout,
            &site.reaper,
            &site.console,
        )
        .await?;
    }
    plan::plan(mesh, site, args.control_plane_port)
}

/// The front in a session of its own; waits for its word that all is up.
fn detach(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let (told, tell) = io::pipe()?;
    let mut command = itself(args)?;
    command.arg("--front").stdin(tell);
    let mut front = command.spawn().context("cannot start in the background")?;
    // It holds the writing end; without this the pipe would never end.
    drop(command);
    let pid = Pid::from_raw(i32::try_from(front.id())?);
    let word = crate::supervise::runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let mut told = pipe::Receiver::from_owned_fd(OwnedFd::from(told))?;
        let mut word = [0_u8; 1];
        loop {
            tokio::select! {
                read = told.read(&mut word) => return read.map(|read| (read == 1).then_some(word[0])),
                () = signals.next() => { kill(pid, Signal::SIGTERM).ok(); }
            }
        }
    })?;
    match word {
        Some(b'1') => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => {
            let code = front.wait()?.code();
            Ok(ExitCode::from(
                code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            ))
        }
    }
}

fn itself(args: &UpArgs) -> anyhow::Result<Command> {
    let mut command = Command::new(ITSELF);
    command.arg0("outrigger");
    command.arg(SUPERVISE).arg(&args.target);
    if args.detach {
        command.arg("--detach");
    }
    if args.no_build {
        command.arg("--no-build");
    }
    if let Some(port) = args.control_plane_port {
        command.arg("--control-plane-port").arg(port.to_string());
    }
    match ColorChoice::global() {
        ColorChoice::Never => command.env("NO_COLOR", "1"),
        ColorChoice::Always | ColorChoice::AlwaysAnsi => command.env("CLICOLOR_FORCE", "1"),
        ColorChoice::Auto => &mut command,
    };
    Ok(command)
}
