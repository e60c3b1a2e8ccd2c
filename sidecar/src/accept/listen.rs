//! Listeners and the one acceptor.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::worker::{Counted, Job, Worker};
use crate::contain::{self, Place, Task};
use crate::drain::Phase;
use crate::health::AppState;
use crate::observe::Gauge;
use crate::shared::Shared;

/// Between attempts to accept without a file descriptor to do it with.
const PAUSE: Duration = Duration::from_millis(50);
/// Before looking again whether a worker has begun with what it was handed.
const BEHIND: Duration = Duration::from_millis(1);

/// One bound socket; `role` is the worker's index of the journey.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The bound socket, non-blocking. Shared, so that it outlives a task that accepts on it.
    pub socket: Arc<TcpListener>,
    /// Which journey its connections take.
    pub role: usize,
    /// Its open connections.
    pub open: Arc<AtomicUsize>,
    /// Until when it accepts.
    pub until: Phase,
    /// Whether it waits for the app to be well once before it accepts.
    pub when_well: bool,
    /// It accepts no more, and has handed over all that the kernel had accepted.
    pub closed: Arc<AtomicBool>,
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

/// Accepts on every listener until the drain reaches its end. A panic costs nothing: the sockets, and
/// the connection in hand, are kept outside the task that is run again.
pub async fn run_acceptor(listeners: &[Listener], workers: Arc<[Worker]>, shared: Arc<Shared>) -> io::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(keep_accepting(listener.clone(), workers.clone(), shared.clone()));
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

async fn keep_accepting(listener: Listener, workers: Arc<[Worker]>, shared: Arc<Shared>) -> io::Result<()> {
    let mut task = Task::new(Place::Accept, shared.stats.clone());
    let mut door = Door {
        listener,
        workers,
        shared,
        in_hand: None,
    };
    let mut ended = Ok(());
    while task.again(async { ended = door.accept().await }).await {}
    ended
}

/// One listener being accepted on.
struct Door {
    listener: Listener,
    workers: Arc<[Worker]>,
    shared: Arc<Shared>,
    /// Accepted and not handed over yet.
    in_hand: Option<(TcpStream, SocketAddr)>,
}

impl Door {
    async fn accept(&mut self) -> io::Result<()> {
        // Left by a panic. Taken out first: if it were the cause, it would not be met again.
        if let Some((stream, client)) = self.in_hand.take() {
            self.hand(stream, client);
        }
        let files = Files::new(self.shared.directory.proxy().limits.file_reserve);
        let mut near = false;
        // A raw accept instead of tokio's: the stream is registered once, on its worker.
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; std's listener owns its descriptor, which is what that is about"
        )]
        let socket = AsyncFd::new(self.listener.socket.clone())?;
        if self.listener.when_well {
            let mut app = self.shared.app.watch();
            tokio::select! {
                // The sender lives in `shared`, so this waits until it is so.
                _ = app.wait_for(AppState::ok) => {}
                () = self.shared.drain.reached(self.listener.until) => {
                    // Never used: who is in its queue is for those who do.
                    self.listener.closed.store(true, Release);
                    return Ok(());
                }
            }
            self.listener.when_well = false;
        }
        loop {
            let mut ready = tokio::select! {
                ready = socket.readable() => ready?,
                () = self.shared.drain.reached(self.listener.until) => break,
            };
            if near && files.scarce(&self.listener.socket) {
                self.shared.stats.add(Gauge::AcceptPaused, 1);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if self.workers.iter().all(Worker::is_behind) {
                // The next ones wait in the kernel's backlog instead of being refused.
                tokio::time::sleep(BEHIND).await;
                continue;
            }
            match ready.try_io(|inner| inner.get_ref().accept()) {
                Err(_would_block) => {}
                Ok(Ok(accepted)) => {
                    near = files.reserved(&accepted.0);
                    self.in_hand = Some(accepted);
                    contain::here(Place::Accept);
                    if let Some((stream, client)) = self.in_hand.take() {
                        self.hand(stream, client);
                    }
                }
                Ok(Err(e)) if exhausted(&e) => {
                    // The backlog stays readable: without a pause this would spin.
                    self.shared.stats.add(Gauge::AcceptPaused, 1);
                    tokio::time::sleep(PAUSE).await;
                }
                // The client gave up before it was accepted (accept(2), "Error handling").
                Ok(Err(e)) => tracing::debug!(error = %e, "a connection ended before it was accepted"),
            }
        }
        // What the kernel has accepted already is served and told to go; closing the listener would reset it.
        while let Ok((stream, client)) = socket.get_ref().accept() {
            self.hand(stream, client);
        }
        self.listener.closed.store(true, Release);
        Ok(())
    }

    /// Gives a connection to the least loaded worker; at the limit it is closed.
    fn hand(&self, stream: TcpStream, client: SocketAddr) {
        let role = self.listener.role;
        let open: usize = self.workers.iter().map(Worker::open).sum();
        let counted = Counted::one_of(&self.listener.open);
        let proxy = self.shared.directory.proxy();
        let full = open >= proxy.limits.max_connections
            || self.listener.open.load(Relaxed) > proxy.limits.max_connections_per_listener;
        let least = self
            .workers
            .iter()
            .min_by_key(|w| (w.is_behind(), w.open()))
            .filter(|_| !full && stream.set_nonblocking(true).is_ok());
        if !least.is_some_and(|w| {
            w.hand(Job {
                stream,
                client,
                role,
                counted,
            })
        }) {
            self.shared.stats.add(Gauge::ConnectionsRefused, 1);
        }
    }
}

/// The file descriptors that clients cannot use up. A new descriptor is the lowest that is free, so its
/// number tells how many are in use, and asking costs no look at all of them.
#[derive(Debug, Clone, Copy)]
struct Files {
    /// Descriptors from here on are kept back.
    below: RawFd,
}

impl Files {
    /// Keeps `reserve` of the process's descriptors back, and a quarter of them at most.
    fn new(reserve: usize) -> Self {
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_or(u64::MAX, |(soft, _)| soft);
        let reserve = (reserve as u64).min(limit / 4);
        Self {
            below: RawFd::try_from(limit - reserve).unwrap_or(RawFd::MAX),
        }
    }

    /// True when the descriptor is one of those kept back.
    fn reserved(self, descriptor: &impl AsRawFd) -> bool {
        descriptor.as_raw_fd() >= self.below
    }

    /// True when the next descriptor would be one of those kept back, or there is none.
    fn scarce(self, any: &TcpListener) -> bool {
        any.try_clone().map_or(true, |probe| self.reserved(&probe))
    }
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM.
fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}
