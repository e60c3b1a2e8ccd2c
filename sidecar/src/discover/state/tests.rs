//! Tables and properties of the protocol: what is asked, what is refused, what stays.

use std::collections::{BTreeMap, HashSet};

use outrigger_proto::model::{Endpoint, ResourceType, ServiceName};
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use outrigger_proto::wire::mesh as wire;
use proptest::prelude::*;
use prost::Message as _;

use super::{Change, Output, State};
use crate::config::Resources;

fn name(text: &str) -> ServiceName {
    text.parse().expect("a name")
}

fn wanted(names: &[&str]) -> HashSet<ServiceName> {
    names.iter().map(|n| name(n)).collect()
}

fn service(name: &str) -> wire::Service {
    let port = wire::Port {
        name: "http".into(),
        protocol: wire::Protocol::Http as i32,
    };
    wire::Service {
        name: name.into(),
        ports: vec![port],
        ..Default::default()
    }
}

fn endpoint(name: &str, epoch: u64) -> wire::Endpoint {
    wire::Endpoint {
        name: name.into(),
        address: "127.0.0.1".into(),
        ports: vec![wire::EndpointPort {
            name: "http".into(),
            port: 8000,
            mesh_port: 0,
        }],
        epoch,
        ..Default::default()
    }
}

fn resource(kind: ResourceType, name: &str, version: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(prost_types::Any {
            type_url: kind.url().into(),
            value,
        }),
        aliases: Vec::new(),
    }
}

fn services(version: &str, all: &[wire::Service]) -> DeltaDiscoveryResponse {
    let kind = ResourceType::Service;
    answer(
        kind,
        all.iter()
            .map(|s| resource(kind, &s.name, version, s.encode_to_vec()))
            .collect(),
        &[],
    )
}

fn endpoints(version: &str, all: &[wire::Endpoint], removed: &[&str]) -> DeltaDiscoveryResponse {
    let kind = ResourceType::Endpoint;
    answer(
        kind,
        all.iter()
            .map(|e| resource(kind, &e.name, version, e.encode_to_vec()))
            .collect(),
        removed,
    )
}

fn answer(kind: ResourceType, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.url().into(),
        nonce: "n1".into(),
        resources,
        removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
        ..Default::default()
    }
}

/// A connected state that wants `default/post` and belongs to `default/gateway`.
fn connected() -> State {
    let mut state = State::new(name("default/gateway"));
    state.want(&wanted(&["default/post"]));
    state.connect();
    state
}

/// A connected state that knows `default/post` with instance `a`, epoch 5.
fn settled() -> State {
    let mut state = connected();
    state.answer(services("1", &[service("default/post")]));
    state.answer(endpoints("1", &[endpoint("default/post/a", 5)], &[]));
    state
}

/// What was published, as `service: instance@epoch ...`.
fn published(output: &Output) -> Vec<String> {
    output
        .changes
        .iter()
        .map(|change| match change {
            Change::Proxy(proxy) => format!("proxy {}", proxy.name),
            Change::Trust(bundle) => format!("trust {}", bundle.generation),
            Change::Absent(name) => format!("{name} absent"),
            Change::Publish(service, endpoints) => {
                let all: Vec<_> = endpoints
                    .iter()
                    .map(|e| format!("{}@{}", e.name.instance, e.epoch))
                    .collect();
                format!("{}: {}", service.name, all.join(" "))
            }
        })
        .collect()
}

#[track_caller]
fn acked(output: &Output) {
    let first = output.requests.first().expect("an ACK");
    assert_eq!(first.response_nonce, "n1");
    assert_eq!(first.error_detail, None);
}

#[track_caller]
fn refused(output: &Output) -> Vec<wire::Rejection> {
    let first = output.requests.first().expect("a NACK");
    assert_eq!(first.response_nonce, "n1");
    let status = first.error_detail.as_ref().expect("an error");
    assert_eq!(status.code, 3);
    status
        .details
        .iter()
        .map(|d| wire::Rejection::decode(&*d.value).expect("a rejection"))
        .collect()
}

