//! The `muster` binary; everything is in the library.

use std::process::ExitCode;

/// Many small pieces are taken on one thread and given back on another, which it is made for.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    muster_cli::run(std::env::args_os()).await
}
