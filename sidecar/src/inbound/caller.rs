//! Who is at the other end of an inbound connection, and for how long it may stay there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use outrigger_proto::access::{Asked, Call};
use outrigger_proto::model::{Mode, SpiffeId};
use tokio::sync::Notify;

use crate::exchange::live::Live;
use crate::identify::Peer;
use crate::reason::Reason;
use crate::shared::Shared;

/// The field that tells the app who calls: the id that the connection proved.
pub const CALLER: HeaderName = HeaderName::from_static("outrigger-caller");

/// How long requests of a plain connection may take to end when the mode becomes strict.
const GRACE: Duration = Duration::from_secs(5);
/// Longest time between two looks at the clock: a machine that slept has a clock ahead of its timers.
const LOOK: Duration = Duration::from_secs(60);

/// Who is at the other end of one connection.
#[derive(Debug)]
pub struct Caller {
    /// Where it connects from.
    pub client: SocketAddr,
    /// Whom it proved to be; none for a plain client.
    pub peer: Option<Peer>,
    /// It is, or may be, a sidecar: its `outrigger-origin` counts.
    pub sidecar: bool,
    /// What it asks at this moment.
    pub live: Arc<Live>,
    /// Made once a connection; a request gets a reference count.
    field: Option<HeaderValue>,
    leave: Notify,
}

impl Caller {
    /// A client that proved nothing.
    #[must_use]
    pub fn plain(client: SocketAddr) -> Self {
        Self {
            client,
            peer: None,
            // Where plain is spoken at all there are sidecars that speak it.
            sidecar: true,
            live: Arc::default(),
            field: None,
            leave: Notify::new(),
        }
    }

    /// A client that proved who it is; `sidecar` when it speaks as one.
    #[must_use]
    pub fn proven(client: SocketAddr, peer: Peer, sidecar: bool) -> Self {
        Self {
            field: HeaderValue::from_str(peer.id.as_str()).ok(),
            peer: Some(peer),
            sidecar,
            ..Self::plain(client)
        }
    }

    /// Its id, when it proved one.
    #[must_use]
    pub fn id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref().map(|peer| &peer.id)
    }

    /// Tells the app who calls.
    pub fn introduce(&self, headers: &mut HeaderMap) {
        if let Some(field) = &self.field {
            headers.insert(CALLER, field.clone());
        }
    }

    /// What it asks of `port`, as rules see it.
    #[must_use]
    pub fn asks<'c>(&'c self, port: &'c str, method: &'c Method, path: &'c PathAndQuery) -> Call<'c> {
        Call {
            caller: self.id(),
            port,
            asked: Some(Asked {
                method: method.as_str(),
                path: path.path(),
            }),
        }
    }

    /// What a connection of opaque bytes asks of `port`.
    #[must_use]
    pub fn asks_opaque<'c>(&'c self, port: &'c str) -> Call<'c> {
        Call {
            caller: self.id(),
            port,
            asked: None,
        }
    }

    /// Waits until the connection should take no more requests.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn leaving(&self) {
        self.leave.notified().await;
    }

    /// Watches over a connection's right to be, and that of what it carries: cuts requests to `port` that
    /// the rules allow no longer, and returns when the whole connection has to end. `opaque` when it carries
    /// bytes that are no requests.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(&self, shared: &Shared, port: &str, opaque: bool) -> Reason {
        let mut identity = shared.identity.changes();
        let mut settings = shared.directory.proxy_changes();
        loop {
            match &self.peer {
                Some(peer) => {
                    if let Err(why) = shared.identity.admits(peer) {
                        tracing::info!(peer = %peer.id, serial = peer.serial, %why, "a connection ends");
                        return Reason::Revoked;
                    }
                }
                None if shared.directory.admission().mode == Mode::Strict => {
                    self.leave.notify_one();
                    if !opaque {
                        tokio::time::sleep(GRACE).await;
                    }
                    return Reason::Plaintext;
                }
                None => {}
            }
            if self.review(shared, port, opaque) {
                return Reason::Denied;
            }
            let left = |peer: &Peer| peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            let again = self.peer.as_ref().map_or(LOOK, |p| left(p).min(LOOK)) + Duration::from_millis(1);
            tokio::select! {
                _ = identity.changed() => {}
                _ = settings.changed() => {}
                () = tokio::time::sleep(again), if self.peer.is_some() => {}
            }
        }
    }

    /// True when the connection itself may not go on.
    fn review(&self, shared: &Shared, port: &str, opaque: bool) -> bool {
        let admission = shared.directory.admission();
        if opaque {
            return !admission.decide(&self.asks_opaque(port)).passes();
        }
        let cut = self
            .live
            .review(|method, path| admission.decide(&self.asks(port, method, path)).passes());
        if cut > 0 {
            tracing::info!(
                caller = self.id().map(SpiffeId::as_str),
                cut,
                "the rules allow live requests no longer"
            );
        }
        false
    }
}
