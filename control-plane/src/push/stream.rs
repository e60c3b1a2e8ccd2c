//! One stream's protocol state, pure: requests and changes go in, responses come out.
//!
//! Per type at most one response is unanswered. What changes meanwhile is a set of names, compared
//! with the table when the answer is in, so a slow client costs one name a resource and gets the
//! newest version only. A version that the client refused is not sent again until it changes; one
//! that needs a feature the client lacks is not sent at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use outrigger_proto::model::ResourceType;
use outrigger_proto::wire::{discovery, mesh};
use prost::Message as _;

use super::table::{Entry, Table};

/// Names one stream may subscribe to, for one type.
const MAX_NAMES: usize = 20_000;
/// A name is at most three labels of 63 bytes and two slashes.
const MAX_NAME_BYTES: usize = 191;
/// A response is closed once it is this large. A collection's first answer is never divided.
const RESPONSE_BYTES: usize = 1 << 20;

/// A resource or a collection of one type.
pub type Key = (ResourceType, String);

/// What a request changed, for the index and for people.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// New subscriptions.
    pub added: Vec<Key>,
    /// Ended subscriptions.
    pub dropped: Vec<Key>,
    /// Refused resources.
    pub nacks: Vec<Nack>,
}

/// One resource that the client refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// The refused version.
    pub version: String,
    /// Path of the field, and why.
    pub reason: String,
}

/// Why a request ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// Too many subscriptions.
    #[error("more than {MAX_NAMES} names of one type")]
    Names,
    /// A name that cannot be one.
    #[error("a name of {0} bytes")]
    NameLength(usize),
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    features: BTreeSet<String>,
    states: BTreeMap<ResourceType, State>,
    /// Names asked of types that do not exist here; answered once as missing.
    foreign: BTreeMap<String, BTreeSet<String>>,
    nonce: u64,
}

#[derive(Debug, Default)]
struct State {
    subscribed: BTreeSet<String>,
    /// Subscriptions whose first answer is due; true when it repeats what the client has.
    first: BTreeMap<String, Repeat>,
    /// Resources to compare with the table.
    dirty: BTreeSet<String>,
    /// The version of each resource that the client has or is being sent.
    known: BTreeMap<String, String>,
    rejected: BTreeMap<String, String>,
    withheld: BTreeMap<String, &'static str>,
    in_flight: Option<Flight>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    OnlyWhatDiffers,
    Everything,
}

/// An unanswered response.
#[derive(Debug)]
struct Flight {
    nonce: String,
    /// What it carries: the version, and the one that the client had before.
    sent: BTreeMap<String, (String, Option<String>)>,
}

impl Stream {
    /// A stream of a client that implements `features`.
    #[must_use]
    pub fn new(features: impl IntoIterator<Item = String>) -> Self {
        Self {
            features: features.into_iter().collect(),
            states: BTreeMap::new(),
            foreign: BTreeMap::new(),
            nonce: 0,
        }
    }

