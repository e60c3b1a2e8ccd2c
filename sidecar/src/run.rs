//! Starts one sidecar: listeners, data workers, the control side; and ends it in order.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_proto::model::{FieldError, Protocol};
use tokio::signal::unix::{SignalKind, signal};

use crate::accept::{self, Handler, Listener, Worker};
use crate::config::{Admin, Bootstrap, Handed};
use crate::contain::{Place, Task};
use crate::drain::Phase;
use crate::egress::Egress;
use crate::inbound::Inbound;
use crate::observe::Gauge;
use crate::observe::access_log::AccessLog;
use crate::outbound::Outbound;
use crate::outbound::cluster::Cluster;
use crate::shared::Shared;
use crate::{admin, discover, health, identify, register};

/// Time between two looks for callers whose certificates expired.
const REVIEW: Duration = Duration::from_secs(5);
/// Unused upstream connections are closed after this.
const IDLE: Duration = Duration::from_secs(60);

/// How often unused connections are looked for.
const PRUNE: Duration = Duration::from_secs(2);

/// Why a sidecar did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the bootstrap is wrong.
    #[error("bootstrap: {0}")]
    Config(#[from] FieldError),
    /// A socket, a thread or a file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Key and certificates that are there and cannot be used.
    #[error("{0}")]
    Identity(#[from] identify::OpenError),
    /// A part of the control side could not even begin: the sidecar must not stay half-alive.
    #[error("a task of the control side ended by a panic while it began")]
    Control,
}

/// One worker's journeys, by role: outbound listeners, inbound listeners, the proxy port.
struct Journeys {
    outbound: Vec<Arc<Outbound>>,
    inbound: Vec<Arc<Inbound>>,
    egress: Arc<Egress>,
}

/// Runs one sidecar until SIGTERM, SIGINT, or a request to drain; then drains.
///
/// # Errors
/// When it cannot start.
pub fn run(bootstrap: Bootstrap) -> Result<(), Error> {
    bootstrap.check()?;
    raise_file_limit();
    let shared = Arc::new(Shared::new(bootstrap)?);
    shared.identity.open(&shared.bootstrap)?;
    count_panics(&shared);
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    control.block_on(serve(shared))
}

async fn serve(shared: Arc<Shared>) -> Result<(), Error> {
    // Before anybody can see that we are here: a signal from now on drains.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let bootstrap = &shared.bootstrap;
    let log = bootstrap
        .access_log
        .as_deref()
        .map(|target| AccessLog::open(target, shared.stats.clone()))
        .transpose()?;
    let listeners = bind_all(bootstrap)?;
    let doors: Vec<_> = listeners
        .iter()
        .filter(|one| one.until == Phase::Closing)
        .cloned()
        .collect();
    let admin = match &bootstrap.admin {
        Admin::Tcp(address) => admin::Listener::Tcp(tokio_listener(*address)?),
        Admin::Unix(path) => admin::Listener::unix(path)?,
    };
    let told = admin.address().unwrap_or_else(|| bootstrap.admin.clone());
    let telemetry = bootstrap
        .telemetry
        .map(|t| Ok::<_, io::Error>((tokio_listener(t.listen)?, t.tls)));
    let telemetry = telemetry.transpose()?;
    tracing::info!(service = %shared.name, instance = bootstrap.instance, admin = %told, "sidecar started");

    let count = worker_count(bootstrap.workers);
    let mut workers = Vec::with_capacity(count);
    for index in 0..count {
        let (shared, log) = (shared.clone(), log.clone());
        let life = Task::new(Place::Worker, shared.stats.clone());
        workers.push(accept::spawn(index, life, move || handler(&shared, log.as_ref()))?);
    }
    let workers: Arc<[Worker]> = workers.into();

    let mut control = tokio::task::JoinSet::new();
    control.spawn(admin::serve(admin, shared.clone()));
    if let Some((listener, tls)) = telemetry {
        control.spawn(admin::serve_telemetry(listener, tls, shared.clone()));
    }
    control.spawn(identify::run(shared.clone()));
    control.spawn(discover::run(shared.clone()));
    control.spawn(health::run(shared.clone()));
    control.spawn(register::run(shared.clone()));
    control.spawn(quiet(shared.clone(), doors));
    let acceptor = acceptor(listeners, workers.clone(), shared.clone())?;

    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = shared.drain_requested.notified() => {}
        () = panicked(&mut control) => return Err(Error::Control),
    }
    let drain = shared.directory.proxy().drain;
    tracing::info!(delay = ?drain.delay, deadline = ?drain.deadline, "draining");
    tokio::select! {
        () = shared.drain.run(drain.delay, drain.deadline, idle(&workers)) => {}
        _ = term.recv() => shared.drain.advance(Phase::Ended),
        _ = int.recv() => shared.drain.advance(Phase::Ended),
    }
    control.shutdown().await;
    drop(acceptor.join());
    tracing::info!("sidecar ended");
    Ok(())
}

