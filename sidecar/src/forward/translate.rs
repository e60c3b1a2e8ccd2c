//! One request in the form that the next hop speaks, and one answer in the form that the client expects.
//!
//! [`Plan`] remembers what the client sent; [`Plan::dress`] may be called again for another hop and
//! always starts from the plan, so that a second try to another kind of endpoint is not special.

use http::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::ext::Protocol;

use super::body::Body;
use super::fields::{self, MIRROR};
use super::origin::{ORIGIN, Origin};
use crate::connect::Wire;

/// A granted upgrade crosses HTTP/2 as 200 (RFC 8441 §5); an app that answers 200 to an upgrade
/// request, and so refuses it, crosses as this status.
const PLAIN_OK: StatusCode = StatusCode::NON_AUTHORITATIVE_INFORMATION;

/// What the client sent, as far as every hop needs it.
#[derive(Debug, Clone)]
pub struct Plan {
    method: Method,
    path: PathAndQuery,
    authority: Option<Authority>,
    /// How the client framed it.
    pub origin: Origin,
    /// The token of an upgrade request.
    pub upgrade: Option<HeaderValue>,
    /// The client is a sidecar.
    pub meshed: bool,
    /// What the client says is left, by [`fields::TIMEOUT`].
    pub timeout: Option<HeaderValue>,
    /// Which try this is, as a sidecar says.
    pub attempt: Option<HeaderValue>,
}

/// Why a request has no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplannable {
    /// CONNECT without a protocol, to something that is not a proxy.
    Connect,
    /// No `Host` in HTTP/1.1, or two of them (RFC 9112 §3.2).
    Host,
}

impl Unplannable {
    /// For the person who made the request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT is for the proxy port",
            Self::Host => "Host is missing or stands twice",
        }
    }
}

impl Plan {
    /// Reads the head of a request that came from an app or a plain client, and removes what belongs
    /// to that hop only. `trusted` tells that the client may be a sidecar, whose `outrigger-origin` counts.
    ///
    /// # Errors
    /// When the request asks for what only a proxy does.
    pub fn read(parts: &mut Parts, trusted: bool) -> Result<Self, Unplannable> {
        let headers = &mut parts.headers;
        let found = fields::find(headers);
        let http1 = parts.version < Version::HTTP_2;
        if http1 && (found.hosts > 1 || (found.hosts == 0 && parts.version == Version::HTTP_11)) {
            return Err(Unplannable::Host);
        }
        let told = Origin::of_sidecar(headers).filter(|_| trusted);
        let origin = told.unwrap_or_else(|| Origin::of(parts.version, headers));
        let mut method = parts.method.clone();
        let upgrade = match parts.version {
            Version::HTTP_2 => match (&method, parts.extensions.get::<Protocol>()) {
                (&Method::CONNECT, Some(protocol)) => {
                    method = Method::GET;
                    Some(HeaderValue::from_str(protocol.as_str()).map_err(|_| Unplannable::Connect)?)
                }
                (&Method::CONNECT, None) => return Err(Unplannable::Connect),
                _ => None,
            },
            _ if method == Method::CONNECT => return Err(Unplannable::Connect),
            _ => fields::upgrade_token(headers),
        };
        let (mut timeout, mut attempt) = (None, None);
        if found.ours {
            timeout = headers.get(fields::TIMEOUT).cloned();
            attempt = told.and_then(|_| headers.get(fields::ATTEMPT).cloned());
        }
        fields::strip(headers, found);
        if found.mirror && told.is_some() {
            headers.insert(MIRROR, HeaderValue::from_static("1"));
        }
        let path = parts
            .uri
            .path_and_query()
            .cloned()
            .unwrap_or(PathAndQuery::from_static("/"));
        Ok(Self {
            method,
            path,
            authority: parts.uri.authority().cloned(),
            origin,
            upgrade,
            meshed: told.is_some(),
            timeout,
            attempt,
        })
    }

    /// The path and query, byte for byte.
    #[must_use]
    pub fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// The authority of the request's target; none when there is only `Host`.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// Another path and query from here on.
    pub fn set_path(&mut self, path: PathAndQuery) {
        self.path = path;
    }

    /// Another authority from here on, which is also a `Host`.
    pub fn set_authority(&mut self, headers: &mut HeaderMap, authority: &Authority, host: &HeaderValue) {
        self.authority = Some(authority.clone());
        if headers.contains_key(HOST) || self.origin.version < Version::HTTP_2 {
            headers.insert(HOST, host.clone());
        }
    }

