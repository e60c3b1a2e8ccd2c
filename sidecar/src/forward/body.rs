//! The one body type between all rooms.
//!
//! A concrete enum instead of a boxed trait object: no allocation per message.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::chunk::Chunk;
use super::fields;
use super::idle::{Idle, Stall};
use super::replay::{Replay, Source};
use crate::exchange::Exchange;
use crate::observe::count::Count;

/// A message body, and what has to be told when it ends.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    exchange: Option<Box<Exchange>>,
    /// Boxed: only requests with a caller's deadline have one.
    cut: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Boxed: only bodies that break on purpose have one.
    breaks: Option<Box<Break>>,
    /// Boxed: only where the policy has an idle time-out.
    idle: Option<Box<Idle>>,
}

/// A body breaks on purpose.
#[derive(Debug)]
struct Break {
    /// Bytes that pass before.
    left: u64,
    /// What has passed is on its way to the client.
    flushed: bool,
    count: Count,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    /// A frame that was looked at, and the rest. Boxed: only answers that could be tried again have one.
    Peeked(Box<Frame<Bytes>>, Incoming),
    Replay(Replay),
    /// The rest was thrown away on purpose.
    Broken,
}

/// Why a body ended early. The peer sees a reset or a missing last chunk, never a clean end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            kind: Kind::Empty,
            exchange: None,
            cut: None,
            breaks: None,
            idle: None,
        }
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self {
            kind: if bytes.is_empty() {
                Kind::Empty
            } else {
                Kind::Full(bytes)
            },
            exchange: None,
            cut: None,
            breaks: None,
            idle: None,
        }
    }

    /// A body as it arrives.
    #[must_use]
    pub fn incoming(body: Incoming) -> Self {
        let kind = if http_body::Body::is_end_stream(&body) {
            Kind::Empty
        } else {
            Kind::Incoming(body)
        };
        Self {
            kind,
            exchange: None,
            cut: None,
            breaks: None,
            idle: None,
        }
    }

    /// An answer's body that ends, broken, at the caller's own deadline. `first` was taken from it already.
    #[must_use]
    pub fn bounded(body: Incoming, first: Option<Box<Frame<Bytes>>>, deadline: Option<Instant>) -> Self {
        let mut body = match first {
            None => Self::incoming(body),
            Some(first) => Self {
                kind: Kind::Peeked(first, body),
                ..Self::empty()
            },
        };
        if !body.is_empty() {
            body.cut = deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        }
        body
    }

    /// Ends the answer, broken, when neither it nor `request` moves for `limit`.
    #[must_use]
    pub fn unless_idle(mut self, limit: Option<Duration>, request: Option<&Source>) -> Self {
        if let Some(limit) = limit.filter(|_| !self.is_empty()) {
            self.idle = Some(Box::new(Idle::new(limit, request)));
        }
        self
    }

    /// A request's body that may be sent again.
    #[must_use]
    pub fn replay(body: Replay) -> Self {
        Self {
            kind: Kind::Replay(body),
            exchange: None,
            cut: None,
            breaks: None,
            idle: None,
        }
    }

    /// Breaks after `bytes` on purpose, when there are more, and counts that it did.
    #[must_use]
    pub fn broken_after(mut self, bytes: u64, count: Count) -> Self {
        self.breaks = Some(Box::new(Break {
            left: bytes,
            flushed: false,
            count,
        }));
        self
    }

    /// Tells `exchange` when the body ends. An answer without bytes ends now.
    #[must_use]
    pub fn told(mut self, mut exchange: Box<Exchange>) -> Self {
        if let Some(idle) = &self.idle {
            exchange.watched(idle.stall.clone());
        }
        match self.kind {
            Kind::Empty => exchange.ended(None),
            _ => self.exchange = Some(exchange),
        }
        self
    }

    /// What moves, where the policy has an idle time-out: whoever serves the client looks at it while the client takes nothing.
    #[must_use]
    pub fn stall(&self) -> Option<&Arc<Stall>> {
        self.idle.as_ref().map(|idle| &idle.stall)
    }

    /// True when there are no bytes and no trailers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }
}

