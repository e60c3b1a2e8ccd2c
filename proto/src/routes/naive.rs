//! The same decision, compared as the documentation says it, in the most direct way. For tests.

use super::{Asked, Found};
use crate::model::{FieldMatch, Match, PathMatch, ValueMatch};
use crate::paths::{Ambiguous, normalise};

/// What [`Routes::find`](super::Routes::find) has to say for these lists of matches, all of them valid.
///
/// # Errors
/// As the original.
pub fn find(lists: &[&[Match]], asked: &Asked<'_>) -> Result<Option<Found>, Ambiguous> {
    let path = match (asked.method, asked.path) {
        ("OPTIONS", "*") => None,
        (_, path) => Some(normalise(path).map(|p| p.into_owned())),
    };
    for (route, list) in lists.iter().enumerate() {
        if list.is_empty() {
            return Ok(Some(Found { route, segments: 0 }));
        }
        for m in *list {
            if !m.hosts.is_empty() && !m.hosts.iter().any(|h| host(h, asked.host)) {
                continue;
            }
            if m.path.is_some() || !m.grpc.is_empty() {
                match &path {
                    None => continue,
                    Some(Err(why)) => return Err(*why),
                    Some(Ok(path)) if !fits_path(m, path, asked.method) => continue,
                    Some(Ok(_)) => {}
                }
            }
            let methods = m.methods.is_empty() || m.methods.iter().any(|x| x == asked.method);
            let headers = m.headers.iter().all(|f| {
                let value = (asked.field)(&f.name).map(<[u8]>::to_vec);
                fits(&f.value, value)
            });
            if methods && headers && m.query.iter().all(|f| parameter(f, asked.query)) {
                let segments = match &m.path {
                    Some(PathMatch::Prefix(p)) => p.split('/').filter(|s| !s.is_empty()).count(),
                    _ => 0,
                };
                return Ok(Some(Found { route, segments }));
            }
        }
    }
    Ok(None)
}

fn host(pattern: &str, asked: Option<&str>) -> bool {
    let Some(asked) = asked else { return false };
    let split = |text: &str| {
        let text = text.to_ascii_lowercase();
        let (name, port) = match text.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((name, port)) => (name.to_owned(), Some(port.to_owned())),
            None => (text, None),
        };
        (name.strip_suffix('.').unwrap_or(&name).to_owned(), port)
    };
    let ((name, port), (wanted, wanted_port)) = (split(asked), split(pattern));
    if name.len() + port.as_ref().map_or(0, |port| 1 + port.len()) > 261 {
        return false; // no name is so long
    }
    let named = match wanted.strip_prefix('*') {
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => name == wanted,
    };
    named && (wanted_port.is_none() || wanted_port == port)
}

fn fits_path(m: &Match, path: &str, method: &str) -> bool {
    let grpc = |name: &String| match name.strip_suffix("/*") {
        Some(service) => {
            let rest = path.strip_prefix(&format!("/{service}/"));
            rest.is_some_and(|method| !method.is_empty() && !method.contains('/'))
        }
        None => path == format!("/{name}"),
    };
    let normal = |text: &str| normalise(text).map(|p| p.into_owned()).unwrap_or_default();
    match &m.path {
        None => method == "POST" && m.grpc.iter().any(grpc),
        Some(PathMatch::Exact(text)) => path == normal(text),
        Some(PathMatch::Prefix(text)) => {
            let prefix = normal(text);
            let prefix = prefix.strip_suffix('/').unwrap_or(&prefix);
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some(PathMatch::Template(text)) => {
            let (wanted, rest) = match text.strip_suffix("/*") {
                Some(wanted) => (wanted, true),
                None => (text.as_str(), false),
            };
            let wanted: Vec<_> = wanted.split('/').collect();
            let path: Vec<_> = path.split('/').collect();
            let enough = match rest {
                true => path.len() > wanted.len() && !path[wanted.len()].is_empty(),
                false => path.len() == wanted.len(),
            };
            enough
                && wanted.iter().zip(&path).all(|(w, p)| match w.starts_with('{') {
                    true => !p.is_empty(),
                    false => normal(&format!("/{w}")) == format!("/{p}"),
                })
        }
        Some(PathMatch::Regex(text)) => fits(&ValueMatch::Regex(text.clone()), Some(path.into())),
    }
}

fn fits(wanted: &ValueMatch, value: Option<Vec<u8>>) -> bool {
    match (wanted, value) {
        (ValueMatch::Absent, value) => value.is_none(),
        (_, None) => false,
        (ValueMatch::Present, Some(_)) => true,
        (ValueMatch::Exact(text), Some(value)) => text.as_bytes() == value,
        (ValueMatch::Prefix(text), Some(value)) => value.starts_with(text.as_bytes()),
        (ValueMatch::Suffix(text), Some(value)) => value.ends_with(text.as_bytes()),
        (ValueMatch::Regex(text), Some(value)) => {
            regex::bytes::Regex::new(&format!("(?-u)^(?:{text})$")).is_ok_and(|regex| regex.is_match(&value))
        }
    }
}

fn parameter(wanted: &FieldMatch, query: Option<&str>) -> bool {
    let decode = |text: &str| {
        let text = text.replace('+', " ").into_bytes();
        let (mut out, mut i) = (Vec::new(), 0);
        while i < text.len() {
            let digits = text.get(i + 1..i + 3).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
            match digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap_or(""), 16).ok()) {
                Some(byte) if text[i] == b'%' => {
                    out.push(byte);
                    i += 3;
                }
                _ => {
                    out.push(text[i]);
                    i += 1;
                }
            }
        }
        out
    };
    let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
    let value = pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(name, _)| decode(name) == wanted.name.as_bytes())
        .map(|(_, value)| decode(value));
    fits(&wanted.value, value)
}
