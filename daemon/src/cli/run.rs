//! `tierd run`: archives what the broker's WAL holds.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Outcome, output};
use crate::archive::IndexRule;
use crate::config::Config;
use crate::daemon::{self, Listeners, Rooms};
use crate::indexer::{LiveOptions, PartitionReport, RunReport};
use crate::wal::{BrokerStart, WalDir, WalFormat};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The broker's WAL directory; it is only read
    #[arg(long, value_name = "DIR", env = "TIERD_WAL_DIR")]
    wal_dir: Option<PathBuf>,
    /// How the broker writes its WAL
    #[arg(long, value_name = "FORMAT", default_value = "chronik")]
    wal_format: WalFormatArg,
    /// Archive what can be archived now, print a summary, exit
    #[arg(long)]
    once: bool,
    /// No broker is running on this WAL: every segment is closed, every hole final
    #[arg(long)]
    offline: bool,
    /// When the broker started: a time, or a file that is touched when it starts.
    /// Segments last written before are closed
    #[arg(
        long,
        value_name = "TIME|FILE",
        env = "TIERD_BROKER_STARTED_AT",
        conflicts_with = "offline"
    )]
    broker_started_at: Option<String>,
    /// How long a segment is unchanged before it passes for rotated [default: 30s]
    #[arg(long, value_name = "TIME", env = "TIERD_SETTLE")]
    settle: Option<String>,
    /// How long a segment that may still grow is unchanged before its batches are
    /// archived [default: 10m]
    #[arg(long, value_name = "TIME", env = "TIERD_ARCHIVE_IDLE")]
    archive_idle: Option<String>,
    /// How long missing offsets are waited for before they are declared a gap
    /// [default: 1h]
    #[arg(long, value_name = "TIME", env = "TIERD_GAP_TIMEOUT")]
    gap_timeout: Option<String>,
    /// Delete closed segments of the broker's once every batch in them is proven to be
    /// archived, never the newest of a partition. Only for a broker that reads old
    /// offsets through tierd: another moves its consumers past what is gone
    #[arg(long, env = "TIERD_RECLAIM")]
    reclaim: bool,
    /// Bytes from which on a segment may pass for rotated [default: 100 MiB]. Hidden:
    /// only for brokers that rotate earlier than any release in use
    #[arg(long, value_name = "BYTES", env = "TIERD_ROTATED_BYTES_MIN", hide = true)]
    rotated_bytes_min: Option<u64>,
    /// What is indexed of which topics, as 'orders-*=full:json'; the first that fits
    /// counts. Levels: none, keys, full:text, full:json [default: keys]
    #[arg(long, value_name = "PATTERN=LEVEL", env = "TIERD_INDEX", value_delimiter = ',')]
    index: Vec<IndexRule>,
    /// Where to serve gRPC: 127.0.0.1:PORT or unix:/PATH; may be given more than
    /// once [default: 127.0.0.1:9095]
    #[arg(long, value_name = "ADDR", env = "TIERD_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// Where to serve probes and metrics: IP:PORT, also a routable one, or
    /// unix:/PATH [default: 127.0.0.1:9096]
    #[arg(long, value_name = "ADDR", env = "TIERD_HTTP")]
    http: Option<String>,
    /// Who writes, in manifests [default: host name]
    #[arg(long, value_name = "ID", env = "TIERD_WRITER_ID")]
    writer_id: Option<String>,
    /// Scratch and caches; may be wiped [default: below the user's cache folder]
    #[arg(long, value_name = "DIR", env = "TIERD_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum WalFormatArg {
    /// Chronik Stream
    Chronik,
}

impl WalFormatArg {
    pub(super) fn format(self) -> WalFormat {
        match self {
            Self::Chronik => WalFormat::Chronik,
        }
    }
}

