//! post: what is written in the blogs, newest first.

use std::process::ExitCode;

use blog::pb::blog::blog_client::BlogClient;
use blog::pb::blog::{BlogInfo, GetBlogRequest};
use blog::pb::post::post_server::{Post, PostServer};
use blog::pb::post::{CreatePostRequest, DESCRIPTORS, ListPostsRequest, ListPostsResponse, PostInfo};
use blog::{check, check::Page, server, store, store::Store};
use rusqlite::{Row, params};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tracing::info;
use uuid::Uuid;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS post (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, blog_id TEXT NOT NULL, author_id TEXT NOT NULL,
    title TEXT NOT NULL, body TEXT NOT NULL, created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS post_blog ON post(blog_id, number);";

/// A full page of the longest posts stays below the 4 MiB that a gRPC client takes in one message.
const LONGEST_BODY: usize = 20_000;

struct Posts {
    store: Store,
    blogs: BlogClient<Channel>,
}

fn main() -> ExitCode {
    server::run(serve())
}

async fn serve() -> anyhow::Result<()> {
    let blogs = BlogClient::new(server::neighbour("BLOG_ADDR")?);
    let routes = Routes::new(PostServer::new(Posts {
        store: Store::open("post", SCHEMA)?,
        blogs,
    }));
    server::serve("examples.blog.service.post.Post", DESCRIPTORS, routes).await
}

#[tonic::async_trait]
impl Post for Posts {
    async fn create_post(&self, request: Request<CreatePostRequest>) -> Result<Response<PostInfo>, Status> {
        let CreatePostRequest {
            blog_id,
            author_id,
            title,
            body,
        } = request.into_inner();
        check::line("title", &title, 1..=200)?;
        check::prose("body", &body, 1..=LONGEST_BODY)?;
        if self.blog(&blog_id).await?.owner_id != author_id {
            return Err(Status::permission_denied("only the owner of a blog writes in it"));
        }

        let post = PostInfo {
            id: Uuid::now_v7().to_string(),
            blog_id,
            author_id,
            title,
            body,
            created_at: store::now(),
        };
        let row = post.clone();
        self.store
            .run(move |db| {
                db.execute(
                    "INSERT INTO post (id, blog_id, author_id, title, body, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (row.id, row.blog_id, row.author_id, row.title, row.body, row.created_at),
                )
            })
            .await?;
        info!("post {} in blog {}", post.id, post.blog_id);
        Ok(Response::new(post))
    }

    async fn list_posts(&self, request: Request<ListPostsRequest>) -> Result<Response<ListPostsResponse>, Status> {
        let ListPostsRequest {
            blog_id,
            page_size,
            page_token,
        } = request.into_inner();
        let page = Page::new(page_size, &page_token)?;
        let id = blog_id.clone();
        let (rows, total): (Vec<(i64, PostInfo)>, i64) = self
            .store
            .run(move |db| {
                let total = db.query_row("SELECT count(*) FROM post WHERE blog_id = ?", [&id], |row| row.get(0))?;
                let mut query = db.prepare_cached(
                    "SELECT number, id, blog_id, author_id, title, body, created_at FROM post
                     WHERE blog_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
                )?;
                let before = page.after.unwrap_or(i64::MAX);
                let rows = query
                    .query_map(params![id, before, page.size + 1], info)?
                    .collect::<Result<_, _>>()?;
                Ok((rows, total))
            })
            .await?;
        // Where there is a post there is a blog; only an empty list leaves the question open.
        if total == 0 {
            self.blog(&blog_id).await?;
        }
        let (posts, next_page_token) = page.cut(rows);
        Ok(Response::new(ListPostsResponse {
            posts,
            next_page_token,
            total,
        }))
    }
}

impl Posts {
    async fn blog(&self, id: &str) -> Result<BlogInfo, Status> {
        let blog = self.blogs.clone().get_blog(GetBlogRequest { id: id.to_owned() }).await;
        blog.map(Response::into_inner).map_err(server::relay)
    }
}

fn info(row: &Row<'_>) -> rusqlite::Result<(i64, PostInfo)> {
    let post = PostInfo {
        id: row.get(1)?,
        blog_id: row.get(2)?,
        author_id: row.get(3)?,
        title: row.get(4)?,
        body: row.get(5)?,
        created_at: row.get(6)?,
    };
    Ok((row.get(0)?, post))
}
