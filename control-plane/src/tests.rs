//! The whole control plane over loopback, with real gRPC clients.

mod client;
mod protocol;
