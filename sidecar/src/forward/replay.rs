//! A request body that can be sent again while it is small.
//!
//! Frames are passed on as they arrive and kept, by reference count, up to 64 KiB. A second try
//! gets what was kept and then the rest of the stream. More than that, and there is no second try.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{Extensions, HeaderMap};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::body::BodyError;
use crate::observe::held::Held;

/// Bytes kept for a second try.
const KEEP: usize = 64 * 1024;

/// One try's view of the body.
#[derive(Debug)]
pub struct Replay {
    shared: Arc<Mutex<Kept>>,
    /// Next kept frame to send.
    next: usize,
    /// A newer view exists; this one must not touch the stream any more.
    turn: u32,
}

/// The caller's hold on the body, over all tries.
#[derive(Debug, Clone)]
pub struct Source(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    body: Incoming,
    frames: SmallVec<[Bytes; 2]>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    held: Held,
    overflowed: bool,
    ended: bool,
    turn: u32,
    /// Trailers are not passed on.
    no_trailers: bool,
    /// Who gets a copy of the whole.
    tee: Option<Tee>,
    /// When a frame came last; none when nobody asks.
    moved: Option<Instant>,
}

/// Collects a copy of a body while it passes, up to what is kept for another try.
#[derive(Debug)]
struct Tee {
    frames: Vec<Bytes>,
    bytes: usize,
    held: Held,
    done: oneshot::Sender<Result<Bytes, TooLarge>>,
}

/// The body is longer than is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// In a request's extensions: its trailers are not passed on.
#[derive(Debug, Clone, Copy)]
pub struct NoTrailers;

impl Source {
    /// Takes over a body that has not been read.
    #[must_use]
    pub fn new(body: Incoming, extensions: &Extensions) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            body,
            frames: SmallVec::new(),
            trailers: None,
            bytes: 0,
            held: Held::default(),
            overflowed: false,
            ended: false,
            turn: 0,
            no_trailers: extensions.get::<NoTrailers>().is_some(),
            tee: None,
            moved: None,
        })))
    }

    /// A view for the next try, from the first byte; none when too much has been sent already.
    /// An earlier view stops.
    #[must_use]
    pub fn take(&self) -> Option<Replay> {
        let mut kept = self.0.lock();
        if kept.overflowed {
            return None;
        }
        kept.turn += 1;
        Some(Replay {
            shared: self.0.clone(),
            next: 0,
            turn: kept.turn,
        })
    }

    /// A copy of the whole body, without its trailers, once it has passed; an error of the receiver's when it never
    /// passes whole. Nothing waits for whoever takes it.
    #[must_use]
    pub fn tee(&self) -> oneshot::Receiver<Result<Bytes, TooLarge>> {
        let (done, copy) = oneshot::channel();
        self.0.lock().tee = Some(Tee {
            frames: Vec::new(),
            bytes: 0,
            held: Held::default(),
            done,
        });
        copy
    }

    /// Notes from now on when frames come.
    pub fn watch(&self, now: Instant) {
        self.0.lock().moved = Some(now);
    }

    /// When a frame came last, if that is noted.
    #[must_use]
    pub fn moved(&self) -> Option<Instant> {
        self.0.lock().moved
    }

    /// All of it, while it is short and has ended without trailers: for a request beside the first.
    #[must_use]
    pub fn whole(&self) -> Option<Bytes> {
        let kept = self.0.lock();
        let whole = kept.ended && !kept.overflowed && kept.trailers.is_none();
        whole.then(|| match kept.frames.as_slice() {
            [one] => one.clone(),
            frames => frames.concat().into(),
        })
    }

    /// True while [`take`](Self::take) gives a view.
    #[must_use]
    pub fn replayable(&self) -> bool {
        !self.0.lock().overflowed
    }

    /// True when the client has sent all of it.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.lock().ended
    }

    /// Keeps nothing from now on: there will be no second try.
    pub fn commit(&self) {
        let mut kept = self.0.lock();
        kept.overflowed = true;
    }
}

impl Kept {
    /// Takes in what passed for who gets a copy, and hands it over at the end.
    fn copy(&mut self, frame: Option<&Frame<Bytes>>) {
        let Some(mut tee) = self.tee.take() else { return };
        if let Some(data) = frame.and_then(Frame::data_ref) {
            tee.bytes += data.len();
            tee.held.set(tee.bytes);
            tee.frames.push(data.clone());
        }
        // Whoever waits may have gone: nobody minds.
        if tee.bytes > KEEP {
            drop(tee.done.send(Err(TooLarge)));
        } else if self.ended {
            drop(tee.done.send(Ok(tee.frames.concat().into())));
        } else if frame.is_some() {
            self.tee = Some(tee);
        }
    }
}

impl Replay {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut kept = self.shared.lock();
        if kept.turn != self.turn {
            // Never a clean end: whoever reads this view would take a part for the whole.
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
        }
        if let Some(frame) = kept.frames.get(self.next) {
            let frame = frame.clone();
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if kept.ended {
            return Poll::Ready(kept.trailers.take().map(|t| Ok(Frame::trailers(t))));
        }
        let mut frame = ready!(Pin::new(&mut kept.body).poll_frame(cx));
        if kept.no_trailers && matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
            kept.overflowed = true;
            frame = None;
        }
        match &frame {
            None => kept.ended = true,
            Some(Err(_)) => kept.overflowed = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    kept.bytes += data.len();
                    if kept.overflowed || kept.bytes > KEEP {
                        kept.overflowed = true;
                        kept.frames.clear();
                        kept.held.set(0);
                        self.next = 0;
                    } else {
                        let data = data.clone();
                        kept.frames.push(data);
                        let bytes = kept.bytes;
                        kept.held.set(bytes);
                        self.next += 1;
                    }
                } else {
                    // Trailers end the body and are not kept: a try that got so far was accepted.
                    kept.overflowed = true;
                    kept.ended = true;
                }
                kept.ended |= kept.body.is_end_stream();
            }
        }
        if kept.tee.is_some() {
            kept.copy(frame.as_ref().and_then(|f| f.as_ref().ok()));
        }
        if kept.moved.is_some() {
            kept.moved = Some(Instant::now());
        }
        Poll::Ready(frame.map(|r| r.map_err(BodyError::from)))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let kept = self.shared.lock();
        kept.ended && self.next >= kept.frames.len() && kept.trailers.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let kept = self.shared.lock();
        let mut hint = kept.body.size_hint();
        let rest: u64 = kept.frames.iter().skip(self.next).map(|f| f.len() as u64).sum();
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}
