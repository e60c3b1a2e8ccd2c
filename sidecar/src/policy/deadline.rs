//! How long a request may take: the smaller of the service's time-out and the caller's own.

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The caller's budget (gRPC over HTTP/2, "Timeout").
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The bounds on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The whole exchange ends then: what the caller said by `grpc-timeout`.
    pub whole: Option<Instant>,
    /// From the end of the request to the head of the answer: the service's time-out. A stream that
    /// has begun to answer, or whose request has not ended, is not cut by it.
    pub head: Option<Duration>,
}

impl Deadline {
    /// Makes the bounds from the caller's `grpc-timeout`, what it says is left (`told`), and the service's time-out.
    #[must_use]
    pub fn new(now: Instant, headers: &HeaderMap, told: Option<Duration>, service: Option<Duration>) -> Self {
        let caller = headers.get(GRPC_TIMEOUT).and_then(|v| parse_grpc_timeout(v.as_bytes()));
        Self {
            whole: caller.and_then(|t| now.checked_add(t)),
            head: match (told, service) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }

    /// True when nothing bounds the request.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.whole.is_none() && self.head.is_none()
    }

    /// When to look next, if the request's body has (`sent`) or has not been sent whole at `now`.
    #[must_use]
    pub fn next(&self, now: Instant, sent_at: Option<Instant>) -> Option<Instant> {
        let head = self.head.map(|limit| sent_at.unwrap_or(now) + limit);
        match (self.whole, head) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// What is left at `now` for the head of the answer, of a request that began at `began` and whose body has been sent or
    /// is on its way; only ever shorter.
    #[must_use]
    pub fn left(&self, began: Instant, now: Instant) -> Option<Duration> {
        let head = self
            .head
            .map(|limit| limit.saturating_sub(now.saturating_duration_since(began)));
        let whole = self.whole.map(|at| at.saturating_duration_since(now));
        match (head, whole) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The `grpc-timeout` for the next hop; only ever shorter than the caller's.
    #[must_use]
    pub fn forwarded(&self, now: Instant) -> Option<HeaderValue> {
        let left = self.whole?.saturating_duration_since(now);
        HeaderValue::try_from(format_grpc_timeout(left)).ok()
    }
}

/// Reads `outrigger-timeout-ms`.
#[must_use]
pub fn parse_timeout(text: &[u8]) -> Option<Duration> {
    if text.is_empty() || text.len() > 12 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(Duration::from_millis(
        text.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0')),
    ))
}

/// Reads `1*8DIGIT unit` with the units H, M, S, m, u, n.
#[must_use]
pub fn parse_grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Writes a duration with at most eight digits, rounded down.
#[must_use]
pub fn format_grpc_timeout(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let (micros, millis, seconds) = (left.as_micros(), left.as_millis(), u128::from(left.as_secs()));
    match () {
        () if micros <= MOST => format!("{micros}u"),
        () if millis <= MOST => format!("{millis}m"),
        () if seconds <= MOST => format!("{seconds}S"),
        () => format!("{}H", (seconds / 3600).min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn grpc_timeouts_are_read() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("4993222u", Some(Duration::from_micros(4_993_222))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789n", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
        ] {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn the_smaller_bound_wins_and_uploads_do_not_count() {
        let now = Instant::now();
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("2S"));
        let deadline = Deadline::new(now, &headers, None, Some(Duration::from_secs(5)));
        assert_eq!(deadline.next(now, Some(now)), Some(now + Duration::from_secs(2)));
        let deadline = Deadline::new(now, &HeaderMap::new(), None, Some(Duration::from_secs(5)));
        let later = now + Duration::from_secs(60);
        assert_eq!(
            deadline.next(later, None),
            Some(later + Duration::from_secs(5)),
            "still uploading"
        );
    }

    proptest! {
        #[test]
        fn a_forwarded_timeout_never_grows(nanos in 0u64..u64::MAX / 2) {
            let left = Duration::from_nanos(nanos);
            let read = parse_grpc_timeout(format_grpc_timeout(left).as_bytes()).expect("our own form");
            prop_assert!(read <= left);
        }

        #[test]
        fn a_deadline_never_grows(
            service in proptest::option::of(1u64..100_000),
            told in proptest::option::of(1u64..100_000),
            caller in proptest::option::of(1u32..100_000),
            steps in proptest::collection::vec(0u64..10_000, 1..8),
        ) {
            let began = Instant::now();
            let mut headers = HeaderMap::new();
            if let Some(ms) = caller {
                headers.insert(GRPC_TIMEOUT, HeaderValue::try_from(format!("{ms}m")).expect("digits"));
            }
            let millis = |ms: Option<u64>| ms.map(Duration::from_millis);
            let deadline = Deadline::new(began, &headers, millis(told), millis(service));
            let bound = [told, service, caller.map(u64::from)].into_iter().flatten().min();
            let (mut now, mut last) = (began, millis(bound));
            for step in steps {
                let left = deadline.left(began, now);
                prop_assert_eq!(left.is_some(), bound.is_some());
                prop_assert!(left <= last, "{:?} after {:?}", left, last);
                // What the next hop reads is no more than what was left.
                if let Some(left) = left {
                    let read = parse_timeout(left.as_millis().to_string().as_bytes()).expect("our own form");
                    prop_assert!(read <= left);
                }
                last = left;
                now += Duration::from_millis(step);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            let _unused = (parse_grpc_timeout(&bytes), parse_timeout(&bytes));
        }
    }
}
