//! The better of two random choices (Mitzenmacher, "The Power of Two Choices", 2001).

/// Picks one of `n` by `load`, lower is better; `None` from `load` means "not this one". `random(k)`
/// returns a number below `k`. Falls back to the first that may be used; none when there is none.
pub fn pick(n: usize, mut random: impl FnMut(usize) -> usize, load: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    match n {
        0 => return None,
        1 => return load(0).map(|_| 0),
        _ => {}
    }
    let a = random(n);
    // The second choice is another one: shift past the first.
    let b = (a + 1 + random(n - 1)) % n;
    match (load(a), load(b)) {
        (Some(x), Some(y)) => Some(if y < x { b } else { a }),
        (Some(_), None) => Some(a),
        (None, Some(_)) => Some(b),
        (None, None) => {
            let start = random(n);
            (0..n).map(|i| (start + i) % n).find(|i| load(*i).is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_slow_one_of_two_is_never_chosen() {
        for seed in 0..100u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let picked = pick(2, |k| rng.usize(..k), |i| Some(if i == 0 { 100.0 } else { 1.0 }));
            assert_eq!(picked, Some(1));
        }
    }

    proptest! {
        #[test]
        fn a_usable_one_is_found_whenever_there_is_one(usable in proptest::collection::vec(any::<bool>(), 0..20), seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let picked = pick(usable.len(), |k| rng.usize(..k), |i| usable[i].then_some(1.0));
            prop_assert_eq!(picked.is_some(), usable.contains(&true));
            prop_assert!(picked.is_none_or(|i| usable[i]));
        }
    }
}
