//! A raw HTTP/2 client (the `h2` crate): streams, resets and window updates under the test's control.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::wait::soon;

/// One HTTP/2 connection with prior knowledge.
#[derive(Debug)]
pub struct H2Client {
    send: SendRequest<Bytes>,
    task: AbortHandle,
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Whole {
    /// The head.
    pub head: Response<()>,
    /// The body.
    pub body: Vec<u8>,
    /// Trailers, empty when none came.
    pub trailers: HeaderMap,
    /// Why the stream ended early, when it did.
    pub error: Option<h2::Error>,
}

impl Whole {
    /// A field of the head as text.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name).and_then(|v| v.to_str().ok())
    }
}

impl H2Client {
    /// Connects; `window` is what each stream may send before it is read.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(addr: SocketAddr, window: u32) -> Result<Self> {
        soon("an HTTP/2 connection", async {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            let (send, connection) = h2::client::Builder::new()
                // One stream until the server has said how many it takes, or it may refuse some.
                .initial_max_send_streams(1)
                .initial_window_size(window)
                .initial_connection_window_size(1 << 30)
                .max_header_list_size(1 << 20)
                .handshake(stream)
                .await?;
            let task = tokio::spawn(async move { drop(connection.await) });
            Ok(Self {
                send,
                task: task.abort_handle(),
            })
        })
        .await
    }

    /// Sends a request head.
    ///
    /// # Errors
    /// The connection's.
    pub async fn start(&mut self, request: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        soon("a free stream", async {
            let mut ready = self.send.clone().ready().await?;
            Ok(ready.send_request(request, end)?)
        })
        .await
    }

    /// A whole `GET` or, with a body, `POST`.
    ///
    /// # Errors
    /// The connection's, and no head.
    pub async fn exchange(&mut self, request: Request<()>, body: Option<Bytes>) -> Result<Whole> {
        let (answer, mut stream) = self.start(request, body.is_none()).await?;
        if let Some(body) = body {
            // An answer that needs no body may have ended the stream already (RFC 9113 §8.1).
            stream.send_data(body, true).ok();
        }
        whole(answer).await
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads an answer to its end, clean or not.
///
/// # Errors
/// No head.
pub async fn whole(answer: ResponseFuture) -> Result<Whole> {
    soon("an HTTP/2 answer", async {
        let (parts, mut stream) = answer.await.context("no head")?.into_parts();
        let mut whole = Whole {
            head: Response::from_parts(parts, ()),
            body: Vec::new(),
            trailers: HeaderMap::new(),
            error: None,
        };
        if let Err(error) = fill(&mut stream, &mut whole).await {
            whole.error = Some(error);
        }
        Ok(whole)
    })
    .await
}

async fn fill(stream: &mut RecvStream, whole: &mut Whole) -> Result<(), h2::Error> {
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        whole.body.extend_from_slice(&part);
    }
    if let Some(trailers) = stream.trailers().await? {
        whole.trailers = trailers;
    }
    Ok(())
}

/// A request head.
///
/// # Errors
/// When a part is not valid.
pub fn request(method: &str, addr: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Result<Request<()>> {
    let mut builder = Request::builder().method(method).uri(format!("http://{addr}{path}"));
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    Ok(builder.body(())?)
}
