//! What the mesh says: static resources, the last good snapshot, then the control-plane stream.
//!
//! [`state`] decides and does no I/O; `stream` carries its requests; `store` keeps the last good
//! snapshot; [`status`] is what `/config` and the session report. Writes the
//! [`Directory`](crate::directory::Directory) and knows nothing of requests or of serving HTTP.

pub mod channel;
pub(crate) mod link;
#[cfg(test)]
pub(crate) mod peer;
pub mod state;
pub mod status;
mod store;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::model::ServiceName;

use crate::contain::{Place, Task};
use crate::shared::Shared;
use state::{Change, Output, State};
use store::Store;

/// A service that nobody declared and nobody used for so long is forgotten.
const IDLE: Duration = Duration::from_secs(600);
/// How often idle services are looked for.
const IDLE_CHECK: Duration = Duration::from_secs(60);

/// Learns what the mesh says and keeps the directory up to date. Runs until the process ends.
pub async fn run(shared: Arc<Shared>) {
    let mut state = State::new(shared.name.clone());
    declare(&shared);
    apply(&shared, state.seed(&shared.bootstrap.resources));
    let store = Store::open(&shared);
    if shared.bootstrap.control_plane.is_some() {
        if let Some(store) = &store {
            for response in store.load().await {
                let mut output = state.restore(response);
                if shared.identity.has_trust() {
                    // What was kept beside the key is never older than the snapshot.
                    output.changes.retain(|change| !matches!(change, Change::Trust(_)));
                }
                apply(&shared, output);
            }
        }
        stream::run(&shared, state, store).await;
    } else {
        answer_from_the_file(&shared, state).await;
    }
}

/// Static mode: what the file does not name is absent.
async fn answer_from_the_file(shared: &Shared, mut state: State) {
    let mut task = Task::new(Place::Discovery, shared.stats.clone());
    let mut wanted = shared.directory.wanted_changes();
    while task
        .again(async {
            loop {
                drop(wanted.borrow_and_update());
                apply(shared, state.want(&shared.directory.wanted()));
                for name in state.unknown() {
                    shared.directory.publish_absent(&name);
                }
                tokio::select! {
                    // The sender lives in the directory, which outlives this loop.
                    changed = wanted.changed() => drop(changed),
                    () = tokio::time::sleep(IDLE_CHECK) => drop(shared.directory.forget_idle(IDLE)),
                }
            }
        })
        .await
    {
        apply(shared, state.again());
    }
}

/// Declares the services that the bootstrap names, so that they are asked for before their first use.
fn declare(shared: &Shared) {
    for outbound in &shared.bootstrap.outbound {
        if let Ok(name) = shared.bootstrap.outbound_name(outbound) {
            shared.directory.declare(&name);
        }
    }
    for service in &shared.bootstrap.resources.services {
        if let Ok(name) = service.name.parse::<ServiceName>() {
            shared.directory.declare(&name);
        }
    }
    for name in &shared.directory.proxy().calls {
        shared.directory.declare(name);
    }
}

/// Carries out what the state machine decided.
fn apply(shared: &Shared, output: Output) {
    use crate::observe::Gauge;
    for change in output.changes {
        match change {
            Change::Proxy(proxy) => {
                for name in &proxy.calls {
                    shared.directory.declare(name);
                }
                shared.directory.set_proxy(*proxy);
            }
            Change::Trust(bundle) => shared.identity.trust(&bundle),
            Change::Publish(service, endpoints) => shared.directory.publish(service, endpoints),
            Change::Absent(name) => shared.directory.publish_absent(&name),
        }
    }
    let rejected = output.applied.iter().filter(|a| a.rejection.is_some()).count();
    shared.stats.add(Gauge::ResourcesRejected, rejected as u64);
    shared.stats.add(Gauge::UnknownFieldsIgnored, output.ignored as u64);
    for rejected in output.applied.iter().filter(|a| a.rejection.is_some()) {
        tracing::warn!(resource = %rejected.name, version = %rejected.version, reason = ?rejected.rejection, "resource refused");
    }
    shared.discovery.record(output.applied);
}
