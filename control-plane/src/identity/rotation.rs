//! Which roots are trusted, and how one takes the place of another: a state machine, stored after each
//! step, so that a crash anywhere goes on where it was. Pure: `now` is an argument.
//!
//! Steady → Spreading (the new root is trusted and the old one signs, until every live sidecar has it)
//! → Renewing (the new one signs; the old one is trusted until nothing of it is left) → Steady.

use outrigger_proto::model::SpiffeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::x509::Unix;

/// A root that is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Root {
    /// Grows with each root; names its files.
    pub(super) number: u32,
    /// The newest of its intermediates; 0 when it was brought along.
    pub(super) issuer: u32,
    /// SHA-256 of its DER, hexadecimal.
    pub(super) hash: String,
    pub(super) not_after: Unix,
    /// When the last leaf under it ends.
    pub(super) last_leaf: Unix,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// One root, and it signs.
    Steady,
    /// The new root is trusted; the old one signs until every live sidecar has the new one.
    Spreading {
        /// Since when, Unix seconds.
        since: Unix,
        /// When those that are missing are waited for no longer, Unix seconds.
        force_at: Option<Unix>,
    },
    /// The new root signs; the old one is trusted as long as something of it is in use.
    Renewing {
        /// Since when, Unix seconds.
        since: Unix,
        /// Since when every workload has a leaf of the new root, Unix seconds.
        renewed_at: Option<Unix>,
    },
}

/// What is trusted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trust {
    pub(super) trust_domain: String,
    /// Grows with each change of `roots`.
    pub(super) generation: u64,
    /// In the bundle's order. Invariant: not empty, and the last one signs.
    pub(super) roots: Vec<Root>,
    pub(super) phase: Phase,
    /// Whether the operator brought the CA along.
    pub(super) brought: bool,
}

/// What the step depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// Whether every live sidecar runs with the bundle's generation.
    pub(super) all_have_it: bool,
    /// Whether the newest leaf of every workload is of the root that signs.
    pub(super) all_renewed: bool,
}

impl Trust {
    pub(super) fn new(trust_domain: String, root: Root, brought: bool) -> Self {
        Self {
            trust_domain,
            generation: 1,
            roots: vec![root],
            phase: Phase::Steady,
            brought,
        }
    }

    /// The root that signs.
    pub(super) fn signing(&self) -> Option<&Root> {
        self.roots.last()
    }

    /// The number that a new root gets.
    pub(super) fn next_number(&self) -> u32 {
        self.roots.iter().map(|r| r.number).max().unwrap_or(0).saturating_add(1)
    }

    /// Begins to trust `root`. None while a rotation is under way.
    pub(super) fn begin(&self, now: Unix, root: Root, force_after: Option<u64>) -> Option<Self> {
        if self.phase != Phase::Steady {
            return None;
        }
        let mut next = self.clone();
        next.generation += 1;
        // Not the last: it does not sign yet.
        next.roots.insert(0, root);
        let force_at = force_after.map(|after| now.saturating_add(after));
        next.phase = Phase::Spreading { since: now, force_at };
        Some(next)
    }

    /// Waits for missing sidecars only `force_after` seconds from the beginning. None unless spreading.
    pub(super) fn force(&self, force_after: u64) -> Option<Self> {
        let Phase::Spreading { since, .. } = self.phase else {
            return None;
        };
        let mut next = self.clone();
        let force_at = Some(since.saturating_add(force_after));
        next.phase = Phase::Spreading { since, force_at };
        Some(next)
    }

    /// The next state, when it is time for it. `settle`: seconds between the last renewal and the end
    /// of the old root, for connections that were opened with older leaves.
    pub(super) fn step(&self, now: Unix, seen: &Seen, settle: u64) -> Option<Self> {
        let mut next = self.clone();
        match self.phase {
            Phase::Steady => return None,
            Phase::Spreading { force_at, .. } => {
                if !seen.all_have_it && force_at.is_none_or(|at| now < at) {
                    return None;
                }
                next.generation += 1;
                next.roots.rotate_left(1);
                next.phase = Phase::Renewing {
                    since: now,
                    renewed_at: None,
                };
            }
            Phase::Renewing { since, renewed_at } => {
                let (_, old) = self.roots.split_last()?;
                let expired = old.iter().all(|r| r.last_leaf < now);
                let settled = seen.all_renewed && renewed_at.is_some_and(|at| at.saturating_add(settle) <= now);
                if expired || settled {
                    next.generation += 1;
                    next.roots.drain(..old.len());
                    next.phase = Phase::Steady;
                } else if seen.all_renewed != renewed_at.is_some() {
                    let renewed_at = seen.all_renewed.then_some(now);
                    next.phase = Phase::Renewing { since, renewed_at };
                } else {
                    return None;
                }
            }
        }
        Some(next)
    }

    /// The id of `service` in this trust domain's reserved namespace; none when the domain is not valid.
    pub(super) fn own_id(&self, service: &str) -> Option<SpiffeId> {
        format!("spiffe://{}/ns/{}/svc/{service}", self.trust_domain, super::RESERVED)
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests;
