//! Listeners and the one acceptor.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::worker::{Job, Worker};
use crate::drain::Phase;
use crate::observe::Gauge;
use crate::shared::Shared;

/// One bound socket; `role` is the worker's index of the journey.
#[derive(Debug)]
pub struct Listener {
    /// The bound socket, non-blocking.
    pub socket: TcpListener,
    /// Which journey its connections take.
    pub role: usize,
}

/// Binds `address`.
///
/// # Errors
/// With the address in the text, and who holds a port in use as far as that is known.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = (|| {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok::<_, io::Error>(TcpListener::from(socket))
    })();
    bound.map_err(|e| {
        let hint = if e.kind() == io::ErrorKind::AddrInUse {
            "; another process listens there"
        } else {
            ""
        };
        io::Error::new(e.kind(), format!("cannot listen on {address}: {e}{hint}"))
    })
}

/// Accepts on every listener until the drain reaches its end.
pub async fn run_acceptor(listeners: Vec<Listener>, workers: Arc<[Worker]>, shared: Arc<Shared>) -> io::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept(listener, workers.clone(), shared.clone()));
    }
    tokio::select! {
        () = shared.drain.reached(Phase::Ended) => Ok(()),
        failed = first_failure(&mut tasks) => Err(failed),
    }
}

/// Waits until a listener fails; one that was closed for the drain has not failed.
async fn first_failure(tasks: &mut tokio::task::JoinSet<io::Result<()>>) -> io::Error {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(panic) => return io::Error::other(panic),
        }
    }
    std::future::pending().await
}

async fn accept(listener: Listener, workers: Arc<[Worker]>, shared: Arc<Shared>) -> io::Result<()> {
    let role = listener.role;
    // A raw accept instead of tokio's: the stream is registered once, on its worker.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; std's listener owns its descriptor, which is what that is about"
    )]
    let socket = AsyncFd::new(listener.socket)?;
    let hand = |stream: std::net::TcpStream, client: SocketAddr| {
        let open: usize = workers.iter().map(Worker::open).sum();
        let full = open >= shared.directory.proxy().limits.max_connections;
        let least = workers
            .iter()
            .min_by_key(|w| w.open())
            .filter(|_| !full && stream.set_nonblocking(true).is_ok());
        if !least.is_some_and(|w| w.hand(Job { stream, client, role })) {
            shared.stats.add(Gauge::ConnectionsRefused, 1);
        }
    };
    loop {
        let mut ready = tokio::select! {
            ready = socket.readable() => ready?,
            () = shared.drain.reached(Phase::Closing) => break,
        };
        match ready.try_io(|inner| inner.get_ref().accept()) {
            Err(_would_block) => {}
            Ok(Ok((stream, client))) => hand(stream, client),
            Ok(Err(e)) if exhausted(&e) => {
                // The backlog stays readable: without a pause this would spin.
                shared.stats.add(Gauge::AcceptPaused, 1);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // The client gave up before it was accepted (accept(2), "Error handling").
            Ok(Err(e)) => tracing::debug!(error = %e, "a connection ended before it was accepted"),
        }
    }
    // What the kernel has accepted already is served and told to go; closing the listener would reset it.
    while let Ok((stream, client)) = socket.get_ref().accept() {
        hand(stream, client);
    }
    Ok(())
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM.
fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}
