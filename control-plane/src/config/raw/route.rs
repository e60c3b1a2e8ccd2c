//! Which requests go where: routes, matches, faults, rate limits, priorities.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::OneOrMany;
use super::traffic::{HashOn, Priority, Request};

/// Requests that match, and what happens to them. The first route that matches is taken; what matches none goes to the
/// service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(in crate::config) struct Route {
    /// Unique in the service: 1 to 63 of a-z, 0-9 and `-`.
    pub(in crate::config) name: String,
    /// Which requests: one match, or a list of which any may match. Without it, all.
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Matches>,
    /// Where they go: one destination, or a list with weights.
    #[schemars(extend("x-default" = "the service"))]
    pub(in crate::config) to: Option<Destinations>,
    /// Keeps requests with one value on one of several `to` while the weights stay. A request without it is split at
    /// random.
    pub(in crate::config) sticky: Option<HashOn>,
    /// Sends a copy, whose answer is thrown away. A copy that would have to wait is dropped.
    pub(in crate::config) mirror: Option<Mirror>,
    /// Another path or host before it is sent.
    pub(in crate::config) rewrite: Option<Rewrite>,
    /// Tells the client another place, instead of `to`.
    pub(in crate::config) redirect: Option<Redirect>,
    /// Answers at once, instead of `to`.
    pub(in crate::config) respond: Option<Respond>,
    /// Changes to the header section on the way to the app.
    pub(in crate::config) request_headers: Option<HeaderEdits>,
    /// Changes to the header section on the way back.
    pub(in crate::config) response_headers: Option<HeaderEdits>,
    #[serde(flatten)]
    pub(in crate::config) request: Request,
}

/// One match, or a list of which any may match.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Matches {
    One(Match),
    Many(Vec<Match>),
}

/// Which requests. All parts must match; a part that is left out matches anything. At most one of `path`, `prefix`,
/// `regex`, and none of them beside `grpc`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Match {
    /// The authority that the client asked for: `name`, `name:port` or `*.suffix`; one or a list.
    pub(in crate::config) host: Option<OneOrMany>,
    /// The whole path: `/exact`, `/users/{id}` (any one segment), `/static/*` (everything below). Paths are compared
    /// after `.`, `..` and needless escapes were taken out.
    pub(in crate::config) path: Option<String>,
    /// The beginning of the path by whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    pub(in crate::config) prefix: Option<String>,
    /// A regular expression for the whole path; matched in linear time, so it has no look-around and no back-references.
    pub(in crate::config) regex: Option<String>,
    /// HTTP methods, for example `[GET, HEAD]`.
    pub(in crate::config) methods: Option<Vec<String>>,
    /// Header fields by name: a value, or a map with one of prefix, suffix, regex, present.
    pub(in crate::config) headers: Option<BTreeMap<String, Value>>,
    /// Query parameters by name; as `headers`.
    pub(in crate::config) query: Option<BTreeMap<String, Value>>,
    /// gRPC methods: `package.Service/Method` or `package.Service/*`; one or a list.
    pub(in crate::config) grpc: Option<OneOrMany>,
}

/// A value, or a map that says what it is like.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Value {
    Exact(String),
    Like(Like),
}

/// What a value is like; exactly one.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Like {
    /// Its beginning.
    pub(in crate::config) prefix: Option<String>,
    /// Its end.
    pub(in crate::config) suffix: Option<String>,
    /// A regular expression for the whole of it, in linear time.
    pub(in crate::config) regex: Option<String>,
    /// Whether there is one at all.
    pub(in crate::config) present: Option<bool>,
}

/// One destination, or a list with weights.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Destinations {
    One(Destination),
    Many(Vec<Destination>),
}

/// Where requests go; at least one of `service`, `subset`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Destination {
    /// Another service, as `service` or `namespace/service`.
    #[schemars(extend("x-default" = "the service itself"))]
    pub(in crate::config) service: Option<String>,
    /// One of the `subsets` of that service.
    #[schemars(extend("x-default" = "all of its endpoints"))]
    pub(in crate::config) subset: Option<String>,
    /// The share of requests, relative to the sum of all weights. `5%` is as good as 5.
    #[schemars(extend("x-default" = "1"))]
    pub(in crate::config) weight: Option<String>,
}

/// Where requests go while the service has no usable endpoint; at least one of `service`, `subset`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Elsewhere {
    /// Another service, as `service` or `namespace/service`.
    #[schemars(extend("x-default" = "the service itself"))]
    pub(in crate::config) service: Option<String>,
    /// One of the `subsets` of that service.
    #[schemars(extend("x-default" = "all of its endpoints"))]
    pub(in crate::config) subset: Option<String>,
}

/// A copy of requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Mirror {
    /// Where the copies go.
    pub(in crate::config) to: Elsewhere,
    /// Share of the requests that are copied; `0.1%` is fine.
    #[schemars(extend("x-default" = "100%"))]
    pub(in crate::config) percent: Option<String>,
}

