//! What holds for requests to a service: said once for all in `defaults`, for one service, or (for one request) in a route.

use schemars::JsonSchema;
use serde::Deserialize;

/// What holds for one request. A route says it in place of the service, and the service in place of `defaults`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub(in crate::config) struct Request {
    /// Bound on a whole request, all tries and waiting among it; a stream is not cut once its answer has begun. The time
    /// that is left travels with the request and only ever gets less. `none` for no bound.
    #[schemars(extend("format" = "duration", "x-default" = "none"))]
    pub(in crate::config) timeout: Option<String>,
    /// A stream on which nothing moves in either direction is ended after it. `none` for no bound.
    #[schemars(extend("format" = "duration", "x-default" = "none"))]
    pub(in crate::config) idle_timeout: Option<String>,
    /// How long a request waits for a place under `concurrency` before it is refused.
    #[schemars(extend("format" = "duration", "x-default" = "1s"))]
    pub(in crate::config) queue_timeout: Option<String>,
    /// Says that a request may be done twice. Without it, what may have been processed is tried again only for GET, HEAD,
    /// OPTIONS, TRACE, PUT and DELETE (RFC 9110 §9.2.2), and never for gRPC. What was never sent is tried again always.
    #[schemars(extend("x-default" = "false"))]
    pub(in crate::config) idempotent: Option<bool>,
    /// Tries of what may have been processed. What was never sent is tried again always, once an endpoint.
    pub(in crate::config) retry: Option<Retry>,
    /// A second request while the first one is slow; the first answer counts and the other request is cancelled. For
    /// what may be done twice only. It takes from `retry.budget`. `off` for none.
    #[schemars(extend("x-default" = "off"))]
    pub(in crate::config) hedge: Option<HedgeOrOff>,
    /// What counts as a failure for `breaker` and `outlier`: HTTP statuses (`503`, `5xx`), gRPC codes (`UNAVAILABLE`),
    /// `timeout`, `reset`, `connect`. 429 and RESOURCE_EXHAUSTED are load and never count.
    #[schemars(extend("x-default" = "500, 502, 503, 504, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS, timeout, reset, connect"))]
    pub(in crate::config) failures: Option<Vec<String>>,
    /// How much it matters when not everything can be served: `low` is shed first, `high` last.
    #[schemars(extend("x-default" = "normal"))]
    pub(in crate::config) priority: Option<Priority>,
}

/// Tries of what may have been processed.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Retry {
    /// Tries in all, the first among them. More than 1 needs `timeout` or `retry.per_try`.
    #[schemars(range(min = 1, max = 10), extend("x-default" = "1"))]
    pub(in crate::config) attempts: Option<u32>,
    /// Bound on one try, to the head of its answer. `none` for no bound.
    #[schemars(extend("format" = "duration", "x-default" = "none"))]
    pub(in crate::config) per_try: Option<String>,
    /// After which ends: HTTP statuses (`503`, `5xx`), gRPC codes (`UNAVAILABLE`; also in trailers, when no message came before them), `timeout` (of one try), `reset`.
    #[schemars(extend("x-default" = "502, 503, 504, UNAVAILABLE, timeout, reset"))]
    pub(in crate::config) on: Option<Vec<String>>,
    /// The longest first wait; doubles with each try. The wait is anything up to it (full jitter). `Retry-After` and
    /// `grpc-retry-pushback-ms` of an answer win.
    #[schemars(extend("format" = "duration", "x-default" = "25ms"))]
    pub(in crate::config) backoff: Option<String>,
    /// Where the doubling ends.
    #[schemars(extend("format" = "duration", "x-default" = "ten times `retry.backoff`"))]
    pub(in crate::config) max_backoff: Option<String>,
    /// Bounds all these tries of one caller to the service; not in a route.
    pub(in crate::config) budget: Option<Budget>,
}

/// Bounds all tries of what may have been processed, of one caller to one service.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Budget {
    /// Tries of the requests of the last 10 s.
    #[schemars(extend("x-default" = "20%"))]
    pub(in crate::config) percent: Option<String>,
    /// Tries a second that are always allowed.
    #[schemars(range(min = 1, max = 10_000), extend("x-default" = "3"))]
    pub(in crate::config) min_per_second: Option<u32>,
}

/// `off`, or a map.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum HedgeOrOff {
    Off(Off),
    On(Hedge),
}

