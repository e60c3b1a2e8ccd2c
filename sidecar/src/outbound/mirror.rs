//! Copies of requests: sent when the original has been sent whole, never waited for, their answers thrown away.
//!
//! A copy is one try. What becomes of it says nothing about the service to breakers and budgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::HeaderValue;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;

use super::Outbound;
use super::cluster::{Resolved, Tried};
use super::route::Routed;
use crate::balance::Resort;
use crate::directory::traffic::{Copies, Mirror};
use crate::forward::body::Body;
use crate::forward::fields::MIRROR;
use crate::forward::replay::{Source, TooLarge};
use crate::forward::translate::{self, Plan};
use crate::observe::count::Count;

/// Copies on their way at a time, of one worker to one service.
const MOST: u32 = 64;
/// A copy whose answer has not ended by then is given up.
const PATIENCE: Duration = Duration::from_secs(15);
/// 100 %.
const MILLION: u32 = 1_000_000;

/// How many copies are on their way.
#[derive(Debug, Clone, Default)]
pub(super) struct Flying(Arc<AtomicU32>);

/// The place of one copy.
struct Place(Flying);

impl Flying {
    /// A place; none when all are taken.
    fn enter(&self) -> Option<Place> {
        let taken = self.0.fetch_update(Relaxed, Relaxed, |n| (n < MOST).then_some(n + 1));
        taken.is_ok().then(|| Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// All that a copy needs once the original goes its own way.
struct Copy {
    from: Outbound,
    resolved: Arc<Resolved>,
    other: Option<usize>,
    subset: Option<Arc<str>>,
    plan: Plan,
    head: Request<Body>,
    body: Option<oneshot::Receiver<Result<Bytes, TooLarge>>>,
}

/// Which counter hears of a copy.
type Became = fn(&Copies) -> &Count;

impl Outbound {
    /// Sends a copy along, when the route wants one of this request. Costs the original a copy of its head, and of its
    /// body's references.
    pub(super) fn mirror<B>(
        &self,
        routed: &Routed,
        resolved: &Arc<Resolved>,
        plan: &Plan,
        head: &Request<B>,
        source: Option<&Source>,
    ) {
        let wanted = |m: &&Mirror| m.per_million >= MILLION || fastrand::u32(..MILLION) < m.per_million;
        let Some(mirror) = routed.onward().and_then(|o| o.mirror.as_ref()).filter(wanted) else {
            return;
        };
        // An upgrade has no end after which it could be sent.
        if plan.upgrade.is_some() {
            return;
        }
        let counts = mirror.counts.clone();
        let Some(place) = self.flying.enter() else {
            return counts.full.add();
        };
        let copy = Copy {
            from: Self::new(self.cluster.clone(), self.shared.clone(), None),
            resolved: resolved.clone(),
            other: mirror.to.other,
            subset: mirror.to.subset.clone(),
            plan: plan.clone(),
            head: translate::copy_head(head),
            body: source.map(Source::tee),
        };
        // Ends by itself within its patience; when the process ends before, so do copies.
        tokio::spawn(async move {
            let became: Became = match tokio::time::timeout(PATIENCE, copy.send()).await {
                Ok(became) => became,
                Err(_) => |c| &c.late,
            };
            became(&counts).add();
            drop(place);
        });
    }
}

impl Copy {
    /// One try, and its answer to the end.
    async fn send(mut self) -> Became {
        let body = match self.body.take() {
            None => Body::empty(),
            Some(body) => match body.await {
                Ok(Ok(bytes)) => Body::full(bytes),
                Ok(Err(TooLarge)) => return |c| &c.too_large,
                Err(_) => return |c| &c.incomplete,
            },
        };
        let elsewhere = match self.other {
            None => None,
            Some(other) => match self.from.elsewhere(&self.resolved, other).await {
                Ok(elsewhere) => Some(elsewhere),
                Err(_) => return |c| &c.failed,
            },
        };
        let (there, resolved) = elsewhere
            .as_ref()
            .map_or((&self.from, &self.resolved), |(there, resolved)| (there, resolved));
        if self.subset.as_ref().is_some_and(|s| !resolved.has_subset(s)) {
            return |c| &c.failed;
        }
        let mut request = self.head.map(|_| body);
        let aim = resolved.aim(self.subset, request.uri(), request.headers(), &there.cluster.cell);
        let Some((_, target)) = resolved.pick(Instant::now(), &aim, &Tried::new(), Resort::Ejected) else {
            return |c| &c.failed;
        };
        let upstream = &target.upstream;
        self.plan
            .dress(&mut request, upstream.route.wire, &there.cluster.authority);
        request.headers_mut().insert(MIRROR, HeaderValue::from_static("1"));
        let Ok((response, lease)) = upstream.send(&mut Some(request)).await else {
            return |c| &c.failed;
        };
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return |c| &c.failed;
            }
        }
        lease.finish(Instant::now());
        |c| &c.answered
    }
}
