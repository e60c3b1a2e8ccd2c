//! What time does to the authority: intermediates and rotations go on, and old things are forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::rotation::{Phase, Seen, Trust};
use super::state::Write;
use super::x509::{Unix, shown};
use super::{Authority, Refusal, clock};
use crate::events::Event;
use crate::stop::Stop;

/// An intermediate of our own is made anew when this is left of it: long before anybody is warned.
const ISSUER_LEFT: u64 = 120 * 86_400;
/// What signs is warned of when this is left of it.
const WARN_LEFT: u64 = 30 * 86_400;
/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Between two rounds of what is not urgent, seconds.
const ROUND: u64 = 60;
/// Between two warnings of the same, seconds.
const WARN_AGAIN: u64 = 86_400;

/// Those who have to know a new root before it signs.
pub trait Fleet: Send + Sync {
    /// Live workloads that do not run with the bundle of now, as `namespace/service/instance`.
    fn lagging(&self) -> BTreeSet<String>;
}

/// Nobody is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Fleet for Alone {
    fn lagging(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }
}

/// What was done when, besides what is stored.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    last: Unix,
    warned: Unix,
}

impl Authority {
    /// Keeps everything going until `stop`.
    pub async fn keep(self: Arc<Self>, fleet: Arc<dyn Fleet>, stop: Stop) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.stopped() => return,
                _ = ticks.tick() => {}
            }
            let (authority, fleet) = (Arc::clone(&self), Arc::clone(&fleet));
            // Writes to the disk. A panic in there costs this round and no other.
            let round = tokio::task::spawn_blocking(move || authority.tick(clock(), &*fleet));
            if let Err(error) = round.await {
                tracing::error!(%error, "a round of the certificate authority failed");
            }
        }
    }

    /// Does what is due. What fails is told as an event and tried again.
    pub fn tick(&self, now: Unix, fleet: &dyn Fleet) {
        let _told = self.step(now, fleet).is_err();
        let _told = self.renew_own(now).is_err();
        {
            let mut rounds = self.rounds.lock();
            if now.abs_diff(rounds.last) < ROUND {
                return;
            }
            rounds.last = now;
        }
        let _told = self.renew_issuer(now).is_err();
        let _told = self.change(|state| Ok((state.outdated(now), ()))).is_err();
        self.warn(now);
    }

    /// The next step of a rotation, when it is time.
    fn step(&self, now: Unix, fleet: &dyn Fleet) -> Result<(), Refusal> {
        let phase = self.state.lock().trust.phase;
        if phase == Phase::Steady {
            return Ok(());
        }
        let all_have_it = !matches!(phase, Phase::Spreading { .. }) || fleet.lagging().is_empty();
        // Connections that were opened with a leaf of the old root get some of a leaf's life to end.
        let settle = (self.leaf_ttl / 60).clamp(1, 900);
        let next = self.change(|state| {
            let seen = Seen {
                all_have_it,
                all_renewed: state.unrenewed(now).is_empty(),
            };
            Ok(match state.trust.step(now, &seen, settle) {
                Some(next) => (vec![Write::Trust(next.clone())], Some(next)),
                None => (Vec::new(), None),
            })
        })?;
        if let Some(next) = next {
            self.tell_rotation(phase, &next);
            if next.phase == Phase::Steady
                && let Err(error) = self.vault.lock().clean(&next)
            {
                tracing::warn!(%error, "a file of the old root cannot be removed; tried again at the next start");
            }
        }
        Ok(())
    }

    fn tell_rotation(&self, before: Phase, next: &Trust) {
        let phase = match (before, next.phase) {
            (Phase::Spreading { .. }, Phase::Renewing { .. }) => "renewing",
            (_, Phase::Steady) => "done",
            _ => return,
        };
        let (phase, generation) = (phase.to_owned(), next.generation);
        self.events.record(Event::RootRotation { phase, generation });
    }

    /// Makes the next intermediate when the one that signs comes to its end.
    pub(super) fn renew_issuer(&self, now: Unix) -> Result<(), Refusal> {
        let vault_says = |trust: &Trust| {
            let root = trust.signing()?.clone();
            let vault = self.vault.lock();
            let held = vault.held.get(&root.number)?;
            held.root.as_ref()?;
            let signer = &held.signer;
            // An intermediate ends with its root, and then a new one helps nobody.
            let ends = signer.not_after;
            let due = ends.saturating_sub(now) < ISSUER_LEFT && ends < root.not_after;
            (due || now < signer.not_before).then_some(root)
        };
        let made = self.change(|state| {
            let Some(mut root) = vault_says(&state.trust) else {
                return Ok((Vec::new(), None));
            };
            let made = self.vault.lock().next_issuer(now, &state.trust.trust_domain, &root);
            let Some(signer) = made.map_err(|e| Refusal::Signing(e.to_string()))? else {
                return Ok((Vec::new(), None));
            };
            root.issuer += 1;
            let mut trust = state.trust.clone();
            if let Some(last) = trust.roots.last_mut() {
                *last = root.clone();
            }
            Ok((vec![Write::Trust(trust)], Some((root.number, signer))))
        })?;
        if let Some((root, signer)) = made {
            let expires = shown(signer.not_after);
            self.vault.lock().put_signer(root, signer);
            self.events.record(Event::IssuerRenewed { expires });
        }
        Ok(())
    }

    /// Warns of what ends soon and is not renewed by itself.
    fn warn(&self, now: Unix) {
        let ends: Vec<(&str, Unix)> = {
            let state = self.state.lock();
            let vault = self.vault.lock();
            let signing = state.trust.signing();
            let issuer = signing
                .and_then(|r| vault.held.get(&r.number))
                .map(|h| h.signer.not_after);
            let root = signing.map(|r| ("the root certificate", r.not_after));
            root.into_iter()
                .chain(issuer.map(|at| ("the certificate that signs", at)))
                .collect()
        };
        let near: Vec<_> = ends
            .iter()
            .filter(|(_, at)| at.saturating_sub(now) < WARN_LEFT)
            .collect();
        {
            let mut rounds = self.rounds.lock();
            if near.is_empty() || now.abs_diff(rounds.warned) < WARN_AGAIN {
                return;
            }
            rounds.warned = now;
        }
        for (what, at) in near {
            let (what, expires) = ((*what).to_owned(), shown(*at));
            self.events.record(Event::ExpiryNear { what, expires });
        }
    }
}
