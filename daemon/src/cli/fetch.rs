//! `tierd fetch`: reads record batches out of the archive.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tierd_client::ArchiveClient;

use super::picking::{self, PickArgs};
use super::reading::{Aborted, DaemonReading, Part, Reading, StoreReading};
use super::{Outcome, explain, output, records};
use crate::archive::batches_in;
use crate::config::Config;
use crate::daemon::Rooms;
use crate::fetch::{Caller, Isolation, Overlaps, PartitionRequest};
use crate::record::{CanonicalRecord, Selection, TopicName, TopicPartition};

#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// The topic
    topic: String,
    /// The partition
    partition: i32,
    /// Where to begin
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    offset: i64,
    /// Which life of a topic that was deleted and made again, counted from 0 [default: the newest]
    #[arg(long, value_name = "N")]
    incarnation: Option<u32>,
    /// Stop before this many bytes of batches; at least one batch comes [default: to the end]
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Which records to show
    #[arg(long, value_name = "LEVEL", default_value = "read_uncommitted")]
    isolation: IsolationArg,
    /// Which batches, where several hold the same offsets
    #[arg(long, value_name = "WHICH", default_value = "served")]
    overlaps: OverlapsArg,
    #[command(flatten)]
    pick: PickArgs,
    /// raw: the batches as on the wire; json: one line a record
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    /// Write to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Say on stderr which archives are read, and what it costs
    #[arg(long)]
    explain: bool,
    /// Read through a running daemon: HOST:PORT or unix:PATH [default: straight from --store]
    #[arg(long, value_name = "ADDR", env = "TIERD_ENDPOINT")]
    endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum IsolationArg {
    ReadUncommitted,
    ReadCommitted,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OverlapsArg {
    Served,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Json,
}

impl FetchArgs {
    fn isolation(&self) -> Isolation {
        match self.isolation {
            IsolationArg::ReadUncommitted => Isolation::ReadUncommitted,
            IsolationArg::ReadCommitted => Isolation::ReadCommitted,
        }
    }

    /// Which records; none where no flag picks any.
    fn selection(&self) -> anyhow::Result<Option<Selection>> {
        Ok(Some(self.pick.selection()?).filter(|selection| *selection != Selection::default()))
    }

    fn overlaps(&self) -> Overlaps {
        match self.overlaps {
            OverlapsArg::Served => Overlaps::Served,
            OverlapsArg::All => Overlaps::All,
        }
    }
}

pub(super) async fn fetch(args: FetchArgs, config: Config) -> anyhow::Result<Outcome> {
    let tp = TopicPartition::new(TopicName::new(&args.topic)?, args.partition)?;
    let mut reading = match &args.endpoint {
        Some(endpoint) => through_daemon(&args, endpoint).await?,
        None => from_store(&args, &config, &tp).await?,
    };
    let mut out: Box<dyn Write + Send> = match &args.output {
        Some(path) => Box::new(BufWriter::new(
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
        )),
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    loop {
        match reading.next().await? {
            Part::Batches { wire, .. } if args.format == Format::Raw => out.write_all(&wire)?,
            Part::Batches { wire, aborted } => {
                for batch in batches_in(wire) {
                    write_json(&mut out, &tp, &batch?, &aborted, args.offset)?;
                }
            }
            Part::Gap { range, kind } => {
                out.flush()?;
                eprintln!(
                    "tierd: {tp}: offsets {range} are a declared gap ({kind}), no archive holds them"
                );
            }
            Part::End => break,
        }
    }
    out.flush()?;
    if let Some(cost) = reading.cost().filter(|_| args.explain) {
        eprintln!(
            "read {} archives: {} requests for tables of contents ({}), {} for data ({})",
            cost.archives,
            cost.toc_requests,
            output::bytes(cost.toc_bytes),
            cost.chunk_requests,
            output::bytes(cost.chunk_bytes)
        );
    }
    Ok(Outcome::Well)
}

fn write_json(
    out: &mut impl Write,
    tp: &TopicPartition,
    batch: &CanonicalRecord,
    aborted: &[Aborted],
    from: i64,
) -> anyhow::Result<()> {
    let header = batch.header();
    let is_aborted = header.is_transactional()
        && aborted.iter().any(|aborted| {
            aborted.producer_id == header.producer_id
                // Where something else is served in front, a batch begins below the
                // first offset of its transaction.
                && aborted.offsets.overlaps(header.range())
        });
    if is_aborted {
        return Ok(());
    }
    records::lines(tp.topic().as_str(), tp.partition(), batch, from, |line| {
        serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
        Ok(out.write_all(b"\n")?)
    })
}

async fn through_daemon(args: &FetchArgs, endpoint: &str) -> anyhow::Result<Reading> {
    let client = ArchiveClient::connect_lazy(endpoint)?;
    let fetch = tierd_client::FetchArgs {
        incarnation: args.incarnation,
        max_bytes: args.max_bytes,
        isolation: match args.isolation() {
            Isolation::ReadUncommitted => tierd_client::Isolation::ReadUncommitted,
            Isolation::ReadCommitted => tierd_client::Isolation::ReadCommitted,
        },
        overlaps: match args.overlaps() {
            Overlaps::Served => tierd_client::Overlaps::Served,
            Overlaps::All => tierd_client::Overlaps::All,
        },
        selection: args.selection()?.map(picking::for_client),
        ..tierd_client::FetchArgs::new(args.topic.as_str(), args.partition, args.offset)
    };
    if args.explain {
        eprint!("{}", explain::through_daemon(&client, &fetch).await?);
    }
    Ok(Reading::Daemon(DaemonReading::new(client, fetch)))
}

async fn from_store(
    args: &FetchArgs,
    config: &Config,
    tp: &TopicPartition,
) -> anyhow::Result<Reading> {
    let rooms = Rooms::open(config)?;
    let request = PartitionRequest {
        tp: tp.clone(),
        incarnation: args.incarnation,
        offset: args.offset,
        max_bytes: args.max_bytes.unwrap_or(u64::MAX),
        min_one_batch: true,
        upper_bound: None,
        isolation: args.isolation(),
        overlaps: args.overlaps(),
        selection: args.selection()?,
        caller: Caller::default(),
    };
    if args.explain {
        eprint!("{}", explain::from_store(&rooms, &request).await?);
    }
    Ok(Reading::Store(StoreReading::new(rooms.fetcher, request)))
}
