//! The one place where a failure becomes a status.
//!
//! Every answer that the mesh makes itself has a reason from this closed table, in the header
//! `outrigger-reason`, the gRPC message, the log and a counter. Knows no room but bodies and deadlines.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::forward::body::Body;
use crate::policy::deadline::Deadline;

/// The header that carries [`Reason::as_str`].
pub const REASON_HEADER: HeaderName = HeaderName::from_static("outrigger-reason");

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $status:literal, $grpc:literal, $help:literal;)+) => {
        /// Why the mesh answered by itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// How many reasons there are.
            pub const COUNT: usize = [$(stringify!($name)),+].len();
            /// Every reason.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$name),+];

            /// The word in header, log and metric.
            #[must_use]
            pub fn as_str(self) -> &'static str { match self { $(Self::$name => $text),+ } }
            /// HTTP status.
            #[must_use]
            pub fn status(self) -> u16 { match self { $(Self::$name => $status),+ } }
            /// gRPC status.
            #[must_use]
            pub fn grpc_status(self) -> u8 { match self { $(Self::$name => $grpc),+ } }
            /// What a person should think of first.
            #[must_use]
            pub fn help(self) -> &'static str { match self { $(Self::$name => $help),+ } }

            fn header(self) -> HeaderValue {
                match self { $(Self::$name => HeaderValue::from_static($text)),+ }
            }
            fn grpc_header(self) -> HeaderValue {
                match self { $(Self::$name => HeaderValue::from_static(stringify!($grpc))),+ }
            }
        }
    };
}

reasons! {
    /// The mesh has no service of that name.
    UnknownService => "unknown_service", 404, 12, "the mesh has no service of that name";
    /// The service has no port of that name.
    UnknownPort => "unknown_port", 404, 12, "the service has no such port";
    /// The service exists and no instance is registered.
    NoEndpoints => "no_endpoints", 503, 14, "no healthy instance is registered";
    /// Configuration for the service has not arrived yet.
    NotReady => "not_ready", 503, 14, "configuration for the service has not arrived yet";
    /// The sidecar could not hand one byte to its app.
    AppUnreachable => "app_unreachable", 503, 14, "the app does not accept connections";
    /// No endpoint accepted a connection.
    ConnectFailed => "connect_failed", 503, 14, "no instance accepted a connection";
    /// The upstream connection broke after the request was sent.
    UpstreamReset => "upstream_reset", 502, 14, "the connection broke after the request was sent";
    /// The upstream answered with something that is not its protocol.
    UpstreamProtocol => "upstream_protocol", 502, 13, "the answer does not follow the declared protocol";
    /// Time ran out.
    Deadline => "deadline", 504, 4, "no answer in time";
    /// The request is malformed or ambiguous.
    BadRequest => "bad_request", 400, 13, "the request is malformed or ambiguous";
    /// The destination outside the mesh is not allowed.
    ExternalDenied => "external_denied", 403, 7, "calls to this host outside the mesh are not allowed";
    /// The destination would lead back to this sidecar.
    Loop => "loop", 508, 13, "the request would lead back to its own sidecar";
    /// The sidecar is at a limit.
    Overloaded => "overloaded", 503, 8, "the sidecar is at a limit";
}

impl Reason {
    /// Position in [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

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
            headers.insert("grpc-status", reason.grpc_header());
            headers.insert("grpc-message", percent_encoded(&format!("{}: {text}", reason.as_str())));
            r
        }
    };
    response.headers_mut().insert(REASON_HEADER, reason.header());
    response
}

/// Waits for `work` until `deadline`; none when time ran out. `sent` tells whether the request's body
/// has been sent whole: until then the service's time-out has not begun.
///
/// # Cancel safety
/// As safe as `work`.
pub async fn within<T>(deadline: &Deadline, sent: impl Fn() -> bool, work: impl Future<Output = T>) -> Option<T> {
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
    fn reasons_are_words_that_appear_once() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::COUNT);
        assert!(Reason::ALL.iter().enumerate().all(|(i, r)| r.index() == i));
    }

    #[test]
    fn a_grpc_answer_is_trailers_only_with_the_reason() {
        let r = answer(Reason::NoEndpoints, Dress::Grpc, "post has none: 100 %");
        assert_eq!(r.status(), 200);
        assert_eq!(r.headers()["grpc-status"], "14");
        assert_eq!(r.headers()["grpc-message"], "no_endpoints: post has none: 100 %25");
        assert_eq!(r.headers()[REASON_HEADER], "no_endpoints");
    }
}
