//! The model refuses what is wrong, by path, and never panics.

use proptest::prelude::*;
use prost::Message as _;

use std::time::Duration;

use super::*;
use crate::wire::mesh as wire;

fn service() -> wire::Service {
    wire::Service {
        name: "default/post".into(),
        ports: vec![wire::Port {
            name: "grpc".into(),
            protocol: wire::Protocol::Grpc as i32,
        }],
        ..Default::default()
    }
}

#[track_caller]
fn refused(service: wire::Service, path: &str) {
    let error = Service::try_from(service).expect_err("must be refused");
    assert_eq!(error.path, path, "{error}");
}

#[test]
fn a_service_is_refused_by_field_path() {
    refused(
        wire::Service {
            name: "post".into(),
            ..service()
        },
        "name",
    );
    refused(
        wire::Service {
            name: "default/Post".into(),
            ..service()
        },
        "service",
    );
    refused(
        wire::Service {
            ports: vec![],
            ..service()
        },
        "ports",
    );
    refused(
        wire::Service {
            balance: 77,
            ..service()
        },
        "balance",
    );
    let mut twice = service();
    twice.ports.push(twice.ports[0].clone());
    refused(twice, "ports[1].name");
    let mut odd = service();
    odd.ports[0].protocol = 99;
    refused(odd, "ports[0].protocol");
    refused(
        wire::Service {
            timeout_ms: u32::MAX,
            ..service()
        },
        "timeout_ms",
    );
}

#[test]
fn a_file_of_resources_spells_enums_by_name() {
    let json = r#"{"name":"default/post","ports":[{"name":"grpc","protocol":"grpc"}]}"#;
    let read: wire::Service = serde_json::from_str(json).expect("valid");
    assert_eq!(read, service());
    let wrong = json.replace("\"grpc\"}", "\"grcp\"}");
    let error = serde_json::from_str::<wire::Service>(&wrong).expect_err("unknown protocol");
    assert!(error.to_string().contains("grcp"), "{error}");
}

/// A later version's field `number` with the varint 1, inside the first port.
fn with_unknown_port_field(number: u32) -> Vec<u8> {
    let mut port = service().ports[0].encode_to_vec();
    prost::encoding::uint32::encode(number, &1, &mut port);
    let mut bytes = wire::Service {
        ports: vec![],
        ..service()
    }
    .encode_to_vec();
    prost::encoding::bytes::encode(2, &port, &mut bytes);
    bytes
}

#[test]
fn an_unknown_must_understand_field_is_refused_by_number_and_path() {
    let error = Resource::decode(ResourceType::Service, &with_unknown_port_field(1003)).expect_err("refused");
    assert_eq!(error.path, "ports[0].1003");
    assert!(error.reason.contains("1003"), "{error}");
}

#[test]
fn any_other_unknown_field_is_ignored_and_counted() {
    let (resource, ignored) = Resource::decode(ResourceType::Service, &with_unknown_port_field(40)).expect("accepted");
    assert_eq!(ignored, 1);
    assert_eq!(resource.name(), "default/post");
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        for kind in ResourceType::ALL {
            let _unused = Resource::decode(kind, &bytes);
        }
    }

    #[test]
    fn truncated_messages_never_panic(cut in 0usize..64) {
        let bytes = service().encode_to_vec();
        let _unused = Resource::decode(ResourceType::Service, &bytes[..cut.min(bytes.len())]);
    }

    #[test]
    fn names_round_trip(ns in "[a-z]([a-z0-9-]{0,10}[a-z0-9])?", name in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?") {
        let parsed = ServiceName::new(&ns, &name).expect("valid");
        prop_assert_eq!(parsed.namespace(), ns.as_str());
        prop_assert_eq!(parsed.service(), name.as_str());
        prop_assert_eq!(parsed.to_string().parse::<ServiceName>().expect("valid"), parsed);
    }

    #[test]
    fn any_text_parses_or_is_refused(text in ".{0,80}") {
        let _unused = text.parse::<ServiceName>();
        let _unused = text.parse::<EndpointName>();
    }
}

