//! Finds the first rule that matches without looking at those of other callers and other ports.
//!
//! Rules are filed by caller (a rule with several stands in several places), then by port. What is left is a short
//! list, compared one by one, or, when it is long, a [`Trie`] of paths. Maps are std's: keys come from callers, so
//! the hash is keyed (SipHash).

use std::collections::{HashMap, HashSet};

use super::Call;
use super::compile::Compiled;
use super::trie::Trie;
use crate::model::{FieldError, Principal, SpiffeId};

/// From this number of rules on, a trie is faster than comparing.
const MANY: usize = 9;

/// The rules' places, by number in document order.
#[derive(Debug, Default)]
pub(super) struct Index {
    ids: HashMap<Box<str>, ByPort>,
    namespaces: HashMap<Box<str>, ByPort>,
    domains: HashMap<Box<str>, ByPort>,
    authenticated: ByPort,
    unauthenticated: ByPort,
    /// Ports that rules with paths name.
    path_ports: HashSet<Box<str>>,
    /// A rule with paths names no port.
    paths_everywhere: bool,
}

/// A request, with its path in normal form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'c> {
    pub(super) method: &'c str,
    /// `None`: no rule with paths matches.
    pub(super) path: Option<&'c str>,
}

/// The rules of one kind of caller.
#[derive(Debug, Default)]
struct ByPort {
    any: Bucket,
    named: HashMap<Box<str>, Bucket>,
}

/// Rules that differ in methods and paths only.
#[derive(Debug)]
enum Bucket {
    /// Ascending.
    Few(Vec<u32>),
    Many(Box<Trie>),
}

impl Default for Bucket {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Index {
    pub(super) fn new(rules: &[Compiled], own: &str) -> Result<Self, FieldError> {
        let mut index = Self::default();
        for (i, rule) in (0_u32..).zip(rules) {
            if !rule.paths.is_empty() {
                index.paths_everywhere |= rule.ports.is_empty();
                index.path_ports.extend(rule.ports.iter().cloned());
            }
            for principal in &rule.from {
                index.place(principal, own)?.add(i, &rule.ports);
            }
        }
        let places = [&mut index.authenticated, &mut index.unauthenticated];
        let maps = [&mut index.ids, &mut index.namespaces, &mut index.domains];
        for place in places.into_iter().chain(maps.into_iter().flat_map(HashMap::values_mut)) {
            place.seal(rules);
        }
        Ok(index)
    }

    fn place(&mut self, principal: &Principal, own: &str) -> Result<&mut ByPort, FieldError> {
        let of = |map, key: &str| HashMap::<Box<str>, ByPort>::entry(map, key.into()).or_default();
        Ok(match principal {
            Principal::Unauthenticated => &mut self.unauthenticated,
            Principal::Authenticated => &mut self.authenticated,
            Principal::TrustDomain(domain) => of(&mut self.domains, domain),
            Principal::Namespace(namespace) => of(&mut self.namespaces, namespace),
            Principal::Service(service) => of(&mut self.ids, SpiffeId::new(own, service)?.as_str()),
            Principal::Id(id) => of(&mut self.ids, id.as_str()),
        })
    }

    pub(super) fn any_paths(&self) -> bool {
        self.paths_everywhere || !self.path_ports.is_empty()
    }

    /// Whether a rule with paths could decide for `port`.
    pub(super) fn paths_on(&self, port: &str) -> bool {
        self.paths_everywhere || self.path_ports.contains(port)
    }

    /// The first rule that matches.
    pub(super) fn first(&self, rules: &[Compiled], own: &str, call: &Call<'_>, ask: Option<&Ask<'_>>) -> Option<usize> {
        let places = match call.caller {
            None => [Some(&self.unauthenticated), None, None, None],
            Some(id) => {
                let domain = id.trust_domain();
                let home = Some(id.service().namespace()).filter(|_| domain == own);
                [
                    Some(&self.authenticated),
                    self.ids.get(id.as_str()),
                    home.and_then(|namespace| self.namespaces.get(namespace)),
                    self.domains.get(domain),
                ]
            }
        };
        let mut best = u32::MAX;
        for place in places.into_iter().flatten() {
            place.any.first(rules, ask, &mut best);
            if let Some(bucket) = place.named.get(call.port) {
                bucket.first(rules, ask, &mut best);
            }
        }
        usize::try_from(best).ok().filter(|best| *best < rules.len())
    }
}

impl ByPort {
    fn add(&mut self, rule: u32, ports: &[Box<str>]) {
        if ports.is_empty() {
            self.any.add(rule);
        }
        for port in ports {
            self.named.entry(port.clone()).or_default().add(rule);
        }
    }

    fn seal(&mut self, rules: &[Compiled]) {
        self.any.seal(rules);
        self.named.values_mut().for_each(|bucket| bucket.seal(rules));
    }
}

impl Bucket {
    fn add(&mut self, rule: u32) {
        if let Self::Few(list) = self
            && list.last() != Some(&rule)
        {
            list.push(rule);
        }
    }

    fn seal(&mut self, rules: &[Compiled]) {
        if let Self::Few(list) = self {
            list.shrink_to_fit();
            if list.len() >= MANY {
                *self = Self::Many(Box::new(Trie::new(list, rules)));
            }
        }
    }

    /// Lowers `best` to this bucket's first match.
    fn first(&self, rules: &[Compiled], ask: Option<&Ask<'_>>, best: &mut u32) {
        let list = match self {
            Self::Few(list) => list,
            Self::Many(trie) => return trie.first(ask, best),
        };
        for &number in list.iter().take_while(|n| **n < *best) {
            let fits = usize::try_from(number)
                .ok()
                .and_then(|i| rules.get(i))
                .is_some_and(|rule| match ask {
                    Some(ask) => rule.takes_method(ask.method) && rule.takes_path(ask.path),
                    None => rule.takes_opaque(),
                });
            if fits {
                *best = number;
                return;
            }
        }
    }
}
