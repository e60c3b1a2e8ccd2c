//! The protocol rules one by one, then convergence in any order of events.

mod converge;

use outrigger_proto::features;
use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrigger_proto::wire::google::rpc;
use outrigger_proto::wire::mesh;
use prost::Message as _;

use super::hub::Hub;
use super::stream::{Nack, Outcome, Stream};
use super::table::{Entry, Table};

const KIND: ResourceType = ResourceType::Endpoint;

fn entry(version: u32) -> Entry {
    Entry {
        version: version.to_string(),
        bytes: version.to_be_bytes().to_vec(),
        needs: vec![features::RESOURCES_V1],
    }
}

fn request(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().into(),
        ..Default::default()
    }
}

fn rejection(resource: &str) -> rpc::Status {
    let rejection = mesh::Rejection {
        resource: resource.into(),
        field: "ports".into(),
        reason: "odd".into(),
        ..Default::default()
    };
    rpc::Status {
        code: 3,
        message: "refused".into(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/outrigger.mesh.v1.Rejection".into(),
            value: rejection.encode_to_vec(),
        }],
    }
}

/// A stream and the table it looks at.
struct Server {
    table: Table,
    stream: Stream,
    last_nonce: String,
}

impl Server {
    fn new() -> Self {
        Self {
            table: Table::default(),
            stream: Stream::new(features::ALL.iter().map(ToString::to_string)),
            last_nonce: String::new(),
        }
    }

    fn put(&mut self, name: &str, version: u32) {
        self.table.put(KIND, name, entry(version));
        self.stream.changed(KIND, name);
    }

    fn remove(&mut self, name: &str) {
        self.table.remove(KIND, name);
        self.stream.changed(KIND, name);
    }

    fn subscribe(&mut self, names: &[&str]) -> Outcome {
        let resource_names_subscribe = names.iter().map(ToString::to_string).collect();
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe,
            ..request(KIND)
        };
        self.stream.request(request).expect("within bounds")
    }

    fn ack(&mut self) {
        let response_nonce = self.last_nonce.clone();
        let request = DeltaDiscoveryRequest {
            response_nonce,
            ..request(KIND)
        };
        self.stream.request(request).expect("within bounds");
    }

    fn nack(&mut self, error: rpc::Status) -> Vec<Nack> {
        let response_nonce = self.last_nonce.clone();
        let error_detail = Some(error);
        let request = DeltaDiscoveryRequest {
            response_nonce,
            error_detail,
            ..request(KIND)
        };
        self.stream.request(request).expect("within bounds").nacks
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        let response = self.stream.next(&self.table)?;
        self.last_nonce.clone_from(&response.nonce);
        Some(response)
    }

    /// The next response as `name@version` and `-name`; empty when there is none.
    fn says(&mut self) -> String {
        let Some(response) = self.next() else {
            return String::new();
        };
        let sent = response.resources.iter().map(|r| format!("{}@{}", r.name, r.version));
        let removed = response.removed_resources.iter().map(|r| format!("-{r}"));
        sent.chain(removed).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_collection_is_first_answered_whole_then_by_what_changes() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.put("d/u/2", 1);
    server.put("d/uu/1", 1);
    server.subscribe(&["d/u/*"]);
    assert_eq!(server.says(), "d/u/1@1 d/u/2@1");
    server.ack();
    server.put("d/u/2", 2);
    server.put("d/uu/1", 2);
    assert_eq!(server.says(), "d/u/2@2");
    server.ack();
    server.remove("d/u/1");
    assert_eq!(server.says(), "-d/u/1");
    server.ack();
    assert_eq!(server.says(), "");
}

#[test]
fn what_does_not_exist_is_said_at_once_and_sent_when_it_comes() {
    let mut server = Server::new();
    server.subscribe(&["d/u/*", "d/x/1"]);
    assert_eq!(server.says(), "-d/u/* -d/x/1");
    server.ack();
    server.put("d/x/1", 1);
    server.put("d/u/1", 1);
    assert_eq!(server.says(), "d/u/1@1 d/x/1@1");
}

