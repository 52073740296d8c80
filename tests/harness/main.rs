//! The daemon's own `main`, built by the tests crate so that its tests always
//! start the code they were built with.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    tierd::cli::main().await
}
