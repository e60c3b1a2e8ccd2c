//! Opaque connections from the app: each is one stream of a tunnel to another sidecar, or a plain
//! connection to an endpoint that is not protected.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_proto::tunnel::{Open, Refusal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Outbound;
use super::cluster::{Side, Tried};
use super::tries::enter::Entry;
use crate::balance::Resort;
use crate::connect::{self, Lease, Security, Unconnected, Upstream};
use crate::exchange::{Exchange, Line};
use crate::forward::copy;
use crate::observe::Direction;
use crate::policy::retry::{Failure, Outcome, Verdict, verdict};
use crate::reason::Reason;
use crate::respond::ConnectionError;
use crate::tunnel::{App, Broken, Kept, Socket, Step};

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
        let source = client.socket().and_then(|socket| socket.get_ref().peer_addr().ok());
        let mut exchange = Exchange::start(self.cluster.cell.clone(), false, self.opaque_line(source));
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
        // Of the policy the whole connection is under: a newer one holds for the next.
        let service = resolved.service.clone();
        let entry = Entry {
            aim: &aim,
            policy: &service.policy,
            opaque: true,
        };
        loop {
            // Boxed: over before the stream begins, which is to be no larger than its waiting.
            let entered = Box::pin(self.enter(&mut resolved, entry, Instant::now(), &mut tried, Resort::Ejected));
            let (index, account) = match entered.await {
                Ok(entered) => entered,
                Err(problem) => return Err(refused(exchange, problem.reason)),
            };
            let Some(target) = resolved.endpoints.get(index) else {
                return Err(refused(exchange, Reason::NoEndpoints));
            };
            let upstream = &target.upstream;
            tried.push(index);
            exchange.accounted(account);
            exchange.tried();
            let lease = Lease::counted(upstream.clone());
            let ended = match upstream.route.security {
                Security::Plain => match upstream.connect().await {
                    Ok(stream) => {
                        exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
                        let silent = target.endpoint.meshed.then_some(upstream.route.connect_timeout);
                        return self.plain(client, stream, &kept, silent, exchange).await;
                    }
                    Err(error) => untouched(&error),
                },
                Security::Mutual(_) | Security::Impossible(_) => {
                    Box::pin(self.tunnelled(&mut client, source, upstream, &target.side, &mut kept, &mut exchange))
                        .await
                }
            };
            match ended {
                Try::Done => {
                    exchange.answered(http::StatusCode::OK, &http::HeaderMap::new(), lease);
                    exchange.secured();
                    exchange.ended(None);
                    return Ok(());
                }
                Try::Refused(reason) => {
                    // A rule or the configuration: nothing that tells whether the endpoint is well.
                    exchange.unaccounted();
                    return Err(refused(exchange, reason));
                }
                Try::Over(broken) => {
                    // First of all: this resets it.
                    drop(client);
                    let ours = matches!(broken, Broken::App(_) | Broken::Barred);
                    if let Some(account) = exchange.account().filter(|_| !ours) {
                        // No more than what came before ACCEPT counts: it was told then.
                        account.settle(Instant::now(), Outcome::Connect);
                    }
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
                    let at = Instant::now();
                    upstream.penalize(at);
                    if let Some(newer) = self.cluster.newer(&resolved, &mut tried) {
                        resolved = newer;
                    }
                    let over =
                        verdict(Failure::NeverSent, tried.len(), resolved.choices(&aim), true) == Verdict::GiveUp;
                    if let Some(account) = exchange.account() {
                        // Load is no failure.
                        account.unsent(at, reason != Reason::Overloaded, over);
                    }
                    exchange.unaccounted();
                    if over {
                        return Err(refused(exchange, reason));
                    }
                }
            }
        }
    }

    /// One try through a tunnel to `upstream`.
    async fn tunnelled(
        &self,
        client: &mut impl App,
        source: Option<SocketAddr>,
        upstream: &Arc<Upstream>,
        side: &Side,
        kept: &mut Kept,
        exchange: &mut Exchange,
    ) -> Try {
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
                .carry(client, open, kept, barred, |step| match step {
                    Step::Accepted => accepted(exchange),
                    Step::Ending => ending = Some(upstream.tunnel_ending()),
                })
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

    /// Copies until both sides have ended, unprotected. A sidecar has no word here for an app that it cannot reach: it
    /// accepts and then resets. So a reset within `silent` of which not one byte came before stands for that word.
    async fn plain<A: App>(
        &self,
        mut client: A,
        mut upstream: TcpStream,
        kept: &Kept,
        silent: Option<Duration>,
        mut exchange: Box<Exchange>,
    ) -> Result<(), ConnectionError> {
        // Until it is over, closing it for whatever reason is a reset.
        copy::reset(&upstream);
        // What was read for an endpoint that then refused it.
        let mut judged = silent;
        if judged.is_none() {
            accepted(&mut exchange);
        } else if let Some(account) = exchange.account() {
            account.answered(Instant::now());
        }
        let (moved, result) = {
            let copied = async {
                match upstream.write_all(kept.bytes()).await {
                    Ok(()) => copy::both(&mut client, &mut upstream).await,
                    Err(error) => (copy::Moved::default(), Err(error)),
                }
            };
            let mut copied = std::pin::pin!(copied);
            let early = match judged {
                Some(silent) => tokio::time::timeout(silent, copied.as_mut()).await.ok(),
                None => None,
            };
            match early {
                Some(done) => done,
                None => {
                    judged = None;
                    accepted(&mut exchange);
                    copied.await
                }
            }
        };
        // A socket that was reset has no peer any more: otherwise it was the client that broke off.
        match judged.is_some() && result.is_err() && moved.back == 0 && upstream.peer_addr().is_err() {
            true => {
                if let Some(account) = exchange.account() {
                    account.settle(Instant::now(), Outcome::Connect);
                }
            }
            false => accepted(&mut exchange),
        }
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

    fn opaque_line(&self, client: Option<SocketAddr>) -> Option<Box<Line>> {
        let log = self.log.as_ref().filter(|_| self.shared.logs_requests());
        log.map(|log| {
            Box::new(Line {
                log: log.clone(),
                direction: Direction::Outbound,
                service: self.cluster.name().into(),
                client,
                method: "TCP".to_owned(),
                path: String::new(),
                upstream: None,
                caller: None,
                rule: None,
                route: None,
            })
        })
    }
}

/// From here on what becomes of the stream is between the apps.
fn accepted(exchange: &mut Exchange) {
    if let Some(account) = exchange.account() {
        account.accepted(Instant::now());
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
