//! The HTTP/JSON face, for people and for `outrigger`; described by OpenAPI at /v1/openapi.json.
//!
//! Shows what the rooms know and posts configuration; decides nothing. Who may ask was decided
//! before; a page in a browser has neither the socket nor a token.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use outrigger_proto::model::{EndpointName, FieldError, ServiceName};
use outrigger_proto::wire::agent::{DrainNow, answer, down};
use serde::Deserialize;
use tokio::sync::oneshot;
use utoipa::{IntoParams, OpenApi};

use crate::config;
use crate::events::{Entry as EventEntry, Event};
use crate::identity::Asker;
use crate::plane::Plane;
use crate::sidecars::Command;

mod access;
mod identity;
mod look;
mod metrics;
mod view;

use view::{
    ConfigApplied, ConfigDiff, ConfigErrorView, ConfigStatus, ConfigView, EndpointView, Health, Problem, Problems,
    ServiceDetail,
};
use view::{RoutesView, ServiceView, SidecarView};

/// A configuration is text that people write.
const MAX_CONFIG: usize = 4 << 20;
/// A sidecar answers a request within this time.
const ANSWER: Duration = Duration::from_secs(5);

/// The document at /v1/openapi.json.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Outrigger control plane",
        description = "What the mesh knows, and its configuration."
    ),
    paths(
        services,
        service,
        endpoints,
        sidecars,
        drain,
        config_status,
        config_apply,
        config_diff,
        routes_of,
        access::all,
        access::one,
        access::explain,
        identity::tokens,
        identity::create_token,
        identity::revoke_token,
        identity::certs,
        identity::rotate,
        identity::rotation,
        identity::revoke,
        identity::allow,
        identity::operator_cert,
        identity::trust,
        events,
        openapi,
        metrics::metrics,
        health
    ),
    components(schemas(Event))
)]
struct Document;

/// Every route.
pub fn routes(plane: Arc<Plane>) -> Router {
    Router::new()
        .route("/v1/services", get(services))
        .route("/v1/services/{namespace}/{service}", get(service))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/sidecars", get(sidecars))
        .route("/v1/sidecars/{namespace}/{service}/{instance}/drain", post(drain))
        .route("/v1/config", get(config_status).post(config_apply))
        .route("/v1/config/diff", post(config_diff))
        .route("/v1/routes", get(routes_of))
        .route("/v1/access", get(access::all))
        .route("/v1/access/{namespace}/{service}", get(access::one))
        .route("/v1/access/explain", post(access::explain))
        .route("/v1/events", get(events))
        .merge(identity::routes())
        .route("/v1/openapi.json", get(openapi))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(health))
        .layer(DefaultBodyLimit::max(MAX_CONFIG))
        .with_state(plane)
}

fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (status, Json(Problem { error })).into_response()
}

/// Every service that is configured or has endpoints.
#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = Vec<ServiceView>)))]
async fn services(State(plane): State<Arc<Plane>>) -> Json<Vec<ServiceView>> {
    Json(look::services(&plane))
}

/// One service: document, policy, endpoints, who cannot be told.
#[utoipa::path(
    get, path = "/v1/services/{namespace}/{service}",
    params(("namespace" = String, Path), ("service" = String, Path)),
    responses((status = 200, body = ServiceDetail), (status = 404, body = Problem))
)]
async fn service(State(plane): State<Arc<Plane>>, Path((namespace, service)): Path<(String, String)>) -> Response {
    let name = match ServiceName::new(&namespace, &service) {
        Ok(name) => name,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
    };
    match look::service(&plane, &name) {
        Some(detail) => Json(detail).into_response(),
        None => unknown(&plane, &name),
    }
}

fn unknown(plane: &Plane, name: &ServiceName) -> Response {
    let known = look::names(plane);
    let close = config::closest(name.as_str(), known.iter().map(ServiceName::as_str));
    let hint = close
        .map(|close| format!("; did you mean {close}?"))
        .unwrap_or_default();
    problem(StatusCode::NOT_FOUND, format!("no service is called {name}{hint}"))
}

#[derive(Debug, Deserialize, IntoParams)]
struct EndpointsQuery {
    /// `service` or `namespace/service`; all services when absent.
    service: Option<String>,
}

impl EndpointsQuery {
    fn name(self) -> Result<Option<ServiceName>, FieldError> {
        let name = self.service.map(|text| match text.split_once('/') {
            Some((namespace, service)) => ServiceName::new(namespace, service),
            None => ServiceName::new("default", &text),
        });
        name.transpose()
    }
}

