//! How often one may ask: a token bucket each. Pure: `now` is an argument.

use std::collections::HashMap;

use super::x509::Unix;

/// How much at once, and how often after that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) burst: u64,
    /// Seconds until one more is allowed.
    pub(super) every: u64,
}

/// One workload: more than any restart loop that gets somewhere.
pub(super) const INSTANCE: Rate = Rate { burst: 10, every: 6 };
/// One service: a scale-up in one go.
pub(super) const SERVICE: Rate = Rate { burst: 500, every: 1 };
/// Refusals that are told as events; anybody can cause them.
pub(super) const TOLD: Rate = Rate { burst: 20, every: 3 };
/// Buckets that are not full.
const MAX: usize = 50_000;

/// The buckets by name.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Spent units and since when; a full bucket has no entry.
    spent: HashMap<String, (u64, Unix)>,
}

impl Limits {
    /// Takes one from the bucket `who`.
    ///
    /// # Errors
    /// Seconds until there is one again.
    pub(super) fn take(&mut self, now: Unix, who: &str, rate: Rate) -> Result<(), u64> {
        if self.spent.len() >= MAX {
            self.spent
                .retain(|_, (spent, since)| now.saturating_sub(*since) / rate.every < *spent);
        }
        if self.spent.len() >= MAX && !self.spent.contains_key(who) {
            return Err(rate.every);
        }
        let (spent, since) = self.spent.entry(who.to_owned()).or_insert((0, now));
        let back = now.saturating_sub(*since) / rate.every;
        *spent = spent.saturating_sub(back);
        *since = match *spent {
            0 => now,
            // A clock that was set back costs at most one interval.
            _ => since.saturating_add(back * rate.every).min(now),
        };
        if *spent >= rate.burst {
            return Err(rate.every.saturating_sub(now.saturating_sub(*since)).max(1));
        }
        *spent += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_each_interval() {
        let mut limits = Limits::default();
        let mut take = |now| limits.take(now, "a", INSTANCE);
        assert!((0..10).all(|_| take(100).is_ok()));
        assert_eq!((take(100), take(103)), (Err(6), Err(3)));
        assert_eq!((take(106), take(107)), (Ok(()), Err(5)));
        assert_eq!((take(50), take(57)), (Err(6), Ok(())), "a clock that was set back");
        assert!(
            (0..10).all(|_| take(1000).is_ok()) && take(1000).is_err(),
            "never more than a burst"
        );
        assert_eq!(limits.take(1000, "b", INSTANCE), Ok(()));
    }

    #[test]
    fn buckets_are_bounded() {
        let mut limits = Limits::default();
        assert!((0..MAX).all(|i| limits.take(100, &i.to_string(), INSTANCE).is_ok()));
        assert!(limits.take(100, "one more", INSTANCE).is_err());
        assert!(limits.take(100, "7", INSTANCE).is_ok());
        assert!(limits.take(200, "one more", INSTANCE).is_ok());
        assert!(limits.spent.len() < MAX);
    }
}