    /// The request's method; GET for an upgrade.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Puts `request` into the form of `wire`. `fallback` stands for a missing authority.
    pub fn dress(&self, request: &mut Request<Body>, wire: Wire, fallback: &Authority) {
        let from_http1 = self.origin.version < Version::HTTP_2;
        *request.method_mut() = self.method.clone();
        match wire {
            Wire::Http1 => self.dress_http1(request, fallback),
            Wire::Http2 => {
                // An earlier try may have gone to a sidecar.
                request.headers_mut().remove(ORIGIN);
                *request.version_mut() = Version::HTTP_2;
                let host = request.headers_mut().remove(HOST);
                let named = self.authority.clone().filter(|_| !from_http1);
                let authority = named
                    .or_else(|| host.and_then(|h| Authority::try_from(h.as_bytes()).ok()))
                    .unwrap_or_else(|| fallback.clone());
                *request.uri_mut() = absolute(authority, self.path.clone());
                fields::rejoin_cookies(request.headers_mut());
            }
            Wire::Mesh => {
                *request.version_mut() = Version::HTTP_2;
                // `Host` travels as a field, byte for byte; the authority only names the service.
                let authority = self
                    .authority
                    .clone()
                    .filter(|_| !from_http1)
                    .unwrap_or_else(|| fallback.clone());
                *request.uri_mut() = absolute(authority, self.path.clone());
                request.extensions_mut().remove::<Protocol>();
                let mut origin = self.origin;
                if let Some(token) = &self.upgrade {
                    *request.method_mut() = Method::CONNECT;
                    request
                        .extensions_mut()
                        .insert(Protocol::from(token.to_str().unwrap_or("websocket")));
                    origin.upgrade = true;
                }
                request.headers_mut().insert(ORIGIN, origin.to_value());
            }
        }
    }

    fn dress_http1(&self, request: &mut Request<Body>, fallback: &Authority) {
        let old = self.origin.version == Version::HTTP_10 && self.upgrade.is_none();
        *request.version_mut() = if old { Version::HTTP_10 } else { Version::HTTP_11 };
        *request.uri_mut() = Uri::from(self.path.clone());
        request.extensions_mut().remove::<Protocol>();
        let from_http2 = self.origin.version == Version::HTTP_2;
        let empty = request.body().is_empty();
        let headers = request.headers_mut();
        // An earlier try may have gone to a sidecar.
        headers.remove(ORIGIN);
        if !headers.contains_key(HOST) && !old {
            // RFC 9113 §8.3.1: the authority becomes Host.
            let authority = self.authority.as_ref().filter(|_| from_http2).unwrap_or(fallback);
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                headers.insert(HOST, host);
            }
        }
        if from_http2 {
            fields::rejoin_cookies(headers);
        }
        if let Some(token) = &self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, token.clone());
        } else if self.origin.chunked && empty {
            // An empty body in chunks stays one; any other body without a length is chunked anyway.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }

    /// Puts the head of an upstream's answer into the form for the client. True when an upgrade was granted.
    pub fn receive<B>(&self, response: &mut Response<B>, wire: Wire) -> bool {
        match wire {
            Wire::Mesh => {
                let headers = response.headers_mut();
                let origin = Origin::of_sidecar(headers);
                headers.remove(ORIGIN);
                if self.upgrade.is_none() {
                    return false;
                }
                let granted = response.status() == StatusCode::OK;
                match origin {
                    Some(_) if granted => {
                        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                        self.grant(response.headers_mut());
                    }
                    Some(origin) if origin.upgrade && response.status() == PLAIN_OK => {
                        *response.status_mut() = StatusCode::OK;
                    }
                    _ => {}
                }
                granted
            }
            Wire::Http1 | Wire::Http2 => {
                let granted = self.upgrade.is_some() && response.status() == StatusCode::SWITCHING_PROTOCOLS;
                let token = if granted {
                    response.headers().get(UPGRADE).cloned()
                } else {
                    None
                };
                let found = fields::find(response.headers());
                // An app may pass it on: it has to reach every caller up the chain.
                let last_word = match found.ours {
                    true => response.headers().get(fields::FINAL).cloned(),
                    false => None,
                };
                fields::strip(response.headers_mut(), found);
                if let Some(why) = last_word {
                    response.headers_mut().insert(fields::FINAL, why);
                }
                if granted {
                    self.grant(response.headers_mut());
                    if let Some(token) = token {
                        response.headers_mut().insert(UPGRADE, token);
                    }
                }
                granted
            }
        }
    }

    fn grant(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(token) = &self.upgrade {
            headers.insert(UPGRADE, token.clone());
        }
    }
}

/// Puts the app's answer into the form for a calling sidecar (HTTP/2): 101 becomes 200.
pub fn answer_to_mesh(response: &mut Response<Body>, upgrade: bool) {
    *response.version_mut() = Version::HTTP_2;
    if !upgrade {
        return;
    }
    let headers = response.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    let origin = Origin {
        version: Version::HTTP_11,
        chunked: false,
        upgrade: true,
    };
    headers.insert(ORIGIN, origin.to_value());
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => *response.status_mut() = StatusCode::OK,
        StatusCode::OK => *response.status_mut() = PLAIN_OK,
        _ => {}
    }
}

/// A copy of a request's head, for a try after this one.
#[must_use]
pub fn copy_head<B>(request: &Request<B>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn absolute(authority: Authority, path: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).unwrap_or_default()
}
