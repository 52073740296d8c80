//! The `tierd` binary: everything is in the library.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    tierd::cli::main().await
}
