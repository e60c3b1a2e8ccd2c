//! The supervisor: prepares, starts, shows, follows, and takes everything down again, whatever ends it.
//!
//! Runs on one thread, the main one, because the kernel ties children to the thread that started them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::sys::prctl;
use nix::unistd::{self, Pid};
use tokio::sync::watch;

use super::console::Console;
use super::fleet::{Fleet, Plan};
use super::front::Signals;
use super::reap::Reaper;
use super::state::{Layout, Up};
use super::workload::Row;
use super::{control, guard, table, tree};

/// How long start-up waits for all to be healthy before it shows what there is.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a plan is made with.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// Where things lie.
    pub(crate) layout: Layout,
    /// Who spawns.
    pub(crate) reaper: Reaper,
    /// Where a person reads.
    pub(crate) console: Console,
    /// The mark of this run.
    pub(crate) run: String,
}

/// Whether a person watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attach {
    /// Service lines are shown until the end.
    Follow,
    /// The caller leaves as soon as all is up; standard input is the pipe on which to tell it.
    Detach,
}

/// Runs the mesh that `prepare` plans until a signal ends it; returns the exit code.
pub(crate) async fn run(
    layout: Layout,
    attach: Attach,
    prepare: impl AsyncFnOnce(&Site) -> anyhow::Result<Plan>,
) -> anyhow::Result<u8> {
    prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
    guard::ignore_terminal_stop()?;
    let mut stops = stops()?;
    let caller = (attach == Attach::Detach).then(Caller::take).transpose()?;
    let run = std::env::var(tree::RUN).context("the supervisor is started by `outrigger up`")?;
    let site = Site {
        layout,
        reaper: Reaper::start()?,
        console: Console::held(),
        run,
    };

    let Some(lock) = site.layout.lock_supervisor().await? else {
        return Err(anyhow!(
            "the services of an earlier `up` are still stopping; try again in a moment"
        ));
    };
    site.layout.clean();
    site.layout.create()?;
    let result = journey(&site, &mut stops, caller, prepare).await;
    end_all(&site).await;
    site.layout.clean();
    drop(lock);
    result
}

async fn journey(
    site: &Site,
    stops: &mut watch::Receiver<u32>,
    caller: Option<Caller>,
    prepare: impl AsyncFnOnce(&Site) -> anyhow::Result<Plan>,
) -> anyhow::Result<u8> {
    let mut up = up(site)?;
    site.layout.write_up(&up)?;
    let plan = tokio::select! {
        plan = prepare(site) => plan?,
        () = stopped(stops, 1) => return Ok(0),
    };
    up.mesh.clone_from(&plan.mesh);
    up.control_plane = format!("https://{}", plan.control_plane);
    if plan.control.is_some() {
        up.socket = site.layout.plane_socket();
    }

    let hint = plan.hint.clone();
    let fleet = Arc::new(Fleet::new(plan, site));
    let (ready, is_ready) = watch::channel(false);
    let describe = tokio::spawn(Arc::clone(&fleet).describe(site.layout.clone(), up, is_ready));
    let serve = tokio::spawn({
        let (layout, fleet, console) = (site.layout.clone(), Arc::clone(&fleet), site.console.clone());
        async move {
            if let Err(error) = control::serve(&layout, fleet).await {
                console.note(&format!("`ps` and `restart` will not work: {error}"));
            }
        }
    });

    let renew = tokio::spawn({
        let fleet = Arc::clone(&fleet);
        async move { fleet.renew_tokens().await }
    });

    let started = Instant::now();
    let rows = tokio::select! {
        rows = start(site, &fleet) => Some(rows),
        () = stopped(stops, 1) => None,
    };
    if let Some(rows) = rows {
        ready.send_replace(true);
        show(site, hint.as_deref(), &fleet, &rows, started.elapsed());
        match caller {
            Some(caller) => {
                site.console.silence();
                caller.tell(rows.iter().all(Row::healthy), site)?;
            }
            None => site.console.release(),
        }
        stopped(stops, 1).await;
    }

    site.console.note("stopping services, sidecars, control plane");
    let (hurry, hurried) = watch::channel(false);
    tokio::select! {
        () = fleet.stop(hurried) => {}
        () = async {
            stopped(stops, 2).await;
            hurry.send_replace(true);
            std::future::pending::<()>().await;
        } => {}
    }
    serve.abort();
    renew.abort();
    describe.abort();
    // It must not write `up.json` once more after the folder is gone.
    describe.await.ok();
    site.console.note("stopped");
    Ok(0)
}

