//! Blogs and what belongs to one: posts, subscriptions, visits, and the page that shows them together.

use axum::Json as Answer;
use axum::extract::State;
use blog::pb::blog::{BlogInfo, CreateBlogRequest, GetBlogRequest};
use blog::pb::post::{CreatePostRequest, ListPostsRequest, ListPostsResponse, PostInfo};
use blog::pb::subscribe::{AddSubscriptionRequest, ListSubscriptionsRequest};
use blog::pb::user::GetUserRequest;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Services;
use crate::answer::Refusal;
use crate::ask::{Id, Json, Page, Session};

type Made = Result<(StatusCode, Answer<Value>), Refusal>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBlog {
    title: String,
}

pub(crate) async fn create(
    State(mut on): State<Services>,
    Session(session): Session,
    Json(NewBlog { title }): Json<NewBlog>,
) -> Made {
    let blog = on
        .blog
        .create_blog(CreateBlogRequest {
            owner_id: session.auth_id,
            title,
        })
        .await?;
    Ok((StatusCode::CREATED, Answer(blog_json(&blog.into_inner()))))
}

pub(crate) async fn show(State(mut on): State<Services>, Id(id): Id) -> Result<Answer<Value>, Refusal> {
    let blog = on.blog.get_blog(GetBlogRequest { id }).await?.into_inner();
    Ok(Answer(blog_json(&blog)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPost {
    title: String,
    body: String,
}

pub(crate) async fn write(
    State(mut on): State<Services>,
    Id(blog_id): Id,
    Session(session): Session,
    Json(NewPost { title, body }): Json<NewPost>,
) -> Made {
    let post = on
        .post
        .create_post(CreatePostRequest {
            blog_id,
            author_id: session.auth_id,
            title,
            body,
        })
        .await?;
    Ok((StatusCode::CREATED, Answer(post_json(&post.into_inner()))))
}

pub(crate) async fn posts(
    State(mut on): State<Services>,
    Id(blog_id): Id,
    Page { page_size, page_token }: Page,
) -> Result<Answer<Value>, Refusal> {
    let list = on
        .post
        .list_posts(ListPostsRequest {
            blog_id,
            page_size,
            page_token,
        })
        .await?
        .into_inner();
    Ok(Answer(posts_json(&list)))
}

pub(crate) async fn subscribe(State(mut on): State<Services>, Id(blog_id): Id, Session(session): Session) -> Made {
    let asked = AddSubscriptionRequest {
        blog_id,
        subscriber_id: session.auth_id,
    };
    let made = on.subscribe.add_subscription(asked).await?.into_inner();
    let answer = json!({
        "id": made.id, "blog_id": made.blog_id, "subscriber_id": made.subscriber_id, "created_at": made.created_at,
    });
    Ok((StatusCode::CREATED, Answer(answer)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewVisit {
    visitor: String,
}

pub(crate) async fn visit(
    State(mut on): State<Services>,
    Id(blog_id): Id,
    Json(NewVisit { visitor }): Json<NewVisit>,
) -> Made {
    // The visitor service counts for any id, so what has no blog is refused here.
    on.blog.get_blog(GetBlogRequest { id: blog_id.clone() }).await?;
    let (status, counted) = on.visitor.visit(&blog_id, &visitor).await?;
    Ok((status, Answer(counted)))
}

/// Everything a reader sees of a blog, asked for side by side. A part that fails fails the page: half a page that looks
/// like a whole one would be wrong without saying so.
pub(crate) async fn page(State(on): State<Services>, Id(id): Id) -> Result<Answer<Value>, Refusal> {
    let blog_and_owner = async {
        let blog = on
            .blog
            .clone()
            .get_blog(GetBlogRequest { id: id.clone() })
            .await?
            .into_inner();
        let owner = on
            .user
            .clone()
            .get_user(GetUserRequest {
                auth_id: blog.owner_id.clone(),
            })
            .await?
            .into_inner();
        Ok::<_, Refusal>((blog, owner))
    };
    let posts = async {
        let first = ListPostsRequest {
            blog_id: id.clone(),
            page_size: 0,
            page_token: String::new(),
        };
        Ok(on.post.clone().list_posts(first).await?.into_inner())
    };
    let subscribers = async {
        let first = ListSubscriptionsRequest {
            blog_id: id.clone(),
            page_size: 1,
            page_token: String::new(),
        };
        Ok(on.subscribe.clone().list_subscriptions(first).await?.into_inner().total)
    };
    let visits = on.visitor.count(&id);
    let ((blog, owner), posts, subscribers, visits) = tokio::try_join!(blog_and_owner, posts, subscribers, visits)?;
    Ok(Answer(json!({
        "blog": blog_json(&blog),
        "owner": { "id": owner.auth_id, "name": owner.name },
        "posts": posts_json(&posts),
        "visits": visits.visits,
        "visitors": visits.visitors,
        "subscribers": subscribers,
    })))
}

fn blog_json(blog: &BlogInfo) -> Value {
    json!({ "id": blog.id, "owner_id": blog.owner_id, "title": blog.title, "created_at": blog.created_at })
}

fn post_json(post: &PostInfo) -> Value {
    json!({
        "id": post.id, "blog_id": post.blog_id, "author_id": post.author_id, "title": post.title, "body": post.body,
        "created_at": post.created_at,
    })
}

fn posts_json(list: &ListPostsResponse) -> Value {
    json!({
        "posts": list.posts.iter().map(post_json).collect::<Vec<_>>(),
        "next_page_token": list.next_page_token,
        "total": list.total,
    })
}
