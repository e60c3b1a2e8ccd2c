//! Good files give what they say; each class of bad file gives the report that a person reads.

use std::time::Duration;

use outrigger_proto::model::{External, Mode, Principal, Probe, Protocol, ServiceName};
use proptest::prelude::*;

use super::{EnvValue, explain, fields, parse, schema};

mod traffic;

fn name(service: &str) -> ServiceName {
    ServiceName::new("default", service).unwrap()
}

#[test]
fn a_whole_mesh_is_read() {
    let mesh = parse(
        "mesh.yaml",
        r#"
mesh: blog
defaults: { timeout: 5s, health: { every: 500ms } }
try: "curl localhost"
---
service: user
run: ./user
protocol: grpc
env: { LEVEL: 1.10, KEY: { from_env: KEY }, CERT: { from_file: cert.pem } }
labels: { version: 1.0 }
---
service: post
namespace: other
run: ./post
replicas: 2
ports:
- { name: http, protocol: http, port: }
- { name: metrics, protocol: http }
- { name: smtp, protocol: tcp, server_first: true }
mode: permissive
allow:
- default/user
- { from: [unauthenticated, spiffe://b.example/*], ports: [metrics], methods: [GET], paths: ["/metrics/*"] }
- { from: "*", grpc: [a.B/C] }
- { paths: [/open] }
audit: true
exposed_app: true
health: { http: /health, port: metrics, timeout: 3s, unhealthy: 4 }
depends: [{ file: post.db }, { tcp: "db:5432", name: database }]
calls: [default/user]
timeout: none
external: ["*.example.com"]
limits: { max_headers: 20 }
"#,
    )
    .unwrap();
    assert_eq!(
        (mesh.name.as_str(), mesh.hint.as_deref()),
        ("blog", Some("curl localhost"))
    );
    let user = mesh.service(&name("user")).unwrap();
    assert_eq!(user.traffic.policy.timeout, Some(Duration::from_secs(5)));
    assert_eq!(user.health.interval, Duration::from_millis(500));
    assert_eq!(user.ports.len(), 1);
    assert_eq!(
        (user.ports[0].name.as_str(), user.ports[0].protocol),
        ("grpc", Protocol::Grpc)
    );
    assert_eq!(
        user.env["LEVEL"],
        EnvValue::Plain("1.10".into()),
        "text stays as it was written"
    );
    assert_eq!(user.env["KEY"], EnvValue::FromEnv("KEY".into()));
    assert_eq!(user.env["CERT"], EnvValue::FromFile("cert.pem".into()));
    assert_eq!(user.labels["version"], "1.0");
    assert_eq!((user.location.line, user.location.column), (6, 1));

    let post = mesh.service(&ServiceName::new("other", "post").unwrap()).unwrap();
    assert_eq!((post.traffic.policy.timeout, post.replicas), (None, 2));
    assert_eq!(post.external, External::List(vec!["*.example.com".into()]));
    assert_eq!(
        post.health.probe,
        Probe::Http {
            path: "/health".into(),
            port: Some("metrics".into())
        }
    );
    assert_eq!(
        (post.health.interval, post.health.timeout),
        (Duration::from_millis(500), Duration::from_secs(3))
    );
    assert_eq!(post.health.unhealthy_threshold, 4);
    assert_eq!(post.depends[1].name, "database");
    assert_eq!(post.calls, [name("user")]);
    assert_eq!(post.limits.max_headers, 20);
    assert_eq!(
        (post.mode, post.exposed_app, post.access.audit),
        (Mode::Permissive, true, true)
    );
    assert_eq!(
        post.ports.iter().map(|p| p.server_first).collect::<Vec<_>>(),
        [false, false, true]
    );
    assert!(!post.access.default_allow);
    let [one, two, three, four] = post.access.rules.as_slice() else {
        panic!("{:?}", post.access.rules)
    };
    assert_eq!(
        (one.name.as_str(), &one.from[..]),
        ("allow[0]", &[Principal::Service(name("user"))][..])
    );
    assert_eq!(
        two.from,
        [Principal::Unauthenticated, Principal::TrustDomain("b.example".into())]
    );
    assert_eq!(
        (&two.ports[..], &two.methods[..]),
        (&["metrics".to_owned()][..], &["GET".to_owned()][..])
    );
    assert_eq!(
        (&three.from[..], &three.grpc[..]),
        (&[Principal::Authenticated][..], &["a.B/C".to_owned()][..])
    );
    assert_eq!(
        four.from,
        [Principal::Authenticated],
        "no `from` is anybody with an identity, not anybody"
    );
}

/// Who decides about a service: its own `allow`, its namespace, the mesh.
#[test]
fn access_is_inherited() {
    let mesh = parse(
        "m",
        "
defaults: { mode: strict }
access: { default: deny, audit: true }
namespaces: { open: { access: { default: allow } }, loud: { access: { audit: false } } }
---
service: a
---
service: b
namespace: open
---
service: c
namespace: loud
---
service: d
allow: []
audit: false
---
service: e
namespace: open
allow: [default/a, open/*, '*', unauthenticated, spiffe://x/ns/n/svc/s, elsewhere/z, outrigger/operator]
",
    )
    .unwrap();
    let said: Vec<_> = mesh
        .services
        .iter()
        .map(|s| (s.access.default_allow, s.access.audit, s.access.default_source.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            (false, true, "default: deny of the mesh"),
            (true, true, "default: allow of the namespace open"),
            (false, false, "default: deny of the mesh"),
            (false, false, "no entry of `allow` matches"),
            (false, true, "no entry of `allow` matches"),
        ]
    );
    assert_eq!(mesh.services[4].access.rules.len(), 7);
}

#[test]
fn a_cycle_in_calls_is_allowed() {
    let mesh = parse("m", "service: a\ncalls: [b]\n---\nservice: b\ncalls: [a, b]\n").unwrap();
    assert_eq!(mesh.services.len(), 2);
}

#[test]
fn paths_are_counted_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = "service: a\ndir: sub/..\nenv: { K: { from_file: k } }\ndepends: [{ file: x.db }]\n---\nservice: b\n";
    std::fs::write(folder.path().join("mesh.yaml"), text).unwrap();
    let mesh = super::load(folder.path()).unwrap();
    assert_eq!(mesh.services[0].dir.as_deref(), Some(folder.path()));
    assert_eq!(mesh.services[1].dir.as_deref(), Some(folder.path()));
    assert_eq!(mesh.services[0].env["K"], EnvValue::FromFile(folder.path().join("k")));
    assert_eq!(
        mesh.services[0].depends[0].check,
        outrigger_proto::model::DependencyCheck::File("x.db".into())
    );
    assert_eq!(
        Some(mesh.name.as_str()),
        folder.path().file_name().and_then(|n| n.to_str())
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = super::load(std::path::Path::new("nowhere/mesh.yaml")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("nowhere/mesh.yaml: cannot read nowhere/mesh.yaml: "),
        "{error}"
    );
    assert!(error.render(false).contains("nowhere/mesh.yaml"));
}

/// One report a class of mistake; read the snapshots, they are what the user sees.
#[test]
fn reports() {
    let cases = [
        (
            "unknown_key",
            "service: a\nrunn: ./a\nhealth: { htp: / }\ncolour: red\n",
        ),
        (
            "wrong_types",
            "service: a\nport: abc\ncalls: user\nhealth: [http]\nenv: { A: [1], B: }\nreplicas: -1\nweight: 1.5\n",
        ),
        (
            "duplicate_service",
            "service: a\n---\nservice: b\n---\nservice: a\nrun: x\n",
        ),
        (
            "missing_dependency",
            "service: user\n---\nservice: post\ncalls: [usr, nothing-alike, user]\n",
        ),
        (
            "durations",
            "service: a\ntimeout: 5x\nconnect_timeout: 5\nhealth: { every: 0s }\ndrain: { delay: 30h }\n",
        ),
        (
            "ports",
            "service: a\nport: 70000\n---\nservice: b\nport: 8080\n---\nservice: c\nport: 8080\n---\nservice: d\nport: 9000\nreplicas: 2\n",
        ),
        (
            "named_ports",
            "service: a\nport: 1\nports:\n- { name: http, protocol: htp }\n- { name: http }\n- { name: Bad_ }\nhealth: { http: x, tcp: true, port: htt }\n",
        ),
        ("missing_name", "service: a\nports:\n- { protocol: tcp }\n"),
        ("duplicate_key", "service: a\nrun: x\nrun: y\n"),
        ("not_yaml", "service: a\n---\nservice: b\nrun: [x\nport: 1\n"),
        ("no_name", "servise: a\nrun: x\n---\nservice: My_App\n---\n- 1\n"),
        (
            "mesh_document",
            "mesh: x\ndefaults: { timeot: 1s }\nnamespace: A\n---\nservice: a\n---\nmesh: y\n",
        ),
        ("nothing", "# only a comment\n"),
        ("tags_and_aliases", "service: !!str a\n"),
        (
            "references",
            "service: a\nenv: { A: { from_env: X, from_file: y }, 1B: x }\ndepends: [{}, { tcp: nowhere }, { http: 'https://x' }]\nrun: ''\n",
        ),
        (
            "same_variable",
            "service: a\ncalls: [b, x/b, b, b-http]\n---\nservice: b\nprotocol: http\n---\nservice: b\nnamespace: x\n---\nservice: b-http\n",
        ),
        (
            "access",
            "access: { default: maybe, audt: true }
namespaces: { defualt: { access: { default: deny } }, outrigger: {}, default: { access: } }
---
service: user
mode: strict
allow:
- usr
- { from: [], methods: [get, 'G T', POST], ports: [htp], paths: [] }
- { form: a }
- { paths: [users, '/a/*/b', '/a/../b', '/users/{id}', '/a?b'], grpc: [a.B] }
- { paths: [/a], grpc: [a.B/C] }
- { methods: [GET], grpc: [a.B/C] }
- spiffe://x
- { from: [defualt/*, a b] }
---
service: gap
mode: strickt
allow:
- [x]
-
- usr
---
service: post
allow:
audit: perhaps
exposed_app:
ports: [{ name: db, protocol: http, server_first: true }]
---
service: blog
namespace: outrigger
---
service: old
mode: off
allow: [post, unauthenticated]
",
        ),
        ("access_without_value", "access:\n---\nservice: a\nallow: [*]\n"),
    ];
    for (title, text) in cases {
        let errors = parse("blog/mesh.yaml", text).expect_err(title);
        assert!(
            errors
                .errors
                .iter()
                .all(|e| e.line > 0 && e.column > 0 && e.file == "blog/mesh.yaml")
        );
        insta::with_settings!({ description => text, omit_expression => true }, {
            insta::assert_snapshot!(title, errors.render(false));
        });
    }
}

#[test]
fn errors_are_data_too() {
    let errors = parse("mesh.yaml", "service: a\nrunn: x\n").unwrap_err();
    let json = serde_json::to_value(&errors).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "errors": [{
            "file": "mesh.yaml", "line": 2, "column": 1,
            "message": "unknown key `runn`", "help": "did you mean `run`?",
        }] })
    );
}

#[test]
fn aliases_cannot_blow_up_memory() {
    let mut text = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let before = format!("*a{}, ", i - 1).repeat(10);
        text.push_str(&format!("k{i}: &a{i} [{before}]\n"));
    }
    let errors = parse("m", &text).unwrap_err();
    assert!(errors.to_string().contains("too large"), "{errors}");
}

#[test]
fn every_field_is_explained() {
    for field in fields() {
        assert!(!field.meaning.trim().is_empty(), "{} has no meaning", field.field);
        assert!(!field.kind.is_empty(), "{} has no kind", field.field);
        assert_eq!(explain(&field.field).unwrap().field, field.field);
    }
    insta::assert_yaml_snapshot!("reference", fields());
}

#[test]
fn explain_guides_to_the_field() {
    assert_eq!(explain("health.every").unwrap().default.as_deref(), Some("2s"));
    assert_eq!(explain("ports.name").unwrap().field, "ports[].name");
    assert_eq!(
        explain("timeot").unwrap_err(),
        "no field `timeot`; did you mean `timeout`?"
    );
    assert_eq!(
        explain("every").unwrap_err(),
        "no field `every`; did you mean `health.every`?"
    );
}

/// The documented defaults are the real ones.
#[test]
fn documented_defaults_hold() {
    let plain = parse("m", "service: a\n").unwrap();
    let mut written = parse(
        "m",
        "service: a
namespace: default
replicas: 1
protocol: auto
health: { tcp: true, every: 2s, timeout: 1s, healthy: 1, unhealthy: 2 }
timeout: none
connect_timeout: 1s
balance: p2c_peak_ewma
idle_timeout: none
queue_timeout: 1s
idempotent: false
retry: { attempts: 1, per_try: none, on: [502, 503, 504, UNAVAILABLE, timeout, reset], backoff: 25ms, max_backoff: 250ms, budget: { percent: 20%, min_per_second: 3 } }
hedge: off
failures: [500, 502, 503, 504, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS, timeout, reset, connect]
priority: normal
breaker: off
outlier: { failures: 5, rate: 0%, slow: none, slow_rate: 0%, min_requests: 20, window: 10s, ejection: 30s, max_ejection: 5m, max_ejected: 50%, panic: 50% }
concurrency: { requests: none, endpoint_requests: none, pending: 1024, connections: none }
slow_start: none
zone: off
admission: off
external: allow
limits: { max_connections: 20000, max_header_bytes: 61440, max_headers: 100, header_timeout: 10s, idle_timeout: 1h, max_connection_age: 1h }
drain: { delay: 500ms, deadline: 10s }
access_log: off
weight: 1
mode: strict
exposed_app: false
audit: false
",
    )
    .unwrap();
    written.services[0].location = plain.services[0].location.clone();
    // Equal values, said by another.
    let values = |settings: &[super::Setting]| {
        settings
            .iter()
            .map(|s| (s.key.clone(), s.value.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        values(&plain.services[0].settings),
        values(&written.services[0].settings)
    );
    written.services[0].settings.clone_from(&plain.services[0].settings);
    assert_eq!(plain, written);
    let said: Vec<_> = fields()
        .into_iter()
        .filter_map(|f| Some((f.field, f.default?)))
        .collect();
    for (field, default) in [
        ("limits.max_header_bytes", "61440"),
        ("drain.delay", "500ms"),
        ("limits.idle_timeout", "1h"),
    ] {
        assert!(said.contains(&(field.to_owned(), default.to_owned())), "{field}");
    }
}

#[test]
fn the_schema_names_every_definition_it_refers_to() {
    let schema = schema();
    let text = schema.to_string();
    for part in text.split("#/$defs/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schema["$defs"].get(name).is_some(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        let _unused = parse("m", &text).map_err(|errors| errors.render(false));
    }

    /// Text made of the pieces of real files reaches deeper than noise.
    #[test]
    fn any_mixture_is_answered(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        let _unused = parse("m", &pieces.concat()).map_err(|errors| errors.render(false));
    }
}

const PIECES: &[&str] = &[
    "service",
    "mesh",
    "defaults",
    ": ",
    ":",
    "\n",
    "\n  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "---\n",
    "port",
    "ports",
    "calls",
    "health",
    "timeout",
    "5s",
    "5x",
    "8080",
    "-1",
    "1e9",
    "&a ",
    "*a",
    "!!str ",
    "'",
    "\"",
    "|\n",
    "\u{feff}",
    "ü",
    "\u{1F980}",
    "env",
    "from_env",
    "null",
    "~",
    "true",
    "\t",
    "\r\n",
    "#",
    "%YAML 1.2\n",
    "name",
    "external",
    "<<",
];
