//! The shim of one pod; see `podhold_sandbox::shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == "--help" || word == "-h") {
        println!("{}", podhold_sandbox::shim::ShimError::Usage);
        return ExitCode::SUCCESS;
    }
    match podhold_sandbox::shim::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unsaid =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("podhold-shim: {error}\n"));
            ExitCode::FAILURE
        }
    }
}
