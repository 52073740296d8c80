//! `tierd bench scan`: a key found through the index against reading every batch for
//! it: the same archives in the same run, at several sizes, from local files.
//!
//! Both ways read through the same reader, which remembers tables of contents and no
//! chunk, and work on all processors; both bring the records, not only where they
//! are. The reading looks at keys in place and decodes nothing else.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::data::Data;
use super::measure::{BUILD, Times, ms, number, ratio, time, timed};
use super::stage::{Stage, processors, search};
use crate::archive::batches_in;
use crate::catalog::ArchiveEntry;
use crate::cli::output;
use crate::config::parse_bytes;
use crate::read::{ArchiveReader, ReadStats};
use crate::record::Selection;
use crate::search::{Deliver, SearchRequest};

/// What keys are drawn by.
const SEED: u64 = 3;

#[derive(Debug, Args)]
pub(super) struct ScanArgs {
    /// Batches in all archives, one size after the other
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64MiB,256MiB,1GiB", value_parser = parse_bytes)]
    sizes: Vec<u64>,
    /// Batches in one archive
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes)]
    archive_size: u64,
    /// Keys that are looked up through the index, for each time that all is read
    #[arg(long, value_name = "N", default_value_t = 30)]
    lookups: u32,
    /// Times that every batch is read
    #[arg(long, value_name = "N", default_value_t = 3)]
    scans: u32,
}

/// One size.
#[derive(Debug, Serialize)]
struct Row {
    /// Of batches.
    bytes: u64,
    archives: u64,
    records: i64,
    scan_median_ms: f64,
    index_median_ms: f64,
    index_p99_ms: f64,
    /// How many times faster the index is.
    ratio: f64,
}

/// The answer of the benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Scans {
    bench: &'static str,
    build: &'static str,
    processors: usize,
    rows: Vec<Row>,
}

impl Scans {
    pub(super) fn print(&self) -> anyhow::Result<()> {
        output::say(&format!(
            "A key through the index against reading every batch, {} processors, {BUILD} build\n\n",
            self.processors
        ))?;
        let mut table = output::Table::new(&[
            ">batches",
            ">archives",
            ">records",
            ">all read",
            ">by index",
            ">p99",
            ">times faster",
        ]);
        let millis = |ms: f64| time(Duration::from_secs_f64(ms / 1e3));
        for row in &self.rows {
            table.row(vec![
                output::bytes(row.bytes),
                row.archives.to_string(),
                row.records.to_string(),
                millis(row.scan_median_ms),
                millis(row.index_median_ms),
                millis(row.index_p99_ms),
                number(row.ratio),
            ]);
        }
        table.print()
    }
}

pub(super) async fn run(args: &ScanArgs) -> anyhow::Result<Scans> {
    anyhow::ensure!(
        args.scans > 0 && args.lookups > 0,
        "nothing to compare without --scans and --lookups"
    );
    let mut rows = Vec::new();
    for &bytes in &args.sizes {
        rows.push(one_size(args, bytes).await?);
    }
    Ok(Scans { bench: "scan", build: BUILD, processors: processors(), rows })
}

async fn one_size(args: &ScanArgs, bytes: u64) -> anyhow::Result<Row> {
    let archives = bytes.div_ceil(args.archive_size.max(1));
    let stage = Stage::fill(Data::new(archives, bytes.div_ceil(archives.max(1)))?).await?;
    let reader = stage.forgetful(&stage.rooms.store);
    stage.warm(&reader, processors()).await?;
    let searcher = stage.searcher(&stage.rooms, reader.clone());
    let entries = stage.snapshot.entries().await?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut indexed, mut scanned) = (Times::default(), Times::default());
    let bar = indicatif::ProgressBar::new(args.scans.into()).with_message("scans");
    for _ in 0..args.scans {
        let mut wanted = rng.random_range(0..stage.data.records());
        let reading = scan(&reader, &entries, stage.data.key(wanted));
        let (found, time) = timed(&*stage.rooms.clock, reading).await;
        scanned.push(time);
        let found = found?;
        let right = stage.data.same_key(wanted).count() as u64;
        anyhow::ensure!(found == right, "{found} records with a key by reading, not {right}");
        for _ in 0..args.lookups {
            let key = Some(stage.data.key(wanted).into());
            let selection = Selection { key, ..Selection::default() };
            let request = SearchRequest { selection, deliver: Deliver::Records, ..stage.request() };
            let (found, time) = timed(&*stage.rooms.clock, search(&searcher, request)).await;
            let (hits, right) = (found?.0.hits, stage.data.same_key(wanted).count() as u64);
            anyhow::ensure!(hits == right, "{hits} records with a key by index, not {right}");
            indexed.push(time);
            wanted = rng.random_range(0..stage.data.records());
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Row {
        bytes: stage.snapshot.totals().log_bytes,
        archives,
        records: stage.data.records(),
        scan_median_ms: ms(scanned.median()),
        index_median_ms: ms(indexed.median()),
        index_p99_ms: ms(indexed.quantile(0.99)),
        ratio: ratio(scanned.median(), indexed.median()),
    })
}

/// Reads every batch of `entries` and counts the records with `key`.
async fn scan(
    reader: &ArchiveReader,
    entries: &[ArchiveEntry],
    key: String,
) -> anyhow::Result<u64> {
    let all = entries.iter().map(|entry| scan_archive(reader, entry, key.clone()));
    let all: Vec<_> = all.collect();
    let found: Vec<u64> = stream::iter(all).buffer_unordered(processors()).try_collect().await?;
    Ok(found.iter().sum())
}

async fn scan_archive(
    reader: &ArchiveReader,
    entry: &ArchiveEntry,
    key: String,
) -> anyhow::Result<u64> {
    let stats = ReadStats::default();
    let toc = reader.toc(entry, &stats).await?;
    let log = toc.log().context("an archive without a log")?;
    let wanted = log.chunks.start as usize..log.chunks.end as usize;
    let mut chunks = std::pin::pin!(reader.chunks(entry, &toc, wanted, &stats));
    let mut found = 0;
    while let Some(chunk) = chunks.try_next().await? {
        let key = key.clone();
        let look = tokio::task::spawn_blocking(move || -> anyhow::Result<u64> {
            let mut found = 0;
            for batch in batches_in(chunk) {
                let batch = batch?;
                let mut entries = batch.entries()?;
                while let Some(entry) = entries.next_ref() {
                    found += u64::from(entry?.key == Some(key.as_bytes()));
                }
            }
            Ok(found)
        });
        found += look.await.context("a thread that reads died")??;
    }
    Ok(found)
}
