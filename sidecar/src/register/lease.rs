//! The registration as it stands, for the admin pages.

use std::time::Instant;

use parking_lot::Mutex;

/// How the registration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Not asked for: the app is not well yet, or there is no control plane.
    None,
    /// Asked for.
    Asked,
    /// Held and renewed.
    Held,
    /// Withdrawn because the app is not well, or left.
    Withdrawn,
    /// Refused by the control plane.
    Refused,
    /// The session broke; the lease runs on until it lapses.
    Disconnected,
}

impl LeaseState {
    /// The word people see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Asked => "asked",
            Self::Held => "held",
            Self::Withdrawn => "withdrawn",
            Self::Refused => "refused",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The registration, shared.
#[derive(Debug)]
pub struct Lease {
    inner: Mutex<(LeaseState, Instant, String)>,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            inner: Mutex::new((LeaseState::None, Instant::now(), String::new())),
        }
    }
}

impl Lease {
    /// State, since when (for a held lease: when it was last renewed), and a reason when there is one.
    #[must_use]
    pub fn now(&self) -> (LeaseState, Instant, String) {
        self.inner.lock().clone()
    }

    pub(super) fn set(&self, state: LeaseState, reason: impl Into<String>) {
        *self.inner.lock() = (state, Instant::now(), reason.into());
    }
}
