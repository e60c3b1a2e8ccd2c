//! Whether a try may be sent now, and where to: the breaker, an endpoint, and a place there.

use std::sync::Arc;
use std::time::Instant;

use outrigger_proto::model::Policy;

use super::super::cluster::{Aim, Resolved, Tried};
use super::super::{Outbound, Problem};
use crate::balance::Resort;
use crate::connect::Wire;
use crate::guard::{Account, Barred};
use crate::reason::Reason;

/// What an entry is for.
#[derive(Debug, Clone, Copy)]
pub(in crate::outbound) struct Entry<'a> {
    pub(in crate::outbound) aim: &'a Aim,
    pub(in crate::outbound) policy: &'a Policy,
    /// A stream of opaque bytes, which has a connection of its own whatever the wire.
    pub(in crate::outbound) opaque: bool,
}

/// Why there is no entry.
pub(in crate::outbound) enum NoEntry {
    /// All places are taken; this is what whoever waits in vain is told.
    Full(Reason),
    /// Anything that waiting does not mend.
    Never(Problem),
}

impl Outbound {
    /// The endpoint of the next try and the try's account. Waits for a place when all are taken.
    pub(in crate::outbound) async fn enter(
        &self,
        resolved: &mut Arc<Resolved>,
        entry: Entry<'_>,
        now: Instant,
        tried: &mut Tried,
        resort: Resort,
    ) -> Result<(usize, Account), Problem> {
        let bounds = &resolved.service.concurrency;
        let bounded = bounds.requests.is_some() || bounds.endpoint_requests.is_some() || bounds.connections.is_some();
        // Whoever came before goes first.
        if !bounded || !resolved.home.guard.is_waited_for() {
            match self.try_enter(resolved, entry, now, tried, resort) {
                Err(NoEntry::Full(_)) => {}
                Err(NoEntry::Never(problem)) => return Err(problem),
                Ok(entered) => return Ok(entered),
            }
        }
        // Boxed: rare, and otherwise part of every request.
        Box::pin(self.wait(resolved, entry, tried, resort)).await
    }

    /// Enters without waiting.
    pub(in crate::outbound) fn try_enter(
        &self,
        resolved: &Resolved,
        entry: Entry<'_>,
        now: Instant,
        tried: &Tried,
        resort: Resort,
    ) -> Result<(usize, Account), NoEntry> {
        let home = &resolved.home;
        let pass = home
            .guard
            .pass(now, &home.service)
            .map_err(|barred| self.barred(barred))?;
        let Some((index, target)) = resolved.pick(now, entry.aim, tried, resort) else {
            home.guard.abandon(pass);
            let bounded = home.service.concurrency.endpoint_requests.is_some();
            return Err(match bounded && resolved.choices(entry.aim) > 0 {
                true => NoEntry::Full(Reason::QueueTimeout),
                false => NoEntry::Never(self.nobody()),
            });
        };
        let alone = entry.opaque || target.upstream.route.wire == Wire::Http1;
        let failures = &entry.policy.failures;
        let account = home.open(now, &target.side.home, &target.member, failures, pass, alone);
        Ok((index, account.map_err(|barred| self.barred(barred))?))
    }

    async fn wait(
        &self,
        resolved: &mut Arc<Resolved>,
        entry: Entry<'_>,
        tried: &mut Tried,
        resort: Resort,
    ) -> Result<(usize, Account), Problem> {
        let home = resolved.home.clone();
        let full = |reason: Reason| {
            let detail = format!("{}: {}", self.cluster.name(), reason.help());
            Problem::new(reason, detail).finally(Some(SHED))
        };
        let Some(waiting) = home.guard.wait(home.service.concurrency.pending) else {
            return Err(full(Reason::PendingFull));
        };
        let until = Instant::now() + entry.policy.queue;
        loop {
            let mut freed = std::pin::pin!(waiting.freed());
            // Before the look: a place that comes free after it is told of.
            freed.as_mut().enable();
            if let Some(newer) = self.cluster.newer(resolved, tried) {
                *resolved = newer;
            }
            let lacks = match self.try_enter(resolved, entry, Instant::now(), tried, resort) {
                Err(NoEntry::Full(lacks)) => lacks,
                Err(NoEntry::Never(problem)) => return Err(problem),
                Ok(entered) => return Ok(entered),
            };
            if tokio::time::timeout_at(until.into(), freed).await.is_err() {
                return Err(full(lacks));
            }
        }
    }

    fn barred(&self, barred: Barred) -> NoEntry {
        match barred {
            Barred::Full => NoEntry::Full(Reason::QueueTimeout),
            Barred::Connections => NoEntry::Full(Reason::ConnectionsFull),
            Barred::Open(left) => {
                let detail = format!("{}: {}", self.cluster.name(), Reason::BreakerOpen.help());
                NoEntry::Never(Problem::new(Reason::BreakerOpen, detail).not_before(left))
            }
        }
    }

    pub(super) fn nobody(&self) -> Problem {
        let detail = format!("{} has no healthy instance", self.cluster.name());
        Problem::new(Reason::NoEndpoints, detail)
    }
}

/// Why a refusal for lack of places is the last word: elsewhere it would only add to the load.
const SHED: &str = "shed";
