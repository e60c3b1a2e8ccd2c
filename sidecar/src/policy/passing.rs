//! Whether the app passes on the time that is left: it gets requests with a deadline and calls others without one.
//!
//! Which call belongs to which request only the app knows, so shares of many decide. A verdict takes as many
//! requests and calls as [`ENOUGH`] says, however long they take to come: a window by the clock would never judge a service
//! with few of them, and judge another by its quiet minutes. Between the two shares the last verdict stays.

/// A window ends when so many requests came to the app and so many calls came from it.
pub const ENOUGH: u64 = 100;
/// From this share on, in percent: of requests that bear a deadline, and of calls that bear none.
pub const DROPS: u64 = 90;
/// Below this share of either, in percent, the verdict is taken back.
pub const PASSES: u64 = 50;

/// How many bore a deadline and how many did not. These only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// With a deadline.
    pub bounded: u64,
    /// Without.
    pub unbounded: u64,
}

/// What was counted since the sidecar's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests handed to the app.
    pub requests: Count,
    /// Requests of the app to services.
    pub calls: Count,
}

/// What a window showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Share of the requests that bore a deadline, percent.
    pub requests_bounded: u64,
    /// Share of the calls that bore none, percent.
    pub calls_unbounded: u64,
}

/// What became of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The app drops the deadline.
    Drops(Window),
    /// It does not any more.
    Passes(Window),
}

/// The verdict, and where its next window began.
#[derive(Debug, Default)]
pub struct Passing {
    began: Counted,
    drops: bool,
}

impl Count {
    fn all(self) -> u64 {
        self.bounded + self.unbounded
    }

    fn since(self, before: Self) -> Self {
        Self {
            bounded: self.bounded.saturating_sub(before.bounded),
            unbounded: self.unbounded.saturating_sub(before.unbounded),
        }
    }
}

impl Passing {
    /// Judges when there is enough since the last verdict; a change is told once.
    pub fn look(&mut self, counted: Counted) -> Option<Change> {
        let requests = counted.requests.since(self.began.requests);
        let calls = counted.calls.since(self.began.calls);
        if requests.all() < ENOUGH || calls.all() < ENOUGH {
            return None;
        }
        self.began = counted;
        let window = Window {
            requests_bounded: percent(requests.bounded, requests.all()),
            calls_unbounded: percent(calls.unbounded, calls.all()),
        };
        let (least, most) = (
            window.requests_bounded.min(window.calls_unbounded),
            if self.drops { PASSES } else { DROPS },
        );
        let drops = least >= most;
        let changed = std::mem::replace(&mut self.drops, drops) != drops;
        changed.then_some(if drops {
            Change::Drops(window)
        } else {
            Change::Passes(window)
        })
    }

    /// Begins a window: what another process of the app did says nothing of this one. The verdict stays until it ends.
    pub fn restart(&mut self, counted: Counted) {
        self.began = counted;
    }
}

/// Rounded down.
fn percent(part: u64, all: u64) -> u64 {
    part.saturating_mul(100) / all.max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Adds a window to what was counted before.
    fn more(counted: &mut Counted, requests: (u64, u64), calls: (u64, u64)) -> Counted {
        counted.requests.bounded += requests.0;
        counted.requests.unbounded += requests.1;
        counted.calls.bounded += calls.0;
        counted.calls.unbounded += calls.1;
        *counted
    }

    fn word(change: Option<Change>) -> &'static str {
        match change {
            None => "",
            Some(Change::Drops(_)) => "drops",
            Some(Change::Passes(_)) => "passes",
        }
    }

    #[test]
    fn a_verdict_is_told_once_and_stays_between_the_two_shares() {
        let (mut passing, mut counted) = (Passing::default(), Counted::default());
        for (what, requests, calls, told) in [
            ("all are passed on", (100, 0), (100, 0), ""),
            ("half are dropped", (100, 0), (50, 50), ""),
            ("nine of ten are dropped", (90, 10), (10, 90), "drops"),
            ("the same again", (100, 0), (0, 100), ""),
            ("half are dropped still", (100, 0), (50, 50), ""),
            ("less than half", (100, 0), (51, 49), "passes"),
            ("the same again", (100, 0), (51, 49), ""),
            ("few requests had one", (89, 11), (0, 100), ""),
            ("all had", (100, 0), (0, 1000), "drops"),
            ("hardly any has", (49, 51), (0, 100), "passes"),
        ] {
            let counted = more(&mut counted, requests, calls);
            assert_eq!(word(passing.look(counted)), told, "{what}");
            assert_eq!(passing.look(counted), None, "{what}: nothing came since");
        }
    }

    #[test]
    fn a_window_takes_enough_of_both_however_long_that_lasts() {
        let (mut passing, mut counted) = (Passing::default(), Counted::default());
        assert_eq!(
            passing.look(more(&mut counted, (ENOUGH * 10, 0), (0, ENOUGH - 1))),
            None
        );
        assert_eq!(
            passing.look(more(&mut counted, (0, 0), (0, 1))),
            Some(Change::Drops(Window {
                requests_bounded: 100,
                calls_unbounded: 100
            }))
        );
        assert_eq!(
            passing.look(more(&mut counted, (ENOUGH - 1, 0), (ENOUGH * 10, 0))),
            None
        );
        assert_eq!(word(passing.look(more(&mut counted, (1, 0), (0, 0)))), "passes");
    }

    #[test]
    fn another_process_of_the_app_is_judged_by_its_own_calls() {
        let (mut passing, mut counted) = (Passing::default(), Counted::default());
        passing.restart(more(&mut counted, (99, 0), (0, 99)));
        assert_eq!(passing.look(more(&mut counted, (99, 0), (0, 99))), None);
        assert_eq!(word(passing.look(more(&mut counted, (1, 0), (0, 1)))), "drops");
    }

    proptest! {
        #[test]
        fn drops_and_passes_take_turns(
            windows in proptest::collection::vec(((0u64..300, 0u64..300), (0u64..300, 0u64..300)), 1..40),
        ) {
            let (mut passing, mut counted, mut drops) = (Passing::default(), Counted::default(), false);
            for (requests, calls) in windows {
                match passing.look(more(&mut counted, requests, calls)) {
                    None => continue,
                    Some(Change::Drops(window)) => {
                        prop_assert!(!drops && window.requests_bounded >= DROPS && window.calls_unbounded >= DROPS);
                    }
                    Some(Change::Passes(window)) => {
                        prop_assert!(drops && window.requests_bounded.min(window.calls_unbounded) < PASSES);
                    }
                }
                drops = !drops;
            }
        }
    }
}
