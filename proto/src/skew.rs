//! Version skew: tags that this build does not know.
//!
//! prost drops unknown fields unseen, so the raw bytes are walked against the descriptor. Field
//! numbers 1000 to 1999 are must-understand: the caller refuses the resource and names number and
//! path. Every other unknown field is counted and ignored.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};

use crate::model::FieldError;
use crate::wire::DESCRIPTORS;

/// Field numbers that a reader has to know.
pub const MUST_UNDERSTAND: std::ops::Range<u32> = 1000..2000;

/// What a walk found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// Unknown fields that must be understood.
    pub must_understand: Vec<UnknownField>,
    /// How many other unknown fields there are.
    pub ignored: usize,
}

/// One unknown field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    /// Path of the message that holds it and its number, for example `ports[0].1003`.
    pub path: String,
    /// Its number.
    pub number: u32,
}

/// Walks `bytes` as the message called `message`.
///
/// # Errors
/// When the bytes are not that message.
pub fn walk(message: &str, bytes: &[u8]) -> Result<Skew, FieldError> {
    static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).ok());
    let descriptor: MessageDescriptor = POOL
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(message))
        .ok_or_else(|| FieldError {
            path: String::new(),
            reason: format!("no message is called {message}"),
        })?;
    let decoded = DynamicMessage::decode(descriptor, bytes).map_err(|e| FieldError {
        path: String::new(),
        reason: format!("malformed message: {e}"),
    })?;
    let mut skew = Skew::default();
    visit(&decoded, "", &mut skew);
    Ok(skew)
}

fn visit(message: &DynamicMessage, path: &str, skew: &mut Skew) {
    for field in message.unknown_fields() {
        let number = field.number();
        if MUST_UNDERSTAND.contains(&number) {
            skew.must_understand.push(UnknownField {
                path: join(path, &number.to_string()),
                number,
            });
        } else {
            skew.ignored += 1;
        }
    }
    for (field, value) in message.fields() {
        visit_value(value, &join(path, field.name()), skew);
    }
}

fn visit_value(value: &Value, path: &str, skew: &mut Skew) {
    match value {
        Value::Message(inner) => visit(inner, path, skew),
        Value::List(items) => {
            for (i, item) in items.iter().enumerate() {
                visit_value(item, &format!("{path}[{i}]"), skew);
            }
        }
        Value::Map(entries) => {
            for (key, item) in entries {
                visit_value(item, &format!("{path}[{key:?}]"), skew);
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
