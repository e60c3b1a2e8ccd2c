//! The documents as written: serde types whose doc comments *are* the reference.
//!
//! `schema` and `explain` print them, `check` reads the types from them. Extra words: `x-default` is the built-in
//! default. A value here has the right shape and nothing more; what it means is decided in `service`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

mod route;
mod traffic;

pub(super) use route::*;
pub(super) use traffic::*;

/// The first document of the file, which may be left out: what holds for all services.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "MeshDocument")]
pub(super) struct Mesh {
    /// The mesh's name, shown to people.
    #[schemars(extend("x-default" = "the folder's name"))]
    pub(super) mesh: Option<String>,
    /// The namespace of services that name no other.
    #[schemars(extend("x-default" = "default"))]
    pub(super) namespace: Option<String>,
    /// What services use where they say nothing themselves.
    pub(super) defaults: Option<Defaults>,
    /// Who may call services that do not say `allow` themselves.
    pub(super) access: Option<Access>,
    /// What differs in one namespace, by its name.
    pub(super) namespaces: Option<BTreeMap<String, Namespace>>,
    /// One line that `up` shows when everything runs: what to try first.
    #[serde(rename = "try")]
    pub(super) hint: Option<String>,
}

/// What services use where they say nothing themselves.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Defaults {
    #[serde(flatten)]
    pub(super) request: Request,
    #[serde(flatten)]
    pub(super) caller: Caller,
    pub(super) external: Option<External>,
    pub(super) limits: Option<Limits>,
    pub(super) drain: Option<Drain>,
    pub(super) access_log: Option<AccessLog>,
    pub(super) health: Option<HealthDefaults>,
    pub(super) mode: Option<Mode>,
}

/// Who may call services that do not say `allow` themselves.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Access {
    /// Whether a service without `allow` is open to every workload of the mesh, or closed.
    #[schemars(extend("x-default" = "allow"))]
    pub(super) default: Option<AccessDefault>,
    /// Lets through what would be denied, with a line in the log and a count.
    #[schemars(extend("x-default" = "false"))]
    pub(super) audit: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AccessDefault {
    Allow,
    Deny,
}

/// What differs in one namespace.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Namespace {
    /// Who may call services of the namespace that do not say `allow` themselves; wins over the mesh's.
    pub(super) access: Option<Access>,
}

/// How often and how strictly apps are asked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthDefaults {
    pub(super) every: Option<String>,
    pub(super) timeout: Option<String>,
    pub(super) healthy: Option<u32>,
    pub(super) unhealthy: Option<u32>,
}

