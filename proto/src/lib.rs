//! Outrigger's wire types and the one validated model made from them.
//!
//! Rooms, in reading order:
//! - [`wire`]: what prost and tonic generate from `proto/`; nothing else knows its shape.
//! - [`names`]: the spelling of enums in files of resources.
//! - [`features`]: what a sidecar can say that it implements.
//! - [`model`]: `TryFrom<wire::X> for X`; the only types that the programs decide with.
//! - [`access`]: which calls a workload's rules allow; shared by sidecar and control plane so that both say the same.
//! - `paths`: the one form in which paths are compared, and patterns of them; for `access` and `routes`.
//! - [`routes`]: which route, fault or limit a request meets.
//! - [`exposition`]: Prometheus text.
//! - [`tunnel`]: the protocol `outrigger-tcp/1`, pure.
//! - [`skew`]: walks raw bytes against the descriptor and finds tags that prost would drop unseen.
//!
//! This crate does no I/O and knows neither sidecar nor control plane.

pub mod access;
pub mod exposition;
pub mod features;
pub mod model;
pub mod names;
mod paths;
pub mod routes;
pub mod skew;
pub mod tunnel;
pub mod wire;
