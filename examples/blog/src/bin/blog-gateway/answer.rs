//! How a refusal looks over HTTP: a status, and `{"error": {"code", "message"}}` with a `reason` when something between
//! this service and the one it called gave one.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Why a call could not be carried, as whatever carries the calls said it: a header `SOMETHING-reason`, passed on as it
/// came.
#[derive(Debug)]
pub(crate) struct Reason {
    header: HeaderName,
    text: HeaderValue,
}

impl Reason {
    /// The reason among the fields of an answer, or of the metadata of a gRPC one.
    pub(crate) fn find(fields: &HeaderMap) -> Option<Box<Self>> {
        let (header, text) = fields.iter().find(|(name, _)| name.as_str().ends_with("-reason"))?;
        Some(Box::new(Self {
            header: header.clone(),
            text: text.clone(),
        }))
    }
}

/// A refusal on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) reason: Option<Box<Reason>>,
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
        let reason = Reason::find(status.metadata().as_ref());
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
        if let Some(text) = self.reason.as_ref().and_then(|reason| reason.text.to_str().ok()) {
            error["reason"] = Value::from(text);
        }
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        if let Some(reason) = self.reason {
            response.headers_mut().insert(reason.header, reason.text);
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

#[cfg(test)]
mod tests {
    use super::{HeaderMap, HeaderValue, Reason};

    #[test]
    fn a_reason_is_found_by_its_ending() {
        let mut fields = HeaderMap::new();
        fields.insert("content-type", HeaderValue::from_static("text/plain"));
        assert!(Reason::find(&fields).is_none());
        fields.insert("carrier-reason", HeaderValue::from_static("nobody_there"));
        let reason = Reason::find(&fields).map(|reason| (reason.header.to_string(), reason.text));
        assert_eq!(
            reason,
            Some(("carrier-reason".to_owned(), HeaderValue::from_static("nobody_there")))
        );
    }
}
