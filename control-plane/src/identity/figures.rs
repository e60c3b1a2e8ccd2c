//! When certificates end and how many tokens and workloads there are, as numbers for a scraper.

use super::x509::{Unix, validity};
use super::{Authority, State};

/// One root and the certificate under it that signs leaves. Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootFigures {
    /// Its number; grows with each rotation.
    pub number: u32,
    /// When the root ends.
    pub not_after: Unix,
    /// When the certificate that signs ends; the root's end when that signs itself.
    pub issuer_not_after: Unix,
}

/// What there is, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// The roots that are trusted; the last one signs.
    pub roots: Vec<RootFigures>,
    /// When the certificate ends that the control plane itself shows, Unix seconds.
    pub own_not_after: Unix,
    /// Workloads with a certificate that is good.
    pub good: u64,
    /// Workloads whose newest certificate has expired.
    pub expired: u64,
    /// Workloads that are not let in.
    pub revoked: u64,
    /// When the first of the good ones ends, Unix seconds; none while there is none.
    pub soonest: Option<Unix>,
    /// Tokens with which workloads join, also those that are used up.
    pub join_tokens: u64,
    /// Tokens of operators.
    pub operator_tokens: u64,
}

impl Authority {
    /// The figures of the moment.
    #[must_use]
    pub fn figures(&self, now: Unix) -> Figures {
        let own_not_after = self.server.borrow().not_after;
        let state = self.state.lock();
        let vault = self.vault.lock();
        let roots = state.trust.roots.iter().map(|root| {
            let signer = vault.held.get(&root.number).map(|held| &held.signer);
            let issuer = signer.and_then(|signer| validity(signer.chain.first().unwrap_or(&signer.root)));
            RootFigures {
                number: root.number,
                not_after: root.not_after,
                issuer_not_after: issuer.map_or(root.not_after, |(_, until)| until),
            }
        });
        let mut figures = Figures {
            roots: roots.collect(),
            own_not_after,
            good: 0,
            expired: 0,
            revoked: 0,
            soonest: None,
            join_tokens: 0,
            operator_tokens: 0,
        };
        figures.count(&state, now);
        figures
    }
}

impl Figures {
    fn count(&mut self, state: &State, now: Unix) {
        for (name, registration) in &state.registrations {
            let Some(leaf) = registration.newest() else { continue };
            let service = name.rsplit_once('/').map_or("", |(service, _)| service);
            if registration.revoked || state.is_revoked(service) {
                self.revoked += 1;
            } else if leaf.not_after <= now {
                self.expired += 1;
            } else {
                self.good += 1;
                self.soonest = Some(
                    self.soonest
                        .map_or(leaf.not_after, |soonest| soonest.min(leaf.not_after)),
                );
            }
        }
        for token in state.tokens.values().filter(|token| token.expires > now) {
            match token.operator {
                true => self.operator_tokens += 1,
                false => self.join_tokens += 1,
            }
        }
    }
}
