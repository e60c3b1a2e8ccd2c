//! Before the app: rate limits, and a place among the requests that it gets at a time.

use std::time::{Duration, Instant};

use http::header::{HOST, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Response, StatusCode};
use outrigger_proto::routes::Asked;

use super::caller::Caller;
use crate::exchange::Exchange;
use crate::forward::body::Body;
use crate::forward::fields::FINAL;
use crate::forward::translate::Plan;
use crate::protect::{Met, Place, Protection, Shed};
use crate::reason::Reason;
use crate::respond::{self, Dress};

/// What a shed client is told to wait: the queue is empty or full again by then.
const SOON: Duration = Duration::from_secs(1);

/// Why a request does not reach the app.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: Reason,
    detail: String,
    wait: Duration,
}

/// Counts the request at the rate limits and gets it a place; none where the number of requests is not bounded.
///
/// # Cancel safety
/// Whoever stops waiting leaves the queue.
pub(super) async fn admit(
    protection: &Protection,
    caller: &Caller,
    plan: &Plan,
    parts: &Parts,
    now: Instant,
) -> Result<Option<Place>, Refusal> {
    let (gate, priority) = {
        let field = |name: &str| parts.headers.get(name).map(HeaderValue::as_bytes);
        let host = || parts.headers.get(HOST).and_then(|h| h.to_str().ok());
        let asked = Asked {
            // RFC 9112 §3.2.2 prefers that of an absolute form.
            host: plan.authority().map(|a| a.as_str()).or_else(host),
            path: plan.path().path(),
            query: plan.path().query(),
            method: plan.method().as_str(),
            field: &field,
        };
        protection.count(&asked, caller.id(), now).map_err(|too_many| Refusal {
            reason: Reason::RateLimited,
            detail: format!("the rate limit `{}` has nothing left", too_many.limit),
            wait: too_many.wait,
        })?;
        match protection.gate(&asked) {
            None => return Ok(None),
            Some(gate) => gate,
        }
    };
    match gate.enter(priority, now) {
        Ok(Met::Place(place)) => Ok(Some(place)),
        // Boxed: only while the app has enough to do.
        Ok(Met::Queue(queued)) => Box::pin(queued.place(priority)).await.map(Some).map_err(Refusal::shed),
        Err(shed) => Err(Refusal::shed(shed)),
    }
}

/// Whether an answer says that the app had too much to do, or could not do it.
pub(super) fn failed(response: &Response<Body>) -> bool {
    let status = response.status();
    // UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE.
    let grpc = |code: &HeaderValue| matches!(code.as_bytes(), b"2" | b"4" | b"8" | b"13" | b"14");
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || response.headers().get("grpc-status").is_some_and(grpc)
}

impl Refusal {
    fn shed(shed: Shed) -> Self {
        let why = match shed {
            Shed::Full => "the queue for the app is full",
            Shed::Displaced => "the queue for the app is full, and a more important request came",
            Shed::Late => "no place at the app came free in time",
        };
        Self {
            reason: Reason::Overloaded,
            detail: why.into(),
            wait: SOON,
        }
    }

    /// The answer.
    pub(super) fn answer(self, mut exchange: Box<Exchange>, dress: Dress) -> Response<Body> {
        exchange.refused(self.reason);
        let mut response = respond::answer(self.reason, dress, &self.detail);
        let headers = response.headers_mut();
        // Whole seconds (RFC 9110 §10.2.3), and never too early.
        let seconds = self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        if self.reason == Reason::Overloaded {
            headers.insert(FINAL, HeaderValue::from_static("shed"));
        }
        response.map(|body| body.told(exchange))
    }
}
