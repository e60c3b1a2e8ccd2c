//! What the sidecar's rules promise, in virtual time; and the document's table is what the build prints.

use outrigger_sim::rules::Setting;
use outrigger_sim::scenes::{
    Whose, brown_out, chain, cold_cache, flapping, movement, one_slow_of_ten, poisoned, rolling_restart, storm,
    zone_loss,
};
use outrigger_sim::table;

const SEEDS: std::ops::Range<u64> = 1..4;

#[test]
fn one_slow_of_ten_hardly_shows_and_round_robin_shows_it() {
    for seed in SEEDS {
        let ratio = |whose| one_slow_of_ten(whose, true, seed).p99 / one_slow_of_ten(whose, false, seed).p99;
        let (ours, none) = (ratio(Whose::Outrigger), ratio(Whose::Nobody));
        assert!(ours <= 1.3, "{ours} with seed {seed}");
        assert!(none > 2.0, "{none} with seed {seed}");
    }
}

#[test]
fn a_total_outage_is_not_multiplied() {
    for (clients, rate) in [(100, 1.0), (100, 5.0), (5, 1000.0)] {
        for seed in SEEDS {
            let figures = storm(Whose::Outrigger, clients, rate, seed);
            // A fifth of the requests, and 30 in 10 s of each caller; the last requests of the 60 s are tried again after it.
            let floor = 3.0 * 70.0 * clients as f64 / figures.requests as f64;
            assert!(
                figures.tries <= 1.2 + floor,
                "{figures:?} at {rate} a second with seed {seed}"
            );
        }
    }
}

#[test]
fn five_hops_multiply_hardly_more_than_one() {
    for seed in SEEDS {
        let reached = chain(Whose::Outrigger, seed);
        assert!(reached <= 1.3, "{reached} with seed {seed}");
    }
}

#[test]
fn a_brown_out_ends_when_it_ends() {
    for seed in 1..=4 {
        let (ours, none) = (brown_out(Whose::Outrigger, seed), brown_out(Whose::Nobody, seed));
        assert!(ours.success > 0.999, "{} with seed {seed}", ours.success);
        assert!(none.success < 0.5, "{} with seed {seed}", none.success);
    }
}

#[test]
fn a_flapping_endpoint_is_left_alone() {
    for seed in SEEDS {
        let (ours, none) = (flapping(Whose::Outrigger, seed), flapping(Whose::Nobody, seed));
        assert!(ours.success > 0.999, "{} with seed {seed}", ours.success);
        assert!(none.success < 0.95, "{} with seed {seed}", none.success);
    }
}

#[test]
fn a_rolling_restart_loses_nothing() {
    for seed in SEEDS {
        let figures = rolling_restart(Whose::Outrigger, seed);
        assert!(
            (figures.success - 1.0).abs() < f64::EPSILON,
            "{figures:?} with seed {seed}"
        );
    }
}

#[test]
fn a_lost_zone_costs_little() {
    for seed in SEEDS {
        let (ours, none) = (zone_loss(Whose::Outrigger, seed), zone_loss(Whose::Nobody, seed));
        assert!(ours.success > 0.98, "{} with seed {seed}", ours.success);
        assert!(
            ours.success > none.success,
            "{} {} with seed {seed}",
            ours.success,
            none.success
        );
    }
}

#[test]
fn slow_start_spares_a_cold_endpoint() {
    for seed in SEEDS {
        let none = cold_cache(Whose::Nobody, &Setting::default(), seed).p99;
        let ours = cold_cache(Whose::Outrigger, &Setting::slow_start(), seed).p99;
        assert!(ours < none / 2.0, "{ours} against {none} with seed {seed}");
    }
}

#[test]
fn one_poisoned_caller_hurts_itself_alone() {
    for seed in SEEDS {
        let (it, others) = poisoned(Whose::Outrigger, seed);
        assert!(
            (others.success - 1.0).abs() < f64::EPSILON,
            "{others:?} with seed {seed}"
        );
        // Its breaker is open nearly always: hardly a request leaves it.
        assert!(it.tries < 0.3, "{it:?} with seed {seed}");
    }
}

#[test]
fn one_that_leaves_a_hash_moves_its_own_keys_and_few_others() {
    let moved = movement(10);
    assert!(moved.ring <= moved.least + 1e-9, "{moved:?}");
    assert!(moved.maglev <= moved.least + 0.05, "{moved:?}");
}

#[test]
fn the_table_of_the_document_is_this_build_s() {
    let document = include_str!("../README.md");
    let printed = table::markdown();
    assert!(
        document.contains(&printed),
        "tests/sim/README.md needs the table that `cargo run -p outrigger-sim` prints:\n{printed}"
    );
}
