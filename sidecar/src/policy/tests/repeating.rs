//! When a try is repeated, and when not.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use outrigger_proto::model::{Policy, Retry};
use proptest::prelude::*;

use crate::policy::backoff::{self, Asked};
use crate::policy::retry::{Failure, Outcome, Verdict, idempotent, repeat, verdict};

#[test]
fn what_was_never_processed_is_repeated_and_nothing_else() {
    use Failure::{MaybeProcessed, NeverSent, Refused};
    for (failure, tries, endpoints, replayable, expected) in [
        (NeverSent, 1, 1, false, Verdict::Again),
        (NeverSent, 2, 1, false, Verdict::GiveUp),
        (NeverSent, 3, 3, false, Verdict::Again),
        (Refused, 1, 2, true, Verdict::Again),
        (Refused, 1, 2, false, Verdict::GiveUp),
        (MaybeProcessed, 1, 5, true, Verdict::GiveUp),
    ] {
        assert_eq!(
            verdict(failure, tries, endpoints, replayable),
            expected,
            "{failure:?} {tries} {endpoints}"
        );
    }
}

#[test]
fn only_what_is_idempotent_may_be_done_twice() {
    let plain = Policy::default();
    let declared = Policy {
        idempotent: true,
        ..Policy::default()
    };
    for (policy, method, grpc, upgrade, expected) in [
        (&plain, Method::GET, false, false, true),
        (&plain, Method::DELETE, false, false, true),
        (&plain, Method::PUT, false, false, true),
        (&plain, Method::POST, false, false, false),
        (&plain, Method::PATCH, false, false, false),
        (&plain, Method::from_bytes(b"PURGE").unwrap(), false, false, false),
        (&plain, Method::POST, true, false, false),
        (&plain, Method::GET, false, true, false),
        (&declared, Method::POST, false, false, true),
        (&declared, Method::POST, true, false, true),
        (&declared, Method::GET, false, true, false),
    ] {
        assert_eq!(
            idempotent(policy, &method, grpc, upgrade),
            expected,
            "{method} {grpc} {upgrade}"
        );
    }
}

#[test]
fn the_policy_and_the_answer_decide_together() {
    let policy = Policy {
        retry: Retry {
            attempts: 3,
            ..Retry::default()
        },
        ..Policy::default()
    };
    for (sent, outcome, asked, last_word, expected) in [
        (1, Outcome::Status(503), Asked::Nothing, false, Verdict::Again),
        (
            2,
            Outcome::Status(503),
            Asked::After(Duration::ZERO),
            false,
            Verdict::Again,
        ),
        (3, Outcome::Status(503), Asked::Nothing, false, Verdict::GiveUp),
        (1, Outcome::Status(500), Asked::Nothing, false, Verdict::GiveUp),
        (1, Outcome::Status(200), Asked::Nothing, false, Verdict::GiveUp),
        (1, Outcome::Grpc(14), Asked::Nothing, false, Verdict::Again),
        (1, Outcome::Grpc(8), Asked::Nothing, false, Verdict::GiveUp),
        (1, Outcome::Grpc(14), Asked::Never, false, Verdict::GiveUp),
        (1, Outcome::Timeout, Asked::Nothing, false, Verdict::Again),
        (1, Outcome::Reset, Asked::Nothing, false, Verdict::Again),
        (1, Outcome::Status(503), Asked::Nothing, true, Verdict::GiveUp),
    ] {
        assert_eq!(
            repeat(&policy, sent, outcome, asked, last_word),
            expected,
            "{sent} {outcome:?} {asked:?}"
        );
    }
    let none = Policy::default();
    assert_eq!(
        repeat(&none, 1, Outcome::Status(503), Asked::Nothing, false),
        Verdict::GiveUp
    );
}

#[test]
fn a_grpc_answer_tells_by_its_status_field() {
    let mut head = HeaderMap::new();
    assert_eq!(Outcome::of_head(StatusCode::OK, &head, true), Outcome::Grpc(0));
    head.insert("grpc-status", HeaderValue::from_static("14"));
    assert_eq!(Outcome::of_head(StatusCode::OK, &head, true), Outcome::Grpc(14));
    assert_eq!(Outcome::of_head(StatusCode::OK, &head, false), Outcome::Status(200));
    assert_eq!(
        Outcome::of_head(StatusCode::BAD_GATEWAY, &head, true),
        Outcome::Status(502)
    );
}

#[test]
fn an_answer_says_when() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 5);
    for (name, value, expected) in [
        ("retry-after", "3", Asked::After(Duration::from_secs(3))),
        (
            "retry-after",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            Asked::After(Duration::from_secs(5)),
        ),
        (
            "retry-after",
            "Sun, 06 Nov 1994 08:49:30 GMT",
            Asked::After(Duration::ZERO),
        ),
        ("retry-after", "soon", Asked::Nothing),
        ("retry-after", "-1", Asked::Nothing),
        ("retry-after", "Sun, 06 Nov 1994 28:49:37 GMT", Asked::Nothing),
        (
            "grpc-retry-pushback-ms",
            "250",
            Asked::After(Duration::from_millis(250)),
        ),
        ("grpc-retry-pushback-ms", "-1", Asked::Never),
        ("grpc-retry-pushback-ms", "later", Asked::Never),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        assert_eq!(backoff::asked(&headers, now), expected, "{name}: {value}");
    }
}

proptest! {
    #[test]
    fn a_wait_is_below_its_bound(n: u32, base in 0u64..10_000, max in 0u64..100_000, chance in 0.0f64..=1.0) {
        let (base, max) = (Duration::from_millis(base), Duration::from_millis(max));
        let wait = backoff::wait(n, base, max, chance);
        prop_assert!(wait <= max);
        prop_assert!(n > 0 || wait <= base);
    }

    #[test]
    fn any_retry_after_is_read_or_not(text in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _unused = backoff::retry_after(&text, SystemTime::now());
    }
}
