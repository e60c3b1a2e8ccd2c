//! Header fields: what belongs to one hop only, and what has to be joined again.

use http::header::{
    CONNECTION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what belongs to one hop only (RFC 9110 §7.6.1). `TE: trailers` stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of these; a look-up is cheaper than a removal that finds nothing.
    if headers.contains_key(CONNECTION) {
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
    for name in [KEEP_ALIVE, PROXY_CONNECTION, UPGRADE, TRANSFER_ENCODING] {
        if headers.contains_key(&name) {
            headers.remove(name);
        }
    }
    if let Some(te) = headers.get(TE) {
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
    fn hop_by_hop_fields_go_and_all_others_stay() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-mine", "2"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("te", "trailers"), ("x-mine", "2")]));
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
