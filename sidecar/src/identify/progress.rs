//! How getting and renewing certificates goes, for people.

use std::time::SystemTime;

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Certificates after the first.
    pub(super) renewals: u64,
    /// Attempts that failed.
    pub(super) failures: u64,
    /// The last failure since the last success.
    pub(super) last_error: Option<(SystemTime, String)>,
    /// How far this machine's clock is from the control plane's, milliseconds; positive is ahead.
    pub(super) clock_ahead_ms: Option<i64>,
}

impl Progress {
    /// Why there is no certificate.
    pub(super) fn why_not_joined(&self) -> String {
        match &self.last_error {
            Some((_, error)) => format!("joining: {error}"),
            None => "joining".into(),
        }
    }
}
