//! auth: user ids, passwords and sessions. It knows nothing of the person behind an account.

use std::process::ExitCode;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use blog::pb::auth::auth_server::{Auth, AuthServer};
use blog::pb::auth::{
    CheckUserIdRequest, CheckUserIdResponse, DESCRIPTORS, LoginRequest, LoginResponse, SignUpRequest, SignUpResponse,
    ValidateSessionRequest, ValidateSessionResponse, WithdrawRequest, WithdrawResponse,
};
use blog::{server, store, store::Store};
use rusqlite::{OptionalExtension as _, params};
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tracing::{error, info};
use uuid::Uuid;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS account (
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, password TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS session (
    token TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account(id) ON DELETE CASCADE, expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS session_account ON session(account);
PRAGMA foreign_keys = ON;";

/// How long a session lasts, in seconds.
const SESSION: i64 = 12 * 60 * 60;
/// Each password hash takes 19 MiB while it is made, so only a few are made at once.
const HASHES_AT_ONCE: usize = 4;

struct Accounts {
    store: Store,
    hashing: Semaphore,
    /// Verified when the user id is unknown, so that the time taken does not tell.
    nobody: String,
}

fn main() -> ExitCode {
    server::run(serve())
}

async fn serve() -> anyhow::Result<()> {
    let nobody = hash("nobody").map_err(|status| anyhow::anyhow!("{status}"))?;
    let accounts = Accounts {
        store: Store::open("auth", SCHEMA)?,
        hashing: Semaphore::new(HASHES_AT_ONCE),
        nobody,
    };
    let routes = Routes::new(AuthServer::new(accounts));
    server::serve("examples.blog.service.auth.Auth", DESCRIPTORS, routes).await
}

#[tonic::async_trait]
impl Auth for Accounts {
    async fn check_user_id(
        &self,
        request: Request<CheckUserIdRequest>,
    ) -> Result<Response<CheckUserIdResponse>, Status> {
        let user_id = request.into_inner().user_id;
        check_user_id(&user_id)?;
        let taken: bool = self
            .store
            .run(move |db| {
                db.query_row(
                    "SELECT EXISTS (SELECT 1 FROM account WHERE user_id = ?)",
                    [user_id],
                    |row| row.get(0),
                )
            })
            .await?;
        Ok(Response::new(CheckUserIdResponse { available: !taken }))
    }

    async fn sign_up(&self, request: Request<SignUpRequest>) -> Result<Response<SignUpResponse>, Status> {
        let SignUpRequest { user_id, password } = request.into_inner();
        check_user_id(&user_id)?;
        blog::check::prose("password", &password, 8..=128)?;
        let hash = self.work(move || hash(&password)).await??;
        let auth_id = Uuid::now_v7().to_string();
        let row = (auth_id.clone(), user_id.clone(), hash);
        let added = self
            .store
            .run(move |db| {
                db.execute(
                    "INSERT INTO account (id, user_id, password) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    row,
                )
            })
            .await?;
        if added == 0 {
            return Err(Status::already_exists(format!("user id {user_id} is taken")));
        }
        info!("{user_id} signed up");
        Ok(Response::new(SignUpResponse { auth_id }))
    }

    async fn withdraw(&self, request: Request<WithdrawRequest>) -> Result<Response<WithdrawResponse>, Status> {
        let auth_id = request.into_inner().auth_id;
        let shown = auth_id.clone();
        let removed = self
            .store
            .run(move |db| db.execute("DELETE FROM account WHERE id = ?", [auth_id]))
            .await?;
        info!("account {shown} withdrawn ({removed})");
        Ok(Response::new(WithdrawResponse {}))
    }

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let LoginRequest { user_id, password } = request.into_inner();
        let shown = user_id.clone();
        let account: Option<(String, String)> = self
            .store
            .run(move |db| {
                db.query_row("SELECT id, password FROM account WHERE user_id = ?", [user_id], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
            })
            .await?;
        let (auth_id, hash) = account.map_or_else(|| (None, self.nobody.clone()), |(id, hash)| (Some(id), hash));
        let right = self.work(move || verify(&password, &hash)).await?;
        let Some(auth_id) = auth_id.filter(|_| right) else {
            return Err(Status::unauthenticated("wrong user id or password"));
        };

        // 244 random bits.
        let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let expires_at = store::now() + SESSION;
        let row = (token.clone(), auth_id.clone(), expires_at);
        self.store
            .run(move |db| {
                let change = db.transaction()?;
                change.execute(
                    "DELETE FROM session WHERE account = ? AND expires_at <= ?",
                    params![row.1, store::now()],
                )?;
                change.execute("INSERT INTO session (token, account, expires_at) VALUES (?, ?, ?)", row)?;
                change.commit()
            })
            .await?;
        info!("{shown} logged in");
        Ok(Response::new(LoginResponse {
            token,
            auth_id,
            expires_at,
        }))
    }

    async fn validate_session(
        &self,
        request: Request<ValidateSessionRequest>,
    ) -> Result<Response<ValidateSessionResponse>, Status> {
        let token = request.into_inner().token;
        let session = self
            .store
            .run(move |db| {
                db.query_row(
                    "SELECT account.id, account.user_id, session.expires_at FROM session
                     JOIN account ON account.id = session.account WHERE token = ? AND expires_at > ?",
                    params![token, store::now()],
                    |row| {
                        Ok(ValidateSessionResponse {
                            auth_id: row.get(0)?,
                            user_id: row.get(1)?,
                            expires_at: row.get(2)?,
                        })
                    },
                )
                .optional()
            })
            .await?;
        session
            .map(Response::new)
            .ok_or_else(|| Status::unauthenticated("no such session; log in"))
    }
}

impl Accounts {
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let _permit = self
            .hashing
            .acquire()
            .await
            .map_err(|_| Status::unavailable("stopping"))?;
        store::blocking(work).await
    }
}

fn check_user_id(user_id: &str) -> Result<(), Status> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if !(3..=32).contains(&user_id.len()) || !user_id.chars().all(allowed) {
        return Err(Status::invalid_argument(
            "user_id must have 3 to 32 characters of a-z, 0-9, '.', '_' and '-'",
        ));
    }
    Ok(())
}

fn hash(password: &str) -> Result<String, Status> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|cause| {
            error!("password hash: {cause}");
            Status::internal("the password could not be hashed")
        })
}

fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}
