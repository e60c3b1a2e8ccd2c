//! Puts a control plane together and runs it: gRPC for sidecars and HTTP/JSON for people, on one port and on the unix
//! socket.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware;
use outrigger_proto::wire::DESCRIPTORS;
use outrigger_proto::wire::agent::agent_server::AgentServer;
use outrigger_proto::wire::agent::identity_server::IdentityServer;
use outrigger_proto::wire::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::api;
use crate::door::follow::Follower;
use crate::door::may::{self, Checks};
use crate::door::socket::{Socket, SocketError};
use crate::door::tls::TlsError;
use crate::door::{self, Doors, Secure};
use crate::events::Events;
use crate::identity::{self, Authority};
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
    /// The unix socket for people of this machine; `control-plane.sock` in the state directory by default.
    pub socket: Option<PathBuf>,
    /// Trust domain, CA and the life of leaves.
    pub identity: identity::Options,
}

impl Options {
    /// Where the unix socket is.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        let default = || self.state_dir.as_ref().map(|folder| folder.join(SOCKET));
        self.socket.clone().or_else(default)
    }
}

/// The unix socket's name in the state directory.
pub const SOCKET: &str = "control-plane.sock";

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            state_dir: None,
            config: None,
            lease: Duration::from_secs(15),
            grace: Duration::from_secs(5),
            socket: None,
            identity: identity::Options::default(),
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
    /// The unix socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There is nobody who says who is who.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The port cannot speak TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The thread that signs certificates cannot be had.
    #[error("no thread for certificates: {0}")]
    Thread(#[source] std::io::Error),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

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
    let terms = Terms {
        lease: millis(options.lease),
        grace: millis(options.grace),
    };
    let state_dir = options.state_dir.clone();
    let events = Arc::new(Events::default());
    // First, since it refuses a state directory that is not for this version.
    let authority = Authority::open(identity::clock(), state_dir.as_deref(), &options.identity, &events)?;
    let plane = Plane::open(state_dir.as_deref(), terms, events, Arc::clone(&authority));
    let plane = Arc::new(plane);
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
    tasks.spawn(share_out(Arc::clone(&plane), stop.clone()));
    tasks.spawn(tell_trust(Arc::clone(&plane), stop.clone()));
    tasks.spawn(Arc::clone(&authority).keep(Arc::clone(&plane) as _, stop.clone()));
    let (follower, tls) = Follower::new(Arc::clone(&authority))?;
    tasks.spawn(follower.follow(stop.clone()));
    let shown = Arc::new(move |serial: &str| {
        if let Err(refusal) = authority.shown(serial) {
            tracing::warn!("a certificate that was shown cannot be put down: {refusal}");
        }
    });
    let app = routes(&plane, &stop)?;
    if options.socket.is_none()
        && let Some(folder) = &options.state_dir
    {
        // Ours, and nobody else's business; the socket says so when this did not help.
        let private = std::fs::set_permissions(folder, Permissions::from_mode(0o700));
        tracing::debug!(?private, "state directory");
    }
    let socket = options.socket().as_deref().map(Socket::bind).transpose()?;
    tracing::info!(%listen, "control plane is up");
    let doors = Doors {
        tcp: listener,
        secure: Secure { tls, shown },
        socket,
    };
    door::serve(doors, app, shutdown, stopper).await;
    while tasks.join_next().await.is_some() {}
    plane.store.flush();
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX / 8)
        .clamp(1, u64::MAX / 8)
}

fn routes(plane: &Arc<Plane>, stop: &Stop) -> Result<axum::Router, Error> {
    let ads = Ads {
        hub: Arc::clone(&plane.hub),
        events: Arc::clone(&plane.events),
        stop: stop.clone(),
    };
    let agent = Agent {
        plane: Arc::clone(plane),
        stop: stop.clone(),
    };
    let identity = identity::Service::start(Arc::clone(&plane.authority)).map_err(Error::Thread)?;
    // Clients in the field still ask by the older of its two names.
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let grpc = tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(ads))
        .add_service(AgentServer::new(agent))
        .add_service(IdentityServer::new(identity))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .into_axum_router();
    let authority = Arc::clone(&plane.authority);
    let checks = Checks {
        admin: Arc::new(move |token| authority.is_operator(identity::clock(), token)),
        events: Arc::clone(&plane.events),
    };
    let all = grpc.merge(api::routes(Arc::clone(plane)));
    // Last, so that it stands before everything, also before what is not found.
    Ok(all.layer(middleware::from_fn_with_state(checks, may::check)))
}

async fn tell_trust(plane: Arc<Plane>, stop: Stop) {
    let mut changes = plane.authority.changes();
    plane.tell_trust();
    loop {
        tokio::select! {
            () = stop.stopped() => return,
            changed = changes.changed() => match changed {
                Ok(()) => plane.tell_trust(),
                // The authority lives as long as the plane.
                Err(_) => return,
            },
        }
    }
}

/// Divides the rates that instances keep together, once a second (more often where leases are short).
async fn share_out(plane: Arc<Plane>, stop: Stop) {
    let every = (plane.terms.lease / 10).clamp(20, 1000);
    let mut ticks = tokio::time::interval(Duration::from_millis(every));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.stopped() => return,
            _ = ticks.tick() => plane.share_out(),
        }
    }
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
