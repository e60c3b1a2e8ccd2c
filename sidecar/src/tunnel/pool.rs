//! Connections between two streams, one pool for each endpoint and worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use outrigger_proto::tunnel::Limits;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::dialler::Connection;
use super::link::Wire;
use super::socket::Socket;
use crate::detect::Prefixed;
use crate::identify::TlsStream;

/// Idle connections kept for an endpoint and worker.
const KEEP: usize = 2;
/// Idle connections kept in a sidecar.
const KEEP_IN_ALL: usize = 64;
/// Connections of one pool whose last stream is over here and not yet there.
const MOST_SETTLING: usize = 16;
/// How long a connection is idle before the peer is asked whether it is still there.
const ASK_AFTER: Duration = Duration::from_secs(10);

/// Counts the idle connections of one sidecar, over all pools and workers.
#[derive(Debug, Default)]
pub struct Idle(AtomicUsize);

/// The right to be one of them.
#[derive(Debug)]
struct Permit(Arc<Idle>);

impl Idle {
    fn permit(self: &Arc<Self>) -> Option<Permit> {
        let more = |n| (n < KEEP_IN_ALL).then_some(n + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Permit(self.clone()))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Connections to one endpoint, of one worker, between two streams. Which endpoint and which peer that
/// is is known to the owner; a connection of an older own identity is never given out.
#[derive(Debug)]
pub struct Pool<W = TlsStream<Prefixed<Socket>>> {
    kept: Mutex<Vec<Resting<W>>>,
    settling: AtomicUsize,
    idle: Arc<Idle>,
}

/// One connection that settles; counted until dropped, by a panic too.
struct Settling<W>(Arc<Pool<W>>);

impl<W> Drop for Settling<W> {
    fn drop(&mut self) {
        self.0.settling.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug)]
struct Resting<W> {
    connection: Connection<W>,
    since: Instant,
    asked: Instant,
    _permit: Permit,
}

impl<W: Wire + 'static> Pool<W> {
    /// An empty pool; nothing is ever dialled by it.
    #[must_use]
    pub fn new(idle: Arc<Idle>) -> Self {
        Self {
            kept: Mutex::new(Vec::new()),
            settling: AtomicUsize::new(0),
            idle,
        }
    }

    /// A connection of the own identity's `generation` that can carry a stream now.
    #[must_use]
    pub fn take(&self, generation: u64) -> Option<Connection<W>> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        let mut asked = Vec::new();
        let mut found = None;
        while let Some(mut resting) = kept.pop() {
            if !resting.fresh(generation, now) {
                continue;
            }
            if resting.connection.ready() {
                found = Some(resting.connection);
                break;
            }
            // It was asked whether it is there, and answers in a moment.
            if resting.connection.asked() {
                asked.push(resting);
            }
        }
        kept.extend(asked);
        found
    }

    /// Takes back a connection whose stream has ended well. If the peer has not finished with the
    /// stream, that is waited for.
    pub fn put_back(self: &Arc<Self>, connection: Connection<W>) {
        if !connection.settling() {
            self.keep(connection);
            return;
        }
        if self.settling.fetch_add(1, Relaxed) >= MOST_SETTLING {
            self.settling.fetch_sub(1, Relaxed);
            return;
        }
        let counted = Settling(self.clone());
        // Ends by itself: it has a deadline, and there are at most so many.
        tokio::spawn(async move {
            let mut connection = connection;
            let settled = tokio::time::timeout(Limits::DIALLER.idle, connection.settle()).await;
            if matches!(settled, Ok(Ok(()))) {
                counted.0.keep(connection);
            }
        });
    }

    fn keep(&self, mut connection: Connection<W>) {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.len() >= KEEP || connection.expires <= now || !connection.ready() {
            return;
        }
        if let Some(permit) = self.idle.permit() {
            kept.push(Resting {
                connection,
                since: now,
                asked: now,
                _permit: permit,
            });
        }
    }

    /// Closes what was idle for too long, is too old, was made with an older identity, or whose peer is
    /// gone; asks the others now and then. To be called every few seconds.
    pub fn prune(&self, generation: u64) {
        let now = Instant::now();
        self.kept.lock().retain_mut(|resting| {
            if !resting.fresh(generation, now) {
                return false;
            }
            if resting.connection.asked() && now.duration_since(resting.asked) >= Limits::DIALLER.answer {
                return false;
            }
            if !resting.connection.ready() {
                return resting.connection.asked();
            }
            if now.duration_since(resting.asked) < ASK_AFTER {
                return true;
            }
            resting.asked = now;
            resting.connection.ask()
        });
    }

    /// How many are idle.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.lock().len()
    }

    /// True when none is idle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<W> Resting<W> {
    fn fresh(&self, generation: u64, now: Instant) -> bool {
        self.connection.generation == generation
            && now < self.connection.expires
            && now.duration_since(self.since) < Limits::DIALLER.idle
    }
}
