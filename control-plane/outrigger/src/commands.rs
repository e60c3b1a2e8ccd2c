//! One file a subcommand: its arguments and what it does. They call each other not at all.

pub(crate) mod apply;
pub(crate) mod call;
pub(crate) mod certs;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod control_plane;
pub(crate) mod describe;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod explain_access;
pub(crate) mod fault;
pub(crate) mod get;
pub(crate) mod health;
pub(crate) mod logs;
pub(crate) mod new;
pub(crate) mod ps;
pub(crate) mod restart;
pub(crate) mod routes;
pub(crate) mod run;
pub(crate) mod sidecar;
pub(crate) mod split;
pub(crate) mod stats;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod version;

/// A runtime for a command that waits for others.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
