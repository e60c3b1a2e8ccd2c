//! A data worker: one thread, one single-threaded runtime.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::connect;
use crate::contain::{self, Place, Task, armed};

/// Connections that may wait for a worker that is busy; more are refused.
const QUEUE: usize = 1024;

/// Before a worker that got no event loop asks for one again.
const AGAIN: Duration = Duration::from_millis(50);

/// An accepted connection on its way to a worker.
#[derive(Debug)]
pub struct Job {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// The client's address.
    pub client: SocketAddr,
    /// Which journey it takes.
    pub role: usize,
    /// The connections of its listener, itself among them.
    pub counted: Counted,
}

/// What a worker does with a connection: starts a task that owns it and the count of it.
pub type Handler = Box<dyn Fn(TcpStream, SocketAddr, usize, Open) + Send>;

/// The acceptor's end of a worker.
#[derive(Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
    open: Arc<AtomicUsize>,
}

/// Counts one connection of something until dropped.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counts one more.
    #[must_use]
    pub fn one_of(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Relaxed);
        Self(all.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One open connection, counted until dropped: of its worker and of its listener.
#[derive(Debug)]
pub struct Open {
    _worker: Counted,
    _listener: Counted,
}

impl Worker {
    /// Connections it has.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// True when as many connections wait for it as may.
    pub(super) fn is_behind(&self) -> bool {
        self.jobs.capacity() == 0
    }

    /// Hands over a connection; false when the worker's queue is full.
    pub(super) fn hand(&self, job: Job) -> bool {
        self.open.fetch_add(1, Relaxed);
        let taken = self.jobs.try_send(job).is_ok();
        if !taken {
            self.open.fetch_sub(1, Relaxed);
        }
        taken
    }
}

/// Starts worker `index`. `make` builds its journeys on the worker's own thread, inside its runtime; again
/// after a panic outside the tasks, which costs the connections that the worker had. The queue stays:
/// what was handed over and not begun is served by the successor.
///
/// # Errors
/// When the thread or its first runtime cannot start.
pub fn spawn(index: usize, mut life: Task, make: impl Fn() -> Handler + Send + 'static) -> io::Result<Worker> {
    let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let mut first = Some(runtime()?);
    std::thread::Builder::new()
        .name(format!("data-{index}"))
        .spawn(move || {
            loop {
                let runtime = match first.take().map_or_else(runtime, Ok) {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // For lack of file descriptors, most likely: they come back.
                        tracing::error!(%error, "a data worker has no event loop; trying again");
                        std::thread::park_timeout(AGAIN);
                        continue;
                    }
                };
                let again = life.thread(|| runtime.block_on(armed(Place::Worker, work(&mut queue, &count, &make))));
                // Tasks that are dropped with it may panic too.
                drop(contain::step(|| drop(runtime)));
                if !again {
                    break;
                }
            }
        })?;
    Ok(Worker { jobs, open })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn work(queue: &mut mpsc::Receiver<Job>, count: &Arc<AtomicUsize>, make: &impl Fn() -> Handler) {
    let handle = make();
    while let Some(job) = queue.recv().await {
        // Counted when it was handed over.
        let open = Open {
            _worker: Counted(count.clone()),
            _listener: job.counted,
        };
        match TcpStream::from_std(job.stream) {
            Ok(stream) => {
                connect::prepare(&stream);
                handle(stream, job.client, job.role, open);
            }
            Err(error) => tracing::warn!(%error, "a connection could not be registered"),
        }
    }
}
