//! A destination as one worker sees it: its view, resolved to connections.
//!
//! Rebuilt when the view changes, its own or that of a service it fails over to; endpoints that stay keep their
//! connections and their load.

mod build;
mod resolved;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority;
use outrigger_proto::model::ServiceName;
use parking_lot::Mutex;

pub use self::resolved::{Aim, Resolved, Side, Target, Tried};
use crate::directory::{Destination, Known, View};
use crate::observe::{Cell, Direction, Key};
use crate::reason::Reason;
use crate::shared::Shared;

/// How long a request waits for configuration that was asked for and has not come.
const PATIENCE: Duration = Duration::from_secs(3);

/// A destination as one worker sees it.
#[derive(Debug)]
pub struct Cluster {
    destination: Arc<Destination>,
    /// The port's name; none for the service's first.
    port: Option<Arc<str>>,
    /// Without a port of that name, the first will do.
    lenient: bool,
    shared: Arc<Shared>,
    resolved: Mutex<Option<Arc<Resolved>>>,
    /// Counters of this worker.
    pub cell: Arc<Cell>,
    /// Stands for a missing authority.
    pub authority: Authority,
}

impl Cluster {
    /// A destination's port as the calling worker sees it.
    #[must_use]
    pub fn new(destination: Arc<Destination>, port: Option<&str>, shared: Arc<Shared>) -> Self {
        let name = &destination.name;
        let authority = Authority::try_from(format!("{}.{}", name.service(), name.namespace()))
            .unwrap_or(Authority::from_static("service"));
        let cell = shared.stats.cell(Key {
            direction: Direction::Outbound,
            service: name.as_str().into(),
            port: port.unwrap_or_default().into(),
        });
        Self {
            port: port.map(Arc::from),
            lenient: false,
            resolved: Mutex::new(None),
            cell,
            authority,
            shared,
            destination,
        }
    }

    /// Where a route of another service leads: the port of that name, or else the first.
    #[must_use]
    pub fn routed(destination: Arc<Destination>, port: Option<&str>, shared: Arc<Shared>) -> Self {
        Self {
            lenient: true,
            ..Self::new(destination, port, shared)
        }
    }

    /// The service called.
    #[must_use]
    pub fn name(&self) -> &str {
        self.destination.name.as_str()
    }

    /// The service called.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.destination.name
    }

    /// What is known now; waits a moment for what was asked for.
    ///
    /// # Errors
    /// When the mesh does not know the service or the port, or does not know yet.
    pub async fn resolve(&self) -> Result<Arc<Resolved>, Reason> {
        if let Some(resolved) = &*self.resolved.lock()
            && resolved.is_current(&self.destination)
        {
            return Ok(resolved.clone());
        }
        let known = match &*self.destination.known() {
            Known::Waiting => self.destination.wait(PATIENCE).await,
            known => Arc::new(known.clone()),
        };
        match &*known {
            Known::Present(view) => {
                self.await_failover(view).await;
                self.rebuild(view)
            }
            Known::Absent => Err(Reason::UnknownService),
            Known::Waiting => Err(Reason::NotReady),
        }
    }

    /// What is known now, when that is no longer what `resolved` says; `tried` is told by the new one's numbers. A
    /// request asks before each further try: the endpoint that would take it may have come meanwhile.
    pub fn newer(&self, resolved: &Resolved, tried: &mut Tried) -> Option<Arc<Resolved>> {
        if resolved.is_current(&self.destination) {
            return None;
        }
        let current = self.resolved.lock().clone().filter(|r| r.is_current(&self.destination));
        let newer = current.or_else(|| self.rebuild(&*self.destination.view()?).ok())?;
        *tried = resolved.translate(tried, &newer);
        Some(newer)
    }

    /// A service without endpoints whose other service is not known yet: it is worth the wait.
    async fn await_failover(&self, view: &View) {
        if view.endpoints.is_empty() {
            for other in build::others(view, &self.shared.directory) {
                other.wait(PATIENCE).await;
            }
        }
    }

    fn rebuild(&self, view: &View) -> Result<Arc<Resolved>, Reason> {
        let mut slot = self.resolved.lock();
        let has = |name: &&str| !self.lenient || view.service.ports.iter().any(|p| &*p.name == *name);
        let port = self.port.as_deref().filter(has);
        let resolved = Arc::new(build::build(view, port, slot.as_deref(), &self.shared)?);
        *slot = Some(resolved.clone());
        Ok(resolved)
    }

    /// Closes connections nobody used for `idle`.
    pub fn prune(&self, now: Instant, idle: Duration) {
        if let Some(resolved) = &*self.resolved.lock() {
            resolved.endpoints.iter().for_each(|t| t.upstream.prune(now, idle));
            resolved.routed.iter().for_each(|c| c.prune(now, idle));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::Upstream;

    #[test]
    fn an_endpoint_costs_a_worker_at_most_a_kibibyte() {
        // Connections and hash tables apart; what a picker has of it is bounded in `balance`, by 64 bytes.
        let bytes = size_of::<Target>() + size_of::<Upstream>() + size_of::<crate::tunnel::Pool>() + 64;
        assert!(bytes <= 1024, "{bytes}");
    }
}
