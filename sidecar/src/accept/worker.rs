//! A data worker: one thread, one single-threaded runtime.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::connect;

/// Connections that may wait for a worker that is busy; more are refused.
const QUEUE: usize = 1024;

/// An accepted connection on its way to a worker.
#[derive(Debug)]
pub struct Job {
    /// The socket, non-blocking.
    pub stream: std::net::TcpStream,
    /// The client's address.
    pub client: SocketAddr,
    /// Which journey it takes.
    pub role: usize,
}

/// What a worker does with a connection: starts a task that owns it and the count of it.
pub type Handler = Box<dyn Fn(TcpStream, SocketAddr, usize, Open) + Send>;

/// The acceptor's end of a worker.
#[derive(Debug)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
    open: Arc<AtomicUsize>,
}

/// Counts one open connection until dropped.
#[derive(Debug)]
pub struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Worker {
    /// Connections it has.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
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

/// Starts worker `index`. `make` builds its journeys on the worker's own thread, inside its runtime.
/// `ended` is sent when the thread ends, by panic too: a sidecar without a worker must not stay.
///
/// # Errors
/// When the thread or its runtime cannot start.
pub fn spawn(
    index: usize,
    ended: mpsc::Sender<usize>,
    make: impl FnOnce() -> Handler + Send + 'static,
) -> io::Result<Worker> {
    let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(format!("data-{index}"))
        .spawn(move || {
            let _tell = Ended(ended, index);
            runtime.block_on(async move {
                let handle = make();
                while let Some(job) = queue.recv().await {
                    let open = Open(count.clone());
                    match TcpStream::from_std(job.stream) {
                        Ok(stream) => {
                            connect::prepare(&stream);
                            handle(stream, job.client, job.role, open);
                        }
                        Err(error) => tracing::warn!(%error, "a connection could not be registered"),
                    }
                }
            });
        })?;
    Ok(Worker { jobs, open })
}

struct Ended(mpsc::Sender<usize>, usize);

impl Drop for Ended {
    fn drop(&mut self) {
        // Full or closed: somebody else has told already.
        let _told = self.0.try_send(self.1);
    }
}
