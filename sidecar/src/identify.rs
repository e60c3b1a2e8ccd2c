//! Who this workload is, who a peer is, and what TLS looks like: the one room that knows rustls.
//!
//! Knows nothing of requests, endpoints, rules or sockets' use.

use outrigger_proto::model::TrustBundle;

/// This workload's identity and trust, shared by all threads; reading is one atomic load.
#[derive(Debug, Default)]
pub struct Identity {}

impl Identity {
    /// Takes over what is trusted from now on.
    pub fn trust(&self, _bundle: &TrustBundle) {}
}
