//! How getting and renewing certificates goes, for people.

use std::time::{Duration, Instant, SystemTime};

/// The same thing is said again after this.
const QUIET: Duration = Duration::from_secs(60);

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Certificates after the first.
    pub(super) renewals: u64,
    /// Tries that failed.
    pub(super) failures: u64,
    /// The last failure since the last success.
    pub(super) last_error: Option<(SystemTime, String)>,
    /// How far this machine's clock is ahead of the control plane's, milliseconds.
    pub(super) clock_ahead_ms: Option<i64>,
    /// The instance that the kept certificate was issued to.
    pub(super) instance: Option<String>,
    said: [Option<Instant>; Said::ALL],
}

/// What is said to the log now and then only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The disk takes nothing.
    Disk,
    /// No certificate was got.
    Failed,
    /// Less than a third of the lifetime is left.
    Short,
}

impl Said {
    const ALL: usize = 3;
}

impl Progress {
    /// Why there is no certificate.
    pub(super) fn why_not_joined(&self) -> String {
        match &self.last_error {
            Some((_, error)) => format!("joining: {error}"),
            None => "joining".into(),
        }
    }

    /// A try failed. True when the log should say so: news, or the same for a minute.
    pub(super) fn failed(&mut self, why: &str) -> bool {
        self.failures += 1;
        let news = self.last_error.as_ref().is_none_or(|(_, before)| before != why);
        self.last_error = Some((SystemTime::now(), why.to_owned()));
        if news {
            self.said.fill(None);
        }
        self.may_say(Said::Failed)
    }

    /// True at most once a minute.
    pub(super) fn may_say(&mut self, what: Said) -> bool {
        let Some(last) = self.said.get_mut(what as usize) else {
            return false;
        };
        let may = last.is_none_or(|last| last.elapsed() >= QUIET);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}
