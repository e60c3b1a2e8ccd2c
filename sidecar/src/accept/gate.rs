//! What is decided about a request before any journey begins: room for it, its header names, its trailers.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, Request};
use outrigger_proto::model::{Limits, Trailers, Underscores};

use super::serve::Bounds;
use crate::forward::replay::NoTrailers;
use crate::observe::{Gauge, Stats, held};
use crate::reason::Reason;

/// One connection's rules for its requests.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    most: usize,
    underscores: Underscores,
    trailers: Trailers,
    stats: Arc<Stats>,
}

impl Gate {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let Limits {
            max_buffered_bytes,
            underscores,
            trailers,
            ..
        } = bounds.limits;
        Self {
            most: max_buffered_bytes,
            underscores,
            trailers,
            stats: bounds.stats.clone(),
        }
    }

    /// True when the answer's trailers are dropped; marks a request whose own are.
    pub(super) fn drops_trailers<B>(&self, request: &mut Request<B>) -> bool {
        let drops = self.trailers == Trailers::Drop && !is_grpc(request.headers());
        if drops {
            request.extensions_mut().insert(NoTrailers);
        }
        drops
    }

    /// Why the request is answered at once, if it is.
    pub(super) fn refuses<B>(&self, request: &mut Request<B>) -> Option<(Reason, &'static str)> {
        if held::over(self.most) {
            self.stats.add(Gauge::Shed, 1);
            return Some((
                Reason::Overloaded,
                "too many bytes wait for slow readers; try again later",
            ));
        }
        if self.underscores == Underscores::Allow || !has_underscore(request.headers()) || is_grpc(request.headers()) {
            return None;
        }
        if self.underscores == Underscores::Reject {
            return Some((
                Reason::BadRequest,
                "a header name has an underscore, which many servers take for a hyphen; limits.underscores lets it pass",
            ));
        }
        let named: Vec<HeaderName> = request.headers().keys().filter(|n| underscored(n)).cloned().collect();
        for name in named {
            request.headers_mut().remove(name);
        }
        None
    }
}

fn underscored(name: &HeaderName) -> bool {
    name.as_str().contains('_')
}

fn has_underscore(headers: &HeaderMap) -> bool {
    headers.keys().any(underscored)
}

/// As `respond` dresses its answers (gRPC over HTTP/2, "Requests").
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(underscores: Underscores, fields: &[(&'static str, &'static str)]) -> (bool, Vec<String>) {
        let bounds = Bounds {
            limits: Limits {
                underscores,
                ..Limits::default()
            },
            meshed: false,
            stats: Arc::default(),
            until: crate::drain::Phase::Closing,
        };
        let mut request = Request::new(());
        for (name, value) in fields {
            request
                .headers_mut()
                .insert(*name, http::HeaderValue::from_static(value));
        }
        let refused = Gate::new(&bounds).refuses(&mut request).is_some();
        (refused, request.headers().keys().map(ToString::to_string).collect())
    }

    #[test]
    fn underscores_are_refused_dropped_or_passed_on_and_grpc_may_have_them() {
        let plain = [("x-user", "a"), ("x_user", "b")];
        assert!(judged(Underscores::Reject, &plain).0);
        assert_eq!(judged(Underscores::Drop, &plain), (false, vec!["x-user".to_owned()]));
        assert_eq!(judged(Underscores::Allow, &plain).1.len(), 2);
        assert!(!judged(Underscores::Reject, &plain[..1]).0);
        let grpc = [("content-type", "application/grpc+proto"), ("x_user", "b")];
        assert_eq!(judged(Underscores::Reject, &grpc).1.len(), 2);
    }
}
