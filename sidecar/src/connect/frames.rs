//! Counts the frames of an HTTP/2 peer that carry nothing, against a budget that refills.
//!
//! h2 bounds what costs memory: CONTINUATION frames of one header section, header sections, streams
//! reset before they were accepted, small and empty DATA frames. PING, SETTINGS, WINDOW_UPDATE, PRIORITY
//! and RST_STREAM cost it time alone and are answered for ever; they are counted here. So are, of a
//! server, the heads of informational answers, which h2 throws away one by one. Reads the nine
//! bytes of each frame's head and skips the rest. Pure: the time is an argument.
//!
//! Two budgets, each as large as what refills in `BURST`:
//! - resets: a stream that is reset has cost a request, whose caller may have good reason to give up;
//! - everything else: what this side sends counts in the peer's favour, because a window update
//!   answers data, and peers that measure their bandwidth ping once for each flight of it.
//!
//! What this side sends to a server pays for its resets as well: one may follow each early answer
//! (RFC 9113 §8.1), and each answer follows a request.

use std::time::Duration;

/// How long a peer that stayed below its rate may be above it.
const BURST: u64 = 2;
/// The client's preface (RFC 9113 §3.4) is no frame.
const PREFACE: u64 = 24;
/// Bytes sent to a client that pay for one of its frames.
const SENT: u64 = 16;
/// Bytes sent to a server that pay for one of its frames and a reset: no head is shorter.
const ASKED: u64 = 10;
/// What a server may send in a second unpaid: the defaults of the limits on clients.
const SERVER: u32 = 1000;
/// What is sent in answer to a PING or SETTINGS must not pay for it.
const ANSWER: u64 = 2;

/// Why a peer's connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    /// Too many streams reset.
    #[error("the peer resets streams without end")]
    Resets,
    /// Too many frames that carry nothing.
    #[error("the peer sends frames without end that carry nothing")]
    Control,
}

/// The frames of one connection.
#[derive(Debug, Clone)]
pub struct Frames {
    server: bool,
    /// Bytes until the next head.
    skip: u64,
    head: [u8; 9],
    in_head: u8,
    resets: Budget,
    control: Budget,
    /// Bytes sent that have not paid yet.
    sent: u64,
}

/// Thousandths of a frame: a rate of N a second is N thousandths a millisecond.
#[derive(Debug, Clone)]
struct Budget {
    rate: u64,
    left: u64,
    /// Milliseconds, as given.
    at: u64,
}

const ONE: u64 = 1000;

impl Budget {
    fn new(rate: u32) -> Self {
        let rate = u64::from(rate.max(1));
        Self {
            rate,
            left: rate * BURST * ONE,
            at: 0,
        }
    }

    fn most(&self) -> u64 {
        self.rate * BURST * ONE
    }

    fn refill(&mut self, now: u64) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.earn(passed.saturating_mul(self.rate));
    }

    fn earn(&mut self, thousandths: u64) {
        self.left = self.left.saturating_add(thousandths).min(self.most());
    }

    /// False when nothing is left.
    fn spend(&mut self, frames: u64) -> bool {
        let enough = self.left >= frames * ONE;
        self.left = self.left.saturating_sub(frames * ONE);
        enough
    }
}

impl Frames {
    /// A client that has sent nothing yet; rates are frames a second.
    #[must_use]
    pub fn new(resets: u32, control: u32) -> Self {
        Self {
            server: false,
            skip: PREFACE,
            head: [0; 9],
            in_head: 0,
            resets: Budget::new(resets),
            control: Budget::new(control),
            sent: 0,
        }
    }

    /// A server that has sent nothing yet.
    #[must_use]
    pub fn of_server() -> Self {
        Self {
            server: true,
            skip: 0,
            ..Self::new(SERVER, SERVER)
        }
    }

