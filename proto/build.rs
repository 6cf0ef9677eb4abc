//! Compiles the protocol definitions with protox, so that no protoc is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cri = protox::compile(["cri/v1/api.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(cri)?;
    println!("cargo:rerun-if-changed=cri");
    Ok(())
}