fn names(request: &DeltaDiscoveryRequest) -> Vec<&str> {
    request.resource_names_subscribe.iter().map(String::as_str).collect()
}

#[test]
fn a_stream_begins_with_own_settings_own_service_and_what_is_wanted() {
    let mut state = State::new(name("default/gateway"));
    state.want(&wanted(&["default/post"]));
    let requests = state.connect();
    assert_eq!(requests.len(), 4);
    assert_eq!(names(&requests[0]), ["trust"]);
    assert_eq!(names(&requests[1]), ["default/gateway"]);
    assert_eq!(names(&requests[2]), ["default/gateway", "default/post"]);
    assert_eq!(names(&requests[3]), ["default/post/*"]);
    assert!(requests.iter().all(|r| r.initial_resource_versions.is_empty()));
}

#[test]
fn a_type_without_names_is_not_asked_for() {
    let mut state = State::new(name("default/gateway"));
    let kinds: Vec<_> = state.connect().into_iter().map(|r| r.type_url).collect();
    let always = [ResourceType::TrustBundle, ResourceType::Proxy, ResourceType::Service];
    assert_eq!(kinds, always.map(ResourceType::url));
}

#[test]
fn a_service_is_published_when_both_it_and_its_whole_collection_are_there() {
    let mut state = connected();
    let output = state.answer(services("1", &[service("default/post")]));
    acked(&output);
    assert!(published(&output).is_empty());
    let both = [endpoint("default/post/a", 1), endpoint("default/post/b", 1)];
    let output = state.answer(endpoints("1", &both, &[]));
    acked(&output);
    assert_eq!(published(&output), ["default/post: a@1 b@1"]);
}

#[test]
fn an_empty_collection_is_complete() {
    let mut state = connected();
    state.answer(services("1", &[service("default/post")]));
    let output = state.answer(endpoints("1", &[], &["default/post/*"]));
    assert_eq!(published(&output), ["default/post: "]);
}

#[test]
fn a_service_that_does_not_exist_is_absent_and_may_appear_later() {
    let mut state = connected();
    let output = state.answer(answer(ResourceType::Service, vec![], &["default/post"]));
    assert_eq!(published(&output), ["default/post absent"]);
    state.answer(endpoints("1", &[], &["default/post/*"]));
    let output = state.answer(services("1", &[service("default/post")]));
    assert_eq!(published(&output), ["default/post: "]);
}

#[test]
fn an_older_epoch_changes_nothing() {
    let mut state = settled();
    let output = state.answer(endpoints("2", &[endpoint("default/post/a", 4)], &[]));
    acked(&output);
    assert!(published(&output).is_empty() && output.applied.is_empty());
    let output = state.answer(endpoints("3", &[endpoint("default/post/a", 6)], &[]));
    assert_eq!(published(&output), ["default/post: a@6"]);
}

#[test]
fn an_older_epoch_does_not_bring_an_instance_back_and_the_same_epoch_does() {
    let mut state = settled();
    assert_eq!(
        published(&state.answer(endpoints("2", &[], &["default/post/a"]))),
        ["default/post: "]
    );
    assert!(published(&state.answer(endpoints("3", &[endpoint("default/post/a", 4)], &[]))).is_empty());
    let output = state.answer(endpoints("4", &[endpoint("default/post/a", 5)], &[]));
    assert_eq!(published(&output), ["default/post: a@5"]);
}

#[test]
fn a_bad_resource_is_refused_by_name_and_path_keeps_its_predecessor_and_blocks_no_other() {
    let mut state = settled();
    let mut bad = endpoint("default/post/a", 6);
    bad.ports[0].port = 70_000;
    let output = state.answer(endpoints("2", &[bad, endpoint("default/post/b", 1)], &[]));
    let rejections = refused(&output);
    assert_eq!(rejections.len(), 1);
    assert_eq!(rejections[0].resource, "default/post/a");
    assert_eq!(rejections[0].version, "2");
    assert_eq!(rejections[0].field, "ports[0].port");
    assert_eq!(published(&output), ["default/post: a@5 b@1"]);
    // What is in force is what a new stream resumes from.
    state.disconnect();
    let versions = &state.connect()[3].initial_resource_versions;
    assert_eq!(
        versions.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>(),
        ["default/post/a=1", "default/post/b=2"]
    );
}