/// A second request while the first one is slow.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Hedge {
    /// When it is sent: after a time, or after `p95`, the 95th percentile of the latency that this caller has seen.
    #[schemars(extend("x-default" = "p95"))]
    pub(in crate::config) after: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum Priority {
    Low,
    Normal,
    High,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum Off {
    Off,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum Nothing {
    None,
}

/// What holds for all requests to a service.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub(in crate::config) struct Caller {
    /// Bound on making one connection to this service.
    #[schemars(extend("format" = "duration", "x-default" = "1s"))]
    pub(in crate::config) connect_timeout: Option<String>,
    /// How callers choose an endpoint. `p2c_peak_ewma`: the better of two random ones by recent latency and load;
    /// `least_request`: the one of two with fewer requests in flight; `round_robin`; `random`; or by hash:
    /// `{ring: {header: x-user}}` or `{maglev: {…}}`.
    #[schemars(extend("x-default" = "p2c_peak_ewma"))]
    pub(in crate::config) balance: Option<Balance>,
    /// When one caller stops calling the service for a while. At least one of `failures`, `rate`, `slow_rate`; the first
    /// that is reached opens it. Each caller has its own. `off` for never.
    #[schemars(extend("x-default" = "off"))]
    pub(in crate::config) breaker: Option<BreakerOrOff>,
    /// When one caller stops using an endpoint for a while. `off` for never.
    pub(in crate::config) outlier: Option<OutlierOrOff>,
    /// Bounds on what one caller (one sidecar) has open to the service.
    pub(in crate::config) concurrency: Option<Concurrency>,
    /// An endpoint that has just come gets its share by and by over this time. `none`: at once.
    #[schemars(extend("format" = "duration", "x-default" = "none"))]
    pub(in crate::config) slow_start: Option<String>,
    /// Endpoints with the caller's label `zone` first. `off`: zones do not matter.
    #[schemars(extend("x-default" = "off"))]
    pub(in crate::config) zone: Option<ZoneOrOff>,
    /// How many requests the app gets from its own sidecar at a time; the rest waits briefly or is shed as `overloaded`.
    /// `off`: as many as come.
    #[schemars(extend("x-default" = "off"))]
    pub(in crate::config) admission: Option<AdmissionOrOff>,
}

/// A name, or a map with `ring` or `maglev`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Balance {
    Name(BalanceName),
    Hash(BalanceHash),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum BalanceName {
    P2cPeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    Ring,
    Maglev,
}

/// Requests with one value keep to one endpoint; exactly one of `ring`, `maglev`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct BalanceHash {
    /// A ring of endpoints: when one of n leaves, 1/n of the values move.
    pub(in crate::config) ring: Option<HashOn>,
    /// A Maglev table: more even than a ring, and faster to look up; a few more values move.
    pub(in crate::config) maglev: Option<HashOn>,
    /// Times the average load that one endpoint may get before its requests go to the next one.
    #[schemars(extend("x-default" = "125%"))]
    pub(in crate::config) bound: Option<String>,
}

/// What the hash is taken of; exactly one. A request without it goes to the better of two random endpoints, and is
/// counted.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct HashOn {
    /// The first value of a header. A request without it goes to the better of two random endpoints, and is counted.
    pub(in crate::config) header: Option<String>,
    /// A cookie's value; as for `header`, a request without it falls back.
    pub(in crate::config) cookie: Option<String>,
    /// A query parameter's first value; as for `header`, a request without it falls back.
    pub(in crate::config) query: Option<String>,
    /// A segment of the path, counted from 1: 2 is `ada` in `/users/ada`. A shorter path falls back.
    #[schemars(range(min = 1, max = 64))]
    pub(in crate::config) path_segment: Option<u32>,
    /// The caller's identity. Callers without one fall back.
    pub(in crate::config) caller: Option<bool>,
}

/// `off`, or a map.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum BreakerOrOff {
    Off(Off),
    On(Box<Breaker>),
}

/// Criteria of `breaker` and `outlier` that count in a window.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub(in crate::config) struct Shares {
    /// Share of failures in the window; 0% is no criterion.
    #[schemars(extend("x-default" = "0%"))]
    pub(in crate::config) rate: Option<String>,
    /// An answer that takes longer is slow; needs `slow_rate`.
    #[schemars(extend("format" = "duration", "x-default" = "none"))]
    pub(in crate::config) slow: Option<String>,
    /// Share of slow answers in the window; needs `slow`.
    #[schemars(extend("x-default" = "0%"))]
    pub(in crate::config) slow_rate: Option<String>,
    /// Requests in the window before a share counts.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "20"))]
    pub(in crate::config) min_requests: Option<u32>,
    /// How far back a share looks.
    #[schemars(extend("format" = "duration", "x-default" = "10s"))]
    pub(in crate::config) window: Option<String>,
}

