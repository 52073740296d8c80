//! `tierd bench lookup`: keys and times looked up over many small archives in a
//! model store: what pruning, and reading an index in place, are worth.
//!
//! Tables of contents and summaries of keys are in memory, as in a daemon that has
//! served for a while; chunks of indexes and logs are not, and each is asked for
//! anew. Requests and bytes are those that the model store answered.

use std::time::Duration;

use clap::Args;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::data::{Data, RECORD_MS};
use super::measure::{BUILD, Times, ms, number, pace_of, time, timed};
use super::stage::{Stage, search};
use crate::cli::output;
use crate::config::parse_bytes;
use crate::daemon::Rooms;
use crate::record::Selection;
use crate::search::{LIMIT_MAX, SearchRequest, Searcher};
use crate::store::{Model, Op, Requests};

/// Tables of contents read at once before it begins.
const WARMED_AT_ONCE: usize = 64;
/// The part of the partition's time that one time range is.
const TIME_PART: i64 = 100;
/// What lookups are drawn by.
const SEED: u64 = 2;

#[derive(Debug, Args)]
pub(super) struct LookupArgs {
    /// Archives of the partition
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    archives: u64,
    /// Batches in each, as 64KiB or 1MiB
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes)]
    archive_size: u64,
    /// Lookups of each kind
    #[arg(long, value_name = "N", default_value_t = 500)]
    lookups: u32,
    /// From a request of the model store to its first byte
    #[arg(long, value_name = "TIME", default_value = "30ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// A second of one request of the model store; 0 for no limit
    #[arg(long, value_name = "BYTES", default_value = "80MiB", value_parser = parse_bytes)]
    bandwidth: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// A key that is there.
    Key,
    /// A key that is nowhere.
    AbsentKey,
    /// Every record of a time range.
    Time,
    /// A key in a time range.
    KeyInTime,
}

/// What one kind of lookup costs.
#[derive(Debug, Serialize)]
struct Row {
    by: Kind,
    lookups: usize,
    hits_mean: f64,
    median_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    requests_mean: f64,
    bytes_max: u64,
    /// Of all bytes of the archives.
    bytes_max_percent: f64,
    archives_opened_max: u64,
    /// Opened archives that hold nothing that was asked for.
    opened_in_vain_mean: f64,
}

/// The answer of the benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Lookups {
    bench: &'static str,
    build: &'static str,
    archives: u64,
    stored_bytes: u64,
    records: i64,
    latency_ms: f64,
    bandwidth: u64,
    rows: Vec<Row>,
}

impl Lookups {
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let (each, stored) = (self.stored_bytes / self.archives, self.stored_bytes);
        output::say(&format!(
            "{} archives of {}, {} records; {}; {BUILD} build\n\n",
            self.archives,
            output::bytes(each),
            self.records,
            pace_of(self.latency_ms, self.bandwidth),
        ))?;
        let mut table = output::Table::new(&[
            "by",
            ">hits",
            ">median",
            ">p99",
            ">slowest",
            ">requests",
            ">most bytes",
            ">of all",
            ">archives opened",
            ">in vain",
        ]);
        for row in &self.rows {
            let by = match row.by {
                Kind::Key => "key",
                Kind::AbsentKey => "absent key",
                Kind::Time => "time range",
                Kind::KeyInTime => "key in a time range",
            };
            let millis = |ms: f64| time(Duration::from_secs_f64(ms / 1e3));
            table.row(vec![
                by.to_owned(),
                number(row.hits_mean),
                millis(row.median_ms),
                millis(row.p99_ms),
                millis(row.max_ms),
                number(row.requests_mean),
                output::bytes(row.bytes_max),
                format!("{:.3} %", row.bytes_max as f64 / stored as f64 * 100.0),
                format!("≤ {}", row.archives_opened_max),
                number(row.opened_in_vain_mean),
            ]);
        }
        table.print()
    }
}

pub(super) async fn run(args: &LookupArgs) -> anyhow::Result<Lookups> {
    let stage = Stage::fill(Data::new(args.archives, args.archive_size)?).await?;
    let model = Model { latency: args.latency, bandwidth: args.bandwidth };
    let rooms = Rooms::over(stage.rooms.store.paced(model), &stage.config)?;
    let reader = stage.forgetful(&rooms.store);
    stage.warm(&reader, WARMED_AT_ONCE).await?;
    let searcher = stage.searcher(&rooms, reader);
    let mut bench = Bench { stage: &stage, rooms, searcher, rng: StdRng::seed_from_u64(SEED) };
    // What a search keeps of archives besides their tables, it keeps from here on.
    bench.look_up(Kind::AbsentKey).await?;
    let mut rows = Vec::new();
    for kind in [Kind::Key, Kind::AbsentKey, Kind::Time, Kind::KeyInTime] {
        rows.push(bench.row(kind, args.lookups).await?);
    }
    Ok(Lookups {
        bench: "lookup",
        build: BUILD,
        archives: args.archives,
        stored_bytes: bench.stored(),
        records: stage.data.records(),
        latency_ms: ms(args.latency),
        bandwidth: args.bandwidth,
        rows,
    })
}

