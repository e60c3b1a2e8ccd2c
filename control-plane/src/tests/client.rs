//! A running control plane, and a sidecar-like client that keeps what it is told. Both come in by the unix socket, as an
//! operator, unless a test says otherwise.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use outrigger_proto::features;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::agent::agent_client::AgentClient;
use outrigger_proto::wire::agent::{self, Down, Up, up};
use outrigger_proto::wire::core::Node;
use outrigger_proto::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrigger_proto::wire::google::rpc;
use outrigger_proto::wire::mesh;
use prost::Message as _;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::server::{Options, serve};

/// Nothing here may take longer.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
pub(super) const ENDPOINT: &str = "type.googleapis.com/outrigger.mesh.v1.Endpoint";

/// A control plane that runs.
pub(super) struct World {
    /// The TCP port.
    pub(super) address: SocketAddr,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    stopper: oneshot::Sender<()>,
    task: JoinHandle<Result<(), crate::server::Error>>,
}

impl World {
    pub(super) async fn start(mut options: Options) -> Self {
        let folder = tempfile::tempdir().expect("scratch");
        let socket = folder.path().join("socket");
        options.socket = Some(socket.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stopper, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, options, async {
            let _gone = stopped.await.is_err();
        }));
        let world = Self {
            address,
            socket,
            _folder: folder,
            stopper,
            task,
        };
        eventually("it listens", async || {
            world.task.is_finished() || world.connect().await.is_ok()
        })
        .await;
        world
    }

    /// Ends it: streams end, nothing is said before, and its sidecars are still there.
    pub(super) async fn stop(self) {
        self.stopper.send(()).expect("running");
        let ended = timeout(DEADLINE, self.task).await.expect("ends");
        ended.expect("no panic").expect("no error");
    }

    /// A connection as an operator.
    pub(super) async fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(&self.socket).await
    }

    /// The same for gRPC.
    pub(super) async fn channel(&self) -> Channel {
        let url = format!("unix:{}", self.socket.display());
        let endpoint = Endpoint::from_shared(url).expect("a path");
        endpoint.connect().await.expect("connects")
    }
}

