//! Compiles the .proto files without protoc and keeps the descriptor set for the unknown-tag walk.

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

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
    std::fs::write(out.join("tags.rs"), tags(&set))?;
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
        .field_attribute("Proxy.mode", "#[serde(with = \"crate::names::mode\")]")
        .field_attribute("Service.mode", "#[serde(with = \"crate::names::mode\")]")
        .field_attribute("Access.default", "#[serde(with = \"crate::names::access_default\")]")
        .field_attribute("Limits.underscores", "#[serde(with = \"crate::names::underscores\")]")
        .field_attribute("Limits.trailers", "#[serde(with = \"crate::names::trailers\")]")
        .field_attribute("External.mode", "#[serde(with = \"crate::names::external_mode\")]")
        .btree_map(".")
        .compile_fds(set)?;
    Ok(())
}

/// A table of every field of the resource messages, for the walk over raw bytes. A descriptor pool at
/// run time would cost each sidecar a megabyte.
fn tags(set: &FileDescriptorSet) -> String {
    let mut table = String::from("pub(super) static MESSAGES: &[Message] = &[\n");
    for file in set.file.iter().filter(|f| f.package() == "outrigger.mesh.v1") {
        for message in &file.message_type {
            describe(&format!("{}.{}", file.package(), message.name()), message, &mut table);
        }
    }
    table.push_str("];\n");
    table
}

fn describe(name: &str, message: &DescriptorProto, table: &mut String) {
    let mut fields = String::new();
    for field in &message.field {
        let inner = if field.r#type() == Type::Message {
            field.type_name().trim_start_matches('.')
        } else {
            ""
        };
        let repeated = field.label() == Label::Repeated;
        fields.push_str(&format!(
            "Field {{ number: {}, name: {:?}, repeated: {repeated}, message: {inner:?} }}, ",
            field.number(),
            field.name()
        ));
    }
    table.push_str(&format!("    Message {{ name: {name:?}, fields: &[{fields}] }},\n"));
    for nested in &message.nested_type {
        describe(&format!("{name}.{}", nested.name()), nested, table);
    }
}