#[test]
fn changes_under_an_unanswered_response_are_one_pending_state() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.subscribe(&["d/u/*"]);
    assert_eq!(server.says(), "d/u/1@1");
    for version in 2..50 {
        server.put("d/u/1", version);
        assert_eq!(server.says(), "", "one response at a time");
    }
    server.ack();
    assert_eq!(server.says(), "d/u/1@49");
    server.put("d/u/1", 50);
    server.put("d/u/1", 49);
    server.ack();
    assert_eq!(server.says(), "", "back to what the client has");
}

#[test]
fn a_refused_version_waits_for_a_new_one_and_blocks_no_other() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.put("d/u/2", 1);
    server.subscribe(&["d/u/*"]);
    server.says();
    let nacks = server.nack(rejection("d/u/1"));
    assert_eq!(nacks.len(), 1);
    assert_eq!(
        (
            nacks[0].name.as_str(),
            nacks[0].version.as_str(),
            nacks[0].reason.as_str()
        ),
        ("d/u/1", "1", "ports: odd")
    );
    assert_eq!(server.says(), "");
    server.stream.changed(KIND, "d/u/1");
    server.subscribe(&["d/u/*"]);
    assert_eq!(server.says(), "d/u/2@1", "asked again, but not for what was refused");
    server.ack();
    server.put("d/u/2", 2);
    assert_eq!(server.says(), "d/u/2@2");
    server.ack();
    server.put("d/u/1", 2);
    assert_eq!(server.says(), "d/u/1@2");
    server.ack();
    assert_eq!(server.stream.rejected().count(), 0);
}

#[test]
fn a_refusal_that_names_nothing_refuses_everything_sent() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.subscribe(&["d/u/*"]);
    server.says();
    let message = "no".to_owned();
    let nacks = server.nack(rpc::Status {
        code: 3,
        message,
        details: vec![],
    });
    assert_eq!(nacks.len(), 1);
    server.remove("d/u/1");
    assert_eq!(server.says(), "", "the client never had it");
}

#[test]
fn a_refused_update_leaves_the_predecessor_which_is_removed_later() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.subscribe(&["d/u/*"]);
    server.says();
    server.ack();
    server.put("d/u/1", 2);
    server.says();
    server.nack(rejection("d/u/1"));
    server.put("d/u/1", 1);
    assert_eq!(server.says(), "", "the predecessor is what it has");
    server.remove("d/u/1");
    assert_eq!(server.says(), "-d/u/1");
}

#[test]
fn a_stale_nonce_acknowledges_nothing_but_its_subscriptions_count() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.put("d/v/1", 1);
    server.subscribe(&["d/u/*"]);
    server.says();
    server.ack();
    server.put("d/u/1", 2);
    server.says();
    let stale = DeltaDiscoveryRequest {
        response_nonce: "0".into(),
        error_detail: Some(rejection("d/u/1")),
        resource_names_subscribe: vec!["d/v/*".into()],
        ..request(KIND)
    };
    let outcome = server.stream.request(stale).expect("within bounds");
    assert_eq!((outcome.nacks.len(), outcome.added.len()), (0, 1));
    assert_eq!(server.says(), "", "still waiting for the answer to the newest");
    server.ack();
    assert_eq!(server.says(), "d/v/1@1");
}

#[test]
fn a_name_subscribed_again_is_sent_again() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.subscribe(&["d/u/*"]);
    server.says();
    server.ack();
    server.subscribe(&["d/u/*"]);
    assert_eq!(server.says(), "d/u/1@1");
    server.ack();
    let resource_names_unsubscribe = vec!["d/u/*".into()];
    let request = DeltaDiscoveryRequest {
        resource_names_unsubscribe,
        ..request(KIND)
    };
    server.stream.request(request).expect("within bounds");
    server.put("d/u/1", 2);
    assert_eq!(server.says(), "", "not subscribed any more");
    server.subscribe(&["d/u/*"]);
    assert_eq!(server.says(), "d/u/1@2");
}

