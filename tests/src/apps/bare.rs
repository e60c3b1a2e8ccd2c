//! Bare hyper: the HTTP/2 server that our sidecar is built on, without the sidecar.
//!
//! The yardstick of conformance: what hyper alone answers with the same settings.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::task::{AbortHandle, JoinSet};

use super::listen;

/// A running bare server.
#[derive(Debug)]
pub struct Bare {
    /// Where it listens.
    pub addr: SocketAddr,
    task: AbortHandle,
}

impl Bare {
    /// Starts a server that reads every body and answers 200.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let (listener, addr) = listen().await?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
                    drop(serving.await);
                });
            }
        });
        Ok(Self {
            addr,
            task: task.abort_handle(),
        })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let status = match request.into_body().collect().await {
        Ok(_) => 200,
        Err(_) => 400,
    };
    let mut response = Response::new(Full::new(Bytes::from_static(b"ok\n")));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    Ok(response)
}
