//! Weighted round robin without state but a counter: gRPC's static stride scheduler (gRFC A58).
//!
//! Turn `n` belongs to member `n % len`, who takes it in as many of the rounds as its weight says; the rounds that it
//! lets pass are spread evenly. Two of one weight never differ by more than one turn.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::pool::Pool;

/// The weight of the heaviest.
const FULL: u64 = 65_535;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Stride(AtomicU64);

impl Stride {
    /// Begins at a turn of its own, so that workers and callers do not walk in step.
    pub(super) fn new(seed: u64) -> Self {
        // Far from the end of the counter.
        Self(AtomicU64::new(seed >> 16))
    }

    /// The next for which `ok` holds; none only when there is none.
    pub(super) fn next(&self, pool: &Pool, now: Instant, ok: impl Fn(usize) -> bool) -> Option<usize> {
        let n = pool.members.len();
        let level = pool.level(now);
        // The heaviest takes every turn, so two rounds are enough while it is well and warm.
        for _ in 0..2 * n {
            let turn = self.0.fetch_add(1, Relaxed);
            let (at, round) = ((turn % n as u64) as usize, turn / n as u64);
            let member = pool.members.get(at)?;
            if !(level || takes(at, round, pool, now)) {
                continue;
            }
            if ok(member.endpoint) {
                return Some(at);
            }
        }
        // Those whose turn it was cannot; the next who can.
        let start = self.0.fetch_add(1, Relaxed) as usize;
        let mut all = (0..n).map(|k| start.wrapping_add(k) % n);
        all.find(|at| pool.members.get(*at).is_some_and(|m| ok(m.endpoint)))
    }
}

/// Whether the member at `at` takes its turn of this round.
fn takes(at: usize, round: u64, pool: &Pool, now: Instant) -> bool {
    let weight = pool.members.get(at).map_or(1, |m| m.weight);
    let share = f64::from(weight) / f64::from(pool.heaviest) * pool.share(at, now);
    let weight = ((share * FULL as f64) as u64).max(1);
    // Half a period apart, so that light members do not all take the same round.
    let phase = (weight.wrapping_mul(round)).wrapping_add(at as u64 * (FULL / 2)) % FULL;
    phase >= FULL - weight
}
