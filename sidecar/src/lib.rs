//! The proxy beside a service. Rooms in reading order:
//!
//! - [`config`]: the bootstrap file. [`shared`]: what all threads share. [`identify`]: who is who, and TLS.
//! - [`accept`]: listeners, the acceptor, the data workers. [`detect`]: which protocol a connection speaks.
//! - [`inbound`], [`outbound`], [`egress`]: the journeys, top to bottom.
//! - [`policy`], [`balance`]: decisions, pure. [`guard`]: what all workers learnt of a service by calling it. [`connect`]: connections and pools. [`forward`]: bodies, fields, upgrades.
//! - [`tunnel`]: opaque TCP between two sidecars.
//! - [`reason`]: why the mesh answers by itself. [`respond`]: where a failure becomes a status. [`observe`]: counters and the access log.
//! - [`directory`]: what is known of the mesh. [`discover`], [`register`], [`health`], [`admin`]: the control side.
//! - [`drain`]: leaving in order. [`contain`]: what a panic costs.

pub mod accept;
pub mod admin;
pub mod balance;
pub mod config;
pub mod connect;
pub mod contain;
pub mod detect;
pub mod directory;
pub mod discover;
pub mod drain;
pub mod egress;
mod exchange;
pub mod forward;
pub mod guard;
pub mod health;
pub mod identify;
pub mod inbound;
pub mod observe;
pub mod outbound;
pub mod policy;
pub mod protect;
pub mod reason;
pub mod register;
pub mod respond;
mod run;
pub mod shared;
pub mod tunnel;

pub use run::{Error, run};

/// Sends the program's own log to standard error: `RUST_LOG` chooses what, `info` by default.
pub fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second call keeps the first subscriber.
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            .try_init(),
    );
}
