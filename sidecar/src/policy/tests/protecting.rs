//! Buckets, keys and limits at their edges.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use outrigger_proto::model::{Admission, Limit};
use proptest::prelude::*;

use crate::policy::admission::Limiter;
use crate::policy::rate::{At, Bucket, Keyed, Rate};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn settings(limit: Limit) -> Admission {
    Admission {
        limit,
        min: 4,
        max: 1000,
        initial: 20,
        queue: ms(100),
        queue_length: 128,
    }
}

#[test]
fn a_bucket_holds_its_burst_and_says_when_there_is_more() {
    let start = Instant::now();
    let (bucket, rate) = (Bucket::default(), Rate::new(100, Duration::from_secs(1), 10));
    let take = |at| bucket.take(At::new(start, start + at), &rate);
    assert_eq!((0..20).filter(|_| take(ms(0)).is_ok()).count(), 10);
    assert_eq!(take(ms(0)), Err(ms(10)));
    assert_eq!(take(ms(4)), Err(ms(6)));
    assert_eq!(take(ms(10)), Ok(()));
    bucket.put_back(&rate);
    assert_eq!(take(ms(10)), Ok(()));
    assert_eq!(take(ms(10)), Err(ms(10)));
    assert_eq!((0..20).filter(|_| take(ms(60_000)).is_ok()).count(), 10);
}

#[test]
fn every_key_has_its_own_bucket_and_none_in_use_is_forgotten() {
    let start = Instant::now();
    let rate = Rate::new(1, Duration::from_secs(1), 1);
    let (keyed, at) = (Keyed::new(64), |millis| At::new(start, start + ms(millis)));
    // Alike in the bits that choose the place, so that eight of them fill it.
    let key = |n: u64| n << 32;
    for n in 1..=8 {
        assert_eq!(keyed.take(key(n), at(0), &rate), Ok(()));
    }
    assert_eq!(keyed.take(key(9), at(0), &rate), Ok(()), "the shared bucket");
    assert!(keyed.take(key(10), at(0), &rate).is_err(), "the shared bucket");
    for n in 1..=8 {
        assert!(keyed.take(key(n), at(500), &rate).is_err(), "{n}");
    }
    assert_eq!(keyed.take(1, at(500), &rate), Ok(()), "places elsewhere are free");
    for n in 11..=18 {
        assert_eq!(keyed.take(key(n), at(1001), &rate), Ok(()), "{n}");
    }
}

#[test]
fn a_part_of_a_rate_is_a_part_of_its_burst_and_at_least_one() {
    let second = Duration::from_secs(1);
    let whole = Rate::new(100, second, 50);
    assert_eq!(whole.part(1_000_000, 1_000_000), whole);
    assert_eq!(whole.part(400_000, 1_000_000), Rate::new(40, second, 20));
    assert_eq!(whole.part(10_000, 1_000_000), Rate::new(1, second, 1));
    // Rounded so that parts never make more than the whole.
    let odd = Rate::new(1, Duration::from_nanos(7), 1).part(3, 10);
    assert_eq!(odd, Rate::new(1, Duration::from_nanos(24), 1));
    // Of the rarest there is: no overflow, and more is never let through.
    let rare = Rate::new(1, Duration::from_secs(u32::MAX.into()), 1).part(1, 1_000_000);
    let (bucket, start) = (Bucket::default(), Instant::now());
    let take = || bucket.take(At::new(start, start), &rare);
    assert!(take().is_ok() && take().is_err());
}

#[test]
fn what_a_bucket_holds_stays_when_its_rate_changes() {
    let start = Instant::now();
    let at = |millis| At::new(start, start + ms(millis));
    let rate = |requests, burst| Rate::new(requests, Duration::from_secs(1), burst);
    let pass =
        |bucket: &Bucket, millis, rate: &Rate| (0..200).filter(|_| bucket.take(at(millis), rate).is_ok()).count();
    let scarce = Bucket::scarce(at(0), &rate(100, 50));
    assert_eq!(pass(&scarce, 0, &rate(100, 50)), 1);
    let bucket = Bucket::scarce(at(0), &rate(10, 5));
    bucket.change(at(0), &rate(10, 5), &rate(90, 45));
    assert_eq!(pass(&bucket, 0, &rate(90, 45)), 1, "a larger share is no burst");
    assert_eq!(pass(&bucket, 105, &rate(90, 45)), 9, "and fills faster from then on");
    bucket.change(at(300), &rate(90, 45), &rate(10, 5));
    assert_eq!(pass(&bucket, 300, &rate(10, 5)), 5, "at most the new burst");
    bucket.change(at(60_000), &rate(10, 5), &rate(20, 10));
    assert_eq!(pass(&bucket, 60_000, &rate(20, 10)), 5, "what it held before");
    let full = Bucket::default();
    full.change(at(1), &rate(10, 5), &rate(10, 5));
    assert_eq!(pass(&full, 1, &rate(10, 5)), 5);
}

