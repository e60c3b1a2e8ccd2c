//! Compiles the .proto files without protoc and keeps the descriptor set for the unknown-tag walk.

use prost::Message as _;

const FILES: &[&str] = &[
    "outrigger/mesh/v1/mesh.proto",
    "outrigger/agent/v1/agent.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "grpc/health/v1/health.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(FILES, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        // A file of resources (static mode) is the same messages in serde's form.
        .type_attribute(
            ".outrigger.mesh.v1",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(deny_unknown_fields, rename_all = \"snake_case\")]",
        )
        .message_attribute(".outrigger.mesh.v1", "#[serde(default)]")
        .field_attribute("Port.protocol", "#[serde(with = \"crate::names::protocol\")]")
        .field_attribute("Service.balance", "#[serde(with = \"crate::names::balance\")]")
        .field_attribute("Proxy.access_log", "#[serde(with = \"crate::names::access_log\")]")
        .field_attribute("External.mode", "#[serde(with = \"crate::names::external_mode\")]")
        .btree_map(".")
        .compile_fds(set)?;
    Ok(())
}
