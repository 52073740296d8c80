//! `tierd serve`: the read side alone, without a WAL.

use clap::Args;

use super::{Outcome, output};
use crate::config::Config;
use crate::daemon::{self, Rooms};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where to serve gRPC: 127.0.0.1:PORT or unix:/PATH; may be given more than
    /// once [default: 127.0.0.1:9095]
    #[arg(long, value_name = "ADDR", env = "TIERD_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
}

pub(super) async fn serve(args: ServeArgs, mut config: Config) -> anyhow::Result<Outcome> {
    if !args.listen.is_empty() {
        config.listen = Some(args.listen);
    }
    let rooms = Rooms::open(&config)?;
    let bound = daemon::bind(&config).await?;
    for listener in &bound {
        output::say(&format!("serving gRPC on {listener}\n"))?;
    }
    daemon::serve_until_signal(rooms.fetcher, bound).await?;
    Ok(Outcome::Well)
}
