//! Compiles the services' .proto files without protoc, and keeps one descriptor set a service for gRPC reflection.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // One by one, so that each service's reflection shows its own methods and nobody else's.
    for name in ["auth", "user", "blog", "post", "subscribe"] {
        let set = protox::compile([format!("{name}.proto")], ["proto"])?;
        std::fs::write(out.join(format!("{name}.bin")), set.encode_to_vec())?;
        tonic_prost_build::configure().compile_fds(set)?;
    }
    Ok(())
}
