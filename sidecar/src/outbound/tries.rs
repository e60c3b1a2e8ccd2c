//! One request's tries: which endpoint next, how long, and whether another try is safe.
//!
//! What was never sent is tried again as long as there are endpoints. What may have been processed is tried again only when
//! the policy says so, within the retry budget, and never once a part of an answer was passed on.

pub(super) mod enter;
mod hedge;
mod peek;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use outrigger_proto::model::Policy;

use self::enter::Entry;
use self::peek::First;
use super::cluster::{Aim, Resolved, Tried};
use super::route::Routed;
use super::{Outbound, Problem};
use crate::balance::Resort;
use crate::connect::{Lease, Security, SendError, Upstream, Wire};
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::fields;
use crate::forward::replay::Source;
use crate::forward::translate::{self, Plan};
use crate::guard::Account;
use crate::policy::backoff::{self, Asked};
use crate::policy::deadline::{Deadline, GRPC_TIMEOUT};
use crate::policy::retry::{self, Failure, Outcome, Verdict};
use crate::reason::Reason;
use crate::respond;

/// What all tries of one request have in common.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) plan: &'a Plan,
    pub(super) aim: &'a Aim,
    /// The route's, or the service's.
    pub(super) policy: &'a Policy,
    pub(super) source: Option<&'a Source>,
    pub(super) deadline: Deadline,
    pub(super) began: Instant,
    /// What routes and faults make of it; time may have passed on purpose then.
    pub(super) routed: Option<&'a Routed>,
}

/// The head of an answer, and the right to the rest of it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    /// Taken from the body already.
    pub(super) first: First,
    pub(super) lease: Lease,
    pub(super) wire: Wire,
    /// Why nobody up the chain is to try again.
    pub(super) last_word: Option<&'static str>,
}

/// How one try ended.
enum Ended {
    Answered(Response<Incoming>, Lease),
    /// Boxed: rare, and larger than an answer.
    Failed(Box<SendError>),
    /// No head in time, for this reason.
    Late(Reason),
}

