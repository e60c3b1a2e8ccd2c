//! A second request while the first is slow: at most one, to another endpoint, within the retry budget. Whichever is well
//! first is the answer; the other is dropped, which its server sees.

use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::Request;

use super::super::Outbound;
use super::super::cluster::{Resolved, Tried};
use super::{Call, Ended, outcome};
use crate::balance::Resort;
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::replay::Source;

impl Outbound {
    /// Waits for `first`, and after a while sends `head` too. The number of the endpoint comes with an answer of the
    /// second, whose account is then the exchange's.
    #[expect(clippy::too_many_arguments, reason = "all of a try, and what a second one needs")]
    pub(super) async fn race(
        &self,
        mut first: Pin<Box<impl Future<Output = Ended> + Send>>,
        after: Duration,
        head: Option<Request<Body>>,
        resolved: &Resolved,
        call: &Call<'_>,
        tried: &Tried,
        exchange: &mut Exchange,
    ) -> (Ended, Option<usize>) {
        loop {
            if let Ok(ended) = tokio::time::timeout(after, first.as_mut()).await {
                return (ended, None);
            }
            // A request that is still on its way cannot be sent beside itself; later it can, if it is short.
            if call.source.is_none_or(|s| s.ended() || !s.replayable()) {
                break;
            }
        }
        let now = Instant::now();
        let body = match call.source {
            None => Some(Body::empty()),
            Some(source) => Source::whole(source).map(Body::full),
        };
        let guard = &resolved.home.guard;
        let entry = match (head, body) {
            (Some(head), Some(body)) => self
                .try_enter(resolved, call.entry(), now, tried, Resort::Tried)
                .ok()
                // The same one again would be as slow.
                .filter(|(index, _)| !tried.contains(index))
                .filter(|_| guard.budget.take(now, &resolved.service.retry_budget))
                .map(|entry| (entry, head.map(|_| body))),
            _ => None,
        };
        let Some(((index, mut account), mut request)) = entry else {
            return (first.await, None);
        };
        let Some(target) = resolved.endpoints.get(index) else {
            return (first.await, None);
        };
        let upstream = target.upstream.clone();
        call.plan
            .dress(&mut request, upstream.route.wire, &self.cluster.authority);
        call.tell(&mut request, now, exchange.tries() + 1, upstream.route.wire);
        guard.counts.hedges.fetch_add(1, Relaxed);
        exchange.tried();
        let mut request = Some(request);
        let mut sending = Box::pin(upstream.send(&mut request));
        let mut second = Box::pin(call.bounded(now, sending.as_mut()));
        let well = |ended: &Ended, exchange: &Exchange| {
            matches!(ended, Ended::Answered(response, _) if {
                let outcome = outcome(response, exchange);
                !outcome.is_in(&call.policy.failures) && !outcome.is_in(&call.policy.retry.on)
            })
        };
        let (one, other) = tokio::select! {
            ended = first.as_mut() => (Some(ended), None),
            ended = second.as_mut() => (None, Some(ended)),
        };
        let (one, other) = match (one, other) {
            (Some(one), None) if !well(&one, exchange) => (Some(one), Some(second.await)),
            (None, Some(other)) if !well(&other, exchange) => (Some(first.as_mut().await), Some(other)),
            // The other is dropped with this frame: cancelled.
            sides => sides,
        };
        match (one, other) {
            (Some(one), Some(other)) if !well(&one, exchange) && well(&other, exchange) => {
                // Both ended: the first one's failure counts.
                super::settle_by(&one, exchange, Instant::now());
                guard.counts.hedges_won.fetch_add(1, Relaxed);
                exchange.accounted(account);
                (other, Some(index))
            }
            (Some(one), other) => {
                if let Some(other) = other {
                    super::account_by(&other, &mut account, exchange, Instant::now());
                }
                (one, None)
            }
            (None, Some(other)) => {
                guard.counts.hedges_won.fetch_add(1, Relaxed);
                exchange.accounted(account);
                (other, Some(index))
            }
            // One of them ended, or the other would not have been waited for.
            (None, None) => (first.await, None),
        }
    }
}
