//! Who is at the other end of an inbound connection, and for how long it may stay there.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::task::AtomicWaker;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use outrigger_proto::access::{Asked, Call};
use outrigger_proto::model::{Mode, SpiffeId};
use parking_lot::Mutex;

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
    stay: AtomicU8,
    /// The task that serves the connection.
    task: AtomicWaker,
}

/// Whether a caller may stay; grows only.
const WELCOME: u8 = 0;
/// Plain where only TLS is spoken from now on.
const PLAINTEXT: u8 = 1;
const REVOKED: u8 = 2;

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
            stay: AtomicU8::new(WELCOME),
            task: AtomicWaker::new(),
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

    /// Waits until the connection should take no more requests. Costs a request two loads.
    ///
    /// # Cancel safety
    /// Safe; for the one task that serves the connection.
    pub async fn leaving(&self) {
        std::future::poll_fn(|cx| {
            self.task.register(cx.waker());
            match self.stay.load(Ordering::Acquire) {
                WELCOME => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Waits until the whole connection has to end.
    ///
    /// # Cancel safety
    /// Safe; for the one task that serves the connection.
    pub async fn ended(&self) -> Reason {
        self.leaving().await;
        if self.stay.load(Ordering::Acquire) == PLAINTEXT {
            tokio::time::sleep(GRACE).await;
            return Reason::Plaintext;
        }
        Reason::Revoked
    }

    /// Judges a connection that carries requests, and each of them.
    fn judge(&self, shared: &Shared, port: &str) {
        let stay = match &self.peer {
            Some(peer) => match shared.identity.admits(peer) {
                Ok(()) => WELCOME,
                Err(why) => {
                    tracing::info!(peer = %peer.id, serial = peer.serial, %why, "a connection ends");
                    REVOKED
                }
            },
            None if shared.directory.admission().mode == Mode::Strict => PLAINTEXT,
            None => WELCOME,
        };
        if stay > self.stay.fetch_max(stay, Ordering::AcqRel) {
            self.task.wake();
        }
        self.review(shared, port);
    }

    /// Watches over an opaque connection to `port`, and returns when it has to end.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(&self, shared: &Shared, port: &str) -> Reason {
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
                None if shared.directory.admission().mode == Mode::Strict => return Reason::Plaintext,
                None => {}
            }
            if !shared.directory.admission().decide(&self.asks_opaque(port)).passes() {
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

    /// Cuts requests that the rules allow no longer.
    fn review(&self, shared: &Shared, port: &str) {
        let admission = shared.directory.admission();
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
    }
}

/// The callers of one port on one worker whose connections carry requests.
///
/// One list for all, so that a connection costs a place in it and neither a task nor a timer.
#[derive(Debug, Default)]
pub struct Callers(Mutex<Vec<Weak<Caller>>>);

impl Callers {
    /// Enters `caller`, and judges it once: what changed since it was let in counts.
    pub fn enter(&self, caller: &Arc<Caller>, shared: &Shared, port: &str) {
        let mut all = self.0.lock();
        if all.len() == all.capacity() {
            // Before it grows: those that are gone give their places.
            all.retain(|c| c.strong_count() > 0);
            let room = all.len().max(8);
            all.reserve_exact(room);
        }
        all.push(Arc::downgrade(caller));
        drop(all);
        caller.judge(shared, port);
    }

    /// Judges everybody anew.
    pub fn review(&self, shared: &Shared, port: &str) {
        let mut here = Vec::new();
        self.0.lock().retain(|caller| {
            let caller = caller.upgrade();
            let kept = caller.is_some();
            here.extend(caller);
            kept
        });
        here.iter().for_each(|caller| caller.judge(shared, port));
    }
}
