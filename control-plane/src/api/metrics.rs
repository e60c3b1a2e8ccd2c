//! What the control plane counts, as Prometheus text (exposition format 0.0.4).
//!
//! Every name is in this file; a scraper may rely on them. Times are Unix seconds, so that an alarm is
//! `metric - time() < 86400`. No label is a name that a workload chose: the page does not grow with the mesh.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use outrigger_proto::exposition::Page;
use outrigger_proto::model::ResourceType;

use crate::identity::{Figures, clock};
use crate::plane::Plane;

/// The counters, for a scraper with an operator's token or at the unix socket.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, content_type = "text/plain", body = String, description = "Prometheus text"))
)]
pub(super) async fn metrics(State(plane): State<Arc<Plane>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], render(&plane)).into_response()
}

fn render(plane: &Plane) -> String {
    let mut page = Page::default();
    identity(&mut page, &plane.authority.figures(clock()));

    let (mut serving, mut unhealthy) = (0u64, 0u64);
    for lease in plane.registry().leases() {
        match lease.unhealthy {
            None => serving += 1,
            Some(_) => unhealthy += 1,
        }
    }
    page.family(
        "outrigger_leases",
        "gauge",
        "Registrations by lease, by whether they serve.",
    );
    page.sample("outrigger_leases", "state=\"serving\"", serving);
    page.sample("outrigger_leases", "state=\"unhealthy\"", unhealthy);

    let sessions = plane
        .sidecars
        .lock()
        .iter()
        .filter(|(_, s)| s.session.is_some())
        .count();
    page.single(
        "outrigger_sessions_open",
        "gauge",
        "Sidecars with a live session.",
        sessions,
    );

    let (streams, pushes) = {
        let hub = plane.hub.lock();
        let pushes = ResourceType::ALL.map(|kind| (kind, hub.pushes(kind)));
        (hub.clients().count(), pushes)
    };
    page.single(
        "outrigger_discovery_streams_open",
        "gauge",
        "Open streams of resources.",
        streams,
    );
    page.family(
        "outrigger_pushes_total",
        "counter",
        "Responses sent on them, by type of resource.",
    );
    for (kind, n) in pushes {
        let short = kind.message().rsplit('.').next().unwrap_or_default();
        page.sample("outrigger_pushes_total", &format!("type=\"{short}\""), n);
    }

    page.family(
        "outrigger_refusals_total",
        "counter",
        "What was refused, by what it was.",
    );
    for (what, n) in plane.events.refusals() {
        page.sample("outrigger_refusals_total", &format!("what=\"{}\"", what.name()), n);
    }
    page.single(
        "outrigger_identity_store_failing",
        "gauge",
        "1 while the identity state cannot be stored: nothing is granted.",
        u8::from(plane.authority.is_failing()),
    );
    page.family("outrigger_build_info", "gauge", "1, with the version as label.");
    page.sample(
        "outrigger_build_info",
        concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""),
        1,
    );
    page.text()
}

fn identity(page: &mut Page, figures: &Figures) {
    let name = "outrigger_ca_not_after_seconds";
    page.family(name, "gauge", "When a certificate of the control plane ends.");
    for root in &figures.roots {
        for (what, until) in [("root", root.not_after), ("intermediate", root.issuer_not_after)] {
            page.sample(name, &format!("certificate=\"{what}\",root=\"{}\"", root.number), until);
        }
    }
    page.sample(name, "certificate=\"own\"", figures.own_not_after);

    page.family(
        "outrigger_workloads",
        "gauge",
        "Workloads that joined, by their newest certificate.",
    );
    for (state, n) in [
        ("good", figures.good),
        ("expired", figures.expired),
        ("revoked", figures.revoked),
    ] {
        page.sample("outrigger_workloads", &format!("state=\"{state}\""), n);
    }
    page.single(
        "outrigger_workload_not_after_seconds",
        "gauge",
        "When the first good certificate of a workload ends; 0 while there is none.",
        figures.soonest.unwrap_or(0),
    );
    page.family("outrigger_tokens", "gauge", "Tokens that have not expired.");
    for (what, n) in [("join", figures.join_tokens), ("operator", figures.operator_tokens)] {
        page.sample("outrigger_tokens", &format!("for=\"{what}\""), n);
    }
}
