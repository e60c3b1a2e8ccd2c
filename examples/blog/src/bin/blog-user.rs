//! user: the person behind an account. It knows nothing of passwords and sessions.

use std::process::ExitCode;

use blog::pb::user::user_server::{User, UserServer};
use blog::pb::user::{CreateUserRequest, DESCRIPTORS, GetUserRequest, Profile};
use blog::{check, server, store::Store};
use rusqlite::{Connection, OptionalExtension as _};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tracing::info;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS user (
    auth_id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE
) STRICT;";

struct Users {
    store: Store,
}

fn main() -> ExitCode {
    server::run(serve())
}

async fn serve() -> anyhow::Result<()> {
    let routes = Routes::new(UserServer::new(Users {
        store: Store::open("user", SCHEMA)?,
    }));
    server::serve("examples.blog.service.user.User", DESCRIPTORS, routes).await
}

#[tonic::async_trait]
impl User for Users {
    async fn create_user(&self, request: Request<CreateUserRequest>) -> Result<Response<Profile>, Status> {
        let CreateUserRequest { auth_id, name, email } = request.into_inner();
        check::line("auth_id", &auth_id, 1..=64)?;
        check::line("name", &name, 1..=64)?;
        check_email(&email)?;
        let wanted = Profile {
            auth_id,
            name,
            email: email.to_lowercase(),
        };
        let row = wanted.clone();
        let stored = self
            .store
            .run(move |db| {
                db.execute(
                    "INSERT INTO user (auth_id, name, email) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (&row.auth_id, &row.name, &row.email),
                )?;
                profile(db, &row.auth_id)
            })
            .await?;
        match stored {
            Some(stored) if stored == wanted => {
                info!("{} has a profile", stored.auth_id);
                Ok(Response::new(stored))
            }
            Some(_) => Err(Status::already_exists("the account has a profile already")),
            None => Err(Status::already_exists(format!("e-mail {} is taken", wanted.email))),
        }
    }

    async fn get_user(&self, request: Request<GetUserRequest>) -> Result<Response<Profile>, Status> {
        let auth_id = request.into_inner().auth_id;
        let missing = Status::not_found(format!("no user {auth_id}"));
        self.store
            .run(move |db| profile(db, &auth_id))
            .await?
            .map(Response::new)
            .ok_or(missing)
    }
}

fn profile(db: &Connection, auth_id: &str) -> rusqlite::Result<Option<Profile>> {
    db.query_row(
        "SELECT auth_id, name, email FROM user WHERE auth_id = ?",
        [auth_id],
        |row| {
            Ok(Profile {
                auth_id: row.get(0)?,
                name: row.get(1)?,
                email: row.get(2)?,
            })
        },
    )
    .optional()
}

/// Only a letter sent to it proves an address; this refuses what cannot be one.
fn check_email(email: &str) -> Result<(), Status> {
    let plausible = email.split_once('@').is_some_and(|(local, domain)| {
        (1..=64).contains(&local.len())
            && domain.contains('.')
            && domain.split('.').all(|label| !label.is_empty())
            && !domain.contains('@')
    });
    if !plausible || email.len() > 254 || email.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Status::invalid_argument("email is no address"));
    }
    Ok(())
}
