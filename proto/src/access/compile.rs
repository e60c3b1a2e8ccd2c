//! A rule as written → a rule that can be compared. Everything that is wrong with a rule is found here.

use super::normalise::normalise;
use crate::model::{FieldError, Principal, Rule, name::label};

/// Longest path pattern, in bytes.
const LONGEST_PATTERN: usize = 2048;
/// Most segments of a pattern; also the deepest that a decision recurses.
const MOST_SEGMENTS: usize = 128;
/// Longest method (RFC 9110 §9.1 has no limit).
const LONGEST_METHOD: usize = 64;

/// A valid rule.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) name: Box<str>,
    /// Never empty: nobody named is any identity.
    pub(super) from: Vec<Principal>,
    pub(super) ports: Vec<Box<str>>,
    pub(super) methods: Vec<Box<str>>,
    /// Of `paths` or of `grpc`.
    pub(super) paths: Vec<Template>,
}

/// A path pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) segments: Vec<Segment>,
    /// One segment or more may follow.
    pub(super) tail: bool,
}

/// What one segment of a path has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// Exactly this, in normal form.
    Literal(Box<str>),
    /// Anything that is not empty.
    Any,
}

impl Compiled {
    pub(super) fn new(rule: &Rule) -> Result<Self, FieldError> {
        if !rule.paths.is_empty() && !rule.grpc.is_empty() {
            return Err(FieldError::new(
                "grpc",
                "a rule names paths or gRPC methods, not both: write two rules",
            ));
        }
        let at = |list: &str, i: usize| format!("{list}[{i}]");
        for (i, port) in rule.ports.iter().enumerate() {
            label(port, &at("ports", i))?;
        }
        for (i, method) in rule.methods.iter().enumerate() {
            check_method(method).map_err(|reason| FieldError::new(at("methods", i), reason))?;
        }
        let paths = rule.paths.iter().enumerate();
        let paths = paths.map(|(i, p)| Template::path(p).map_err(|reason| FieldError::new(at("paths", i), reason)));
        let grpc = rule.grpc.iter().enumerate();
        let grpc = grpc.map(|(i, g)| Template::grpc(g).map_err(|reason| FieldError::new(at("grpc", i), reason)));
        let paths = paths.chain(grpc).collect::<Result<Vec<_>, _>>()?;
        let boxed = |list: &[String]| list.iter().map(|s| s.as_str().into()).collect::<Vec<Box<str>>>();
        let mut methods = boxed(&rule.methods);
        if !rule.grpc.is_empty() {
            if !methods.is_empty() && !methods.iter().any(|m| &**m == "POST") {
                return Err(FieldError::new(
                    "methods",
                    "a gRPC call is a POST, so this rule matches nothing",
                ));
            }
            methods = vec!["POST".into()];
        }
        let mut from = rule.from.clone();
        if from.is_empty() {
            from.push(Principal::Authenticated);
        }
        Ok(Self {
            name: rule.name.as_str().into(),
            from,
            ports: boxed(&rule.ports),
            methods,
            paths,
        })
    }

    /// Whether the rule says nothing that only a request has.
    pub(super) fn takes_opaque(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty()
    }

    pub(super) fn takes_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| **m == *method)
    }

    /// `path` in normal form; `None` matches only a rule without paths.
    pub(super) fn takes_path(&self, path: Option<&str>) -> bool {
        self.paths.is_empty() || path.is_some_and(|path| self.paths.iter().any(|t| t.matches(path)))
    }
}

