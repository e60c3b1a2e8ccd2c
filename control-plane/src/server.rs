//! One port for everything: gRPC for sidecars, HTTP/JSON for people, HTTP/1.1 and h2c.
//!
//! Binds loopback unless `insecure` says otherwise: there is no identity yet, so whoever reaches the
//! port may change the mesh.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use outrigger_proto::wire::DESCRIPTORS;
use outrigger_proto::wire::agent::agent_server::AgentServer;
use outrigger_proto::wire::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::api;
use crate::plane::Plane;
use crate::push::ads::Ads;
use crate::registry::Terms;
use crate::session::Agent;
use crate::source::Source;
use crate::stop::{self, Stop};

/// How one control plane runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where state outlives a crash; none keeps everything in memory.
    pub state_dir: Option<PathBuf>,
    /// A mesh.yaml or a directory that holds one; watched.
    pub config: Option<PathBuf>,
    /// A registration that is not renewed for this long lapses.
    pub lease: Duration,
    /// What restored leases get on top after a restart.
    pub grace: Duration,
    /// May listen on an address that others can reach.
    pub insecure: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            state_dir: None,
            config: None,
            lease: Duration::from_secs(15),
            grace: Duration::from_secs(5),
            insecure: false,
        }
    }
}

/// Why a control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port cannot be had.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The address is not loopback.
    #[error("{0} can be reached by others, and there is no identity yet; say `insecure` to listen there all the same")]
    NotLoopback(SocketAddr),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Open connections get this long to end after the shutdown signal.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// h2's budget for small frames grows with the connection window, and hyper offers no other knob.
const CONNECTION_WINDOW: u32 = 8 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// One sidecar has one or two; beyond this something is wrong with whoever connects.
const MAX_CONNECTIONS: usize = 20_000;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until `shutdown` is ready.
///
/// # Errors
/// When it cannot start.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let listen = options.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| Error::Listen { listen, source })?;
    serve(listener, options, shutdown).await
}

/// Runs on a listener that is already bound; `options.listen` is not used.
///
/// # Errors
/// When it cannot start.
pub async fn serve(listener: TcpListener, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let listen = options.listen;
    let listen = listener
        .local_addr()
        .map_err(|source| Error::Listen { listen, source })?;
    if !listen.ip().is_loopback() && !options.insecure {
        return Err(Error::NotLoopback(listen));
    }
    let terms = Terms {
        lease: millis(options.lease),
        grace: millis(options.grace),
    };
    let state_dir = options.state_dir.clone();
    let plane = Arc::new(Plane::open(state_dir.as_deref(), terms));
    let (stopper, stop) = stop::signal();
    let mut tasks = JoinSet::new();
    let source = options.config.as_deref().map(Source::new);
    // What a refused file would have replaced is the last good one, so that comes first.
    plane.apply_stored(source.as_ref().and_then(Source::text).as_deref());
    if let Some(mut source) = source {
        source.look(&plane);
        tasks.spawn(source.watch(Arc::clone(&plane), stop.clone()));
    }
    tasks.spawn(pass_time(Arc::clone(&plane), stop.clone()));
    let app = routes(&plane, &stop, &options)?;
    tracing::info!(%listen, "control plane is up");
    accept_until(listener, app, shutdown, stopper).await;
    while tasks.join_next().await.is_some() {}
    plane.store.flush();
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX / 8)
        .clamp(1, u64::MAX / 8)
}

fn routes(plane: &Arc<Plane>, stop: &Stop, options: &Options) -> Result<axum::Router, Error> {
    let ads = Ads {
        hub: Arc::clone(&plane.hub),
        events: Arc::clone(&plane.events),
        stop: stop.clone(),
    };
    let agent = Agent {
        plane: Arc::clone(plane),
        stop: stop.clone(),
    };
    // Clients in the field still ask by the older of its two names.
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let grpc = tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(ads))
        .add_service(AgentServer::new(agent))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .into_axum_router();
    Ok(grpc.merge(api::routes(Arc::clone(plane), options.insecure)))
}

async fn pass_time(plane: Arc<Plane>, stop: Stop) {
    let every = (plane.terms.lease / 20).clamp(10, 500);
    let mut ticks = tokio::time::interval(Duration::from_millis(every));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.stopped() => return,
            _ = ticks.tick() => plane.tick(),
        }
    }
}

async fn accept_until(
    listener: TcpListener,
    app: axum::Router,
    shutdown: impl Future<Output = ()>,
    stopper: stop::Stopper,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others have to close first, so do not spin.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let service = TowerToHyperService::new(app.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "connection ended");
            }
        });
    }
    drop(listener);
    stopper.stop();
    if tokio::time::timeout(SHUTDOWN, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end");
    }
    connections.shutdown().await;
}
