//! Compares a document with its schema and notes every unknown key, wrong type and number out of range.
//!
//! Returns the document as JSON in the types the schema asks for (`8080` where text is wanted becomes `"8080"`), less
//! what was refused, so that later checks can still speak about the rest. It understands exactly the parts of JSON
//! Schema that schemars makes of our raw types.

use serde_json::{Map, Value};

use super::codes;
use super::explain::resolve;
use super::suggest::{closest, did_you_mean};
use super::tree::{Kind, Node, Scalar, Span};
use super::whole::Report;

/// Checks `node` against `schema`; none when it was refused or is null.
pub(super) fn check(node: &Node, schema: &Value, path: &str, report: &mut Report) -> Option<Value> {
    let schema = resolve(schema);
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        return match branches.iter().map(resolve).find(|branch| fits(node, branch)) {
            Some(branch) => check(node, branch, path, report),
            None => refuse(node, schema, path, report),
        };
    }
    if node.is_null() {
        return None;
    }
    if !fits(node, schema) {
        return refuse(node, schema, path, report);
    }
    match &node.kind {
        Kind::Map(_) => Some(Value::Object(map(node, schema, path, report))),
        Kind::List(items) => {
            let inner = schema.get("items").unwrap_or(&Value::Null);
            let items = items.iter().enumerate().filter_map(|(i, item)| {
                let path = format!("{path}[{i}]");
                if item.is_null() {
                    report.at(&item.span, format!("`{path}` is empty"));
                    return None;
                }
                check(item, inner, &path, report)
            });
            Some(Value::Array(items.collect()))
        }
        Kind::Scalar(text, meaning) => scalar(node, text, *meaning, schema, path, report),
    }
}

fn map(node: &Node, schema: &Value, path: &str, report: &mut Report) -> Map<String, Value> {
    let Kind::Map(entries) = &node.kind else {
        return Map::new();
    };
    let known = schema.get("properties").and_then(Value::as_object);
    let free = schema.get("additionalProperties").filter(|inner| inner.is_object());
    let mut seen: Vec<(&str, &Span)> = Vec::new();
    let mut out = Map::new();
    for (key, value) in entries {
        if let Some((_, first)) = seen.iter().find(|(text, _)| *text == key.text) {
            let error = report.error(&key.span, format!("`{}` stands twice", key.text));
            report.push(error.label("again here").also(first, "first here"));
            continue;
        }
        seen.push((&key.text, &key.span));
        let inner_path = if path.is_empty() {
            key.text.clone()
        } else {
            format!("{path}.{}", key.text)
        };
        match (known.and_then(|known| known.get(&key.text)), free) {
            (Some(inner), _) | (None, Some(inner)) => {
                if let Some(value) = check(value, inner, &inner_path, report) {
                    out.insert(key.text.clone(), value);
                }
            }
            (None, None) => {
                let names = || known.into_iter().flat_map(Map::keys).map(String::as_str);
                let help = did_you_mean(&key.text, names())
                    .unwrap_or_else(|| format!("known here: {}", names().collect::<Vec<_>>().join(", ")));
                let place = if path.is_empty() {
                    String::new()
                } else {
                    format!(" in `{path}`")
                };
                let error = report.error(&key.span, format!("unknown key `{}`{place}", key.text));
                report.push(error.label("not known").help(help));
            }
        }
    }
    for required in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let given = entries
            .iter()
            .any(|(key, value)| key.text == required && !value.is_null());
        // A slip in the key has been reported already, with this very key as the hint.
        let slip = entries.iter().any(|(key, _)| {
            known.is_some_and(|known| !known.contains_key(&key.text)) && closest(&key.text, [required]).is_some()
        });
        if !given && !slip {
            let place = if path.is_empty() {
                String::new()
            } else {
                format!(" in `{path}`")
            };
            report.at(&node.span, format!("`{required}` is missing{place}"));
        }
    }
    out
}