    /// Takes a request: acknowledgement or refusal, subscriptions, or both.
    ///
    /// # Errors
    /// When the client asks for more than one stream may.
    pub fn request(&mut self, request: discovery::DeltaDiscoveryRequest) -> Result<Outcome, Overflow> {
        let names = request.resource_names_subscribe.iter();
        if let Some(long) = names
            .chain(request.initial_resource_versions.keys())
            .find(|n| n.len() > MAX_NAME_BYTES)
        {
            return Err(Overflow::NameLength(long.len()));
        }
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            return self.ask_foreign(request);
        };
        let state = self.states.entry(kind).or_default();
        let mut outcome = Outcome::default();
        // A stale nonce says nothing about the newest response, but its subscriptions count.
        if state
            .in_flight
            .as_ref()
            .is_some_and(|f| f.nonce == request.response_nonce)
            && let Some(flight) = state.in_flight.take()
        {
            state.settle(kind, flight, request.error_detail, &mut outcome);
        }
        for name in request.resource_names_unsubscribe {
            if state.subscribed.remove(&name) {
                state.first.remove(&name);
                outcome.dropped.push((kind, name));
            }
        }
        if !outcome.dropped.is_empty() {
            state.forget_unsubscribed();
        }
        for name in request.resource_names_subscribe {
            // Subscribed twice: the client says that it lost it. Subscribed after a goodbye: whether
            // the client took what was on its way is not known.
            let repeat = match state.subscribed.contains(&name) || state.may_have(&name) {
                true => Repeat::Everything,
                false => Repeat::OnlyWhatDiffers,
            };
            state.first.insert(name.clone(), repeat);
            if state.subscribed.insert(name.clone()) {
                outcome.added.push((kind, name));
            }
        }
        if state.subscribed.len() > MAX_NAMES {
            return Err(Overflow::Names);
        }
        for (name, version) in request.initial_resource_versions {
            // Only what belongs to a subscription that starts here: later the server knows better.
            if state
                .covering(&name)
                .any(|s| state.first.get(s) == Some(&Repeat::OnlyWhatDiffers))
            {
                state.known.entry(name).or_insert(version);
            }
        }
        Ok(outcome)
    }

    /// A resource changed; nothing happens when this client does not use it.
    pub fn changed(&mut self, kind: ResourceType, name: &str) {
        if let Some(state) = self.states.get_mut(&kind)
            && state.covers(name)
        {
            state.dirty.insert(name.to_owned());
        }
    }

    /// Everything that the client has of `kind` is compared with the table again.
    pub fn recheck(&mut self, kind: ResourceType) {
        if let Some(state) = self.states.get_mut(&kind) {
            state.dirty.extend(state.known.keys().cloned());
        }
    }

    /// The next response that the client may be sent now.
    pub fn next(&mut self, table: &Table) -> Option<discovery::DeltaDiscoveryResponse> {
        let Self { features, states, .. } = self;
        for kind in ResourceType::ALL {
            let Some(state) = states.get_mut(&kind) else { continue };
            if state.in_flight.is_some() {
                continue;
            }
            while state.has_work() {
                let batch = state.batch(kind, table, features);
                if batch.is_empty() {
                    continue;
                }
                self.nonce += 1;
                let nonce = self.nonce.to_string();
                return Some(state.send(kind, batch, nonce));
            }
        }
        let (type_url, names) = self.foreign.pop_first()?;
        self.nonce += 1;
        Some(discovery::DeltaDiscoveryResponse {
            type_url,
            nonce: self.nonce.to_string(),
            removed_resources: names.into_iter().collect(),
            ..Default::default()
        })
    }

    /// Resources kept back, each with the feature that the client lacks.
    pub fn withheld(&self) -> impl Iterator<Item = (Key, &'static str)> {
        self.states
            .iter()
            .flat_map(|(kind, s)| s.withheld.iter().map(|(name, need)| ((*kind, name.clone()), *need)))
    }

    /// Versions that the client refused and that are still current.
    pub fn rejected(&self) -> impl Iterator<Item = (Key, String)> {
        self.states
            .iter()
            .flat_map(|(kind, s)| s.rejected.iter().map(|(name, v)| ((*kind, name.clone()), v.clone())))
    }

    /// Every subscription.
    pub fn subscriptions(&self) -> impl Iterator<Item = Key> {
        self.states
            .iter()
            .flat_map(|(kind, s)| s.subscribed.iter().map(|name| (*kind, name.clone())))
    }

    fn ask_foreign(&mut self, request: discovery::DeltaDiscoveryRequest) -> Result<Outcome, Overflow> {
        if request.resource_names_subscribe.is_empty() {
            return Ok(Outcome::default());
        }
        if request.type_url.len() > MAX_NAME_BYTES {
            return Err(Overflow::NameLength(request.type_url.len()));
        }
        let names = self.foreign.entry(request.type_url).or_default();
        names.extend(request.resource_names_subscribe);
        match self.foreign.values().map(BTreeSet::len).sum::<usize>() > MAX_NAMES {
            true => Err(Overflow::Names),
            false => Ok(Outcome::default()),
        }
    }
}