/// What the client gets instead of the rest when the rules allow it no longer.
fn cancelled(exchange: &mut Exchange) -> BodyError {
    exchange.cut();
    h2::Error::from(h2::Reason::CANCEL).into()
}

impl Kind {
    /// The frame that was looked at; from here on it is the rest.
    fn first(&mut self) -> Option<Frame<Bytes>> {
        match std::mem::replace(self, Self::Empty) {
            Self::Peeked(first, rest) => {
                *self = Self::Incoming(rest);
                Some(*first)
            }
            other => {
                *self = other;
                None
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) | Self::Broken | Self::Peeked(..) => false,
            Self::Incoming(body) => http_body::Body::is_end_stream(body),
            Self::Replay(body) => body.is_end_stream(),
        }
    }
}

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let this = &mut *self;
        if let Some(exchange) = this.exchange.as_mut().filter(|e| e.is_cut()) {
            return Poll::Ready(Some(Err(cancelled(exchange))));
        }
        if let Some(breaks) = this.breaks.as_mut().filter(|b| b.left == 0)
            && !this.kind.is_end_stream()
        {
            if !std::mem::replace(&mut breaks.flushed, true) {
                // What passed is written first: HTTP/1 writes once the body has nothing for it.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            breaks.count.add();
            if let Some(exchange) = &mut this.exchange {
                exchange.harmed();
            }
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::INTERNAL_ERROR).into())));
        }
        let frame = match &mut this.kind {
            Kind::Empty => None,
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                Some(Ok(Frame::data(bytes)))
            }
            Kind::Incoming(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame.map(|r| r.map_err(BodyError::from)),
                Poll::Pending => {
                    if let Some(exchange) = &mut this.exchange {
                        exchange.awaits_more();
                        if exchange.poll_cut(cx).is_ready() {
                            return Poll::Ready(Some(Err(cancelled(exchange))));
                        }
                    }
                    if let Some(idle) = &mut this.idle
                        && idle.poll(cx).is_ready()
                    {
                        if let Some(exchange) = &mut this.exchange {
                            exchange.idle();
                        }
                        return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
                    }
                    let Some(cut) = &mut this.cut else { return Poll::Pending };
                    ready!(cut.as_mut().poll(cx));
                    // RFC 9113 §8.1: an answer that is not complete ends by a reset.
                    Some(Err(h2::Error::from(h2::Reason::CANCEL).into()))
                }
            },
            Kind::Peeked(..) => this.kind.first().map(Ok),
            Kind::Replay(body) => ready!(body.poll_frame(cx)),
            Kind::Broken => None,
        };
        let mut frame = frame;
        if let Some(idle) = &this.idle {
            idle.moves();
        }
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            // They mean what fields of the head mean (RFC 9110 §6.5.1).
            fields::strip_ours(trailers);
        }
        let mut cut_short = false;
        if let (Some(breaks), Some(Ok(frame))) = (&mut this.breaks, &mut frame)
            && let Some(data) = frame.data_mut()
        {
            let length = data.len() as u64;
            // What is more than may pass is lost, and so the end is not reached.
            cut_short = length > breaks.left;
            if cut_short {
                data.truncate(usize::try_from(breaks.left).unwrap_or(usize::MAX));
                this.kind = Kind::Broken;
            }
            breaks.left = breaks.left.saturating_sub(length);
        }
        if let Some(exchange) = this.exchange.as_mut().filter(|_| !cut_short) {
            match &frame {
                None => exchange.ended(None),
                Some(Err(_)) => exchange.broken(),
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        exchange.ended(Some(trailers));
                    } else if this.kind.is_end_stream() {
                        // The server does not poll again for the end that it can see.
                        exchange.ended(None);
                    }
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map(|f| f.map_data(Chunk::from))))
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Broken | Kind::Peeked(..) => SizeHint::default(),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(body) => http_body::Body::size_hint(body),
            Kind::Replay(body) => body.size_hint(),
        }
    }
}
