//! The whole control plane over loopback, with real gRPC clients.

mod access;
mod api;
mod client;
mod door;
mod identity;
mod member;
mod metrics;
mod protocol;
mod quota;
