//! Which requests go where: routes, subsets, weights, copies, edits, and failures on purpose.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Policy, ServiceName};

mod wire;

/// A set of a service's endpoints by their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// Unique in the service.
    pub name: Arc<str>,
    /// All must be equal; at least one.
    pub labels: Vec<(String, String)>,
}

/// A service, or a subset of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Destination {
    /// None: the service that the route belongs to.
    pub service: Option<ServiceName>,
    /// None: all endpoints.
    pub subset: Option<Arc<str>>,
}

/// What a hash is taken of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// A header's first value; lower case.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// A segment of the path, counted from 1.
    PathSegment(u32),
    /// The caller's identity.
    Caller,
    /// A query parameter's first value.
    Query(String),
}

/// Requests that match, and what happens to them. The first route that matches is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Unique in the service.
    pub name: Arc<str>,
    /// Any of them; none = everything.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
    /// In place of the service's.
    pub policy: Policy,
    /// On the way to the app.
    pub request_headers: HeaderEdits,
    /// On the way back.
    pub response_headers: HeaderEdits,
}

/// What happens to a request that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is sent on.
    Forward(Forward),
    /// The client is told another place.
    Redirect(Redirect),
    /// The mesh answers.
    Respond(DirectResponse),
}

/// How a request is sent on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forward {
    /// Destinations and their weights; the sum is above 0. Empty: the service itself.
    pub to: Vec<(Destination, u32)>,
    /// The same value goes the same way while the weights stay.
    pub sticky: Option<HashOn>,
    /// A copy, whose answer is thrown away.
    pub mirror: Option<Mirror>,
    /// Another authority; none: as it is.
    pub authority: Option<String>,
    /// Another path.
    pub path: Option<NewPath>,
}

/// A copy of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where it goes.
    pub to: Destination,
    /// Share of the requests, of a million.
    pub per_million: u32,
}

/// A path put in another's place; the query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewPath {
    /// The whole path.
    Full(String),
    /// What the match's prefix matched.
    Prefix(String),
}

/// Tells the client another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// None: the request's.
    pub scheme: Option<String>,
    /// None: the request's.
    pub authority: Option<String>,
    /// None: the request's.
    pub path: Option<NewPath>,
}

/// An answer of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// At most 64 KiB.
    pub body: String,
    /// The `content-type`.
    pub content_type: String,
}

/// Changes to a header section: removed, then set, then added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// Replace what is there.
    pub set: Vec<(String, String)>,
    /// Stand beside what is there.
    pub add: Vec<(String, String)>,
    /// Taken out.
    pub remove: Vec<String>,
}

impl HeaderEdits {
    /// True when nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// All parts must match; an empty part matches anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// `name`, `name:port`, `*.suffix`; lower case.
    pub hosts: Vec<String>,
    /// The normalised path.
    pub path: Option<PathMatch>,
    /// Upper case.
    pub methods: Vec<String>,
    /// Header fields; names in lower case.
    pub headers: Vec<FieldMatch>,
    /// Query parameters.
    pub query: Vec<FieldMatch>,
    /// `package.Service/Method` or `package.Service/*`.
    pub grpc: Vec<String>,
}

/// A path that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Byte for byte.
    Exact(String),
    /// Whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// `/users/{id}` (one segment each), `/static/*` (the rest).
    Template(String),
    /// The whole path, in linear time.
    Regex(String),
}

/// A field that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMatch {
    /// The field's name.
    pub name: String,
    /// What its first value is.
    pub value: ValueMatch,
}

/// A value that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// Byte for byte.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// The whole value, in linear time.
    Regex(String),
}

/// Makes requests fail on purpose until a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Unique in the service.
    pub name: String,
    /// Any of them; none = everything.
    pub matches: Vec<Match>,
    /// Callers whose requests it meets; none = all.
    pub callers: Vec<ServiceName>,
    /// Share of the requests, of a million.
    pub per_million: u32,
    /// What happens.
    pub harm: Harm,
    /// Ignored from then on.
    pub until: SystemTime,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// It waits before it is sent.
    Delay(Duration),
    /// It is answered so.
    Abort {
        /// HTTP.
        status: u16,
        /// For gRPC.
        grpc: u32,
    },
    /// The answer's stream breaks after so many bytes of its body.
    ResetAfter(u64),
    /// A connection for opaque bytes is closed at once.
    RefuseConnection,
}