/// What follows a try that may have been processed.
enum Next {
    /// Another one, after a while.
    Again(Duration),
    /// None, and why nobody else is to try either.
    Over(Option<&'static str>),
}

/// Why an answer is the last word.
pub(super) const RETRIED: &str = "retried";
const BUDGET: &str = "budget";
/// An answer that asks for more patience than this, where no deadline says otherwise, is passed on.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of what was never sent, and of what may have been processed: places in the counters.
const NEVER: usize = 0;
const MAYBE: usize = 1;

impl Outbound {
    /// Tries one endpoint after another while that is safe.
    pub(super) async fn tries(
        &self,
        request: &mut Option<Request<Body>>,
        mut resolved: Arc<Resolved>,
        call: &Call<'_>,
        exchange: &mut Exchange,
    ) -> Result<Answered, Problem> {
        if let Some(routed) = call.routed {
            routed.delayed().await;
        }
        let (plan, policy) = (call.plan, call.policy);
        let upgrade = plan.upgrade.is_some();
        let twice = policy.retry.attempts > 1 && retry::idempotent(policy, plan.method(), exchange.is_grpc(), upgrade);
        let hedges = policy.hedge.filter(|_| policy.idempotent && !upgrade);
        if policy.retry.attempts > 1 || hedges.is_some() {
            resolved.home.guard.budget.request(call.began);
        }
        let (mut tried, mut resort) = (Tried::new(), Resort::Ejected);
        // Tries that may have been processed, and tries of which nothing was sent.
        let (mut sent, mut unsent) = (0u32, 0u32);
        let mut class = None;
        loop {
            let now = match tried.is_empty() && call.routed.is_none() {
                true => call.began,
                false => Instant::now(),
            };
            let (index, account) = self.enter(&mut resolved, call.entry(), now, &mut tried, resort).await?;
            let Some(target) = resolved.endpoints.get(index) else {
                return Err(self.nobody());
            };
            // Its own: a newer view may take the place of this one.
            let mut upstream = target.upstream.clone();
            tried.push(index);
            let Some(head) = request.as_mut() else {
                return Err(self.nobody());
            };
            plan.dress(head, upstream.route.wire, &self.cluster.authority);
            call.tell(head, now, exchange.tries() + 1, upstream.route.wire);
            // An HTTP/2 peer may refuse a stream after it has the head; HTTP/1 gives everything back, unless it may have been
            // processed and is tried again.
            let copy =
                (twice || hedges.is_some() || upstream.route.wire != Wire::Http1).then(|| translate::copy_head(head));
            exchange.accounted(account);
            exchange.tried();
            let (ended, winner) = {
                let first = std::pin::pin!(upstream.send(request));
                match hedges.and_then(|h| h.after.or_else(|| resolved.home.guard.latency.p95(now))) {
                    None => (call.bounded(now, first).await, None),
                    // Boxed: rare, and otherwise part of every request.
                    Some(after) => {
                        let first = Box::pin(call.bounded(now, first));
                        let second = copy.as_ref().map(translate::copy_head);
                        let raced = self.race(first, after, second, &resolved, call, &tried, exchange);
                        Box::pin(raced).await
                    }
                }
            };
            if let Some((other, target)) = winner.and_then(|i| Some((i, resolved.endpoints.get(i)?))) {
                tried.push(other);
                upstream = target.upstream.clone();
            }
            let at = Instant::now();
            let (ended, mut first) = match ended {
                Ended::Answered(response, lease)
                    if twice
                        && exchange.is_grpc()
                        && peek::open(&response)
                        && call.source.is_none_or(|s| s.ended() && s.replayable()) =>
                {
                    // Boxed: only what may be tried again has it.
                    Box::pin(peek::peek(response, lease, call.deadline.left(call.began, at))).await
                }
                ended => (ended, None),
            };
            let trailing = peek::outcome(&first);
            let well = matches!(&ended, Ended::Answered(response, _)
                if !trailing.unwrap_or_else(|| outcome(response, exchange)).is_in(&policy.retry.on));
            resolved.home.guard.counts.tried(class, well);

            let (last, outcome, asked, last_word) = match ended {
                Ended::Answered(response, lease) => {
                    if matches!(upstream.route.security, Security::Mutual(_)) {
                        exchange.secured();
                    }
                    let took = at.saturating_duration_since(now);
                    upstream.observe(at, took);
                    if policy.hedge.is_some_and(|h| h.after.is_none()) {
                        resolved.home.guard.latency.record(at, took);
                    }
                    let outcome = trailing.unwrap_or_else(|| outcome(&response, exchange));
                    if let Some(account) = exchange.account() {
                        account.answered(at);
                        // A failure is told at once; what began well is told at its end.
                        if outcome.is_in(&policy.failures) {
                            account.settle(at, outcome);
                        }
                    }
                    let headers = response.headers();
                    let trailers = first.as_ref().and_then(|f| f.trailers_ref());
                    let repeatable = twice && outcome.is_in(&policy.retry.on);
                    let (asked, last_word) = match repeatable {
                        true => (
                            // gRPC's wish stands where its status does.
                            backoff::asked(trailers.unwrap_or(headers), SystemTime::now()),
                            headers.contains_key(fields::FINAL),
                        ),
                        false => (Asked::Nothing, false),
                    };
                    let answered = Answered {
                        response,
                        first: first.take(),
                        lease,
                        wire: upstream.route.wire,
                        last_word: None,
                    };
                    if !repeatable {
                        return Ok(answered);
                    }
                    (Ok(answered), outcome, asked, last_word)
                }
                Ended::Late(reason) => {
                    upstream.penalize(at);
                    settle(exchange, at, Outcome::Timeout);
                    let detail = format!(
                        "{} at {}: {}",
                        self.cluster.name(),
                        upstream.route.address,
                        reason.help()
                    );
                    tracing::debug!(reason = reason.as_str(), detail, "try failed");
                    (
                        Err(Problem::new(reason, detail)),
                        Outcome::Timeout,
                        Asked::Nothing,
                        false,
                    )
                }
                Ended::Failed(error) => {
                    upstream.penalize(at);
                    tracing::debug!(service = self.cluster.name(), endpoint = %upstream.route.address, failure = ?error.failure, error = %error.source, "try failed");
                    let problem = self.failed(&error, &upstream);
                    if error.failure == Failure::MaybeProcessed {
                        settle(exchange, at, Outcome::Reset);
                        (Err(problem), Outcome::Reset, Asked::Nothing, false)
                    } else {
                        let again = match error.failure {
                            Failure::Refused => body(call.source),
                            _ => None,
                        };
                        let replayable = request.is_some() || again.is_some();
                        if let Some(newer) = self.cluster.newer(&resolved, &mut tried) {
                            resolved = newer;
                        }
                        // Those that are gone are no longer among them.
                        let tries = tried.len().saturating_sub(usize::try_from(sent).unwrap_or(0));
                        let verdict = retry::verdict(error.failure, tries, resolved.choices(call.aim), replayable);
                        if let Some(account) = exchange.account() {
                            account.unsent(at, error.unconnected.is_some(), verdict == Verdict::GiveUp);
                        }
                        exchange.unaccounted();
                        if verdict == Verdict::GiveUp {
                            return Err(problem);
                        }
                        if request.is_none() {
                            let (Some(head), Some(body)) = (copy, again) else {
                                return Err(problem);
                            };
                            *request = Some(head.map(|_| body));
                        }
                        (class, resort) = (Some(NEVER), Resort::Ejected);
                        // The first other endpoint at once.
                        if unsent > 0 {
                            let wait = backoff::wait(
                                unsent - 1,
                                policy.retry.backoff,
                                policy.retry.max_backoff,
                                fastrand::f64(),
                            );
                            tokio::time::sleep(wait).await;
                        }
                        unsent += 1;
                        continue;
                    }
                }
            };
            sent += 1;
            let next = match twice {
                true => self.next(&resolved, call, sent, outcome, asked, last_word),
                false => Next::Over(None),
            };
            match (next, copy) {
                (Next::Again(wait), Some(head)) => {
                    // Resets the stream or closes the connection: nobody reads the rest of it.
                    drop(last);
                    exchange.unaccounted();
                    tokio::time::sleep(wait).await;
                    let Some(body) = body(call.source) else {
                        return Err(Problem::new(
                            Reason::UpstreamReset,
                            "the request grew while it was tried again".into(),
                        ));
                    };
                    *request = Some(head.map(|_| body));
                    (class, resort) = (Some(MAYBE), Resort::Tried);
                    if let Some(newer) = self.cluster.newer(&resolved, &mut tried) {
                        resolved = newer;
                    }
                }
                (Next::Over(why), _) => return finally(last, why),
                (Next::Again(_), None) => return finally(last, None),
            }
        }
    }

