//! A control plane that says what a test tells it, and keeps what sidecars ask.
//!
//! It serves the delta stream; `Agent/Session` is answered UNIMPLEMENTED, which a sidecar must live
//! with, unless the test wants a session: then every registration is granted.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use futures_util::Stream;
use outrigger_proto::wire::agent::agent_server::{Agent, AgentServer};
use outrigger_proto::wire::agent::{Down, Registered, Up, down, up};
use outrigger_proto::wire::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{ports, wait};

/// What the script answers to one request.
type Answers = dyn Fn(&DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> + Send + Sync;

/// One open stream.
type Push = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// A running scripted control plane.
#[derive(Debug)]
pub struct Script {
    /// Where it listens.
    pub addr: SocketAddr,
    heard: Heard,
    task: AbortHandle,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    requests: Arc<Mutex<Vec<DeltaDiscoveryRequest>>>,
    streams: Arc<Mutex<Vec<Push>>>,
    ups: Arc<Mutex<Vec<Up>>>,
}

struct Ads {
    heard: Heard,
    answers: Arc<Answers>,
}

impl Script {
    /// Starts a control plane that answers every request by `answers`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(
        answers: impl Fn(&DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::serve(answers, false).await
    }

    /// The same, and every registration is granted for a lease of 2 s.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn with_session(
        answers: impl Fn(&DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::serve(answers, true).await
    }

    async fn serve(
        answers: impl Fn(&DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> + Send + Sync + 'static,
        session: bool,
    ) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(ports::free()?).await?;
        let addr = listener.local_addr()?;
        let heard = Heard::default();
        let ads = Ads {
            heard: heard.clone(),
            answers: Arc::new(answers),
        };
        let server = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(ads))
            .add_optional_service(session.then(|| AgentServer::new(Sessions(heard.clone()))))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { drop(server.await) });
        Ok(Self {
            addr,
            heard,
            task: task.abort_handle(),
        })
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<DeltaDiscoveryRequest> {
        self.heard.requests.lock().map(|r| r.clone()).unwrap_or_default()
    }

    /// All messages of sessions so far.
    #[must_use]
    pub fn ups(&self) -> Vec<Up> {
        self.heard.ups.lock().map(|u| u.clone()).unwrap_or_default()
    }

    /// Sends `response` on every open stream.
    ///
    /// # Errors
    /// When no stream is open.
    pub async fn push(&self, response: DeltaDiscoveryResponse) -> Result<()> {
        let streams = self.heard.streams.lock().map(|s| s.clone()).unwrap_or_default();
        let mut sent = 0;
        for stream in streams {
            sent += usize::from(stream.send(Ok(response.clone())).await.is_ok());
        }
        anyhow::ensure!(sent > 0, "no sidecar is connected");
        Ok(())
    }

    /// Waits for the ACK (`true`) or NACK (`false`) of the response with `nonce`.
    ///
    /// # Errors
    /// After the usual deadline.
    pub async fn verdict(&self, nonce: &str) -> Result<DeltaDiscoveryRequest> {
        let found = || self.requests().into_iter().find(|r| r.response_nonce == nonce);
        wait::until(&format!("a verdict on {nonce}"), || async { found().is_some() }).await?;
        found().ok_or_else(|| anyhow::anyhow!("the verdict on {nonce} went away"))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (send, receive) = mpsc::channel(64);
        if let Ok(mut streams) = self.heard.streams.lock() {
            streams.push(send.clone());
        }
        let (heard, answers, mut incoming) = (self.heard.clone(), Arc::clone(&self.answers), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(request)) = incoming.next().await {
                let responses = answers(&request);
                if let Ok(mut requests) = heard.requests.lock() {
                    requests.push(request);
                }
                for response in responses {
                    if send.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Grants every registration and renewal.
struct Sessions(Heard);

#[tonic::async_trait]
impl Agent for Sessions {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<Down, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<Up>>) -> Result<Response<Self::SessionStream>, Status> {
        let (send, receive) = mpsc::channel(64);
        let (heard, mut incoming) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut id = 0;
            while let Some(Ok(up)) = incoming.next().await {
                let granted = matches!(up.body, Some(up::Body::Register(_) | up::Body::Renew(_)));
                if let Ok(mut ups) = heard.ups.lock() {
                    ups.push(up);
                }
                id += 1;
                let body = Some(down::Body::Registered(Registered { lease_ms: 2000 }));
                if granted && send.send(Ok(Down { id, body })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// A response that carries `resources`.
#[must_use]
pub fn response(type_url: &str, nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: nonce.to_owned(),
        resources,
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// A resource whose bytes are those of `message`.
#[must_use]
pub fn resource(type_url: &str, name: &str, version: &str, message: &impl Message) -> Resource {
    raw_resource(type_url, name, version, message.encode_to_vec())
}

/// A resource of any bytes.
#[must_use]
pub fn raw_resource(type_url: &str, name: &str, version: &str, value: Vec<u8>) -> Resource {
    Resource {
        version: version.to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value,
        }),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}
