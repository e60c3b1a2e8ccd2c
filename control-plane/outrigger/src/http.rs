//! A small HTTP client: one connection a request, everything bounded in time and size.
//!
//! [`send`] is plain, for admin pages on loopback; [`over`] and [`over_h2`] speak on a stream that somebody else made,
//! such as a unix socket or TLS.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
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
    let target = uri.path_and_query().map_or("/", |path| path.as_str());
    over(stream, authority.as_str(), target, ask).await
}

/// Sends `ask` for `target` as HTTP/1.1 on `stream` and reads the whole answer. The caller sets the deadline.
///
/// # Cancel safety
/// Dropped, the connection goes with it.
pub(crate) async fn over<S>(stream: S, authority: &str, target: &str, ask: Ask) -> Result<Reply, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::builder()
        .method(ask.method)
        .uri(target)
        .body(Full::new(ask.body))?;
    let host = HeaderValue::from_str(authority).map_err(http::Error::from)?;
    *request.headers_mut() = ask.headers;
    request.headers_mut().entry(http::header::HOST).or_insert(host);
    let answer = async move { read(sender.send_request(request).await?).await };
    with(connection, answer).await
}

/// As [`over`], by HTTP/2.
pub(crate) async fn over_h2<S>(stream: S, authority: &str, target: &str, ask: Ask) -> Result<Reply, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    let mut request = Request::builder()
        .method(ask.method)
        .uri(format!("http://{authority}{target}"))
        .body(Full::new(ask.body))?;
    *request.headers_mut() = ask.headers;
    let answer = async move { read(sender.send_request(request).await?).await };
    with(connection, answer).await
}

async fn read(reply: Response<Incoming>) -> Result<Reply, Error> {
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
}

/// The answer, while the connection is driven.
async fn with<C>(connection: C, answer: impl Future<Output = Result<Reply, Error>>) -> Result<Reply, Error>
where
    C: Future<Output = hyper::Result<()>>,
{
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
