//! The HTTP/JSON face, for people and for `outrigger`.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

use crate::plane::Plane;

/// Every route.
pub fn routes(plane: Arc<Plane>, _insecure: bool) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .with_state(plane)
}
