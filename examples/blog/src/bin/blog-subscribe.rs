//! subscribe: who follows which blog.

use std::process::ExitCode;

use blog::pb::blog::GetBlogRequest;
use blog::pb::blog::blog_client::BlogClient;
use blog::pb::subscribe::subscribe_server::{Subscribe, SubscribeServer};
use blog::pb::subscribe::{
    AddSubscriptionRequest, DESCRIPTORS, ListSubscriptionsRequest, ListSubscriptionsResponse, Subscription,
};
use blog::pb::user::GetUserRequest;
use blog::pb::user::user_client::UserClient;
use blog::{check::Page, server, store, store::Store};
use rusqlite::{Row, params};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tracing::info;
use uuid::Uuid;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS subscription (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, blog_id TEXT NOT NULL,
    subscriber_id TEXT NOT NULL, created_at INTEGER NOT NULL, UNIQUE (blog_id, subscriber_id)
) STRICT;
CREATE INDEX IF NOT EXISTS subscription_blog ON subscription(blog_id, number);";

struct Subscriptions {
    store: Store,
    blogs: BlogClient<Channel>,
    users: UserClient<Channel>,
}

fn main() -> ExitCode {
    server::run(serve())
}

async fn serve() -> anyhow::Result<()> {
    let subscriptions = Subscriptions {
        store: Store::open("subscribe", SCHEMA)?,
        blogs: BlogClient::new(server::neighbour("BLOG_ADDR")?),
        users: UserClient::new(server::neighbour("USER_ADDR")?),
    };
    let routes = Routes::new(SubscribeServer::new(subscriptions));
    server::serve("examples.blog.service.subscribe.Subscribe", DESCRIPTORS, routes).await
}

#[tonic::async_trait]
impl Subscribe for Subscriptions {
    async fn add_subscription(
        &self,
        request: Request<AddSubscriptionRequest>,
    ) -> Result<Response<Subscription>, Status> {
        let AddSubscriptionRequest { blog_id, subscriber_id } = request.into_inner();
        self.blog_exists(&blog_id).await?;
        let subscriber = GetUserRequest {
            auth_id: subscriber_id.clone(),
        };
        self.users.clone().get_user(subscriber).await.map_err(server::relay)?;

        let subscription = Subscription {
            id: Uuid::now_v7().to_string(),
            blog_id,
            subscriber_id,
            created_at: store::now(),
        };
        let row = subscription.clone();
        let added = self
            .store
            .run(move |db| {
                db.execute(
                    "INSERT INTO subscription (id, blog_id, subscriber_id, created_at) VALUES (?, ?, ?, ?)
                     ON CONFLICT DO NOTHING",
                    (row.id, row.blog_id, row.subscriber_id, row.created_at),
                )
            })
            .await?;
        if added == 0 {
            return Err(Status::already_exists("the blog is subscribed to already"));
        }
        info!("{} follows blog {}", subscription.subscriber_id, subscription.blog_id);
        Ok(Response::new(subscription))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let ListSubscriptionsRequest {
            blog_id,
            page_size,
            page_token,
        } = request.into_inner();
        let page = Page::new(page_size, &page_token)?;
        let id = blog_id.clone();
        let (rows, total): (Vec<(i64, Subscription)>, i64) = self
            .store
            .run(move |db| {
                let total = db.query_row("SELECT count(*) FROM subscription WHERE blog_id = ?", [&id], |row| {
                    row.get(0)
                })?;
                let mut query = db.prepare_cached(
                    "SELECT number, id, blog_id, subscriber_id, created_at FROM subscription
                     WHERE blog_id = ? AND number > ? ORDER BY number LIMIT ?",
                )?;
                let after = page.after.unwrap_or(0);
                let rows = query
                    .query_map(params![id, after, page.size + 1], subscription)?
                    .collect::<Result<_, _>>()?;
                Ok((rows, total))
            })
            .await?;
        // Where there is a subscription there is a blog; only an empty list leaves the question open.
        if total == 0 {
            self.blog_exists(&blog_id).await?;
        }
        let (subscriptions, next_page_token) = page.cut(rows);
        Ok(Response::new(ListSubscriptionsResponse {
            subscriptions,
            next_page_token,
            total,
        }))
    }
}

impl Subscriptions {
    async fn blog_exists(&self, id: &str) -> Result<(), Status> {
        self.blogs
            .clone()
            .get_blog(GetBlogRequest { id: id.to_owned() })
            .await
            .map_err(server::relay)?;
        Ok(())
    }
}

fn subscription(row: &Row<'_>) -> rusqlite::Result<(i64, Subscription)> {
    let subscription = Subscription {
        id: row.get(1)?,
        blog_id: row.get(2)?,
        subscriber_id: row.get(3)?,
        created_at: row.get(4)?,
    };
    Ok((row.get(0)?, subscription))
}