/// Another path or host; the query stays.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Rewrite {
    /// The whole path.
    pub(in crate::config) path: Option<String>,
    /// What stands in place of the prefix that matched; needs `match` by `prefix`.
    pub(in crate::config) prefix: Option<String>,
    /// The authority that the app sees.
    pub(in crate::config) host: Option<String>,
}

/// Tells the client another place; what is left out stays as it was asked for.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Redirect {
    /// 301, 302, 303, 307 or 308.
    #[schemars(range(min = 301, max = 308), extend("x-default" = "302"))]
    pub(in crate::config) status: Option<u16>,
    /// The whole path.
    pub(in crate::config) path: Option<String>,
    /// What stands in place of the prefix that matched; needs `match` by `prefix`.
    pub(in crate::config) prefix: Option<String>,
    /// The host, with its port where it has one.
    pub(in crate::config) host: Option<String>,
    /// `http` or `https`.
    pub(in crate::config) scheme: Option<Scheme>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum Scheme {
    Http,
    Https,
}

/// An answer of the mesh.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Respond {
    /// Its HTTP status.
    #[schemars(range(min = 200, max = 599))]
    pub(in crate::config) status: u16,
    /// At most 64 KiB.
    #[schemars(extend("x-default" = "empty"))]
    pub(in crate::config) body: Option<String>,
    /// Its `content-type`.
    #[schemars(extend("x-default" = "text/plain; charset=utf-8"))]
    pub(in crate::config) content_type: Option<String>,
}

/// Changes to a header section, in this order: remove, set, add.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HeaderEdits {
    /// Fields that replace what is there.
    pub(in crate::config) set: Option<BTreeMap<String, String>>,
    /// Fields that stand beside what is there.
    pub(in crate::config) add: Option<BTreeMap<String, String>>,
    /// Names of fields that are taken out.
    pub(in crate::config) remove: Option<Vec<String>>,
}

/// Makes requests fail on purpose, until a moment. Exactly one of `delay`, `abort` with or without `grpc`, `grpc`,
/// `reset_after`, `refuse`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Fault {
    /// Unique in the service; shown in answers and counters.
    pub(in crate::config) name: String,
    /// Which requests; without it, all.
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Matches>,
    /// Callers whose requests it meets, as `service` or `namespace/service`.
    #[schemars(extend("x-default" = "all"))]
    pub(in crate::config) from: Option<Vec<String>>,
    /// Share of the requests.
    #[schemars(extend("x-default" = "100%"))]
    pub(in crate::config) percent: Option<String>,
    /// It waits for so long before it is sent.
    #[schemars(extend("format" = "duration"))]
    pub(in crate::config) delay: Option<String>,
    /// It is answered with this HTTP status; a gRPC call with the code that belongs to it, or with `grpc`.
    #[schemars(range(min = 200, max = 599))]
    pub(in crate::config) abort: Option<u16>,
    /// It is answered with this gRPC code, for example `UNAVAILABLE`; an HTTP request with the status that belongs to it.
    pub(in crate::config) grpc: Option<String>,
    /// The answer's stream breaks after so many bytes of its body, for example `1kb`.
    pub(in crate::config) reset_after: Option<String>,
    /// A connection of a `tcp` or `tls` port is closed at once.
    pub(in crate::config) refuse: Option<bool>,
    /// When it ends, in UTC: `2026-11-24T10:00:00Z`; at most 24 hours ahead. From then on it is ignored.
    pub(in crate::config) until: Option<String>,
}

/// Requests in a time, in a token bucket at the service's own sidecars; more are answered 429 with `Retry-After`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RateLimit {
    /// Unique in the service; shown in answers and counters.
    pub(in crate::config) name: String,
    /// Which requests; without it, all.
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Matches>,
    /// A number in a time: `100/s`, `600/m`, `1000/h`, `5/10s`.
    pub(in crate::config) rate: String,
    /// Requests that may come at once.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "as many as `rate` says for its time"))]
    pub(in crate::config) burst: Option<u32>,
    /// Whose requests share the number: `all`, `caller` (each identity its own), or `header:NAME` (each value its own).
    #[schemars(extend("x-default" = "all"))]
    pub(in crate::config) by: Option<String>,
    /// The number holds for all instances together, not for each: the control plane gives each a share by what is asked of
    /// it, anew every second, and with `by` equal shares. In any time `t` at most `rate`·t + `burst` + one for each
    /// instance pass. More only while an instance has not yet heard of its share (a tenth of `rate` each), or answers
    /// although its registration lapsed (what it last had); with `by`, and a part of `burst` for each that came or went.
    /// While the control plane is away the last shares hold.
    #[schemars(extend("x-default" = "false"))]
    pub(in crate::config) mesh: Option<bool>,
}

/// Which requests matter more, decided at the service's own sidecars; the first entry that matches.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct PriorityRule {
    /// Which requests; without it, all.
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Matches>,
    /// `low` is shed first, `high` last.
    pub(in crate::config) priority: Priority,
}
