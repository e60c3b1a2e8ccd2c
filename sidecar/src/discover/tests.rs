//! The stream against a real server: subscribe, apply, refuse, resume, and start without anyone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::model::{ResourceType, ServiceName};
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use outrigger_proto::wire::mesh as wire;
use prost::Message as _;

use super::peer::{self, Discovery};
use crate::config::Bootstrap;
use crate::directory::{Known, View};
use crate::observe::Gauge;
use crate::shared::Shared;

const SOON: Duration = Duration::from_secs(20);

fn start(control_plane: Option<&str>, state_dir: Option<&Path>, outbound: &[&str]) -> Arc<Shared> {
    let outbound: Vec<_> = outbound
        .iter()
        .map(|s| serde_json::json!({"service": s, "listen": "127.0.0.1:1"}))
        .collect();
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": "gateway", "instance": "g1", "control_plane": control_plane, "state_dir": state_dir,
        "outbound": outbound,
    }))
    .expect("a bootstrap");
    let shared = Arc::new(Shared::new(bootstrap).expect("valid"));
    tokio::spawn(super::run(shared.clone()));
    shared
}

fn name(text: &str) -> ServiceName {
    text.parse().expect("a name")
}

fn answer(kind: ResourceType, nonce: &str, resources: &[(&str, Vec<u8>)], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.url().into(),
        nonce: nonce.into(),
        resources: resources
            .iter()
            .map(|(name, value)| Resource {
                name: (*name).into(),
                version: nonce.into(),
                resource: Some(prost_types::Any {
                    type_url: kind.url().into(),
                    value: value.clone(),
                }),
                aliases: Vec::new(),
            })
            .collect(),
        removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
        ..Default::default()
    }
}

fn service(name: &str) -> Vec<u8> {
    let port = wire::Port {
        name: "http".into(),
        protocol: wire::Protocol::Http as i32,
    };
    wire::Service {
        name: name.into(),
        ports: vec![port],
        ..Default::default()
    }
    .encode_to_vec()
}

fn endpoint(name: &str, port: u32) -> Vec<u8> {
    wire::Endpoint {
        name: name.into(),
        address: "127.0.0.1".into(),
        ports: vec![wire::EndpointPort {
            name: "http".into(),
            port,
            mesh_port: 0,
        }],
        ..Default::default()
    }
    .encode_to_vec()
}

/// The requests that begin a stream, one a type.
async fn beginning(stream: &mut Discovery) -> [DeltaDiscoveryRequest; 4] {
    let next = [
        stream.next().await,
        stream.next().await,
        stream.next().await,
        stream.next().await,
    ];
    assert_eq!(next[0].resource_names_subscribe, ["trust"]);
    next
}

