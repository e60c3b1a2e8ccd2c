//! The one connection to the control plane, shared by discovery and the session.
//!
//! Connects when first used and again after it broke. With an identity it is TLS to the control plane of
//! our trust domain and shows the certificate in use; a newer one is shown by the next connection, and
//! the control plane ends this one when the certificate that it began with expires. Without an identity
//! it is plain. Knows nothing of what is sent.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::identify::{self, Alpn, Foreign, Identity, TlsError, TlsStream};

/// Without an answer by then, another try begins.
const CONNECT: Duration = Duration::from_secs(2);
/// The same with TLS, which costs both sides some computing: many may join at once.
const HANDSHAKE: Duration = Duration::from_secs(8);

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
    pub fn channel(&self, url: &str, identity: &Arc<Identity>) -> Result<Channel, tonic::transport::Error> {
        if let Some(channel) = self.channel.get() {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(if identity.is_on() { HANDSHAKE } else { CONNECT })
            .tcp_nodelay(true)
            .initial_connection_window_size(8 << 20)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let connect = || match identity.is_on() {
            true => endpoint.connect_with_connector_lazy(Secure(identity.clone())),
            false => endpoint.connect_lazy(),
        };
        Ok(self.channel.get_or_init(connect).clone())
    }
}

/// Dials and proves both sides.
#[derive(Clone)]
struct Secure(Arc<Identity>);

impl Service<Uri> for Secure {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = TlsError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TlsError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let identity = self.0.clone();
        Box::pin(async move {
            let expected = identity.control_plane()?;
            let tcp = identify::dial(&uri).await.map_err(TlsError::Handshake)?;
            let tls = identity.connect(tcp, &expected, Alpn::Foreign(Foreign::H2)).await?;
            Ok(TokioIo::new(tls))
        })
    }
}
