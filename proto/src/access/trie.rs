//! Many path patterns at once: the lowest number of those that match a path.
//!
//! One step a segment; where a literal and a placeholder both fit, both are followed, unless everything below has a
//! higher number than what was found. The depth is bounded by the longest pattern, the steps by the number of nodes.

use std::collections::HashMap;

use super::compile::{Compiled, Segment, Template, split};
use super::index::Ask;

#[derive(Debug)]
pub(super) struct Trie {
    methods: HashMap<Box<str>, u32>,
    /// The lowest of the rules that opaque bytes match.
    opaque: u32,
    /// Rules without paths.
    everywhere: Slot,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    literals: HashMap<Box<str>, usize>,
    any: Option<usize>,
    /// Patterns that end here.
    end: Slot,
    /// Patterns that go on with `*`.
    tail: Slot,
    /// No rule here or below has a lower number.
    lowest: u32,
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
            nodes: vec![Node::new()],
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
                trie.insert(template, &methods, number);
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
        if let Some(rest) = ask.path.and_then(|path| path.strip_prefix('/')) {
            self.walk(0, Some(rest), method, best);
        }
    }

    fn walk(&self, node: usize, rest: Option<&str>, method: Option<u32>, best: &mut u32) {
        let Some(node) = self.nodes.get(node).filter(|node| node.lowest < *best) else {
            return;
        };
        let Some(rest) = rest else {
            return node.end.lower(method, best);
        };
        let (head, next) = split(rest);
        if !rest.is_empty() {
            node.tail.lower(method, best);
        }
        if let Some(&child) = node.literals.get(head) {
            self.walk(child, next, method, best);
        }
        if let Some(child) = node.any.filter(|_| !head.is_empty()) {
            self.walk(child, next, method, best);
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

    fn insert(&mut self, template: &Template, methods: &[Option<u32>], number: u32) {
        let mut at = 0;
        for segment in &template.segments {
            let new = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at) else { return };
            node.lowest = node.lowest.min(number);
            at = match segment {
                Segment::Literal(literal) => *node.literals.entry(literal.clone()).or_insert(new),
                Segment::Any => *node.any.get_or_insert(new),
            };
            if at == new {
                self.nodes.push(Node::new());
            }
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.lowest = node.lowest.min(number);
            let slot = if template.tail { &mut node.tail } else { &mut node.end };
            slot.add(methods, number);
        }
    }
}

impl Node {
    fn new() -> Self {
        Self {
            literals: HashMap::new(),
            any: None,
            end: Slot::default(),
            tail: Slot::default(),
            lowest: u32::MAX,
        }
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
