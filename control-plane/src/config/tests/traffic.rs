//! Policies and routes: what is written is what sidecars are told; what is impossible has a number.

use std::time::Duration;

use outrigger_proto::model::{
    Action, Balance, Destination, Harm, HashOn, Hedge, Limit, NewPath, PathMatch, Policy, Priority, RateLimitBy,
    Service, ValueMatch,
};

use super::super::{ConfigErrors, Mesh, parse, whole};
use super::name;

/// A day on which the faults of the tests are alive.
fn read(text: &str) -> Result<Mesh, ConfigErrors> {
    let now = humantime::parse_rfc3339("2026-11-24T09:00:00Z").unwrap();
    whole::read("blog/mesh.yaml", text, None, now)
}

/// Every key once.
const WHOLE: &str = r#"
defaults:
  timeout: 3s
  retry: { backoff: 10ms, budget: { percent: 30%, min_per_second: 5 } }
  outlier: { failures: 7, ejection: 10s }
  priority: high
---
service: user
labels: { version: "1", zone: a }
timeout: 2s
connect_timeout: 300ms
idle_timeout: 1m
queue_timeout: 200ms
retry: { attempts: 3, per_try: 500ms, on: [502, 503, UNAVAILABLE, timeout, reset, 5xx] }
failures: [5xx, INTERNAL, timeout, reset, connect]
breaker: { failures: 5, rate: 50%, slow: 2s, slow_rate: 80%, min_requests: 10, window: 20s, cooldown: 5s, max_cooldown: 1m, probes: 2 }
outlier: { rate: 40%, max_ejected: 30%, panic: 10% }
concurrency: { requests: 100, endpoint_requests: 10, pending: 50, connections: 20 }
balance: { ring: { header: X-User }, bound: 150% }
slow_start: 30s
zone: { healthy: 60% }
failover: [{ subset: v2 }, { service: spare }]
subsets: { v1: { version: "1" }, v2: { version: "2", zone: a } }
routes:
- name: canary
  match: { prefix: /api/, headers: { x-canary: "1", x-a: { prefix: a }, x-b: { present: false } } }
  to: [{ subset: v1, weight: 95% }, { subset: v2, weight: 5 }]
  sticky: { cookie: session }
  mirror: { to: { service: spare }, percent: 0.5% }
  rewrite: { prefix: /, host: user.internal }
  request_headers: { set: { X-Env: prod }, add: { x-more: a }, remove: [x-secret] }
  response_headers: { remove: [server] }
  timeout: 900ms
  retry: { attempts: 2 }
- name: reads
  match:
  - { path: "/users/{id}", methods: [GET] }
  - { path: "/static/*", methods: [GET, HEAD], query: { v: { regex: "[0-9]+" } }, host: ["*.example.com", shop] }
  hedge: { after: 50ms }
  idempotent: true
  priority: low
