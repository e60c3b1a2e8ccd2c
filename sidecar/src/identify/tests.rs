//! Real certificates, real TLS: who is let in, how a workload joins, renews and keeps its key.

mod handshake;
mod joining;
mod kept;
