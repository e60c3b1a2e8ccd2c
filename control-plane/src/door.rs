//! Who comes in: connections by TLS and by the unix socket, who each one is, and what each may ask.
//!
//! - [`tls`]: TLS 1.3 and what a client's certificate proves.
//! - [`follow`]: the same when the authority changes something.
//! - [`socket`]: the unix socket for people of the own machine.
//! - [`may`]: the one table of who may ask what; everything else is refused.
//!
//! A connection is somebody by its client certificate or by the socket it came through, and stays it: one whose
//! certificate expires or is revoked is closed. It knows neither resources nor registrations.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::identity::Asker;
use crate::stop::Stopper;

pub mod follow;
pub mod may;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod tls;

use socket::Socket;
use tls::{Leaf, Tls};

/// Where connections come from.
#[derive(Debug)]
pub struct Doors {
    /// For workloads, and for people of other machines.
    pub tcp: TcpListener,
    /// How the TCP port speaks.
    pub secure: Secure,
    /// For people of this machine.
    pub socket: Option<Socket>,
}

/// How the TCP port speaks TLS.
#[derive(Clone)]
pub struct Secure {
    /// As of now.
    pub tls: watch::Receiver<Arc<Tls>>,
    /// Told once a connection which leaf was shown, by its serial. May block.
    pub shown: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secure").finish_non_exhaustive()
    }
}

/// How a request came in; in the extensions of each.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// What the connection proved.
    pub asker: Asker,
    /// The other end, for logs.
    pub peer: Arc<str>,
}

/// One sidecar has one or two; beyond this something is wrong with whoever connects.
const MAX_CONNECTIONS: usize = 20_000;
/// Connections that showed no certificate: joins and the command line, which are short.
const MAX_NOBODIES: usize = 500;
/// How long such a connection may last.
const NOBODY: Duration = Duration::from_secs(300);
/// Handshakes at a time; each holds a few buffers, and may wait for its client until its deadline.
const MAX_HANDSHAKES: usize = 1024;
/// From the first byte to the end of the handshake, and for the wait for a place in it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Open connections get this long to end after the shutdown signal.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// h2's budget for small frames grows with the connection window, and hyper offers no other knob.
const CONNECTION_WINDOW: u32 = 8 << 20;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The clock may jump, so a certificate's end is looked for at least this often.
const LOOK: Duration = Duration::from_secs(5);

/// What all connections share.
struct House {
    http: auto::Builder<TokioExecutor>,
    app: axum::Router,
    handshakes: Semaphore,
    nobodies: Semaphore,
}

/// Takes connections until `shutdown` is ready, then ends those that are open.
pub async fn serve(doors: Doors, app: axum::Router, shutdown: impl Future<Output = ()>, stopper: Stopper) {
    let house = Arc::new(House {
        http: http(),
        app,
        handshakes: Semaphore::new(MAX_HANDSHAKES),
        nobodies: Semaphore::new(MAX_NOBODIES),
    });
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let room = connections.len() < MAX_CONNECTIONS;
        // Every arm is cancel safe: a connection is taken by the arm that is ready, or not at all.
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = doors.tcp.accept(), if room => {
                let Some((stream, from)) = taken(accepted).await else { continue };
                connections.spawn(tcp(Arc::clone(&house), stream, from, doors.secure.clone(), graceful.watcher()));
            }
            accepted = from_socket(doors.socket.as_ref()), if room => {
                let Some(stream) = taken(accepted).await else { continue };
                connections.spawn(unix(Arc::clone(&house), stream, graceful.watcher()));
            }
        }
    }
    drop(doors);
    stopper.stop();
    if tokio::time::timeout(SHUTDOWN, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the end");
    }
    connections.shutdown().await;
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    http.http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    http
}

async fn from_socket(socket: Option<&Socket>) -> std::io::Result<UnixStream> {
    match socket {
        Some(socket) => socket.accept().await,
        None => std::future::pending().await,
    }
}

async fn taken<T>(accepted: std::io::Result<T>) -> Option<T> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            // Out of descriptors, most likely: others have to close first, so do not spin.
            tracing::warn!(%error, "cannot accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn unix(house: Arc<House>, stream: UnixStream, watcher: Watcher) {
    let asker = match socket::peer(&stream) {
        Ok(()) => Asker::Operator,
        Err(refused) => {
            tracing::warn!("refused at the unix socket: {refused}");
            return;
        }
    };
    let arrival = Arrival {
        asker,
        peer: "the unix socket".into(),
    };
    house.converse(stream, arrival, watcher, std::future::pending()).await;
}

async fn tcp(
    house: Arc<House>,
    stream: TcpStream,
    from: SocketAddr,
    Secure { mut tls, shown }: Secure,
    watcher: Watcher,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let peer: Arc<str> = from.to_string().into();
    let now = Arc::clone(&tls.borrow_and_update());
    let handshake = async {
        let _place = house.handshakes.acquire().await;
        let (config, notes) = now.accept();
        let accepted = TlsAcceptor::from(config).accept(stream).await;
        accepted.map_err(|error| now.explain(&error, &notes))
    };
    let stream = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(refused)) => return tracing::warn!(%peer, "no TLS connection: {refused}"),
        Err(_) => return tracing::debug!(%peer, "no TLS connection: its handshake took too long"),
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match leaf.map(|leaf| tls::read(leaf)) {
        None => {
            let Ok(_place) = house.nobodies.try_acquire() else {
                return tracing::warn!(%peer, "too many connections without a certificate");
            };
            let asker = Asker::Nobody;
            let arrival = Arrival { asker, peer };
            house
                .converse(stream, arrival, watcher, tokio::time::sleep(NOBODY))
                .await;
        }
        // The verifier has read it before, so this is unheard of.
        Some(Err(refused)) => tracing::warn!(%peer, "no TLS connection: {refused}"),
        Some(Ok(leaf)) => {
            let asker = Asker::Workload {
                id: leaf.id.clone(),
                serial: leaf.serial.clone(),
            };
            let arrival = Arrival { asker, peer };
            let serial = leaf.serial.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || shown(&serial)).await {
                tracing::error!(%error, "a shown certificate is not put down");
            }
            house.converse(stream, arrival, watcher, no_longer(tls, leaf)).await;
        }
    }
}

/// Ends when `leaf` has expired or is no longer let in. Cancel safe.
async fn no_longer(mut tls: watch::Receiver<Arc<Tls>>, leaf: Leaf) {
    loop {
        let refused = tls.borrow_and_update().admits(&leaf, SystemTime::now());
        if let Err(why) = refused {
            return tracing::info!("a connection of {} is closed: {why}", leaf.id);
        }
        tokio::select! {
            changed = tls.changed() => if changed.is_err() {
                // The authority ends with the control plane only.
                return;
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl House {
    /// Serves HTTP on `io` until it ends, the control plane stops, or `end` is ready.
    async fn converse<I>(&self, io: I, arrival: Arrival, watcher: Watcher, end: impl Future<Output = ()>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let app = TowerToHyperService::new(self.app.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(arrival.clone());
            app.call(request)
        });
        let connection = self.http.serve_connection(TokioIo::new(io), service).into_owned();
        tokio::select! {
            ended = watcher.watch(connection) => if let Err(error) = ended {
                tracing::debug!(error, "connection ended");
            },
            // What is open on it ends with it.
            () = end => {}
        }
    }
}
