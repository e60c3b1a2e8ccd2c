//! What a program can say that it implements.
//!
//! A sidecar sends what it understands of resources first (`Node.client_features`); the control plane sends
//! nothing beyond it. One without an identity understands all: told that its mode is strict, it takes in
//! nobody; not told, it would take in everybody. What it speaks on the wire ([`spoken`]) is told to callers
//! (`Endpoint.capabilities`) and to the control plane (`Hello.features`).

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
/// Rate limits that all instances of a service keep together: `RateLimit.mesh`, `Asked` and `Shares`.
pub const QUOTA: &str = "quota.v1";

/// Everything that this version implements.
pub const ALL: &[&str] = &[
    RESOURCES_V1,
    OPAQUE,
    EXTENDED_CONNECT,
    MTLS,
    TUNNEL,
    ACCESS,
    ROUTES,
    QUOTA,
];

/// What a sidecar of this version speaks: mutual TLS and the tunnel in it only with an identity.
#[must_use]
pub fn spoken(identity: bool) -> Vec<String> {
    let spoken = ALL.iter().filter(|f| identity || !matches!(**f, MTLS | TUNNEL));
    spoken.map(|f| (*f).to_owned()).collect()
}

/// Names the first version that has `feature`, for `degraded: needs sidecar ≥ x`.
#[must_use]
pub fn since(feature: &str) -> &'static str {
    match feature {
        RESOURCES_V1 | OPAQUE | EXTENDED_CONNECT | MTLS | TUNNEL | ACCESS | ROUTES | QUOTA => "0.1.0",
        _ => "unknown",
    }
}
