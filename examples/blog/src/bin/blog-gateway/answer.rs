//! How a refusal looks over HTTP: a status, and `{"error": {"code", "message"}}` with a `reason` when something between
//! this service and the one it called gave one.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// The header, or gRPC metadata, by which whatever carries the calls says why it could not.
pub(crate) const REASON: &str = "outrigger-reason";

/// A refusal on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) reason: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            reason: None,
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let (http, code) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Code::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Code::AlreadyExists => (StatusCode::CONFLICT, "already_exists"),
            Code::FailedPrecondition | Code::Aborted => (StatusCode::CONFLICT, "conflict"),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, "forbidden"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "exhausted"),
            Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "unimplemented"),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
                (StatusCode::BAD_GATEWAY, "upstream")
            }
        };
        let reason = status
            .metadata()
            .get(REASON)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        Self {
            status: http,
            code: code.to_owned(),
            message: status.message().to_owned(),
            reason,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        let mut header = None;
        if let Some(reason) = self.reason {
            header = HeaderValue::from_str(&reason).ok();
            if let Some(fields) = error.as_object_mut() {
                fields.insert("reason".to_owned(), Value::String(reason));
            }
        }
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        if let Some(header) = header {
            response.headers_mut().insert(REASON, header);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §15.5.2: a 401 names the way to authenticate.
            response
                .headers_mut()
                .insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(crate) async fn no_such_path() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "no such path")
}

pub(crate) async fn no_such_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "the path has no such method",
    )
}