impl RunArgs {
    /// Lays the flags over the settings.
    fn over(self, mut config: Config) -> Config {
        config.wal_dir = self.wal_dir.or(config.wal_dir);
        config.writer_id = self.writer_id.or(config.writer_id);
        config.data_dir = self.data_dir.or(config.data_dir);
        config.broker_started_at = self.broker_started_at.or(config.broker_started_at);
        config.settle = self.settle.or(config.settle);
        config.archive_idle = self.archive_idle.or(config.archive_idle);
        config.gap_timeout = self.gap_timeout.or(config.gap_timeout);
        config.reclaim = if self.reclaim { Some(true) } else { config.reclaim };
        config.rotated_bytes_min = self.rotated_bytes_min.or(config.rotated_bytes_min);
        config.http = self.http.or(config.http);
        if !self.index.is_empty() {
            config.index = Some(self.index);
        }
        if !self.listen.is_empty() {
            config.listen = Some(self.listen);
        }
        config
    }
}

pub(super) async fn run(args: RunArgs, config: Config, json: bool) -> anyhow::Result<Outcome> {
    let (once, offline, format) = (args.once, args.offline, args.wal_format.format());
    let config = args.over(config);
    let Some(wal_dir) = &config.wal_dir else {
        anyhow::bail!("no WAL directory is given: add --wal-dir DIR or set TIERD_WAL_DIR");
    };
    let options = config.live(offline)?;
    if once && options.reclaim && options.broker == BrokerStart::Unknown {
        anyhow::bail!(
            "--reclaim deletes segments that are closed for certain, and beside a running broker \
             only its start tells which: add --broker-started-at TIME|FILE, or --offline where \
             none runs"
        );
    }
    // The WAL first: a mistyped path must not leave a new store behind.
    let wal = WalDir::open(wal_dir, format)?;
    let rooms = Rooms::open_for_writing(&config)?;
    if !once {
        return stay(&rooms, &config, wal, options).await;
    }
    let report = archive_once(&rooms, &config, wal, options).await?;
    if json {
        output::json_line(&as_json(&report))?;
    } else {
        print(&report)?;
    }
    complain(&report);
    Ok(if report.failed() {
        anyhow::bail!("some partitions could not be archived to their end; the others are done")
    } else if report.damaged() {
        Outcome::CheckFailed
    } else {
        Outcome::Well
    })
}

/// Serves, and archives what becomes ready, until a signal.
async fn stay(
    rooms: &Rooms,
    config: &Config,
    wal: WalDir,
    options: LiveOptions,
) -> anyhow::Result<Outcome> {
    warn_of_unknown_start(&options);
    let (indexer, data) = rooms.indexer(config, wal, options)?;
    let compaction = rooms.compaction(config, &data)?;
    let listeners = Listeners::bind(config).await?;
    output::say(&format!("archiving {}\n", indexer.wal().root().display()))?;
    output::say(&listeners.to_string())?;
    daemon::archive_until_signal(rooms, listeners, indexer, compaction).await?;
    Ok(Outcome::Well)
}

fn warn_of_unknown_start(options: &LiveOptions) {
    let missing = match &options.broker {
        BrokerStart::Unknown => "nobody says when the broker started".to_owned(),
        BrokerStart::File(path) if !path.is_file() => {
            format!("{} is not there (yet)", path.display())
        }
        _ => return,
    };
    let kept = if options.reclaim { ", and --reclaim deletes nothing" } else { "" };
    tracing::warn!(
        "{missing}: until --broker-started-at or a report of the broker's tells, only segments \
         that rotated or were idle for long are archived{kept}"
    );
}

/// Archives everything once, with a progress bar where a person looks.
pub(super) async fn archive_once(
    rooms: &Rooms,
    config: &Config,
    wal: WalDir,
    options: LiveOptions,
) -> anyhow::Result<RunReport> {
    // Nobody stays to wait for another writer.
    let options = LiveOptions { standby_wait: Duration::ZERO, ..options };
    let settle = options.rules.settle;
    let (indexer, _data) = rooms.indexer(config, wal, options)?;
    // Hidden by itself where stderr is no terminal.
    let bar = indicatif::ProgressBar::new_spinner().with_message("archiving");
    bar.enable_steady_tick(Duration::from_millis(120));
    // Only watching shows that a segment beside a broker is unchanged.
    indexer.look_aside().await?;
    if indexer.would_settle() {
        bar.set_message(format!("watching for {}", humantime::format_duration(settle)));
        tokio::time::sleep(settle).await;
    }
    let report = indexer
        .run_once(|partition| {
            bar.inc(1);
            bar.set_message(format!("archived {}", partition.tp));
        })
        .await;
    bar.finish_and_clear();
    Ok(report?)
}

