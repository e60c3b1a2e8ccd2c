//! Connections between two streams, one pool for each endpoint and worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use outrigger_proto::tunnel::Limits;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dialler::Connection;
use super::link::Wire;
use super::socket::Socket;
use crate::detect::Prefixed;
use crate::identify::TlsStream;

#[cfg(test)]
mod tests;

/// Idle connections kept for an endpoint and worker, apart from those that are between two streams: see [`TURN`].
const KEEP: usize = 2;
/// Idle connections kept in a sidecar.
const KEEP_IN_ALL: usize = 64;
/// Connections of one pool whose last stream is over here and not yet there.
const MOST_SETTLING: usize = 16;
/// How long streams and connections wait for each other, about what a handshake takes between two busy machines.
/// An app that closes a connection and opens the next finds that the first has not ended at the other side yet:
/// a new stream waits so long for the connection of one that is ending, and a connection beyond [`KEEP`] waits so
/// long for a new stream.
const TURN: Duration = Duration::from_millis(20);
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
    inner: Mutex<Inner<W>>,
    settling: AtomicUsize,
    idle: Arc<Idle>,
}

#[derive(Debug)]
struct Inner<W> {
    kept: Vec<Resting<W>>,
    /// When the streams began to end that have not yet; in order, one for each [`Ending`].
    ending: VecDeque<Instant>,
    /// New streams that wait for a connection of those, the first one first; never more than those.
    waiting: VecDeque<oneshot::Sender<Connection<W>>>,
    /// A task sees to it that no more than [`KEEP`] are kept.
    trimming: bool,
}

/// A stream of which one app has ended its direction: its connection is about to be free.
#[derive(Debug)]
pub struct Ending<W: Wire + 'static = TlsStream<Prefixed<Socket>>> {
    pool: Arc<Pool<W>>,
    since: Instant,
}

impl<W: Wire + 'static> Drop for Ending<W> {
    fn drop(&mut self) {
        self.pool.inner.lock().ended(self.since);
    }
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
        let inner = Inner {
            kept: Vec::new(),
            ending: VecDeque::new(),
            waiting: VecDeque::new(),
            trimming: false,
        };
        Self {
            inner: Mutex::new(inner),
            settling: AtomicUsize::new(0),
            idle,
        }
    }

    /// A connection of the own identity's `generation` that can carry a stream now. When none is idle and
    /// streams are about to end, it is waited for one of theirs, a few milliseconds at the most.
    ///
    /// # Cancel safety
    /// Safe: a connection that is handed over meanwhile is closed.
    pub async fn take(&self, generation: u64) -> Option<Connection<W>> {
        let turn = {
            let now = Instant::now();
            let mut inner = self.inner.lock();
            match inner.take(generation, now) {
                Some(found) => return Some(found),
                None => inner.wait(now)?,
            }
        };
        let handed = tokio::time::timeout(TURN, turn).await.ok()?.ok()?;
        (handed.generation == generation).then_some(handed)
    }

    /// One app of a stream has ended its direction: the next stream may wait for the connection.
    #[must_use]
    pub fn ending(self: &Arc<Self>) -> Ending<W> {
        let mut inner = self.inner.lock();
        let since = Instant::now();
        inner.ending.push_back(since);
        Ending {
            pool: self.clone(),
            since,
        }
    }

    /// Takes back a connection whose stream has ended well. If the peer has not finished with the
    /// stream, that is waited for.
    pub fn put_back(self: &Arc<Self>, mut connection: Connection<W>, ending: Option<Ending<W>>) {
        // Most often the peer's word that it is done stands behind its end.
        if connection.ready() || !connection.settling() {
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
            drop(ending);
        });
    }

    fn keep(self: &Arc<Self>, mut connection: Connection<W>) {
        let now = Instant::now();
        if connection.expires <= now || !connection.ready() {
            return;
        }
        let mut inner = self.inner.lock();
        while let Some(turn) = inner.waiting.pop_front() {
            match turn.send(connection) {
                Ok(()) => return,
                // Whoever waited is gone.
                Err(back) => connection = back,
            }
        }
        if let Some(permit) = self.idle.permit() {
            inner.kept.push(Resting {
                connection,
                since: now,
                asked: now,
                _permit: permit,
            });
            if inner.kept.len() > KEEP && !std::mem::replace(&mut inner.trimming, true) {
                // Ends by itself when nobody puts back more than is kept.
                tokio::spawn(self.clone().trim());
            }
        }
    }

    /// Closes surplus connections after their turn.
    async fn trim(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TURN).await;
            let mut inner = self.inner.lock();
            inner.trim(Instant::now());
            inner.trimming = inner.kept.len() > KEEP;
            if !inner.trimming {
                return;
            }
        }
    }

    /// Closes what was idle for too long, is too old, was made with an older identity, or whose peer is
    /// gone; asks the others now and then. To be called every few seconds.
    pub fn prune(&self, generation: u64) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        // A panic may have ended the task that does it sooner.
        inner.trim(now);
        inner.kept.retain_mut(|resting| {
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
        self.inner.lock().kept.len()
    }

    /// True when none is idle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<W: Wire> Inner<W> {
    fn take(&mut self, generation: u64, now: Instant) -> Option<Connection<W>> {
        let mut asked = Vec::new();
        let mut found = None;
        while let Some(mut resting) = self.kept.pop() {
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
        self.kept.extend(asked);
        found
    }

    /// Closes what is beyond [`KEEP`] and has had its turn, the longest idle first.
    fn trim(&mut self, now: Instant) {
        let mut surplus = self.kept.len().saturating_sub(KEEP);
        self.kept.retain(|resting| {
            let closed = surplus > 0 && now.duration_since(resting.since) >= TURN;
            surplus -= usize::from(closed);
            !closed
        });
    }

    /// A place in the queue, when a connection is about to be free for it.
    fn wait(&mut self, now: Instant) -> Option<oneshot::Receiver<Connection<W>>> {
        // One that does not end at once is half-closed, perhaps for an hour.
        while self
            .ending
            .front()
            .is_some_and(|since| now.duration_since(*since) > TURN)
        {
            self.ending.pop_front();
        }
        self.waiting.retain(|turn| !turn.is_closed());
        if self.waiting.len() >= self.ending.len() {
            return None;
        }
        let (sender, turn) = oneshot::channel();
        self.waiting.push_back(sender);
        Some(turn)
    }

    /// A stream that began to end at `since` is over, and its connection was handed over, or kept, or is lost.
    fn ended(&mut self, since: Instant) {
        // Another one of the same instant is as good.
        if let Ok(at) = self.ending.binary_search(&since) {
            self.ending.remove(at);
        }
        // Who waits for nothing dials.
        while self.waiting.len() > self.ending.len() {
            self.waiting.pop_back();
        }
    }
}

impl<W> Resting<W> {
    fn fresh(&self, generation: u64, now: Instant) -> bool {
        self.connection.generation == generation
            && now < self.connection.expires
            && now.duration_since(self.since) < Limits::DIALLER.idle
    }
}
