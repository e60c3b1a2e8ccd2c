//! blog: which blogs there are and whose they are.

use std::process::ExitCode;

use blog::pb::blog::blog_server::{Blog, BlogServer};
use blog::pb::blog::{BlogInfo, CreateBlogRequest, DESCRIPTORS, GetBlogRequest};
use blog::pb::user::GetUserRequest;
use blog::pb::user::user_client::UserClient;
use blog::{check, server, store, store::Store};
use rusqlite::{OptionalExtension as _, Row};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tracing::info;
use uuid::Uuid;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS blog (
    id TEXT PRIMARY KEY, owner_id TEXT NOT NULL, title TEXT NOT NULL, created_at INTEGER NOT NULL,
    UNIQUE (owner_id, title)
) STRICT;";

struct Blogs {
    store: Store,
    users: UserClient<Channel>,
}

fn main() -> ExitCode {
    server::run(serve())
}

async fn serve() -> anyhow::Result<()> {
    let users = UserClient::new(server::neighbour("USER_ADDR")?);
    let routes = Routes::new(BlogServer::new(Blogs {
        store: Store::open("blog", SCHEMA)?,
        users,
    }));
    server::serve("examples.blog.service.blog.Blog", DESCRIPTORS, routes).await
}

#[tonic::async_trait]
impl Blog for Blogs {
    async fn create_blog(&self, request: Request<CreateBlogRequest>) -> Result<Response<BlogInfo>, Status> {
        let CreateBlogRequest { owner_id, title } = request.into_inner();
        check::line("title", &title, 1..=120)?;
        let owner = GetUserRequest {
            auth_id: owner_id.clone(),
        };
        self.users.clone().get_user(owner).await.map_err(server::relay)?;

        let blog = BlogInfo {
            id: Uuid::now_v7().to_string(),
            owner_id,
            title,
            created_at: store::now(),
        };
        let row = blog.clone();
        let added = self
            .store
            .run(move |db| {
                db.execute(
                    "INSERT INTO blog (id, owner_id, title, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (row.id, row.owner_id, row.title, row.created_at),
                )
            })
            .await?;
        if added == 0 {
            return Err(Status::already_exists(format!(
                "the owner has a blog \"{}\" already",
                blog.title
            )));
        }
        info!("blog {} opened", blog.id);
        Ok(Response::new(blog))
    }

    async fn get_blog(&self, request: Request<GetBlogRequest>) -> Result<Response<BlogInfo>, Status> {
        let id = request.into_inner().id;
        let missing = Status::not_found(format!("no blog {id}"));
        self.store
            .run(move |db| {
                db.query_row(
                    "SELECT id, owner_id, title, created_at FROM blog WHERE id = ?",
                    [id],
                    info,
                )
                .optional()
            })
            .await?
            .map(Response::new)
            .ok_or(missing)
    }
}

fn info(row: &Row<'_>) -> rusqlite::Result<BlogInfo> {
    Ok(BlogInfo {
        id: row.get(0)?,
        owner_id: row.get(1)?,
        title: row.get(2)?,
        created_at: row.get(3)?,
    })
}