    /// What follows a try that ended with `outcome` and may have been processed, of a request that may be done twice.
    fn next(
        &self,
        resolved: &Resolved,
        call: &Call<'_>,
        sent: u32,
        outcome: Outcome,
        asked: Asked,
        last_word: bool,
    ) -> Next {
        let (policy, guard) = (call.policy, &resolved.home.guard);
        let word = (sent > 1).then_some(RETRIED);
        let replayable = call.source.is_none_or(Source::replayable);
        if retry::repeat(policy, sent, outcome, asked, last_word) == Verdict::GiveUp
            || !replayable
            || !guard.is_closed(&resolved.service)
        {
            return Next::Over(word.filter(|_| outcome.is_in(&policy.retry.on)));
        }
        let now = Instant::now();
        let wait = match asked {
            Asked::After(wait) => wait,
            _ => backoff::wait(
                sent - 1,
                policy.retry.backoff,
                policy.retry.max_backoff,
                fastrand::f64(),
            ),
        };
        if wait >= call.deadline.left(call.began, now).unwrap_or(PATIENCE) {
            return Next::Over(word);
        }
        if !guard.budget.take(now, &resolved.service.retry_budget) {
            guard.counts.unaffordable.fetch_add(1, Relaxed);
            return Next::Over(Some(BUDGET));
        }
        Next::Again(wait)
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

impl Call<'_> {
    /// What an entry of its tries is for.
    fn entry(&self) -> Entry<'_> {
        Entry {
            aim: self.aim,
            policy: self.policy,
            opaque: false,
        }
    }

