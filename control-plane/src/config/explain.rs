//! The schema of mesh.yaml, and `explain`: both made of the raw types' docs.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::check::expected;
use super::raw;
use super::suggest::closest;

/// What one field means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// For example `health.every`; `ports[].name` for fields of list entries.
    pub field: String,
    /// What it decides.
    pub meaning: String,
    /// What may be written.
    pub kind: String,
    /// What holds when nobody says anything.
    pub default: Option<String>,
    /// Who decides the value, first wins.
    pub set_by: String,
}

/// The JSON schema of a document of mesh.yaml, for editors.
#[must_use]
pub fn schema() -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    let mut defs = DEFS.clone();
    for def in defs.values_mut() {
        rewrite_defaults(def);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mesh.yaml of Outrigger",
        "description": "One document a service; the first document may hold what is common to all.",
        "anyOf": [reference("ServiceDocument"), reference("MeshDocument")],
        "$defs": defs,
    })
}

/// Explains a field by its path: `timeout`, `health.every`, `ports.name`, `defaults.timeout`, `mesh`.
///
/// # Errors
/// When no such field exists: the nearest that does.
pub fn explain(path: &str) -> Result<Explanation, String> {
    let wanted = normal(path);
    let all = fields();
    if let Some(found) = all.iter().find(|field| normal(&field.field) == wanted) {
        return Ok(found.clone());
    }
    let names: Vec<String> = all.iter().map(|field| normal(&field.field)).collect();
    let near = closest(&wanted, names.iter().map(String::as_str)).or_else(|| {
        names
            .iter()
            .map(String::as_str)
            .filter(|name| !name.starts_with("defaults."))
            .find(|name| name.rsplit('.').next() == Some(wanted.as_str()))
    });
    Err(match near {
        Some(name) => format!("no field `{path}`; did you mean `{name}`?"),
        None => format!("no field `{path}`; `outrigger config explain` lists all"),
    })
}

/// Every field, by name within its document.
#[must_use]
pub fn fields() -> Vec<Explanation> {
    let mut out = Vec::new();
    walk(definition("MeshDocument"), "", &mut out);
    walk(definition("ServiceDocument"), "", &mut out);
    // Both documents have `namespace`; the service's own is the one asked for.
    let mesh_own = out.iter().position(|field| field.field == "namespace");
    if let Some(first) = mesh_own
        && let Some(field) = out.get_mut(first)
    {
        field.field = "mesh.namespace".to_owned();
    }
    out
}

/// The definition that the checks read: `MeshDocument` or `ServiceDocument`.
pub(super) fn definition(name: &str) -> &'static Value {
    DEFS.get(name).unwrap_or(&Value::Null)
}

/// Follows a `$ref`, and `anyOf: [x, null]` of an optional part.
pub(super) fn resolve(schema: &Value) -> &Value {
    if let Some(name) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.rsplit('/').next())
    {
        return DEFS.get(name).map_or(schema, resolve);
    }
    if let Some([one, null]) = schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice)
        && null.get("type").and_then(Value::as_str) == Some("null")
    {
        return resolve(one);
    }
    schema
}

static DEFS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    generator.subschema_for::<raw::Mesh>();
    generator.subschema_for::<raw::Service>();
    generator.take_definitions(true)
});

/// `defaults` has no docs of its own: a field there means what it means in a service. Standard `default` is for editors.
fn rewrite_defaults(def: &mut Value) {
    for property in def
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Map::values_mut)
    {
        if let Some(default) = property.get("x-default").cloned()
            && let Some(object) = property.as_object_mut()
        {
            object.remove("x-default");
            let text = default.as_str().unwrap_or_default();
            let meaning = object.get("description").and_then(Value::as_str).unwrap_or_default();
            let meaning = format!("{meaning}\n\nDefault: {text}.");
            object.insert("description".to_owned(), Value::String(meaning));
        }
    }
}

fn walk(schema: &'static Value, prefix: &str, out: &mut Vec<Explanation>) {
    let properties = resolve(schema).get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let field = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let inner = resolve(property);
        // A field of `defaults` is documented where it belongs to.
        let documented = field
            .strip_prefix("defaults.")
            .map_or(property, |own| find("ServiceDocument", own));
        let word = |key: &str| {
            documented
                .get(key)
                .and_then(Value::as_str)
                .map(|text| text.replace('\n', " "))
        };
        out.push(Explanation {
            meaning: match field.starts_with("defaults.") {
                true => format!(
                    "For every service that says nothing itself: {}",
                    word("description").unwrap_or_default()
                ),
                false => word("description").unwrap_or_default(),
            },
            kind: kind(documented),
            default: word("x-default"),
            set_by: set_by(&field).to_owned(),
            field: field.clone(),
        });
        if let Some(inner) = with_fields(inner) {
            walk(inner, &field, out);
        }
        if let Some(items) = inner.get("items").and_then(with_fields) {
            walk(items, &format!("{field}[]"), out);
        }
        if let Some(values) = inner.get("additionalProperties").and_then(with_fields) {
            walk(values, &format!("{field}[NAME]"), out);
        }
    }
}

/// `schema`, or the one of its choices that is a map with known keys.
fn with_fields(schema: &'static Value) -> Option<&'static Value> {
    let schema = resolve(schema);
    let choices = schema.get("anyOf").and_then(Value::as_array).into_iter().flatten();
    std::iter::once(schema)
        .chain(choices.map(resolve))
        .find(|schema| schema.get("properties").is_some())
}

fn find(document: &str, path: &str) -> &'static Value {
    let mut schema = definition(document);
    for part in path.split('.') {
        schema = with_fields(schema)
            .and_then(|schema| schema.get("properties"))
            .and_then(|p| p.get(part))
            .unwrap_or(&Value::Null);
    }
    schema
}

fn kind(schema: &Value) -> String {
    let words = expected(schema);
    let schema = resolve(schema);
    match (
        schema.get("minimum").and_then(Value::as_f64),
        schema.get("maximum").and_then(Value::as_f64),
    ) {
        (Some(min), Some(max)) => format!("{words}, {min} to {max}"),
        _ => words,
    }
}

fn set_by(field: &str) -> &'static str {
    let mesh_document = definition("MeshDocument").get("properties").and_then(Value::as_object);
    let first = field.split('.').next().unwrap_or_default();
    if mesh_document.is_some_and(|p| p.contains_key(first)) && first != "namespace" {
        "the mesh document (the first of the file)"
    } else if let Some(own) = field.strip_prefix("routes[].")
        && !find("MeshDocument", &format!("defaults.{own}")).is_null()
    {
        "the route, else the service's document, else the mesh document, else the built-in default"
    } else if first == "namespace" || !find("MeshDocument", &format!("defaults.{field}")).is_null() {
        "the service's document, else the mesh document, else the built-in default"
    } else {
        "the service's document, else the built-in default"
    }
}

fn normal(path: &str) -> String {
    path.split('.')
        .map(|part| part.split('[').next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(".")
}
