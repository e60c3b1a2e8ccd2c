//! The one reserved field between two sidecars: how the message was framed before it became HTTP/2.
//!
//! `outrigger-origin` holds the original version, then `;chunked` when the body came in chunks and
//! `;upgrade` when the request asked for one. It is set by the sidecar of the caller, read and removed
//! by the sidecar of the callee, and never passed to or taken from an app, whose fields of such names are
//! removed ([`super::fields`]).

use http::Version;
use http::header::{HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};

/// The reserved field.
pub const ORIGIN: HeaderName = HeaderName::from_static("outrigger-origin");

/// How a message was framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// HTTP/1.0, 1.1 or 2.
    pub version: Version,
    /// The body came in chunks.
    pub chunked: bool,
    /// The request asked for an upgrade, or the answer granted it.
    pub upgrade: bool,
}

impl Origin {
    /// Reads the framing of an HTTP/1 message before its hop-by-hop fields are removed.
    #[must_use]
    pub fn of(version: Version, headers: &HeaderMap) -> Self {
        Self {
            version,
            chunked: headers.contains_key(TRANSFER_ENCODING),
            upgrade: false,
        }
    }

    /// The field's value. No allocation.
    #[must_use]
    pub fn to_value(self) -> HeaderValue {
        HeaderValue::from_static(match (self.version, self.chunked, self.upgrade) {
            (Version::HTTP_10, _, _) => "1.0",
            (Version::HTTP_2, _, _) => "2",
            (_, false, false) => "1.1",
            (_, true, false) => "1.1;chunked",
            (_, _, true) => "1.1;upgrade",
        })
    }

    /// Reads the field that a sidecar set; none when it is absent or says nothing that we know.
    #[must_use]
    pub fn of_sidecar(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(ORIGIN)?;
        let (version, chunked, upgrade) = match value.as_bytes() {
            b"1.0" => (Version::HTTP_10, false, false),
            b"1.1" => (Version::HTTP_11, false, false),
            b"1.1;chunked" => (Version::HTTP_11, true, false),
            b"1.1;upgrade" => (Version::HTTP_11, false, true),
            b"2" => (Version::HTTP_2, false, false),
            _ => return None,
        };
        Some(Self {
            version,
            chunked,
            upgrade,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_origin_survives_the_hop() {
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            for (chunked, upgrade) in [(false, false), (true, false), (false, true)] {
                if (chunked || upgrade) && version != Version::HTTP_11 {
                    continue;
                }
                let origin = Origin {
                    version,
                    chunked,
                    upgrade,
                };
                let mut headers = HeaderMap::new();
                headers.insert(ORIGIN, origin.to_value());
                assert_eq!(Origin::of_sidecar(&headers), Some(origin));
            }
        }
    }

    #[test]
    fn anything_else_is_ignored() {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static("3.0;evil"));
        assert_eq!(Origin::of_sidecar(&headers), None);
    }
}
