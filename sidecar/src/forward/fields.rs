//! Header fields: what belongs to one hop only, and what has to be joined again.

use http::header::{
    CONNECTION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};

/// Marks a copy of a request for the app that gets it; its answer is thrown away.
pub const MIRROR: HeaderName = HeaderName::from_static("outrigger-mirror");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// In an answer that nobody up the chain of callers tries again, and why: `retried`, `shed`, `budget`. Of all fields of the
/// mesh the one that an app may pass on.
pub const FINAL: HeaderName = HeaderName::from_static("outrigger-final");
/// Milliseconds left until the head of the answer. Anybody may say so: it only shortens.
pub const TIMEOUT: HeaderName = HeaderName::from_static("outrigger-timeout-ms");
/// Which try of a request this is; only on later ones.
pub const ATTEMPT: HeaderName = HeaderName::from_static("outrigger-attempt");

/// How the mesh's own fields begin. They mean something only between two sidecars and from a sidecar to
/// its own app or client: what anybody else sends under such a name is removed.
const OURS: &[u8] = b"outrigger";

/// Whether a field is the mesh's own. With an underscore too: servers that give fields to their programs as
/// variables (RFC 3875 §4.1.18) make one of both spellings.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(OURS) && matches!(name.get(OURS.len()), Some(b'-' | b'_'))
}

/// What one walk over a message's fields finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Fields called `Host`.
    pub hosts: usize,
    connection: bool,
    /// Other fields of one hop.
    hop: bool,
    te: bool,
    /// Some are the mesh's own.
    pub ours: bool,
    /// Says that it is a copy.
    pub mirror: bool,
}

/// Walks over the fields once; most messages have nothing to remove, and then nothing else is looked up.
#[must_use]
pub fn find(headers: &HeaderMap) -> Found {
    let mut found = Found::default();
    for (name, _) in headers {
        // By the first byte: a comparison of names costs more than this.
        let text = name.as_str().as_bytes();
        match text.first() {
            Some(b'c') => found.connection |= name == CONNECTION,
            Some(b'h') => found.hosts += usize::from(name == HOST),
            Some(b'k' | b'p' | b'u') => found.hop |= [KEEP_ALIVE, PROXY_CONNECTION, UPGRADE].contains(name),
            Some(b'o') if is_ours(text) => {
                found.ours = true;
                found.mirror |= name == MIRROR;
            }
            Some(b't') => {
                found.te |= name == TE;
                found.hop |= name == TRANSFER_ENCODING;
            }
            _ => {}
        }
    }
    found
}

/// Removes what belongs to one hop only (RFC 9110 §7.6.1), where `TE: trailers` stays, and the mesh's own
/// fields. What these say has to be read before.
pub fn strip(headers: &mut HeaderMap, found: Found) {
    if found.connection {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
            .collect();
        headers.remove(CONNECTION);
        for name in listed {
            if name != TE {
                headers.remove(name);
            }
        }
    }
    if found.hop {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, UPGRADE, TRANSFER_ENCODING] {
            headers.remove(name);
        }
    }
    if found.ours {
        strip_ours(headers);
    }
    if let Some(te) = headers.get(TE).filter(|_| found.te) {
        // RFC 9110 §10.1.4: TE describes this hop; only `trailers` may pass on (RFC 9113 §8.2.2).
        let trailers = te
            .to_str()
            .is_ok_and(|t| t.split(',').any(|x| x.trim().eq_ignore_ascii_case("trailers")));
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
}

/// Removes the mesh's own fields.
pub fn strip_ours(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_ours(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Removes what is meant for a proxy. Only for the proxy port: a service may use these itself.
pub fn strip_proxy(headers: &mut HeaderMap) {
    headers.remove(PROXY_AUTHORIZATION);
    headers.remove(PROXY_AUTHENTICATE);
    headers.remove(PROXY_CONNECTION);
}

/// The token of an upgrade request (RFC 9110 §7.8), as the client sent it.
#[must_use]
pub fn upgrade_token(headers: &HeaderMap) -> Option<HeaderValue> {
    let token = headers.get(UPGRADE)?;
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    asked.then(|| token.clone())
}

/// Joins cookie crumbs of HTTP/2 with `; ` (RFC 9113 §8.2.3).
pub fn rejoin_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for crumb in headers.get_all(COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .fold(HeaderMap::new(), |mut all, (n, v)| {
                all.append(n, v);
                all
            })
    }

    #[test]
    fn fields_of_one_hop_and_our_own_go_and_all_others_stay() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("outrigger-caller", "spiffe://forged"),
            ("outrigger-anything", "1"),
            ("outrigger_caller", "spiffe://forged"),
            ("x-mine", "2"),
            ("outrigged", "3"),
            ("host", "h"),
        ]);
        let found = find(&headers);
        assert_eq!(found.hosts, 1);
        strip(&mut headers, found);
        let kept = [("te", "trailers"), ("x-mine", "2"), ("outrigged", "3"), ("host", "h")];
        assert_eq!(headers, map(&kept));
        assert_eq!(
            find(&headers),
            Found {
                hosts: 1,
                te: true,
                ..Found::default()
            }
        );
    }

    #[test]
    fn cookies_are_joined_in_order() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        rejoin_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3")]));
    }

    #[test]
    fn an_upgrade_needs_both_fields() {
        assert!(upgrade_token(&map(&[("upgrade", "websocket")])).is_none());
        let both = map(&[("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade")]);
        assert_eq!(upgrade_token(&both).expect("asked"), "WebSocket");
    }
}
