//! Who is let in, with identities that were really given, and how each who is not is refused.

use std::time::Duration;

use outrigger_proto::features;
use outrigger_proto::model::{JoinToken, ResourceType};
use outrigger_proto::wire::DESCRIPTORS;
use outrigger_proto::wire::agent::{self, up};
use outrigger_proto::wire::core::Node;
use outrigger_proto::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrigger_proto::wire::mesh;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::api::{ask, ask_over, get};
use super::client::{DEADLINE, Session, World, eventually};
use super::member::{Client, Member, token};
use crate::server::Options;

/// One stream of resources.
struct Discovery {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Discovery {
    async fn open(client: &Client, node: &str, kind: ResourceType, name: &str) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(8);
        let first = DeltaDiscoveryRequest {
            node: Some(Node {
                id: node.into(),
                client_features: features::ALL.iter().map(ToString::to_string).collect(),
                ..Default::default()
            }),
            ..ask_for(kind, name)
        };
        requests.send(first).await.expect("room");
        let channel = client.channel().await.expect("connects");
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = timeout(DEADLINE, self.responses.message()).await.expect("in time")?;
        let response = response.ok_or_else(|| Status::cancelled("ended"))?;
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        // The stream may have ended after this response.
        let _gone = self.requests.send(answer).await.is_err();
        Ok(response)
    }

    /// The next trust that is pushed, and its version.
    async fn trust(&mut self) -> (mesh::TrustBundle, String) {
        let response = self.next().await.expect("open");
        let resource = response.resources.into_iter().next().expect("one resource");
        let any = resource.resource.expect("a body");
        assert_eq!(any.type_url, ResourceType::TrustBundle.url());
        let bundle = mesh::TrustBundle::decode(any.value.as_slice()).expect("valid");
        (bundle, resource.version)
    }
}

fn ask_for(kind: ResourceType, name: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        resource_names_subscribe: vec![name.into()],
        ..Default::default()
    }
}

async fn events(world: &World) -> Vec<Value> {
    get(world, "/v1/events").await.as_array().expect("a list").clone()
}

