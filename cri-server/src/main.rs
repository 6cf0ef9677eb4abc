//! `podhold`: maps the result of a subcommand to an exit code, and nothing else.

fn main() -> std::process::ExitCode {
    podhold::cli::main()
}
