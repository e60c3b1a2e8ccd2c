//! Many rules at once: the lowest number of those whose methods and paths match.

use std::collections::HashMap;

use super::compile::Compiled;
use super::index::Ask;
use crate::paths::Trie as Paths;

#[derive(Debug)]
pub(super) struct Trie {
    methods: HashMap<Box<str>, u32>,
    /// The lowest of the rules that opaque bytes match.
    opaque: u32,
    /// Rules without paths.
    everywhere: Slot,
    paths: Paths<Slot>,
}

/// The lowest rule of each method; `None` is any method.
#[derive(Debug, Default)]
struct Slot(Vec<(Option<u32>, u32)>);

impl Trie {
    /// Of the rules with the numbers in `list`, ascending.
    pub(super) fn new(list: &[u32], rules: &[Compiled]) -> Self {
        let mut trie = Self {
            methods: HashMap::new(),
            opaque: u32::MAX,
            everywhere: Slot::default(),
            paths: Paths::default(),
        };
        for &number in list {
            let Some(rule) = usize::try_from(number).ok().and_then(|i| rules.get(i)) else {
                continue;
            };
            if rule.takes_opaque() {
                trie.opaque = trie.opaque.min(number);
            }
            let methods = trie.methods_of(rule);
            if rule.paths.is_empty() {
                trie.everywhere.add(&methods, number);
            }
            for template in &rule.paths {
                if let Some(slot) = trie.paths.place(template, number) {
                    slot.add(&methods, number);
                }
            }
        }
        trie
    }

    /// Lowers `best` to the first rule that matches.
    pub(super) fn first(&self, ask: Option<&Ask<'_>>, best: &mut u32) {
        let Some(ask) = ask else {
            *best = self.opaque.min(*best);
            return;
        };
        let method = self.methods.get(ask.method).copied();
        self.everywhere.lower(method, best);
        if let Some(path) = ask.path {
            self.paths.lower(path, best, &|slot, best| slot.lower(method, best));
        }
    }

    fn methods_of(&mut self, rule: &Compiled) -> Vec<Option<u32>> {
        if rule.methods.is_empty() {
            return vec![None];
        }
        let mut number = |method: &str| {
            let next = u32::try_from(self.methods.len()).unwrap_or(u32::MAX);
            Some(*self.methods.entry(method.into()).or_insert(next))
        };
        rule.methods.iter().map(|method| number(method)).collect()
    }
}

impl Slot {
    /// Numbers arrive ascending, so the first of a method stays.
    fn add(&mut self, methods: &[Option<u32>], number: u32) {
        for method in methods {
            if !self.0.iter().any(|(known, _)| known == method) {
                self.0.push((*method, number));
            }
        }
    }

    fn lower(&self, method: Option<u32>, best: &mut u32) {
        for &(wanted, number) in &self.0 {
            if number < *best && (wanted.is_none() || wanted == method) {
                *best = number;
            }
        }
    }
}
