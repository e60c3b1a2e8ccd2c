//! Who this workload is, who a peer is, and what TLS looks like: the one room that knows rustls.
//!
//! [`Identity`] is one immutable view behind one atomic pointer: the leaf with its key, what is
//! trusted, and the TLS settings made of both. A new leaf, other roots or a revocation make a new view
//! and a greater [`generation`](Identity::generation); connections that exist keep the view they were
//! made with, and are asked about through [`admits`](Identity::admits).
//! Knows nothing of requests, endpoints, rules or the use of sockets.

mod brought;
mod crypto;
mod files;
#[cfg(fuzzing)]
pub mod fuzz;
mod issue;
mod keep;
mod leaf;
mod page;
mod pem;
mod progress;
mod schedule;
mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tool;
mod trust;
mod verify;
mod view;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use outrigger_proto::model::SpiffeId;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

pub(crate) use issue::dial;
pub use page::{Page, Trusted, TrustedRoot};
pub use pem::FileError;
pub use state::OpenError;
pub use verify::Refusal;

use crate::config;
use crate::contain::{Place, Task};
use crate::shared::Shared;
use files::Files;
use progress::Progress;
use state::Parts;
use view::View;

/// A TLS connection to or from a peer that was verified.
/// In a box, because it is larger than a kilobyte and moves through many hands.
pub type TlsStream<S> = Box<tokio_rustls::TlsStream<S>>;

/// A handshake takes two round trips and some computing; a peer that is slower is not waited for.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Whoever needs an identity looks again after this.
const JOINED: Duration = Duration::from_secs(5);

/// This workload's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Who this workload is.
    pub id: SpiffeId,
    /// Lower-case hexadecimal, without leading zero bytes.
    pub serial: String,
    /// From when on it counts.
    pub not_before: SystemTime,
    /// Until when it counts.
    pub not_after: SystemTime,
    /// Grows with every certificate of this process; 1 is the first.
    pub generation: u64,
}

/// Who the other side of a connection proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: SpiffeId,
    /// Its leaf's serial, lower-case hexadecimal, without leading zero bytes.
    pub serial: String,
    /// When its leaf expires.
    pub not_after: SystemTime,
    /// SHA-256 of the root that its leaf leads to.
    root: [u8; 32],
}

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `outrigger-h2/1`: HTTP/2 between two sidecars.
    H2,
    /// `outrigger-tcp/1`: the tunnel.
    Tcp,
    /// A client or server that is no sidecar.
    Foreign(Foreign),
}

/// What a foreign peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Foreign {
    /// `h2`.
    H2,
    /// `http/1.1`.
    Http1,
    /// It did not say.
    None,
}

impl Alpn {
    /// All that has a name, in the order of a server's preference.
    const NAMED: [Self; 4] = [
        Self::H2,
        Self::Tcp,
        Self::Foreign(Foreign::H2),
        Self::Foreign(Foreign::Http1),
    ];

    /// The protocol's name on the wire (RFC 7301); none for a foreign peer that did not say.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::H2 => Some("outrigger-h2/1"),
            Self::Tcp => Some("outrigger-tcp/1"),
            Self::Foreign(Foreign::H2) => Some("h2"),
            Self::Foreign(Foreign::Http1) => Some("http/1.1"),
            Self::Foreign(Foreign::None) => None,
        }
    }

    /// True for what only sidecars speak: a ClientHello that offers it is the mesh's.
    #[must_use]
    pub fn is_mesh(self) -> bool {
        matches!(self, Self::H2 | Self::Tcp)
    }

    fn of(negotiated: Option<&[u8]>) -> Self {
        let named = negotiated.and_then(|n| Self::NAMED.into_iter().find(|a| a.name().map(str::as_bytes) == Some(n)));
        named.unwrap_or(Self::Foreign(Foreign::None))
    }
}

