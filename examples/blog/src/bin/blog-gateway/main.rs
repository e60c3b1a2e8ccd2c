//! gateway: the blog's HTTP/JSON face. It names the paths, asks the other services and puts their answers together; it
//! holds no data and decides nothing about it.

use std::process::ExitCode;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use blog::pb::auth::auth_client::AuthClient;
use blog::pb::blog::blog_client::BlogClient;
use blog::pb::post::post_client::PostClient;
use blog::pb::subscribe::subscribe_client::SubscribeClient;
use blog::pb::user::user_client::UserClient;
use blog::server;
use tokio::sync::oneshot;
use tonic::transport::Channel;

mod accounts;
mod answer;
mod ask;
mod blogs;
mod visitor;

/// The other services.
#[derive(Clone)]
struct Services {
    auth: AuthClient<Channel>,
    user: UserClient<Channel>,
    blog: BlogClient<Channel>,
    post: PostClient<Channel>,
    subscribe: SubscribeClient<Channel>,
    visitor: visitor::Visitor,
}

/// No request of this API needs more.
const LARGEST_BODY: usize = 512 * 1024;

fn main() -> ExitCode {
    server::run(serve())
}

async fn serve() -> anyhow::Result<()> {
    let services = Services {
        auth: AuthClient::new(server::neighbour("AUTH_ADDR")?),
        user: UserClient::new(server::neighbour("USER_ADDR")?),
        blog: BlogClient::new(server::neighbour("BLOG_ADDR")?),
        post: PostClient::new(server::neighbour("POST_ADDR")?),
        subscribe: SubscribeClient::new(server::neighbour("SUBSCRIBE_ADDR")?),
        visitor: visitor::Visitor::new("VISITOR_URL")?,
    };
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/user-ids/{id}", get(accounts::user_id))
        .route("/v1/users", post(accounts::sign_up))
        .route("/v1/sessions", post(accounts::log_in))
        .route("/v1/blogs", post(blogs::create))
        .route("/v1/blogs/{id}", get(blogs::show))
        .route("/v1/blogs/{id}/posts", post(blogs::write).get(blogs::posts))
        .route("/v1/blogs/{id}/subscriptions", post(blogs::subscribe))
        .route("/v1/blogs/{id}/visits", post(blogs::visit))
        .route("/v1/blogs/{id}/page", get(blogs::page))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(services);

    let (stopping, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(server::listener().await?, routes).with_graceful_shutdown(async {
        stopped.await.ok();
    });
    let serving = serving.into_future();
    tokio::pin!(serving);
    tokio::select! {
        done = &mut serving => return Ok(done?),
        stop = server::stop() => stop?,
    }
    stopping.send(()).ok();
    match tokio::time::timeout(server::GRACE, serving).await {
        Ok(done) => Ok(done?),
        Err(_) => Ok(()),
    }
}
