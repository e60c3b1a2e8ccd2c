//! Watches the raw bytes of HTTP/1 request heads for what hyper repairs in silence.
//!
//! hyper drops a second equal `Content-Length`, and `Content-Length` beside `Transfer-Encoding`
//! (RFC 9112 §6.3 allows that). A mesh refuses such a request instead: somebody along the way may have
//! read it differently. Also knows since when a head is incomplete, for the header time-out, and whether the client
//! takes its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::forward::idle::Stall;

/// What one connection's reader and its requests tell each other.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    /// Milliseconds since `began` at the first byte of an incomplete head; 0: none.
    head_since: AtomicU64,
    /// Milliseconds since `began` of the last byte read; 0: none.
    last_read: AtomicU64,
    /// The next bytes begin a head.
    expects_head: AtomicBool,
    in_request: AtomicBool,
    /// The present request's framing is in doubt.
    doubtful: AtomicBool,
    /// The last write did not go through: the server keeps bytes for the client.
    blocked: AtomicBool,
    /// The client has taken bytes since somebody looked.
    took: AtomicBool,
    /// What moves of the present answer, where the policy has an idle time-out.
    stall: Mutex<Option<Arc<Stall>>>,
    scan: Mutex<Scan>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            head_since: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            expects_head: AtomicBool::new(true),
            in_request: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            took: AtomicBool::new(false),
            stall: Mutex::new(None),
            scan: Mutex::new(Scan::default()),
        }
    }
}

impl Watch {
    /// A request's head is complete.
    pub(super) fn begin(&self) {
        self.head_since.store(0, Relaxed);
        self.in_request.store(true, Relaxed);
        self.expects_head.store(false, Relaxed);
        let mut scan = self.scan.lock();
        self.doubtful.store(scan.doubtful(), Relaxed);
        *scan = Scan::default();
    }

