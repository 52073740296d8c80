//! Owns where a benchmark plays: a store in a temporary folder, filled with
//! [`Data`], and the rooms that search it, at the pace of a model or at its own.

use std::num::NonZeroUsize;
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
use crate::search::{EVENTS_QUEUED_MAX, Scope, SearchRequest, SearchSummary, Searcher};
use crate::store::Store;

/// A filled store. Its folder goes when this and every thread that packs are gone.
#[derive(Debug)]
pub(super) struct Stage {
    _folder: Arc<TempDir>,
    pub(super) config: Config,
    pub(super) rooms: Rooms,
    pub(super) data: Data,
    pub(super) snapshot: Arc<Snapshot>,
}

/// Processors to work with.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

impl Stage {
    /// Makes `data`, archives it and commits archive by archive.
    pub(super) async fn fill(data: Data) -> anyhow::Result<Self> {
        let folder = Arc::new(tempfile::tempdir().context("a benchmark needs a temporary folder")?);
        let config = Config {
            store: Some(format!("file://{}", folder.path().join("store").display())),
            writer_id: Some("bench".to_owned()),
            ..Config::default()
        };
        let rooms = Rooms::open_for_writing(&config)?;
        let bar = indicatif::ProgressBar::new(data.archives).with_message("archives");
        let pack = |number| {
            let (data, folder) = (data.clone(), Arc::clone(&folder));
            let options = ArchiveOptions::default();
            tokio::task::spawn_blocking(move || data.pack(number, folder.path(), options))
        };
        let mut packed = stream::iter(0..data.archives).map(pack).buffered(processors());
        let mut snapshot = None;
        while let Some(built) = packed.next().await {
            let built = built.context("a packing thread died")??;
            snapshot = Some(commit(&rooms, &data, snapshot, &built).await?);
            bar.inc(1);
        }
        drop(packed);
        bar.finish_and_clear();
        let snapshot = snapshot.context("nothing was archived")?;
        Ok(Self { _folder: folder, config, rooms, data, snapshot })
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

/// Stores `built` and commits it behind `base`.
async fn commit(
    rooms: &Rooms,
    data: &Data,
    base: Option<Arc<Snapshot>>,
    built: &BuiltArchive,
) -> anyhow::Result<Arc<Snapshot>> {
    let (cluster, identity) = (rooms.catalog.cluster(), data.identity());
    let number = base.as_deref().map_or(0, Snapshot::number) + 1;
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
    let (sink, mut hits) = tokio::sync::mpsc::channel(EVENTS_QUEUED_MAX);
    let stats = Arc::new(ReadStats::default());
    let search = async {
        let found = searcher.search(request, &sink, &stats).await;
        drop(sink);
        found
    };
    let (summary, ()) = tokio::join!(search, async { while hits.recv().await.is_some() {} });
    let summary = summary?;
    anyhow::ensure!(summary.complete, "a search was not complete, so its time says nothing");
    Ok((summary, stats.totals()))
}
