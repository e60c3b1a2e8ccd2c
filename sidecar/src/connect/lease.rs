//! The right to an upstream connection while one answer is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::upstream::Upstream;
use super::{http1, http2};

/// Held until the answer's end. Finished, an HTTP/1 connection goes back to the pool; dropped, it is
/// closed, so that the upstream sees that nobody listens any more.
#[derive(Debug)]
pub struct Lease {
    upstream: Arc<Upstream>,
    held: Held,
}

#[derive(Debug)]
pub(super) enum Held {
    Http1(Option<http1::Connection>),
    Http2(Arc<http2::Connection>),
    /// An opaque or upgraded connection: only counted.
    Counted,
}

impl Lease {
    /// Counts a request at `upstream` from now on.
    pub(super) fn new(upstream: Arc<Upstream>, held: Held) -> Self {
        upstream.in_flight.fetch_add(1, Relaxed);
        if let Held::Http2(connection) = &held {
            connection.streams.fetch_add(1, Relaxed);
        }
        Self { upstream, held }
    }

    /// An opaque connection to `upstream`.
    #[must_use]
    pub fn counted(upstream: Arc<Upstream>) -> Self {
        Self::new(upstream, Held::Counted)
    }

    /// The endpoint's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.upstream.route.address
    }

    /// Acknowledges what has arrived. An app that writes head and body apart waits for that with its
    /// body (Nagle's algorithm, RFC 896) while the system delays it by 40 ms.
    pub fn acknowledge(&self) {
        if let Held::Http1(Some(connection)) = &self.held {
            connection.acknowledge();
        }
    }

    /// The answer was read whole at `now`: the connection may carry another.
    pub fn finish(mut self, now: Instant) {
        if let Held::Http1(connection) = &mut self.held
            && let Some(connection) = connection.take()
        {
            self.upstream.put_back(connection, now);
        }
    }

    pub(super) fn http1(&mut self) -> Option<&mut http1::Connection> {
        match &mut self.held {
            Held::Http1(connection) => connection.as_mut(),
            _ => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.in_flight.fetch_sub(1, Relaxed);
        if let Held::Http2(connection) = &self.held
            && connection.streams.fetch_sub(1, Relaxed) == 1
        {
            *connection.last_used.lock() = Instant::now();
        }
    }
}
