//! The shim of one pod; see `podhold_sandbox::shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match podhold_sandbox::shim::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unsaid =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("podhold-shim: {error}\n"));
            ExitCode::FAILURE
        }
    }
}
