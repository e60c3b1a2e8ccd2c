//! Counts probes against the thresholds. Pure.

use outrigger_proto::model::Health;

/// What the probes say so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Enough successes.
    Well,
    /// Enough failures, and the last reason.
    Failing(String),
}

/// Consecutive results since the last change.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    well: bool,
    successes: u32,
    failures: u32,
}

impl Tracker {
    /// Takes in one result; says what holds now, or nothing while a well app's failures are too few
    /// to count.
    pub(super) fn observe(&mut self, result: Result<(), String>, health: &Health) -> Option<Verdict> {
        match result {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.well |= self.successes >= health.healthy_threshold;
                self.well.then_some(Verdict::Well)
            }
            Err(reason) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                if self.failures >= health.unhealthy_threshold {
                    self.well = false;
                }
                (!self.well).then_some(Verdict::Failing(reason))
            }
        }
    }

    /// True while the app counts as well.
    pub(super) fn is_well(&self) -> bool {
        self.well
    }
}