/// Waits until the view of `service` has the instances `expected`.
async fn view(shared: &Shared, service: &str, expected: &[&str]) -> Arc<View> {
    let destination = shared.directory.destination(&name(service));
    let end = tokio::time::Instant::now() + SOON;
    loop {
        if let Some(view) = destination.view() {
            let found: Vec<&str> = view.endpoints.iter().map(|e| &*e.name.instance).collect();
            if found == expected {
                return view;
            }
        }
        assert!(
            tokio::time::Instant::now() < end,
            "{service} is {:?}",
            destination.known()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn teach(stream: &mut Discovery) {
    stream
        .send(answer(
            ResourceType::Service,
            "s1",
            &[("default/post", service("default/post"))],
            &["default/gateway"],
        ))
        .await;
    stream
        .send(answer(
            ResourceType::Endpoint,
            "e1",
            &[("default/post/a", endpoint("default/post/a", 1))],
            &[],
        ))
        .await;
    assert_eq!(stream.next().await.response_nonce, "s1");
    assert_eq!(stream.next().await.response_nonce, "e1");
}

#[tokio::test]
async fn what_is_declared_is_asked_for_and_more_on_demand() {
    let mut peer = peer::start().await;
    let shared = start(Some(&peer.url), None, &["post"]);
    let mut stream = peer.discovery().await;
    let first = beginning(&mut stream).await;
    let node = first[0].node.as_ref().expect("a node");
    assert_eq!(
        (node.id.as_str(), node.cluster.as_str()),
        ("default/gateway/g1", "default/gateway")
    );
    assert_eq!(node.client_features, outrigger_proto::features::ALL);
    assert_eq!(first[3].resource_names_subscribe, ["default/post/*"]);
    teach(&mut stream).await;
    view(&shared, "default/post", &["a"]).await;
    assert_eq!(shared.stats.get(Gauge::ControlPlaneConnected), 1);

    let late = shared.directory.destination(&name("default/late"));
    assert_eq!(stream.next().await.resource_names_subscribe, ["default/late"]);
    assert_eq!(stream.next().await.resource_names_subscribe, ["default/late/*"]);
    stream
        .send(answer(ResourceType::Service, "s2", &[], &["default/late"]))
        .await;
    assert!(matches!(&*late.wait(SOON).await, Known::Absent));
}

#[tokio::test]
async fn calls_of_the_own_settings_are_asked_for() {
    let mut peer = peer::start().await;
    let shared = start(Some(&peer.url), None, &[]);
    let mut stream = peer.discovery().await;
    assert_eq!(stream.next().await.type_url, ResourceType::TrustBundle.url());
    assert_eq!(stream.next().await.type_url, ResourceType::Proxy.url());
    stream.next().await;
    let proxy = wire::Proxy {
        name: "default/gateway".into(),
        calls: vec!["default/post".into()],
        ..Default::default()
    };
    stream
        .send(answer(
            ResourceType::Proxy,
            "p1",
            &[("default/gateway", proxy.encode_to_vec())],
            &[],
        ))
        .await;
    assert_eq!(stream.next().await.response_nonce, "p1");
    assert_eq!(stream.next().await.resource_names_subscribe, ["default/post"]);
    assert_eq!(shared.directory.proxy().calls, [name("default/post")]);
}

#[tokio::test]
async fn a_truncated_resource_is_refused_and_the_rest_applied() {
    let mut peer = peer::start().await;
    let shared = start(Some(&peer.url), None, &["post"]);
    let mut stream = peer.discovery().await;
    beginning(&mut stream).await;
    teach(&mut stream).await;
    let mut cut = endpoint("default/post/a", 2);
    cut.truncate(cut.len() - 1);
    let both = [
        ("default/post/a", cut),
        ("default/post/b", endpoint("default/post/b", 3)),
    ];
    stream.send(answer(ResourceType::Endpoint, "e2", &both, &[])).await;
    let nack = stream.next().await;
    assert_eq!(nack.response_nonce, "e2");
    let error = nack.error_detail.expect("an error");
    let rejection = wire::Rejection::decode(&*error.details[0].value).expect("a rejection");
    assert_eq!(
        (rejection.resource.as_str(), rejection.version.as_str()),
        ("default/post/a", "e2")
    );
    assert!(rejection.reason.contains("malformed"), "{}", rejection.reason);
    let view = view(&shared, "default/post", &["a", "b"]).await;
    assert_eq!(view.endpoints[0].ports[0].port, 1, "the predecessor is in force");
    assert_eq!(shared.stats.get(Gauge::ResourcesRejected), 1);
}

#[tokio::test]
async fn a_lost_stream_takes_nothing_away_and_the_next_one_resumes() {
    let mut peer = peer::start().await;
    let shared = start(Some(&peer.url), None, &["post"]);
    let mut stream = peer.discovery().await;
    beginning(&mut stream).await;
    teach(&mut stream).await;
    view(&shared, "default/post", &["a"]).await;
    drop(stream);
    let mut stream = peer.discovery().await;
    let [_, _, services, endpoints] = beginning(&mut stream).await;
    assert_eq!(services.initial_resource_versions["default/post"], "s1");
    assert_eq!(endpoints.initial_resource_versions["default/post/a"], "e1");
    view(&shared, "default/post", &["a"]).await;
    let news = [("default/post/b", endpoint("default/post/b", 3))];
    stream
        .send(answer(ResourceType::Endpoint, "e2", &news, &["default/post/a"]))
        .await;
    view(&shared, "default/post", &["b"]).await;
}

#[tokio::test]
async fn a_sidecar_starts_from_its_last_snapshot_while_nobody_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut peer = peer::start().await;
    start(Some(&peer.url), Some(dir.path()), &["post"]);
    let mut stream = peer.discovery().await;
    beginning(&mut stream).await;
    teach(&mut stream).await;
    let file = dir.path().join("default.gateway.snapshot");
    let end = tokio::time::Instant::now() + SOON;
    while !file.exists() {
        assert!(tokio::time::Instant::now() < end, "no snapshot is written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A port that was free a moment ago: nobody listens.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("an address");
    let shared = start(Some(&format!("http://{nobody}")), Some(dir.path()), &["post"]);
    view(&shared, "default/post", &["a"]).await;
    let end = tokio::time::Instant::now() + SOON;
    while shared.discovery.connection().2.is_empty() {
        assert!(tokio::time::Instant::now() < end, "the failure is not noted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        shared.discovery.connection().2.contains("refused"),
        "{}",
        shared.discovery.connection().2
    );
}

#[tokio::test]
async fn without_a_control_plane_what_the_file_does_not_name_is_absent() {
    let shared = start(None, None, &["post"]);
    for wanted in ["default/post", "default/other"] {
        let destination = shared.directory.destination(&name(wanted));
        assert!(matches!(&*destination.wait(SOON).await, Known::Absent), "{wanted}");
    }
}