#[test]
fn what_was_on_its_way_at_a_goodbye_is_named_when_it_is_gone_at_the_return() {
    let mut server = Server::new();
    server.put("d/u/1", 1);
    server.put("d/u/2", 1);
    server.subscribe(&["d/u/*"]);
    assert_eq!(server.says(), "d/u/1@1 d/u/2@1");
    // Goodbye and return cross with that response: the client takes it after its return.
    let resource_names_unsubscribe = vec!["d/u/*".into()];
    let goodbye = DeltaDiscoveryRequest {
        resource_names_unsubscribe,
        ..request(KIND)
    };
    server.stream.request(goodbye).expect("within bounds");
    server.subscribe(&["d/u/*"]);
    server.remove("d/u/2");
    server.ack();
    assert_eq!(
        server.says(),
        "d/u/1@1 -d/u/2",
        "sent again, because it may also have been ignored"
    );
}

#[test]
fn a_resumed_stream_is_sent_what_differs_and_told_what_is_gone() {
    let mut server = Server::new();
    for name in ["d/u/1", "d/u/2", "d/v/1"] {
        server.put(name, 1);
    }
    let have = [
        ("d/u/1", "1"),
        ("d/u/2", "0"),
        ("d/u/3", "1"),
        ("d/v/1", "1"),
        ("d/w/1", "1"),
        ("d/x/1", "9"),
    ];
    let resume = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["d/u/*".into(), "d/v/*".into(), "d/w/*".into()],
        initial_resource_versions: have.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..request(KIND)
    };
    server.stream.request(resume).expect("within bounds");
    assert_eq!(server.says(), "d/u/2@1 -d/u/3 -d/w/* -d/w/1");
}

#[test]
fn while_held_only_stated_removals_are_passed_on() {
    let mut server = Server::new();
    server.table.hold(KIND);
    server.put("d/u/1", 1);
    let have = [("d/u/1", "1"), ("d/u/2", "1"), ("d/u/3", "1")];
    let resume = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["d/u/*".into(), "d/w/*".into()],
        initial_resource_versions: have.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..request(KIND)
    };
    server.stream.request(resume).expect("within bounds");
    assert_eq!(server.says(), "-d/w/*", "empty for one that has nothing of it");
    server.ack();
    server.remove("d/u/3");
    assert_eq!(
        server.says(),
        "-d/u/3",
        "it left, although this control plane had not heard of it again"
    );
    server.ack();
    assert!(server.table.release(KIND));
    server.stream.recheck(KIND);
    assert_eq!(server.says(), "-d/u/2");
}

#[test]
fn what_needs_a_missing_feature_is_withheld_and_shown() {
    let mut server = Server::new();
    server.stream = Stream::new([features::RESOURCES_V1.to_owned()]);
    let opaque = |version| Entry {
        needs: vec![features::RESOURCES_V1, features::OPAQUE],
        ..entry(version)
    };
    server.table.put(KIND, "d/u/1", opaque(1));
    server.put("d/v/1", 1);
    server.subscribe(&["d/u/1", "d/u/*", "d/v/1"]);
    assert_eq!(server.says(), "d/v/1@1 -d/u/* -d/u/1");
    server.ack();
    let withheld: Vec<_> = server.stream.withheld().collect();
    assert_eq!(withheld, [((KIND, "d/u/1".to_owned()), features::OPAQUE)]);
    // An update that it cannot read leaves what it has.
    server.table.put(KIND, "d/v/1", opaque(2));
    server.stream.changed(KIND, "d/v/1");
    assert_eq!(server.says(), "");
    assert_eq!(server.stream.withheld().count(), 2);
}

#[test]
fn an_unknown_type_is_answered_by_missing_names() {
    let mut server = Server::new();
    let asked = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/later.Type".into(),
        resource_names_subscribe: vec!["a".into()],
        ..Default::default()
    };
    server.stream.request(asked).expect("within bounds");
    let response = server.next().expect("an answer");
    assert_eq!(response.type_url, "type.googleapis.com/later.Type");
    assert_eq!(response.removed_resources, ["a"]);
}

