//! A panic costs what it must and no more: it is caught, counted, said, and what must go on is run again.
//!
//! | where | costs | because |
//! |---|---|---|
//! | a request | that request: 500 and close on HTTP/1, a reset of the one stream on HTTP/2 | [`Caught`] in `accept::serve` |
//! | a connection or a tunnel | the streams on it; what was not sent yet goes another way | each has a task of its own |
//! | accepting, pools, discovery, session, health, admin, timers | nothing: run again within 100 ms, with its state | [`Task`] |
//! | a data worker outside its tasks | the connections of that worker; it takes new ones at once | [`Task::thread`] |
//!
//! What makes that true of state: a supervised task borrows what must survive from outside the future that is
//! caught; locks do not poison, and whoever holds one makes a value first and assigns it whole. The debug switch
//! (`debug: true`) lets a test panic at a [`Place`]. Knows no room that serves requests.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::Notify;

use crate::observe::{Gauge, Stats};

/// Before a task runs again after its first panic.
const LEAST: Duration = Duration::from_millis(10);
/// The longest pause, for a task that panics again and again.
const MOST: Duration = Duration::from_secs(5);
/// A task that ran so long has recovered from its last panic.
const RECOVERED: Duration = Duration::from_secs(10);

/// Where the debug switch may panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a request, while it is handed to an upstream.
    Request,
    /// In the task of a client's HTTP connection, while it reads.
    Connection,
    /// In a tunnel's task, while it reads.
    Tunnel,
    /// While accepting, with an accepted connection in hand.
    Accept,
    /// While unused connections are closed, with the pool's lock held.
    Pool,
    /// In a request, with the pool's lock held.
    Lock,
    /// In a worker's timer.
    Timer,
    /// In a worker's thread, outside every task.
    Worker,
    /// In the stream that learns what the mesh says.
    Discovery,
    /// In the writing of the last good snapshot.
    Store,
    /// In the session that holds the lease.
    Session,
    /// In the probes of the app.
    Health,
    /// In the admin listener.
    Admin,
    /// In the keeping of the workload's certificate.
    Identity,
}

impl Place {
    /// Every place, in order.
    pub const ALL: [Self; 14] = [
        Self::Request,
        Self::Connection,
        Self::Tunnel,
        Self::Accept,
        Self::Pool,
        Self::Lock,
        Self::Timer,
        Self::Worker,
        Self::Discovery,
        Self::Store,
        Self::Session,
        Self::Health,
        Self::Admin,
        Self::Identity,
    ];

    /// The word in the log and in `POST /debug/panic?in=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Connection => "connection",
            Self::Tunnel => "tunnel",
            Self::Accept => "accept",
            Self::Pool => "pool",
            Self::Lock => "lock",
            Self::Timer => "timer",
            Self::Worker => "worker",
            Self::Discovery => "discovery",
            Self::Store => "store",
            Self::Session => "session",
            Self::Health => "health",
            Self::Admin => "admin",
            Self::Identity => "identity",
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }

    /// True for tasks that wait most of the time: they are woken to panic.
    fn waits(self) -> bool {
        matches!(
            self,
            Self::Timer
                | Self::Worker
                | Self::Discovery
                | Self::Store
                | Self::Session
                | Self::Health
                | Self::Admin
                | Self::Identity
        )
    }
}

/// Places at which the next one to come by panics. Of the process: the switch is for one sidecar a process.
static ARMED: AtomicU32 = AtomicU32::new(0);
/// Wakes a supervised task that waits for something else.
static WAKE: [Notify; Place::ALL.len()] = [const { Notify::const_new() }; Place::ALL.len()];

/// Makes whoever comes by `place` next panic, once. Called by the admin listener when debugging is on.
pub fn arm(place: Place) {
    ARMED.fetch_or(place.bit(), Relaxed);
    if let Some(wake) = WAKE.get(place as usize).filter(|_| place.waits()) {
        wake.notify_one();
    }
}

/// Panics when `place` is armed; else one load.
#[inline]
pub fn here(place: Place) {
    if ARMED.load(Relaxed) & place.bit() != 0 {
        go_off(place);
    }
}

#[cold]
fn go_off(place: Place) {
    if ARMED.fetch_and(!place.bit(), Relaxed) & place.bit() != 0 {
        std::panic::panic_any(format!("injected by the debug switch: {}", place.as_str()));
    }
}

/// Panics when `place` is armed, while somebody waits.
async fn waits(place: Place) {
    let Some(wake) = WAKE.get(place as usize) else {
        return std::future::pending().await;
    };
    loop {
        wake.notified().await;
        here(place);
    }
}

/// Runs `work` beside the debug switch of `place`.
pub async fn armed<T>(place: Place, work: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        done = work => done,
        () = waits(place) => std::future::pending().await,
    }
}

/// A future whose panic is an answer: `Err` once, and nothing is polled after it.
pub struct Caught<T>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

/// A panic was caught; the hook has counted and printed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked;