impl Template {
    /// `/exact`, `/users/{id}`, `/static/*`.
    pub(super) fn path(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(80).collect();
            format!("`{shown}` {why}")
        };
        if text.len() > LONGEST_PATTERN {
            return Err(wrong(&format!("is longer than {LONGEST_PATTERN} bytes")));
        }
        let rest = text.strip_prefix('/').ok_or_else(|| wrong("does not start with `/`"))?;
        if text.contains(['?', '#']) {
            return Err(wrong("has a query or a fragment; only paths are compared"));
        }
        let (rest, tail) = match rest.strip_suffix('*') {
            Some("") => return Ok(Self::any_tail()),
            Some(rest) => match rest.strip_suffix('/') {
                Some(rest) => (rest, true),
                None => return Err(wrong("has a `*` that is not a segment of its own")),
            },
            None => (rest, false),
        };
        let mut segments = Vec::new();
        let mut literal = String::new();
        for segment in rest.split('/') {
            if segment.contains('*') {
                return Err(wrong("has a `*` before its end"));
            }
            let named = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            literal.push('/');
            segments.push(match named {
                Some(name) if is_placeholder(name) => {
                    literal.push('x');
                    Segment::Any
                }
                None if !segment.contains(['{', '}']) => {
                    literal.push_str(segment);
                    Segment::Literal(segment.into())
                }
                _ => return Err(wrong("has braces that are not one whole segment such as `{id}`")),
            });
        }
        if segments.len() > MOST_SEGMENTS {
            return Err(wrong(&format!("has more than {MOST_SEGMENTS} segments")));
        }
        // With a name in the place of each placeholder, the pattern has to be a path that nobody misreads.
        if tail {
            literal.push_str("/x");
        }
        let normal = normalise(&literal).map_err(|why| wrong(&format!("can match nothing: {why}")))?;
        for (segment, normal) in segments.iter_mut().zip(normal.split('/').skip(1)) {
            if let Segment::Literal(text) = segment {
                *text = normal.into();
            }
        }
        Ok(Self { segments, tail })
    }

    /// `package.Service/Method` or `package.Service/*`.
    fn grpc(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().take(80).collect();
            format!("`{shown}` is not `package.Service/Method` or `package.Service/*`")
        };
        let (service, method) = text
            .split_once('/')
            .filter(|_| text.len() <= LONGEST_PATTERN)
            .ok_or_else(wrong)?;
        if !service.split('.').all(is_identifier) {
            return Err(wrong());
        }
        let method = match method {
            "*" => Segment::Any,
            name if is_identifier(name) => Segment::Literal(name.into()),
            _ => return Err(wrong()),
        };
        Ok(Self {
            segments: vec![Segment::Literal(service.into()), method],
            tail: false,
        })
    }

    const fn any_tail() -> Self {
        Self {
            segments: Vec::new(),
            tail: true,
        }
    }

    /// Whether `path`, in normal form, is one of those that the pattern means.
    fn matches(&self, path: &str) -> bool {
        let mut rest = path.strip_prefix('/');
        for segment in &self.segments {
            let Some(here) = rest else { return false };
            let (head, next) = split(here);
            let fits = match segment {
                Segment::Literal(literal) => **literal == *head,
                Segment::Any => !head.is_empty(),
            };
            if !fits {
                return false;
            }
            rest = next;
        }
        match rest {
            Some(more) => self.tail && !more.is_empty(),
            None => !self.tail,
        }
    }
}

/// The first segment, and what follows the slash behind it.
pub(super) fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((head, rest)) => (head, Some(rest)),
        None => (path, None),
    }
}

/// A name as Protobuf has them.
fn is_identifier(text: &str) -> bool {
    let start = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    text.as_bytes().first().is_some_and(start) && text.bytes().all(|b| start(&b) || b.is_ascii_digit())
}

fn is_placeholder(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// RFC 9110 §5.6.2, §9.1: a token; methods are case-sensitive and those that exist are upper case.
fn check_method(text: &str) -> Result<(), String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || text.len() > LONGEST_METHOD || !text.bytes().all(token) {
        let shown: String = text.chars().take(80).collect();
        return Err(format!("`{shown}` is not a method"));
    }
    if text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err(format!(
            "`{text}` is not upper case; did you mean `{}`?",
            text.to_ascii_uppercase()
        ));
    }
    if text == "*" {
        return Err("`*` is not needed: a rule without methods matches all".into());
    }
    Ok(())
}