/// Which journey a listener's connections take: its place in [`Role::all`] is its number.
enum Role {
    Outbound(usize),
    /// The second listener of an app port when `meshed`.
    Inbound {
        index: usize,
        meshed: bool,
    },
    Egress,
}

impl Role {
    /// Every listener of the bootstrap, with its address.
    fn all(bootstrap: &Bootstrap) -> Vec<(Self, SocketAddr)> {
        let outbound = bootstrap.outbound.iter().enumerate();
        let mut all: Vec<_> = outbound.map(|(i, o)| (Self::Outbound(i), o.listen)).collect();
        for (index, inbound) in bootstrap.inbound.iter().enumerate() {
            all.push((Self::Inbound { index, meshed: false }, inbound.listen));
            let second = Self::Inbound { index, meshed: true };
            all.extend(inbound.mesh_listen.map(|listen| (second, listen)));
        }
        all.extend(bootstrap.http_proxy.map(|listen| (Self::Egress, listen)));
        all
    }
}

fn tokio_listener(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(accept::bind(address)?)
}

fn bind_all(bootstrap: &Bootstrap) -> io::Result<Vec<Listener>> {
    let mut handed = match bootstrap.handed {
        Handed::AtOnce | Handed::WhenWell => accept::handed(io::stdin())?,
        Handed::No => Vec::new(),
    };
    let all = Role::all(bootstrap).into_iter().enumerate();
    all.map(|(index, (role, address))| {
        let given = handed
            .iter()
            .position(|one| one.local_addr().is_ok_and(|at| at == address));
        Ok(Listener {
            socket: match given {
                Some(given) => handed.swap_remove(given).into(),
                None => accept::bind(address)?.into(),
            },
            role: index,
            open: Arc::default(),
            until: match role {
                Role::Inbound { .. } => Phase::Closing,
                Role::Outbound(_) | Role::Egress => Phase::Parting,
            },
            closed: Arc::default(),
            when_well: given.is_some() && bootstrap.handed == Handed::WhenWell,
        })
    })
    .collect()
}

/// The acceptor has a thread of its own: nothing that the control side does delays a connection.
fn acceptor(
    listeners: Vec<Listener>,
    workers: Arc<[Worker]>,
    shared: Arc<Shared>,
) -> io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut task = Task::new(Place::Accept, shared.stats.clone());
    std::thread::Builder::new().name("acceptor".into()).spawn(move || {
        let accept = || runtime.block_on(accept::run_acceptor(&listeners, workers.clone(), shared.clone()));
        let mut ended = Ok(());
        while task.thread(|| ended = accept()) {}
        if let Err(error) = ended {
            tracing::error!(%error, "accepting ended");
            shared.drain_requested.notify_one();
        }
    })
}