async fn start(site: &Site, fleet: &Fleet) -> Vec<Row> {
    if let Err(error) = fleet.start().await {
        site.console.note(&format!(
            "no token for the sidecars, only those that joined before can run: {error:#}"
        ));
    }
    let progress = table::Progress::start(fleet.workloads().len());
    let rows = fleet
        .settle(PATIENCE, |healthy, rows| progress.show(healthy, rows))
        .await;
    progress.finish(&site.console);
    rows
}

fn show(site: &Site, hint: Option<&str>, fleet: &Fleet, rows: &[Row], took: Duration) {
    let console = &site.console;
    console.say(&table::text(&table::summary(rows)));
    for row in rows.iter().filter(|row| !row.healthy()) {
        let reason = row.reason.as_deref().unwrap_or("no reason given");
        console.say(&format!("\n{} is not healthy ({}): {reason}", row.instance, row.state));
        for line in fleet.last_lines(&row.instance) {
            console.say(&format!("  {line}"));
        }
    }
    if let Some(lines) = fleet.broken_control_plane() {
        console.say("\nthe control plane ends again and again:");
        for line in lines {
            console.say(&format!("  {line}"));
        }
    }
    let healthy = rows.iter().filter(|row| row.healthy()).count();
    console.say(&format!(
        "\n{healthy} of {} healthy after {:.1} s",
        rows.len(),
        took.as_secs_f64()
    ));
    if let Some(hint) = hint {
        console.say(&format!("try: {hint}"));
    }
}

fn up(site: &Site) -> anyhow::Result<Up> {
    let own = unistd::getpid();
    let front = unistd::getppid();
    let started = |pid: Pid| tree::started(pid).context("cannot read /proc");
    Ok(Up {
        mesh: String::new(),
        pid: front.as_raw(),
        pid_started: started(front)?,
        supervisor: own.as_raw(),
        supervisor_started: started(own)?,
        run: site.run.clone(),
        control_plane: String::new(),
        socket: PathBuf::new(),
        ready: false,
        services: Vec::new(),
    })
}

/// Ends whatever is left: interrupted builds, daemons, children of children.
async fn end_all(site: &Site) {
    let mark = [format!("{}={}", tree::RUN, site.run)];
    tree::end(&site.reaper, Duration::from_secs(1), || {
        let mut left = tree::descendants(unistd::getpid());
        left.extend(tree::marked(&mark));
        left
    })
    .await;
}

/// Counts the signals that ask us to stop; the second means at once.
fn stops() -> io::Result<watch::Receiver<u32>> {
    let (count, stops) = watch::channel(0);
    let mut signals = Signals::listen()?;
    // Its owner is the program.
    tokio::spawn(async move {
        loop {
            signals.next().await;
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(stops)
}

async fn stopped(stops: &mut watch::Receiver<u32>, at_least: u32) {
    stops.wait_for(|count| *count >= at_least).await.ok();
}

/// The `up -d` that waits for us.
struct Caller {
    pipe: File,
}

impl Caller {
    /// Takes the pipe off standard input.
    fn take() -> io::Result<Self> {
        let pipe = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        unistd::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self { pipe })
    }

    /// Says that all is up, and lets go of the caller's terminal.
    fn tell(mut self, healthy: bool, site: &Site) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(site.layout.log("up"))?;
        unistd::dup2_stdout(&log)?;
        unistd::dup2_stderr(&log)?;
        // The caller may have been killed meanwhile; the mesh stays up.
        self.pipe.write_all(if healthy { b"1" } else { b"0" }).ok();
        Ok(())
    }
}