#[test]
fn workers_share_a_bucket_exactly() {
    let start = Instant::now();
    let rate = Rate::new(1, Duration::from_secs(3600), 1000);
    let (one, keyed) = (Bucket::default(), Keyed::new(64));
    let counts = std::thread::scope(|scope| {
        let worker = || {
            let at = At::new(start, start);
            let all = (0..1000).filter(|_| one.take(at, &rate).is_ok()).count();
            // Keys that several workers see for the first time.
            let each: Vec<usize> = (1..9u64)
                .map(|key| (0..400).filter(|_| keyed.take(key << 32, at, &rate).is_ok()).count())
                .collect();
            (all, each)
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        let done: Vec<_> = workers.into_iter().map(|w| w.join().expect("a worker")).collect();
        done
    });
    assert_eq!(counts.iter().map(|(all, _)| all).sum::<usize>(), 1000);
    for key in 0..8 {
        let sum = counts.iter().map(|(_, each)| each[key]).sum::<usize>();
        assert_eq!(sum, 1000, "key {key}");
    }
}

/// An app that serves `places` at once in `service` each, with a queue of its own, and more requests than it can serve.
struct App {
    places: u32,
    service: Duration,
}

impl App {
    /// Goes on for a while from `at`; whenever a place at the app is free somebody takes it.
    fn overload(&self, limiter: &Limiter, settings: &Admission, at: &mut Instant, time: Duration) {
        let end = *at + time;
        let mut cooks: BinaryHeap<_> = (0..self.places).map(|_| Reverse(*at)).collect();
        let mut inside = BinaryHeap::new();
        while *at < end {
            while limiter.take() {
                let Reverse(free) = cooks.pop().expect("a place");
                let done = free.max(*at) + self.service;
                cooks.push(Reverse(done));
                inside.push(Reverse((done, *at)));
            }
            let Reverse((done, began)) = inside.pop().expect("the limit is never 0");
            *at = done;
            limiter.answered(settings, began, done, false);
            limiter.give_back();
        }
        inside.iter().for_each(|_| limiter.give_back());
    }
}

#[test]
fn the_limit_finds_what_an_app_can_do_and_finds_it_again() {
    for (limit, places) in [
        (Limit::Gradient, 4),
        (Limit::Gradient, 100),
        (Limit::Aimd, 4),
        (Limit::Aimd, 40),
    ] {
        let settings = settings(limit);
        let mut at = Instant::now();
        let limiter = Limiter::new(&settings, at);
        let mut app = App {
            places,
            service: ms(10),
        };
        let near = |when: &str| {
            let found = limiter.limit();
            assert!(
                (places * 9 / 20..=places * 3).contains(&found),
                "{limit:?}: {found} for {places} places {when}"
            );
        };
        app.overload(&limiter, &settings, &mut at, Duration::from_secs(30));
        near("after a while");
        app.service = ms(60);
        app.overload(&limiter, &settings, &mut at, Duration::from_secs(30));
        near("when it is slow");
        app.service = ms(10);
        app.overload(&limiter, &settings, &mut at, Duration::from_secs(30));
        near("when it is well again");
    }
}

#[test]
fn who_does_not_use_the_limit_does_not_move_it() {
    let settings = settings(Limit::Gradient);
    let mut at = Instant::now();
    let limiter = Limiter::new(&settings, at);
    for _ in 0..10_000 {
        assert!(limiter.take());
        limiter.answered(&settings, at, at + ms(10), false);
        limiter.give_back();
        at += ms(10);
    }
    assert_eq!(limiter.limit(), 20);
}

proptest! {
    /// Over any span no more passes than the burst and what the span is worth.
    #[test]
    fn a_rate_is_never_exceeded(
        requests in 1u64..2_000,
        burst in 1u32..50,
        gaps in proptest::collection::vec(0u64..40_000, 1..300),
    ) {
        let start = Instant::now();
        let (bucket, rate) = (Bucket::default(), Rate::new(requests, Duration::from_secs(1), burst));
        let (mut at, mut passed) = (0u64, Vec::new());
        for gap in gaps {
            at += gap;
            for _ in 0..3 {
                match bucket.take(At::new(start, start + Duration::from_micros(at)), &rate) {
                    Ok(()) => passed.push(at),
                    Err(wait) => prop_assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1)),
                }
            }
        }
        for (i, from) in passed.iter().enumerate() {
            for (j, to) in passed.iter().enumerate().skip(i) {
                let count = (j - i + 1) as f64;
                let most = f64::from(burst) + (to - from) as f64 * requests as f64 / 1e6;
                prop_assert!(count <= most + 1e-6, "{count} in {} µs", to - from);
            }
        }
    }

    /// Whatever answers come, the limit stays within its bounds, and places add up.
    #[test]
    fn a_limit_stays_within_its_bounds(
        aimd in any::<bool>(),
        min in 1u32..50,
        more in 0u32..100,
        steps in proptest::collection::vec((0u64..400, 1u64..3_000_000, any::<bool>()), 1..400),
    ) {
        let limit = if aimd { Limit::Aimd } else { Limit::Gradient };
        let settings = Admission { min, max: min + more, ..settings(limit) };
        let mut at = Instant::now();
        let limiter = Limiter::new(&settings, at);
        for (gap, took, failed) in steps {
            at += ms(gap);
            let taken = std::iter::from_fn(|| limiter.take().then_some(())).count();
            prop_assert_eq!(taken as u32, limiter.used());
            for _ in 0..taken {
                limiter.answered(&settings, at, at + Duration::from_micros(took), failed);
            }
            (0..taken).for_each(|_| limiter.give_back());
            prop_assert!((min..=min + more).contains(&limiter.limit()), "{}", limiter.limit());
            prop_assert_eq!(limiter.used(), 0);
        }
    }
}
