//! What the authority knows, and the only ways in which it changes. Pure: `now` is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use outrigger_proto::model::{Revocation, ServiceName};
use serde::{Deserialize, Serialize};

use super::rotation::Trust;
use super::x509::Unix;

/// An expired leaf may still be renewed for this long, by proof of its key.
pub(super) const LATE: u64 = 7 * 86_400;
/// Leaves of one registration that are remembered; the newest ones.
const MAX_LEAVES: usize = 16;

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    /// SHA-256 of the secret.
    pub(super) hash: [u8; 32],
    /// `namespace/service`.
    pub(super) service: String,
    /// Opens the API instead of joining.
    pub(super) operator: bool,
    /// How often it may still be used; none = always.
    pub(super) uses: Option<u32>,
    pub(super) used: u64,
    pub(super) expires: Unix,
    /// SHA-256 of the key that used it last: the same one may ask again, when the answer was lost.
    pub(super) last_key: Option<[u8; 32]>,
}

/// A leaf that is out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
    pub(super) serial: String,
    /// SHA-256 of its DER, hexadecimal.
    pub(super) hash: String,
    /// Number of the root.
    pub(super) root: u32,
    pub(super) not_before: Unix,
    pub(super) not_after: Unix,
}

/// One workload that joined: the leaves that it got since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(super) struct Registration {
    /// Oldest first. Invariant: not empty.
    pub(super) leaves: Vec<Issued>,
    pub(super) renewals: u64,
    pub(super) joined: Unix,
    /// Its token's id; empty for a certificate that the operator asked for.
    pub(super) by: String,
    /// Gets no further leaf, even after the revoked one has expired.
    pub(super) revoked: bool,
    /// The newest leaf came back to us, so its owner has it.
    pub(super) confirmed: bool,
}

impl Registration {
    pub(super) fn newest(&self) -> Option<&Issued> {
        self.leaves.last()
    }

    /// Adds a leaf and forgets those that are over.
    pub(super) fn add(&mut self, now: Unix, leaf: Issued) {
        // The one before is kept, however old: its owner has no other, should the answer be lost.
        let before = self.leaves.len().saturating_sub(1);
        let mut at = 0;
        self.leaves.retain(|l| {
            at += 1;
            l.not_after >= now || at > before
        });
        self.leaves.push(leaf);
        let over = self.leaves.len().saturating_sub(MAX_LEAVES);
        self.leaves.drain(..over);
        self.confirmed = false;
    }

    /// Whether the leaf `serial` may be renewed after it expired: the newest one, and the one before
    /// while nobody has shown the newest.
    pub(super) fn may_be_late(&self, serial: &str) -> bool {
        let back = self.leaves.iter().rev().position(|l| l.serial == serial);
        back == Some(0) || (back == Some(1) && !self.confirmed)
    }
}

/// Why and how long something is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Revoked {
    pub(super) since: Unix,
    /// A serial is forgotten when its leaf is over.
    pub(super) until: Option<Unix>,
}

/// One change; several are stored together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    Trust(Trust),
    Token(String, Option<Token>),
    /// By `namespace/service/instance`.
    Registration(String, Option<Registration>),
    /// By serial, or by `namespace/service`.
    Revoked(String, Option<Revoked>),
}

/// Everything, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) trust: Trust,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) registrations: BTreeMap<String, Registration>,
    pub(super) revoked: BTreeMap<String, Revoked>,
    by_serial: HashMap<String, String>,
}

impl State {
    pub(super) fn new(trust: Trust) -> Self {
        Self {
            trust,
            tokens: BTreeMap::new(),
            registrations: BTreeMap::new(),
            revoked: BTreeMap::new(),
            by_serial: HashMap::new(),
        }
    }

    pub(super) fn apply(&mut self, write: Write) {
        match write {
            Write::Trust(trust) => self.trust = trust,
            Write::Token(id, token) => put(&mut self.tokens, id, token),
            Write::Revoked(what, revoked) => put(&mut self.revoked, what, revoked),
            Write::Registration(name, registration) => {
                for leaf in self.registrations.get(&name).into_iter().flat_map(|r| &r.leaves) {
                    self.by_serial.remove(&leaf.serial);
                }
                for leaf in registration.iter().flat_map(|r| &r.leaves) {
                    self.by_serial.insert(leaf.serial.clone(), name.clone());
                }
                put(&mut self.registrations, name, registration);
            }
        }
    }

    /// The registration that has the leaf `serial`.
    pub(super) fn of_serial(&self, serial: &str) -> Option<(&String, &Registration)> {
        self.registrations.get_key_value(self.by_serial.get(serial)?)
    }

    pub(super) fn is_revoked(&self, what: &str) -> bool {
        self.revoked.contains_key(what)
    }

    /// What the bundle says is revoked.
    pub(super) fn revocations(&self) -> Vec<Revocation> {
        let parse = |what: &String| match what.parse::<ServiceName>() {
            Ok(service) => Revocation::Service(service),
            Err(_) => Revocation::Serial(what.clone()),
        };
        self.revoked.keys().map(parse).collect()
    }

    /// The workloads whose newest leaf is valid, but not of the root that signs.
    pub(super) fn unrenewed(&self, now: Unix) -> BTreeSet<String> {
        let signing = self.trust.signing().map(|r| r.number);
        let old = |r: &Registration| {
            let newest = r.newest();
            newest.is_some_and(|l| l.not_after >= now && Some(l.root) != signing) && !r.revoked
        };
        let all = self.registrations.iter().filter(|(_, r)| old(r));
        all.map(|(name, _)| name.clone()).collect()
    }

    /// What time has made needless.
    pub(super) fn outdated(&self, now: Unix) -> Vec<Write> {
        let tokens = self.tokens.iter().filter(|(_, t)| t.expires <= now);
        let tokens = tokens.map(|(id, _)| Write::Token(id.clone(), None));
        let over = |r: &Registration| r.newest().is_none_or(|l| l.not_after.saturating_add(LATE) < now);
        let registrations = self.registrations.iter().filter(|(_, r)| over(r));
        let registrations = registrations.map(|(name, _)| Write::Registration(name.clone(), None));
        let revoked = self
            .revoked
            .iter()
            .filter(|(_, r)| r.until.is_some_and(|until| until < now));
        let revoked = revoked.map(|(what, _)| Write::Revoked(what.clone(), None));
        tokens.chain(registrations).chain(revoked).collect()
    }
}

fn put<V>(map: &mut BTreeMap<String, V>, key: String, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
