//! Paths of requests, as rules and routes compare them: one normal form, patterns, and many patterns at once. Pure.

mod normalise;
mod template;
mod trie;

pub use normalise::{Ambiguous, normalise};
pub(crate) use template::{End, Template};
pub(crate) use trie::Trie;

/// Longest method (RFC 9110 §9.1 has no limit).
const LONGEST_METHOD: usize = 64;

/// RFC 9110 §5.6.2, §9.1: a token; methods are case-sensitive and those that exist are upper case.
pub(crate) fn check_method(text: &str) -> Result<(), String> {
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