#[test]
fn an_unknown_must_understand_field_is_refused_by_number_and_others_are_counted() {
    let mut state = settled();
    for (field, is_refused) in [(1003, true), (40, false)] {
        let mut bytes = service("default/post").encode_to_vec();
        prost::encoding::uint32::encode(field, &1, &mut bytes);
        let kind = ResourceType::Service;
        let output = state.answer(answer(kind, vec![resource(kind, "default/post", "2", bytes)], &[]));
        if is_refused {
            assert_eq!(refused(&output)[0].field, "1003");
            assert!(refused(&output)[0].reason.contains("1003"));
        } else {
            acked(&output);
            assert_eq!(output.ignored, 1);
        }
    }
}

#[test]
fn resources_under_another_name_or_type_or_without_body_are_refused() {
    let mut state = connected();
    let kind = ResourceType::Service;
    let bytes = service("default/user").encode_to_vec();
    let mut foreign = resource(kind, "default/post", "1", bytes.clone());
    foreign.resource.as_mut().expect("a body").type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    let mut empty = resource(kind, "default/post", "1", bytes.clone());
    empty.resource = None;
    for (bad, field) in [
        (resource(kind, "default/post", "1", bytes), "name"),
        (foreign, "resource.type_url"),
        (empty, "resource"),
    ] {
        assert_eq!(refused(&state.answer(answer(kind, vec![bad], &[])))[0].field, field);
    }
    let mut other = services("1", &[]);
    other.type_url = "type.googleapis.com/x.Y".into();
    let output = state.answer(other);
    assert!(
        output.requests[0]
            .error_detail
            .as_ref()
            .is_some_and(|e| e.message.contains("x.Y"))
    );
}

#[test]
fn what_is_known_survives_a_new_stream_until_it_is_removed() {
    let mut state = settled();
    state.disconnect();
    let requests = state.connect();
    assert_eq!(requests[2].initial_resource_versions["default/post"], "1");
    assert_eq!(requests[3].initial_resource_versions["default/post/a"], "1");
    // The answer to a resumption names only differences.
    let output = state.answer(endpoints("2", &[endpoint("default/post/b", 1)], &[]));
    assert_eq!(published(&output), ["default/post: a@5 b@1"]);
    let output = state.answer(endpoints("3", &[], &["default/post/a"]));
    assert_eq!(published(&output), ["default/post: b@1"]);
}

#[test]
fn wishes_become_subscriptions_and_late_answers_to_dropped_ones_are_ignored() {
    let mut state = settled();
    let output = state.want(&wanted(&["default/post", "default/user"]));
    assert_eq!(output.requests.len(), 2);
    assert_eq!(names(&output.requests[0]), ["default/user"]);
    assert_eq!(names(&output.requests[1]), ["default/user/*"]);
    let output = state.want(&wanted(&["default/user"]));
    assert_eq!(output.requests[0].resource_names_unsubscribe, ["default/post"]);
    assert_eq!(output.requests[1].resource_names_unsubscribe, ["default/post/*"]);
    assert!(output.applied.iter().all(|a| a.removed));
    let output = state.answer(endpoints("9", &[endpoint("default/post/z", 1)], &[]));
    acked(&output);
    assert!(output.changes.is_empty() && output.applied.is_empty());
    state.disconnect();
    assert!(state.connect()[3].initial_resource_versions.is_empty());
}

