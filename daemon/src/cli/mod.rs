//! Owns the command line: flags, output for people and for programs, exit codes.
//!
//! Does no work itself: each command assembles rooms and prints what they say.
//! Exit codes: 0 all is well, 1 a check failed, 2 bad usage or an error.

mod bench;
mod compact;
mod delete;
mod demo;
mod demo_wal;
mod dump_wal;
mod explain;
mod fetch;
mod finding;
mod gc;
mod inspect;
mod ls;
mod output;
mod picking;
mod reading;
mod rebuild;
mod records;
mod reindex;
mod run;
mod search;
mod serve;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, LogFormat};
use crate::daemon::Rooms;
use crate::record::{TopicName, TopicPartition};

/// How a command ended, short of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Well,
    /// A check failed: damaged data, a gap in what was promised.
    CheckFailed,
}

/// Tiering daemon beside a WAL-writing, Kafka-compatible broker.
#[derive(Debug, Parser)]
#[command(name = "tierd", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
struct Global {
    /// Where archives live: file:///DIR, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or memory:
    #[arg(long, value_name = "URL", env = "TIERD_STORE", global = true)]
    store: Option<String>,
    /// Name of the broker's cluster, the first folder in the store [default: default]
    #[arg(long, value_name = "NAME", env = "TIERD_CLUSTER", global = true)]
    cluster: Option<String>,
    /// Settings file; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "TIERD_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Print JSON: one object, or one a line for lists
    #[arg(long, global = true)]
    json: bool,
    /// What to log to stderr, as error, warn, info, debug, or tierd::read=trace [default: warn]
    #[arg(long, value_name = "FILTER", env = "TIERD_LOG", global = true)]
    log: Option<String>,
    /// How to log
    #[arg(long, value_name = "FORMAT", env = "TIERD_LOG_FORMAT", global = true)]
    log_format: Option<LogFormat>,
}

/// Flags of every command that changes what is archived.
#[derive(Clone, Debug, Args)]
struct Change {
    /// Do it; without this nothing is changed
    #[arg(long)]
    confirm: bool,
    /// Who writes, in manifests [default: host name]
    #[arg(long, value_name = "ID", env = "TIERD_WRITER_ID")]
    writer_id: Option<String>,
}

impl Change {
    /// The rooms to change what is archived in.
    fn rooms(&self, config: &Config) -> anyhow::Result<Rooms> {
        let mut config = config.clone();
        config.writer_id = self.writer_id.clone().or(config.writer_id);
        Rooms::open_to_change(&config)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Archive what the broker's WAL holds
    Run(run::RunArgs),
    /// Serve the archive over gRPC, without a WAL
    Serve(serve::ServeArgs),
    /// Show the whole loop on a real WAL in a temporary directory
    Demo(demo::DemoArgs),
    /// Read record batches out of the archive
    Fetch(fetch::FetchArgs),
    /// Find records by key, header, producer, time or offset
    Search(search::SearchArgs),
    /// List topics, partitions or the archives of a partition
    Ls(ls::LsArgs),
    /// Show what is inside an archive or a manifest
    Inspect(inspect::InspectArgs),
    /// Check that everything archived can be read
    Verify(verify::VerifyArgs),
    /// Apply retention to what is archived: a dry run until --confirm
    Compact(compact::CompactArgs),
    /// Give archives another index level: a dry run until --confirm
    Reindex(reindex::ReindexArgs),
    /// Delete a topic, a partition or its beginning from the archive: a dry run until --confirm
    Delete(delete::DeleteArgs),
    /// Delete objects that nobody needs any more: a dry run until --confirm
    Gc(gc::GcArgs),
    /// Rebuild catalogs that lost manifests or pages from the archives: a dry run until --confirm
    RebuildManifest(rebuild::RebuildArgs),
    /// Show the frames of WAL segments
    DumpWal(dump_wal::DumpWalArgs),
    /// Measure speed on data that it makes, in a temporary folder
    Bench(bench::BenchArgs),
}

/// Parses the command line, runs it, prints what went wrong. The process ends
/// with what it returns.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tierd: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let flags = cli.global;
    let mut config = Config::load(flags.config.as_deref())?;
    config.store = flags.store.or(config.store);
    config.cluster = flags.cluster.or(config.cluster);
    config.log = flags.log.or(config.log);
    config.log_format = flags.log_format.or(config.log_format);
    crate::daemon::start_logging(&config)?;
    let json = flags.json;
    match cli.command {
        Command::Run(args) => run::run(args, config, json).await,
        Command::Serve(args) => serve::serve(args, config).await,
        Command::Demo(args) => demo::demo(args, config).await,
        Command::Fetch(args) => fetch::fetch(args, config).await,
        Command::Search(args) => search::search(args, config, json).await,
        Command::Ls(args) => ls::ls(args, config, json).await,
        Command::Inspect(args) => inspect::inspect(args, config, json).await,
        Command::Verify(args) => verify::verify(args, config, json).await,
        Command::Compact(args) => compact::compact(args, config, json).await,
        Command::Reindex(args) => reindex::reindex(args, config, json).await,
        Command::Delete(args) => delete::delete(args, config, json).await,
        Command::Gc(args) => gc::gc(args, config, json).await,
        Command::RebuildManifest(args) => rebuild::rebuild(args, config, json).await,
        Command::DumpWal(args) => dump_wal::dump_wal(args, json),
        Command::Bench(args) => bench::bench(args, json).await,
    }
}

/// The partitions in the store, every life of them, that are of `topic` and
/// `partition` where those are given.
async fn wanted(
    rooms: &Rooms,
    topic: Option<&TopicName>,
    partition: Option<i32>,
) -> anyhow::Result<Vec<(TopicPartition, u32)>> {
    let mut found = rooms.catalog.partitions().await?;
    found.retain(|(tp, _)| {
        topic.is_none_or(|topic| topic == tp.topic())
            && partition.is_none_or(|partition| partition == tp.partition())
    });
    Ok(found)
}