/// Builds one worker's journeys on its own thread.
fn handler(shared: &Arc<Shared>, log: Option<&AccessLog>) -> Handler {
    let journeys = Arc::new(journeys(shared, log));
    let (pruned, stats) = (journeys.clone(), shared.stats.clone());
    // Owned by the worker's runtime: it ends with it.
    tokio::spawn(async move {
        let mut timer = Task::new(Place::Timer, stats);
        let mut tick = tokio::time::interval(PRUNE);
        while timer
            .again(async {
                loop {
                    tick.tick().await;
                    pruned.prune(Instant::now());
                }
            })
            .await
        {}
    });
    let (reviewed, watched) = (journeys.clone(), shared.clone());
    // Owned by the worker's runtime: it ends with it.
    tokio::spawn(async move {
        let mut timer = Task::new(Place::Timer, watched.stats.clone());
        while timer.again(review(&reviewed, &watched)).await {}
    });
    let roles = Role::all(&shared.bootstrap);
    Box::new(move |stream, client, role, open| {
        let journeys = journeys.clone();
        let journey: Pin<Box<dyn Future<Output = ()> + Send>> = match roles.get(role).map(|(role, _)| role) {
            Some(Role::Outbound(index)) => match journeys.outbound.get(*index) {
                Some(journey) => Box::pin(journey.clone().connection(stream, client)),
                None => return,
            },
            Some(Role::Inbound { index, meshed }) => match journeys.inbound.get(*index) {
                Some(journey) => Box::pin(journey.clone().connection(stream, client, *meshed)),
                None => return,
            },
            Some(Role::Egress) => Box::pin(journeys.egress.clone().connection(stream, client)),
            None => return,
        };
        // Owned by the connection: it ends with the client, the limits, or the drain.
        tokio::spawn(async move {
            let _open = open;
            journey.await;
        });
    })
}

/// Judges who is connected whenever the rules, the mode or what is trusted change, and now and then.
async fn review(journeys: &Journeys, shared: &Shared) {
    let (mut trust, mut settings) = (shared.identity.changes(), shared.directory.proxy_changes());
    loop {
        journeys.inbound.iter().for_each(|inbound| inbound.review());
        tokio::select! {
            _ = trust.changed() => {}
            _ = settings.changed() => {}
            () = tokio::time::sleep(REVIEW) => {}
        }
    }
}

fn journeys(shared: &Arc<Shared>, log: Option<&AccessLog>) -> Journeys {
    let outbound = shared.bootstrap.outbound.iter().filter_map(|o| {
        let name = shared.bootstrap.outbound_name(o).ok()?;
        let destination = shared.directory.declare(&name);
        let cluster = Arc::new(Cluster::new(destination, o.port.as_deref(), shared.clone()));
        Some(Arc::new(Outbound::new(cluster, shared.clone(), log.cloned())))
    });
    let inbound = shared.bootstrap.inbound.iter().filter_map(|i| {
        let protocol = Protocol::try_from_wire(i.protocol).ok()?;
        Some(Arc::new(Inbound::new(
            &i.name,
            protocol,
            i.app,
            shared.clone(),
            log.cloned(),
        )))
    });
    Journeys {
        outbound: outbound.collect(),
        inbound: inbound.collect(),
        egress: Arc::new(Egress::new(shared.clone(), log.cloned())),
    }
}

impl Journeys {
    fn prune(&self, now: Instant) {
        self.outbound.iter().for_each(|o| o.prune(now, IDLE));
        self.inbound.iter().for_each(|i| i.prune(now, IDLE));
        self.egress.prune(now, IDLE);
    }
}

/// Waits until a task of the control side ends by a panic, which only one can that was not supervised yet;
/// one that has nothing to do may return.
async fn panicked(control: &mut tokio::task::JoinSet<()>) {
    while let Some(ended) = control.join_next().await {
        if ended.is_err() {
            return;
        }
    }
    std::future::pending().await
}

/// Says that it is quiet as soon as it is, once callers are told to go.
async fn quiet(shared: Arc<Shared>, doors: Vec<Listener>) {
    shared.drain.reached(Phase::Closing).await;
    let mut look = tokio::time::interval(Duration::from_millis(10));
    while doors
        .iter()
        .any(|door| !door.closed.load(Ordering::Acquire) || door.open.load(Ordering::Relaxed) > 0)
    {
        look.tick().await;
    }
    shared.drain.advance(Phase::Quiet);
}

/// Waits until no connection is open.
async fn idle(workers: &[Worker]) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    while workers.iter().any(|w| w.open() > 0) {
        look.tick().await;
    }
}

fn worker_count(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
        n => n.min(64),
    }
}

/// What a panic costs is `contain`'s matter; it is counted so that somebody sees it.
fn count_panics(shared: &Arc<Shared>) {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::Relaxed) {
        return;
    }
    let stats = shared.stats.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        stats.add(Gauge::Panics, 1);
        before(info);
    }));
}

/// Every connection is two descriptors; the soft limit of a shell is small.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit of open files stays");
    }
}
