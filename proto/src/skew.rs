//! Version skew: tags that this build does not know.
//!
//! prost drops unknown fields unseen, so the raw bytes are walked against a table made from the
//! `.proto` files. Field numbers 1000 to 1999 are must-understand: the caller refuses the resource and
//! names number and path. Every other unknown field is counted and ignored.

use crate::model::FieldError;

/// Field numbers that a reader has to know.
pub const MUST_UNDERSTAND: std::ops::Range<u32> = 1000..2000;

/// Messages inside messages inside messages; prost's own limit is 100.
const DEPTH: usize = 32;

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

struct Message {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    number: u32,
    name: &'static str,
    repeated: bool,
    /// The message's full name; empty for any other type.
    message: &'static str,
}

mod table {
    use super::{Field, Message};

    include!(concat!(env!("OUT_DIR"), "/tags.rs"));
}

/// Walks `bytes` as the message called `message`.
///
/// # Errors
/// When the bytes are not the wire format of protobuf, or no message has that name.
pub fn walk(message: &str, bytes: &[u8]) -> Result<Skew, FieldError> {
    let mut skew = Skew::default();
    let message = find(message).ok_or_else(|| malformed(&format!("no message is called {message}")))?;
    visit(message, bytes, "", 0, &mut skew)?;
    Ok(skew)
}

fn find(name: &str) -> Option<&'static Message> {
    table::MESSAGES.iter().find(|m| m.name == name)
}

fn visit(message: &Message, mut bytes: &[u8], path: &str, depth: usize, skew: &mut Skew) -> Result<(), FieldError> {
    if depth > DEPTH {
        return Err(malformed("too many messages inside each other"));
    }
    let mut seen = vec![0usize; message.fields.len()];
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).map_err(|_| malformed("field number"))?;
        let value = value(&mut bytes, key & 7)?;
        let Some((i, field)) = message.fields.iter().enumerate().find(|(_, f)| f.number == number) else {
            if MUST_UNDERSTAND.contains(&number) {
                let path = join(path, &number.to_string());
                skew.must_understand.push(UnknownField { path, number });
            } else {
                skew.ignored += 1;
            }
            continue;
        };
        if let (Some(inner), Some(bytes)) = (find(field.message), value) {
            let count = seen.get(i).copied().unwrap_or_default();
            let name = if field.repeated {
                format!("{}[{count}]", field.name)
            } else {
                field.name.to_owned()
            };
            visit(inner, bytes, &join(path, &name), depth + 1, skew)?;
        }
        if let Some(count) = seen.get_mut(i) {
            *count += 1;
        }
    }
    Ok(())
}

/// Takes one value; its bytes when it is length-delimited.
fn value<'a>(bytes: &mut &'a [u8], wire_type: u64) -> Result<Option<&'a [u8]>, FieldError> {
    match wire_type {
        0 => varint(bytes).map(|_| None),
        1 => take(bytes, 8).map(|_| None),
        5 => take(bytes, 4).map(|_| None),
        2 => {
            let length = usize::try_from(varint(bytes)?).map_err(|_| malformed("length"))?;
            take(bytes, length).map(Some)
        }
        // Groups do not exist in proto3.
        _ => Err(malformed("wire type")),
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8], FieldError> {
    let (taken, rest) = bytes.split_at_checked(n).ok_or_else(|| malformed("it ends early"))?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, FieldError> {
    prost::encoding::decode_varint(bytes).map_err(|_| malformed("varint"))
}

fn malformed(what: &str) -> FieldError {
    FieldError {
        path: String::new(),
        reason: format!("malformed message: {what}"),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
