//! Opaque connections to the app: one connection of its own each.

use std::sync::Arc;

use outrigger_proto::access;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Inbound;
use super::caller::Caller;
use crate::connect::Lease;
use crate::detect::Prefixed;
use crate::exchange::Exchange;
use crate::forward::copy;
use crate::identify::TlsStream;
use crate::reason::Reason;
use crate::respond::ConnectionError;

/// A connection whose end can be made a reset.
pub(super) trait Resettable {
    /// Makes the close a reset (RST), so that the peer never takes it for a clean end.
    fn reset(&self);
}

impl Resettable for Prefixed<TcpStream> {
    fn reset(&self) {
        copy::reset(self.get_ref());
    }
}

impl<S: Resettable> Resettable for TlsStream<S> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

impl Inbound {
    /// Carries opaque bytes between `caller` and the app while the rules allow it.
    pub(super) async fn opaque<I>(&self, mut client: I, caller: &Caller) -> Result<(), ConnectionError>
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
            why = caller.watch(&self.shared, &self.port, true) => {
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

    /// Serves a tunnel of opaque connections.
    pub(super) async fn tunnelled(
        self: &Arc<Self>,
        stream: TlsStream<Prefixed<TcpStream>>,
        caller: Caller,
    ) -> Result<(), ConnectionError> {
        drop((stream, caller));
        Err(ConnectionError::Refused(Reason::UnknownPort))
    }
}
