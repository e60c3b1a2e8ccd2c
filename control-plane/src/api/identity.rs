//! Tokens, certificates, rotation, revocation: what an operator does about identity.
//!
//! Whatever is stored waits for the disk, so it runs where waiting is allowed.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger_proto::model::{Revocation, ServiceName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem;
use super::view::Problem;
use crate::identity::{Authority, CertsView, Granted, Purpose, Refusal, RotationView, TokenView, clock};
use crate::plane::Plane;

/// A token lives this long when nothing is said.
const TOKEN_LIFE: u64 = 600;
/// An operator's.
const OPERATOR_TOKEN_LIFE: u64 = 86_400;

pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new()
        .route("/v1/tokens", get(tokens).post(create_token))
        .route("/v1/tokens/{id}", delete(revoke_token))
        .route("/v1/certs", get(certs))
        .route("/v1/certs/rotate", post(rotate))
        .route("/v1/certs/rotation", get(rotation))
        .route("/v1/certs/revoke", post(revoke))
        .route("/v1/certs/allow", post(allow))
        .route("/v1/certs/operator", post(operator_cert))
        .route("/v1/trust", get(trust))
}

/// A token to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRequest {
    /// `default` when absent.
    namespace: Option<String>,
    /// The service that joins by it.
    service: Option<String>,
    /// Instead of a service: its bearer is an operator.
    #[serde(default)]
    operator: bool,
    /// How often it may be used; 0 = always, 1 when absent. An operator's has no limit.
    uses: Option<u32>,
    /// Seconds; 600 when absent, a day for an operator's.
    ttl_s: Option<u64>,
}

/// A token that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenCreated {
    id: String,
    /// The whole token; it is not shown again.
    token: String,
    /// RFC 3339.
    expires: String,
}

/// Exactly one of both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    /// Of one certificate, lower-case hexadecimal.
    serial: Option<String>,
    /// `service` or `namespace/service`.
    service: Option<String>,
}

/// What a revocation reached.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevokedView {
    /// Serial or `namespace/service`.
    revoked: String,
    /// False when no certificate of that serial is known; it is revoked all the same.
    known: bool,
}

/// How a rotation begins.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateRequest {
    /// Seconds after the beginning when missing sidecars are waited for no longer.
    force_after_s: Option<u64>,
}

/// A person's certificate to sign.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OperatorCertRequest {
    /// PKCS#10, DER, base64.
    csr: String,
    /// `service` or `namespace/service` to call others as; the operator when absent.
    #[serde(rename = "as")]
    as_service: Option<String>,
}

/// A certificate and what to trust.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OperatorCert {
    /// Leaf first, then intermediates; DER, base64.
    chain: Vec<String>,
    serial: String,
    /// Unix seconds.
    not_after: u64,
    trust: TrustView,
}

/// What every workload trusts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrustView {
    trust_domain: String,
    /// Grows with each change of the roots.
    generation: u64,
    /// DER, base64; the last one signs.
    roots: Vec<String>,
    /// Serials and `namespace/service`.
    revoked: Vec<String>,
}