/// Why a peer that was let in once is let in no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Its certificate expired.
    #[error("its certificate expired")]
    Expired,
    /// Its certificate or its service is revoked.
    #[error("it is revoked")]
    Revoked,
    /// The root that its certificate leads to is no longer trusted.
    #[error("its root is no longer trusted")]
    Untrusted,
    /// This workload has no identity itself.
    #[error("this sidecar has no identity")]
    NoIdentity,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// This workload has no identity yet, or none at all.
    #[error("this sidecar has no identity: {0}")]
    NoIdentity(String),
    /// The peer's certificate is not accepted here.
    #[error("the peer is not let in: {0}")]
    Unverified(String),
    /// The peer did not accept ours, or the handshake; the alert says why.
    #[error("the peer refused the connection: {0}")]
    Rejected(String),
    /// The peer speaks TLS, and not what was asked for.
    #[error("the peer does not speak {0}")]
    Alpn(&'static str),
    /// The peer answers in another protocol.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The handshake broke.
    #[error("the TLS handshake broke")]
    Handshake(#[source] io::Error),
    /// The handshake took longer than 10 s.
    #[error("the TLS handshake took longer than {} s", HANDSHAKE.as_secs())]
    TimedOut,
}

impl TlsError {
    /// What a failed read or write of a TLS connection says about the peer, in words; none when it was
    /// not TLS that failed. Under TLS 1.3 a client hears only at its first read that its certificate was
    /// refused.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(match inner {
            rustls::Error::InvalidCertificate(_) => Self::Unverified(verify::describe(inner)),
            rustls::Error::NoCertificatesPresented => Self::Unverified("it shows no certificate".into()),
            rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Self::NotTls,
            rustls::Error::AlertReceived(alert) => Self::Rejected(verify::alert(*alert)),
            _ => return None,
        })
    }

    fn from_handshake(error: io::Error) -> Self {
        Self::of(&error).unwrap_or(Self::Handshake(error))
    }
}

/// This workload's identity and trust, shared by all threads; reading is one atomic load.
#[derive(Debug)]
pub struct Identity {
    /// False when the bootstrap names no identity: everything is plain.
    on: bool,
    /// True when key and certificates are brought along (`identity.files`).
    brought: bool,
    provider: Arc<CryptoProvider>,
    view: ArcSwapOption<View>,
    generation: AtomicU64,
    changes: watch::Sender<u64>,
    /// What the view is made of. Held while a new one is made, so that views follow each other.
    parts: Mutex<Parts>,
    progress: Mutex<Progress>,
    /// Where key and chain are kept; none: in memory only.
    files: Mutex<Option<Arc<Files>>>,
    memory: tokio::sync::Mutex<keep::Memory>,
    /// Which version of the files that were brought along is in use.
    seen: Mutex<Option<brought::Seen>>,
}

impl Default for Identity {
    /// No identity: everything is plain.
    fn default() -> Self {
        Self::new(None)
    }
}

impl Identity {
    /// Knows the settings and has no certificate yet; no settings: everything is plain.
    #[must_use]
    pub fn new(settings: Option<&config::Identity>) -> Self {
        Self {
            on: settings.is_some(),
            brought: settings.is_some_and(|s| s.files.is_some()),
            provider: crypto::provider(settings.is_none_or(|s| s.post_quantum)),
            view: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            parts: Mutex::default(),
            progress: Mutex::default(),
            files: Mutex::default(),
            memory: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// False when the bootstrap names no identity. When it is true and there is no
    /// [`current`](Self::current) one, nothing may pass.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The certificate in use; none before the first.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Own>> {
        self.view.load().as_ref().map(|view| view.own().clone())
    }

    /// The control plane's id.
    ///
    /// # Errors
    /// Before there is an identity: it says whose control plane that is.
    pub fn control_plane(&self) -> Result<SpiffeId, TlsError> {
        let view = self.usable()?;
        let id = verify::control_plane(view.trust().trust_domain());
        id.map_err(|e| TlsError::NoIdentity(e.to_string()))
    }

    /// Ends when there is a certificate that counts, or no identity is configured.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        while self.on && self.usable().is_err() {
            // The sender lives in `self`.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits up to 5 s for a certificate that counts.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn joined(&self) -> Result<(), tonic::Status> {
        match tokio::time::timeout(JOINED, self.ready()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(tonic::Status::unavailable(match self.usable() {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            })),
        }
    }

