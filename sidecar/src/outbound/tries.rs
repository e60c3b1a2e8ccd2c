//! One request's tries: which endpoint next, and whether another try is safe.

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use hyper::body::Incoming;
use outrigger_proto::model::Policy;

use super::cluster::{Aim, Resolved, Tried};
use super::{Outbound, Problem};
use crate::balance::{Resort, Standing};
use crate::connect::{Lease, Security, SendError, Upstream, Wire};
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::replay::Source;
use crate::forward::translate::{self, Plan};
use crate::policy::retry::{self, Failure, Verdict};
use crate::reason::Reason;
use crate::respond;

impl Outbound {
    /// Tries one endpoint after another while that is provably safe.
    pub(super) async fn tries(
        &self,
        mut request: Request<Body>,
        plan: &Plan,
        mut resolved: Arc<Resolved>,
        aim: &Aim,
        _policy: &Policy,
        source: Option<&Source>,
        exchange: &mut Exchange,
    ) -> Result<(Response<Incoming>, Lease, Wire), Problem> {
        let mut tried = Tried::new();
        loop {
            let now = if tried.is_empty() {
                exchange.started()
            } else {
                Instant::now()
            };
            let Some((index, upstream)) = resolved.pick(now, aim, &tried, Resort::Ejected, |_| Standing::Ready) else {
                return Err(Problem::new(
                    Reason::NoEndpoints,
                    format!("{} has no healthy instance", self.cluster.name()),
                ));
            };
            let upstream = upstream.clone();
            tried.push(index);
            plan.dress(&mut request, upstream.route.wire, &self.cluster.authority);
            // An HTTP/2 peer may refuse a stream after it has the head; HTTP/1 gives everything back.
            let copy = (upstream.route.wire != Wire::Http1).then(|| translate::copy_head(&request));
            exchange.tried();
            let error = match upstream.send(request).await {
                Ok((response, lease)) => {
                    if matches!(upstream.route.security, Security::Mutual(_)) {
                        exchange.secured();
                    }
                    let answered = Instant::now();
                    upstream.observe(answered, answered.saturating_duration_since(now));
                    return Ok((response, lease, upstream.route.wire));
                }
                Err(error) => error,
            };
            upstream.penalize(Instant::now());
            tracing::debug!(service = self.cluster.name(), endpoint = %upstream.route.address, failure = ?error.failure, error = %error.source, "try failed");
            let again = match error.failure {
                Failure::Refused => source.map_or(Some(Body::empty()), |s| s.take().map(Body::replay)),
                _ => None,
            };
            let replayable = error.request.is_some() || again.is_some();
            if let Some(newer) = self.cluster.newer(&resolved, &mut tried) {
                resolved = newer;
            }
            if retry::verdict(error.failure, tried.len(), resolved.choices(aim), replayable) == Verdict::GiveUp {
                return Err(self.failed(&error, &upstream));
            }
            request = match (error.request, copy, again) {
                (Some(back), ..) => back,
                (None, Some(head), Some(body)) => head.map(|_| body),
                _ => return Err(Problem::new(Reason::UpstreamReset, error.source.to_string())),
            };
        }
    }

    fn failed(&self, error: &SendError, upstream: &Upstream) -> Problem {
        let reason = match error.failure {
            Failure::NeverSent if let Some(reason) = error.unconnected => reason,
            Failure::Refused if upstream.route.wire == Wire::Mesh => Reason::AppUnreachable,
            Failure::NeverSent | Failure::Refused | Failure::MaybeProcessed => Reason::UpstreamReset,
        };
        Problem::new(
            reason,
            format!(
                "{} at {}: {}",
                self.cluster.name(),
                upstream.route.address,
                respond::chain(&*error.source)
            ),
        )
    }
}