/// One service: how it is started and the policy of its traffic.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ServiceDocument")]
pub(super) struct Service {
    /// The service's name: 1 to 63 of a-z, 0-9 and `-`.
    pub(super) service: String,
    /// Where the name holds; another namespace may have a service of the same name.
    #[schemars(extend("x-default" = "the mesh document's namespace"))]
    pub(super) namespace: Option<String>,
    /// The language it is written in; shown in tables, decides nothing.
    pub(super) language: Option<String>,
    /// A shell line that builds it. Runs before the first start, and again only when something changed.
    pub(super) build: Option<String>,
    /// A shell line that starts it. It is told HOST, PORT, `PORT_<NAME>` of further ports, and `<SERVICE>_ADDR` and
    /// `<SERVICE>_URL` of each of `calls`. Without it somebody else starts the app.
    pub(super) run: Option<String>,
    /// The folder in which `build` and `run` run, counted from the file.
    #[schemars(extend("x-default" = "the file's folder"))]
    pub(super) dir: Option<String>,
    /// Variables for the app. Secrets by reference: `{from_env: NAME}` or `{from_file: PATH}`.
    pub(super) env: Option<BTreeMap<String, Env>>,
    /// Instances that differ, by name: `{v1: {}, v2: {run: ./post2}}` runs both. Each has the label `version` with its
    /// name, and is a subset of that name, unless `labels` or `subsets` say otherwise. Stands in place of `replicas`.
    pub(super) versions: Option<BTreeMap<String, Version>>,
    /// Copies that run, each with its own sidecar.
    #[schemars(range(min = 1, max = 100), extend("x-default" = "1"))]
    pub(super) replicas: Option<u32>,
    /// Where the sidecar listens for callers on 127.0.0.1. The short form of `ports` for a service with one port.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "any free port"))]
    pub(super) port: Option<u16>,
    /// Where the app listens when it cannot be told by PORT.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "any free port, told by PORT"))]
    pub(super) app_port: Option<u16>,
    /// How the bytes of the one port are spoken; `auto` looks at the first bytes. The port is named after it
    /// (`main` for `auto`, `http` for `http2`).
    #[schemars(extend("x-default" = "auto"))]
    pub(super) protocol: Option<Protocol>,
    /// Named ports, when there are several. The first is the default of callers.
    pub(super) ports: Option<Vec<Port>>,
    /// How the sidecar asks the app whether it is well. Only a well app is registered.
    #[schemars(extend("x-default" = "a TCP connection to the first port"))]
    pub(super) health: Option<Health>,
    /// What the app needs to be useful; shown by `health` and fed into readiness.
    pub(super) depends: Option<Vec<Depends>>,
    /// The services it calls, as `service` or `namespace/service`. Each gives it `<SERVICE>_ADDR` and `<SERVICE>_URL`.
    /// A cycle is allowed.
    pub(super) calls: Option<Vec<String>>,
    #[serde(flatten)]
    pub(super) request: Request,
    #[serde(flatten)]
    pub(super) caller: Caller,
    /// Where requests go while the service has no usable endpoint, in order.
    pub(super) failover: Option<Vec<Elsewhere>>,
    /// Sets of its endpoints by their labels, for `to`, `mirror` and `failover`: `{v2: {version: "2"}}`.
    pub(super) subsets: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Which requests go where, and what holds for them. The first that matches is taken; what matches none goes to the
    /// service.
    pub(super) routes: Option<Vec<Route>>,
    /// Makes requests fail on purpose, until a moment.
    pub(super) faults: Option<Vec<Fault>>,
    /// How many requests its sidecars take in a time.
    pub(super) rate_limits: Option<Vec<RateLimit>>,
    /// Which requests matter more; the first entry that matches.
    pub(super) priorities: Option<Vec<PriorityRule>>,
    /// How callers reach it. `strict`: by mutual TLS of the mesh and nothing else. `permissive`: also plain, for a
    /// migration; where somebody may not call, plain callers need an entry that names `unauthenticated`. `off`: plain
    /// only.
    #[schemars(extend("x-default" = "strict"))]
    pub(super) mode: Option<Mode>,
    /// Who may call it; anybody else is denied. Each entry is a caller or a map with `from`. Without the key, `access`
    /// of the namespace or the mesh decides; `[]` lets nobody in.
    pub(super) allow: Option<Vec<Allow>>,
    /// Lets through what would be denied, with a line in the log and a count.
    #[schemars(extend("x-default" = "`access.audit` of the namespace or the mesh, else false"))]
    pub(super) audit: Option<bool>,
    /// Set it to acknowledge that the app listens where others can reach it past its sidecar. Otherwise such an app is
    /// not registered under `mode: strict`.
    #[schemars(extend("x-default" = "false"))]
    pub(super) exposed_app: Option<bool>,
    /// What it may reach outside the mesh through the HTTP proxy: `allow`, `deny`, or a list of hosts
    /// (`*.example.com` matches every name below). Metadata addresses are always refused.
    #[schemars(extend("x-default" = "allow"))]
    pub(super) external: Option<External>,
    /// Bounds on what clients may ask of its sidecar.
    pub(super) limits: Option<Limits>,
    /// How its sidecar leaves.
    pub(super) drain: Option<Drain>,
    /// One line of JSON a request, or nothing.
    #[schemars(extend("x-default" = "off"))]
    pub(super) access_log: Option<AccessLog>,
    /// Labels of its endpoints, for example `version: v1` and `zone: a`.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// The share of requests of each of its endpoints, relative to others of the same service.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "1"))]
    pub(super) weight: Option<u32>,
}

