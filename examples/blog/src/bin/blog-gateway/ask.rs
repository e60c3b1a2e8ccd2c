//! What a request carries, read or refused: the id in its path, its JSON body, its page, and who sends it.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use blog::pb::auth::{ValidateSessionRequest, ValidateSessionResponse};
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::Services;
use crate::answer::Refusal;

/// The `{id}` of the path.
pub(crate) struct Id(pub(crate) String);

impl FromRequestParts<Services> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, services).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(refused) => Err(Refusal::new(StatusCode::BAD_REQUEST, "malformed", refused.body_text())),
        }
    }
}

/// The body, as JSON whatever its Content-Type: 400 when it is none, 422 when it is not what the path takes.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Services> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, services: &Services) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, services)
            .await
            .map_err(|refused| Refusal::new(refused.status(), "malformed", refused.body_text()))?;
        serde_json::from_slice(&body).map(Self).map_err(|cause| {
            let (status, code) = match cause.classify() {
                Category::Data => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
                Category::Io | Category::Syntax | Category::Eof => (StatusCode::BAD_REQUEST, "malformed"),
            };
            Refusal::new(status, code, cause.to_string())
        })
    }
}

/// Which page of a list: `?page_size=&page_token=`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    #[serde(default)]
    pub(crate) page_size: i32,
    #[serde(default)]
    pub(crate) page_token: String,
}

impl FromRequestParts<Services> for Page {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, Refusal> {
        match Query::from_request_parts(parts, services).await {
            Ok(Query(page)) => Ok(page),
            Err(refused) => Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid",
                refused.body_text(),
            )),
        }
    }
}

/// Who sends the request, by the session in `Authorization: Bearer TOKEN`.
pub(crate) struct Session(pub(crate) ValidateSessionResponse);

impl FromRequestParts<Services> for Session {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, Refusal> {
        let authorization = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = authorization
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim().to_owned());
        let Some(token) = token else {
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "log in and send the token",
            ));
        };
        let session = services
            .auth
            .clone()
            .validate_session(ValidateSessionRequest { token })
            .await?;
        Ok(Self(session.into_inner()))
    }
}
