//! Why the mesh answers by itself: one closed table with a word, a status and a gRPC status each.
//!
//! Knows no room; every room may name a reason.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $status:literal, $grpc:literal, $help:literal;)+) => {
        /// Why the mesh answered by itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// How many reasons there are.
            pub const COUNT: usize = [$(stringify!($name)),+].len();
            /// Every reason.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$name),+];

            /// The word in header, log and metric.
            #[must_use]
            pub fn as_str(self) -> &'static str { match self { $(Self::$name => $text),+ } }
            /// HTTP status.
            #[must_use]
            pub fn status(self) -> u16 { match self { $(Self::$name => $status),+ } }
            /// gRPC status.
            #[must_use]
            pub fn grpc_status(self) -> u8 { match self { $(Self::$name => $grpc),+ } }
            /// What a person should think of first.
            #[must_use]
            pub fn help(self) -> &'static str { match self { $(Self::$name => $help),+ } }
        }
    };
}

reasons! {
    /// The mesh has no service of that name.
    UnknownService => "unknown_service", 404, 12, "the mesh has no service of that name";
    /// The service has no port of that name.
    UnknownPort => "unknown_port", 404, 12, "the service has no such port";
    /// The service exists and no instance is registered.
    NoEndpoints => "no_endpoints", 503, 14, "no healthy instance is registered";
    /// Configuration for the service has not arrived yet.
    NotReady => "not_ready", 503, 14, "configuration for the service has not arrived yet";
    /// The sidecar could not hand one byte to its app.
    AppUnreachable => "app_unreachable", 503, 14, "the app does not accept connections";
    /// No endpoint accepted a connection.
    ConnectFailed => "connect_failed", 503, 14, "no instance accepted a connection";
    /// The upstream connection broke after the request was sent.
    UpstreamReset => "upstream_reset", 502, 14, "the connection broke after the request was sent";
    /// The upstream answered with something that is not its protocol.
    UpstreamProtocol => "upstream_protocol", 502, 13, "the answer does not follow the declared protocol";
    /// Time ran out.
    Deadline => "deadline", 504, 4, "no answer in time";
    /// The request is malformed or ambiguous.
    BadRequest => "bad_request", 400, 13, "the request is malformed or ambiguous";
    /// The destination outside the mesh is not allowed.
    ExternalDenied => "external_denied", 403, 7, "calls to this host outside the mesh are not allowed";
    /// The destination would lead back to this sidecar.
    Loop => "loop", 508, 13, "the request would lead back to its own sidecar";
    /// The sidecar itself failed at this request.
    Internal => "internal", 500, 13, "the sidecar failed at this request; its log says where";
    /// No rule of the callee allows the call.
    Denied => "denied", 403, 7, "no rule of the callee allows this caller to do that";
    /// A rule looks at paths, and this one can be read in more than one way.
    BadPath => "bad_path", 400, 3, "the path can be read in more than one way, and a rule looks at paths";
    /// This sidecar has no certificate, and the other side takes nothing else.
    NoIdentity => "no_identity", 503, 14, "this sidecar has no identity yet";
    /// The other side did not prove to be whom it should be.
    PeerUnverified => "peer_unverified", 503, 14, "no instance proved to be the service";
    /// The other side is let in no longer: revoked, expired, or its root is not trusted any more.
    Revoked => "revoked", 403, 7, "the caller is let in no longer";
    /// Plain bytes where only mutual TLS is spoken.
    Plaintext => "plaintext", 400, 3, "this port takes nothing but mutual TLS of the mesh";
    /// A request to a port that is declared to carry no requests.
    NotHttp => "not_http", 400, 12, "the port is declared tcp or tls: it takes bytes through a tunnel, no requests";
    /// Failed on purpose: a fault of the service's configuration.
    Fault => "fault", 503, 14, "a fault of the service's configuration did that on purpose";
    /// A route leads to a subset that the service does not have.
    UnknownSubset => "unknown_subset", 503, 14, "the route leads to a subset that the service does not have";
    /// Too many requests to the service failed lately: none is sent for a while.
    BreakerOpen => "breaker_open", 503, 14, "too many requests to the service failed lately; none is sent for a while";
    /// No place for the request came free in time.
    QueueTimeout => "queue_timeout", 503, 14, "the service has as many requests as it may get, and no place came free in time";
    /// Too many requests wait for a place.
    PendingFull => "pending_full", 503, 8, "the service has as many requests as it may get, and too many wait for a place";
    /// As many connections to the service are open as may be.
    ConnectionsFull => "connections_full", 503, 8, "the service has as many connections as it may get from here, and none came free in time";
    /// One try took too long.
    PerTryTimeout => "per_try_timeout", 504, 4, "no answer within the time of one try";
    /// Nothing moved for too long.
    IdleTimeout => "idle_timeout", 504, 4, "nothing moved in either direction for too long";
    /// A rate limit of the callee has nothing left.
    RateLimited => "rate_limited", 429, 8, "a rate limit of the callee has nothing left";
    /// The sidecar is at a limit.
    Overloaded => "overloaded", 503, 8, "the sidecar is at a limit";
}

impl Reason {
    /// Position in [`ALL`](Self::ALL).
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words_that_appear_once() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::COUNT);
        assert!(Reason::ALL.iter().enumerate().all(|(i, r)| r.index() == i));
    }
}
