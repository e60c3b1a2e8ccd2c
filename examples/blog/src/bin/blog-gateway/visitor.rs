//! The visitor service's client: the one neighbour that speaks HTTP/JSON.

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{Reason, Refusal};

/// The visitor service sends no longer answer than this.
const LARGEST_ANSWER: usize = 64 * 1024;

#[derive(Clone)]
pub(crate) struct Visitor {
    client: Client<HttpConnector, Full<Bytes>>,
    authority: Authority,
}

/// What has been counted for a blog.
#[derive(Deserialize)]
pub(crate) struct Count {
    pub(crate) visits: u64,
    pub(crate) visitors: u64,
}

impl Visitor {
    /// The service whose URL stands in `variable`.
    pub(crate) fn new(variable: &str) -> anyhow::Result<Self> {
        let url = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
        let uri: Uri = url.parse().with_context(|| format!("{variable} is no URL: {url}"))?;
        let authority = uri
            .authority()
            .with_context(|| format!("{variable} names no host: {url}"))?
            .clone();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            authority,
        })
    }

    /// Counts a visit: 201 when it is the visitor's first of the day, else 200.
    pub(crate) async fn visit(&self, blog_id: &str, visitor: &str) -> Result<(StatusCode, Value), Refusal> {
        let body = json!({ "blog_id": blog_id, "visitor": visitor }).to_string();
        let (status, body) = self.call(Method::POST, "/visits", body).await?;
        Ok((status, read(&body)?))
    }

    pub(crate) async fn count(&self, blog_id: &str) -> Result<Count, Refusal> {
        let (_, body) = self
            .call(
                Method::GET,
                &format!("/count?blog_id={}", escape(blog_id)),
                String::new(),
            )
            .await?;
        read(&body)
    }

    async fn call(&self, method: Method, path: &str, body: String) -> Result<(StatusCode, Bytes), Refusal> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header(HOST, self.authority.as_str())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|cause| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", cause.to_string()))?;
        let unavailable = |cause: String| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                format!("visitor does not answer: {cause}"),
            )
        };
        let response = self
            .client
            .request(request)
            .await
            .map_err(|cause| unavailable(cause.to_string()))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|cause| unavailable(cause.to_string()))?;
        let body = body.to_bytes();
        if head.status.is_success() {
            return Ok((head.status, body));
        }
        Err(refused(head.status, &body, Reason::find(&head.headers)))
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|cause| {
        Refusal::new(
            StatusCode::BAD_GATEWAY,
            "upstream",
            format!("visitor's answer is unreadable: {cause}"),
        )
    })
}

/// The service's own refusal word for word, or the text of whoever answered in its place.
fn refused(status: StatusCode, body: &[u8], reason: Option<Box<Reason>>) -> Refusal {
    #[derive(Deserialize)]
    struct Answer {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        code: String,
        message: String,
    }
    match serde_json::from_slice(body) {
        Ok(Answer {
            error: Error { code, message },
        }) => Refusal {
            status,
            code,
            message,
            reason,
        },
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            let message = text.trim().chars().take(500).collect();
            let code = if status.is_server_error() {
                "unavailable"
            } else {
                "upstream"
            };
            Refusal {
                status,
                code: code.to_owned(),
                message,
                reason,
            }
        }
    }
}

/// Percent-encodes what is not unreserved (RFC 3986 §2.3).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_is_not_unreserved_is_escaped() {
        assert_eq!(escape("0195-a.b_c~"), "0195-a.b_c~");
        assert_eq!(escape("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