fn scalar(node: &Node, text: &str, meaning: Scalar, schema: &Value, path: &str, report: &mut Report) -> Option<Value> {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        if words.iter().any(|word| word.as_str() == Some(text)) {
            return Some(Value::String(text.to_owned()));
        }
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let error = report.error(&node.span, format!("`{path}` cannot be `{}`", short(text)));
        let help = did_you_mean(text, words.iter().copied())
            .unwrap_or_else(|| format!("one of {} is expected", words.join(", ")));
        report.push(error.label(&format!("one of {}", words.join(", "))).help(help));
        return None;
    }
    match meaning {
        _ if accepts(schema, "string") => Some(Value::String(text.to_owned())),
        Scalar::Bool(value) => Some(Value::Bool(value)),
        Scalar::Int(value) => {
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64).map(|n| n as i64);
            let (min, max) = (
                bound("minimum").unwrap_or(0),
                bound("maximum").unwrap_or(i64::from(u32::MAX)),
            );
            if (min..=max).contains(&value) {
                return Some(Value::from(value));
            }
            let error = report.error(&node.span, format!("`{path}` cannot be {value}"));
            report.push(
                error
                    .label("out of range")
                    .help(format!("from {min} to {max}"))
                    .code(codes::OUT_OF_RANGE),
            );
            None
        }
        _ => refuse(node, schema, path, report),
    }
}

/// True when `node` is of a type that `schema` accepts; an empty value fits what may be null.
fn fits(node: &Node, schema: &Value) -> bool {
    match &node.kind {
        Kind::Map(_) => accepts(schema, "object"),
        Kind::List(_) => accepts(schema, "array"),
        Kind::Scalar(_, Scalar::Null) => accepts(schema, "null"),
        Kind::Scalar(_, Scalar::Bool(_)) => accepts(schema, "boolean") || accepts(schema, "string"),
        Kind::Scalar(_, Scalar::Int(_)) => accepts(schema, "integer") || accepts(schema, "string"),
        Kind::Scalar(_, Scalar::Float | Scalar::Text) => accepts(schema, "string"),
    }
}

fn accepts(schema: &Value, kind: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == kind,
        Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(kind)),
        _ => false,
    }
}

fn refuse(node: &Node, schema: &Value, path: &str, report: &mut Report) -> Option<Value> {
    let found = match &node.kind {
        Kind::Map(_) => "a map".to_owned(),
        Kind::List(_) => "a list".to_owned(),
        Kind::Scalar(_, Scalar::Null) => "nothing".to_owned(),
        Kind::Scalar(text, Scalar::Text) => format!("the text `{}`", short(text)),
        Kind::Scalar(text, _) => format!("`{}`", short(text)),
    };
    let path = if path.is_empty() { "a document" } else { path };
    let expected = expected(schema);
    let error = report.error(&node.span, format!("`{path}` must be {expected}, and is {found}"));
    report.push(error.label(&format!("{expected} is expected")));
    None
}

/// What `schema` accepts, in words.
pub(super) fn expected(schema: &Value) -> String {
    let schema = resolve(schema);
    let mut words: Vec<String> = Vec::new();
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        words.extend(branches.iter().map(expected));
    } else if let Some(choice) = schema.get("enum").and_then(Value::as_array) {
        words.extend(choice.iter().filter_map(Value::as_str).map(str::to_owned));
    } else {
        for (kind, word) in [
            ("boolean", "true or false"),
            ("integer", "a whole number"),
            ("string", "text"),
            ("array", "a list"),
            ("object", "a map"),
        ] {
            if accepts(schema, kind) {
                let duration = schema.get("format").and_then(Value::as_str) == Some("duration");
                words.push(if duration { "a duration" } else { word }.to_owned());
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(" or ")
}

/// At most 40 characters of something that a person wrote.
pub(super) fn short(text: &str) -> String {
    if text.chars().count() <= 40 {
        return text.to_owned();
    }
    text.chars().take(39).chain(['…']).collect()
}
