//! The one connection to the control plane, shared by discovery and the session.
//!
//! Plain HTTP/2 until identity exists; connects when first used and again after it broke. Knows
//! nothing of what is sent.

use std::sync::OnceLock;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// The connection, made once.
#[derive(Debug, Default)]
pub struct ControlPlane {
    channel: OnceLock<Channel>,
}

impl ControlPlane {
    /// The channel to `url`. Must be called on a runtime.
    ///
    /// # Errors
    /// When `url` is not one.
    pub fn channel(&self, url: &str) -> Result<Channel, tonic::transport::Error> {
        if let Some(channel) = self.channel.get() {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .initial_connection_window_size(8 << 20)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        Ok(self.channel.get_or_init(|| endpoint.connect_lazy()).clone())
    }
}
