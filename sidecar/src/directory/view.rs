//! A service and its endpoints at one moment, with what all workers would otherwise work out for themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use outrigger_proto::model::{Balance, Endpoint, Service};

use super::traffic::Traffic;
use crate::balance::{self, Node, Table};

/// A service and its endpoints at one moment.
#[derive(Debug)]
pub struct View {
    /// Unique over all views of this process and growing.
    pub generation: u64,
    /// The service's policy.
    pub service: Arc<Service>,
    /// Every endpoint that is registered.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// When each came; none: it was there when the service became known.
    pub since: Vec<Option<Instant>>,
    /// All endpoints, then those of each subset in the service's order.
    pub sets: Vec<Set>,
    /// Routes and faults; none when the service has none.
    pub traffic: Option<Arc<Traffic>>,
}

/// Endpoints that requests choose among.
#[derive(Debug)]
pub struct Set {
    /// None: all of them.
    pub subset: Option<Arc<str>>,
    /// Their places in the view.
    pub members: Vec<usize>,
    /// Where each hash goes, by place in `members`; for services that are balanced by hash. Of megabytes at most, so
    /// the workers share it, and so does the next view while the members stay.
    pub table: Option<Arc<Table>>,
    nodes: Vec<Node>,
}

impl View {
    /// What follows `before`.
    pub(super) fn new(
        generation: u64,
        service: Arc<Service>,
        endpoints: Vec<Arc<Endpoint>>,
        before: Option<&Self>,
        traffic: Option<Arc<Traffic>>,
        now: Instant,
    ) -> Self {
        let all = std::iter::once((None, &[][..]));
        let subsets = service.subsets.iter().map(|s| (Some(s.name.clone()), &*s.labels));
        let sets = all
            .chain(subsets)
            .map(|(subset, labels)| {
                let has = |e: &Endpoint| labels.iter().all(|(key, value)| e.labels.get(key) == Some(value));
                let members = (0..endpoints.len()).filter(|i| endpoints.get(*i).is_some_and(|e| has(e)));
                Set::new(subset, members.collect(), &endpoints, &service.balance, before)
            })
            .collect();
        Self {
            generation,
            since: since(&endpoints, before, now),
            sets,
            traffic,
            service,
            endpoints,
        }
    }
}

impl Set {
    fn new(
        subset: Option<Arc<str>>,
        members: Vec<usize>,
        endpoints: &[Arc<Endpoint>],
        balance: &Balance,
        before: Option<&View>,
    ) -> Self {
        let (Balance::Ring(_) | Balance::Maglev(_)) = balance else {
            return Self {
                subset,
                members,
                table: None,
                nodes: Vec::new(),
            };
        };
        let node = |endpoint: &Arc<Endpoint>| Node {
            // Without the epoch: a restarted instance keeps its values.
            key: balance::hash(endpoint.name.to_string().as_bytes()),
            weight: endpoint.weight,
        };
        let nodes: Vec<Node> = members.iter().filter_map(|i| endpoints.get(*i)).map(node).collect();
        let kept = before
            .filter(|b| std::mem::discriminant(&b.service.balance) == std::mem::discriminant(balance))
            .and_then(|b| b.sets.iter().find(|s| s.nodes == nodes))
            .and_then(|s| s.table.clone());
        let make = || match balance {
            Balance::Maglev(_) => Table::maglev(&nodes),
            _ => Table::ring(&nodes),
        };
        Self {
            subset,
            members,
            table: Some(kept.unwrap_or_else(|| Arc::new(make()))),
            nodes,
        }
    }
}

/// When each endpoint came. Another epoch is another endpoint: it has just begun.
fn since(endpoints: &[Arc<Endpoint>], before: Option<&View>, now: Instant) -> Vec<Option<Instant>> {
    let Some(before) = before else {
        return vec![None; endpoints.len()];
    };
    let known: HashMap<_, _> = before
        .endpoints
        .iter()
        .zip(&before.since)
        .map(|(e, s)| ((&e.name, e.epoch), *s))
        .collect();
    let came = |e: &Arc<Endpoint>| known.get(&(&e.name, e.epoch)).copied().unwrap_or(Some(now));
    endpoints.iter().map(came).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_proto::model::{Hash, HashOn, Mode, Subset};
    use outrigger_proto::wire::mesh as wire;

    use super::*;

    fn endpoint(i: usize, epoch: u64, version: &str) -> Arc<Endpoint> {
        let wire = wire::Endpoint {
            name: format!("default/app/app-{i}"),
            address: "127.0.0.1".into(),
            ports: vec![wire::EndpointPort {
                name: "main".into(),
                port: 80,
                mesh_port: 0,
            }],
            epoch,
            labels: [("version".to_owned(), version.to_owned())].into(),
            ..wire::Endpoint::default()
        };
        Arc::new(wire.try_into().expect("valid"))
    }

    fn service() -> Arc<Service> {
        let mut service = Service::new("default/app".parse().expect("valid"), Vec::new(), Mode::Off);
        service.balance = Balance::Ring(Hash {
            on: HashOn::Caller,
            bound_percent: 125,
        });
        service.subsets = vec![Subset {
            name: "v2".into(),
            labels: vec![("version".into(), "2".into())],
        }];
        Arc::new(service)
    }

    #[test]
    fn an_endpoint_is_as_old_as_its_epoch() {
        let start = Instant::now();
        let later = start + Duration::from_secs(5);
        let first = View::new(
            1,
            service(),
            vec![endpoint(0, 1, "1"), endpoint(1, 1, "1")],
            None,
            None,
            start,
        );
        assert_eq!(first.since, [None, None]);
        let now = vec![endpoint(1, 2, "1"), endpoint(0, 1, "1"), endpoint(2, 1, "1")];
        let second = View::new(2, service(), now, Some(&first), None, later);
        assert_eq!(second.since, [Some(later), None, Some(later)]);
        let third = View::new(3, service(), vec![endpoint(2, 1, "1")], Some(&second), None, later);
        assert_eq!(third.since, [Some(later)]);
    }

    #[test]
    fn sets_follow_the_labels_and_tables_are_kept_while_members_stay() {
        let now = Instant::now();
        let endpoints = || vec![endpoint(0, 1, "1"), endpoint(1, 1, "2"), endpoint(2, 1, "2")];
        let first = View::new(1, service(), endpoints(), None, None, now);
        let members: Vec<_> = first.sets.iter().map(|s| (s.subset.as_deref(), &*s.members)).collect();
        assert_eq!(members, [(None, &[0, 1, 2][..]), (Some("v2"), &[1, 2])]);
        let mut restarted = endpoints();
        restarted[0] = endpoint(0, 7, "1");
        let second = View::new(2, service(), restarted, Some(&first), None, now);
        for (old, new) in first.sets.iter().zip(&second.sets) {
            assert!(old.table.is_some());
            assert!(Arc::ptr_eq(
                old.table.as_ref().expect("by hash"),
                new.table.as_ref().expect("by hash")
            ));
        }
        let third = View::new(3, service(), endpoints().split_off(1), Some(&second), None, now);
        let ptr = |view: &View, set: usize| view.sets[set].table.as_ref().map(Arc::as_ptr);
        assert_ne!(ptr(&second, 0), ptr(&third, 0));
        assert_eq!(ptr(&second, 1), ptr(&third, 1));
    }
}
