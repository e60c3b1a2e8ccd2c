//! Who may call whom: the rules in force, and why a call is allowed or not.
//!
//! Asks the matcher that the sidecars decide with, so the answer is theirs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outrigger_proto::access::{Asked, Call, Rules, Verdict, normalise};
use outrigger_proto::model::{Mode, Principal, Protocol, Rule, ServiceName, SpiffeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem;
use super::view::Problem;
use crate::catalog::Entry;
use crate::config::{self, PortDoc, ServiceDoc};
use crate::plane::Plane;

/// Who may call one service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AccessView {
    /// `namespace/service`.
    service: String,
    /// `strict`, `permissive` or `off`.
    mode: &'static str,
    /// `allow` or `deny`: what holds when no rule matches.
    default: &'static str,
    /// Who said so.
    default_source: String,
    /// Denials are let through, logged and counted.
    audit: bool,
    /// In the order in which they are read; the first that matches allows.
    rules: Vec<RuleView>,
    /// `file:line` of the service's document.
    source: String,
}

/// One entry of `allow`. An empty list matches anything.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RuleView {
    /// For example `allow[2]`.
    name: String,
    /// As in mesh.yaml.
    from: Vec<String>,
    ports: Vec<String>,
    methods: Vec<String>,
    paths: Vec<String>,
    grpc: Vec<String>,
}

/// A call to be explained.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ExplainRequest {
    /// `service`, `namespace/service`, `spiffe://…`, or `unauthenticated`.
    from: String,
    /// `service` or `namespace/service`.
    to: String,
    /// The port's name; the first one when absent.
    port: Option<String>,
    /// `GET` when absent (`POST` for gRPC).
    method: Option<String>,
    /// `/` when absent; for gRPC `package.Service/Method`.
    path: Option<String>,
}

/// Whether the call is allowed, and what decided.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExplainView {
    allowed: bool,
    /// What decided: a rule, a default, the mode.
    rule: String,
    /// `file:line` of the document that says so.
    source: String,
    /// It would be denied, and is let through and logged.
    audit: bool,
    /// Who calls, as its id; absent when nobody is proven.
    from: Option<String>,
    /// `namespace/service`.
    to: String,
    /// How it is reached.
    mode: &'static str,
    port: String,
    /// Absent for opaque bytes.
    method: Option<String>,
    path: Option<String>,
    /// The form in which paths are compared; absent when the path has none.
    normalised_path: Option<String>,
    /// Why the path has no such form: where rules name paths, it is refused.
    bad_path: Option<String>,
    /// The rules before the one that decided, each with the reason why it did not match.
    considered: Vec<Considered>,
    /// Something that the asker may not have meant.
    note: Option<String>,
}

/// A rule that did not match.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Considered {
    rule: String,
    why: String,
}

/// Who may call each service.
#[utoipa::path(get, path = "/v1/access", responses((status = 200, body = Vec<AccessView>)))]
pub(super) async fn all(State(plane): State<Arc<Plane>>) -> Json<Vec<AccessView>> {
    let rollout = plane.rollout();
    Json(rollout.catalog.iter().map(|(_, entry)| view(&entry.document)).collect())
}

/// Who may call one service.
#[utoipa::path(
    get, path = "/v1/access/{namespace}/{service}",
    params(("namespace" = String, Path), ("service" = String, Path)),
    responses((status = 200, body = AccessView), (status = 404, body = Problem))
)]
pub(super) async fn one(
    State(plane): State<Arc<Plane>>,
    Path((namespace, service)): Path<(String, String)>,
) -> Response {
    match find(&plane, &format!("{namespace}/{service}")) {
        Ok(entry) => Json(view(&entry.document)).into_response(),
        Err(Wrong(status, why)) => problem(status, why),
    }
}