/// Every registration, served or not.
#[utoipa::path(
    get, path = "/v1/endpoints", params(EndpointsQuery),
    responses((status = 200, body = Vec<EndpointView>), (status = 400, body = Problem))
)]
async fn endpoints(State(plane): State<Arc<Plane>>, Query(query): Query<EndpointsQuery>) -> Response {
    match query.name() {
        Ok(name) => Json(look::endpoints(&plane, name.as_ref())).into_response(),
        Err(error) => problem(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

/// Every sidecar heard of lately.
#[utoipa::path(get, path = "/v1/sidecars", responses((status = 200, body = Vec<SidecarView>)))]
async fn sidecars(State(plane): State<Arc<Plane>>) -> Json<Vec<SidecarView>> {
    Json(look::sidecars(&plane))
}

/// Asks a sidecar to drain now.
#[utoipa::path(
    post, path = "/v1/sidecars/{namespace}/{service}/{instance}/drain",
    params(("namespace" = String, Path), ("service" = String, Path), ("instance" = String, Path)),
    responses((status = 202, description = "it drains"), (status = 404, body = Problem), (status = 502, body = Problem))
)]
async fn drain(
    State(plane): State<Arc<Plane>>,
    Path((namespace, service, instance)): Path<(String, String, String)>,
) -> Response {
    let name = match format!("{namespace}/{service}/{instance}").parse::<EndpointName>() {
        Ok(name) => name,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let commands = {
        let sidecars = plane.sidecars.lock();
        let open = sidecars.get(&name).filter(|s| s.session.is_some());
        open.map(|s| s.commands.clone())
    };
    let Some(commands) = commands else {
        return problem(StatusCode::NOT_FOUND, format!("no session of {name} is open"));
    };
    let (reply, answered) = oneshot::channel();
    let body = down::Body::DrainNow(DrainNow {});
    let reply = Some(reply);
    if commands.try_send(Command { body, reply }).is_err() {
        return problem(StatusCode::BAD_GATEWAY, "the sidecar has not answered earlier requests");
    }
    match tokio::time::timeout(ANSWER, answered).await {
        Ok(Ok(answer::Result::Done(_))) => StatusCode::ACCEPTED.into_response(),
        Ok(Ok(answer::Result::Unsupported(what))) => problem(StatusCode::BAD_GATEWAY, format!("unsupported: {what}")),
        Ok(Ok(answer::Result::Failed(why))) => problem(StatusCode::BAD_GATEWAY, why),
        Ok(Err(_)) => problem(StatusCode::BAD_GATEWAY, "the session ended"),
        Err(_) => problem(StatusCode::BAD_GATEWAY, "the sidecar did not answer in time"),
    }
}

/// Which configuration is in force, and what was refused since.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = ConfigView)))]
async fn config_status(State(plane): State<Arc<Plane>>) -> Json<ConfigView> {
    Json(look::config(&plane))
}

/// Puts a mesh.yaml into force, or refuses it whole.
#[utoipa::path(
    post, path = "/v1/config", request_body(content = String, description = "the text of a mesh.yaml"),
    responses((status = 200, body = ConfigApplied), (status = 422, body = Problems))
)]
async fn config_apply(State(plane): State<Arc<Plane>>, text: String) -> Response {
    let mesh = config::parse("mesh.yaml", &text);
    let warnings = mesh.as_ref().map_or(&[][..], |mesh| &mesh.warnings);
    let warnings = warnings.iter().map(ConfigErrorView::from).collect();
    match plane.apply("POST /v1/config", mesh, &text) {
        Ok(applied) => Json(ConfigApplied {
            changed: applied.changes.names().iter().map(ToString::to_string).collect(),
            version: applied.version,
            warnings,
        })
        .into_response(),
        Err(errors) => problems(&errors),
    }
}

fn problems(errors: &config::ConfigErrors) -> Response {
    let errors = errors.errors.iter().map(ConfigErrorView::from).collect();
    (StatusCode::UNPROCESSABLE_ENTITY, Json(Problems { errors })).into_response()
}

/// What a mesh.yaml would change of what is in force; changes nothing.
#[utoipa::path(
    post, path = "/v1/config/diff", request_body(content = String, description = "the text of a mesh.yaml"),
    responses((status = 200, body = ConfigDiff), (status = 422, body = Problems))
)]
async fn config_diff(State(plane): State<Arc<Plane>>, text: String) -> Response {
    match config::parse("mesh.yaml", &text) {
        Ok(mesh) => Json(ConfigDiff {
            services: look::diff(&plane, &mesh),
            warnings: mesh.warnings.iter().map(ConfigErrorView::from).collect(),
        })
        .into_response(),
        Err(errors) => problems(&errors),
    }
}

/// The routes of one service, or of all that have some, in the order in which they are tried.
#[utoipa::path(
    get, path = "/v1/routes", params(EndpointsQuery),
    responses((status = 200, body = Vec<RoutesView>), (status = 400, body = Problem), (status = 404, body = Problem))
)]
async fn routes_of(State(plane): State<Arc<Plane>>, Query(query): Query<EndpointsQuery>) -> Response {
    let name = match query.name() {
        Ok(name) => name,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let found = look::routes(&plane, name.as_ref());
    match name.filter(|_| found.is_empty()) {
        Some(name) => unknown(&plane, &name),
        None => Json(found).into_response(),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
struct EventsQuery {
    /// Only events after the one with this id.
    #[serde(default)]
    after: u64,
}

/// What happened lately, oldest first; at most 1000 of breakers and endpoints, and 1000 others.
#[utoipa::path(get, path = "/v1/events", params(EventsQuery), responses((status = 200, body = Vec<EventEntry>)))]
async fn events(State(plane): State<Arc<Plane>>, Query(query): Query<EventsQuery>) -> Json<Vec<EventEntry>> {
    Json(plane.events.since(query.after))
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

/// Whether the control plane is well: `degraded` still serves. Open to anybody; the reasons are for operators.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
async fn health(State(plane): State<Arc<Plane>>, Extension(asker): Extension<Asker>) -> Json<Health> {
    let mut reasons: Vec<String> = plane.store.failure().into_iter().collect();
    if plane.authority.is_failing() {
        reasons.push("the identity state cannot be stored, so no certificate is granted".to_owned());
    }
    if look::config(&plane).status == ConfigStatus::Refused {
        reasons.push("the newest configuration was refused; see /v1/config".to_owned());
    }
    let stale = look::services(&plane).into_iter().filter(|s| s.stale.is_some());
    reasons.extend(stale.map(|s| format!("{} is stale: its last endpoints are kept", s.name)));
    let status = if reasons.is_empty() { "ok" } else { "degraded" };
    if asker != Asker::Operator {
        reasons.clear();
    }
    Json(Health { status, reasons })
}
