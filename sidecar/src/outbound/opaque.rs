//! Opaque connections from the app: one upstream connection each.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Outbound;
use super::cluster::Tried;
use crate::connect::Lease;
use crate::exchange::Exchange;
use crate::forward::copy;
use crate::policy::retry::{Failure, Verdict, verdict};
use crate::reason::Reason;
use crate::respond::ConnectionError;

impl Outbound {
    /// Carries the app's own socket; whatever goes wrong reaches the app as a reset.
    pub(super) async fn opaque(self: &Arc<Self>, mut client: TcpStream) -> Result<(), ConnectionError> {
        let carried = self.carry(&mut client).await;
        if carried.is_err() {
            copy::reset(&client);
        }
        carried
    }

    /// Connects a stream to an endpoint and copies until both sides have ended. An endpoint that does
    /// not accept is followed by another: nothing was sent yet.
    ///
    /// # Errors
    /// When no endpoint accepts, or either side breaks off.
    pub async fn carry<I>(self: &Arc<Self>, client: &mut I) -> Result<(), ConnectionError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let mut exchange = Exchange::start(self.cluster.cell.clone(), false, None);
        let (mut upstream, lease) = match self.reach(&mut exchange).await {
            Ok(reached) => reached,
            Err(reason) => {
                exchange.refused(reason);
                exchange.ended(None);
                return Err(ConnectionError::Refused(reason));
            }
        };
        exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
        let (moved, result) = copy::both(client, &mut upstream).await;
        self.cluster.cell.moved(moved.forth, moved.back);
        match result {
            Ok(()) => exchange.ended(None),
            Err(_) => {
                exchange.broken();
                copy::reset(&upstream);
            }
        }
        Ok(result?)
    }

    async fn reach(&self, exchange: &mut Exchange) -> Result<(TcpStream, Lease), Reason> {
        let resolved = self.cluster.resolve().await?;
        let mut tried = Tried::new();
        loop {
            let (index, upstream) = resolved.pick(Instant::now(), &tried).ok_or(Reason::NoEndpoints)?;
            tried.push(index);
            exchange.tried();
            match upstream.connect().await {
                Ok(stream) => return Ok((stream, Lease::counted(upstream.clone()))),
                Err(error) => {
                    upstream.penalize(Instant::now());
                    tracing::debug!(%error, "try failed");
                    if verdict(Failure::NeverSent, tried.len(), resolved.endpoints.len(), true) == Verdict::GiveUp {
                        return Err(error.reason());
                    }
                }
            }
        }
    }
}
