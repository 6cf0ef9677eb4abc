//! Compiles the protocol definitions with protox, so that no protoc is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cri = protox::compile(["cri/v1/api.proto"], ["."])?;
    tonic_prost_build::configure()
        // Configurations are kept in the daemon's records and shown in verbose answers.
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]")
        .enum_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(cri)?;
    let shim = protox::compile(["shim/v1/shim.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(shim)?;
    let own = protox::compile(["podhold/v1/images.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(own)?;
    println!("cargo:rerun-if-changed=podhold");
    println!("cargo:rerun-if-changed=cri");
    println!("cargo:rerun-if-changed=shim");
    Ok(())
}