    /// Grows with every change of the leaf, of the roots and of what is revoked. One atomic load.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Tells of every new generation.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether a peer that was let in at its handshake still is: expiry, revocation, and its root. Cheap
    /// enough to ask for each request.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, peer: &Peer) -> Result<(), NotAdmitted> {
        match &*self.view.load() {
            Some(view) => view.trust().admits(peer, SystemTime::now()),
            None => Err(NotAdmitted::NoIdentity),
        }
    }

    /// Accepts TLS from a client, which must show a certificate of the trust domain. Ends after 10 s.
    ///
    /// # Errors
    /// When there is no identity, the client is not let in, or the handshake breaks.
    ///
    /// # Cancel safety
    /// Not safe: `io` is lost.
    pub async fn accept<S>(&self, io: S) -> Result<(TlsStream<S>, Alpn, Peer), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let view = self.usable()?;
        let acceptor = tokio_rustls::TlsAcceptor::from(view.server());
        let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(io)).await {
            Ok(accepted) => accepted.map_err(TlsError::from_handshake)?,
            Err(_) => return Err(TlsError::TimedOut),
        };
        let (_, connection) = stream.get_ref();
        let alpn = Alpn::of(connection.alpn_protocol());
        let peer = view
            .peer(connection.peer_certificates().unwrap_or_default())
            .map_err(|refusal| TlsError::Unverified(refusal.to_string()))?;
        // What was revoked while the handshake ran is not let in either.
        self.admits(&peer)
            .map_err(|why| TlsError::Unverified(format!("it is {}: {why}", peer.id)))?;
        Ok((Box::new(stream.into()), alpn, peer))
    }

    /// Opens TLS to a server, which must be `expected` and nobody else: that is certain before this
    /// returns, and before anything is sent. Ends after 10 s.
    ///
    /// # Errors
    /// When there is no identity, the server is somebody else, or the handshake breaks.
    ///
    /// # Cancel safety
    /// Not safe: `io` is lost.
    pub async fn connect<S>(&self, io: S, expected: &SpiffeId, alpn: Alpn) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let view = self.usable()?;
        let config = view
            .client(expected, alpn)
            .map_err(|e| TlsError::NoIdentity(e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let opening = connector.connect(view::server_name(), io);
        let stream = match tokio::time::timeout(HANDSHAKE, opening).await {
            Ok(opened) => opened.map_err(TlsError::from_handshake)?,
            Err(_) => return Err(TlsError::TimedOut),
        };
        match (stream.get_ref().1.alpn_protocol(), alpn.name()) {
            (got, Some(asked)) if got != Some(asked.as_bytes()) => Err(TlsError::Alpn(asked)),
            _ => Ok(Box::new(stream.into())),
        }
    }

    /// Who answers at the other end of a connection that [`connect`](Self::connect) opened.
    ///
    /// # Errors
    /// When trust changed during the handshake and the peer is let in no longer.
    pub fn peer<S>(&self, stream: &TlsStream<S>) -> Result<Peer, TlsError> {
        let view = self.usable()?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        view.peer(shown)
            .map_err(|refusal| TlsError::Unverified(refusal.to_string()))
    }

    /// The view to use, unless our own certificate expired: a peer would refuse it anyway.
    fn usable(&self) -> Result<Arc<View>, TlsError> {
        match self.view.load_full() {
            Some(view) if SystemTime::now() < view.own().not_after => Ok(view),
            Some(_) => Err(TlsError::NoIdentity("its certificate expired".into())),
            None => Err(TlsError::NoIdentity(self.progress.lock().why_not_joined())),
        }
    }
}

/// Gets this workload's certificate and keeps it good. Runs until the process ends; ends at once when no
/// identity is configured.
pub async fn run(shared: Arc<Shared>) {
    let mut task = Task::new(Place::Identity, shared.stats.clone());
    // Nobody else takes it; what it holds outlives a panic.
    let mut memory = shared.identity.memory.lock().await;
    let bootstrap = &shared.bootstrap;
    match (&bootstrap.identity, &bootstrap.control_plane) {
        (Some(settings), _) if settings.files.is_some() => while task.again(brought::run(&shared, settings)).await {},
        (Some(settings), Some(url)) => while task.again(keep::run(&shared, settings, url, &mut memory)).await {},
        _ => {}
    }
}
