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
concurrency: { requests: 100, endpoint_requests: 10, pending: 50, connections: 8 }
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
- { name: each, match: { methods: [POST] }, rate: 10/m, by: caller, mesh: true }
- { name: key, rate: 5/10s, by: "header:X-Key" }
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
    assert_eq!(canary.matches[0].path, Some(PathMatch::Prefix("/api".into())));
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
        assert_eq!(
            (&proxy.rate_limits, &proxy.priorities),
            (&traffic.rate_limits, &traffic.priorities)
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