    /// Bytes went to the peer.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64);
    }

    /// Takes in the next bytes of the peer, `now` after any fixed moment.
    ///
    /// # Errors
    /// When a budget is used up; the connection must end.
    pub fn feed(&mut self, mut bytes: &[u8], now: Duration) -> Result<(), Flood> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.resets.refill(now);
        self.control.refill(now);
        let paid = std::mem::take(&mut self.sent);
        let pays = |bytes| paid.saturating_mul(ONE) / bytes;
        if self.server {
            self.resets.earn(pays(ASKED));
            self.control.earn(pays(ASKED));
        } else {
            self.control.earn(pays(SENT));
        }
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len() as u64);
                self.skip -= n;
                bytes = bytes
                    .get(usize::try_from(n).unwrap_or(usize::MAX)..)
                    .unwrap_or_default();
                continue;
            }
            let have = usize::from(self.in_head);
            let n = (self.head.len() - have).min(bytes.len());
            let (new, rest) = bytes.split_at(n);
            if let Some(room) = self.head.get_mut(have..have + n) {
                room.copy_from_slice(new);
            }
            bytes = rest;
            self.in_head += u8::try_from(n).unwrap_or(0);
            if usize::from(self.in_head) == self.head.len() {
                self.in_head = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    /// Judges a head (RFC 9113 §4.1): length, type, flags, stream.
    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u64::from(u32::from_be_bytes([0, a, b, c]));
        self.skip = length;
        let (ack, end_stream) = (flags & 1 != 0, flags & 1 != 0);
        let (budget, cost, flood) = match kind {
            // DATA with bytes, or that ends a stream; HEADERS: a request, which is bounded as such.
            0x0 if length > 0 || end_stream => return Ok(()),
            // A server's that does not end its stream is the head of an answer, or of one before it.
            0x1 if !self.server || end_stream => return Ok(()),
            0x3 => (&mut self.resets, 1, Flood::Resets),
            // SETTINGS and PING are answered, unless they are answers.
            0x4 | 0x6 if !ack => (&mut self.control, ANSWER, Flood::Control),
            _ => (&mut self.control, 1, Flood::Control),
        };
        if budget.spend(cost) { Ok(()) } else { Err(flood) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PING: u8 = 6;
    const SECOND: Duration = Duration::from_secs(1);

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + payload, 7);
        bytes
    }

    fn started() -> Frames {
        let mut frames = Frames::new(100, 100);
        frames
            .feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Duration::ZERO)
            .expect("the preface is no frame");
        frames
    }

    /// How many of `bytes` in a row are taken at one moment; they are.
    fn taken(frames: &mut Frames, bytes: &[u8], now: Duration) -> usize {
        for n in 0..1_000_000 {
            let before = frames.clone();
            if frames.feed(bytes, now).is_err() {
                *frames = before;
                return n;
            }
        }
        usize::MAX
    }

    #[test]
    fn each_flood_meets_its_budget() {
        for (kind, flags, payload, most) in [
            (3, 0, 4, 200),
            (PING, 0, 8, 100),
            (PING, 1, 8, 200),
            (4, 0, 6, 100),
            (8, 0, 4, 200),
            (2, 0, 5, 200),
            (0, 0, 0, 200),
            (9, 0, 0, 200),
            (200, 0, 100, 200),
        ] {
            let mut frames = started();
            assert_eq!(
                taken(&mut frames, &frame(kind, flags, payload), Duration::ZERO),
                most,
                "type {kind}"
            );
        }
    }

    #[test]
    fn a_servers_floods_meet_the_same_budgets_and_its_answers_are_paid_for_by_requests() {
        for (kind, flags, payload, most) in [
            (3, 0, 4, 2000),
            (PING, 0, 8, 1000),
            (4, 0, 6, 1000),
            (8, 0, 4, 2000),
            (1, 4, 20, 2000),
            (0, 0, 0, 2000),
        ] {
            let mut frames = Frames::of_server();
            let bytes = frame(kind, flags, payload);
            assert_eq!(taken(&mut frames, &bytes, Duration::ZERO), most, "type {kind}");
        }
        let mut frames = Frames::of_server();
        // The head of an early answer, its end, and the reset that tells to stop sending.
        let answer = [frame(1, 4, 10), frame(0, 1, 0), frame(3, 0, 4)].concat();
        for _ in 0..100_000 {
            frames.sent(12);
            frames.feed(&answer, Duration::ZERO).expect("asked for");
        }
    }

    #[test]
    fn requests_and_data_cost_nothing() {
        let mut frames = started();
        for bytes in [frame(1, 4, 50), frame(0, 0, 16_384), frame(0, 1, 0)] {
            for _ in 0..10_000 {
                frames.feed(&bytes, Duration::ZERO).expect("no control frame");
            }
        }
    }

    #[test]
    fn a_budget_refills_with_time_and_with_what_is_sent_but_not_with_answers() {
        let ping = frame(PING, 0, 8);
        let mut frames = started();
        assert_eq!(taken(&mut frames, &ping, Duration::ZERO), 100);
        assert_eq!(taken(&mut frames, &ping, SECOND), 50, "100 a second, two for each ping");
        frames.sent(1600);
        assert_eq!(taken(&mut frames, &ping, SECOND), 50);
        let mut answered = started();
        let mut n = 0;
        while answered.feed(&ping, Duration::ZERO).is_ok() {
            answered.sent(17);
            n += 1;
            assert!(n < 1000, "a pong must not pay for its ping");
        }
        // Nothing earned without end.
        let mut frames = started();
        frames.sent(1 << 40);
        assert_eq!(taken(&mut frames, &ping, SECOND * 1_000_000), 100);
    }

    #[test]
    fn a_client_below_the_rate_goes_on_for_ever() {
        let (ping, update) = (frame(PING, 0, 8), frame(8, 0, 4));
        let mut frames = started();
        for ms in 0..100_000 {
            let now = Duration::from_millis(ms);
            if ms % 40 == 0 {
                frames.feed(&ping, now).expect("50 of 100 a second");
            }
            if ms % 25 == 0 {
                frames.feed(&update, now).expect("40 of 100 a second");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            kinds in proptest::collection::vec((0u8..12, any::<u8>(), 0usize..40), 0..400),
            cut in 1usize..40,
        ) {
            let bytes: Vec<u8> = kinds.into_iter().flat_map(|(k, f, n)| frame(k, f, n)).collect();
            let (mut whole, mut pieces) = (started(), started());
            let at_once = whole.feed(&bytes, Duration::ZERO);
            let in_pieces = bytes.chunks(cut).try_for_each(|c| pieces.feed(c, Duration::ZERO));
            prop_assert_eq!(at_once, in_pieces);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut frames = started();
            let _judged = frames.feed(&bytes, Duration::ZERO);
        }
    }
}