/// Every route of the document and every method of every service, as nobody and as a workload.
#[tokio::test]
async fn nothing_is_open_that_is_not_meant_to_be() {
    let world = World::start(Options::default()).await;
    let workload = Member::join(&world, "user", "u1").await.client(&world);
    let nobody = Client::new(world.address, None, None);

    let document = get(&world, "/v1/openapi.json").await;
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let path = path.replace(['{', '}'], "");
            let method = method.to_ascii_uppercase();
            for (client, status) in [(&nobody, 401), (&workload, 403)] {
                let stream = client.connect().await.expect("connects");
                let (got, _, body) = ask_over(stream, &method, &path, "", "").await;
                let expected = if path == "/healthz" { 200 } else { status };
                assert_eq!(got, expected, "{method} {path}: {body}");
                if path == "/healthz" {
                    assert_eq!(body["reasons"], json!([]), "reasons are for operators");
                }
            }
            asked += 1;
        }
    }
    assert!(asked > 15, "{asked} routes");

    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    let methods = set.file.iter().flat_map(|file| {
        file.service.iter().flat_map(move |service| {
            let name = format!("{}.{}", file.package(), service.name());
            service
                .method
                .iter()
                .map(move |method| format!("/{name}/{}", method.name()))
        })
    });
    let reflection = ["v1", "v1alpha"].map(|v| format!("/grpc.reflection.{v}.ServerReflection/ServerReflectionInfo"));
    let other = ["/nothing.Here/AtAll".to_owned(), "/v1/../healthz".to_owned()];
    let mut seen = Vec::new();
    for path in methods.chain(reflection).chain(other) {
        let issue = path.ends_with("Identity/Issue");
        let own = path.ends_with("Agent/Session") || path.ends_with("DeltaAggregatedResources") || issue;
        for (client, status, open) in [(&nobody, 16, issue), (&workload, 7, own)] {
            let stream = client.connect().await.expect("connects");
            let kind = "Content-Type: application/grpc\r\n";
            let (_, head, _) = ask_over(stream, "POST", &path, kind, "").await;
            let refused = head.contains(&format!("grpc-status: {status}\r\n"))
                || head.ends_with(&format!("grpc-status: {status}"));
            assert_eq!(refused, !open, "{path}: {head}");
        }
        seen.push(path);
    }
    assert!(
        seen.len() >= 7 && seen.iter().any(|path| path.contains("Agent/Session")),
        "{seen:?}"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_workload_speaks_for_itself_and_for_nobody_else() {
    let world = World::start(Options::default()).await;
    let user = Member::join(&world, "user", "u1").await.client(&world);
    let post = Member::join(&world, "post", "p1").await.client(&world);
    let connect = async |client: &Client| client.channel().await.expect("connects");

    let mut own = Session::over(connect(&user).await, "user", "u1", 1)
        .await
        .expect("its own");
    own.register(3001).await;
    for (client, other, id) in [(&user, "post", "p1"), (&post, "user", "u1")] {
        let refused = Session::over(connect(client).await, other, id, 9)
            .await
            .expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let node = format!("default/{other}/{id}");
        let mut stream = Discovery::open(client, &node, ResourceType::Service, "default/user")
            .await
            .expect("opens");
        let refused = stream.next().await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    // Under one's own name, but for another's endpoint or settings.
    let endpoint = Some(mesh::Endpoint {
        name: "default/post/p1".into(),
        ..own.endpoint(3001)
    });
    let answer = own.ask(up::Body::Register(agent::Register { endpoint })).await;
    assert!(matches!(answer, agent::down::Body::Refused(_)), "{answer:?}");
    let mut stream = Discovery::open(&user, "default/user/u1", ResourceType::Proxy, "default/user")
        .await
        .expect("opens");
    stream.next().await.expect("its own settings, when there are any");
    stream
        .requests
        .send(ask_for(ResourceType::Proxy, "default/post"))
        .await
        .expect("open");
    let refused = stream.next().await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // A token of one service is none of another's.
    let other = token(&world, json!({ "service": "user" })).await;
    let refused = Member::join_by(&world, &other, "post", "p9")
        .await
        .expect_err("refused");
    assert!(
        matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated),
        "{refused}"
    );

    let refusals = events(&world)
        .await
        .into_iter()
        .filter(|e| e["event"] == "refused")
        .count();
    assert!(refusals >= 5, "{refusals}");
    let endpoints = get(&world, "/v1/endpoints").await;
    assert_eq!(endpoints.as_array().map(Vec::len), Some(1), "only its own: {endpoints}");
    world.stop().await;
}

#[tokio::test]
async fn an_operator_far_away_shows_a_token() {
    let world = World::start(Options::default()).await;
    let good = token(&world, json!({ "operator": true })).await;
    let joining = token(&world, json!({ "service": "user" })).await;
    // Another secret, of the same token's id.
    let mut parsed: JoinToken = good.parse().expect("a token");
    parsed.secret[0] ^= 1;
    let wrong = parsed.to_string();
    let nobody = Client::new(world.address, None, Some(&good));
    let ask = async |token: &str| {
        let stream = nobody.connect().await.expect("connects");
        let header = format!("Authorization: Bearer {token}\r\n");
        ask_over(stream, "GET", "/v1/services", &header, "").await.0
    };
    assert_eq!(ask(&good).await, 200);
    for bad in [&wrong, &joining, "", "ogt1", "x.y.z"] {
        assert_eq!(ask(bad).await, 401, "{bad}");
    }
    let stream = nobody.connect().await.expect("connects");
    let (status, head, _) = ask_over(stream, "GET", "/v1/services", "", "").await;
    assert!(status == 401 && head.contains("www-authenticate: bearer"), "{head}");
    let id = good.split('.').nth(1).expect("an id");
    let (status, _) = super::api::ask(&world, "DELETE", &format!("/v1/tokens/{id}"), "", "").await;
    assert!((200..300).contains(&status), "{status}");
    assert_eq!(ask(&good).await, 401, "after it was revoked");
    world.stop().await;
}

#[tokio::test]
async fn a_revoked_service_is_gone_within_seconds_and_everybody_is_told() {
    let world = World::start(Options::default()).await;
    let user = Member::join(&world, "user", "u1").await.client(&world);
    let post = Member::join(&world, "post", "p1").await.client(&world);
    let channel = user.channel().await.expect("connects");
    let mut session = Session::over(channel, "user", "u1", 1).await.expect("its own");
    session.register(3001).await;
    let mut theirs = Discovery::open(&user, "default/user/u1", ResourceType::TrustBundle, "trust")
        .await
        .expect("opens");
    theirs.trust().await;
    let mut others = Discovery::open(&post, "default/post/p1", ResourceType::TrustBundle, "trust")
        .await
        .expect("opens");
    assert!(others.trust().await.0.revoked.is_empty());

    let kind = "Content-Type: application/json\r\n";
    let (status, body) = ask(&world, "POST", "/v1/certs/revoke", kind, r#"{"service":"user"}"#).await;
    assert_eq!(status, 200, "{body}");
    let (bundle, _) = others.trust().await;
    assert_eq!(bundle.revoked[0].service, "default/user");
    let ended = timeout(DEADLINE, session.downs.message()).await.expect("in time");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    // It may hear of its own revocation before the end.
    while theirs.next().await.is_ok() {}
    eventually("its endpoint is gone", async || {
        get(&world, "/v1/endpoints").await == json!([])
    })
    .await;
    // The client hears of it with the first read.
    let refused = match user.channel().await {
        Ok(channel) => Session::over(channel, "user", "u1", 2).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "it stays out");

    let (status, body) = ask(&world, "POST", "/v1/certs/allow", kind, r#"{"service":"user"}"#).await;
    assert!((200..300).contains(&status), "{body}");
    let channel = async || user.channel().await.ok();
    eventually("it is let in again", async || {
        let Some(channel) = channel().await else { return false };
        Session::over(channel, "user", "u1", 3).await.is_ok()
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn one_revoked_certificate_is_cut_off_and_its_service_goes_on() {
    let world = World::start(Options::default()).await;
    let (one, two) = (
        Member::join(&world, "user", "u1").await,
        Member::join(&world, "user", "u2").await,
    );
    let mut sessions = Vec::new();
    for (member, instance) in [(&one, "u1"), (&two, "u2")] {
        let channel = member.client(&world).channel().await.expect("connects");
        let mut session = Session::over(channel, "user", instance, 1).await.expect("its own");
        session.register(3001).await;
        sessions.push(session);
    }
    let kind = "Content-Type: application/json\r\n";
    let target = json!({ "serial": one.serial }).to_string();
    let (status, body) = ask(&world, "POST", "/v1/certs/revoke", kind, &target).await;
    assert_eq!((status, &body["known"]), (200, &true.into()), "{body}");
    let ended = timeout(DEADLINE, sessions[0].downs.message()).await.expect("in time");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    eventually("its endpoint alone is gone", async || {
        let left = get(&world, "/v1/endpoints").await;
        let names: Vec<_> = left
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| e["name"].clone())
            .collect();
        names == ["default/user/u2"]
    })
    .await;
    let (status, body) = ask(&world, "POST", "/v1/certs/allow", kind, &target).await;
    assert!((200..300).contains(&status), "{body}");
    eventually("it serves again", async || {
        let Ok(channel) = one.client(&world).channel().await else {
            return false;
        };
        let Ok(mut session) = Session::over(channel, "user", "u1", 2).await else {
            return false;
        };
        session.register(3001).await;
        get(&world, "/v1/endpoints").await.as_array().map(Vec::len) == Some(2)
    })
    .await;
    sessions[1].register(3002).await;
    world.stop().await;
}

#[tokio::test]
async fn streams_end_with_the_certificate_they_were_opened_with() {
    let mut options = Options::default();
    options.identity.leaf_ttl = Duration::from_secs(2);
    let world = World::start(options).await;
    let user = Member::join(&world, "user", "u1").await.client(&world);
    let channel = user.channel().await.expect("connects");
    let mut session = Session::over(channel, "user", "u1", 1).await.expect("its own");
    let ended = timeout(DEADLINE, session.downs.message()).await.expect("in time");
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    world.stop().await;
}

/// A rotation goes on when everybody said that the new root was applied, and no sooner.
#[tokio::test]
async fn a_rotation_waits_for_who_does_not_know_the_new_root() {
    let world = World::start(Options::default()).await;
    let user = Member::join(&world, "user", "u1").await.client(&world);
    let channel = user.channel().await.expect("connects");
    let mut session = Session::over(channel, "user", "u1", 1).await.expect("its own");
    session.register(3001).await;
    let mut trust = Discovery::open(&user, "default/user/u1", ResourceType::TrustBundle, "trust")
        .await
        .expect("opens");
    trust.trust().await;
    let kind = "Content-Type: application/json\r\n";
    let (status, body) = ask(&world, "POST", "/v1/certs/rotate", kind, "{}").await;
    assert!((200..300).contains(&status), "{body}");
    let (bundle, version) = trust.trust().await;
    assert_eq!(bundle.roots.len(), 2);
    let waiting = get(&world, "/v1/certs/rotation").await;
    assert!(waiting.to_string().contains("default/user/u1"), "{waiting}");
    let phase = waiting["phase"].clone();
    session
        .send(Some(up::Body::Applied(agent::Applied {
            type_url: ResourceType::TrustBundle.url().into(),
            resource: "trust".into(),
            version,
            rejection: String::new(),
        })))
        .await;
    eventually("the next phase", async || {
        get(&world, "/v1/certs/rotation").await["phase"] != phase
    })
    .await;
    world.stop().await;
}
