//! `tierd bench merge`: many small archives become few: what is left in the store, how
//! often a byte is rewritten, and how fast that goes against copying the same objects.
//!
//! Both read every object from the store, check it by its digest and write its bytes to
//! the same store, as many at a time; copying does nothing else. It is done once before
//! each merge and once after, so that neither finds more in the system's memory.
//!
//! Before and after, every batch is fetched and compared with what was written, and
//! searches find what the data is known to hold.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::data::{Data, RECORD_MS};
use super::measure::{BUILD, ms, number, pace_of, time, timed};
use super::stage::{Stage, offsets_found};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::cli::output;
use crate::cli::reading::{Part, Reading, StoreReading};
use crate::compact::FETCHES;
use crate::compact::gc::Grace;
use crate::compact::merge::{MergeJob, Merged, TARGET_BYTES_DEFAULT, plan};
use crate::config::parse_bytes;
use crate::daemon::Rooms;
use crate::fetch::{Caller, Isolation, Overlaps, PartitionRequest};
use crate::record::Selection;
use crate::search::{Order, SearchRequest};
use crate::store::{Model, ObjectKey, Store};
use crate::task::Pace;

/// Copies are named as if made for a manifest that nobody will commit.
const COPIES_FOR: u64 = 1 << 40;
/// Copies removed at a time.
const DELETIONS: usize = 64;
/// Records of a time range that is searched for, at most; fewer than one answer holds.
const TIME_RECORDS: i64 = 1_000;
/// What searches are drawn by.
const SEED: u64 = 4;

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Archives of the partition
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    archives: u64,
    /// Batches in each, as 64KiB or 1MiB
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes)]
    archive_size: u64,
    /// Batches in what they are merged into
    #[arg(long, value_name = "BYTES", default_value_t = TARGET_BYTES_DEFAULT, value_parser = parse_bytes)]
    target: u64,
    /// Archives that come from one look of a daemon to its next; all at once without it
    #[arg(long, value_name = "N")]
    every: Option<u64>,
    /// Searches by key, and as many by time range, before and after
    #[arg(long, value_name = "N", default_value_t = 100)]
    searches: u32,
    /// From a request of the model store to its first byte; 0s for the directory's own
    #[arg(long, value_name = "TIME", default_value = "30ms", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// A second of one request of the model store; 0 for no limit
    #[arg(long, value_name = "BYTES", default_value = "80MiB", value_parser = parse_bytes)]
    bandwidth: u64,
}

/// What the store holds of the partition.
#[derive(Debug, Serialize)]
struct Stored {
    archives: u64,
    /// Objects of every sort, whether needed or not.
    objects: u64,
    bytes: u64,
    sorts: BTreeMap<&'static str, u64>,
}

/// Bytes that were moved, and how long it took.
#[derive(Debug, Default, Serialize)]
struct Moved {
    bytes: u64,
    seconds: f64,
}

/// The answer of the benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Merges {
    bench: &'static str,
    build: &'static str,
    archives: u64,
    records: i64,
    latency_ms: f64,
    bandwidth: u64,
    /// Bytes of the archives that came.
    came_bytes: u64,
    merges: u64,
    before_gc: Stored,
    after_gc: Stored,
    /// How often a byte was rewritten, at most and on average.
    rewrites_max: u32,
    rewrites_mean: f64,
    copied: Moved,
    merged: Moved,
    /// Throughput of merging, of that of copying.
    ratio: f64,
    /// Batches that were fetched, before and after, and BLAKE3 of them.
    fetched_bytes: u64,
    fetched_digest: String,
    searches: u32,
}

impl Merges {
    pub(super) fn print(&self) -> anyhow::Result<()> {
        output::say(&format!(
            "{} archives of {}, {} records; {}; {BUILD} build\n\n",
            self.archives,
            output::bytes(self.came_bytes / self.archives),
            self.records,
            pace_of(self.latency_ms, self.bandwidth),
        ))?;
        let mut table = output::Table::new(&["in the store", ">archives", ">objects", ">size"]);
        for (when, stored) in [("merged", &self.before_gc), ("after gc", &self.after_gc)] {
            let (archives, objects) = (stored.archives.to_string(), stored.objects.to_string());
            table.row(vec![when.to_owned(), archives, objects, output::bytes(stored.bytes)]);
        }
        table.print()?;
        let sorts: Vec<_> =
            self.after_gc.sorts.iter().map(|(sort, count)| format!("{count} {sort}")).collect();
        output::say(&format!(
            "left: {}\n\n{} merges rewrite a byte {} times at most, {} times on average\n\
             merged: {}\ncopied: {}\nmerging has {} of the throughput of copying\n\
             {} of batches and {} searches are what they were\n",
            sorts.join(", "),
            self.merges,
            self.rewrites_max,
            number(self.rewrites_mean),
            self.merged.say(),
            self.copied.say(),
            number(self.ratio),
            output::bytes(self.fetched_bytes),
            self.searches,
        ))
    }
}

