//! Owns where a benchmark plays: a store in a temporary folder, filled with
//! [`Data`], and the rooms that search it, at the pace of a model or at its own.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;

use super::data::Data;
use crate::archive::{ArchiveOptions, BuiltArchive};
use crate::catalog::{ArchiveEntry, Edit, Snapshot, Snapshots};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::read::{ArchiveReader, ReadOptions, ReadStats, ReadTotals};
use crate::search::{
    EVENTS_QUEUED_MAX, Scope, SearchEvent, SearchRequest, SearchSummary, Searcher,
};
use crate::store::Store;

/// A filled store. Its folder goes when this and every thread that packs are gone.
#[derive(Debug)]
pub(super) struct Stage {
    folder: Arc<TempDir>,
    pub(super) config: Config,
    pub(super) rooms: Rooms,
    pub(super) data: Data,
    pub(super) snapshot: Arc<Snapshot>,
    /// Archives of the data that were committed.
    archived: u64,
    /// Bytes of their objects.
    pub(super) archived_bytes: u64,
}

/// Processors to work with.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

impl Stage {
    /// Makes `data`, archives it and commits archive by archive.
    pub(super) async fn fill(data: Data) -> anyhow::Result<Self> {
        let all = data.archives;
        Self::fill_first(data, all).await
    }

    /// The same with the first `archives` of `data` only.
    pub(super) async fn fill_first(data: Data, archives: u64) -> anyhow::Result<Self> {
        let folder = Arc::new(tempfile::tempdir().context("a benchmark needs a temporary folder")?);
        let config = Config {
            store: Some(format!("file://{}", folder.path().join("store").display())),
            writer_id: Some("bench".to_owned()),
            ..Config::default()
        };
        let rooms = Rooms::open_for_writing(&config)?;
        let built = pack(&data, &folder, 0).await?;
        let snapshot = commit(&rooms, &data, None, &built).await?;
        let archived_bytes = built.summary.length;
        let mut stage = Self { folder, config, rooms, data, snapshot, archived: 1, archived_bytes };
        stage.grow(archives - 1).await?;
        Ok(stage)
    }

    /// Archives and commits up to `more` of the archives still to come.
    pub(super) async fn grow(&mut self, more: u64) -> anyhow::Result<()> {
        let until = self.data.archives.min(self.archived.saturating_add(more));
        let bar = indicatif::ProgressBar::new(until - self.archived).with_message("archives");
        let (data, folder) = (self.data.clone(), Arc::clone(&self.folder));
        let packed = stream::iter(self.archived..until).map(|number| pack(&data, &folder, number));
        let mut packed = packed.buffered(processors());
        while let Some(built) = packed.next().await {
            let (built, base) = (built?, Arc::clone(&self.snapshot));
            self.snapshot = commit(&self.rooms, &data, Some(base), &built).await?;
            self.archived += 1;
            self.archived_bytes += built.summary.length;
            bar.inc(1);
        }
        drop(packed);
        bar.finish_and_clear();
        Ok(())
    }

    /// How many archives of the data were committed.
    pub(super) fn archived(&self) -> u64 {
        self.archived
    }

    /// Where scratch may lie.
    pub(super) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Rooms over the store that have seen nothing yet.
    pub(super) fn fresh_rooms(&self) -> anyhow::Result<Rooms> {
        Rooms::over(self.rooms.store.clone(), &self.config)
    }

    /// A reader of `store` that remembers tables of contents and no chunk: each is
    /// asked for again.
    pub(super) fn forgetful(&self, store: &Store) -> ArchiveReader {
        let options = ReadOptions { chunk_cache_bytes: 0, ..ReadOptions::default() };
        ArchiveReader::new(store.clone(), options)
    }

