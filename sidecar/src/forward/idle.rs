//! Ends a stream on which nothing moves, whoever it is that stopped.
//!
//! When the app stops, the body is waited for and knows by itself. When the client stops reading, nobody asks the body
//! for more: whoever serves the client looks at the same [`Stall`] then. On HTTP/2 that is the stream's own task
//! (`accept/stream.rs`), on HTTP/1 the connection's timer (`accept/head.rs`). What moves is a frame of either body, and
//! on HTTP/1 any byte that the client's socket takes.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::replay::Source;

/// What is known of the movements of one request and its answer.
#[derive(Debug)]
pub struct Stall {
    limit: Duration,
    began: Instant,
    /// Milliseconds since `began` when the answer moved last.
    moved: AtomicU64,
    /// The answer's next bytes are waited for: it is not the client that has stopped.
    awaited: AtomicBool,
    /// The request may move while the answer does not.
    request: Option<Source>,
    ended: AtomicBool,
}

impl Stall {
    /// Something moved.
    pub fn moves(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Relaxed);
    }

    /// When it will have been idle for too long.
    #[must_use]
    pub fn until(&self) -> Instant {
        let moved = self.began + Duration::from_millis(self.moved.load(Relaxed));
        let request = self.request.as_ref().and_then(Source::moved);
        request.map_or(moved, |r| r.max(moved)) + self.limit
    }

    /// When to look again after [`is_over`](Self::is_over) said no.
    #[must_use]
    pub fn again(&self) -> Instant {
        let now = Instant::now();
        match self.until() {
            until if until > now => until,
            _ => now + self.limit,
        }
    }

    /// True when the client has taken nothing for too long although there is something. Whoever hears it ends the stream.
    pub fn is_over(&self) -> bool {
        let over = !self.awaited.load(Relaxed) && self.until() <= Instant::now();
        if over {
            self.ended.store(true, Relaxed);
        }
        over
    }

    /// Whether the stream was ended because its client has stopped.
    #[must_use]
    pub fn was_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

/// The answer's own look at its movements.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) stall: Arc<Stall>,
    sleep: Pin<Box<Sleep>>,
}

impl Idle {
    pub(super) fn new(limit: Duration, request: Option<&Source>) -> Self {
        let began = Instant::now();
        Self {
            stall: Arc::new(Stall {
                limit,
                began,
                moved: AtomicU64::new(0),
                awaited: AtomicBool::new(false),
                request: request.cloned(),
                ended: AtomicBool::new(false),
            }),
            sleep: Box::pin(tokio::time::sleep_until((began + limit).into())),
        }
    }

    /// There is more of the answer.
    pub(super) fn moves(&self) {
        self.stall.awaited.store(false, Relaxed);
        self.stall.moves();
    }

    /// There is no more of the answer yet. Ready when nothing has moved for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stall.awaited.store(true, Relaxed);
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let until = self.stall.until();
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(until.into());
        }
    }
}