/// Waits until `check` says yes.
pub(super) async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !check().await {
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One `Agent/Session`.
#[derive(Debug)]
pub(super) struct Session {
    ups: mpsc::Sender<Up>,
    pub(super) downs: Streaming<Down>,
    id: u64,
    name: (String, String, String),
    epoch: u64,
}

impl Session {
    pub(super) async fn open(world: &World, service: &str, instance: &str, epoch: u64) -> Self {
        let opened = Self::over(world.channel().await, service, instance, epoch).await;
        opened.expect("opens")
    }

    /// The same over any connection; an error is the control plane's.
    pub(super) async fn over(channel: Channel, service: &str, instance: &str, epoch: u64) -> Result<Self, Status> {
        let (ups, receiver) = mpsc::channel(8);
        let mut client = AgentClient::new(channel);
        let hello = agent::Hello {
            namespace: "default".into(),
            service: service.into(),
            instance: instance.into(),
            epoch,
            features: features::ALL.iter().map(ToString::to_string).collect(),
            version: "0.1.0".into(),
            admin: "127.0.0.1:1".into(),
        };
        let first = Up {
            id: 1,
            body: Some(up::Body::Hello(hello)),
        };
        ups.send(first).await.expect("room");
        let mut downs = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        let welcome = timeout(DEADLINE, downs.message()).await.expect("in time")?;
        let welcome = welcome.expect("not ended").body;
        assert!(matches!(welcome, Some(agent::down::Body::Welcome(_))), "{welcome:?}");
        Ok(Self {
            ups,
            downs,
            id: 1,
            name: ("default".into(), service.into(), instance.into()),
            epoch,
        })
    }

    pub(super) async fn send(&mut self, body: Option<up::Body>) {
        self.id += 1;
        self.ups.send(Up { id: self.id, body }).await.expect("session is open");
    }

    pub(super) async fn down(&mut self) -> agent::down::Body {
        let down = timeout(DEADLINE, self.downs.message()).await.expect("in time");
        down.expect("no error").expect("not ended").body.expect("a body")
    }

    pub(super) async fn ask(&mut self, body: up::Body) -> agent::down::Body {
        self.send(Some(body)).await;
        self.down().await
    }

    pub(super) fn endpoint(&self, port: u32) -> mesh::Endpoint {
        let (namespace, service, instance) = &self.name;
        mesh::Endpoint {
            name: format!("{namespace}/{service}/{instance}"),
            address: "127.0.0.1".into(),
            ports: vec![mesh::EndpointPort {
                name: "http".into(),
                port,
                mesh_port: 0,
            }],
            epoch: self.epoch,
            weight: 1,
            meshed: true,
            ..Default::default()
        }
    }

    pub(super) async fn register(&mut self, port: u32) {
        let endpoint = Some(self.endpoint(port));
        let answer = self.ask(up::Body::Register(agent::Register { endpoint })).await;
        assert!(matches!(answer, agent::down::Body::Registered(_)), "{answer:?}");
    }
}

/// One delta stream whose client accepts everything, unless told otherwise.
pub(super) struct Ads {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// Version and endpoint's port by name.
    pub(super) endpoints: BTreeMap<String, (String, u32)>,
    /// Every response, as names sent and names removed.
    pub(super) log: Vec<(Vec<String>, Vec<String>)>,
    pub(super) refuse: Option<String>,
}

impl Ads {
    pub(super) async fn open(
        world: &World,
        node: &str,
        names: &[&str],
        have: &BTreeMap<String, (String, u32)>,
    ) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(world.channel().await);
        let node = Node {
            id: node.into(),
            client_features: features::ALL.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: ENDPOINT.into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            initial_resource_versions: have.iter().map(|(n, (v, _))| (n.clone(), v.clone())).collect(),
            ..Default::default()
        };
        requests.send(first).await.expect("room");
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await;
        Self {
            requests,
            responses: responses.expect("opens").into_inner(),
            endpoints: have.clone(),
            log: Vec::new(),
            refuse: None,
        }
    }

    /// Takes one response and answers it.
    pub(super) async fn step(&mut self) -> (Vec<String>, Vec<String>) {
        let response = timeout(DEADLINE, self.responses.message()).await.expect("in time");
        let response = response.expect("no error").expect("not ended");
        assert_eq!(response.type_url, ENDPOINT);
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        let mut sent = Vec::new();
        for resource in response.resources {
            sent.push(resource.name.clone());
            if self.refuse.as_ref() == Some(&resource.name) {
                let rejection = mesh::Rejection {
                    resource: resource.name,
                    version: resource.version,
                    field: "ports".into(),
                    reason: "not liked".into(),
                };
                let details = prost_types::Any {
                    type_url: "type.googleapis.com/outrigger.mesh.v1.Rejection".into(),
                    value: rejection.encode_to_vec(),
                };
                answer.error_detail = Some(rpc::Status {
                    code: 3,
                    message: "one refused".into(),
                    details: vec![details],
                });
                continue;
            }
            let any = resource.resource.expect("a body");
            assert_eq!(any.type_url, ResourceType::Endpoint.url());
            let endpoint = mesh::Endpoint::decode(any.value.as_slice()).expect("valid");
            self.endpoints
                .insert(resource.name, (resource.version, endpoint.ports[0].port));
        }
        for name in &response.removed_resources {
            self.endpoints.remove(name);
        }
        self.requests.send(answer).await.expect("open");
        self.log.push((sent, response.removed_resources));
        self.log.last().expect("just pushed").clone()
    }

    /// Takes responses until the endpoints are these ports.
    pub(super) async fn until(&mut self, ports: &[u32]) {
        while self.endpoints.values().map(|(_, port)| *port).collect::<Vec<_>>() != ports {
            self.step().await;
        }
    }
}
