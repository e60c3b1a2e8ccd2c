//! Carries the state machine's requests over the delta stream, and saves what it knows.
//!
//! Decides nothing: `state` does.

use std::time::Duration;

use outrigger_proto::features;
use outrigger_proto::wire::core::Node;
use outrigger_proto::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::time::Instant;

use super::link::{Event, Link, bounded};
use super::state::State;
use super::store::Store;
use super::{IDLE, IDLE_CHECK, apply};
use crate::contain::{Place, Task};
use crate::observe::Gauge;
use crate::shared::Shared;

/// Changes within this time are saved together.
const SAVE_AFTER: Duration = Duration::from_millis(200);
/// The largest answer that is read: a collection comes in one.
const LARGEST: usize = 64 << 20;

/// Follows the control plane until the process ends; `state` and the directory stay in step.
pub(super) async fn run(shared: &Shared, state: State, store: Option<Store>) {
    match &store {
        Some(store) => {
            let mut writer = Task::new(Place::Store, shared.stats.clone());
            let write = async { while writer.again(store.write()).await {} };
            tokio::join!(follow(shared, state, Some(store)), write);
        }
        None => follow(shared, state, None).await,
    }
}

/// Follows for ever. After a panic the stream begins again and the directory is made equal to what
/// `state` holds: each resource in it is whole, and what was in doubt comes again with its version.
async fn follow(shared: &Shared, mut state: State, store: Option<&Store>) {
    let mut task = Task::new(Place::Discovery, shared.stats.clone());
    while task.again(listen(shared, &mut state, store)).await {
        state.disconnect();
        apply(shared, state.again());
    }
}

async fn listen(shared: &Shared, state: &mut State, store: Option<&Store>) {
    let Some(url) = shared.bootstrap.control_plane.clone() else {
        return;
    };
    let channel = match shared.control_plane.channel(&url, &shared.identity) {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!(%url, %error, "the control plane's address is no URL");
            return shared
                .discovery
                .set_connected(false, format!("`{url}` is no URL: {error}"));
        }
    };
    let identity = shared.identity.clone();
    let mut link = Link::new(move |requests| {
        let identity = identity.clone();
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST);
        Box::pin(bounded(async move {
            identity.joined().await?;
            client.delta_aggregated_resources(requests).await
        }))
    });
    let mut wanted = shared.directory.wanted_changes();
    drop(wanted.borrow_and_update());
    apply(shared, state.want(&shared.directory.wanted()));
    let mut idle = tokio::time::interval_at(Instant::now() + IDLE_CHECK, IDLE_CHECK);
    let mut save: Option<Instant> = None;
    loop {
        let save_due = async {
            match save {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => {
                // The sender lives in the directory, which outlives this loop.
                drop(changed);
                let mut output = state.want(&shared.directory.wanted());
                link.send(output.requests.drain(..));
                apply(shared, output);
            }
            _ = idle.tick() => drop(shared.directory.forget_idle(IDLE)),
            () = save_due => {
                save = None;
                if let Some(store) = store {
                    store.save(&state.snapshot());
                }
            }
            event = link.next() => match event {
                Event::Start => {
                    let mut requests = state.connect();
                    if let Some(first) = requests.first_mut() {
                        first.node = Some(node(shared));
                    }
                    link.send(requests);
                }
                Event::Open => {
                    tracing::info!(%url, "connected to the control plane");
                    shared.stats.set(Gauge::ControlPlaneConnected, 1);
                    shared.discovery.set_connected(true, "");
                }
                Event::Message(answer) => {
                    let mut output = state.answer(answer);
                    link.send(output.requests.drain(..));
                    apply(shared, output);
                    save = save.or_else(|| Some(Instant::now() + SAVE_AFTER));
                }
                Event::End(why) => {
                    state.disconnect();
                    lost(shared, &url, why);
                }
            },
        }
    }
}

/// Says once that the control plane is gone; repeated failures only replace the reason.
fn lost(shared: &Shared, url: &str, why: String) {
    let (was, _, before) = shared.discovery.connection();
    if was || before.is_empty() {
        tracing::warn!(%url, %why, "the control plane is not reachable; going on with what is known");
    }
    shared.stats.set(Gauge::ControlPlaneConnected, 0);
    shared.discovery.set_connected(false, why);
}

fn node(shared: &Shared) -> Node {
    Node {
        id: format!("{}/{}", shared.name, shared.bootstrap.instance),
        cluster: shared.name.to_string(),
        user_agent_name: "outrigger-sidecar".into(),
        user_agent_version: env!("CARGO_PKG_VERSION").into(),
        client_features: features::ALL.iter().map(|f| (*f).to_owned()).collect(),
    }
}
