//! Opaque connections from the app: each is one stream of a tunnel to another sidecar, or a plain
//! connection to an endpoint that is not protected.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use outrigger_proto::tunnel::{Open, Refusal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Outbound;
use super::cluster::{Side, Tried};
use crate::balance::Resort;
use crate::connect::{self, Lease, Security, Unconnected, Upstream};
use crate::exchange::Exchange;
use crate::forward::copy;
use crate::policy::retry::{Failure, Verdict, verdict};
use crate::reason::Reason;
use crate::respond::ConnectionError;
use crate::tunnel::{App, Broken, Kept, Socket};

/// Kept connections that may turn out to be closed before one is dialled: as many as are kept, and one more.
const STALE: usize = 3;

/// How one try ended.
enum Try {
    /// Both ends have ended.
    Done,
    /// No app has a byte of it: another endpoint may have it.
    Untouched(Reason),
    /// It may have been processed, or must not be tried again.
    Over(Broken),
    /// A rule, or the like: other endpoints would say the same.
    Refused(Reason),
}

impl Outbound {
    /// Carries the app's own socket; whatever goes wrong reaches the app as a reset.
    pub(super) async fn opaque(self: &Arc<Self>, client: TcpStream) -> Result<(), ConnectionError> {
        self.carry(Socket::of_app(client)).await
    }

    /// Carries a stream to an endpoint until both sides have ended. An endpoint that does not accept is
    /// followed by another: nothing reached an app yet.
    ///
    /// # Errors
    /// When no endpoint accepts, or either side breaks off: the client was reset.
    pub async fn carry<A: App>(self: &Arc<Self>, mut client: A) -> Result<(), ConnectionError> {
        // Whatever happens from here on, short of a clean end, resets it.
        if let Some(socket) = client.socket() {
            copy::reset(socket.get_ref());
        }
        let mut exchange = Exchange::start(self.cluster.cell.clone(), false, None);
        let mut resolved = match self.cluster.resolve().await {
            Ok(resolved) => resolved,
            Err(reason) => return Err(refused(exchange, reason)),
        };
        if let Some(traffic) = &resolved.traffic {
            let (delay, refused_on_purpose) = traffic.harms_opaque(SystemTime::now(), |n| fastrand::u32(..n));
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            if refused_on_purpose {
                return Err(refused(exchange, Reason::Fault));
            }
        }
        let aim = resolved.aim_opaque(&self.cluster.cell);
        let (mut tried, mut kept) = (Tried::new(), Kept::default());
        loop {
            let picked = resolved.pick(Instant::now(), &aim, &tried, Resort::Ejected);
            let Some((index, target)) = picked else {
                return Err(refused(exchange, Reason::NoEndpoints));
            };
            let upstream = &target.upstream;
            tried.push(index);
            exchange.tried();
            let lease = Lease::counted(upstream.clone());
            let ended = match upstream.route.security {
                Security::Plain => match upstream.connect().await {
                    Ok(stream) => {
                        exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
                        return self.plain(client, stream, &kept, exchange).await;
                    }
                    Err(error) => untouched(&error),
                },
                Security::Mutual(_) | Security::Impossible(_) => {
                    Box::pin(self.tunnelled(&mut client, upstream, &target.side, &mut kept)).await
                }
            };
            match ended {
                Try::Done => {
                    exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
                    exchange.secured();
                    exchange.ended(None);
                    return Ok(());
                }
                Try::Refused(reason) => return Err(refused(exchange, reason)),
                Try::Over(broken) => {
                    // First of all: this resets it.
                    drop(client);
                    exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
                    exchange.secured();
                    match broken {
                        // The client gave up: nobody's fault.
                        Broken::App(_) => drop(exchange),
                        Broken::Barred => exchange.refused(Reason::Revoked),
                        Broken::Late(_) => exchange.refused(Reason::Deadline),
                        Broken::Protocol(_) => exchange.refused(Reason::UpstreamProtocol),
                        _ => exchange.broken(),
                    }
                    return Err(std::io::Error::from(broken).into());
                }
                Try::Untouched(reason) => {
                    upstream.penalize(Instant::now());
                    if let Some(newer) = self.cluster.newer(&resolved, &mut tried) {
                        resolved = newer;
                    }
                    if verdict(Failure::NeverSent, tried.len(), resolved.choices(&aim), true) == Verdict::GiveUp {
                        return Err(refused(exchange, reason));
                    }
                }
            }
        }
    }

