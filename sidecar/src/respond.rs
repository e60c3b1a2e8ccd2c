//! The one place where a failure becomes a status.
//!
//! Every answer that the mesh makes itself has a [`Reason`], in the header
//! `outrigger-reason`, the gRPC message, the log and a counter. Knows no room but reasons, bodies and deadlines.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::forward::body::Body;
use crate::identify::TlsError;
use crate::policy::deadline::Deadline;
use crate::reason::Reason;

/// The header that carries [`Reason::as_str`].
pub const REASON_HEADER: HeaderName = HeaderName::from_static("outrigger-reason");

/// How an answer of the mesh is dressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dress {
    /// A status and a line of text.
    Http,
    /// 200 and `grpc-status` (gRPC over HTTP/2, "Trailers-Only").
    Grpc,
}

impl Dress {
    /// gRPC for a request whose content type says so (gRPC over HTTP/2, "Requests").
    #[must_use]
    pub fn of(headers: &http::HeaderMap) -> Self {
        match headers.get(CONTENT_TYPE) {
            Some(value) if value.as_bytes().starts_with(b"application/grpc") => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// Makes the answer for `reason`; `detail` names the value and the likely cause.
#[must_use]
pub fn answer(reason: Reason, dress: Dress, detail: &str) -> Response<Body> {
    let text = if detail.is_empty() { reason.help() } else { detail };
    let mut response = match dress {
        Dress::Http => {
            let mut r = Response::new(Body::full(Bytes::from(format!("{}: {text}\n", reason.as_str()))));
            *r.status_mut() = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            r.headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            if reason == Reason::BadRequest {
                // What follows on the connection is in doubt too.
                r.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            r
        }
        Dress::Grpc => {
            let mut r = Response::new(Body::empty());
            let headers = r.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(u16::from(reason.grpc_status())));
            headers.insert("grpc-message", percent_encoded(&format!("{}: {text}", reason.as_str())));
            r
        }
    };
    response
        .headers_mut()
        .insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    response
}

/// Makes an answer that configuration asks for: with these statuses and, for HTTP, with `body`. `word` says in
/// `outrigger-reason` what made it.
#[must_use]
pub fn configured(word: &'static str, status: StatusCode, grpc: u32, dress: Dress, body: Bytes) -> Response<Body> {
    let mut response = match dress {
        Dress::Http => Response::new(Body::full(body)),
        Dress::Grpc => {
            let mut r = Response::new(Body::empty());
            let headers = r.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(grpc));
            headers.insert(
                "grpc-message",
                percent_encoded(String::from_utf8_lossy(&body).trim_end()),
            );
            r
        }
    };
    if dress == Dress::Http {
        *response.status_mut() = status;
    }
    response
        .headers_mut()
        .insert(REASON_HEADER, HeaderValue::from_static(word));
    response
}

/// What an HTTP status is for a gRPC client ("HTTP to gRPC Status Code Mapping" of gRPC).
#[must_use]
pub fn grpc_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Waits for `work` until `deadline`; none when time ran out. `sent` tells whether the request's body
/// has been sent whole: until then the service's time-out has not begun.
///
/// # Cancel safety
/// As safe as `work`.
pub async fn within<T>(deadline: &Deadline, sent: impl Fn() -> bool, work: impl Future<Output = T>) -> Option<T> {
    if deadline.is_none() {
        return Some(work.await);
    }
    tokio::pin!(work);
    let mut sent_at = sent().then(Instant::now);
    while let Some(at) = deadline.next(Instant::now(), sent_at) {
        match tokio::time::timeout_at(at.into(), work.as_mut()).await {
            Ok(done) => return Some(done),
            Err(_) if sent_at.is_some() || deadline.whole.is_some_and(|w| w <= Instant::now()) => return None,
            // The time-out counts from the end of the request; it is at most one time-out late.
            Err(_) => sent_at = sent().then(Instant::now),
        }
    }
    Some(work.await)
}

/// An error and its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Why a client's connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The bytes are not HTTP, or the peer broke off.
    #[error("http: {}", chain(.0))]
    Http(#[from] hyper::Error),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
    /// No TLS, or with somebody who is not let in.
    #[error("tls: {}", chain(.0))]
    Tls(#[from] TlsError),
    /// The mesh refused an opaque connection.
    #[error("refused: {}", .0.as_str())]
    Refused(Reason),
}

/// Percent-encodes a `grpc-message` (gRPC over HTTP/2, "Responses": everything but %x20-7E, and %).
fn percent_encoded(text: &str) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(out).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_answer_is_trailers_only_with_the_reason() {
        let r = answer(Reason::NoEndpoints, Dress::Grpc, "post has none: 100 %");
        assert_eq!(r.status(), 200);
        assert_eq!(r.headers()["grpc-status"], "14");
        assert_eq!(r.headers()["grpc-message"], "no_endpoints: post has none: 100 %25");
        assert_eq!(r.headers()[REASON_HEADER], "no_endpoints");
    }
}
