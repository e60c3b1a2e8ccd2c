//! Path patterns: exact paths, prefixes of whole segments, templates, and the paths of gRPC methods.

use super::normalise::normalise;

/// Longest path pattern, in bytes.
const LONGEST_PATTERN: usize = 2048;
/// Most segments of a pattern; also the deepest that a look-up recurses.
const MOST_SEGMENTS: usize = 128;

/// A path pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) segments: Vec<Segment>,
    /// What may follow them.
    pub(crate) end: End,
}

/// What one segment of a path has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Exactly this, in normal form.
    Literal(Box<str>),
    /// Anything that is not empty.
    Any,
}

/// What may follow the segments of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing.
    Here,
    /// One segment or more, not empty.
    Tail,
    /// Nothing, or anything after a slash.
    Below,
}

impl Template {
    /// `/exact`, `/users/{id}`, `/static/*`.
    pub(crate) fn path(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| wrong(text, why);
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
        Ok(Self {
            segments,
            end: if tail { End::Tail } else { End::Here },
        })
    }

    /// Exactly this path.
    pub(crate) fn exact(text: &str) -> Result<Self, String> {
        Self::literal(text, End::Here)
    }

    /// This path and what is below it; a slash at its end changes nothing.
    pub(crate) fn prefix(text: &str) -> Result<Self, String> {
        let mut template = Self::literal(text, End::Below)?;
        template
            .segments
            .pop_if(|last| matches!(last, Segment::Literal(text) if text.is_empty()));
        Ok(template)
    }

    fn literal(text: &str, end: End) -> Result<Self, String> {
        if text.len() > LONGEST_PATTERN {
            return Err(wrong(text, &format!("is longer than {LONGEST_PATTERN} bytes")));
        }
        let normal = normalise(text).map_err(|why| wrong(text, &format!("can match nothing: {why}")))?;
        let segments: Vec<_> = normal.split('/').skip(1).map(|s| Segment::Literal(s.into())).collect();
        match segments.len() {
            0..=MOST_SEGMENTS => Ok(Self { segments, end }),
            _ => Err(wrong(text, &format!("has more than {MOST_SEGMENTS} segments"))),
        }
    }

    /// `package.Service/Method` or `package.Service/*`.
    pub(crate) fn grpc(text: &str) -> Result<Self, String> {
        let wrong = || wrong(text, "is not `package.Service/Method` or `package.Service/*`");
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
            end: End::Here,
        })
    }

    const fn any_tail() -> Self {
        Self {
            segments: Vec::new(),
            end: End::Tail,
        }
    }

    /// Whether `path`, in normal form, is one of those that the pattern means.
    pub(crate) fn matches(&self, path: &str) -> bool {
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
        match self.end {
            End::Here => rest.is_none(),
            End::Tail => rest.is_some_and(|more| !more.is_empty()),
            End::Below => true,
        }
    }
}

/// The first segment, and what follows the slash behind it.
pub(crate) fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((head, rest)) => (head, Some(rest)),
        None => (path, None),
    }
}

fn wrong(text: &str, why: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    format!("`{shown}` {why}")
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
