//! A control plane for tests: a real server whose streams are handed to the test as they open.

use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use outrigger_proto::wire::agent::agent_server::{Agent, AgentServer};
use outrigger_proto::wire::agent::{Down, Up};
use outrigger_proto::wire::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Every wait of these tests.
const SOON: Duration = Duration::from_secs(20);

/// One open stream, as the server sees it. Dropping it ends the stream.
pub(crate) struct Conversation<In, Out> {
    incoming: Streaming<In>,
    outgoing: mpsc::Sender<Result<Out, Status>>,
}

/// A discovery stream.
pub(crate) type Discovery = Conversation<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
/// A session.
pub(crate) type Session = Conversation<Up, Down>;

impl<In, Out> Conversation<In, Out> {
    /// The next message of the sidecar.
    pub(crate) async fn next(&mut self) -> In {
        let message = tokio::time::timeout(SOON, self.incoming.message())
            .await
            .expect("a message in time");
        message.expect("the stream is whole").expect("the stream goes on")
    }

    /// Sends to the sidecar.
    pub(crate) async fn send(&self, message: Out) {
        self.outgoing.send(Ok(message)).await.expect("the stream is open");
    }
}

/// The server and the streams that opened.
pub(crate) struct ControlPlane {
    /// Where it listens.
    pub(crate) url: String,
    discovery: mpsc::Receiver<Discovery>,
    sessions: mpsc::Receiver<Session>,
    server: JoinHandle<()>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl ControlPlane {
    /// The next discovery stream that opens.
    pub(crate) async fn discovery(&mut self) -> Discovery {
        tokio::time::timeout(SOON, self.discovery.recv())
            .await
            .expect("a stream in time")
            .expect("the server runs")
    }

    /// The next session that opens.
    pub(crate) async fn session(&mut self) -> Session {
        tokio::time::timeout(SOON, self.sessions.recv())
            .await
            .expect("a session in time")
            .expect("the server runs")
    }
}

/// Starts one on a free port.
pub(crate) async fn start() -> ControlPlane {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (discovery_tx, discovery) = mpsc::channel(8);
    let (sessions_tx, sessions) = mpsc::channel(8);
    let server = tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Door(discovery_tx)))
            .add_service(AgentServer::new(Door(sessions_tx)))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .expect("it serves");
    });
    ControlPlane {
        url,
        discovery,
        sessions,
        server,
    }
}

struct Door<C>(mpsc::Sender<C>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl<In, Out: Send + 'static> Door<Conversation<In, Out>> {
    async fn enter(&self, request: Request<Streaming<In>>) -> Result<Response<Answers<Out>>, Status> {
        let (outgoing, answers) = mpsc::channel(16);
        let opened = self
            .0
            .send(Conversation {
                incoming: request.into_inner(),
                outgoing,
            })
            .await;
        opened.map_err(|_| Status::unavailable("the test ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Door<Discovery> {
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.enter(request).await
    }
}

#[tonic::async_trait]
impl Agent for Door<Session> {
    type SessionStream = Answers<Down>;

    async fn session(&self, request: Request<Streaming<Up>>) -> Result<Response<Self::SessionStream>, Status> {
        self.enter(request).await
    }
}