/// Instances of a service that are alike; what is left out is as the service says.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    /// A shell line that starts it.
    #[schemars(extend("x-default" = "the service's `run`"))]
    pub(super) run: Option<String>,
    /// Copies that run.
    #[schemars(range(min = 1, max = 100), extend("x-default" = "1"))]
    pub(super) replicas: Option<u32>,
    /// Labels beside those of the service; `version` is the name unless it stands here.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// The share of requests of each of its endpoints.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "the service's `weight`"))]
    pub(super) weight: Option<u32>,
    /// Variables beside those of the service.
    pub(super) env: Option<BTreeMap<String, Env>>,
}

/// A variable's value, or where it comes from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Env {
    Plain(String),
    From(EnvFrom),
}

/// Where a variable's value comes from; exactly one.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvFrom {
    /// A variable of the environment in which `outrigger` was started.
    pub(super) from_env: Option<String>,
    /// A file, counted from mesh.yaml; its content without the last line end.
    pub(super) from_file: Option<String>,
}

/// A named port.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Port {
    /// Unique in the service. Callers see it in `<SERVICE>_<NAME>_ADDR`.
    pub(super) name: String,
    /// How the bytes are spoken; `auto` looks at the first bytes.
    #[schemars(extend("x-default" = "auto"))]
    pub(super) protocol: Option<Protocol>,
    /// Where the sidecar listens for callers on 127.0.0.1.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "any free port"))]
    pub(super) port: Option<u16>,
    /// Where the app listens when it cannot be told.
    #[schemars(range(min = 1, max = 65535), extend("x-default" = "any free port, told by PORT or PORT_<NAME>"))]
    pub(super) app_port: Option<u16>,
    /// Set it when the server speaks first, as databases and mail servers do (`protocol: tcp` only). Under
    /// `mode: permissive` callers of the mesh then use a second port, since nothing tells them from plain ones.
    #[schemars(extend("x-default" = "false"))]
    pub(super) server_first: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    Strict,
    Permissive,
    Off,
}

/// A caller, or a map with `from` that also names ports, methods, paths or gRPC methods.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Allow {
    Caller(String),
    Rule(AllowRule),
}

/// Who may call what. Lists are joined by AND; a list that is left out matches anything.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AllowRule {
    /// A caller or a list of them: `service`, `namespace/service`, `namespace/*`, `*` for every workload that the mesh
    /// knows, `unauthenticated` for plain clients, `spiffe://domain/ns/namespace/svc/service`, `spiffe://domain/*`.
    #[schemars(extend("x-default" = "*"))]
    pub(super) from: Option<OneOrMany>,
    /// Names of the service's ports.
    pub(super) ports: Option<Vec<String>>,
    /// HTTP methods, for example `GET`; it does not include `HEAD`.
    pub(super) methods: Option<Vec<String>>,
    /// Paths: `/exact`, `/users/{id}` (any one segment), `/static/*` (everything below). Not beside `grpc`.
    pub(super) paths: Option<Vec<String>>,
    /// gRPC methods: `package.Service/Method` or `package.Service/*`.
    pub(super) grpc: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
    Tls,
    Auto,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AccessLog {
    Off,
    Json,
}

/// `allow`, `deny`, or a list of hosts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum External {
    Mode(ExternalMode),
    Hosts(Vec<String>),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExternalMode {
    Allow,
    Deny,
}

/// How the sidecar asks the app whether it is well; at most one of http, grpc, tcp, exec.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    /// A path; well when it answers 2xx or 3xx.
    pub(super) http: Option<String>,
    /// A name for `grpc.health.v1.Health/Check`, empty for the whole server; well when it answers SERVING.
    pub(super) grpc: Option<String>,
    /// Well when a connection is accepted.
    pub(super) tcp: Option<bool>,
    /// A program and its arguments; well when it exits with 0.
    pub(super) exec: Option<Vec<String>>,
    /// The name of the port that is asked.
    #[schemars(extend("x-default" = "the first port"))]
    pub(super) port: Option<String>,
    /// Time between two questions.
    #[schemars(extend("format" = "duration", "x-default" = "2s"))]
    pub(super) every: Option<String>,
    /// Bound on one answer.
    #[schemars(extend("format" = "duration", "x-default" = "1s"))]
    pub(super) timeout: Option<String>,
    /// Good answers in a row before a failing app counts as well.
    #[schemars(range(min = 1, max = 1000), extend("x-default" = "1"))]
    pub(super) healthy: Option<u32>,
    /// Bad answers in a row before a well app counts as failing.
    #[schemars(range(min = 1, max = 1000), extend("x-default" = "2"))]
    pub(super) unhealthy: Option<u32>,
}

