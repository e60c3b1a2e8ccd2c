//! One number divided by what is asked of each: who asks for little gets it, who asks for more than there is gets as much
//! as the others who do, and what nobody asks for is spread, so that the first requests at an idle one find something.

/// How much of `total` each gets; always all of it (when there is anybody), whole numbers, never more.
///
/// Each wants a quarter more than was asked of it, and at least a tenth of an equal part. The largest equal level is
/// found up to which everybody gets what he wants; no entry, however large, takes what others want below that level.
#[must_use]
pub fn divide(total: u32, asked: &[u32]) -> Vec<u32> {
    let Ok(n) = u32::try_from(asked.len()) else {
        // Nobody counts four thousand million instances.
        return vec![0; asked.len()];
    };
    if n == 0 {
        return Vec::new();
    }
    let least = total / 10 / n;
    let mut shares: Vec<u32> = asked
        .iter()
        .map(|asked| asked.saturating_add(asked / 4).clamp(least, total))
        .collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_unstable_by_key(|i| shares.get(*i).copied());
    let mut left = total;
    for (before, i) in (0..n).zip(&order) {
        if let Some(share) = shares.get_mut(*i) {
            // Rounded down, so what is lost by rounding is left for those who want the most.
            *share = (*share).min(left / (n - before));
            left -= *share;
        }
    }
    let (each, mut more) = (left / n, left % n);
    for share in &mut shares {
        *share += each + u32::from(more > 0);
        more = more.saturating_sub(1);
    }
    shares
}