    /// Reads the table of contents of every archive, `at_once` of them at a time.
    pub(super) async fn warm(&self, reader: &ArchiveReader, at_once: usize) -> anyhow::Result<()> {
        let stats = ReadStats::default();
        let entries = self.snapshot.entries().await?;
        let tocs = entries.iter().map(|entry| reader.toc(entry, &stats));
        let tocs: Vec<_> = tocs.collect();
        stream::iter(tocs).buffer_unordered(at_once).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    /// A search room over what `rooms` say is there and `reader` reads.
    pub(super) fn searcher(&self, rooms: &Rooms, reader: ArchiveReader) -> Searcher {
        let (catalog, clock) = (Arc::clone(&rooms.catalog), Arc::clone(&rooms.clock));
        Searcher::new(Arc::new(Snapshots::new(catalog, clock)), reader)
    }

    /// A search of the partition.
    pub(super) fn request(&self) -> SearchRequest {
        let topic = Some(self.data.tp.topic().clone());
        let scope = Scope { topic, partition: Some(self.data.tp.partition()), incarnation: None };
        SearchRequest { scope, limit: crate::search::LIMIT_MAX, ..SearchRequest::default() }
    }
}

/// Packs archive `number` on another thread, which keeps the folder until it ends.
fn pack(
    data: &Data,
    folder: &Arc<TempDir>,
    number: u64,
) -> impl Future<Output = anyhow::Result<BuiltArchive>> + use<> {
    let (data, folder) = (data.clone(), Arc::clone(folder));
    let options = ArchiveOptions::default();
    let packed = tokio::task::spawn_blocking(move || data.pack(number, folder.path(), options));
    async move { packed.await.context("a packing thread died")? }
}

/// Stores `built` and commits it behind `base`.
async fn commit(
    rooms: &Rooms,
    data: &Data,
    base: Option<Arc<Snapshot>>,
    built: &BuiltArchive,
) -> anyhow::Result<Arc<Snapshot>> {
    let (cluster, identity) = (rooms.catalog.cluster(), data.identity());
    let number = base.as_deref().map_or(1, Snapshot::next_number);
    let entry = ArchiveEntry::new(cluster, &identity, number, built.summary.clone());
    rooms.store.put_file(&entry.key(), &built.path).await?;
    let edit = Edit { add: vec![entry], ..Edit::default() };
    let committed = rooms.catalog.commit(&data.tp, identity.incarnation, base, edit).await?;
    Ok(Arc::clone(committed.snapshot()))
}

/// Searches and throws the hits away.
pub(super) async fn search(
    searcher: &Searcher,
    request: SearchRequest,
) -> anyhow::Result<(SearchSummary, ReadTotals)> {
    let stats = Arc::new(ReadStats::default());
    let summary = answers(searcher, request, &stats, |_| ()).await?;
    Ok((summary, stats.totals()))
}

/// The offsets that a search finds, in order.
pub(super) async fn offsets_found(
    searcher: &Searcher,
    request: SearchRequest,
) -> anyhow::Result<Vec<i64>> {
    let (stats, mut found) = (Arc::new(ReadStats::default()), Vec::new());
    answers(searcher, request, &stats, |event| match event {
        SearchEvent::Hit(hit, _) | SearchEvent::Batch(hit, _) => found.push(hit.offset),
        SearchEvent::Note(_) => {}
    })
    .await?;
    Ok(found)
}

/// Searches; whatever comes goes to `take`.
async fn answers(
    searcher: &Searcher,
    request: SearchRequest,
    stats: &Arc<ReadStats>,
    mut take: impl FnMut(SearchEvent),
) -> anyhow::Result<SearchSummary> {
    let (sink, mut events) = tokio::sync::mpsc::channel(EVENTS_QUEUED_MAX);
    let search = async {
        let found = searcher.search(request, &sink, stats).await;
        drop(sink);
        found
    };
    let taken = async {
        while let Some(event) = events.recv().await {
            take(event);
        }
    };
    let (summary, ()) = tokio::join!(search, taken);
    let summary = summary?;
    anyhow::ensure!(summary.complete, "a search was not complete, so its time says nothing");
    Ok(summary)
}
