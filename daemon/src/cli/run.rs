//! `tierd run`: archives what the broker's WAL holds.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Outcome, output};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::indexer::{PartitionReport, RunReport};
use crate::wal::{WalDir, WalFormat};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The broker's WAL directory; it is only read
    #[arg(long, value_name = "DIR", env = "TIERD_WAL_DIR")]
    wal_dir: Option<PathBuf>,
    /// How the broker writes its WAL
    #[arg(long, value_name = "FORMAT", default_value = "chronik")]
    wal_format: WalFormatArg,
    /// Archive what can be archived, print a summary, exit
    #[arg(long, required = true)]
    once: bool,
    /// No broker is running on this WAL: every segment is closed, every hole final
    #[arg(long, required = true)]
    offline: bool,
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

pub(super) async fn run(args: RunArgs, mut config: Config, json: bool) -> anyhow::Result<Outcome> {
    config.wal_dir = args.wal_dir.or(config.wal_dir);
    config.writer_id = args.writer_id.or(config.writer_id);
    config.data_dir = args.data_dir.or(config.data_dir);
    let Some(wal_dir) = &config.wal_dir else {
        anyhow::bail!("no WAL directory is given: add --wal-dir DIR or set TIERD_WAL_DIR");
    };
    // The WAL first: a mistyped path must not leave a new store behind.
    let wal = WalDir::open(wal_dir, args.wal_format.format())?;
    let rooms = Rooms::open_for_writing(&config)?;
    let report = archive_once(&rooms, &config, &wal, args.wal_format.format()).await?;
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

/// Archives everything once, with a progress bar where a person looks.
pub(super) async fn archive_once(
    rooms: &Rooms,
    config: &Config,
    wal: &WalDir,
    format: WalFormat,
) -> anyhow::Result<RunReport> {
    let indexer = rooms.indexer(config, format)?;
    // Hidden by itself where stderr is no terminal.
    let bar = indicatif::ProgressBar::new_spinner().with_message("archiving");
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    let report = indexer
        .run_offline(wal, |partition| {
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
        "archived through",
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
                "archived_through": partition.archived_through,
                "findings": partition.findings.iter().map(|f| &f.line).collect::<Vec<_>>(),
                "error": partition.error.as_ref().map(ToString::to_string),
            })
        })
        .collect();
    let findings: Vec<_> = report.findings.iter().map(|finding| &finding.line).collect();
    json!({ "partitions": partitions, "findings": findings })
}