/// Something the app needs; exactly one of file, tcp, http.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Depends {
    /// Shown to people.
    #[schemars(extend("x-default" = "what is checked"))]
    pub(super) name: Option<String>,
    /// A file that must exist and be readable, counted from `dir`.
    pub(super) file: Option<String>,
    /// `host:port` that must accept a connection.
    pub(super) tcp: Option<String>,
    /// A URL that must answer 2xx or 3xx.
    pub(super) http: Option<String>,
}

/// Bounds on what clients may ask of a sidecar.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Client connections of the whole sidecar at a time.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "20000"))]
    pub(super) max_connections: Option<u32>,
    /// Client connections of one listener at a time.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-default" = "10000"))]
    pub(super) max_connections_per_listener: Option<u32>,
    /// Bytes in one header section.
    #[schemars(range(min = 8192, max = 1_048_576), extend("x-default" = "61440"))]
    pub(super) max_header_bytes: Option<u32>,
    /// Fields in one header section.
    #[schemars(range(min = 8, max = 4096), extend("x-default" = "100"))]
    pub(super) max_headers: Option<u32>,
    /// To read one request's header section.
    #[schemars(extend("format" = "duration", "x-default" = "10s"))]
    pub(super) header_timeout: Option<String>,
    /// After which an idle client connection is closed.
    #[schemars(extend("format" = "duration", "x-default" = "1h"))]
    pub(super) idle_timeout: Option<String>,
    /// Age at which a connection is closed gracefully, give or take a tenth.
    #[schemars(extend("format" = "duration", "x-default" = "1h"))]
    pub(super) max_connection_age: Option<String>,
    /// Streams of one HTTP/2 connection at a time.
    #[schemars(range(min = 1, max = 128), extend("x-default" = "128"))]
    pub(super) max_streams: Option<u32>,
    /// Mebibytes of messages that the whole sidecar holds for slow peers; above it requests are shed as `overloaded`.
    #[schemars(range(min = 1, max = 1_048_576), extend("x-default" = "256"))]
    pub(super) max_buffered_mib: Option<u32>,
    /// File descriptors that client connections cannot use up.
    #[schemars(range(min = 8, max = 65_536), extend("x-default" = "64"))]
    pub(super) file_reserve: Option<u32>,
    /// Streams that one HTTP/2 client may reset in a second before its connection is ended.
    #[schemars(range(min = 10, max = 1_000_000), extend("x-default" = "1000"))]
    pub(super) max_resets: Option<u32>,
    /// Other frames that carry nothing (pings, settings, window updates, empty frames) that one HTTP/2 client may send in
    /// a second before its connection is ended; what it is sent counts in its favour.
    #[schemars(range(min = 10, max = 1_000_000), extend("x-default" = "1000"))]
    pub(super) max_control_frames: Option<u32>,
    /// Requests with a header name that has an underscore: refused, or the field removed, or passed on. gRPC's metadata
    /// always passes.
    #[schemars(extend("x-default" = "reject"))]
    pub(super) underscores: Option<Underscores>,
    /// Trailers of messages that are not gRPC's: passed on, or removed.
    #[schemars(extend("x-default" = "pass"))]
    pub(super) trailers: Option<Trailers>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Underscores {
    Reject,
    Drop,
    Allow,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Trailers {
    Pass,
    Drop,
}

/// How a sidecar leaves.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// Keeps serving this long after it left the registry.
    #[schemars(extend("format" = "duration", "x-default" = "500ms"))]
    pub(super) delay: Option<String>,
    /// Then waits this long for what is open.
    #[schemars(extend("format" = "duration", "x-default" = "10s"))]
    pub(super) deadline: Option<String>,
}
