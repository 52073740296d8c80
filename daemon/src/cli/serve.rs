//! `tierd serve`: the read side alone, without a WAL.

use clap::Args;

use super::{Outcome, output};
use crate::config::Config;
use crate::daemon::{self, Listeners, Rooms};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where to serve gRPC: 127.0.0.1:PORT or unix:/PATH; may be given more than
    /// once [default: 127.0.0.1:9095]
    #[arg(long, value_name = "ADDR", env = "TIERD_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// Where to serve probes and metrics: IP:PORT, also a routable one, or
    /// unix:/PATH [default: 127.0.0.1:9096]
    #[arg(long, value_name = "ADDR", env = "TIERD_HTTP")]
    http: Option<String>,
}

pub(super) async fn serve(args: ServeArgs, mut config: Config) -> anyhow::Result<Outcome> {
    if !args.listen.is_empty() {
        config.listen = Some(args.listen);
    }
    config.http = args.http.or(config.http);
    let rooms = Rooms::open(&config)?;
    let listeners = Listeners::bind(&config).await?;
    output::say(&listeners.to_string())?;
    daemon::serve_until_signal(&rooms, listeners).await?;
    Ok(Outcome::Well)
}
