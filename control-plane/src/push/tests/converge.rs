//! Whatever happens in whatever order, the client ends up with what the server has, less what it
//! refuses, and is never sent a refused version twice in a row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

const SUBSCRIPTIONS: [&str; 4] = ["d/a/*", "d/b/*", "d/a/1", "d/b/2"];

#[derive(Debug, Clone)]
enum Act {
    Put(usize, u32),
    Remove(usize),
    Subscribe(usize),
    Unsubscribe(usize),
    ServerReads,
    ServerWrites,
    ClientReads,
    Reconnect,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0usize..6, 0u32..8).prop_map(|(name, version)| Act::Put(name, version)),
        2 => (0usize..6).prop_map(Act::Remove),
        2 => (0usize..4).prop_map(Act::Subscribe),
        1 => (0usize..4).prop_map(Act::Unsubscribe),
        4 => Just(Act::ServerReads),
        4 => Just(Act::ServerWrites),
        4 => Just(Act::ClientReads),
        1 => Just(Act::Reconnect),
    ]
}

/// Six resources in two collections.
fn resource(index: usize) -> String {
    let collection = if index < 3 { "a" } else { "b" };
    format!("d/{collection}/{}", index % 3)
}

/// The client does not like every version.
fn liked(version: &str) -> bool {
    version.parse::<u32>().expect("a number") % 3 != 2
}

struct World {
    server: Server,
    subscribed: BTreeSet<&'static str>,
    has: BTreeMap<String, String>,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
    /// Versions refused on this stream and not replaced since.
    refused: BTreeSet<(String, String)>,
}

impl World {
    fn covers(&self, name: &str) -> bool {
        let (collection, _) = name.rsplit_once('/').expect("three parts");
        self.subscribed.contains(name) || self.subscribed.contains(format!("{collection}/*").as_str())
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Put(index, version) => {
                let name = resource(*index);
                let changes = self
                    .server
                    .table
                    .get(KIND, &name)
                    .is_none_or(|e| e.version != version.to_string());
                if changes {
                    self.refused.retain(|(refused, _)| *refused != name);
                }
                self.server.put(&name, *version);
            }
            Act::Remove(index) => {
                let name = resource(*index);
                self.refused.retain(|(refused, _)| *refused != name);
                self.server.remove(&name);
            }
            Act::Subscribe(index) => {
                let name = SUBSCRIPTIONS[*index];
                self.subscribed.insert(name);
                self.up.push_back(DeltaDiscoveryRequest {
                    resource_names_subscribe: vec![name.into()],
                    ..request(KIND)
                });
            }
            Act::Unsubscribe(index) => {
                let name = SUBSCRIPTIONS[*index];
                self.subscribed.remove(name);
                let kept = self
                    .has
                    .keys()
                    .filter(|n| self.covers(n))
                    .cloned()
                    .collect::<BTreeSet<_>>();
                self.has.retain(|name, _| kept.contains(name));
                self.refused.clear();
                self.up.push_back(DeltaDiscoveryRequest {
                    resource_names_unsubscribe: vec![name.into()],
                    ..request(KIND)
                });
            }
            Act::ServerReads => {
                if let Some(request) = self.up.pop_front() {
                    self.server.stream.request(request).expect("within bounds");
                }
            }
            Act::ServerWrites => self.down.extend(self.server.next()),
            Act::ClientReads => {
                if let Some(response) = self.down.pop_front() {
                    self.client_reads(response);
                }
            }
            Act::Reconnect => {
                self.up.clear();
                self.down.clear();
                self.refused.clear();
                self.server.stream = Server::new().stream;
                self.up.push_back(DeltaDiscoveryRequest {
                    resource_names_subscribe: self.subscribed.iter().map(ToString::to_string).collect(),
                    initial_resource_versions: self.has.clone(),
                    ..request(KIND)
                });
            }
        }
    }

    fn client_reads(&mut self, response: DeltaDiscoveryResponse) {
        let mut answer = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            ..request(KIND)
        };
        for resource in response.resources {
            if !self.covers(&resource.name) {
                continue;
            }
            if liked(&resource.version) {
                self.has.insert(resource.name, resource.version);
                continue;
            }
            let rejected = rejection(&resource.name);
            match &mut answer.error_detail {
                Some(detail) => detail.details.extend(rejected.details),
                none => *none = Some(rejected),
            }
            if self
                .server
                .table
                .get(KIND, &resource.name)
                .is_some_and(|e| e.version == resource.version)
            {
                let once = self.refused.insert((resource.name.clone(), resource.version.clone()));
                assert!(once, "{} {} was sent again", resource.name, resource.version);
            }
        }
        for name in response.removed_resources {
            self.has.remove(&name);
        }
        self.up.push_back(answer);
    }

    /// Lets everything that is under way arrive.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.act(&Act::ServerReads);
            self.act(&Act::ServerWrites);
            self.act(&Act::ClientReads);
            if self.up.is_empty() && self.down.is_empty() {
                let next = self.server.next();
                if next.is_none() {
                    return;
                }
                self.down.extend(next);
            }
        }
        panic!("does not settle");
    }

    fn check(&self) {
        for index in 0..6 {
            let name = resource(index);
            let has = self.has.get(&name);
            match self.server.table.get(KIND, &name).filter(|_| self.covers(&name)) {
                Some(entry) if liked(&entry.version) => assert_eq!(has, Some(&entry.version), "{name}"),
                Some(_) => assert!(has.is_none_or(|v| liked(v)), "{name}: a predecessor or nothing"),
                None => assert_eq!(has, None, "{name}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_client_ends_up_with_what_the_server_has(acts in proptest::collection::vec(act(), 1..120)) {
        let mut world = World {
            server: Server::new(),
            subscribed: BTreeSet::new(),
            has: BTreeMap::new(),
            up: VecDeque::new(),
            down: VecDeque::new(),
            refused: BTreeSet::new(),
        };
        for act in &acts {
            world.act(act);
        }
        world.settle();
        world.check();
    }
}

proptest! {
    #[test]
    fn no_request_makes_it_panic(requests in proptest::collection::vec(junk(), 1..20)) {
        let mut server = Server::new();
        server.put("d/a/1", 1);
        for request in requests {
            // Too much ends the stream; here it only has to stay in one piece.
            let _refused = server.stream.request(request).is_err();
            server.next();
        }
    }
}

fn junk() -> impl Strategy<Value = DeltaDiscoveryRequest> {
    let names = || proptest::collection::vec("[a-d/*]{0,8}|.{0,20}", 0..4);
    let kind = prop_oneof![
        Just(KIND.url().to_owned()),
        Just(ResourceType::Proxy.url().to_owned()),
        ".{0,20}"
    ];
    let error = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    (kind, names(), names(), names(), "[0-9]{0,2}", error).prop_map(
        |(type_url, on, off, have, response_nonce, error)| DeltaDiscoveryRequest {
            type_url,
            resource_names_subscribe: on,
            resource_names_unsubscribe: off,
            initial_resource_versions: have.into_iter().map(|name| (name, "1".to_owned())).collect(),
            response_nonce,
            error_detail: error.map(|value| rpc::Status {
                details: vec![prost_types::Any {
                    value,
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        },
    )
}
