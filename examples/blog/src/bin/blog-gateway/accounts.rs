//! User ids, sign-up and log-in.

use axum::Json as Answer;
use axum::extract::State;
use blog::pb::auth::{CheckUserIdRequest, LoginRequest, SignUpRequest, WithdrawRequest};
use blog::pb::user::CreateUserRequest;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use crate::Services;
use crate::answer::Refusal;
use crate::ask::{Id, Json};

pub(crate) async fn user_id(State(mut on): State<Services>, Id(id): Id) -> Result<Answer<Value>, Refusal> {
    let found = on
        .auth
        .check_user_id(CheckUserIdRequest { user_id: id.clone() })
        .await?
        .into_inner();
    Ok(Answer(json!({ "user_id": id, "available": found.available })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    user_id: String,
    password: String,
    name: String,
    email: String,
}

/// Signs up in two steps, at auth and at user. When the second fails the first is undone, so that the user id is free
/// again; when undoing fails too, the account stays without a profile and a warning in the log says so.
pub(crate) async fn sign_up(
    State(mut on): State<Services>,
    Json(new): Json<NewUser>,
) -> Result<(StatusCode, Answer<Value>), Refusal> {
    let NewUser {
        user_id,
        password,
        name,
        email,
    } = new;
    let signed_up = on
        .auth
        .sign_up(SignUpRequest {
            user_id: user_id.clone(),
            password,
        })
        .await?;
    let auth_id = signed_up.into_inner().auth_id;
    match on
        .user
        .create_user(CreateUserRequest {
            auth_id: auth_id.clone(),
            name,
            email,
        })
        .await
    {
        Ok(profile) => {
            let profile = profile.into_inner();
            let answer = json!({ "id": auth_id, "user_id": user_id, "name": profile.name, "email": profile.email });
            Ok((StatusCode::CREATED, Answer(answer)))
        }
        Err(refused) => {
            if let Err(status) = on
                .auth
                .withdraw(WithdrawRequest {
                    auth_id: auth_id.clone(),
                })
                .await
            {
                warn!("account {auth_id} ({user_id}) stays without a profile: {status}");
            }
            Err(refused.into())
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogIn {
    user_id: String,
    password: String,
}

pub(crate) async fn log_in(
    State(mut on): State<Services>,
    Json(LogIn { user_id, password }): Json<LogIn>,
) -> Result<(StatusCode, Answer<Value>), Refusal> {
    let session = on.auth.login(LoginRequest { user_id, password }).await?.into_inner();
    let answer = json!({ "token": session.token, "id": session.auth_id, "expires_at": session.expires_at });
    Ok((StatusCode::CREATED, Answer(answer)))
}