/// Why a call is allowed or not.
#[utoipa::path(
    post, path = "/v1/access/explain", request_body = ExplainRequest,
    responses((status = 200, body = ExplainView), (status = 400, body = Problem), (status = 404, body = Problem))
)]
pub(super) async fn explain(State(plane): State<Arc<Plane>>, Json(request): Json<ExplainRequest>) -> Response {
    let trust_domain = plane.trust_domain();
    let answer = find(&plane, &request.to).and_then(|entry| {
        let document = &entry.document;
        let caller = caller(&plane, &request.from, trust_domain)?;
        let port = port(document, request.port.as_deref())?;
        let asked = asked(port, request.method, request.path)?;
        let rules = Rules::compile(&document.access, trust_domain)
            .map_err(|error| Wrong(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(decide(document, &rules, caller, port, asked))
    });
    match answer {
        Ok(view) => Json(view).into_response(),
        Err(Wrong(status, why)) => problem(status, why),
    }
}

/// Why a question is not answered.
struct Wrong(StatusCode, String);

fn decide(
    document: &ServiceDoc,
    rules: &Rules,
    (caller, mut note): (Option<SpiffeId>, Option<String>),
    port: &PortDoc,
    asked: Option<(String, String)>,
) -> ExplainView {
    // Without TLS nobody is proven, whoever it is.
    let proven = caller.as_ref().filter(|_| document.mode != Mode::Off);
    if caller.is_some() && proven.is_none() {
        note = Some("under `mode: off` nobody has an identity, so every caller is `unauthenticated`".to_owned());
    }
    let call = Call {
        caller: proven,
        port: &port.name,
        asked: asked.as_ref().map(|(method, path)| Asked { method, path }),
    };
    let explained = rules.explain(&call);
    let plain_at_strict = document.mode == Mode::Strict && caller.is_none();
    let normal = asked.as_ref().map(|(_, path)| normalise(path));
    let considered = explained.considered.into_iter().map(|(rule, why)| Considered {
        rule: rule.to_owned(),
        why,
    });
    ExplainView {
        allowed: !plain_at_strict && explained.verdict.passes(),
        rule: match plain_at_strict {
            true => "mode: strict lets nobody in without an identity".to_owned(),
            false => explained.rule.to_owned(),
        },
        source: source(document),
        audit: !plain_at_strict && matches!(explained.verdict, Verdict::Audited { .. }),
        from: proven.map(ToString::to_string),
        to: document.name.to_string(),
        mode: document.mode.as_str(),
        port: port.name.clone(),
        normalised_path: normal.as_ref().and_then(|n| n.as_ref().ok()).map(ToString::to_string),
        bad_path: normal.and_then(Result::err).map(|why| why.to_string()),
        considered: if plain_at_strict {
            Vec::new()
        } else {
            considered.collect()
        },
        method: asked.as_ref().map(|(method, _)| method.clone()),
        path: asked.map(|(_, path)| path),
        note,
    }
}

fn find(plane: &Plane, name: &str) -> Result<Entry, Wrong> {
    let name = parse(name)?;
    let rollout = plane.rollout();
    rollout.catalog.get(&name).cloned().ok_or_else(|| {
        let near = config::closest(name.as_str(), rollout.catalog.iter().map(|(known, _)| known.as_str()));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        Wrong(StatusCode::NOT_FOUND, format!("no service is called {name}{hint}"))
    })
}

fn parse(name: &str) -> Result<ServiceName, Wrong> {
    let name = match name.split_once('/') {
        Some((namespace, service)) => ServiceName::new(namespace, service),
        None => ServiceName::new("default", name),
    };
    name.map_err(|error| Wrong(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Who calls, and what the asker may not have meant.
fn caller(plane: &Plane, text: &str, trust_domain: &str) -> Result<(Option<SpiffeId>, Option<String>), Wrong> {
    if text == "unauthenticated" {
        return Ok((None, None));
    }
    if text.starts_with("spiffe://") {
        let id: Result<SpiffeId, _> = text.parse();
        return id
            .map(|id| (Some(id), None))
            .map_err(|error| Wrong(StatusCode::BAD_REQUEST, error.reason));
    }
    let name = parse(text)?;
    let rollout = plane.rollout();
    let note = (rollout.catalog.get(&name).is_none() && name.namespace() != config::RESERVED_NAMESPACE).then(|| {
        let near = config::closest(name.as_str(), rollout.catalog.iter().map(|(known, _)| known.as_str()));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        format!("no service of this mesh is called {name}{hint}")
    });
    SpiffeId::new(trust_domain, &name)
        .map(|id| (Some(id), note))
        .map_err(|error| Wrong(StatusCode::BAD_REQUEST, error.reason))
}

fn port<'d>(document: &'d ServiceDoc, name: Option<&str>) -> Result<&'d PortDoc, Wrong> {
    let names = || document.ports.iter().map(|port| port.name.as_str());
    let found = match name {
        Some(name) => document.ports.iter().find(|port| port.name == name),
        None => document.ports.first(),
    };
    found.ok_or_else(|| {
        let known = names().collect::<Vec<_>>().join(", ");
        let text = format!(
            "{} has no port `{}`; its ports: {known}",
            document.name,
            name.unwrap_or_default()
        );
        Wrong(StatusCode::BAD_REQUEST, text)
    })
}

/// Method and path; none for opaque bytes.
fn asked(port: &PortDoc, method: Option<String>, path: Option<String>) -> Result<Option<(String, String)>, Wrong> {
    if matches!(port.protocol, Protocol::Tcp | Protocol::Tls) {
        if method.is_some() || path.is_some() {
            let text = format!(
                "the port `{}` carries opaque bytes, which have no method and no path",
                port.name
            );
            return Err(Wrong(StatusCode::BAD_REQUEST, text));
        }
        return Ok(None);
    }
    let is_grpc = port.protocol == Protocol::Grpc;
    let method = method.unwrap_or_else(|| if is_grpc { "POST" } else { "GET" }.to_owned());
    let mut path = path.unwrap_or_else(|| "/".to_owned());
    if is_grpc && !path.starts_with('/') {
        path.insert(0, '/');
    }
    // Rules never see the query.
    if let Some((before, _)) = path.split_once('?') {
        path = before.to_owned();
    }
    Ok(Some((method, path)))
}

fn view(document: &ServiceDoc) -> AccessView {
    let access = &document.access;
    AccessView {
        service: document.name.to_string(),
        mode: document.mode.as_str(),
        default: if access.default_allow { "allow" } else { "deny" },
        default_source: access.default_source.clone(),
        audit: access.audit,
        rules: access.rules.iter().map(rule).collect(),
        source: source(document),
    }
}

fn rule(rule: &Rule) -> RuleView {
    RuleView {
        name: rule.name.clone(),
        from: rule.from.iter().map(written).collect(),
        ports: rule.ports.clone(),
        methods: rule.methods.clone(),
        paths: rule.paths.clone(),
        grpc: rule.grpc.clone(),
    }
}

/// A caller as mesh.yaml writes it.
fn written(principal: &Principal) -> String {
    match principal {
        Principal::Unauthenticated => "unauthenticated".to_owned(),
        Principal::Authenticated => "*".to_owned(),
        Principal::TrustDomain(domain) => format!("spiffe://{domain}/*"),
        Principal::Namespace(namespace) => format!("{namespace}/*"),
        Principal::Service(service) => service.to_string(),
        Principal::Id(id) => id.to_string(),
    }
}

fn source(document: &ServiceDoc) -> String {
    format!("{}:{}", document.location.file, document.location.line)
}
