//! The control plane: knows every service and endpoint and tells each sidecar what it uses.
//!
//! Rooms, in reading order:
//! - [`config`]: mesh.yaml, read and validated; pure but for reading the file.
//! - [`catalog`]: a mesh as resources, and what changed; pure.
//! - [`rollout`]: the configuration in force, and the last one that was refused.
//! - [`source`]: reads the configuration from a file, and again when it changed.
//! - [`registry`]: who serves what, under leases; pure.
//! - [`quota`]: rates that all instances of a service keep together, divided among them; pure.
//! - [`push`]: tells each sidecar what it subscribed to; pure but for its gRPC face.
//! - [`session`]: the facts that sidecars send up.
//! - [`identity`]: who is who: the certificate authority, tokens, revocation.
//! - [`sidecars`]: what they said of themselves, for people.
//! - [`store`]: what must outlive a crash, in one file.
//! - [`events`]: what happened lately, for people.
//! - [`plane`]: joins the rooms.
//! - [`api`]: the HTTP/JSON face.
//! - [`door`]: who comes in and what each may ask.
//! - [`server`]: one port for everything; the entry.
//! - [`stop`]: one signal that ends every stream and task.

pub mod api;
pub mod catalog;
pub mod config;
pub mod door;
pub mod events;
pub mod identity;
pub mod plane;
pub mod push;
pub mod quota;
pub mod registry;
pub mod rollout;
pub mod server;
pub mod session;
pub mod sidecars;
pub mod source;
pub mod stop;
pub mod store;

#[cfg(test)]
mod tests;
