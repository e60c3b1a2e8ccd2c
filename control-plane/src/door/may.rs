//! Who may ask what, in one table. What is not in it is for operators only.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tonic::{Code, Status};

use super::Arrival;
use crate::events::{Event, Events, Refusals};
use crate::identity::Asker;

/// Who may ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Anybody who reaches the port; what is answered depends on the request's own proof.
    Anybody,
    /// A workload, about itself. The service checks that, since only it reads the request.
    Workloads,
    /// A person who looks after the mesh.
    Operators,
}

/// The table.
#[must_use]
pub fn who(method: &Method, path: &str) -> Who {
    match path {
        "/healthz" if method == Method::GET || method == Method::HEAD => Who::Anybody,
        // It proves itself by a token, or by the connection's certificate.
        "/outrigger.agent.v1.Identity/Issue" => Who::Anybody,
        "/outrigger.agent.v1.Agent/Session"
        | "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources" => Who::Workloads,
        _ => Who::Operators,
    }
}

/// What the check needs to know.
#[derive(Clone)]
pub struct Checks {
    /// Whether a token makes its bearer an operator. In constant time.
    pub admin: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Where refusals of workloads are told.
    pub events: Arc<Events>,
}

/// Refuses what the table does not allow; else says in the request's extensions who asks.
pub async fn check(State(checks): State<Checks>, mut request: Request, next: Next) -> Response {
    let arrival = request.extensions().get::<Arrival>().cloned().unwrap_or_default();
    let asker = match bearer(request.headers()) {
        None => arrival.asker,
        Some(token) if (checks.admin)(token) => Asker::Operator,
        Some(_) => {
            checks.events.refused(Refusals::Unproven);
            tracing::warn!(peer = %arrival.peer, "a token that is not an operator's was shown");
            let why = "that token is not an operator's, has expired or was revoked";
            return refuse(request.headers(), Code::Unauthenticated, why);
        }
    };
    let wanted = who(request.method(), request.uri().path());
    match (&asker, wanted) {
        (_, Who::Anybody) | (Asker::Operator, _) | (Asker::Workload { .. }, Who::Workloads) => {
            request.extensions_mut().insert(asker);
            next.run(request).await
        }
        (Asker::Nobody, _) => {
            checks.events.refused(Refusals::Unproven);
            tracing::debug!(peer = %arrival.peer, path = request.uri().path(), "refused: nobody was proven");
            let why = "nobody is let in unproven: use the unix socket, an operator's token, or the certificate of a \
                       workload";
            refuse(request.headers(), Code::Unauthenticated, why)
        }
        (Asker::Workload { id, .. }, Who::Operators) => {
            checks.events.record(Event::Refused {
                who: id.to_string(),
                what: "asked for what only operators may".to_owned(),
            });
            let why = "workloads may not ask this; only operators may";
            refuse(request.headers(), Code::PermissionDenied, why)
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().unwrap_or_default();
    // RFC 9110 §11.1: the scheme's case does not matter.
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    // Anything else that is meant as a proof is refused like a wrong token.
    Some(if scheme.eq_ignore_ascii_case("bearer") {
        token.trim()
    } else {
        ""
    })
}

/// In the form that the client understands: a gRPC status, or JSON.
fn refuse(headers: &HeaderMap, code: Code, why: &str) -> Response {
    let grpc = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return Status::new(code, why).into_http();
    }
    let status = match code {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        _ => StatusCode::FORBIDDEN,
    };
    let mut response = (status, Json(json!({ "error": why }))).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
