//! Thousands of callers and endpoints in virtual time.
//!
//! - [`world`]: the event loop: what happens when, and nothing else happens between.
//! - [`server`]: an endpoint: places, a queue, a service time that the scene may change.
//! - [`rules`]: what a caller does: nothing, Envoy's defaults, Linkerd's rules, or the sidecar's own code.
//! - [`scenes`]: the situations, each a function from rules and seed to figures.
//! - [`table`]: the figures of all scenes as the document shows them.
//!
//! A run has no clock and one seeded source of chance: the same build prints the same table.

pub mod rules;
pub mod scenes;
pub mod server;
pub mod table;
pub mod world;