#[test]
fn a_stream_that_asks_for_too_much_ends() {
    let mut stream = Stream::new([]);
    let long = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["a".repeat(500)],
        ..request(KIND)
    };
    stream.request(long).expect_err("too long");
    let many = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..30_000).map(|i| format!("d/u/{i}")).collect(),
        ..request(KIND)
    };
    stream.request(many).expect_err("too many");
}

#[test]
fn large_answers_are_divided_between_collections_not_inside_one() {
    let mut server = Server::new();
    for collection in ["a", "b"] {
        for i in 0..20 {
            let bytes = vec![0; 100_000];
            server
                .table
                .put(KIND, &format!("d/{collection}/{i}"), Entry { bytes, ..entry(1) });
        }
    }
    server.subscribe(&["d/a/*", "d/b/*"]);
    let first = server.next().expect("an answer");
    assert_eq!(first.resources.len(), 20);
    assert!(first.resources.iter().all(|r| r.name.starts_with("d/a/")));
    server.ack();
    assert_eq!(server.next().expect("an answer").resources.len(), 20);
}

#[test]
fn a_change_is_put_only_into_the_mailboxes_of_its_users() {
    let mut hub = Hub::default();
    let features = [features::RESOURCES_V1.to_owned()];
    let mut open = |names: &[&str]| {
        let (id, mailbox) = hub.join("d/x/1", &features);
        let mut stream = Stream::new(features.clone());
        let resource_names_subscribe = names.iter().map(ToString::to_string).collect();
        let outcome = stream.request(DeltaDiscoveryRequest {
            resource_names_subscribe,
            ..request(KIND)
        });
        hub.note(id, &outcome.expect("within bounds"));
        while let Some(response) = stream.next(hub.table()) {
            let ack = DeltaDiscoveryRequest {
                response_nonce: response.nonce,
                ..request(KIND)
            };
            stream.request(ack).expect("within bounds");
        }
        (id, mailbox, stream)
    };
    let mut user = open(&["d/u/*"]);
    let mut other = open(&["d/v/*"]);
    hub.put(KIND, "d/u/1", entry(1));
    for (_, mailbox, stream) in [&mut user, &mut other] {
        mailbox.empty_into(stream);
    }
    assert_eq!(user.2.next(hub.table()).map(|r| r.resources.len()), Some(1));
    assert_eq!(other.2.next(hub.table()), None);
    hub.leave(user.0, &user.2);
    hub.leave(other.0, &other.2);
    assert_eq!(hub.clients().count(), 0);
    hub.put(KIND, "d/u/1", entry(2));
}

/// A sidecar without an identity does not say that it can do mutual TLS, so it is not told to.
#[test]
fn modes_and_rules_need_a_sidecar_that_keeps_them() {
    for (mode, mutual) in [
        (mesh::Mode::Strict, true),
        (mesh::Mode::Permissive, true),
        (mesh::Mode::Disabled, false),
    ] {
        let service = Entry::service(&mesh::Service {
            mode: mode as i32,
            ..Default::default()
        });
        let access = Some(<mesh::Access as Default>::default());
        let proxy = Entry::proxy(&mesh::Proxy {
            mode: mode as i32,
            access,
            ..Default::default()
        });
        assert_eq!(service.needs.contains(&features::MTLS), mutual, "{mode:?}");
        assert_eq!(proxy.needs.contains(&features::MTLS), mutual, "{mode:?}");
        assert!(proxy.needs.contains(&features::ACCESS));
    }
    for shared in [true, false] {
        let limit = mesh::RateLimit {
            mesh: shared,
            ..Default::default()
        };
        let proxy = Entry::proxy(&mesh::Proxy {
            rate_limits: vec![mesh::RateLimit::default(), limit],
            ..Default::default()
        });
        assert_eq!(proxy.needs.contains(&features::QUOTA), shared);
    }
}
