//! Runs a mesh's processes on one machine: starts them, keeps them running, and leaves nothing behind.
//!
//! Two processes guard each other. The *front* ([`front`]) is what a person started; it holds the terminal. Behind it
//! the *supervisor* ([`back`]) starts and keeps control plane, sidecars and apps. Whichever of the two is killed, the
//! other ends everything, found by ancestry and by a mark in the environment ([`tree`]). Rooms in reading order:
//! [`state`] (files and locks), [`plan`] (what to start, from mesh.yaml), [`build`], [`front`], [`back`],
//! [`tokens`] (with which sidecars join), [`workload`] (an app with its sidecar), [`keep`] (one process), [`rolling`] (the restart), [`control`] (the socket for `ps` and `restart`).

pub(crate) mod admin;
pub(crate) mod back;
pub(crate) mod backoff;
pub(crate) mod build;
pub(crate) mod console;
pub(crate) mod control;
pub(crate) mod fleet;
pub(crate) mod front;
pub(crate) mod guard;
pub(crate) mod keep;
pub(crate) mod logs;
pub(crate) mod plan;
pub(crate) mod ports;
pub(crate) mod reap;
pub(crate) mod rolling;
pub(crate) mod state;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
pub(crate) mod tree;
pub(crate) mod workload;

/// The running program itself. Stays right when the file is replaced by a newer build meanwhile, so
/// that one mesh is always one version.
pub(crate) const ITSELF: &str = "/proc/self/exe";

/// A runtime on the calling thread. The kernel ties children to the thread that starts them, so all that starts any
/// runs on the main thread: one thread, no worker that could end earlier.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
