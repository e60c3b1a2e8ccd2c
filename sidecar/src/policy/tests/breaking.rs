//! Breaker and ejection over time.

use std::time::{Duration, Instant};

use outrigger_proto::model::{Breaker as BreakerSettings, Outlier as OutlierSettings, Trip};
use proptest::prelude::*;

use crate::policy::breaker::{Admitted, Breaker, Change, Pass, State};
use crate::policy::outlier::{self, Outlier, Turn};
use crate::policy::trip::{Cause, Sample};

const WELL: Sample = Sample {
    failed: false,
    took: Duration::ZERO,
};
const FAILED: Sample = Sample {
    failed: true,
    took: Duration::ZERO,
};

fn settings() -> BreakerSettings {
    BreakerSettings {
        trip: Trip {
            consecutive: 3,
            ..Trip::default()
        },
        cooldown: Duration::from_secs(10),
        max_cooldown: Duration::from_secs(25),
        probes: 2,
    }
}

fn pass(breaker: &Breaker, now: Instant) -> Option<Pass> {
    match breaker.admit(now, &settings()) {
        Admitted::Yes(pass, _) => Some(pass),
        Admitted::No(_) => None,
    }
}

fn fail(breaker: &Breaker, now: Instant) -> Option<Change> {
    let pass = pass(breaker, now).expect("it passes");
    breaker.record(now, pass, &settings(), FAILED)
}

#[test]
fn it_opens_probes_and_closes_and_waits_longer_each_time() {
    let start = Instant::now();
    let breaker = Breaker::new(start);
    let late = pass(&breaker, start).expect("closed");
    assert_eq!(fail(&breaker, start), None);
    assert_eq!(fail(&breaker, start), None);
    assert_eq!(
        fail(&breaker, start),
        Some(Change::Opened(Cause::Row(3), Duration::from_secs(10)))
    );
    assert_eq!(breaker.admit(start, &settings()), Admitted::No(Duration::from_secs(10)));
    assert_eq!(
        breaker.record(start, late, &settings(), FAILED),
        None,
        "it is known already"
    );

    let mut now = start;
    for (wait, next) in [(10, 20), (20, 25), (25, 25)] {
        now += Duration::from_secs(wait);
        assert!(matches!(
            breaker.admit(now, &settings()),
            Admitted::Yes(Pass::Probe(_), Some(Change::Probing))
        ));
        let second = pass(&breaker, now).expect("the second probe");
        assert_eq!(pass(&breaker, now), None, "two are enough");
        assert_eq!(
            breaker.record(now, second, &settings(), FAILED),
            Some(Change::Opened(Cause::Probe, Duration::from_secs(next)))
        );
    }
    now += Duration::from_secs(25);
    let (one, two) = (
        pass(&breaker, now).expect("a probe"),
        pass(&breaker, now).expect("a probe"),
    );
    assert_eq!(breaker.record(now, one, &settings(), WELL), None);
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(breaker.record(now, two, &settings(), WELL), Some(Change::Closed));
    // The cool-down begins small again.
    assert_eq!(fail(&breaker, now), None);
    assert_eq!(fail(&breaker, now), None);
    assert_eq!(
        fail(&breaker, now),
        Some(Change::Opened(Cause::Row(3), Duration::from_secs(10)))
    );
}

#[test]
fn a_probe_that_tells_nothing_makes_room_for_another() {
    let start = Instant::now();
    let breaker = Breaker::new(start);
    for _ in 0..3 {
        fail(&breaker, start);
    }
    let now = start + Duration::from_secs(10);
    let (one, _lost) = (pass(&breaker, now).expect("one"), pass(&breaker, now).expect("two"));
    assert_eq!(pass(&breaker, now), None);
    breaker.abandon(one);
    assert!(pass(&breaker, now).is_some());
    // And one that never ends keeps nobody out for ever.
    assert_eq!(pass(&breaker, now + Duration::from_secs(5)), None);
    assert!(pass(&breaker, now + Duration::from_secs(13)).is_some());
}

