//! The session with the control plane: this endpoint's lease, its health, and requests from there.
//!
//! Registers only while the app is well; says so when it leaves. Knows nothing of what is pushed
//! (`discover`) and nothing of requests of the app.

mod lease;
mod session;
mod share;
mod talk;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use lease::{Lease, LeaseState};

use crate::shared::Shared;

/// Keeps the session with the control plane. Runs until the process ends; ends at once in static mode.
pub async fn run(shared: Arc<Shared>) {
    let Some(url) = shared.bootstrap.control_plane.clone() else {
        return;
    };
    // Who is nobody yet registers nothing.
    shared.identity.ready().await;
    session::run(&shared, &url).await;
}