    /// Tells the other sidecar what is left of the time, and which try this is.
    fn tell(&self, request: &mut Request<Body>, now: Instant, attempt: u32, wire: Wire) {
        let headers = request.headers_mut();
        if attempt > 1 {
            // What an earlier try was told.
            headers.remove(fields::TIMEOUT);
            headers.remove(fields::ATTEMPT);
            if let Some(left) = self.deadline.forwarded(now) {
                headers.insert(GRPC_TIMEOUT, left);
            }
        }
        if wire != Wire::Mesh {
            return;
        }
        // One small allocation, where the request has a deadline: a field's value owns its bytes.
        if let Some(left) = self.deadline.left(self.began, now) {
            let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            headers.insert(fields::TIMEOUT, HeaderValue::from(millis));
        }
        if attempt > 1 {
            headers.insert(fields::ATTEMPT, HeaderValue::from(attempt));
        }
    }

    /// Waits for the head of an answer as long as one try may take. Its time counts from the end of the request.
    async fn bounded<F>(&self, now: Instant, mut work: Pin<&mut F>) -> Ended
    where
        F: Future<Output = Result<(Response<Incoming>, Lease), SendError>>,
    {
        let (per_try, idle) = (self.policy.per_try, self.policy.idle);
        if per_try.is_none() && idle.is_none() {
            return work.await.into();
        }
        let sent = || self.source.is_none_or(Source::ended);
        let mut sent_at = sent().then_some(now);
        loop {
            let now = Instant::now();
            let moved = self
                .source
                .and_then(Source::moved)
                .map_or(self.began, |m| m.max(self.began));
            // While the request is on its way its end is looked for as often as a try may last: it is late by that at most.
            let late = per_try.map(|limit| (sent_at.unwrap_or(now) + limit, Reason::PerTryTimeout));
            let idle = idle.map(|limit| (moved.max(sent_at.unwrap_or(moved)) + limit, Reason::IdleTimeout));
            let Some((at, reason)) = late.into_iter().chain(idle).min_by_key(|(at, _)| *at) else {
                return work.await.into();
            };
            if at <= now && (reason == Reason::IdleTimeout || sent_at.is_some()) {
                return Ended::Late(reason);
            }
            if let Ok(done) = tokio::time::timeout_at(at.into(), work.as_mut()).await {
                return done.into();
            }
            if sent_at.is_none() {
                sent_at = sent().then(Instant::now);
            }
        }
    }
}

impl From<Result<(Response<Incoming>, Lease), SendError>> for Ended {
    fn from(sent: Result<(Response<Incoming>, Lease), SendError>) -> Self {
        match sent {
            Ok((response, lease)) => Self::Answered(response, lease),
            Err(error) => Self::Failed(Box::new(error)),
        }
    }
}

fn outcome(response: &Response<Incoming>, exchange: &Exchange) -> Outcome {
    Outcome::of_head(response.status(), response.headers(), exchange.is_grpc())
}

fn settle(exchange: &mut Exchange, at: Instant, outcome: Outcome) {
    if let Some(account) = exchange.account() {
        account.settle(at, outcome);
    }
    // Its places are free from now on.
    exchange.unaccounted();
}

/// Tells the exchange's account how its try ended, when another one's answer is taken.
fn settle_by(ended: &Ended, exchange: &mut Exchange, at: Instant) {
    let how = how(ended, exchange);
    if let (Some(how), Some(account)) = (how, exchange.account()) {
        account.settle(at, how);
    }
}

/// Tells `account` how its try ended.
fn account_by(ended: &Ended, account: &mut Account, exchange: &Exchange, at: Instant) {
    match how(ended, exchange) {
        Some(how) => account.settle(at, how),
        None => account.unsent(at, false, false),
    }
}

fn how(ended: &Ended, exchange: &Exchange) -> Option<Outcome> {
    match ended {
        Ended::Answered(response, _) => Some(outcome(response, exchange)),
        Ended::Late(_) => Some(Outcome::Timeout),
        Ended::Failed(error) if error.failure == Failure::MaybeProcessed => Some(Outcome::Reset),
        Ended::Failed(_) => None,
    }
}

/// The request's body from its first byte; none when too much has been sent already.
fn body(source: Option<&Source>) -> Option<Body> {
    source.map_or(Some(Body::empty()), |s| s.take().map(Body::replay))
}

/// The end of all tries, and why nobody else is to try again.
fn finally(last: Result<Answered, Problem>, why: Option<&'static str>) -> Result<Answered, Problem> {
    match last {
        Ok(answered) => Ok(Answered {
            last_word: why,
            ..answered
        }),
        Err(problem) => Err(problem.finally(why)),
    }
}
