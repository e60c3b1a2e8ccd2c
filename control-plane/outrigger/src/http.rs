//! A small HTTP/1.1 client: one connection a request, everything bounded in time and size.
//!
//! Speaks plain HTTP only: the control plane and the sidecars' admin pages are on loopback.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Not a URL that this client can use.
    #[error("`{0}` is not an http:// address")]
    Address(String),
    /// No connection.
    #[error("{0}")]
    Connect(std::io::Error),
    /// Neither connection nor answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke or spoke something else.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The body broke or is too large.
    #[error("cannot read the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The request cannot be made of these parts.
    #[error("not a request: {0}")]
    Request(#[from] http::Error),
}

/// What to send.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Ask {
    /// A GET without a body.
    pub(crate) fn get() -> Self {
        Self::default()
    }
}

/// Sends `ask` to `url` and reads the whole answer, both within `limit`.
pub(crate) async fn send(url: &str, ask: Ask, limit: Duration) -> Result<Reply, Error> {
    tokio::time::timeout(limit, exchange(url, ask))
        .await
        .map_err(|_| Error::Timeout(limit))?
}

async fn exchange(url: &str, ask: Ask) -> Result<Reply, Error> {
    let uri: Uri = url.parse().map_err(|_| Error::Address(url.to_owned()))?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(Error::Address(url.to_owned()));
    };
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80)))
        .await
        .map_err(Error::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let target = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(ask.method)
        .uri(target)
        .body(Full::new(ask.body))?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(http::Error::from)?;
    *request.headers_mut() = ask.headers;
    request.headers_mut().entry(http::header::HOST).or_insert(host);
    let answer = async move {
        let reply = sender.send_request(request).await?;
        let (head, body) = reply.into_parts();
        let body = Limited::new(body, MAX_BODY)
            .collect()
            .await
            .map_err(Error::Body)?
            .to_bytes();
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body,
        })
    };
    tokio::pin!(answer);
    tokio::pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            reply = &mut answer => return reply,
            // The body may still stand in buffers when the connection has ended.
            _ended = &mut connection, if open => open = false,
        }
    }
}

/// More than any table needs.
const MAX_BODY: usize = 256 << 20;
