//! Who subscribed to what: a change is put into the mailboxes of those who use the resource.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_proto::model::ResourceType;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::stream::{Key, Outcome, Stream, collection_of};
use super::table::{Entry, Table};

/// Names a stream on this control plane.
pub type StreamId = u64;

/// The table and everyone who looks at it.
#[derive(Debug, Default)]
pub struct Hub {
    /// Every resource; change it through the hub, so that subscribers hear of it.
    table: Table,
    index: HashMap<Key, BTreeSet<StreamId>>,
    clients: BTreeMap<StreamId, Client>,
    next_id: StreamId,
    pushes: BTreeMap<ResourceType, u64>,
}

/// One open stream, as people see it.
#[derive(Debug)]
pub struct Client {
    /// `Node.id`: `namespace/service/instance`.
    pub node: String,
    /// What it says that it implements.
    pub features: Vec<String>,
    /// Resources kept back, each with the feature that the client lacks.
    pub withheld: BTreeMap<Key, &'static str>,
    /// Refused versions.
    pub rejected: BTreeMap<Key, String>,
    mailbox: Arc<Mailbox>,
}

/// What changed since a stream looked last: names, so its size is bounded by what is subscribed.
#[derive(Debug, Default)]
pub struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Letters {
    changed: BTreeSet<Key>,
    recheck: BTreeSet<ResourceType>,
}

impl Mailbox {
    /// Waits until something is there. Cancel safe.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Hands everything to `stream`.
    pub fn empty_into(&self, stream: &mut Stream) {
        let letters = std::mem::take(&mut *self.letters.lock());
        for kind in letters.recheck {
            stream.recheck(kind);
        }
        for (kind, name) in letters.changed {
            stream.changed(kind, &name);
        }
    }
}

impl Hub {
    /// Every resource.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Puts a resource and tells its subscribers; false when nothing changed.
    pub fn put(&mut self, kind: ResourceType, name: &str, entry: Entry) -> bool {
        let changed = self.table.put(kind, name, entry);
        if changed {
            self.tell(kind, name);
        }
        changed
    }

    /// Removes a resource and tells its subscribers; false when nothing changed.
    pub fn remove(&mut self, kind: ResourceType, name: &str) -> bool {
        let changed = self.table.remove(kind, name);
        if changed {
            self.tell(kind, name);
        }
        changed
    }

    /// From now on absent resources of `kind` are not stated as removed.
    pub fn hold(&mut self, kind: ResourceType) {
        self.table.hold(kind);
    }

    /// Ends [`Hub::hold`]: every client hears of what is absent.
    pub fn release(&mut self, kind: ResourceType) {
        if self.table.release(kind) {
            for client in self.clients.values() {
                client.mailbox.letters.lock().recheck.insert(kind);
                client.mailbox.arrived.notify_one();
            }
        }
    }

    /// Opens a stream.
    pub fn join(&mut self, node: &str, features: &[String]) -> (StreamId, Arc<Mailbox>) {
        self.next_id += 1;
        let mailbox = Arc::new(Mailbox::default());
        let client = Client {
            node: node.to_owned(),
            features: features.to_vec(),
            withheld: BTreeMap::new(),
            rejected: BTreeMap::new(),
            mailbox: Arc::clone(&mailbox),
        };
        self.clients.insert(self.next_id, client);
        (self.next_id, mailbox)
    }

    /// Writes down what a request of `id` changed.
    pub fn note(&mut self, id: StreamId, outcome: &Outcome) {
        for key in &outcome.dropped {
            self.drop_interest(id, key);
        }
        for key in &outcome.added {
            self.index.entry(key.clone()).or_default().insert(id);
        }
    }

    /// Writes down how `stream` stands, for people.
    pub fn show(&mut self, id: StreamId, stream: &Stream) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.withheld = stream.withheld().collect();
            client.rejected = stream.rejected().collect();
        }
    }

    /// Closes a stream.
    pub fn leave(&mut self, id: StreamId, stream: &Stream) {
        self.clients.remove(&id);
        for key in stream.subscriptions() {
            self.drop_interest(id, &key);
        }
    }

    /// Counts a response.
    pub fn pushed(&mut self, kind: ResourceType) {
        *self.pushes.entry(kind).or_default() += 1;
    }

    /// Responses with resources of `kind` since the start.
    #[must_use]
    pub fn pushes(&self, kind: ResourceType) -> u64 {
        self.pushes.get(&kind).copied().unwrap_or(0)
    }

    /// Every open stream.
    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.values()
    }

    fn drop_interest(&mut self, id: StreamId, key: &Key) {
        if let Some(ids) = self.index.get_mut(key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.index.remove(key);
            }
        }
    }

    fn tell(&self, kind: ResourceType, name: &str) {
        let own = self.index.get(&(kind, name.to_owned()));
        let collection = collection_of(name).and_then(|c| self.index.get(&(kind, c)));
        for id in own.into_iter().chain(collection).flatten() {
            if let Some(client) = self.clients.get(id) {
                client.mailbox.letters.lock().changed.insert((kind, name.to_owned()));
                client.mailbox.arrived.notify_one();
            }
        }
    }
}
