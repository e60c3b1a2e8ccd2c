//! Opaque connections to the app: a tunnel's streams, and plain ones of their own.

use std::pin::Pin;

use outrigger_proto::access;
use outrigger_proto::model::Protocol;
use outrigger_proto::tunnel::{Open, Refusal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Inbound;
use super::caller::Caller;
use super::screen::Screen;
use crate::connect::{self, Lease};
use crate::detect::Prefixed;
use crate::exchange::Exchange;
use crate::forward::copy;
use crate::identify::{Peer, TlsStream};
use crate::reason::Reason;
use crate::respond::ConnectionError;
use crate::tunnel::{self, Broken, Door, Moved, Socket, Wire};

/// A connection whose end can be made a reset.
pub(super) trait Resettable {
    /// Makes the close a reset (RST), so that the peer never takes it for a clean end.
    fn reset(&self);
}

impl Resettable for TcpStream {
    fn reset(&self) {
        copy::reset(self);
    }
}

impl Resettable for Socket {
    fn reset(&self) {
        copy::reset(self.get_ref());
    }
}

impl<S: Resettable> Resettable for Prefixed<S> {
    fn reset(&self) {
        self.get_ref().reset();
    }
}

impl<S: Resettable> Resettable for TlsStream<S> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl Inbound {
    /// Carries opaque bytes between `caller` and the app while the rules allow it.
    pub(super) fn opaque<'a, I>(
        &'a self,
        client: I,
        caller: &'a Caller,
    ) -> Pin<Box<impl Future<Output = Result<(), ConnectionError>> + use<'a, I>>>
    where
        I: AsyncRead + AsyncWrite + Resettable + Unpin,
    {
        Box::pin(self.carry(client, caller))
    }

    async fn carry<I>(&self, mut client: I, caller: &Caller) -> Result<(), ConnectionError>
    where
        I: AsyncRead + AsyncWrite + Resettable + Unpin,
    {
        let mut exchange = Exchange::start(self.cell.clone(), false, None);
        let mut refuse = |reason, client: &I| {
            exchange.refused(reason);
            exchange.ended(None);
            client.reset();
            Err(ConnectionError::Refused(reason))
        };
        if !self.may_connect(caller) {
            return refuse(Reason::Denied, &client);
        }
        let mut app = match self.http1.connect().await {
            Ok(app) => app,
            Err(error) => {
                tracing::debug!(%error, "app unreachable");
                self.shared.app.reachable_hint(false);
                return refuse(Reason::AppUnreachable, &client);
            }
        };
        exchange.tried();
        if caller.peer.is_some() {
            exchange.secured();
        }
        exchange.answered(
            http::StatusCode::OK,
            &http::HeaderMap::new(),
            Lease::counted(self.http1.clone()),
        );
        let result = tokio::select! {
            (moved, result) = copy::both(&mut client, &mut app) => {
                self.cell.moved(moved.forth, moved.back);
                result.map_err(ConnectionError::from)
            }
            why = caller.watch(&self.shared, &self.port) => {
                exchange.refused(why);
                Err(ConnectionError::Refused(why))
            }
        };
        match result {
            Ok(()) => exchange.ended(None),
            Err(_) => {
                exchange.broken();
                client.reset();
                copy::reset(&app);
            }
        }
        result
    }

    /// Whether the rules allow `caller` a connection of opaque bytes.
    fn may_connect(&self, caller: &Caller) -> bool {
        let admission = self.shared.directory.admission();
        match admission.decide(&caller.asks_opaque(&self.port)) {
            access::Verdict::Allowed { .. } => true,
            access::Verdict::Audited { rule } => {
                self.audited(caller, rule);
                true
            }
            access::Verdict::Denied { .. } | access::Verdict::BadPath => {
                self.warn(caller.client, "a caller was denied");
                false
            }
        }
    }

    /// Serves the streams of a tunnel, one after the other.
    pub(super) fn tunnelled<W: Wire>(
        &self,
        stream: W,
        caller: Caller,
    ) -> Pin<Box<impl Future<Output = Result<(), ConnectionError>> + use<'_, W>>> {
        Box::pin(self.streams(stream, caller))
    }

    async fn streams<W: Wire>(&self, stream: W, caller: Caller) -> Result<(), ConnectionError> {
        let Some(peer) = &caller.peer else {
            return Err(ConnectionError::Refused(Reason::PeerUnverified));
        };
        let hall = Hall {
            journey: self,
            caller: &caller,
            peer,
        };
        tunnel::serve(stream, &hall, &self.shared.drain)
            .await
            .map_err(|broken| ConnectionError::Io(broken.into()))
    }
}

/// Where the streams of one caller come in.
struct Hall<'a> {
    journey: &'a Inbound,
    caller: &'a Caller,
    peer: &'a Peer,
}

impl Hall<'_> {
    /// The names in OPEN lead to the port that the caller has dialled, or nowhere. A port of requests
    /// takes none as mere bytes: rules and fields would be passed by.
    fn names(&self, open: &Open) -> bool {
        let opaque = !self.journey.protocol.is_http();
        opaque && open.service == self.journey.shared.name && open.port == self.journey.port
    }
}

impl Door for Hall<'_> {
    type Stay = Box<Exchange>;
    type App = Screen;

    async fn enter(&self, open: &Open) -> Result<(Screen, Box<Exchange>), Refusal> {
        let journey = self.journey;
        let mut exchange = Exchange::start(journey.cell.clone(), false, None);
        exchange.secured();
        let refused = |mut exchange: Box<Exchange>, reason, refusal| {
            exchange.refused(reason);
            exchange.ended(None);
            Err(refusal)
        };
        if let Err(why) = journey.shared.identity.admits(self.peer) {
            tracing::info!(peer = %self.peer.id, %why, "a stream is refused");
            return refused(exchange, Reason::Revoked, Refusal::Identity);
        }
        if !self.names(open) {
            return refused(exchange, Reason::UnknownPort, Refusal::UnknownPort);
        }
        if !journey.may_connect(self.caller) {
            return refused(exchange, Reason::Denied, Refusal::Denied);
        }
        exchange.tried();
        match journey.http1.connect().await {
            Ok(app) => {
                let lease = Lease::counted(journey.http1.clone());
                exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
                let detects = journey.protocol == Protocol::Auto;
                Ok((Screen::new(Socket::of_app(app), detects), exchange))
            }
            Err(error) => {
                tracing::debug!(%error, "app unreachable");
                journey.shared.app.reachable_hint(false);
                refused(exchange, Reason::AppUnreachable, Refusal::AppUnreachable)
            }
        }
    }

    async fn barred(&self, open: Option<&Open>) {
        let shared = &self.journey.shared;
        match open {
            Some(_) => {
                let why = self.caller.watch(shared, &self.journey.port).await;
                self.journey.cell.reason(why);
            }
            // Between streams nothing is judged but the peer: a rule that denies is told to who asks.
            None => drop(connect::barred(&shared.identity, self.peer).await),
        }
    }

    fn left(&self, mut exchange: Box<Exchange>, moved: Moved, result: Result<(), Broken>) {
        self.journey.cell.moved(moved.received, moved.sent);
        match result {
            Ok(()) => exchange.ended(None),
            Err(Broken::App(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                exchange.refused(Reason::Denied);
                exchange.ended(None);
            }
            // The caller's end broke, or its right did: not the app's fault.
            Err(Broken::Wire(_) | Broken::Lost | Broken::Barred) => drop(exchange),
            Err(_) => exchange.broken(),
        }
    }
}