/// What goes into one response.
#[derive(Debug, Default)]
struct Batch {
    resources: BTreeMap<String, std::sync::Arc<Entry>>,
    removed: BTreeSet<String>,
    bytes: usize,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty()
    }

    fn full(&self) -> bool {
        self.bytes >= RESPONSE_BYTES
    }
}

impl State {
    fn has_work(&self) -> bool {
        !self.first.is_empty() || !self.dirty.is_empty()
    }

    /// The subscriptions that `name` belongs to: its own and its collection's.
    fn covering(&self, name: &str) -> impl Iterator<Item = &String> {
        let collection = collection_of(name).and_then(|c| self.subscribed.get(&c));
        self.subscribed.get(name).into_iter().chain(collection)
    }

    fn covers(&self, name: &str) -> bool {
        self.covering(name).next().is_some()
    }

    fn forget_unsubscribed(&mut self) {
        let Self {
            subscribed,
            known,
            dirty,
            rejected,
            withheld,
            in_flight,
            ..
        } = self;
        let covered = |name: &str| {
            subscribed.contains(name) || collection_of(name).is_some_and(|collection| subscribed.contains(&collection))
        };
        // What is on its way may still be taken, if the client subscribes again before it arrives.
        let on_its_way = |name: &str| in_flight.as_ref().is_some_and(|f| f.sent.contains_key(name));
        known.retain(|name, _| covered(name) || on_its_way(name));
        dirty.retain(|name| covered(name));
        rejected.retain(|name, _| covered(name));
        withheld.retain(|name, _| covered(name));
    }

    /// True when the client may have something of `subscription`.
    fn may_have(&self, subscription: &str) -> bool {
        match prefix_of(subscription) {
            Some(prefix) => self.known_under(prefix).next().is_some(),
            None => self.known.contains_key(subscription),
        }
    }

    fn known_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a String> {
        let from = self.known.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.map(|(name, _)| name)
            .take_while(move |name| name.starts_with(prefix))
    }

    /// Takes the answer to `flight`.
    fn settle(
        &mut self,
        kind: ResourceType,
        flight: Flight,
        error: Option<outrigger_proto::wire::google::rpc::Status>,
        outcome: &mut Outcome,
    ) {
        for name in flight
            .sent
            .keys()
            .filter(|name| !self.covers(name))
            .cloned()
            .collect::<Vec<_>>()
        {
            self.known.remove(&name);
        }
        let Some(error) = error else {
            for name in flight.sent.keys() {
                self.rejected.remove(name);
            }
            return;
        };
        let named: BTreeMap<String, String> = error
            .details
            .iter()
            .filter_map(|any| mesh::Rejection::decode(any.value.as_slice()).ok())
            .filter(|r| flight.sent.contains_key(&r.resource))
            .map(|r| (r.resource, format!("{}: {}", r.field, r.reason)))
            .collect();
        for (name, (version, before)) in flight.sent {
            let reason = match named.get(&name) {
                Some(reason) => reason.clone(),
                // A client that names nothing refuses everything.
                None if named.is_empty() => error.message.clone(),
                None => {
                    self.rejected.remove(&name);
                    continue;
                }
            };
            if self.known.get(&name) == Some(&version) {
                match before {
                    Some(before) => self.known.insert(name.clone(), before),
                    None => self.known.remove(&name),
                };
            }
            if self.covers(&name) {
                self.rejected.insert(name.clone(), version.clone());
            }
            outcome.nacks.push(Nack {
                kind,
                name,
                version,
                reason,
            });
        }
    }

    /// Collects what is due, up to one response.
    fn batch(&mut self, kind: ResourceType, table: &Table, features: &BTreeSet<String>) -> Batch {
        let mut batch = Batch::default();
        while !batch.full()
            && let Some((subscription, repeat)) = self.first.pop_first()
        {
            match prefix_of(&subscription) {
                Some(prefix) => self.first_of_collection(kind, prefix, repeat, table, features, &mut batch),
                None => self.first_of_one(kind, &subscription, repeat, table, features, &mut batch),
            }
        }
        while !batch.full()
            && let Some(name) = self.dirty.pop_first()
        {
            if !batch.resources.contains_key(&name) && !batch.removed.contains(&name) {
                self.compare(kind, &name, Repeat::OnlyWhatDiffers, table, features, &mut batch);
            }
        }
        batch
    }

