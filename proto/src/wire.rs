//! Generated wire types. Read the `.proto` files, not this.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// This project's own packages, nested as prost expects.
pub mod outrigger {
    pub mod mesh {
        pub mod v1 {
            tonic::include_proto!("outrigger.mesh.v1");
        }
    }
    pub mod agent {
        pub mod v1 {
            tonic::include_proto!("outrigger.agent.v1");
        }
    }
}

/// Wire-compatible parts of public protocols.
pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}
pub mod grpc {
    pub mod health {
        pub mod v1 {
            tonic::include_proto!("grpc.health.v1");
        }
    }
}
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}
pub use envoy::config::core::v3 as core;
pub use envoy::service::discovery::v3 as discovery;
pub use outrigger::agent::v1 as agent;
pub use outrigger::mesh::v1 as mesh;

/// The descriptor set of every file above, encoded.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