- { name: old, match: { path: /old }, redirect: { status: 308, path: /new } }
- { name: closed, match: { regex: "/internal/.*" }, respond: { status: 403, body: no } }
- { name: rpc, match: { grpc: [a.B/C, d.E/*] }, to: { service: spare }, timeout: none, retry: { attempts: 1, per_try: none } }
faults:
- { name: slow, match: { prefix: /api }, from: [spare], percent: 10%, delay: 200ms, until: "2026-11-24T10:00:00Z" }
- { name: broken, abort: 503, until: "2026-11-24T10:00:00Z" }
- { name: cut, reset_after: 1kb, until: "2026-11-24T10:00:00Z" }
- { name: shut, refuse: true, until: "2026-11-24T10:00:00Z" }
admission: { limit: aimd, min: 2, max: 50, initial: 10, queue: 50ms, queue_length: 20 }
rate_limits:
- { name: all, rate: 1000/s, burst: 100 }
- { name: each, match: { methods: [POST] }, rate: 10/m, by: caller }
- { name: key, rate: 5/10s, by: "header:X-Key", mesh: true }
priorities: [{ match: { path: /health }, priority: high }, { priority: low }]
---
service: spare
retry: { attempts: 2 }
hedge: off
outlier: off
"#;

#[test]
fn every_key_is_read_and_merged() {
    let mesh = read(WHOLE)
        .map_err(|errors| errors.render(false))
        .unwrap_or_else(|e| panic!("{e}"));
    let user = &mesh.service(&name("user")).unwrap().traffic;
    let policy = &user.policy;
    let ms = Duration::from_millis;
    assert_eq!((policy.timeout, policy.per_try), (Some(ms(2000)), Some(ms(500))));
    assert_eq!((policy.retry.attempts, policy.retry.backoff), (3, ms(10)));
    assert_eq!(policy.retry.max_backoff, ms(100), "ten times what the mesh says");
    assert_eq!(policy.priority, Priority::High);
    assert!(policy.retry.on.has_status(599) && policy.retry.on.has_grpc(14) && !policy.retry.on.has_grpc(2));
    assert!(policy.failures.connect && policy.failures.has_grpc(13) && !policy.failures.has_grpc(14));
    assert_eq!((user.retry_budget.percent, user.retry_budget.min_per_second), (30, 5));
    let breaker = user.breaker.unwrap();
    assert_eq!(
        (breaker.trip.consecutive, breaker.trip.rate_percent, breaker.probes),
        (5, 50, 2)
    );
    let outlier = user.outlier;
    let trip = outlier.trip.unwrap();
    assert_eq!(
        (trip.consecutive, trip.rate_percent, outlier.ejection),
        (7, 40, ms(10_000)),
        "merged key by key"
    );
    assert_eq!((outlier.max_ejected_percent, outlier.panic_percent), (30, 10));
    assert_eq!((user.concurrency.requests, user.concurrency.pending), (Some(100), 50));
    assert_eq!(user.concurrency.connections, Some(20));
    let Balance::Ring(hash) = &user.balance else {
        panic!("{:?}", user.balance)
    };
    assert_eq!((&hash.on, hash.bound_percent), (&HashOn::Header("x-user".into()), 150));
    assert_eq!(
        user.failover[0],
        Destination {
            service: None,
            subset: Some("v2".into())
        }
    );
    assert_eq!(user.failover[1].service, Some(name("spare")));

    let [canary, reads, old, closed, rpc] = user.routes.as_slice() else {
        panic!("{:?}", user.routes)
    };
    assert_eq!(canary.policy.timeout, Some(ms(900)));
    assert_eq!(
        (canary.policy.per_try, canary.policy.retry.attempts),
        (Some(ms(500)), 2),
        "the service's, then the route's"
    );
    assert_eq!(canary.matches[0].path, Some(PathMatch::Prefix("/api/".into())));
    assert_eq!(canary.matches[0].headers[2].value, ValueMatch::Exact("1".into()));
    let Action::Forward(forward) = &canary.action else {
        panic!("{canary:?}")
    };
    assert_eq!(
        forward.to.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(),
        [95, 5]
    );
    assert_eq!(forward.mirror.as_ref().unwrap().per_million, 5_000);
    assert_eq!(forward.path, Some(NewPath::Prefix("/".into())));
    assert_eq!(canary.request_headers.set, [("x-env".to_owned(), "prod".to_owned())]);
    assert_eq!(reads.policy.hedge, Some(Hedge { after: Some(ms(50)) }));
    assert_eq!(reads.matches.len(), 2);
    assert!(matches!(&old.action, Action::Redirect(to) if to.status == 308));
    assert!(matches!(&closed.action, Action::Respond(answer) if answer.status == 403 && answer.body == "no"));
    assert_eq!((rpc.policy.timeout, rpc.policy.per_try), (None, None));

    assert_eq!(
        user.faults.iter().map(|f| f.per_million).collect::<Vec<_>>(),
        [100_000, 1_000_000, 1_000_000, 1_000_000]
    );
    assert_eq!(user.faults[1].harm, Harm::Abort { status: 503, grpc: 14 });
    assert_eq!(user.faults[2].harm, Harm::ResetAfter(1000));
    assert_eq!(user.admission.unwrap().limit, Limit::Aimd);
    assert_eq!(user.rate_limits[1].by, RateLimitBy::Caller);
    assert_eq!(user.rate_limits[2].by, RateLimitBy::Header("x-key".into()));
    assert!(user.rate_limits[2].mesh && !user.rate_limits[1].mesh);
    assert_eq!(user.priorities[1].priority, Priority::Low);

    let spare = &mesh.service(&name("spare")).unwrap().traffic;
    assert_eq!((spare.policy.timeout, spare.policy.retry.attempts), (Some(ms(3000)), 2));
    assert_eq!(spare.outlier.trip, None);
}

/// What is read survives the way to the sidecars.
#[test]
fn every_key_survives_the_wire() {
    let mesh = read(WHOLE).unwrap();
    let catalog = crate::catalog::Catalog::new(&mesh);
    for document in &mesh.services {
        let entry = catalog.get(&document.name).unwrap();
        let service = Service::try_from(entry.service.resource.clone()).unwrap();
        let traffic = &document.traffic;
        assert_eq!(service.policy, traffic.policy);
        assert_eq!(service.routes, traffic.routes);
        assert_eq!(service.faults, traffic.faults);
        assert_eq!(service.subsets, traffic.subsets);
        assert_eq!((service.breaker, service.outlier), (traffic.breaker, traffic.outlier));
        assert_eq!((&service.balance, service.zone), (&traffic.balance, traffic.zone));
        assert_eq!(
            (service.slow_start, &service.failover),
            (traffic.slow_start, &traffic.failover)
        );
        assert_eq!(
            (service.concurrency, service.retry_budget),
            (traffic.concurrency, traffic.retry_budget)
        );
        let proxy = outrigger_proto::model::Proxy::try_from(entry.proxy.resource.clone()).unwrap();
        assert_eq!(proxy.admission, traffic.admission);
        assert_eq!(proxy.rate_limits, traffic.rate_limits);
        // After the service's own list its routes, and the rest.
        let (first, rest) = proxy.priorities.split_at(traffic.priorities.len());
        assert_eq!(first, traffic.priorities);
        let said = |p: Priority| p != Priority::Normal;
        let routes = traffic.routes.iter().map(|r| r.policy.priority);
        let wanted: Vec<_> = routes.chain([traffic.policy.priority]).collect();
        let sent: Vec<_> = rest.iter().map(|r| r.priority).collect();
        assert_eq!(
            sent,
            if wanted.iter().any(|p| said(*p)) {
                wanted
            } else {
                vec![]
            }
        );
    }
}

/// A mesh that says nothing has the defaults that are documented.
#[test]
fn without_a_word_the_defaults_hold() {
    let mesh = parse("m", "service: a\n").unwrap();
    assert_eq!(mesh.services[0].traffic.policy, Policy::default());
    assert_eq!(mesh.services[0].traffic, super::super::Traffic::default());
    assert!(mesh.warnings.is_empty());
}

/// One report a number; read the snapshots, they are what the user sees.
#[test]
fn impossible_policies_have_numbers() {
    let fault = "until: \"2026-11-24T10:00:00Z\"";
    let cases: Vec<(&str, String)> = vec![
        ("OR1001", "service: a\nrate_limits: [{ name: x, rate: many }]\nretry: { on: [unavailable, 200] }\nfaults: [{ name: x, reset_after: 1gb, until: later }]\n".into()),
        ("OR1002", "service: a\noutlier: { max_ejected: 101% }\nroutes: [{ name: x, mirror: { to: { subset: x }, percent: 200% } }]\n".into()),
        ("OR1003", "service: a\nrate_limits: [{ name: x, rate: 0/s }]\n".into()),
        ("OR1004", "service: a\nfailures: [5xx, 429]\n".into()),
        ("OR1005", "service: a\nbalance: {}\nroutes: [{ name: x, match: { path: /a, prefix: /b, headers: { y: {} } }, rewrite: {} }]\n".into()),
        ("OR1006", "service: a\nretry: { attempts: 0 }\nconcurrency: { requests: 0 }\n".into()),
        ("OR1101", "defaults: { retry: { attempts: 3 } }\n---\nservice: a\n---\nservice: b\n---\nservice: c\ntimeout: 1s\nroutes: [{ name: x, timeout: none }]\n".into()),
        ("OR1102", "defaults: { timeout: 1s }\n---\nservice: a\nretry: { per_try: 2s }\n---\nservice: b\ntimeout: 5s\nretry: { per_try: 2s }\nroutes: [{ name: x, timeout: 1s }]\n".into()),
        ("OR1103", "service: a\nretry: { backoff: 1s, max_backoff: 10ms }\n".into()),
        ("OR1104", "service: a\nhedge: {}\nroutes: [{ name: r, match: { methods: [GET] }, hedge: { after: p95 } }]\n".into()),
        ("OR1105", "service: a\nroutes: [{ name: r, retry: { budget: { percent: 50% } } }]\n".into()),
        ("OR1106", "service: a\nidempotent: true\ntimeout: 1s\nhedge: { after: 2s }\n".into()),
        ("OR1201", "service: a\nbreaker: { cooldown: 5s }\noutlier: { failures: 0 }\n".into()),
        ("OR1202", "service: a\nbreaker: { slow: 1s }\noutlier: { slow_rate: 5% }\n".into()),
        ("OR1203", "service: a\nbreaker: { failures: 5, cooldown: 10m, max_cooldown: 1m }\nadmission: { min: 10, max: 5 }\n".into()),
        ("OR1204", "service: a\nadmission: { limit: vegas }\n---\nservice: b\nadmission: { limit: 5, min: 2 }\n".into()),
        ("OR1301", "service: a\nroutes: [{ name: r, match: { path: /a } }, { name: r, match: { path: /b } }]\n".into()),
        ("OR1302", "service: a\nroutes:\n- { name: api, match: { prefix: /api } }\n- { name: post, match: { path: /api/x, methods: [POST] } }\n- { name: rest }\n- { name: late, match: { path: /b } }\n".into()),
        ("OR1303", "service: a\nsubsets: { v: { version: v } }\nroutes: [{ name: r, to: [{ subset: v, weight: 0 }, { service: a, weight: 0% }] }]\n".into()),
        ("OR1304", "service: a\nsubsets: { v2: { version: v } }\nfailover: [{ service: b, subset: v2 }]\nroutes: [{ name: r, to: { subset: v3 } }]\n---\nservice: b\n".into()),
        ("OR1305", format!("service: user\nfailover: [{{ service: usr }}]\nroutes: [{{ name: r, mirror: {{ to: {{ service: other/x }} }} }}]\nfaults: [{{ name: f, from: [nobody], refuse: true, {fault} }}]\n")),
        ("OR1306", "service: a\nfailover: [{ service: a }]\nroutes: [{ name: r, to: {} }]\n".into()),
        ("OR1307", "service: a\nroutes:\n- { name: r, match: { regex: '/a(' } }\n- { name: s, match: { headers: { X-A: { regex: '((a{100}){100}){100}' } } } }\n- { name: t, match: { regex: '(?=a)' } }\n".into()),
        ("OR1308", "service: a\nroutes:\n- { name: r, match: { methods: [get], path: /a/../b, host: 'a b', grpc: [x] } }\n- { name: s, match: [] }\n- { name: t, match: { headers: { 'x y': z } } }\n- { name: u, match: { grpc: [a.B/C], path: /x } }\n".into()),
        ("OR1309", "service: a\nsubsets: { v: { version: v } }\nroutes: [{ name: r, to: { subset: v }, respond: { status: 200 } }]\n".into()),
        ("OR1310", "service: a\nroutes: [{ name: r, match: [{ prefix: /a }, { path: /b }], rewrite: { prefix: /c } }]\n".into()),
        ("OR1311", "service: a\nroutes: [{ name: r, request_headers: { set: { Host: x, outrigger-caller: y, 'a b': z, ok: 'fine' }, remove: [Connection] } }]\n".into()),
        ("OR1312", "service: a\nroutes:\n- { name: r, match: { path: /a }, redirect: { status: 304, path: /b } }\n- { name: s, match: { path: /c }, redirect: {} }\n- { name: t, match: { path: /d }, rewrite: { path: x } }\n- { name: u, respond: { status: 204, body: x } }\n".into()),
        ("OR1313", "service: a\nsubsets: { v: {} }\n".into()),
        ("OR1314", "service: a\nbalance: ring\n---\nservice: b\nbalance: { ring: {} }\n---\nservice: c\nbalance: { maglev: { caller: true }, bound: 100% }\n".into()),
        ("OR1315", "service: a\nroutes: [{ name: r, sticky: { caller: true } }]\n".into()),
        ("OR1401", "service: a\nfaults: [{ name: f, abort: 503 }]\n".into()),
        ("OR1402", "service: a\nfaults: [{ name: f, abort: 503, until: \"2026-11-26T10:00:00Z\" }]\n".into()),
        ("OR1403", format!("service: a\nfaults: [{{ name: f, {fault} }}, {{ name: g, delay: 1s, abort: 503, {fault} }}]\n")),
        ("OR1501", "service: a\nrun: x\nreplicas: 2\nversions: { v1: {}, v2: { labels: { version: v1 } } }\n---\nservice: b\nversions: { v1: {}, v2: { run: x } }\n".into()),
    ];
    for (code, text) in &cases {
        let errors = read(text).expect_err(code);
        assert!(
            errors.errors.iter().any(|error| error.code == Some(code)),
            "{code}: {errors}"
        );
        assert!(
            errors.errors.iter().all(|error| error.line > 0 && error.help.is_some()),
            "{code}: {errors}"
        );
        insta::with_settings!({ description => text, omit_expression => true, snapshot_path => "../snapshots" }, {
            insta::assert_snapshot!(code.to_lowercase(), errors.render(false));
        });
    }
    let tested: Vec<&str> = cases.iter().map(|(code, _)| *code).collect();
    let all = super::super::codes().iter().map(|code| code.code);
    let errors: Vec<&str> = all.filter(|code| *code < "OR1901").collect();
    assert_eq!(tested, errors, "every number has a report");
}

#[test]
fn what_may_be_wanted_is_warned_of() {
    let mesh = read(
        "service: a
run: ./a
labels: { version: v1 }
protocol: grpc
timeout: 1s
retry: { attempts: 2 }
outlier: { max_ejected: 100%, panic: 0% }
zone: {}
subsets: { v1: { version: v1 }, v2: { version: v2 } }
faults: [{ name: f, abort: 503, until: \"2026-11-24T08:00:00Z\" }]
",
    )
    .unwrap();
    let said: Vec<_> = mesh.warnings.iter().map(|w| (w.code.unwrap(), w.line)).collect();
    assert_eq!(
        said,
        [
            ("OR2002", 6),
            ("OR2003", 7),
            ("OR2004", 8),
            ("OR2005", 9),
            ("OR2001", 10)
        ]
    );
    insta::with_settings!({ omit_expression => true, snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("warnings", super::super::render(&mesh.warnings, false));
    });
}

#[test]
fn versions_run_side_by_side_and_are_subsets() {
    let mesh = read(
        "service: post
run: ./post
labels: { zone: a }
env: { X: y }
versions:
  v1: { replicas: 2 }
  v2: { run: ./post2, labels: { zone: b }, weight: 5, env: { X: z } }
routes: [{ name: canary, to: [{ subset: v1, weight: 95% }, { subset: v2, weight: 5% }] }]
",
    )
    .unwrap();
    let post = &mesh.services[0];
    assert_eq!(post.replicas, 3);
    let [v1, v2] = post.versions.as_slice() else {
        panic!("{:?}", post.versions)
    };
    assert_eq!(
        (v1.run.as_deref(), v2.run.as_deref()),
        (Some("./post"), Some("./post2"))
    );
    assert_eq!((v1.labels["version"].as_str(), v1.labels["zone"].as_str()), ("v1", "a"));
    assert_eq!(
        (v2.labels["version"].as_str(), v2.labels["zone"].as_str(), v2.weight),
        ("v2", "b", 5)
    );
    assert_ne!(v1.env["X"], v2.env["X"]);
    assert_eq!(
        post.traffic.subsets.iter().map(|s| &*s.name).collect::<Vec<_>>(),
        ["v1", "v2"]
    );
    assert!(mesh.warnings.is_empty(), "{:?}", mesh.warnings);
}

/// Each value knows who says it.
#[test]
fn values_know_where_they_come_from() {
    let mesh = read(WHOLE).unwrap();
    let settings = |service: &str| {
        let lines = mesh.service(&name(service)).unwrap().settings.iter().map(|s| {
            format!(
                "{} = {} ({}{})",
                s.key,
                s.value,
                s.source.level.as_str(),
                s.source.at.as_ref().map(|at| format!(" {at}")).unwrap_or_default()
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    insta::with_settings!({ omit_expression => true, snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("settings_user", settings("user"));
        insta::assert_snapshot!("settings_spare", settings("spare"));
        let routes = super::super::routes(mesh.service(&name("user")).unwrap());
        insta::assert_yaml_snapshot!("routes", routes);
    });
}

/// What every setting is called is what `explain` explains.
#[test]
fn settings_are_explained() {
    let mesh = read(WHOLE).unwrap();
    for setting in &mesh.services[0].settings {
        let parts: Vec<&str> = setting.key.split('.').collect();
        let key = match parts.as_slice() {
            ["routes", _, rest @ ..] => format!("routes.{}", rest.join(".")),
            [
                "subsets" | "labels" | "faults" | "rate_limits" | "depends" | "versions",
                ..,
            ] => parts[0].to_owned(),
            _ => setting.key.clone(),
        };
        super::super::explain(&key).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn changes_are_named_key_by_key() {
    let before = read("service: a\ntimeout: 2s\n---\nservice: b\n---\nservice: gone\n").unwrap();
    let text = "defaults: { timeout: 3s }\n---\n\nservice: a\ntimeout: 2s\nroutes: [{ name: r, match: { path: /x }, timeout: 1s }]\n---\nservice: b\n---\nservice: new\nprotocol: http\n";
    let after = read(text).unwrap();
    let same = super::super::changes(
        &before.services,
        &read("# moved\n\nservice: a\ntimeout: 2s\n---\nservice: b\n---\nservice: gone\n")
            .unwrap()
            .services,
    );
    assert_eq!(same, []);
    let changes = super::super::changes(&before.services, &after.services);
    insta::with_settings!({ omit_expression => true, snapshot_path => "../snapshots" }, {
        insta::assert_yaml_snapshot!("changes", changes);
    });
}
