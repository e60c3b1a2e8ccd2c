//! Rates that all instances of a service keep together: who may let through which share of them.
//!
//! Pure: sidecars' messages, the registrations and `now` go in, messages to sidecars come out. The rules, which the tests
//! and a model with real buckets (`tests/sim/tests/quota.rs`) spell out:
//! - The shares that instances were given never add up to more than the whole. What one gives up is given to another only
//!   after its sidecar said that it lets through less.
//! - An instance that was lost sight of keeps its share while it is registered: it may still be called.
//! - Just after a start of this control plane nothing changes while somebody registered has not told what it holds.
//! - A sidecar speaks for its own service only. What it says it is asked, however much, never takes from the others what
//!   they want up to an equal part. A message costs its own reading; dividing happens at each [`turn`](Book::turn) whatever
//!   came before.

mod divide;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use outrigger_proto::model::{EndpointName, RateLimit, ServiceName};
use outrigger_proto::wire::agent;

pub use self::divide::divide;
use crate::registry::{Millis, Sender, SessionId};

/// A change of less than this part is not worth a message.
const WORTH: u64 = 16;

/// What every instance holds of every limit.
#[derive(Debug)]
pub struct Book {
    /// How long one that is not registered is believed in without a word of it.
    patience: Millis,
    services: BTreeMap<ServiceName, BTreeMap<String, Limit>>,
    serial: u64,
}

#[derive(Debug, Default)]
struct Limit {
    /// Each caller or value has a rate of its own, so what is asked in all says nothing: equal parts.
    by_key: bool,
    holders: BTreeMap<EndpointName, Holder>,
}

/// What one instance has of one limit, in parts of [`RateLimit::WHOLE`].
#[derive(Debug, Clone)]
struct Holder {
    session: SessionId,
    /// False from the end of the session on.
    open: bool,
    heard: Millis,
    asked: u32,
    /// As its sidecar said last.
    held: u32,
    /// Told, and not heard of since.
    sent: Option<(u64, u32)>,
    /// It said that it lets through more than it may: it is told again.
    astray: bool,
}

/// What one sidecar is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Tell {
    /// Whose it is.
    pub to: EndpointName,
    /// On which session.
    pub session: SessionId,
    /// The message.
    pub shares: agent::Shares,
}

impl Holder {
    /// The most that it may let through now.
    fn most(&self) -> u32 {
        self.sent.map_or(self.held, |(_, share)| share.max(self.held))
    }
}

impl Book {
    /// An empty book. `patience`: a lease's time.
    #[must_use]
    pub fn new(patience: Millis) -> Self {
        Self {
            patience,
            services: BTreeMap::new(),
            serial: 0,
        }
    }

    /// The limits of the mesh by service, each with whether it counts by key. What was given of those that stay stays.
    pub fn set(&mut self, limits: impl IntoIterator<Item = (ServiceName, String, bool)>) {
        let mut before = std::mem::take(&mut self.services);
        for (service, name, by_key) in limits {
            let old = before.get_mut(&service).and_then(|of| of.remove(&name));
            let holders = old.map(|limit| limit.holders).unwrap_or_default();
            self.services
                .entry(service)
                .or_default()
                .insert(name, Limit { by_key, holders });
        }
    }

