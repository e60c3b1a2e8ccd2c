//! Resources are valid for the model, versions follow content, and changes name only what changed.

use outrigger_proto::model::{Proxy, Service, ServiceName};

use super::Catalog;
use crate::config::parse;

fn catalog(text: &str) -> Catalog {
    Catalog::new(&parse("mesh.yaml", text).unwrap())
}

fn name(service: &str) -> ServiceName {
    ServiceName::new("default", service).unwrap()
}

const BASE: &str = "
service: user
protocol: grpc
timeout: 2s
health: { grpc: users, every: 1s }
---
service: post
protocol: http
calls: [user]
external: deny
depends: [{ file: post.db }]
access_log: json
mode: permissive
exposed_app: true
allow: [user, other/*, '*', unauthenticated, spiffe://x/*, { from: spiffe://x/ns/n/svc/s, ports: [http], methods: [GET], paths: [/a] }, { grpc: [a.B/C] }]
audit: true
---
service: blog
mode: strict
---
service: old
mode: off
";

#[test]
fn the_mode_and_who_may_call_are_always_said() {
    for (_, entry) in catalog(BASE).iter() {
        assert_ne!(entry.proxy.resource.mode, 0);
        assert_ne!(entry.service.resource.mode, 0);
        assert!(entry.proxy.resource.access.is_some());
    }
}

#[test]
fn resources_mean_what_the_document_says() {
    let mesh = parse("mesh.yaml", BASE).unwrap();
    let catalog = Catalog::new(&mesh);
    for document in &mesh.services {
        let entry = catalog.get(&document.name).unwrap();
        let proxy = Proxy::try_from(entry.proxy.resource.clone()).unwrap();
        assert_eq!(proxy.name, document.name);
        assert_eq!(proxy.health, document.health);
        assert_eq!(proxy.calls, document.calls);
        assert_eq!(proxy.external, document.external);
        assert_eq!(proxy.limits, document.limits);
        assert_eq!(proxy.drain, document.drain);
        assert_eq!(proxy.access_log, document.access_log);
        assert_eq!(proxy.depends, document.depends);
        assert_eq!((proxy.mode, proxy.exposed_app), (document.mode, document.exposed_app));
        assert_eq!(proxy.access, document.access);
        let service = Service::try_from(entry.service.resource.clone()).unwrap();
        assert_eq!(service.policy.timeout, document.traffic.policy.timeout);
        assert_eq!(service.connect_timeout, document.traffic.connect_timeout);
        assert_eq!(service.balance, document.traffic.balance);
        assert_eq!(service.mode, document.mode);
        let ports: Vec<_> = service.ports.iter().map(|port| (&*port.name, port.protocol)).collect();
        let written: Vec<_> = document
            .ports
            .iter()
            .map(|port| (port.name.as_str(), port.protocol))
            .collect();
        assert_eq!(ports, written);
    }
}

#[test]
fn the_same_description_has_the_same_version() {
    let (one, two) = (catalog(BASE), catalog(&format!("# a comment\n{BASE}")));
    assert_eq!(one.version(), two.version());
    assert!(one.changes(&two).is_empty());
}

#[test]
fn changes_name_only_what_changed() {
    let before = catalog(BASE);
    let after = catalog(&BASE.replace("timeout: 2s", "timeout: 3s"));
    let changes = before.changes(&after);
    assert_eq!(changes.services.iter().collect::<Vec<_>>(), [&name("user")]);
    assert!(changes.proxies.is_empty() && changes.removed.is_empty());
    assert_ne!(before.version(), after.version());

    let after = catalog(&BASE.replace("external: deny", "external: allow"));
    let changes = before.changes(&after);
    assert_eq!(changes.proxies.iter().collect::<Vec<_>>(), [&name("post")]);
    assert!(changes.services.is_empty());
}

#[test]
fn a_service_that_is_gone_is_removed() {
    let after = catalog(&BASE.replace("service: old", "service: new"));
    let changes = catalog(BASE).changes(&after);
    assert_eq!(changes.removed.iter().collect::<Vec<_>>(), [&name("old")]);
    assert_eq!(changes.names().len(), 2);
}