/// What was archived, for a person.
pub(super) fn print(report: &RunReport) -> anyhow::Result<()> {
    let mut table = output::Table::new(&[
        "topic",
        ">partition",
        ">segments",
        ">batches",
        ">known",
        ">new",
        ">overlaps",
        ">archives",
        ">size",
        ">archived through",
        ">releasable",
        "gaps",
    ]);
    for partition in &report.partitions {
        table.row(vec![
            partition.tp.topic().to_string(),
            partition.tp.partition().to_string(),
            partition.segments.to_string(),
            partition.found.to_string(),
            partition.known.to_string(),
            partition.batches.to_string(),
            partition.overlaps.to_string(),
            partition.archives.to_string(),
            output::bytes(partition.bytes),
            partition.archived_through.to_string(),
            partition.releasable_through.to_string(),
            gaps(partition),
        ]);
    }
    if table.is_empty() {
        return output::say("no topic partition in this WAL directory\n");
    }
    table.print()
}

fn gaps(partition: &PartitionReport) -> String {
    if partition.gaps.is_empty() {
        return "-".to_owned();
    }
    let shown: Vec<String> =
        partition.gaps.iter().take(3).map(|gap| format!("{} {}", gap.range, gap.kind)).collect();
    let more = partition.gaps.len().saturating_sub(shown.len());
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &tail
}

/// One line on stderr for everything a person should know.
fn complain(report: &RunReport) {
    for finding in &report.findings {
        eprintln!("tierd: {}", finding.line);
    }
    for partition in &report.partitions {
        for finding in &partition.findings {
            eprintln!("tierd: {}", finding.line);
        }
        if let Some(hole) = partition.waits_for {
            eprintln!(
                "tierd: {}: offsets {hole} are missing so far; what lies behind them waits for \
                 them, or for --gap-timeout of a daemon that stays",
                partition.tp
            );
        }
        if let Some(error) = &partition.error {
            eprintln!("tierd: {}: {error}", partition.tp);
        }
    }
}

fn as_json(report: &RunReport) -> serde_json::Value {
    let partitions: Vec<_> = report
        .partitions
        .iter()
        .map(|partition| {
            json!({
                "topic": partition.tp.topic().as_str(),
                "partition": partition.tp.partition(),
                "segments": partition.segments,
                "batches_found": partition.found,
                "batches_known": partition.known,
                "copies": partition.copies,
                "batches": partition.batches,
                "overlaps": partition.overlaps,
                "archives": partition.archives,
                "bytes": partition.bytes,
                "ranges": partition.ranges.iter().map(|r| [r.base(), r.last()]).collect::<Vec<_>>(),
                "gaps": partition.gaps.iter().map(|gap| json!({
                    "first": gap.range.base(), "last": gap.range.last(), "kind": gap.kind.to_string(),
                })).collect::<Vec<_>>(),
                "incarnation": partition.incarnation,
                "archived_through": partition.archived_through,
                "waits_for": partition.waits_for.map(|hole| [hole.base(), hole.last()]),
                "releasable_through": partition.releasable_through,
                "releasable_segments": partition.releasable,
                "reclaimed_segments": partition.reclaimed,
                "findings": partition.findings.iter().map(|f| &f.line).collect::<Vec<_>>(),
                "error": partition.error.as_ref().map(ToString::to_string),
            })
        })
        .collect();
    let findings: Vec<_> = report.findings.iter().map(|finding| &finding.line).collect();
    json!({ "partitions": partitions, "findings": findings })
}
