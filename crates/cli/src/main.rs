//! The `muster` binary; everything is in the library.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    muster_cli::run(std::env::args_os()).await
}
