//! A connection to a peer that proved who it is, and for how long that holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::{ServiceName, SpiffeId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::dial::{DialError, dial};
use crate::detect::Prefixed;
use crate::identify::{Alpn, Identity, NotAdmitted, Peer, TlsError, TlsStream};
use crate::reason::Reason;

/// Handshakes that one worker opens at a time: a burst of new peers does not hold up the requests
/// that have their connections. Further ones wait, within their connect time-out.
const HANDSHAKES: usize = 32;
/// Longest time between two looks at the clock: a machine that slept has a clock ahead of its timers.
const LOOK: Duration = Duration::from_secs(30);

thread_local! {
    /// A worker is one thread with one single-threaded runtime.
    static OPENING: Arc<Semaphore> = Arc::new(Semaphore::new(HANDSHAKES));
}

/// How connections to an endpoint are protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    Plain,
    /// Mutual TLS; the peer proves to be this service of the own trust domain.
    Mutual(ServiceName),
    /// The service takes nothing but mutual TLS, and this endpoint cannot speak it.
    Impossible(&'static str),
}

/// A connection whose other end is proven.
#[derive(Debug)]
pub struct Secured<S = TcpStream> {
    /// The connection.
    pub stream: TlsStream<Prefixed<S>>,
    /// Who answers.
    pub peer: Peer,
    /// The generation of the own identity that the connection was made with.
    pub generation: u64,
}

/// Why there is no connection. Not one byte of a request was sent.
#[derive(Debug, thiserror::Error)]
pub enum Unconnected {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No TLS connection, or with somebody else.
    #[error("{service} at {address}: {error}")]
    Tls {
        /// Whom we wanted.
        service: ServiceName,
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        error: TlsError,
    },
    /// The handshake was not over in time.
    #[error("{0} did not finish the TLS handshake within {1:?}")]
    Slow(SocketAddr, Duration),
    /// The endpoint cannot speak what the service demands.
    #[error("{0} cannot be called: {1}")]
    Impossible(SocketAddr, &'static str),
    /// The peer did not begin to speak HTTP/2.
    #[error("{0} accepted the connection and did not begin to speak HTTP/2")]
    Mute(SocketAddr, #[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Unconnected {
    /// What the caller is told.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Dial(_) | Self::Slow(..) | Self::Mute(..) => Reason::ConnectFailed,
            Self::Impossible(..) => Reason::PeerUnverified,
            Self::Tls { error, .. } => match error {
                TlsError::NoIdentity(_) => Reason::NoIdentity,
                TlsError::Handshake(_) | TlsError::TimedOut => Reason::ConnectFailed,
                _ => Reason::PeerUnverified,
            },
        }
    }
}

/// Connects to `to`, which has to prove within `limit` that it is `service`. `wrap` takes over the socket.
///
/// # Errors
/// When it does not accept or does not prove it, or this sidecar has no identity.
///
/// # Cancel safety
/// Safe: a half-made connection is closed.
pub async fn secured<S: AsyncRead + AsyncWrite + Unpin>(
    to: SocketAddr,
    service: &ServiceName,
    alpn: Alpn,
    limit: Duration,
    identity: &Identity,
    wrap: impl FnOnce(TcpStream) -> S,
) -> Result<Secured<S>, Unconnected> {
    let failed = |error| Unconnected::Tls {
        service: service.clone(),
        address: to,
        error,
    };
    // Before the handshake: what changes meanwhile makes the connection an old one.
    let generation = identity.generation();
    let own = identity
        .current()
        .ok_or_else(|| failed(TlsError::NoIdentity("it has not joined yet".into())))?;
    let expected =
        SpiffeId::new(own.id.trust_domain(), service).map_err(|e| failed(TlsError::NoIdentity(e.to_string())))?;
    let opening = OPENING.with(Arc::clone);
    let open = async {
        let stream = Prefixed::untouched(wrap(dial(to, limit).await?));
        // Nobody closes it, and then a connection without a permit is the lesser harm.
        let _permit = opening.acquire().await.ok();
        let stream = identity.connect(stream, &expected, alpn).await.map_err(failed)?;
        let peer = identity.peer(&stream).map_err(failed)?;
        Ok(Secured {
            stream,
            peer,
            generation,
        })
    };
    tokio::time::timeout(limit, Box::pin(open))
        .await
        .unwrap_or(Err(Unconnected::Slow(to, limit)))
}

/// Waits until `peer` is let in no longer: revoked, expired, or its root is not trusted any more.
///
/// # Cancel safety
/// Safe.
pub async fn barred(identity: &Identity, peer: &Peer) -> NotAdmitted {
    let mut changes = identity.changes();
    loop {
        if let Err(why) = identity.admits(peer) {
            return why;
        }
        let left = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { std::future::pending::<()>().await },
            () = tokio::time::sleep(left.min(LOOK) + Duration::from_millis(1)) => {}
        }
    }
}
