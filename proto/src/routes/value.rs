//! Values that match, and regular expressions with bounds.

use regex::bytes::{Regex, RegexBuilder};

use crate::model::ValueMatch;

/// Longest regular expression, in bytes.
const LONGEST_REGEX: usize = 1024;
/// Largest compiled form, and largest table that its look-ups make, in bytes.
const LARGEST_REGEX: usize = 256 << 10;

/// A value that matches.
#[derive(Debug)]
pub(super) enum Value {
    Present,
    Absent,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Regex(Regex),
}

impl Value {
    pub(super) fn new(value: &ValueMatch) -> Result<Self, String> {
        Ok(match value {
            ValueMatch::Present => Self::Present,
            ValueMatch::Absent => Self::Absent,
            ValueMatch::Exact(text) => Self::Exact(text.as_bytes().into()),
            ValueMatch::Prefix(text) => Self::Prefix(text.as_bytes().into()),
            ValueMatch::Suffix(text) => Self::Suffix(text.as_bytes().into()),
            ValueMatch::Regex(text) => Self::Regex(regex(text)?),
        })
    }

    pub(super) fn fits(&self, value: Option<&[u8]>) -> bool {
        let Some(value) = value else {
            return matches!(self, Self::Absent);
        };
        match self {
            Self::Present => true,
            Self::Absent => false,
            Self::Exact(text) => **text == *value,
            Self::Prefix(text) => value.starts_with(text),
            Self::Suffix(text) => value.ends_with(text),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// An expression that matches whole texts.
pub(super) fn regex(text: &str) -> Result<Regex, String> {
    if text.len() > LONGEST_REGEX {
        return Err(format!(
            "a regular expression of {} bytes is longer than {LONGEST_REGEX}",
            text.len()
        ));
    }
    if asks_for_unicode(text) {
        return Err(format!("`{text}` asks for Unicode (`(?u)`); bytes are compared"));
    }
    // By itself first: what stands between the brackets must not close them.
    build(text)?;
    build(&format!(r"\A(?:{text})\z"))
}

fn build(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text)
        .unicode(false)
        .size_limit(LARGEST_REGEX)
        .dfa_size_limit(LARGEST_REGEX)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("the regular expression takes more than {limit} bytes; repeat less")
        }
        // The last line says what; the others draw it.
        error => error
            .to_string()
            .lines()
            .last()
            .unwrap_or("not a regular expression")
            .to_owned(),
    })
}

/// Whether a group switches Unicode on: what that means depends on how this program was built.
fn asks_for_unicode(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = match first {
            b'\\' => more.get(1..).unwrap_or_default(),
            _ => more,
        };
        if *first == b'('
            && let Some(flags) = more.strip_prefix(b"?")
        {
            let flags = flags.iter().take_while(|b| b.is_ascii_alphabetic() || **b == b'-');
            if flags.clone().any(|b| *b == b'u') && !flags.clone().any(|b| *b == b'P') {
                return true;
            }
        }
    }
    false
}
