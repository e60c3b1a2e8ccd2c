//! What a program can say that it implements.
//!
//! A sidecar sends its list first (`Node.client_features`, `Hello.features`); the control plane
//! sends nothing beyond it. An endpoint's list (`Endpoint.capabilities`) tells callers what its
//! sidecar understands on the wire.

/// Resources `Proxy`, `Service` and `Endpoint` as of version 0.1.
pub const RESOURCES_V1: &str = "resources.v1";
/// Opaque protocols (`tcp`, `tls`).
pub const OPAQUE: &str = "protocol.opaque";
/// Upgrades between sidecars as extended CONNECT (RFC 8441).
pub const EXTENDED_CONNECT: &str = "wire.extended-connect";
/// Mutual TLS between sidecars: `Proxy.mode`, `Service.mode` and the `TrustBundle` resource.
pub const MTLS: &str = "wire.mtls";
/// Opaque connections in the tunnel `outrigger-tcp/1`.
pub const TUNNEL: &str = "wire.tcp-tunnel";
/// Rules of who may call: `Proxy.access`.
pub const ACCESS: &str = "access.v1";
/// Routes and subsets: `Service.routes`, `Service.subsets`.
pub const ROUTES: &str = "routes.v1";

/// Everything that this version implements.
pub const ALL: &[&str] = &[RESOURCES_V1, OPAQUE, EXTENDED_CONNECT, MTLS, TUNNEL, ACCESS, ROUTES];

/// Names the first version that has `feature`, for `degraded: needs sidecar ≥ x`.
#[must_use]
pub fn since(feature: &str) -> &'static str {
    match feature {
        RESOURCES_V1 | OPAQUE | EXTENDED_CONNECT | MTLS | TUNNEL | ACCESS | ROUTES => "0.1.0",
        _ => "unknown",
    }
}