#[test]
fn an_ejection_grows_in_a_row_and_is_forgiven() {
    let start = Instant::now();
    let settings = OutlierSettings {
        max_ejection: Duration::from_secs(70),
        ..OutlierSettings::default()
    };
    let (all, turn) = ([(); 4].map(|()| Outlier::new(start)), Turn::default());
    let eject = |now| turn.eject(now, &settings, &all[0], all.iter(), |_| ());
    let mut now = start + Duration::from_secs(1000);
    for expected in [30, 60, 70, 70] {
        let lasts = Duration::from_secs(expected);
        assert_eq!(eject(now), Some(lasts));
        assert_eq!(eject(now), None, "it is ejected already");
        assert!(all[0].is_ejected(now + lasts - Duration::from_millis(1)));
        now += lasts;
        assert!(!all[0].is_ejected(now));
        assert!(all[0].comes_back(now));
        assert!(!all[0].comes_back(now), "once");
        now += Duration::from_secs(1);
    }
    now += Duration::from_secs(70);
    assert_eq!(eject(now), Some(Duration::from_secs(30)), "it was well for long");
}

#[test]
fn shares_are_rounded_down() {
    for (total, percent, most) in [
        (0, 50, 0),
        (1, 50, 0),
        (2, 50, 1),
        (3, 50, 1),
        (3, 100, 3),
        (10, 33, 3),
        (3, 200, 3),
    ] {
        assert_eq!(outlier::most(total, percent), most, "{percent} % of {total}");
    }
    for (total, ejected, percent, panics) in [(4, 2, 50, false), (4, 3, 50, true), (3, 0, 100, false), (3, 3, 1, true)]
    {
        assert_eq!(outlier::panics(total, ejected, percent), panics, "{ejected} of {total}");
    }
}

proptest! {
    /// Whoever fails whenever: never more ejected than the share.
    #[test]
    fn the_share_of_ejected_endpoints_never_exceeds_its_bound(
        n in 1usize..12,
        percent in 1u32..=100,
        consecutive in 1u32..4,
        steps in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0u64..20_000), 1..200),
    ) {
        let start = Instant::now();
        let settings = OutlierSettings {
            trip: Some(Trip { consecutive, ..Trip::default() }),
            max_ejected_percent: percent,
            ..OutlierSettings::default()
        };
        let all: Vec<_> = (0..n).map(|_| Outlier::new(start)).collect();
        let (turn, mut now) = (Turn::default(), start);
        for (who, failed, step) in steps {
            now += Duration::from_millis(step);
            let one = &all[who.index(n)];
            let cause = one.record(now, &settings, Sample { failed, took: Duration::ZERO });
            if cause.is_some() {
                turn.eject(now, &settings, one, all.iter(), |_| ());
            }
            let ejected = all.iter().filter(|o| o.is_ejected(now)).count();
            prop_assert!(ejected * 100 <= n * percent as usize, "{} of {}", ejected, n);
        }
    }

    /// Whatever happens: no more probes are out than allowed, and only probes close it.
    #[test]
    fn a_breaker_keeps_its_word(
        probes in 1u32..4,
        steps in proptest::collection::vec((0u64..8_000, 0u8..4, any::<prop::sample::Index>()), 1..200),
    ) {
        let settings = BreakerSettings { probes, ..settings() };
        let start = Instant::now();
        let (breaker, mut now, mut out) = (Breaker::new(start), start, Vec::new());
        for (step, what, which) in steps {
            now += Duration::from_millis(step);
            let before = breaker.state();
            match what {
                0 | 1 => if let Admitted::Yes(pass, _) = breaker.admit(now, &settings) {
                    prop_assert_eq!(matches!(pass, Pass::Closed(_)), before == State::Closed);
                    if matches!(pass, Pass::Probe(_)) {
                        out.push(pass);
                        let same = out.iter().filter(|p| **p == pass).count();
                        prop_assert!(same <= probes as usize, "{} probes", same);
                    } else {
                        out.push(pass);
                    }
                },
                _ if out.is_empty() => {}
                what => {
                    let pass = out[which.index(out.len())];
                    let sample = if what == 2 { FAILED } else { WELL };
                    let change = breaker.record(now, pass, &settings, sample);
                    if change == Some(Change::Closed) {
                        prop_assert!(matches!(pass, Pass::Probe(_)));
                    }
                    if before == State::Open {
                        prop_assert_eq!(change, None);
                    }
                    // A pass counts once; a probe that is well stays counted until the state changes.
                    if matches!(pass, Pass::Closed(_)) || change.is_some() {
                        out.retain(|p| *p != pass);
                    }
                }
            }
        }
    }
}
