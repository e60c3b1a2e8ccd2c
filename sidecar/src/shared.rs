//! What every thread of one sidecar shares.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use outrigger_proto::model::{FieldError, Proxy, ServiceName};
use tokio::sync::{Notify, watch};

use crate::config::{Admin, Bootstrap};
use crate::directory::Directory;
use crate::discover::channel::ControlPlane;
use crate::discover::status::Status;
use crate::drain::Drain;
use crate::guard::Guards;
use crate::guard::events::Events;
use crate::health::App;
use crate::identify::Identity;
use crate::observe::Stats;
use crate::protect::Quotas;
use crate::register::Lease;
use crate::tunnel;

/// One sidecar's shared parts; each is safe to use from any thread.
#[derive(Debug)]
pub struct Shared {
    /// What the sidecar was told at its start.
    pub bootstrap: Bootstrap,
    /// The workload's full service name.
    pub name: ServiceName,
    /// What is known of the mesh.
    pub directory: Directory,
    /// Who this workload is and whom it trusts.
    pub identity: Arc<Identity>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Rate limits that all instances of the service keep together.
    pub quotas: Arc<Quotas>,
    /// What was learnt of services by calling them.
    pub guards: Guards,
    /// Changes of breakers and endpoints on their way to the control plane.
    pub events: Arc<Events>,
    /// How many connections for opaque bytes are idle.
    pub tunnels: Arc<tunnel::Idle>,
    /// How far the sidecar has left.
    pub drain: Drain,
    /// Every address that this sidecar listens on, so that no request is sent back to it.
    pub own_listeners: Vec<SocketAddr>,
    /// How the app is.
    pub app: App,
    /// What discovery runs with.
    pub discovery: Status,
    /// The endpoint's registration.
    pub lease: Lease,
    /// The connection to the control plane.
    pub control_plane: ControlPlane,
    /// Notified when the control plane or a person asks this sidecar to drain.
    pub drain_requested: Notify,
    /// Where the admin listener is bound; none until it serves.
    pub admin: watch::Sender<Option<Admin>>,
    /// When the process began to run.
    pub started: Instant,
}

impl Shared {
    /// Makes the parts for a checked bootstrap.
    ///
    /// # Errors
    /// When a name or a resource of the bootstrap is invalid.
    pub fn new(bootstrap: Bootstrap) -> Result<Self, FieldError> {
        let name = bootstrap.name()?;
        let proxy = match bootstrap.resources.proxy.clone() {
            Some(wire) => wire.try_into()?,
            None => Proxy::new(name.clone()),
        };
        let mut own_listeners: Vec<_> = bootstrap.inbound.iter().map(|i| i.listen).collect();
        own_listeners.extend(bootstrap.inbound.iter().filter_map(|i| i.mesh_listen));
        own_listeners.extend(bootstrap.outbound.iter().map(|o| o.listen));
        own_listeners.extend(bootstrap.http_proxy);
        let (stats, events) = (Arc::<Stats>::default(), Arc::<Events>::default());
        let quotas = Arc::new(Quotas::new(bootstrap.control_plane.is_some()));
        Ok(Self {
            guards: Guards::new(events.clone(), stats.clone()),
            events,
            name,
            directory: Directory::new(proxy, quotas.clone(), stats.clone()),
            quotas,
            identity: Arc::new(Identity::new(bootstrap.identity.as_ref())),
            stats,
            tunnels: Arc::default(),
            drain: Drain::default(),
            own_listeners,
            app: App::default(),
            discovery: Status::default(),
            lease: Lease::default(),
            control_plane: ControlPlane::default(),
            drain_requested: Notify::new(),
            admin: watch::Sender::new(None),
            started: Instant::now(),
            bootstrap,
        })
    }

    /// True when requests are to be logged: the workload's settings say so, or the file does and there
    /// is no control plane that could.
    #[must_use]
    pub fn logs_requests(&self) -> bool {
        self.bootstrap.control_plane.is_none() || self.directory.logs_requests()
    }
}
