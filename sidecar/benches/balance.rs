//! What choosing an endpoint costs, for each way of balancing. Prints nanoseconds.
//!
//! `cargo bench -p outrigger-sidecar --bench balance`
#![expect(clippy::print_stdout, reason = "its output is the result")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_proto::model::{Balance, Hash, HashOn};
use outrigger_sidecar::balance::{Ask, Candidate, Node, Picker, Resort, Setting, Sight, Standing, Table, choose, hash};

/// Endpoints that are all well and idle.
struct Idle;

impl Sight for Idle {
    fn standing(&self, _: usize) -> Standing {
        Standing::Ready
    }

    fn in_flight(&self, endpoint: usize) -> u32 {
        u32::from(endpoint.is_multiple_of(2))
    }

    fn latency(&self, endpoint: usize) -> f64 {
        1e6 + endpoint as f64
    }
}

fn measure(balance: &Balance, n: usize, weighted: bool, zones: bool) {
    const ROUNDS: u32 = 20_000;
    let weight = |i: usize| if weighted { 1 + (i % 4) as u32 } else { 1 };
    let candidates: Vec<Candidate> = (0..n)
        .map(|i| Candidate {
            endpoint: i,
            slot: i,
            weight: weight(i),
            near: i % 2 == 0,
            since: None,
        })
        .collect();
    let nodes: Vec<Node> = (0..n)
        .map(|i| Node {
            key: hash(i.to_string().as_bytes()),
            weight: weight(i),
        })
        .collect();
    let built = Instant::now();
    let table = match balance {
        Balance::Ring(_) => Some(Arc::new(Table::ring(&nodes))),
        Balance::Maglev(_) => Some(Arc::new(Table::maglev(&nodes))),
        _ => None,
    };
    let built = built.elapsed();
    let bytes = table.as_ref().map(|t| t.bytes());
    let now = Instant::now();
    let setting = Setting {
        balance,
        table,
        slow_start: None,
        near_percent: zones.then_some(70),
        panic_percent: 50,
        seed: 1 << 20,
    };
    let picker = Picker::new(&candidates, setting, now);
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            for i in 0..ROUNDS {
                let ask = Ask {
                    now,
                    hash: Some(hash(&i.to_le_bytes())),
                    tried: &[],
                };
                let mut chance = |k| fastrand::usize(..k);
                let _picked = black_box(choose(
                    std::iter::once(&picker),
                    black_box(&ask),
                    Resort::Ejected,
                    &mut chance,
                    &Idle,
                ));
            }
            start.elapsed() / ROUNDS
        })
        .min()
        .unwrap_or(Duration::MAX);
    let table = bytes.map_or(String::new(), |b| {
        format!("; table of {b} bytes made in {} us", built.as_micros())
    });
    let (weighted, zones) = (
        if weighted { ", weights" } else { "" },
        if zones { ", zones" } else { "" },
    );
    println!(
        "{}, {n} endpoints{weighted}{zones}: {} ns{table}",
        balance.as_str(),
        best.as_nanos()
    );
}

fn main() {
    let hash = || Hash {
        on: HashOn::Caller,
        bound_percent: 125,
    };
    let ways = [
        Balance::P2cPeakEwma,
        Balance::LeastRequest,
        Balance::RoundRobin,
        Balance::Random,
        Balance::Ring(hash()),
        Balance::Maglev(hash()),
    ];
    for balance in &ways {
        for n in [3, 100, 1_000] {
            measure(balance, n, false, false);
        }
        measure(balance, 100, true, false);
        measure(balance, 100, false, true);
    }
}