    /// Services that have such limits.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceName> {
        self.services.keys().cloned().collect()
    }

    /// What a sidecar says of its limits; of those that the mesh does not know nothing is kept.
    pub fn hear(&mut self, now: Millis, sender: &Sender, asked: &agent::Asked) {
        let Some(limits) = self.services.get_mut(&sender.name.service) else {
            return;
        };
        // Of no use beyond one for each limit.
        for demand in asked.limits.iter().take(limits.len()) {
            let Some(limit) = limits.get_mut(&demand.limit) else {
                continue;
            };
            let before = limit.holders.get(&sender.name);
            if before.is_some_and(|b| b.session > sender.session) {
                continue;
            }
            let share = demand.share.min(RateLimit::WHOLE);
            let (held, sent, astray) = match before.filter(|b| b.session == sender.session) {
                // On one session it holds what it was told: who says more takes nothing from the others by it.
                Some(before) => (
                    share.min(before.most()),
                    before.sent.filter(|(serial, _)| *serial > asked.seen),
                    share > before.most(),
                ),
                // It may have been told by an earlier control plane, or hold what it held when it was lost sight of. What
                // was on its way on another session never came if it says so.
                None => (share, None, false),
            };
            let holder = Holder {
                session: sender.session,
                open: true,
                heard: now,
                asked: demand.asked,
                held,
                sent,
                astray,
            };
            limit.holders.insert(sender.name.clone(), holder);
        }
    }

    /// A session ended.
    pub fn close(&mut self, sender: &Sender) {
        let limits = self.services.get_mut(&sender.name.service);
        for limit in limits.into_iter().flat_map(BTreeMap::values_mut) {
            if let Some(holder) = limit.holders.get_mut(&sender.name)
                && holder.session == sender.session
            {
                holder.open = false;
            }
        }
    }

    /// Divides again. `registered`: those that take part, by service. `unsure`: this control plane has just started.
    pub fn turn(
        &mut self,
        now: Millis,
        registered: &BTreeMap<ServiceName, BTreeSet<EndpointName>>,
        unsure: bool,
    ) -> Vec<Tell> {
        let mut tell = BTreeMap::new();
        let nobody = BTreeSet::new();
        self.serial += 1;
        let (serial, patience) = (self.serial, self.patience);
        for (service, limits) in &mut self.services {
            let registered = registered.get(service).unwrap_or(&nobody);
            for (name, limit) in limits {
                limit.holders.retain(|who, holder| {
                    registered.contains(who) || (holder.open && now < holder.heard.saturating_add(patience))
                });
                for (who, session, share) in limit.turn(serial, registered, unsure) {
                    let shares: &mut Vec<_> = tell.entry((who, session)).or_default();
                    shares.push(agent::Share {
                        limit: name.clone(),
                        share,
                    });
                }
            }
        }
        let tell = tell.into_iter().map(|((to, session), limits)| Tell {
            to,
            session,
            shares: agent::Shares { serial, limits },
        });
        tell.collect()
    }

    /// What [`turn`](Self::turn) asked to tell could not be told.
    pub fn untold(&mut self, tell: &Tell) {
        let limits = self.services.get_mut(&tell.to.service);
        for limit in limits.into_iter().flat_map(BTreeMap::values_mut) {
            if let Some(holder) = limit.holders.get_mut(&tell.to) {
                holder.sent = holder.sent.filter(|(serial, _)| *serial != tell.shares.serial);
            }
        }
    }
}

impl Limit {
    /// Who is to be told which share; written down as sent.
    fn turn(
        &mut self,
        serial: u64,
        registered: &BTreeSet<EndpointName>,
        unsure: bool,
    ) -> Vec<(EndpointName, SessionId, u32)> {
        let whole = u64::from(RateLimit::WHOLE);
        let given: u64 = self.holders.values().map(|h| u64::from(h.most())).sum();
        let unknown = registered.iter().filter(|who| !self.holders.contains_key(*who)).count() as u64;
        if unsure && unknown > 0 {
            return Vec::new();
        }
        // They begin with that much when they hear of the limit.
        let kept_back = (unknown * u64::from(RateLimit::START)).min(whole / 2);
        let lost: u64 = self
            .holders
            .values()
            .filter(|h| !h.open)
            .map(|h| u64::from(h.most()))
            .sum();
        let total = u32::try_from(whole.saturating_sub(kept_back + lost)).unwrap_or_default();
        let mut open: Vec<_> = self.holders.iter_mut().filter(|(_, h)| h.open).collect();
        let asked: Vec<u32> = open
            .iter()
            .map(|(_, h)| if self.by_key { 0 } else { h.asked })
            .collect();
        let shares = divide(total, &asked);
        // One message at a time is on its way.
        let ready = open.iter_mut().zip(shares).filter(|((_, h), _)| h.sent.is_none());
        let ready: Vec<_> = ready.collect();
        let wanted: u64 = ready
            .iter()
            .map(|((_, h), share)| u64::from(share.saturating_sub(h.held)))
            .sum();
        let free = whole.saturating_sub(kept_back + given).min(wanted);
        let too_much = kept_back + given > whole;
        let mut told = Vec::new();
        for ((who, holder), share) in ready {
            let more = u64::from(share.saturating_sub(holder.held));
            let more = u32::try_from(more * free / wanted.max(1)).unwrap_or_default();
            // Nothing at all would be refused by the sidecar.
            let next = (share.min(holder.held) + more).max(1);
            let change = u64::from(next.abs_diff(holder.held)) * WORTH;
            // However little: while together they have too much.
            let due = holder.astray || (too_much && next < holder.held);
            if due || change >= u64::from(next.max(holder.held)) {
                holder.sent = Some((serial, next));
                told.push(((*who).clone(), holder.session, next));
            }
        }
        told
    }
}