    fn first_of_collection(
        &mut self,
        kind: ResourceType,
        prefix: &str,
        repeat: Repeat,
        table: &Table,
        features: &BTreeSet<String>,
        batch: &mut Batch,
    ) {
        let mut names: BTreeSet<String> = table.under(kind, prefix).map(|(name, _)| name.clone()).collect();
        names.extend(self.known_under(prefix).cloned());
        for name in &names {
            self.compare(kind, name, repeat, table, features, batch);
        }
        // Complete and empty has to be said; silence would mean "not yet".
        if !names.iter().any(|name| self.known.contains_key(name)) {
            batch.removed.insert(format!("{prefix}*"));
        }
    }

    fn first_of_one(
        &mut self,
        kind: ResourceType,
        name: &str,
        repeat: Repeat,
        table: &Table,
        features: &BTreeSet<String>,
        batch: &mut Batch,
    ) {
        self.compare(kind, name, repeat, table, features, batch);
        if !self.known.contains_key(name) && !self.rejected.contains_key(name) {
            batch.removed.insert(name.to_owned());
        }
    }

    /// Compares what the client has of `name` with the table and adds the difference to `batch`.
    fn compare(
        &mut self,
        kind: ResourceType,
        name: &str,
        repeat: Repeat,
        table: &Table,
        features: &BTreeSet<String>,
        batch: &mut Batch,
    ) {
        self.dirty.remove(name);
        self.withheld.remove(name);
        let known = self.known.get(name);
        let Some(entry) = table.get(kind, name) else {
            self.rejected.remove(name);
            if known.is_some() && table.removal_is_known(kind, name) {
                self.known.remove(name);
                batch.removed.insert(name.to_owned());
            }
            return;
        };
        if let Some(lacking) = entry.needs.iter().find(|need| !features.contains(**need)) {
            // What the client has from before stays: an old policy is better than none.
            self.withheld.insert(name.to_owned(), lacking);
            return;
        }
        if known == Some(&entry.version) {
            self.rejected.remove(name);
            if repeat == Repeat::OnlyWhatDiffers {
                return;
            }
        }
        if self.rejected.get(name) == Some(&entry.version) {
            return;
        }
        batch.bytes += entry.bytes.len() + name.len();
        batch.removed.remove(name);
        batch.resources.insert(name.to_owned(), std::sync::Arc::clone(entry));
        self.known.entry(name.to_owned()).or_default();
    }

    fn send(&mut self, kind: ResourceType, batch: Batch, nonce: String) -> discovery::DeltaDiscoveryResponse {
        let mut sent = BTreeMap::new();
        let mut resources = Vec::with_capacity(batch.resources.len());
        for (name, entry) in batch.resources {
            let before = self
                .known
                .insert(name.clone(), entry.version.clone())
                .filter(|v| !v.is_empty());
            sent.insert(name.clone(), (entry.version.clone(), before));
            resources.push(discovery::Resource {
                version: entry.version.clone(),
                resource: Some(prost_types::Any {
                    type_url: kind.url().to_owned(),
                    value: entry.bytes.clone(),
                }),
                name,
                aliases: Vec::new(),
            });
        }
        let nonce_sent = nonce.clone();
        self.in_flight = Some(Flight { nonce, sent });
        discovery::DeltaDiscoveryResponse {
            type_url: kind.url().to_owned(),
            resources,
            nonce: nonce_sent,
            removed_resources: batch.removed.into_iter().collect(),
            ..Default::default()
        }
    }
}

/// `namespace/service/` of the collection `namespace/service/*`.
fn prefix_of(subscription: &str) -> Option<&str> {
    let prefix = subscription.strip_suffix('*')?;
    (prefix.ends_with('/') && prefix.matches('/').count() == 2).then_some(prefix)
}

/// `namespace/service/*` of `namespace/service/instance`; other names belong to no collection.
pub(super) fn collection_of(name: &str) -> Option<String> {
    let (service, _) = name.rsplit_once('/')?;
    service.contains('/').then(|| format!("{service}/*"))
}