impl Moved {
    fn add(&mut self, bytes: u64, time: Duration) {
        self.bytes += bytes;
        self.seconds += time.as_secs_f64();
    }

    fn per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    fn say(&self) -> String {
        let (bytes, rate) = (output::bytes(self.bytes), output::bytes(self.per_second() as u64));
        format!("{bytes} in {}, {rate} a second", time(Duration::from_secs_f64(self.seconds)))
    }
}

pub(super) async fn run(args: &MergeArgs) -> anyhow::Result<Merges> {
    anyhow::ensure!(args.every != Some(0), "no archives come from one look to the next");
    let data = Data::new(args.archives, args.archive_size)?;
    let every = args.every.unwrap_or(args.archives);
    let mut stage = Stage::fill_first(data, every).await?;
    let model = Model { latency: args.latency, bandwidth: args.bandwidth };
    let mut work = Work {
        rooms: Rooms::over(stage.rooms.store.paced(model), &stage.config)?,
        merges: 0,
        merged: Moved::default(),
        copied: Moved::default(),
        rewrites: BTreeMap::new(),
    };
    while stage.archived() < args.archives {
        work.merge_all(&mut stage, args.target).await?;
        stage.grow(every).await?;
    }
    let written = written(&stage.data).await?;
    check(&stage, written, args.searches).await?;
    work.merge_all(&mut stage, args.target).await?;
    let before_gc = stored(&stage).await?;
    collect(&stage.rooms).await?;
    check(&stage, written, args.searches).await?;

    Ok(Merges {
        bench: "merge",
        build: BUILD,
        archives: args.archives,
        records: stage.data.records(),
        latency_ms: ms(args.latency),
        bandwidth: args.bandwidth,
        came_bytes: stage.archived_bytes,
        merges: work.merges,
        before_gc,
        after_gc: stored(&stage).await?,
        rewrites_max: work.rewrites.values().copied().max().unwrap_or_default(),
        rewrites_mean: work.merged.bytes as f64 / stage.archived_bytes as f64,
        ratio: work.merged.per_second() / work.copied.per_second(),
        copied: work.copied,
        merged: work.merged,
        fetched_bytes: written.bytes,
        fetched_digest: written.digest.to_hex().to_string(),
        searches: 2 * args.searches,
    })
}

/// What merging and copying came to.
struct Work {
    /// At the pace of the model.
    rooms: Rooms,
    merges: u64,
    merged: Moved,
    copied: Moved,
    /// How often the archive that came with this first offset was rewritten.
    rewrites: BTreeMap<i64, u32>,
}

