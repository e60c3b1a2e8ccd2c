//! What a route may say apart from its matches: names, edits of fields, other paths.

use std::collections::HashSet;

use crate::model::{Action, FieldError, HeaderEdits, NewPath, PathMatch, Route};
use crate::paths::normalise;

/// Longest name of a route, in bytes; it is a label of metrics.
const LONGEST_NAME: usize = 128;
/// Longest name and value of a field that an edit brings, in bytes.
const LONGEST_FIELD: usize = 8 << 10;

pub(super) fn names(routes: &[Route]) -> Result<(), FieldError> {
    let mut seen = HashSet::new();
    for (i, route) in routes.iter().enumerate() {
        let why = match &*route.name {
            "" => "it is empty".to_owned(),
            name if name.len() > LONGEST_NAME => format!("it is longer than {LONGEST_NAME} bytes"),
            name if name.chars().any(char::is_control) => "it has a control character".to_owned(),
            name if !seen.insert(name) => format!("another route is called `{name}`"),
            _ => continue,
        };
        return Err(FieldError::new(format!("routes[{i}].name"), why));
    }
    Ok(())
}

pub(super) fn route(route: &Route) -> Result<(), FieldError> {
    edits(&route.request_headers).map_err(|e| e.under("request_headers"))?;
    edits(&route.response_headers).map_err(|e| e.under("response_headers"))?;
    match &route.action {
        Action::Forward(forward) => {
            let authority = forward.authority.as_deref().map_or(Ok(()), authority);
            authority.map_err(|e| e.under("forward"))?;
            new_path(route, forward.path.as_ref()).map_err(|e| e.under("forward"))
        }
        Action::Redirect(redirect) => {
            let authority = redirect.authority.as_deref().map_or(Ok(()), authority);
            authority.map_err(|e| e.under("redirect"))?;
            let scheme = redirect.scheme.as_deref();
            if let Some(scheme) = scheme.filter(|s| !matches!(*s, "http" | "https")) {
                let why = format!("`{scheme}` is neither http nor https");
                return Err(FieldError::new("redirect.scheme", why));
            }
            new_path(route, redirect.path.as_ref()).map_err(|e| e.under("redirect"))?;
            match redirect.scheme.is_none() && redirect.authority.is_none() && redirect.path.is_none() {
                true => Err(FieldError::new("redirect", "it leads to the same place again")),
                false => Ok(()),
            }
        }
        Action::Respond(answer) => {
            let bodiless = matches!(answer.status, 204 | 205 | 304);
            if bodiless && !answer.body.is_empty() {
                let why = format!("an answer {} has no body (RFC 9110 §6.4.1)", answer.status);
                return Err(FieldError::new("respond.body", why));
            }
            value(&answer.content_type).map_err(|why| FieldError::new("respond.content_type", why))
        }
    }
}

fn authority(text: &str) -> Result<(), FieldError> {
    super::host::Pattern::new(text)
        .ok()
        .filter(|_| !text.starts_with('*'))
        .map(|_| ())
        .ok_or_else(|| FieldError::new("authority", format!("`{text}` is neither `name` nor `name:port`")))
}

fn new_path(route: &Route, path: Option<&NewPath>) -> Result<(), FieldError> {
    let text = match path {
        None => return Ok(()),
        Some(NewPath::Full(text) | NewPath::Prefix(text)) => text,
    };
    normalise(text).map_err(|why| FieldError::new("path", format!("`{text}`: {why}")))?;
    if matches!(path, Some(NewPath::Prefix(_))) {
        let prefix = |m: &crate::model::Match| matches!(m.path, Some(PathMatch::Prefix(_)));
        if route.matches.is_empty() || !route.matches.iter().all(prefix) {
            return Err(FieldError::new(
                "path",
                "a prefix takes the place of the prefix that matched, and a match has none",
            ));
        }
    }
    Ok(())
}

fn edits(edits: &HeaderEdits) -> Result<(), FieldError> {
    for (list, what) in [(&edits.set, "set"), (&edits.add, "add")] {
        for (i, (field, text)) in list.iter().enumerate() {
            editable(field).map_err(|why| FieldError::new(format!("{what}[{i}].name"), why))?;
            value(text).map_err(|why| FieldError::new(format!("{what}[{i}].value"), why))?;
        }
    }
    for (i, field) in edits.remove.iter().enumerate() {
        editable(field).map_err(|why| FieldError::new(format!("remove[{i}]"), why))?;
    }
    Ok(())
}

/// Fields of one hop (RFC 9110 §7.6.1), framing, the mesh's own, and the authority are not for edits.
fn editable(field: &str) -> Result<(), String> {
    name(field).map_err(|why| format!("`{field}` {why}"))?;
    let lower = field.to_ascii_lowercase();
    let why = match &*lower {
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" => {
            "belongs to one connection"
        }
        "content-length" | "expect" => "says how the message is sent",
        "host" => "is the authority; rewrite `host` instead",
        "grpc-timeout" => "is the mesh's to shorten; set `timeout` instead",
        "grpc-status" | "grpc-message" | "grpc-status-details-bin" => "is how a gRPC call ended",
        lower if lower.starts_with("outrigger-") => "is the mesh's own",
        _ => return Ok(()),
    };
    Err(format!("`{field}` {why}"))
}

/// RFC 9110 §5.1, §5.6.2: a token.
pub(super) fn name(text: &str) -> Result<(), &'static str> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    match text.is_empty() || text.len() > LONGEST_FIELD || !text.bytes().all(token) {
        true => Err("is not the name of a field"),
        false => Ok(()),
    }
}

/// RFC 9110 §5.5: visible, no white space at the ends, no control character.
fn value(text: &str) -> Result<(), String> {
    let legal = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
    let shown: String = text.chars().take(80).collect();
    if text.len() > LONGEST_FIELD || !text.bytes().all(legal) || text.trim() != text {
        return Err(format!("`{}` is not the value of a field", shown.escape_debug()));
    }
    Ok(())
}
