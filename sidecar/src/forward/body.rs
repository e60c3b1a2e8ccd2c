//! The one body type between all rooms.
//!
//! A concrete enum instead of a boxed trait object: no allocation per message.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use super::chunk::Chunk;
use super::fields;
use super::replay::Replay;
use crate::exchange::Exchange;
use crate::observe::count::Count;

/// A message body, and what has to be told when it ends.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    exchange: Option<Exchange>,
    /// Boxed: only requests with a caller's deadline have one.
    cut: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Boxed: only bodies that break on purpose have one.
    breaks: Option<Box<Break>>,
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
        }
    }

    /// An answer's body that ends, broken, at the caller's own deadline.
    #[must_use]
    pub fn bounded(body: Incoming, deadline: Option<Instant>) -> Self {
        let mut body = Self::incoming(body);
        if !body.is_empty() {
            body.cut = deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        }
        body
    }

    /// A request's body that may be sent again.
    #[must_use]
    pub fn replay(body: Replay) -> Self {
        Self {
            kind: Kind::Replay(body),
            exchange: None,
            cut: None,
            breaks: None,
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
    pub fn told(mut self, mut exchange: Exchange) -> Self {
        match self.kind {
            Kind::Empty => exchange.ended(None),
            _ => self.exchange = Some(exchange),
        }
        self
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
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) | Self::Broken => false,
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
                    let Some(cut) = &mut this.cut else { return Poll::Pending };
                    ready!(cut.as_mut().poll(cx));
                    // RFC 9113 §8.1: an answer that is not complete ends by a reset.
                    Some(Err(h2::Error::from(h2::Reason::CANCEL).into()))
                }
            },
            Kind::Replay(body) => ready!(body.poll_frame(cx)).map(|r| r.map_err(BodyError::from)),
            Kind::Broken => None,
        };
        let mut frame = frame;
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
            Kind::Broken => SizeHint::default(),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(body) => http_body::Body::size_hint(body),
            Kind::Replay(body) => body.size_hint(),
        }
    }
}
