//! How many bytes of messages the sidecar holds, in all: what it took and nobody has taken from it yet.
//!
//! Counted are bytes on their way out (answers to clients and requests to upstreams, from when they are
//! handed to HTTP until the socket takes them), request bodies kept for another try, and the buffers of
//! opaque connections. Not counted is what HTTP/2's windows let a peer send ahead: it is bounded for each
//! connection, and most of it is never there. One counter a thread: a message's bytes cost two additions that no
//! other thread waits for.

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

/// More threads than this share counters.
const LANES: usize = 16;

/// A counter alone on its cache lines.
#[repr(align(128))]
struct Lane(AtomicIsize);

static LANE: [Lane; LANES] = [const { Lane(AtomicIsize::new(0)) }; LANES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: usize = NEXT.fetch_add(1, Relaxed) % LANES;
}

fn add(bytes: isize) {
    if bytes != 0
        && let Ok(mine) = MINE.try_with(|mine| *mine)
        && let Some(lane) = LANE.get(mine)
    {
        lane.0.fetch_add(bytes, Relaxed);
    }
}

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

/// All bytes held.
#[must_use]
pub fn total() -> usize {
    // Bytes that came on one thread and went on another make a lane negative.
    let sum: isize = LANE.iter().map(|lane| lane.0.load(Relaxed)).sum();
    usize::try_from(sum).unwrap_or(0)
}

/// True when this thread takes part in holding more than `most`. One that holds next to nothing itself is let
/// go on, so the whole stays below one and a half of `most`; that saves each request a look at all threads.
#[must_use]
pub fn over(most: usize) -> bool {
    let mine = MINE.with(|mine| LANE.get(*mine).map_or(0, |lane| lane.0.load(Relaxed)));
    mine > signed(most / (2 * LANES)) && total() > most
}

/// Bytes held until dropped.
#[derive(Debug, Default)]
pub struct Held(usize);

impl Held {
    /// Holds `bytes` from now on, instead of what it held before.
    pub fn set(&mut self, bytes: usize) {
        add(signed(bytes).saturating_sub(signed(self.0)));
        self.0 = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped_on_whatever_thread() {
        // Other tests hold bytes too, but not so many.
        const MANY: usize = 1 << 40;
        let mut held = Held::default();
        assert!(!over(MANY / 2));
        held.set(MANY);
        assert!(over(MANY / 2) && total() >= MANY);
        std::thread::scope(|s| s.spawn(move || drop(held)).join().expect("no panic"));
        assert!(total() < MANY / 2);
    }
}