#[test]
fn own_settings_are_applied_and_others_refused() {
    let mut state = connected();
    let kind = ResourceType::Proxy;
    let proxy = |name: &str| wire::Proxy {
        name: name.into(),
        ..Default::default()
    };
    let own = proxy("default/gateway").encode_to_vec();
    let output = state.answer(answer(kind, vec![resource(kind, "default/gateway", "1", own)], &[]));
    assert_eq!(published(&output), ["proxy default/gateway"]);
    let other = proxy("default/post").encode_to_vec();
    let output = state.answer(answer(kind, vec![resource(kind, "default/post", "1", other)], &[]));
    assert_eq!(refused(&output)[0].field, "name");
    let output = state.answer(answer(kind, vec![], &["default/gateway"]));
    assert!(output.changes.is_empty(), "an app that runs keeps its settings");
}

#[test]
fn a_file_of_resources_is_complete_and_gives_way_to_the_control_plane() {
    let mut state = State::new(name("default/gateway"));
    let resources = Resources {
        proxy: None,
        services: vec![service("default/post"), service("default/user")],
        endpoints: vec![endpoint("default/post/a", 1)],
    };
    state.seed(&resources);
    let output = state.want(&wanted(&["default/post", "default/user", "default/none"]));
    assert_eq!(published(&output), ["default/post: a@1", "default/user: "]);
    assert_eq!(state.unknown(), [name("default/none")]);
    assert!(state.connect().iter().all(|r| r.initial_resource_versions.is_empty()));
    let output = state.answer(endpoints("1", &[endpoint("default/post/b", 1)], &[]));
    assert_eq!(published(&output), ["default/post: b@1"]);
    assert!(
        state.snapshot()[1].resources.is_empty(),
        "what is in the file is not saved"
    );
}

#[test]
fn a_snapshot_restores_what_was_known() {
    let mut state = settled();
    state.want(&wanted(&["default/post", "default/user"]));
    state.answer(services("1", &[service("default/user")]));
    state.answer(endpoints("1", &[], &["default/user/*"]));
    let mut restored = State::new(name("default/gateway"));
    for part in state.snapshot() {
        assert!(restored.restore(part).requests.is_empty());
    }
    let output = restored.want(&wanted(&["default/post", "default/user"]));
    assert_eq!(published(&output), ["default/post: a@5", "default/user: "]);
    assert_eq!(restored.connect()[3].initial_resource_versions["default/post/a"], "1");
}

#[test]
fn removals_of_what_nobody_wants_are_ignored() {
    let mut state = settled();
    let before = state.snapshot();
    let output = state.answer(endpoints("2", &[], &["default/other/*", "default/other/a", "*"]));
    acked(&output);
    assert!(output.changes.is_empty() && output.applied.is_empty());
    assert_eq!(state.snapshot(), before);
}

#[test]
fn what_nobody_wants_of_a_snapshot_is_forgotten_once_there_is_somebody_to_ask() {
    let mut restored = State::new(name("default/gateway"));
    settled()
        .snapshot()
        .into_iter()
        .for_each(|part| drop(restored.restore(part)));
    restored.connect();
    assert!(restored.snapshot().iter().all(|part| part.resources.is_empty()));
}

#[derive(Debug, Clone)]
enum Op {
    Start(u8),
    Stop(u8),
    Deliver,
    Reconnect,
    /// A valid resource, cut.
    Cut(u8, usize),
    Late(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0u8..6).prop_map(Op::Start),
        2 => (0u8..6).prop_map(Op::Stop),
        4 => Just(Op::Deliver),
        1 => Just(Op::Reconnect),
        1 => (0u8..6, 1usize..20).prop_map(|(i, n)| Op::Cut(i, n)),
        1 => (0u8..6).prop_map(Op::Late),
    ];
    proptest::collection::vec(op, 0..60)
}

