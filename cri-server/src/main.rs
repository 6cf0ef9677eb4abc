//! `podhold`: maps the result of a subcommand to an exit code, and nothing else.

/// The C library's allocator has one lock for each of its heaps: a thread of low priority that loses the
/// processor while it holds one keeps the threads that answer clients waiting for 10 to 20 ms.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    podhold::cli::main()
}
