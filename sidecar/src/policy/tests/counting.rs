//! Windows, budget, tallies, places.

use std::time::{Duration, Instant};

use outrigger_proto::model::{RetryBudget, Trip};
use proptest::prelude::*;

use crate::policy::budget::Budget;
use crate::policy::concurrency::Places;
use crate::policy::hedge::Latency;
use crate::policy::trip::{Cause, Sample, Tally};
use crate::policy::window::{Counter, stretch};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_window_forgets_by_tenths() {
    let counter = Counter::default();
    let at = |millis| stretch(millis, Duration::from_secs(10));
    for second in 0..10 {
        counter.add(at(second * 1000));
    }
    assert_eq!(counter.sum(at(9_999)), 10);
    assert_eq!(counter.sum(at(10_000)), 9);
    assert_eq!(counter.sum(at(15_500)), 4);
    assert_eq!(counter.sum(at(60_000)), 0);
    counter.add(at(60_000));
    counter.add(at(60_000));
    counter.undo(at(60_000));
    assert_eq!(counter.sum(at(60_000)), 1);
    counter.undo(at(50_000));
    assert_eq!(counter.sum(at(60_000)), 1, "what another stretch counted stays");
}

#[test]
fn the_budget_is_a_share_and_a_floor() {
    let start = Instant::now();
    let budget = Budget::new(start);
    let limit = RetryBudget {
        percent: 20,
        min_per_second: 3,
    };
    assert_eq!((0..100).filter(|_| budget.take(start, &limit)).count(), 30);
    assert_eq!(budget.left(start, &limit), 0);
    (0..1000).for_each(|_| budget.request(start));
    assert_eq!((0..1000).filter(|_| budget.take(start, &limit)).count(), 200);
    let later = start + Duration::from_secs(20);
    assert_eq!(budget.left(later, &limit), 30);
}

#[test]
fn a_tally_has_three_criteria() {
    let trip = Trip {
        consecutive: 3,
        rate_percent: 50,
        slow: Some(ms(100)),
        slow_percent: 80,
        min_requests: 10,
        window: Duration::from_secs(10),
    };
    let sample = |failed, took| Sample { failed, took: ms(took) };
    let tally = Tally::default();
    assert_eq!(tally.note(0, &trip, sample(true, 1)), None);
    assert_eq!(tally.note(0, &trip, sample(true, 1)), None);
    assert_eq!(tally.note(0, &trip, sample(false, 1)), None);
    assert_eq!(tally.note(0, &trip, sample(true, 1)), None);
    assert_eq!(tally.note(0, &trip, sample(true, 1)), None);
    assert_eq!(tally.note(0, &trip, sample(true, 1)), Some(Cause::Row(3)));

    let tally = Tally::default();
    let causes: Vec<_> = (0..10).map(|i| tally.note(0, &trip, sample(i % 2 == 1, 1))).collect();
    assert_eq!(causes.iter().flatten().collect::<Vec<_>>(), [&Cause::Rate(50, 10)]);

    let tally = Tally::default();
    let causes: Vec<_> = (0..10).map(|_| tally.note(0, &trip, sample(false, 200))).collect();
    assert_eq!(causes.iter().flatten().collect::<Vec<_>>(), [&Cause::Slow(100, 10)]);

    tally.clear();
    assert_eq!(tally.note(0, &trip, sample(false, 200)), None);
}

#[test]
fn the_95th_of_100_is_found_and_fades() {
    let start = Instant::now();
    let latency = Latency::new(start);
    assert_eq!(latency.p95(start), None);
    for i in 0..100 {
        latency.record(start, if i < 94 { ms(10) } else { ms(500) });
    }
    let p95 = latency.p95(start).expect("enough");
    assert!(p95 >= ms(500) && p95 <= ms(625), "{p95:?}");
    let later = start + Duration::from_secs(60);
    for _ in 0..100 {
        latency.record(later, ms(10));
    }
    let p95 = latency.p95(later).expect("enough");
    assert!(p95 >= ms(10) && p95 <= ms(13), "{p95:?}");
}

proptest! {
    /// Whatever comes in whatever order: in any ten seconds no more tries than the share of the requests and the floor.
    #[test]
    fn a_budget_is_never_overdrawn(
        percent in 0u32..=100,
        floor in 0u32..5,
        steps in proptest::collection::vec((0u64..3_000, 0u32..50, 0u32..50), 1..60),
    ) {
        let start = Instant::now();
        let budget = Budget::new(start);
        let limit = RetryBudget { percent, min_per_second: floor };
        let (mut at, mut requests, mut taken) = (0u64, Vec::new(), Vec::new());
        for (step, asked, tried) in steps {
            at += step;
            let now = start + ms(at);
            for _ in 0..asked {
                budget.request(now);
                requests.push(at / 1000);
            }
            for _ in 0..tried {
                let before = budget.left(now, &limit);
                let took = budget.take(now, &limit);
                prop_assert_eq!(took, before > 0);
                if took {
                    taken.push(at / 1000);
                    prop_assert_eq!(budget.left(now, &limit), before - 1);
                }
            }
            let within = |all: &[u64]| all.iter().filter(|s| at / 1000 - **s < 10).count() as u64;
            // Requests that have left the window allow no more, but what they allowed stays spent.
            if taken.last() == Some(&(at / 1000)) && tried > 0 && budget.left(now, &limit) > 0 {
                prop_assert!(within(&taken) <= within(&requests) * u64::from(percent) / 100 + u64::from(floor) * 10);
            }
        }
    }

    #[test]
    fn places_are_exact(limit in 0u32..20, steps in proptest::collection::vec(any::<bool>(), 0..200)) {
        let places = Places::default();
        let mut used = 0;
        for take in steps {
            if take {
                prop_assert_eq!(places.take(limit), used < limit);
                used = (used + 1).min(limit);
            } else if used > 0 {
                places.give_back();
                used -= 1;
            }
            prop_assert_eq!(places.used(), used);
        }
    }
}