proptest! {
    /// Whatever happens on the way, the last published set is the registry's.
    #[test]
    fn it_converges(ops in ops()) {
        let mut state = connected();
        let mut shown: Option<Vec<String>> = None;
        let mut note = |output: &Output| {
            for change in &output.changes {
                if let Change::Publish(_, all) = change {
                    shown = Some(all.iter().map(|e: &std::sync::Arc<Endpoint>| format!("{}@{}", e.name.instance, e.epoch)).collect());
                }
            }
        };
        state.answer(services("1", &[service("default/post")]));
        let mut clock = 10u64;
        let mut truth: BTreeMap<String, u64> = BTreeMap::new();
        let mut sent: BTreeMap<String, String> = BTreeMap::new();
        let mut first = true;
        for op in ops.into_iter().chain([Op::Reconnect, Op::Deliver]) {
            let full = |i: u8| format!("default/post/i{i}");
            match op {
                Op::Start(i) => {
                    clock += 1;
                    truth.insert(full(i), clock);
                }
                Op::Stop(i) => drop(truth.remove(&full(i))),
                Op::Deliver => {
                    let kind = ResourceType::Endpoint;
                    let news: Vec<_> = truth.iter().filter(|(n, e)| sent.get(*n) != Some(&e.to_string()))
                        .map(|(n, e)| resource(kind, n, &e.to_string(), endpoint(n, *e).encode_to_vec())).collect();
                    let mut gone: Vec<&str> = sent.keys().filter(|n| !truth.contains_key(*n)).map(String::as_str).collect();
                    if first && truth.is_empty() {
                        gone = vec!["default/post/*"];
                    }
                    let output = state.answer(answer(kind, news, &gone));
                    acked(&output);
                    note(&output);
                    first = false;
                    sent = truth.iter().map(|(n, e)| (n.clone(), e.to_string())).collect();
                }
                Op::Reconnect => {
                    state.disconnect();
                    let requests = state.connect();
                    sent = requests[3].initial_resource_versions.clone();
                }
                Op::Cut(i, n) if !first => {
                    let mut bytes = endpoint(&full(i), clock + 1000).encode_to_vec();
                    bytes.truncate(bytes.len().saturating_sub(n));
                    let kind = ResourceType::Endpoint;
                    let output = state.answer(answer(kind, vec![resource(kind, &full(i), "cut", bytes)], &[]));
                    // A cut between two fields is a valid message without the last ones.
                    if output.requests[0].error_detail.is_none() {
                        return Ok(());
                    }
                    note(&output);
                }
                Op::Late(i) if truth.contains_key(&full(i)) && sent.get(&full(i)) == Some(&truth[&full(i)].to_string()) => {
                    let output = state.answer(endpoints("late", &[endpoint(&full(i), 1)], &[]));
                    acked(&output);
                    note(&output);
                }
                Op::Cut(..) | Op::Late(_) => {}
            }
        }
        let expected: Vec<String> = truth.iter().map(|(n, e)| format!("{}@{e}", n.rsplit('/').next().unwrap_or_default())).collect();
        prop_assert_eq!(shown.unwrap_or_default(), expected);
    }

    /// Any bytes under any name are answered, never a panic; a refusal names the resource.
    #[test]
    fn garbage_is_refused(
        kind in 0usize..4,
        name in "(default/(post|gateway)(/[a-z*]{1,3})?|.{0,20})",
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        removed in proptest::collection::vec(".{0,20}", 0..3),
    ) {
        let mut state = settled();
        let before = state.snapshot();
        let kind = ResourceType::ALL.get(kind).copied();
        let body = resource(kind.unwrap_or(ResourceType::Proxy), &name, "7", bytes);
        let mut garbage = answer(kind.unwrap_or(ResourceType::Proxy), vec![body], &[]);
        if kind.is_none() {
            garbage.type_url = "?".into();
        }
        garbage.removed_resources = removed;
        let output = state.answer(garbage);
        prop_assert_eq!(&output.requests[0].response_nonce, "n1");
        if let Some(error) = &output.requests[0].error_detail {
            prop_assert!(!error.message.is_empty());
        }
        prop_assert_eq!(state.snapshot(), before);
    }

    /// Every prefix of a valid answer's resource is applied or refused.
    #[test]
    fn truncation_never_panics(cut in 0usize..64) {
        let mut state = connected();
        let mut bytes = service("default/post").encode_to_vec();
        bytes.truncate(cut);
        let kind = ResourceType::Service;
        let output = state.answer(answer(kind, vec![resource(kind, "default/post", "1", bytes)], &[]));
        prop_assert_eq!(output.requests.len(), 1);
    }
}
