//! Text to a tree in which every key and value knows where it stands.
//!
//! serde alone stops at the first mistake and knows no position inside untagged values; this reads the parser's events
//! instead. It refuses tags and, by a bound on nodes, documents that grow by aliases.

use std::collections::HashMap;
use std::ops::Range;

use serde_saphyr::granit_parser::{self as yaml, Event, Parser, ScalarStyle};

/// Where something stands: bytes of the text, and line and column from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) bytes: Range<usize>,
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// With the text as written, without quotes.
    Scalar(String, Scalar),
    List(Vec<Node>),
    /// In the order of the file; keys may repeat here.
    Map(Vec<(Key, Node)>),
}

/// What a plain scalar means in YAML's core schema; quoted ones are text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Float,
    Text,
}

/// A key and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) span: Span,
}

/// What is wrong with the text as YAML.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) span: Span,
    pub(super) message: String,
}

impl Node {
    /// The value under `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|(_, node)| node)
    }

    /// The key and value under `key`.
    pub(super) fn entry(&self, key: &str) -> Option<(&Key, &Self)> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(k, node)| (k, node)),
            _ => None,
        }
    }

    /// The span of the value at `path` (keys and list positions), or of the deepest that exists.
    pub(super) fn at(&self, path: &[&str]) -> &Span {
        &self.inside(path).span
    }

    /// The value at `path`, or the deepest that exists.
    pub(super) fn inside(&self, path: &[&str]) -> &Self {
        let Some((first, rest)) = path.split_first() else {
            return self;
        };
        let next = match &self.kind {
            Kind::List(items) => first.parse().ok().and_then(|i: usize| items.get(i)),
            _ => self.get(first),
        };
        next.map_or(self, |node| node.inside(rest))
    }

    /// The keys of a map, in the order of the file.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        let entries = match &self.kind {
            Kind::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(key, _)| key)
    }

    /// True for `key:` with nothing behind it, `~` and `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Scalar(_, Scalar::Null))
    }
}

/// Reads every document; those before a mistake are kept.
pub(super) fn read(text: &str) -> (Vec<Node>, Option<Malformed>) {
    let mut builder = Builder {
        text,
        documents: Vec::new(),
        open: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
    };
    for next in Parser::new_from_str(text) {
        let step = match next {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => Err(Malformed {
                span: point(text, error.marker()),
                message: format!("not YAML: {}", error.info()),
            }),
        };
        if let Err(malformed) = step {
            return (builder.documents, Some(malformed));
        }
    }
    (builder.documents, None)
}

/// More than any mesh.yaml needs; aliases of aliases reach it fast.
const MAX_NODES: usize = 200_000;

struct Builder<'a> {
    text: &'a str,
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

/// A collection whose end has not come.
struct Open {
    span: Span,
    anchor: usize,
    nodes_before: usize,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &yaml::Span) -> Result<(), Malformed> {
        let span = self.span(span);
        match event {
            Event::Scalar(value, style, anchor, tag) => {
                if let Some(tag) = tag {
                    return Err(malformed(&span, format!("the tag `{tag}` is not supported")));
                }
                let meaning = if style == ScalarStyle::Plain {
                    meaning(&value)
                } else {
                    Scalar::Text
                };
                let node = Node {
                    span,
                    kind: Kind::Scalar(value.into_owned(), meaning),
                };
                self.add(node, anchor, 1)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(span, anchor, tag.map(|t| t.to_string()), Items::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.begin(span, anchor, tag.map(|t| t.to_string()), Items::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(&span),
            Event::Alias(id) => match self.anchors.get(&id) {
                Some((node, size)) if self.nodes.saturating_add(*size) <= MAX_NODES => {
                    let (mut node, size) = (node.clone(), *size);
                    node.span = span;
                    self.add(node, 0, size)
                }
                Some(_) => Err(malformed(&span, "too large: aliases multiply it".to_owned())),
                None => Err(malformed(&span, "this alias refers to itself".to_owned())),
            },
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, span: Span, anchor: usize, tag: Option<String>, items: Items) -> Result<(), Malformed> {
        if let Some(tag) = tag {
            return Err(malformed(&span, format!("the tag `{tag}` is not supported")));
        }
        self.open.push(Open {
            span,
            anchor,
            nodes_before: self.nodes,
            items,
        });
        Ok(())
    }

    fn end(&mut self, end: &Span) -> Result<(), Malformed> {
        let Some(Open {
            mut span,
            anchor,
            nodes_before,
            items,
        }) = self.open.pop()
        else {
            return Ok(());
        };
        // A block collection's end is the next token's start; white space before it is not part of it.
        let until = end.bytes.end.max(span.bytes.start);
        let inner = self.text.get(span.bytes.start..until).unwrap_or_default();
        span.bytes.end = span.bytes.start + inner.trim_end().len();
        let kind = match items {
            Items::List(items) => Kind::List(items),
            Items::Map(entries, _) => Kind::Map(entries),
        };
        let size = self.nodes - nodes_before + 1;
        self.add(Node { span, kind }, anchor, size)?;
        // The children were counted as they came.
        self.nodes -= size - 1;
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Malformed> {
        self.nodes = self.nodes.saturating_add(size);
        if self.nodes > MAX_NODES {
            return Err(malformed(
                &node.span,
                format!("too large: more than {MAX_NODES} values"),
            ));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut().map(|open| &mut open.items) {
            None => self.documents.push(node),
            Some(Items::List(items)) => items.push(node),
            Some(Items::Map(entries, waiting)) => match (waiting.take(), node) {
                (Some(key), node) => entries.push((key, node)),
                (
                    None,
                    Node {
                        span,
                        kind: Kind::Scalar(text, _),
                    },
                ) => *waiting = Some(Key { text, span }),
                (None, node) => return Err(malformed(&node.span, "a key must be a word".to_owned())),
            },
        }
        Ok(())
    }

    fn span(&self, span: &yaml::Span) -> Span {
        let from = point(self.text, &span.start);
        let to = point(self.text, &span.end).bytes.start;
        Span {
            bytes: from.bytes.start..to.max(from.bytes.start),
            ..from
        }
    }
}

fn malformed(span: &Span, message: String) -> Malformed {
    Malformed {
        span: span.clone(),
        message,
    }
}

/// The parser's place in bytes; snapped to a character, since a report must never panic on the way out.
fn point(text: &str, marker: &yaml::Marker) -> Span {
    let byte = marker
        .byte_offset()
        .unwrap_or_else(|| text.char_indices().nth(marker.index()).map_or(text.len(), |(at, _)| at));
    let at = text.floor_char_boundary(byte.min(text.len()));
    Span {
        bytes: at..at,
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// YAML 1.2's core schema (§10.3.2), without octal and special floats.
fn meaning(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "true" | "True" | "TRUE" => Scalar::Bool(true),
        "false" | "False" | "FALSE" => Scalar::Bool(false),
        _ => text.parse::<i64>().map_or_else(
            |_| {
                let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
                if numeric && text.parse::<f64>().is_ok() {
                    Scalar::Float
                } else {
                    Scalar::Text
                }
            },
            Scalar::Int,
        ),
    }
}