#[test]
fn a_service_with_everything_survives_the_wire() {
    let m = Match {
        hosts: vec!["*.example.com".into()],
        path: Some(PathMatch::Prefix("/users".into())),
        methods: vec!["GET".into()],
        headers: vec![FieldMatch {
            name: "x-canary".into(),
            value: ValueMatch::Absent,
        }],
        query: vec![FieldMatch {
            name: "Page".into(),
            value: ValueMatch::Regex("[0-9]+".into()),
        }],
        grpc: Vec::new(),
    };
    let grpc = Match {
        grpc: vec!["a.B/*".into()],
        ..Match::default()
    };
    let to = |subset: &str| Destination {
        service: Some("default/other".parse().expect("a name")),
        subset: Some(subset.into()),
    };
    let seconds = |n| Duration::from_secs(n);
    let port = Port {
        name: "http".into(),
        protocol: Protocol::Http,
    };
    let policy = Policy {
        timeout: Some(seconds(5)),
        per_try: Some(seconds(1)),
        idle: Some(seconds(60)),
        queue: seconds(2),
        idempotent: true,
        retry: Retry {
            attempts: 4,
            on: Outcomes::of(&[409, 599], &[1, 16]),
            backoff: seconds(1),
            max_backoff: seconds(3),
        },
        hedge: Some(Hedge { after: None }),
        failures: Outcomes::of(&[500], &[13]),
        priority: Priority::High,
    };
    let trip = Trip {
        consecutive: 7,
        rate_percent: 50,
        slow: Some(seconds(1)),
        slow_percent: 80,
        min_requests: 9,
        window: seconds(20),
    };
    let service = Service {
        connect_timeout: seconds(3),
        balance: Balance::Maglev(Hash {
            on: HashOn::Cookie("sid".into()),
            bound_percent: 150,
        }),
        slow_start: Some(seconds(30)),
        zone: Some(ZonePreference { healthy_percent: 60 }),
        failover: vec![to("v1")],
        policy: policy.clone(),
        retry_budget: RetryBudget {
            percent: 10,
            min_per_second: 5,
        },
        breaker: Some(Breaker {
            trip,
            cooldown: seconds(5),
            max_cooldown: seconds(50),
            probes: 2,
        }),
        outlier: Outlier {
            trip: Some(trip),
            ejection: seconds(7),
            max_ejection: seconds(70),
            max_ejected_percent: 30,
            panic_percent: 40,
        },
        concurrency: Concurrency {
            requests: Some(100),
            endpoint_requests: Some(10),
            pending: 5,
            connections: Some(3),
        },
        routes: vec![
            Route {
                name: "split".into(),
                matches: vec![m.clone()],
                action: Action::Forward(Forward {
                    to: vec![(to("v1"), 95), (Destination::default(), 5)],
                    sticky: Some(HashOn::Header("x-user".into())),
                    mirror: Some(Mirror {
                        to: to("v2"),
                        per_million: 10_000,
                    }),
                    authority: Some("other".into()),
                    path: Some(NewPath::Prefix("/v2".into())),
                }),
                policy,
                request_headers: HeaderEdits {
                    set: vec![("a".into(), "b".into())],
                    add: vec![("c".into(), "d".into())],
                    remove: vec!["e".into()],
                },
                response_headers: HeaderEdits::default(),
            },
            Route {
                name: "moved".into(),
                matches: vec![grpc],
                action: Action::Redirect(Redirect {
                    status: 308,
                    scheme: None,
                    authority: None,
                    path: Some(NewPath::Full("/new".into())),
                }),
                policy: Policy::default(),
                request_headers: HeaderEdits::default(),
                response_headers: HeaderEdits::default(),
            },
        ],
        subsets: vec![Subset {
            name: "v1".into(),
            labels: vec![("version".into(), "1".into())],
        }],
        faults: vec![Fault {
            name: "slow".into(),
            matches: vec![m],
            callers: vec!["default/gateway".parse().expect("a name")],
            per_million: 500_000,
            harm: Harm::Abort { status: 503, grpc: 14 },
            until: std::time::SystemTime::UNIX_EPOCH + seconds(1_000_000),
        }],
        ..Service::new("default/post".parse().expect("a name"), vec![port], Mode::Strict)
    };
    let wire = crate::wire::mesh::Service::from(&service);
    assert_eq!(Service::try_from(wire), Ok(service));
}
