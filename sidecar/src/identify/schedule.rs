//! When to ask for the next certificate, and with which proof. Pure: the time is an argument.

use std::time::{Duration, SystemTime};

/// An expired leaf may renew for so long.
pub(super) const LATE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The clock is looked at so often: it may jump, and a suspended machine does not count time.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// First pause after a failure, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// A leaf's times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) since: SystemTime,
    pub(super) not_after: SystemTime,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing for so long.
    In(Duration),
    /// A renewal by the leaf in use.
    Renew,
    /// A renewal by a leaf that expired.
    Late,
    /// Joining: there is no leaf, or it expired too long ago.
    Join,
}

/// What is due at `now`. `part` of the lifetime, about a half, is where the renewal falls; `stale`: the
/// leaf does not lead to the newest root.
pub(super) fn due(leaf: Option<Times>, now: SystemTime, part: f64, stale: bool) -> Due {
    let Some(leaf) = leaf else {
        return Due::Join;
    };
    if now >= leaf.not_after + LATE {
        return Due::Join;
    }
    if now >= leaf.not_after {
        return Due::Late;
    }
    let life = leaf.not_after.duration_since(leaf.since).unwrap_or_default();
    let at = leaf.since + life.mul_f64(part.clamp(0.1, 0.9));
    match at.duration_since(now) {
        Ok(left) if !left.is_zero() && !stale => Due::In(left),
        _ => Due::Renew,
    }
}

/// Where in its lifetime a leaf is renewed: at half of it, ±10 %.
pub(super) fn part() -> f64 {
    0.45 + fastrand::f64() * 0.1
}

/// Before the try after `failures` in a row: doubling, with jitter.
pub(super) fn pause(failures: u32) -> Duration {
    let (least, most) = PAUSES;
    let pause = least.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most);
    pause.mul_f64(0.5 + fastrand::f64() * 0.5)
}

/// True when less than a third of the lifetime is left.
pub(super) fn is_short(leaf: Times, now: SystemTime) -> bool {
    let life = leaf.not_after.duration_since(leaf.since).unwrap_or_default();
    leaf.not_after.duration_since(now).unwrap_or_default() < life / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn leaf() -> (SystemTime, Option<Times>) {
        let since = SystemTime::UNIX_EPOCH + HOUR * 400_000;
        let not_after = since + HOUR * 12;
        (since, Some(Times { since, not_after }))
    }

    #[test]
    fn a_leaf_is_renewed_at_half_of_its_life() {
        let (since, leaf) = leaf();
        assert_eq!(due(leaf, since, 0.5, false), Due::In(HOUR * 6));
        assert_eq!(due(leaf, since + HOUR * 5, 0.5, false), Due::In(HOUR));
        assert_eq!(due(leaf, since + HOUR * 6, 0.5, false), Due::Renew);
        assert_eq!(due(leaf, since + HOUR * 11, 0.5, false), Due::Renew);
        assert_eq!(due(leaf, since, 0.5, true), Due::Renew, "another root signs now");
        assert_eq!(
            due(leaf, since - HOUR, 0.5, false),
            Due::In(HOUR * 7),
            "a clock set back"
        );
        for _ in 0..100 {
            assert!((0.45..=0.55).contains(&part()));
        }
    }

    #[test]
    fn an_expired_leaf_renews_late_for_seven_days() {
        let (since, leaf) = leaf();
        assert_eq!(due(leaf, since + HOUR * 12, 0.5, false), Due::Late);
        assert_eq!(due(leaf, since + HOUR * (12 + 7 * 24 - 1), 0.5, true), Due::Late);
        assert_eq!(due(leaf, since + HOUR * (12 + 7 * 24), 0.5, false), Due::Join);
        assert_eq!(due(None, since, 0.5, false), Due::Join);
    }

    #[test]
    fn pauses_grow_and_end_growing() {
        for failures in 1..100 {
            let pause = pause(failures);
            assert!((PAUSES.0 / 2..=PAUSES.1).contains(&pause), "{failures}: {pause:?}");
        }
        assert!(pause(1) <= PAUSES.0 && pause(20) >= PAUSES.1 / 2);
    }

    #[test]
    fn a_third_left_is_worth_a_word() {
        let (since, leaf) = leaf();
        let leaf = leaf.expect("a leaf");
        assert!(!is_short(leaf, since + HOUR * 7));
        assert!(is_short(leaf, since + HOUR * 9));
        assert!(is_short(leaf, since + HOUR * 20));
    }
}