impl From<outrigger_proto::model::TrustBundle> for TrustView {
    fn from(bundle: outrigger_proto::model::TrustBundle) -> Self {
        let revoked = bundle.revoked.iter().map(|revocation| match revocation {
            Revocation::Serial(serial) => serial.clone(),
            Revocation::Service(service) => service.to_string(),
        });
        Self {
            revoked: revoked.collect(),
            roots: bundle.roots.iter().map(|der| STANDARD.encode(der)).collect(),
            trust_domain: bundle.trust_domain,
            generation: bundle.generation,
        }
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
        Refusal::Unproven(_) => StatusCode::UNAUTHORIZED,
        Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
        Refusal::Unknown(_) => StatusCode::NOT_FOUND,
        Refusal::Conflict(_) => StatusCode::CONFLICT,
        Refusal::TooOften { .. } => StatusCode::TOO_MANY_REQUESTS,
        Refusal::Busy | Refusal::Store(_) | Refusal::Signing(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    problem(status, refusal.to_string())
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(
    plane: &Plane,
    work: impl FnOnce(&Authority) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Response> {
    let authority = Arc::clone(&plane.authority);
    match tokio::task::spawn_blocking(move || work(&authority)).await {
        Ok(done) => done.map_err(|refusal| refused(&refusal)),
        Err(_) => Err(problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "a fault in the control plane",
        )),
    }
}

fn service_name(text: &str) -> Result<ServiceName, Refusal> {
    let name = match text.split_once('/') {
        Some((namespace, service)) => ServiceName::new(namespace, service),
        None => ServiceName::new("default", text),
    };
    name.map_err(|e| Refusal::Malformed(e.to_string()))
}

fn target(target: &Target) -> Result<Revocation, Refusal> {
    match (&target.serial, &target.service) {
        (Some(serial), None) => Ok(Revocation::Serial(serial.clone())),
        (None, Some(service)) => service_name(service).map(Revocation::Service),
        _ => Err(Refusal::Malformed("exactly one of serial and service is needed".into())),
    }
}

/// Every token that is good.
#[utoipa::path(get, path = "/v1/tokens", responses((status = 200, body = Vec<TokenView>)))]
pub(super) async fn tokens(State(plane): State<Arc<Plane>>) -> Json<Vec<TokenView>> {
    Json(plane.authority.tokens(clock()))
}

/// Makes a token by which a workload joins, or by which a person is an operator.
#[utoipa::path(
    post, path = "/v1/tokens", request_body = TokenRequest,
    responses((status = 201, body = TokenCreated), (status = 400, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn create_token(State(plane): State<Arc<Plane>>, Json(request): Json<TokenRequest>) -> Response {
    let namespace = request.namespace.as_deref().unwrap_or("default");
    let purpose = match (&request.service, request.operator) {
        (Some(service), false) => match ServiceName::new(namespace, service) {
            Ok(name) => Purpose::Join(name),
            Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
        },
        (None, true) if request.namespace.is_none() => Purpose::Operator,
        _ => return problem(StatusCode::BAD_REQUEST, "a token is for a service, or for an operator"),
    };
    let life = match request.operator {
        true => OPERATOR_TOKEN_LIFE,
        false => TOKEN_LIFE,
    };
    let (uses, life) = (request.uses.unwrap_or(1), request.ttl_s.unwrap_or(life));
    let created = blocking(&plane, move |authority| {
        let token = authority.create_token(clock(), &purpose, uses, life)?;
        let view = authority.tokens(clock()).into_iter().find(|t| t.id == token.id);
        Ok(TokenCreated {
            token: token.to_string(),
            expires: view.map(|v| v.expires).unwrap_or_default(),
            id: token.id,
        })
    });
    match created.await {
        Ok(created) => (StatusCode::CREATED, Json(created)).into_response(),
        Err(response) => response,
    }
}

/// Ends a token.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", params(("id" = String, Path)),
    responses((status = 204, description = "it is no longer good"), (status = 404, body = Problem))
)]
pub(super) async fn revoke_token(State(plane): State<Arc<Plane>>, Path(id): Path<String>) -> Response {
    match blocking(&plane, move |authority| authority.revoke_token(&id)).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(response) => response,
    }
}

/// Every workload's certificates, the roots, the rotation, what is revoked.
#[utoipa::path(get, path = "/v1/certs", responses((status = 200, body = CertsView)))]
pub(super) async fn certs(State(plane): State<Arc<Plane>>) -> Json<CertsView> {
    Json(plane.authority.certs(clock(), &*plane))
}

/// Begins to replace the root; while it is being spread, changes how long missing sidecars are waited for.
#[utoipa::path(
    post, path = "/v1/certs/rotate", request_body = RotateRequest,
    responses((status = 202, body = RotationView), (status = 409, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn rotate(State(plane): State<Arc<Plane>>, request: Option<Json<RotateRequest>>) -> Response {
    let force_after = request.unwrap_or_default().force_after_s;
    match blocking(&plane, move |authority| authority.rotate(clock(), force_after)).await {
        Ok(()) => (StatusCode::ACCEPTED, rotation(State(plane)).await).into_response(),
        Err(response) => response,
    }
}

/// How far the rotation is, and who is waited for.
#[utoipa::path(get, path = "/v1/certs/rotation", responses((status = 200, body = RotationView)))]
pub(super) async fn rotation(State(plane): State<Arc<Plane>>) -> Json<RotationView> {
    Json(plane.authority.rotation(clock(), &*plane))
}

/// No longer lets in a workload or a service, and issues nothing more to it until it is allowed.
#[utoipa::path(
    post, path = "/v1/certs/revoke", request_body = Target,
    responses((status = 200, body = RevokedView), (status = 400, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn revoke(State(plane): State<Arc<Plane>>, Json(request): Json<Target>) -> Response {
    let revoked = blocking(&plane, move |authority| {
        let target = target(&request)?;
        let known = authority.revoke(clock(), &target)?;
        let revoked = match target {
            Revocation::Serial(serial) => serial,
            Revocation::Service(service) => service.to_string(),
        };
        Ok(RevokedView { revoked, known })
    });
    match revoked.await {
        Ok(view) => Json(view).into_response(),
        Err(response) => response,
    }
}

/// Ends a revocation.
#[utoipa::path(
    post, path = "/v1/certs/allow", request_body = Target,
    responses((status = 204, description = "it is let in again"), (status = 404, body = Problem))
)]
pub(super) async fn allow(State(plane): State<Arc<Plane>>, Json(request): Json<Target>) -> Response {
    match blocking(&plane, move |authority| authority.allow(&target(&request)?)).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(response) => response,
    }
}

/// Signs a short-lived certificate for a person, to call services with.
#[utoipa::path(
    post, path = "/v1/certs/operator", request_body = OperatorCertRequest,
    responses((status = 200, body = OperatorCert), (status = 400, body = Problem), (status = 503, body = Problem))
)]
pub(super) async fn operator_cert(
    State(plane): State<Arc<Plane>>,
    Json(request): Json<OperatorCertRequest>,
) -> Response {
    let granted = blocking(&plane, move |authority| {
        let csr = STANDARD
            .decode(&request.csr)
            .map_err(|_| Refusal::Malformed("csr is not base64".into()))?;
        let service = request.as_service.as_deref().map(service_name).transpose()?;
        authority.operator_cert(clock(), &csr, service.as_ref())
    });
    let granted: Granted = match granted.await {
        Ok(granted) => granted,
        Err(response) => return response,
    };
    Json(OperatorCert {
        chain: granted.chain.iter().map(|der| STANDARD.encode(der)).collect(),
        serial: granted.serial,
        not_after: granted.not_after,
        trust: granted.trust.into(),
    })
    .into_response()
}

/// What every workload trusts now.
#[utoipa::path(get, path = "/v1/trust", responses((status = 200, body = TrustView)))]
pub(super) async fn trust(State(plane): State<Arc<Plane>>) -> Json<TrustView> {
    Json(plane.authority.bundle().into())
}
