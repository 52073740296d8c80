//! Owns finding one archive of a manifest without listing the others: the next
//! from an offset on, and the one with the greatest timestamp. Reads only pages
//! on the way; what a reference to a page says suffices to pass it by.

use crate::record::OffsetRange;

use super::Snapshot;
use super::entry::ArchiveEntry;
use super::error::CatalogError;
use super::page::{Page, PageRef};

/// Where an archive stands among those of a partition, by greatest timestamp and
/// first offset: the greater time first, of equal times the lower offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRank {
    /// Greatest timestamp in milliseconds.
    pub max_timestamp: i64,
    /// First offset.
    pub base: i64,
}

impl TimeRank {
    /// The rank of `entry`.
    #[must_use]
    pub fn of(entry: &ArchiveEntry) -> Self {
        Self { max_timestamp: entry.summary.max_timestamp, base: entry.summary.range.base() }
    }

    fn comes_before(self, other: Self) -> bool {
        (self.max_timestamp, other.base) > (other.max_timestamp, self.base)
    }
}

impl Snapshot {
    /// The first archive that tiles an offset at or above `offset` and says that
    /// it holds a record of `from_ms` or later.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn next_archive(
        &self,
        offset: i64,
        from_ms: i64,
    ) -> Result<Option<ArchiveEntry>, CatalogError> {
        let page_fits = |page: &PageRef| page.tiled.1 > offset && page.times.1 >= from_ms;
        let fits = |entry: &&ArchiveEntry| {
            let summary = &entry.summary;
            summary.tiles && summary.range.last() >= offset && summary.max_timestamp >= from_ms
        };
        // In order, as a stack: the lowest page is on top.
        let mut stack: Vec<PageRef> = self.manifest().pages.iter().rev().cloned().collect();
        let mut older = None;
        while let Some(at) = stack.pop() {
            if !page_fits(&at) {
                continue;
            }
            match &*self.page(&at).await? {
                Page::Inner(refs) => stack.extend(refs.iter().rev().cloned()),
                Page::Leaf(items) => older = items.entries.iter().find(fits).cloned(),
            }
            if older.is_some() {
                break;
            }
        }
        let recent = self.manifest().recent.entries.iter().find(fits).cloned();
        let both = older.into_iter().chain(recent);
        Ok(both.min_by_key(|entry| entry.summary.range.base()))
    }

    /// Of the archives that tile offsets of `within` the first by [`TimeRank`] that
    /// stands behind `after`.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn latest_archive(
        &self,
        within: OffsetRange,
        after: Option<TimeRank>,
    ) -> Result<Option<ArchiveEntry>, CatalogError> {
        let mut best: Option<ArchiveEntry> = None;
        let mut take = |entry: &ArchiveEntry| {
            let rank = TimeRank::of(entry);
            let summary = &entry.summary;
            if summary.tiles
                && summary.range.overlaps(within)
                && after.is_none_or(|after| after.comes_before(rank))
                && best.as_ref().is_none_or(|best| rank.comes_before(TimeRank::of(best)))
            {
                best = Some(entry.clone());
            }
            best.as_ref().map_or(i64::MIN, |best| best.summary.max_timestamp)
        };
        let mut reached = i64::MIN;
        for entry in &self.manifest().recent.entries {
            reached = take(entry);
        }
        let mut stack = self.manifest().pages.clone();
        // The page with the latest record is on top: it makes most others idle.
        stack.sort_by_key(|page| page.times.1);
        while let Some(at) = stack.pop() {
            if !at.reach.overlaps(within) || at.times.1 < reached {
                continue;
            }
            match &*self.page(&at).await? {
                Page::Inner(refs) => {
                    let from = stack.len();
                    stack.extend(refs.iter().cloned());
                    stack[from..].sort_by_key(|page| page.times.1);
                }
                Page::Leaf(items) => {
                    for entry in &items.entries {
                        reached = take(entry);
                    }
                }
            }
        }
        Ok(best)
    }
}
