//! Owns the `SegmentIndex`: one manifest in memory, searched by offset and by
//! time. A `BTreeMap` by first offset leads into the recent entries; older ones are
//! in pages, read when asked for and kept by [`super::pages`].
//!
//! A snapshot never changes. Everything it answers is true of one manifest, and
//! stays readable for as long as nothing of it was collected; after that it
//! answers [`CatalogError::Gone`], and the newest manifest is to be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};

use crate::archive::OpenTransaction;
use crate::record::{OffsetRange, TopicPartition};
use crate::store::{PartitionKey, Store, StoreError, WriterId};

use super::entry::{ArchiveEntry, Gap, Items, order};
use super::error::CatalogError;
use super::manifest::{Manifest, Open};
use super::page::{Page, PageRef, Totals};
use super::pages::Pages;
use super::side::{self, SIDE_BYTES_MAX};

/// Leaves read at a time by one search.
const LEAVES_IN_FLIGHT: usize = 8;

/// One manifest in memory.
#[derive(Clone, Debug)]
pub struct Snapshot {
    manifest: Manifest,
    /// BLAKE3 of the manifest's bytes.
    digest: [u8; 32],
    open: Vec<OpenTransaction>,
    /// First offset of recent entries, to how many begin there or before.
    recent: BTreeMap<i64, usize>,
    pages: Pages,
}

/// What a search is for.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// Entries that share an offset with the range.
    Offsets(OffsetRange),
    /// Entries that may hold a record of these milliseconds, both ends inside.
    Times(i64, i64),
    /// Gaps that share an offset with the range.
    Gaps(OffsetRange),
    /// Every entry.
    Entries,
}

impl Wanted {
    fn page(self, page: &PageRef) -> bool {
        let totals = &page.totals;
        match self {
            Self::Offsets(range) => totals.entries > 0 && page.reach.overlaps(range),
            Self::Times(from, to) => page.times.0 <= to && from <= page.times.1,
            Self::Gaps(range) => totals.gaps > 0 && page.reach.overlaps(range),
            Self::Entries => totals.entries > 0,
        }
    }

    fn entry(self, entry: &ArchiveEntry) -> bool {
        let summary = &entry.summary;
        match self {
            Self::Offsets(range) => summary.range.overlaps(range),
            Self::Times(from, to) => summary.min_timestamp <= to && from <= summary.max_timestamp,
            Self::Gaps(_) => false,
            Self::Entries => true,
        }
    }

    fn gap(self, gap: &Gap) -> bool {
        matches!(self, Self::Gaps(range) if gap.range.overlaps(range))
    }
}

impl Snapshot {
    /// The snapshot of `manifest`, whose open transactions are `open`.
    pub(super) fn new(
        manifest: Manifest,
        digest: [u8; 32],
        open: Vec<OpenTransaction>,
        pages: Pages,
    ) -> Self {
        let entries = manifest.recent.entries.iter().enumerate();
        let recent = entries.map(|(at, one)| (one.summary.range.base(), at + 1)).collect();
        Self { manifest, digest, open, recent, pages }
    }

    /// As [`Snapshot::new`]; reads the open transactions where they lie apart.
    pub(super) async fn load(
        store: &Store,
        pages: Pages,
        manifest: Manifest,
        digest: [u8; 32],
    ) -> Result<Self, CatalogError> {
        let open = match &manifest.open {
            Open::Inline(open) => open.clone(),
            Open::Side(at) => {
                let key = at.key(&manifest.of);
                let bytes = match store.get(&key, SIDE_BYTES_MAX as u64).await {
                    Err(StoreError::NotFound { path, .. }) => {
                        return Err(CatalogError::Gone { object: path });
                    }
                    other => other?,
                };
                side::decode(&bytes, &manifest.of, at)
                    .map_err(|error| CatalogError::format(&key, error))?
            }
        };
        Ok(Self::new(manifest, digest, open, pages))
    }