    /// One try through a tunnel to `upstream`.
    async fn tunnelled(&self, client: &mut impl App, upstream: &Arc<Upstream>, side: &Side, kept: &mut Kept) -> Try {
        let source = client.socket().and_then(|socket| socket.get_ref().peer_addr().ok());
        for _ in 0..=STALE {
            let (mut connection, fresh) = match upstream.tunnel().await {
                Ok(connection) => connection,
                Err(error) => return untouched(&error),
            };
            let open = Open {
                number: 0,
                service: side.service.clone(),
                port: side.port.clone(),
                traceparent: None,
                source,
            };
            let peer = connection.peer().cloned();
            let barred = pin!(async {
                match &peer {
                    Some(peer) => drop(connect::barred(&self.shared.identity, peer).await),
                    None => std::future::pending().await,
                }
            });
            let mut ending = None;
            let (moved, result) = connection
                .carry(client, open, kept, barred, || ending = Some(upstream.tunnel_ending()))
                .await;
            self.cluster.cell.moved(moved.sent, moved.received);
            let Err(broken) = result else {
                upstream.put_back_tunnel(connection, ending);
                return Try::Done;
            };
            tracing::debug!(service = self.cluster.name(), endpoint = %upstream.route.address, %broken, "a stream broke off");
            match broken {
                Broken::Unprocessed if !fresh => connection.part(&broken).await,
                Broken::Unprocessed => {
                    connection.part(&broken).await;
                    return Try::Untouched(Reason::ConnectFailed);
                }
                Broken::Unwelcome(_) => {
                    connection.part(&broken).await;
                    return Try::Untouched(Reason::PeerUnverified);
                }
                Broken::Refused(refusal) => {
                    connection.part(&broken).await;
                    return match refusal.another_may_accept() {
                        true => Try::Untouched(reason(refusal)),
                        false => Try::Refused(reason(refusal)),
                    };
                }
                broken => {
                    // The peer has its time to hear of it, and the app does not wait for that.
                    tokio::spawn(async move { connection.abort().await });
                    return Try::Over(broken);
                }
            }
        }
        Try::Untouched(Reason::ConnectFailed)
    }

    /// Copies until both sides have ended, unprotected.
    async fn plain<A: App>(
        &self,
        mut client: A,
        mut upstream: TcpStream,
        kept: &Kept,
        mut exchange: Box<Exchange>,
    ) -> Result<(), ConnectionError> {
        // Until it is over, closing it for whatever reason is a reset.
        copy::reset(&upstream);
        // What was read for an endpoint that then refused it.
        let (moved, result) = match upstream.write_all(kept.bytes()).await {
            Ok(()) => copy::both(&mut client, &mut upstream).await,
            Err(error) => (copy::Moved::default(), Err(error)),
        };
        self.cluster.cell.moved(moved.forth, moved.back);
        match result {
            Ok(()) => {
                copy::release(&upstream);
                if let Some(socket) = client.socket() {
                    copy::release(socket.get_ref());
                }
                exchange.ended(None);
            }
            Err(_) => exchange.broken(),
        }
        Ok(result?)
    }
}

fn refused(mut exchange: Box<Exchange>, reason: Reason) -> ConnectionError {
    exchange.refused(reason);
    exchange.ended(None);
    ConnectionError::Refused(reason)
}

fn untouched(error: &Unconnected) -> Try {
    tracing::debug!(%error, "try failed");
    Try::Untouched(error.reason())
}

/// What the caller is told of the callee's refusal.
fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Denied => Reason::Denied,
        Refusal::UnknownPort => Reason::UnknownPort,
        Refusal::AppUnreachable => Reason::AppUnreachable,
        Refusal::Identity => Reason::Revoked,
        Refusal::Unsupported => Reason::UpstreamProtocol,
        Refusal::Overloaded => Reason::Overloaded,
        Refusal::Other(_) => Reason::ConnectFailed,
    }
}
