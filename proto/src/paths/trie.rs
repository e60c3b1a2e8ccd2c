//! Many path patterns at once: the lowest number of those that match a path.
//!
//! One step a segment; where a literal and a placeholder both fit, both are followed, unless everything below has a
//! higher number than what was found. The depth is bounded by the longest pattern, the steps by the number of nodes.
//! Maps are std's: keys come from callers, so the hash is keyed (SipHash).

use std::collections::HashMap;

use super::template::{End, Segment, Template, split};

/// Patterns, and at the end of each what an `S` keeps of those that end there.
#[derive(Debug)]
pub(crate) struct Trie<S> {
    nodes: Vec<Node<S>>,
}

#[derive(Debug)]
struct Node<S> {
    literals: HashMap<Box<str>, usize>,
    any: Option<usize>,
    /// Of patterns that end here.
    here: S,
    /// Of patterns that go on with `*`.
    tail: S,
    /// Of patterns that take what ends here and what goes on.
    below: S,
    /// No number here or below is lower.
    lowest: u32,
}

impl<S: Default> Default for Trie<S> {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

impl<S: Default> Default for Node<S> {
    fn default() -> Self {
        Self {
            literals: HashMap::new(),
            any: None,
            here: S::default(),
            tail: S::default(),
            below: S::default(),
            lowest: u32::MAX,
        }
    }
}

impl<S: Default> Trie<S> {
    /// Where what is known of `number` belongs, which has the pattern `template`.
    pub(crate) fn place(&mut self, template: &Template, number: u32) -> Option<&mut S> {
        let mut at = 0;
        for segment in &template.segments {
            let new = self.nodes.len();
            let node = self.nodes.get_mut(at)?;
            node.lowest = node.lowest.min(number);
            at = match segment {
                Segment::Literal(literal) => *node.literals.entry(literal.clone()).or_insert(new),
                Segment::Any => *node.any.get_or_insert(new),
            };
            if at == new {
                self.nodes.push(Node::default());
            }
        }
        let node = self.nodes.get_mut(at)?;
        node.lowest = node.lowest.min(number);
        Some(match template.end {
            End::Here => &mut node.here,
            End::Tail => &mut node.tail,
            End::Below => &mut node.below,
        })
    }

    /// Lowers `best` to the lowest number with a pattern that matches `path`, which is in normal form; `lower` does it
    /// for those that end in one place.
    pub(crate) fn lower(&self, path: &str, best: &mut u32, lower: &impl Fn(&S, &mut u32)) {
        if let Some(rest) = path.strip_prefix('/') {
            self.walk(0, Some(rest), best, lower);
        }
    }

    fn walk(&self, node: usize, rest: Option<&str>, best: &mut u32, lower: &impl Fn(&S, &mut u32)) {
        let Some(node) = self.nodes.get(node).filter(|node| node.lowest < *best) else {
            return;
        };
        lower(&node.below, best);
        let Some(rest) = rest else {
            return lower(&node.here, best);
        };
        let (head, next) = split(rest);
        if !rest.is_empty() {
            lower(&node.tail, best);
        }
        // Nothing to hash where nothing can be found.
        if !node.literals.is_empty()
            && let Some(&child) = node.literals.get(head)
        {
            self.walk(child, next, best, lower);
        }
        if let Some(child) = node.any.filter(|_| !head.is_empty()) {
            self.walk(child, next, best, lower);
        }
    }
}