impl Work {
    /// Merges until there is nothing to merge.
    async fn merge_all(&mut self, stage: &mut Stage, target: u64) -> anyhow::Result<()> {
        let each = stage.data.records_each();
        let bar = indicatif::ProgressBar::new_spinner().with_message("merging");
        loop {
            let entries = stage.snapshot.entries().await?;
            let jobs = plan(&stage.snapshot, &entries, target, &HashSet::new());
            let Some(job) = jobs.first() else { break };
            let range = job.range().context("a merge of nothing")?;
            self.copy(job).await?;
            let (base, scratch) = (Arc::clone(&stage.snapshot), stage.scratch());
            let (compactor, pace) = (self.rooms.compactor(), Pace::unlimited());
            let merge = compactor.merge(base, job, scratch, &pace);
            let (merged, time) = timed(&*self.rooms.clock, merge).await;
            let Merged::Committed(newest, _) = merged? else {
                anyhow::bail!("a merge that nothing forbids was not committed");
            };
            self.merged.add(job.bytes(), time);
            self.copy(job).await?;
            for first in (range.base()..=range.last()).step_by(each as usize) {
                *self.rewrites.entry(first).or_default() += 1;
            }
            self.merges += 1;
            stage.snapshot = newest;
            bar.tick();
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Copies the inputs of `job`, and removes the copies.
    async fn copy(&mut self, job: &MergeJob) -> anyhow::Result<()> {
        let store = &self.rooms.store;
        let copies = job.inputs.iter().cloned().map(|entry| copy(store.clone(), entry));
        let copies: Vec<_> = copies.collect();
        let all = stream::iter(copies)
            .map(tokio::spawn)
            .buffer_unordered(FETCHES)
            .map(|copied| copied.context("a thread that copies died")?)
            .try_collect::<Vec<ObjectKey>>();
        let (copies, time) = timed(&*self.rooms.clock, all).await;
        self.copied.add(job.bytes(), time);
        let gone = copies?.into_iter().map(|copy| {
            let store = store.clone();
            async move { store.delete(&copy).await }
        });
        stream::iter(gone).buffer_unordered(DELETIONS).try_collect::<Vec<()>>().await?;
        Ok(())
    }
}

/// Copies the object of one archive, and checks it on the way.
async fn copy(store: Store, entry: ArchiveEntry) -> anyhow::Result<ObjectKey> {
    let to = entry.rebased(COPIES_FOR).key();
    let bytes = store.get_range(&entry.key(), 0..entry.summary.length).await?;
    let is_whole = *blake3::hash(&bytes).as_bytes() == entry.summary.digest;
    anyhow::ensure!(is_whole, "{} is not what was archived", entry.key());
    store.put(&to, bytes).await?;
    Ok(to)
}

/// Deletes all garbage: nobody reads, so nothing is given time.
async fn collect(rooms: &Rooms) -> anyhow::Result<()> {
    let compactor = rooms.compactor();
    loop {
        let grace = Grace { now_ms: compactor.store_now_ms().await?, grace: Duration::ZERO };
        let mut deleted = 0;
        for (tp, incarnation) in rooms.catalog.partitions().await? {
            let survey = compactor.survey(&tp, incarnation, grace).await?;
            deleted += compactor.sweep(survey, grace).await?.objects;
        }
        let strays = compactor.strays(grace).await?;
        deleted += compactor.sweep_strays(&strays).await?.objects;
        if deleted == 0 {
            return Ok(());
        }
    }
}

async fn newest(stage: &Stage) -> anyhow::Result<Arc<Snapshot>> {
    let newest = stage.fresh_rooms()?.catalog.load(&stage.data.tp, None).await?;
    newest.context("the partition is gone")
}

async fn stored(stage: &Stage) -> anyhow::Result<Stored> {
    let cluster = stage.rooms.catalog.cluster().as_str();
    let listed: Vec<_> = stage.rooms.store.list(cluster).try_collect().await?;
    let mut sorts = BTreeMap::new();
    for one in &listed {
        let sort = match ObjectKey::decode(&one.name)? {
            ObjectKey::Archive { .. } => "archives",
            ObjectKey::Manifest { .. } => "manifests",
            ObjectKey::Page { .. } | ObjectKey::Side { .. } => "pages",
            ObjectKey::Closed { .. } => "closed blocks",
            _ => "others",
        };
        *sorts.entry(sort).or_default() += 1;
    }
    let bytes = listed.iter().map(|one| one.length).sum();
    let archives = newest(stage).await?.totals().entries;
    Ok(Stored { archives, objects: listed.len() as u64, bytes, sorts })
}

/// Batches, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    bytes: u64,
    digest: blake3::Hash,
}

/// What was written.
async fn written(data: &Data) -> anyhow::Result<Log> {
    let data = data.clone();
    let written = tokio::task::spawn_blocking(move || -> anyhow::Result<Log> {
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        for batch in (0..data.archives).flat_map(|number| data.batches(number)) {
            let wire = batch?.to_kafka_batch()?;
            hasher.update(&wire);
            bytes += wire.len() as u64;
        }
        Ok(Log { bytes, digest: hasher.finalize() })
    });
    written.await.context("a thread that makes data died")?
}

/// What is served, read by rooms that have seen nothing yet.
async fn served(stage: &Stage) -> anyhow::Result<Log> {
    let rooms = stage.fresh_rooms()?;
    let request = PartitionRequest {
        tp: stage.data.tp.clone(),
        incarnation: None,
        offset: 0,
        max_bytes: u64::MAX,
        min_one_batch: true,
        upper_bound: None,
        isolation: Isolation::default(),
        overlaps: Overlaps::default(),
        selection: None,
        caller: Caller::default(),
    };
    let mut reading = Reading::Store(StoreReading::new(rooms.fetcher, request));
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    loop {
        match reading.next().await? {
            Part::Batches { wire, .. } => {
                hasher.update(&wire);
                bytes += wire.len() as u64;
            }
            Part::Gap { range, .. } => anyhow::bail!("offsets {range} are gone"),
            Part::End => return Ok(Log { bytes, digest: hasher.finalize() }),
        }
    }
}

/// That what is fetched and found is what was written.
async fn check(stage: &Stage, written: Log, searches: u32) -> anyhow::Result<()> {
    let newest = newest(stage).await?;
    stage.rooms.catalog.verify_history(&newest).await?;
    anyhow::ensure!(served(stage).await? == written, "what is fetched is not what was written");
    let rooms = stage.fresh_rooms()?;
    let data = &stage.data;
    let mut rng = StdRng::seed_from_u64(SEED);
    for _ in 0..searches {
        let offset = rng.random_range(0..data.records());
        let key = Selection { key: Some(data.key(offset).into()), ..Selection::default() };
        let last = data.records().min(offset + TIME_RECORDS) - 1;
        let times = Selection {
            from_ms: Some(data.time(offset)),
            until_ms: Some(data.time(last) + RECORD_MS),
            ..Selection::default()
        };
        let there: [Vec<i64>; 2] = [data.same_key(offset).collect(), (offset..=last).collect()];
        for (selection, expected) in [key, times].into_iter().zip(there) {
            let request = SearchRequest {
                selection: selection.clone(),
                order: Order::Oldest,
                ..stage.request()
            };
            let found = offsets_found(&rooms.searcher, request).await?;
            anyhow::ensure!(found == expected, "{selection:?} finds {found:?}, not {expected:?}");
        }
    }
    Ok(())
}
