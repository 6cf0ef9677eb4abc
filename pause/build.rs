//! Compiles `src/program/pause.rs` by a call of rustc of its own: it is a program without libc and
//! without eh frames, which cargo cannot express for one package of a workspace.

use std::{env, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = "src/program/pause.rs";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed=build.rs");
    let target = env::var("TARGET")?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("pause");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "pause", "--target", &target]);
    for option in [
        "panic=abort",
        "opt-level=z",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        "force-unwind-tables=no",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-Wl,-n,--build-id=none,--no-eh-frame-hdr,-z,noexecstack",
    ] {
        rustc.args(["-C", option]);
    }
    let linker_option = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    println!("cargo:rerun-if-env-changed={linker_option}");
    if let Ok(linker) = env::var(linker_option) {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc.arg("-o").arg(&out).arg(source).status()?;
    if !status.success() {
        return Err(format!("{source} could not be compiled for {target}: rustc: {status}").into());
    }
    Ok(())
}
