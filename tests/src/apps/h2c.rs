//! HTTP/2 apps (prior knowledge) on bare hyper.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::task::{AbortHandle, JoinSet};

use super::{Seen, listen};
use crate::http1::Head;

/// What an app answers with.
pub type Answer = Response<BoxBody<Bytes, std::io::Error>>;

/// A running HTTP/2 app.
#[derive(Debug)]
pub struct H2App {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it saw.
    pub seen: Arc<Seen>,
    task: AbortHandle,
}

impl H2App {
    /// Starts an app.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start<F, Fut>(handler: F) -> Result<Self>
    where
        F: Fn(Request<Incoming>, Arc<Seen>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let (listener, addr) = listen().await?;
        let seen = Arc::new(Seen::default());
        let counters = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (counters, handler) = (Arc::clone(&counters), handler.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (counters, handler) = (Arc::clone(&counters), handler.clone());
                    async move {
                        counters.note(&head_of(&request));
                        // hyper drops this future when the stream is reset.
                        let mut guard = CancelGuard(Some(Arc::clone(&counters)));
                        let answer = handler(request, counters).await;
                        guard.0 = None;
                        Ok::<_, Infallible>(answer)
                    }
                });
                connections.spawn(async move {
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service);
                    drop(serving.await);
                });
            }
        });
        Ok(Self {
            addr,
            seen,
            task: task.abort_handle(),
        })
    }

    /// Reports every request as JSON, like the HTTP/1 echo app.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn echo() -> Result<Self> {
        Self::start(|request, _| async move {
            let head = head_of(&request);
            let collected = request.into_body().collect().await;
            let trailers = collected
                .as_ref()
                .ok()
                .and_then(|c| c.trailers().cloned())
                .map(|map| fields_of(&map))
                .unwrap_or_default();
            let body = collected.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let report = json!({
                "line": head.line,
                "fields": head.fields,
                "body": String::from_utf8_lossy(&body),
                "length": body.len(),
                "trailers": trailers,
            });
            full(report.to_string())
        })
        .await
    }

    /// Never answers.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn silent() -> Result<Self> {
        Self::start(|_, _| std::future::pending()).await
    }
}

impl Drop for H2App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct CancelGuard(Option<Arc<Seen>>);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(seen) = &self.0 {
            seen.note_cancelled();
        }
    }
}

/// A whole body.
#[must_use]
pub fn full(text: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed())
}

fn head_of<B>(request: &Request<B>) -> Head {
    Head {
        line: format!("{} {} {:?}", request.method(), request.uri(), request.version()),
        fields: fields_of(request.headers()),
    }
}

fn fields_of(map: &http::HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(n, v)| (n.to_string(), v.as_bytes().iter().map(|b| char::from(*b)).collect()))
        .collect()
}