/// When one caller stops calling the service for a while.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Breaker {
    /// Failures in a row; 0 is no criterion.
    #[schemars(range(min = 0, max = 1_000_000), extend("x-default" = "0"))]
    pub(in crate::config) failures: Option<u32>,
    #[serde(flatten)]
    pub(in crate::config) shares: Shares,
    /// How long it stays open before a few requests are let through as probes; doubles at each failed probe.
    #[schemars(extend("format" = "duration", "x-default" = "10s"))]
    pub(in crate::config) cooldown: Option<String>,
    /// Where the doubling ends.
    #[schemars(extend("format" = "duration", "x-default" = "5m"))]
    pub(in crate::config) max_cooldown: Option<String>,
    /// Requests let through to try; all must be well.
    #[schemars(range(min = 1, max = 1000), extend("x-default" = "3"))]
    pub(in crate::config) probes: Option<u32>,
}

/// `off`, or a map.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum OutlierOrOff {
    Off(Off),
    On(Box<Outlier>),
}

/// When one caller stops using an endpoint for a while.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Outlier {
    /// Failures in a row; 0 is no criterion.
    #[schemars(range(min = 0, max = 1_000_000), extend("x-default" = "5"))]
    pub(in crate::config) failures: Option<u32>,
    #[serde(flatten)]
    pub(in crate::config) shares: Shares,
    /// How long it is not used; times the number of ejections in a row.
    #[schemars(extend("format" = "duration", "x-default" = "30s"))]
    pub(in crate::config) ejection: Option<String>,
    /// Where the growth ends.
    #[schemars(extend("format" = "duration", "x-default" = "5m"))]
    pub(in crate::config) max_ejection: Option<String>,
    /// Share of the endpoints that may be ejected at a time, rounded down.
    #[schemars(extend("x-default" = "50%"))]
    pub(in crate::config) max_ejected: Option<String>,
    /// With a smaller share of usable endpoints than this, all are used, ejected or not. `0%`: never; when all are
    /// ejected, requests are refused as `all_ejected` or go to `failover`.
    #[schemars(extend("x-default" = "50%"))]
    pub(in crate::config) panic: Option<String>,
}

/// Bounds on what one caller has open to the service.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Concurrency {
    /// Requests in flight to the service; more wait for `queue_timeout`. `none` for no bound.
    #[schemars(extend("x-default" = "none"))]
    pub(in crate::config) requests: Option<Bound>,
    /// Requests in flight to one endpoint. `none` for no bound.
    #[schemars(extend("x-default" = "none"))]
    pub(in crate::config) endpoint_requests: Option<Bound>,
    /// Requests that wait; above, refused at once.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "1024"))]
    pub(in crate::config) pending: Option<u32>,
    /// Connections with one user each: connections of the app to a `tcp` or `tls` port (each is one), and HTTP/1
    /// connections to instances without a sidecar, which are then not kept idle. More wait for `queue_timeout` and are
    /// refused as `connections_full`. HTTP/2 connections are shared and not counted: a worker has one to an instance, and
    /// another for each further 128 streams; `requests` bounds what they carry. `none` for no bound.
    #[schemars(extend("x-default" = "none"))]
    pub(in crate::config) connections: Option<Bound>,
}

/// A number, or `none`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Bound {
    Number(#[schemars(range(min = 1, max = 1_000_000))] u32),
    None(Nothing),
}

/// `off`, or a map.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum ZoneOrOff {
    Off(Off),
    On(Zone),
}

/// Endpoints with the caller's label `zone` first.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Zone {
    /// While the own zone has at least this share of its endpoints usable it gets everything; below, the rest goes to
    /// the others.
    #[schemars(extend("x-default" = "70%"))]
    pub(in crate::config) healthy: Option<String>,
}

/// `off`, or a map.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum AdmissionOrOff {
    Off(Off),
    On(Admission),
}

/// How many requests the app gets at a time.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Admission {
    /// A number, or how it is found: `gradient` (grows while latency stays near its long-term value) or `aimd` (grows by
    /// one, shrinks by a tenth on failure or lateness).
    #[schemars(extend("x-default" = "gradient"))]
    pub(in crate::config) limit: Option<String>,
    /// What is found is never less.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "4"))]
    pub(in crate::config) min: Option<u32>,
    /// What is found is never more.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "1000"))]
    pub(in crate::config) max: Option<u32>,
    /// Where the search begins.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "20"))]
    pub(in crate::config) initial: Option<u32>,
    /// A request that waited longer is shed.
    #[schemars(extend("format" = "duration", "x-default" = "100ms"))]
    pub(in crate::config) queue: Option<String>,
    /// Requests that wait; above, shed at once.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "128"))]
    pub(in crate::config) queue_length: Option<u32>,
}