    /// The manifest itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The manifest's number, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.manifest.number
    }

    /// The number of the manifest that follows.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.manifest.next_number()
    }

    /// The partition.
    #[must_use]
    pub fn of(&self) -> &PartitionKey {
        &self.manifest.of
    }

    /// Topic and partition.
    #[must_use]
    pub fn tp(&self) -> &TopicPartition {
        &self.manifest.of.tp
    }

    /// Which life of the topic's name.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.manifest.of.incarnation
    }

    /// Who committed it.
    #[must_use]
    pub fn writer(&self) -> &WriterId {
        &self.manifest.writer
    }

    /// First offset of the log.
    #[must_use]
    pub fn log_start(&self) -> i64 {
        self.manifest.log_start
    }

    /// First offset that is in no archive and no declared gap.
    #[must_use]
    pub fn archived_through(&self) -> i64 {
        self.manifest.archived_through
    }

    /// Transactions open at [`Self::archived_through`].
    #[must_use]
    pub fn open_transactions(&self) -> &[OpenTransaction] {
        &self.open
    }

    /// First offset of the earliest open transaction, else
    /// [`Self::archived_through`].
    #[must_use]
    pub fn last_stable_offset(&self) -> i64 {
        let first = self.open.iter().map(|open| open.first_offset).min();
        first.map_or(self.archived_through(), |first| first.min(self.archived_through()))
    }

    /// Sums over everything the manifest lists, without reading a page.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.manifest.totals()
    }

    /// All entries that share an offset with `range`, ascending; also those that
    /// tile nothing (`summary.tiles` is false), by the hull of their batches.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn find_by_offset_range(
        &self,
        range: OffsetRange,
    ) -> Result<Vec<ArchiveEntry>, CatalogError> {
        let mut found = self.older(Wanted::Offsets(range)).await?.entries;
        let begun = self.recent.range(..=range.last()).next_back().map_or(0, |(_, count)| *count);
        let recent = self.manifest.recent.entries.iter().take(begun);
        found.extend(recent.filter(|entry| entry.summary.range.overlaps(range)).cloned());
        Ok(sorted(found))
    }

    /// The first archive that tiles `from` or an offset behind it and has to do with
    /// transactions. Passes by pages without any.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn next_transactional(
        &self,
        from: i64,
    ) -> Result<Option<ArchiveEntry>, CatalogError> {
        if let Some(older) = self.transactional_below(&self.manifest.pages, from).await? {
            return Ok(Some(older));
        }
        // What tiles in the pages ends before what tiles here begins.
        Ok(self.manifest.recent.entries.iter().find(|one| is_transactional(one, from)).cloned())
    }

    /// As [`Self::next_transactional`], in the pages `refs` and below.
    fn transactional_below<'a>(
        &'a self,
        refs: &'a [PageRef],
        from: i64,
    ) -> BoxFuture<'a, Result<Option<ArchiveEntry>, CatalogError>> {
        async move {
            for at in refs {
                if at.totals.transactions == 0 || at.tiled.1 <= from {
                    continue;
                }
                let found = match &*self.pages.get(self.of(), at).await? {
                    Page::Inner(refs) => self.transactional_below(refs, from).await?,
                    Page::Leaf(items) => {
                        items.entries.iter().find(|one| is_transactional(one, from)).cloned()
                    }
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        }
        .boxed()
    }

    /// All entries that may hold a record of `from_ms..=to_ms`, ascending by
    /// offset.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn find_by_time_range(
        &self,
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<ArchiveEntry>, CatalogError> {
        self.entries_where(Wanted::Times(from_ms, to_ms)).await
    }

    /// All entries, ascending by offset. Reads every page.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn entries(&self) -> Result<Vec<ArchiveEntry>, CatalogError> {
        self.entries_where(Wanted::Entries).await
    }

    /// The declared gaps that share an offset with `range`, ascending, whole.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn gaps_in(&self, range: OffsetRange) -> Result<Vec<Gap>, CatalogError> {
        let wanted = Wanted::Gaps(range);
        let mut found = self.older(wanted).await?.gaps;
        found.extend(self.manifest.recent.gaps.iter().filter(|gap| wanted.gap(gap)));
        found.sort_unstable();
        Ok(found)
    }

    /// All declared gaps, ascending.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn gaps(&self) -> Result<Vec<Gap>, CatalogError> {
        match OffsetRange::new(0, i64::MAX - 1) {
            Some(all) => self.gaps_in(all).await,
            None => Ok(Vec::new()),
        }
    }

    /// A page of this manifest.
    pub(super) async fn page(&self, at: &PageRef) -> Result<Arc<Page>, CatalogError> {
        self.pages.get(self.of(), at).await
    }

    /// Checks every page: that it is there, is what was written, and tiles.
    pub(super) async fn check_pages(&self) -> Result<(), CatalogError> {
        let mut next = self.manifest.pages.clone();
        while !next.is_empty() {
            let reads: Vec<_> = next.into_iter().map(|at| self.checked_page(at)).collect();
            next = futures::stream::iter(reads).buffered(LEAVES_IN_FLIGHT).try_concat().await?;
        }
        Ok(())
    }

    async fn checked_page(&self, at: PageRef) -> Result<Vec<PageRef>, CatalogError> {
        let page = self.page(&at).await?;
        page.check_tiling(self.log_start())?;
        match &*page {
            Page::Inner(refs) => Ok(refs.clone()),
            Page::Leaf(_) => Ok(Vec::new()),
        }
    }

    async fn entries_where(&self, wanted: Wanted) -> Result<Vec<ArchiveEntry>, CatalogError> {
        let mut found = self.older(wanted).await?.entries;
        found.extend(self.manifest.recent.entries.iter().filter(|one| wanted.entry(one)).cloned());
        Ok(sorted(found))
    }

    async fn older(&self, wanted: Wanted) -> Result<Items, CatalogError> {
        self.below(&self.manifest.pages, wanted).await
    }

    /// What is wanted of the pages `refs` and below, in their order.
    fn below<'a>(
        &'a self,
        refs: &'a [PageRef],
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Items, CatalogError>> {
        async move {
            let mut found = Items::default();
            let in_flight = if refs.first().is_some_and(|page| page.height == 0) {
                LEAVES_IN_FLIGHT
            } else {
                1
            };
            let reads: Vec<_> = refs
                .iter()
                .filter(|page| wanted.page(page))
                .map(|page| self.within(page, wanted))
                .collect();
            let mut pages = futures::stream::iter(reads).buffered(in_flight);
            while let Some(items) = pages.try_next().await? {
                found.entries.extend(items.entries);
                found.gaps.extend(items.gaps);
            }
            Ok(found)
        }
        .boxed()
    }

    async fn within(&self, at: &PageRef, wanted: Wanted) -> Result<Items, CatalogError> {
        let page = self.page(at).await?;
        match &*page {
            Page::Inner(refs) => self.below(refs, wanted).await,
            Page::Leaf(items) => Ok(Items {
                entries: items.entries.iter().filter(|one| wanted.entry(one)).cloned().collect(),
                gaps: items.gaps.iter().filter(|gap| wanted.gap(gap)).copied().collect(),
            }),
        }
    }
}

fn is_transactional(entry: &ArchiveEntry, from: i64) -> bool {
    let summary = &entry.summary;
    summary.tiles && summary.transactions > 0 && summary.range.last() >= from
}

/// Pages and recent entries each ascend; archives that tile nothing may cross
/// the border between them.
fn sorted(mut found: Vec<ArchiveEntry>) -> Vec<ArchiveEntry> {
    found.sort_by(|a, b| order(a).cmp(&order(b)));
    found
}