struct Bench<'a> {
    stage: &'a Stage,
    rooms: Rooms,
    searcher: Searcher,
    rng: StdRng,
}

/// What one lookup cost.
struct Cost {
    time: Duration,
    store: Requests,
    hits: u64,
    opened: u64,
    in_vain: u64,
}

impl Bench<'_> {
    fn stored(&self) -> u64 {
        self.stage.snapshot.totals().object_bytes
    }

    async fn row(&mut self, by: Kind, lookups: u32) -> anyhow::Result<Row> {
        let bar = indicatif::ProgressBar::new(lookups.into()).with_message("lookups");
        let mut times = Times::default();
        let (mut hits, mut requests, mut in_vain) = (0, 0, 0);
        let (mut bytes_max, mut opened_max) = (0, 0);
        for _ in 0..lookups {
            let cost = self.look_up(by).await?;
            times.push(cost.time);
            hits += cost.hits;
            requests += cost.store.total();
            in_vain += cost.in_vain;
            bytes_max = bytes_max.max(Op::ALL.iter().map(|op| cost.store.of(*op).bytes).sum());
            opened_max = opened_max.max(cost.opened);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let mean = |sum: u64| sum as f64 / f64::from(lookups.max(1));
        Ok(Row {
            by,
            lookups: times.count(),
            hits_mean: mean(hits),
            median_ms: ms(times.median()),
            p99_ms: ms(times.quantile(0.99)),
            max_ms: ms(times.quantile(1.0)),
            requests_mean: mean(requests),
            bytes_max,
            bytes_max_percent: bytes_max as f64 / self.stored() as f64 * 100.0,
            archives_opened_max: opened_max,
            opened_in_vain_mean: mean(in_vain),
        })
    }

    /// Looks up something random, and proves that the answer is right.
    async fn look_up(&mut self, by: Kind) -> anyhow::Result<Cost> {
        let (selection, expected) = self.ask(by);
        let request = SearchRequest { selection, ..self.stage.request() };
        let before = self.rooms.store.requests();
        let answer = search(&self.searcher, request);
        let (found, time) = timed(&*self.rooms.clock, answer).await;
        let (summary, _) = found?;
        anyhow::ensure!(
            summary.hits == expected.hits,
            "a lookup by {by:?} has {} hits, not {}",
            summary.hits,
            expected.hits
        );
        let opened = summary.archives.searched + summary.archives.scanned;
        let store = self.rooms.store.requests().since(&before);
        let in_vain = opened.saturating_sub(expected.archives);
        Ok(Cost { time, store, hits: summary.hits, opened, in_vain })
    }

    fn ask(&mut self, by: Kind) -> (Selection, Expected) {
        let data = &self.stage.data;
        let all = data.records();
        let offset = self.rng.random_range(0..all);
        let key = |key: String| Selection { key: Some(key.into()), ..Selection::default() };
        // A page holds them all.
        let part = (all / TIME_PART).clamp(1, i64::from(LIMIT_MAX));
        let from = (offset - self.rng.random_range(0..part)).clamp(0, all - part);
        let within = |selection| Selection {
            from_ms: Some(data.time(from)),
            until_ms: Some(data.time(from) + part * RECORD_MS),
            ..selection
        };
        let last = data.archive_of(from + part - 1);
        match by {
            Kind::Key => (key(data.key(offset)), Expected::each(data.same_key(offset).count())),
            Kind::AbsentKey => (key(format!("nobody-{offset}")), Expected::each(0)),
            Kind::Time => {
                let archives = (last - data.archive_of(from) + 1) as u64;
                (within(Selection::default()), Expected { hits: part as u64, archives })
            }
            Kind::KeyInTime => {
                let there = data.same_key(offset).filter(|at| (from..from + part).contains(at));
                (within(key(data.key(offset))), Expected::each(there.count()))
            }
        }
    }
}

/// What a right answer holds.
struct Expected {
    hits: u64,
    /// That hold hits.
    archives: u64,
}

impl Expected {
    /// One hit in each of so many archives.
    fn each(archives: usize) -> Self {
        Self { hits: archives as u64, archives: archives as u64 }
    }
}
