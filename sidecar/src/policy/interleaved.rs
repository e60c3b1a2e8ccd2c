//! Every interleaving of two or three workers at one cell, by loom: the cells again, with its atomics.
#![allow(
    clippy::duplicate_mod,
    dead_code,
    unreachable_pub,
    reason = "the same files, compiled with other atomics"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proto::model;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
}

#[path = "breaker.rs"]
mod breaker;
#[path = "budget.rs"]
mod budget;
#[path = "concurrency.rs"]
mod concurrency;
#[path = "outlier.rs"]
mod outlier;
#[path = "trip.rs"]
mod trip;
#[path = "window.rs"]
mod window;

use self::breaker::{Admitted, Breaker, Change, Pass};
use self::trip::{Sample, Tally};

const FAILED: Sample = Sample {
    failed: true,
    took: Duration::ZERO,
};
const WELL: Sample = Sample {
    failed: false,
    took: Duration::ZERO,
};

/// Runs `work` on two workers in every order, and then `check`.
fn all_orders<T: Send + Sync + 'static, R: Send + 'static>(
    make: impl Fn() -> T + Send + Sync + 'static,
    work: impl Fn(&T) -> R + Send + Sync + Copy + 'static,
    check: impl Fn(&T, [R; 2]) + Send + Sync + 'static,
) {
    let mut model = loom::model::Builder::new();
    // More switches than this find nothing new in cells of one or two words, and take minutes.
    model.preemption_bound = Some(3);
    model.check(move || {
        let cell = Arc::new(make());
        let other = cell.clone();
        let thread = loom::thread::spawn(move || work(&other));
        let here = work(&cell);
        let there = thread.join().expect("a worker");
        check(&cell, [here, there]);
    });
}

#[test]
fn the_last_place_is_taken_once() {
    all_orders(
        concurrency::Places::default,
        |places| {
            let taken = places.take(1);
            if taken {
                assert_eq!(places.used(), 1);
                places.give_back();
            }
            taken
        },
        |places, taken| {
            assert_eq!(places.used(), 0);
            assert!(taken.contains(&true));
        },
    );
}

#[test]
fn the_last_token_is_taken_at_most_once() {
    let start = Instant::now();
    let limit = model::RetryBudget {
        percent: 100,
        min_per_second: 0,
    };
    all_orders(
        move || {
            let budget = budget::Budget::new(start);
            budget.request(start);
            budget
        },
        move |budget| budget.take(start, &limit),
        move |budget, taken| {
            let taken = taken.iter().filter(|t| **t).count() as u64;
            assert!(taken <= 1);
            assert_eq!(budget.left(start, &limit), 1 - taken);
        },
    );
}

#[test]
fn a_new_stretch_loses_no_count() {
    all_orders(
        || {
            let counter = window::Counter::default();
            counter.add(3);
            counter
        },
        |counter| counter.add(13),
        |counter, _| assert_eq!(counter.sum(13), 2),
    );
}

#[test]
fn two_failures_are_a_row_of_two() {
    let trip = model::Trip {
        consecutive: 2,
        ..model::Trip::default()
    };
    all_orders(
        Tally::default,
        move |tally| tally.note(0, &trip, FAILED).is_some(),
        |_, tripped| assert_eq!(tripped.iter().filter(|t| **t).count(), 1),
    );
}

fn settings(probes: u32) -> model::Breaker {
    model::Breaker {
        trip: model::Trip {
            consecutive: 1,
            ..model::Trip::default()
        },
        cooldown: Duration::from_secs(10),
        max_cooldown: Duration::from_secs(10),
        probes,
    }
}

/// One that is due for probes.
fn due(start: Instant) -> Breaker {
    let breaker = Breaker::new(start);
    if let Admitted::Yes(pass, _) = breaker.admit(start, &settings(1)) {
        assert!(breaker.record(start, pass, &settings(1), FAILED).is_some());
    }
    breaker
}

#[test]
fn it_opens_once_and_probes_are_counted() {
    let start = Instant::now();
    let later = start + Duration::from_secs(10);
    for probes in [1, 2] {
        all_orders(
            move || due(start),
            move |breaker| {
                matches!(
                    breaker.admit(later, &settings(probes)),
                    Admitted::Yes(Pass::Probe(_), _)
                )
            },
            move |_, let_through| {
                assert_eq!(let_through.iter().filter(|l| **l).count(), probes as usize);
            },
        );
    }
    all_orders(
        move || Breaker::new(start),
        move |breaker| match breaker.admit(start, &settings(1)) {
            Admitted::Yes(pass, _) => breaker.record(start, pass, &settings(1), FAILED),
            Admitted::No(_) => None,
        },
        |_, changes| assert_eq!(changes.iter().flatten().count(), 1),
    );
}

#[test]
fn of_two_probes_that_disagree_the_failed_one_is_heard() {
    let start = Instant::now();
    let later = start + Duration::from_secs(10);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let breaker = Arc::new(due(start));
        let probe = |b: &Breaker| match b.admit(later, &settings(2)) {
            Admitted::Yes(pass, _) => pass,
            Admitted::No(_) => panic!("a probe passes"),
        };
        let (one, two) = (probe(&breaker), probe(&breaker));
        let other = breaker.clone();
        let thread = loom::thread::spawn(move || other.record(later, one, &settings(2), WELL));
        let failed = breaker.record(later, two, &settings(2), FAILED);
        let well = thread.join().expect("a worker");
        assert!(matches!(failed, Some(Change::Opened(..))));
        assert_eq!(well, None);
        assert!(matches!(breaker.admit(later, &settings(2)), Admitted::No(_)));
    });
}

#[test]
fn two_that_eject_at_once_stay_below_the_share() {
    let start = Instant::now();
    all_orders(
        move || {
            let all = [outlier::Outlier::new(start), outlier::Outlier::new(start)];
            (outlier::Turn::default(), all, loom::sync::atomic::AtomicU32::new(0))
        },
        move |(turn, all, next)| {
            let i = next.fetch_add(1, atomic::Ordering::Relaxed) as usize;
            turn.eject(start, &model::Outlier::default(), &all[i], all.iter(), |_| ())
                .is_some()
        },
        move |(_, all, _), ejected| {
            let count = ejected.iter().filter(|e| **e).count();
            assert_eq!(count, 1);
            assert_eq!(all.iter().filter(|o| o.is_ejected(start)).count(), count);
        },
    );
}
