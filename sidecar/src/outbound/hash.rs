//! The value of a request that a hash is taken of.

use http::header::{COOKIE, HeaderMap};
use http::uri::Uri;
use outrigger_proto::model::HashOn;

use crate::balance;

/// The hash of what `on` names, byte for byte as it was sent; none when the request has no such value. `caller` is the
/// caller's own identity.
#[must_use]
pub(super) fn of(on: &HashOn, uri: &Uri, headers: &HeaderMap, caller: &str) -> Option<u64> {
    // Looked up in each request: whoever balances by hash or splits with memory asked for it, and nobody else pays.
    let value = match on {
        HashOn::Header(name) => headers.get(name.as_str())?.as_bytes(),
        HashOn::Cookie(name) => cookie(headers, name)?,
        HashOn::PathSegment(n) => segment(uri.path(), *n)?.as_bytes(),
        HashOn::Caller => caller.as_bytes(),
        HashOn::Query(name) => query(uri.query()?, name)?.as_bytes(),
    };
    Some(balance::hash(value))
}

/// RFC 6265 §4.2.1; the first of that name. HTTP/2 may send the cookies as many fields (RFC 9113 §8.2.3).
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|v| v.as_bytes().split(|b| *b == b';'));
    pairs
        .filter_map(|pair| {
            let pair = pair.trim_ascii();
            let at = pair.iter().position(|b| *b == b'=')?;
            let (key, value) = pair.split_at_checked(at)?;
            (key == name.as_bytes()).then(|| value.strip_prefix(b"=").unwrap_or(value))
        })
        .next()
}

/// Counted from 1; an empty one is none.
fn segment(path: &str, n: u32) -> Option<&str> {
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
    segments.nth(n.checked_sub(1)? as usize).filter(|s| !s.is_empty())
}

fn query<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .into_iter()
        .find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(on: HashOn, value: Option<&str>) {
        let uri = Uri::from_static("http://app/users/42//x?a=1&user=eve&user=bob&flag");
        let mut headers = HeaderMap::new();
        headers.append("x-user", http::HeaderValue::from_static("eve"));
        headers.append("x-user", http::HeaderValue::from_static("bob"));
        headers.append(COOKIE, http::HeaderValue::from_static("a=1; session=abc=; b"));
        headers.append(COOKIE, http::HeaderValue::from_static("late=2;session=no"));
        assert_eq!(
            of(&on, &uri, &headers, "default/web"),
            value.map(|v| balance::hash(v.as_bytes())),
            "{on:?}"
        );
    }

    #[test]
    fn each_kind_finds_its_value_or_none() {
        check(HashOn::Header("x-user".into()), Some("eve"));
        check(HashOn::Header("x-none".into()), None);
        check(HashOn::Cookie("session".into()), Some("abc="));
        check(HashOn::Cookie("late".into()), Some("2"));
        check(HashOn::Cookie("b".into()), None);
        check(HashOn::PathSegment(1), Some("users"));
        check(HashOn::PathSegment(2), Some("42"));
        check(HashOn::PathSegment(3), None);
        check(HashOn::PathSegment(4), Some("x"));
        check(HashOn::PathSegment(5), None);
        check(HashOn::Caller, Some("default/web"));
        check(HashOn::Query("user".into()), Some("eve"));
        check(HashOn::Query("flag".into()), Some(""));
        check(HashOn::Query("none".into()), None);
    }
}
