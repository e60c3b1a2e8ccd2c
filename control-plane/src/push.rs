//! Tells each sidecar what it subscribed to, and only that: Envoy's delta discovery over one stream.
//!
//! - [`table`]: every resource with its version, as it is now.
//! - [`stream`]: one stream's protocol state; pure, so every order of events can be tested.
//! - [`hub`]: who subscribed to what; a change reaches only those.
//! - [`ads`]: the gRPC face, which moves messages and decides nothing.
//!
//! Knows neither where resources come from nor what they mean, except which features of a sidecar
//! they need. Nothing is queued: a stream holds names that changed, and a response is made from the
//! table at the moment in which the client can take it.

pub mod ads;
pub mod hub;
pub mod stream;
pub mod table;
#[cfg(test)]
mod tests;