    /// True when the present request's framing is in doubt.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        self.doubtful.load(Relaxed)
    }

    /// The present request has been read whole: the next byte begins a head. Without this the next
    /// head is left to hyper alone.
    pub fn read_whole(&self) {
        self.expects_head.store(true, Relaxed);
    }

    /// The present request's answer has been given to the server whole, or dropped.
    pub(super) fn answered(&self) {
        self.in_request.store(false, Relaxed);
    }

    pub(super) fn wrote(&self, through: bool) {
        self.blocked.store(!through, Relaxed);
        if through {
            self.took.store(true, Relaxed);
        }
    }

    /// The present answer ends, and the connection with it, when the client takes nothing of it for too long.
    pub(super) fn stalls(&self, stall: Arc<Stall>) {
        *self.stall.lock() = Some(stall);
    }

    /// The answer is done with. What it knows of the request's body would keep that from being read away.
    pub(super) fn stalls_no_more(&self) {
        *self.stall.lock() = None;
    }

    /// True when the client has taken nothing of an answer for too long. Exact to the time between two calls.
    pub(super) fn is_stalled(&self) -> bool {
        let took = self.took.swap(false, Relaxed);
        let stall = self.stall.lock();
        let Some(stall) = stall.as_ref() else { return false };
        if took {
            stall.moves();
        }
        stall.is_over()
    }

    /// True when nothing is read, answered or written, and the next byte begins a head.
    pub(super) fn is_idle(&self) -> bool {
        self.head_since.load(Relaxed) == 0
            && !self.in_request.load(Relaxed)
            && !self.blocked.load(Relaxed)
            && self.expects_head.load(Relaxed)
    }

    /// True when nothing has ever come.
    pub(super) fn is_fresh(&self) -> bool {
        self.last_read.load(Relaxed) == 0
    }

    /// How long the present head has been incomplete, and how long nothing has been read.
    #[must_use]
    pub fn waiting(&self) -> (std::time::Duration, std::time::Duration) {
        let now = self.now();
        let since = |at: u64| std::time::Duration::from_millis(now.saturating_sub(at));
        let head = self.head_since.load(Relaxed);
        let in_request = self.in_request.load(Relaxed);
        (
            if head == 0 {
                std::time::Duration::ZERO
            } else {
                since(head)
            },
            if in_request {
                std::time::Duration::ZERO
            } else {
                since(self.last_read.load(Relaxed))
            },
        )
    }

    /// Takes in bytes as they arrive.
    pub fn saw(&self, bytes: &[u8]) {
        let now = self.now().max(1);
        self.last_read.store(now, Relaxed);
        if !self.in_request.load(Relaxed) {
            if self.head_since.load(Relaxed) == 0 {
                self.head_since.store(now, Relaxed);
            }
            if self.expects_head.load(Relaxed) {
                self.scan.lock().feed(bytes);
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Counts the framing fields of one head, fed in pieces of any size.
#[derive(Debug, Default)]
pub struct Scan {
    lengths: u32,
    codings: u32,
    line: [u8; 18],
    in_line: usize,
    done: bool,
}

impl Scan {
    /// Takes in the next bytes; those after the head's end are ignored.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !self.done && !bytes.is_empty() {
            let Some(at) = memchr::memchr(b'\n', bytes) else {
                return self.keep(bytes);
            };
            let line = bytes.get(..at).unwrap_or_default();
            if self.in_line == 0 {
                // Most lines come whole, and nothing of them is copied: each head passes here.
                self.end_line(line);
            } else {
                self.keep(line);
                let (kept, length) = (self.line, std::mem::take(&mut self.in_line));
                self.end_line(kept.get(..length).unwrap_or_default());
            }
            bytes = bytes.get(at + 1..).unwrap_or_default();
        }
    }

    /// Keeps the beginning of a line that comes in pieces: enough to know its field.
    fn keep(&mut self, piece: &[u8]) {
        let begin = piece.get(..self.line.len() - self.in_line).unwrap_or(piece);
        if let Some(room) = self.line.get_mut(self.in_line..self.in_line + begin.len()) {
            room.copy_from_slice(begin);
            self.in_line += begin.len();
        }
    }

    fn end_line(&mut self, line: &[u8]) {
        let names = |name: &[u8]| line.get(..name.len()).is_some_and(|s| s.eq_ignore_ascii_case(name));
        match line {
            [] | b"\r" => self.done = true,
            [b'c' | b'C', ..] if names(b"content-length:") => self.lengths += 1,
            [b't' | b'T', ..] if names(b"transfer-encoding:") => self.codings += 1,
            _ => {}
        }
    }

    /// Two lengths, or a length beside a coding.
    #[must_use]
    pub fn doubtful(&self) -> bool {
        self.lengths > 1 || (self.lengths > 0 && self.codings > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(head: &str, doubtful: bool) {
        let head = head.replace('\n', "\r\n");
        let mut whole = Scan::default();
        whole.feed(head.as_bytes());
        assert_eq!(whole.doubtful(), doubtful, "{head}");
        let mut pieces = Scan::default();
        head.as_bytes().chunks(1).for_each(|b| pieces.feed(b));
        assert_eq!(pieces.doubtful(), doubtful, "byte by byte: {head}");
    }

    #[test]
    fn doubtful_framing_is_found() {
        check("GET / HTTP/1.1\nHost: a\n\n", false);
        check("POST / HTTP/1.1\nContent-Length: 3\n\n", false);
        check("POST / HTTP/1.1\nContent-Length: 3\ncontent-LENGTH: 3\n\n", true);
        check(
            "POST / HTTP/1.1\nTransfer-Encoding: chunked\nContent-Length: 3\n\n",
            true,
        );
        check(
            "POST / HTTP/1.1\nContent-Length: 3\nTransfer-Encoding: chunked\n\n",
            true,
        );
        check(
            "POST / HTTP/1.1\nTransfer-Encoding: chunked\n\ncontent-length: 3\n",
            false,
        );
        check("POST / HTTP/1.1\nX-Content-Length: 3\nContent-Length: 3\n\n", false);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            let (mut whole, mut pieces) = (Scan::default(), Scan::default());
            whole.feed(&bytes);
            bytes.chunks(cut).for_each(|c| pieces.feed(c));
            prop_assert_eq!((whole.lengths, whole.codings), (pieces.lengths, pieces.codings));
        }
    }
}