/// Catches the panics of a future, and of making it.
pub fn caught<T, F>(make: impl FnOnce() -> F) -> Caught<T>
where
    F: Future<Output = T> + Send + 'static,
{
    // Boxed once a request: hyper keeps the future inline in the connection otherwise, and an
    // idle connection would hold room for the largest state of a request.
    // Made in its box, not made and then moved there.
    Caught(
        step(|| Box::into_pin(Box::write(Box::new_uninit(), make())) as Pin<Box<dyn Future<Output = T> + Send>>).ok(),
    )
}

impl<T> std::fmt::Debug for Caught<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caught").finish_non_exhaustive()
    }
}

impl<T> Future for Caught<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.0 else {
            return Poll::Ready(Err(Panicked));
        };
        let Ok(poll) = step(|| work.as_mut().poll(cx)) else {
            let broken = self.0.take();
            // What it held may panic once more while it is dropped: a lock of h2 poisons.
            drop(step(|| drop(broken)));
            return Poll::Ready(Err(Panicked));
        };
        poll.map(Ok)
    }
}

/// Catches a panic of one synchronous step.
///
/// # Errors
/// When it panicked.
pub fn step<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)
}

/// Something that must go on: run again after a panic, at once after the first and later after several.
#[derive(Debug)]
pub struct Task {
    place: Place,
    stats: Arc<Stats>,
    /// Panics without a recovery between them.
    row: u32,
    ended: Option<Instant>,
}

impl Task {
    /// A task that has not panicked yet.
    #[must_use]
    pub fn new(place: Place, stats: Arc<Stats>) -> Self {
        Self {
            place,
            stats,
            row: 0,
            ended: None,
        }
    }

    /// Runs `work`; true after a panic and a pause, when it is to be run again. Used as
    /// `while task.again(work(&mut state)).await {}`: what is borrowed is kept.
    ///
    /// # Cancel safety
    /// As safe as `work`.
    pub fn again<'a>(
        &'a mut self,
        work: impl Future<Output = ()> + Send + 'a,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        // Boxed: such tasks are large, few, and run once.
        Box::pin(async move {
            let began = self.begin();
            let work = AssertUnwindSafe(armed(self.place, work)).catch_unwind();
            if work.await.is_ok() {
                return false;
            }
            tokio::time::sleep(self.pause(began)).await;
            true
        })
    }

    /// The same for a thread that is the calling one.
    pub fn thread(&mut self, work: impl FnOnce()) -> bool {
        let began = self.begin();
        if step(work).is_ok() {
            return false;
        }
        // This thread does nothing else; nobody else wakes it, and a wake-up too early would do no harm.
        std::thread::park_timeout(self.pause(began));
        true
    }

    fn begin(&mut self) -> Instant {
        let now = Instant::now();
        if let Some(ended) = self.ended.take() {
            let down_ms = now.duration_since(ended).as_millis();
            self.stats.add(Gauge::Restarts, 1);
            tracing::warn!(task = self.place.as_str(), down_ms, "runs again after a panic");
        }
        now
    }

    fn pause(&mut self, began: Instant) -> Duration {
        let now = Instant::now();
        let (row, pause) = backoff(self.row, now.duration_since(began));
        (self.row, self.ended) = (row, Some(now));
        pause
    }
}

/// The panics in a row after one more, and the pause before the next run.
fn backoff(row: u32, ran: Duration) -> (u32, Duration) {
    let row = if ran >= RECOVERED { 0 } else { row };
    (row.saturating_add(1), LEAST.saturating_mul(1 << row.min(16)).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_pauses_shortly_and_a_row_of_them_long() {
        let short = Duration::from_millis(1);
        assert_eq!(backoff(0, short), (1, LEAST));
        assert_eq!(backoff(3, short), (4, LEAST * 8));
        assert_eq!(backoff(60, short), (61, MOST));
        assert_eq!(backoff(60, RECOVERED), (1, LEAST), "it ran well in between");
    }

    #[tokio::test]
    async fn a_request_that_panics_is_an_answer_and_is_not_polled_again() {
        let mut work = caught(|| async { panic!("on purpose") });
        let answer: Result<(), Panicked> = (&mut work).await;
        assert_eq!(answer, Err(Panicked));
        assert!(work.0.is_none(), "what it held is gone");
        assert_eq!(caught(|| async { 7 }).await, Ok(7));
        let unmade = caught(|| -> std::future::Ready<()> { panic!("on purpose") });
        assert_eq!(unmade.await, Err(Panicked));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_runs_again_with_its_state() {
        let stats = Arc::new(Stats::default());
        let mut task = Task::new(Place::Identity, stats.clone());
        let mut runs = 0;
        while task
            .again(async {
                runs += 1;
                assert!(runs > 3, "on purpose");
            })
            .await
        {}
        assert_eq!((runs, stats.get(Gauge::Restarts)), (4, 3));
    }

    #[tokio::test]
    async fn the_switch_reaches_a_task_that_waits_and_goes_off_once() {
        let stats = Arc::new(Stats::default());
        let mut task = Task::new(Place::Store, stats);
        arm(Place::Store);
        assert!(task.again(std::future::pending()).await, "it panicked");
        assert!(!task.again(async { here(Place::Store) }).await, "not armed any more");
    }
}
