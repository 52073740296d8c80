//! Owns the commit protocol: what is refused, and how manifest *n+1* comes to
//! be. The room's prologue tells the steps and what a crash leaves behind.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::archive::OpenTransaction;
use crate::record::{OffsetRange, TopicPartition};
use crate::store::{ObjectKey, PartitionKey};

use super::entry::{ArchiveEntry, Gap};
use super::error::CatalogError;
use super::manifest::{INLINE_OPEN_MAX, MANIFEST_BYTES_MAX, Manifest, Open};
use super::newest::{block_of, is_closed};
use super::page::Made;
use super::side::{self, OPEN_MAX};
use super::snapshot::Snapshot;
use super::tree::{Editor, Item, Limits, Root};
use super::{Catalog, arbiter, incarnations, manifest_key};

/// Most entries and gaps that one commit adds and removes. Each may rewrite a
/// page, so this bounds a commit at some 64 MiB in the worst case.
pub const EDIT_CHANGES_MAX: usize = 4096;

/// Requests in flight for the objects of one commit.
const IN_FLIGHT: usize = 16;

/// What a commit changes. The default changes nothing, which may be committed
/// too: it takes a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Archives to add. Each is in the store, made for the manifest to come. One
    /// that tiles takes its offsets out of the gaps declared there.
    pub add: Vec<ArchiveEntry>,
    /// Archives to drop, as the base has them.
    pub remove: Vec<ArchiveEntry>,
    /// Gaps to declare, besides those there are.
    pub gaps: Vec<Gap>,
    /// The transactions open at the end of what is archived, where they change.
    pub open_transactions: Option<Vec<OpenTransaction>>,
    /// The new log start, where it moves. A first commit without one starts at 0.
    pub log_start: Option<i64>,
    /// The broker's id of the topic, once it is known.
    pub topic_id: Option<[u8; 16]>,
    /// Whether this is to be the last manifest of its block: the one behind is the
    /// first of the next, and what was before can be collected soon.
    pub ends_block: bool,
}

/// Proof that a manifest is committed, and the state it made. Whatever releases or
/// deletes data takes one, and only the catalog makes them: [`Catalog::commit`] for
/// a new manifest, [`Catalog::confirm`] for the newest there is.
#[derive(Clone, Debug)]
pub struct Committed {
    snapshot: Arc<Snapshot>,
}

impl Committed {
    /// What was read as the newest manifest is committed.
    pub(super) fn of(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }

    /// The manifest that was committed.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// First offset that is in no archive and no declared gap, now.
    #[must_use]
    pub fn archived_through(&self) -> i64 {
        self.snapshot.archived_through()
    }
}

impl Catalog {
    /// Commits `edit` on top of `base`, the manifest it was made from (`None` for
    /// a partition's first). Either all of it or none is visible to anyone.
    ///
    /// # Errors
    /// [`CatalogError::Lost`] with the newest manifest where another writer took
    /// the number. One of the refusals of [`CatalogError`] where what would be
    /// committed is wrong; then nothing was. After an error of the store, or any of
    /// kind `Retry`, the commit may have happened, or happen yet: load the
    /// partition and look.
    pub async fn commit(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        base: Option<Arc<Snapshot>>,
        edit: Edit,
    ) -> Result<Committed, CatalogError> {
        let of = self.key(tp, incarnation);
        let number = base.as_deref().map_or(1, Snapshot::next_number);
        check_edit(&of, number, base.as_deref(), &edit)?;
        if base.is_none() {
            self.ensure_incarnation(&of, edit.topic_id).await?;
        }
        self.check_landed(&edit.add).await?;

        let (manifest, open, made, side) = self.build(&of, number, base.as_deref(), edit).await?;
        self.publish(manifest, open, made, side).await
    }

    /// Writes what `manifest` needs, and then creates it: on return it is committed.
    pub(super) async fn publish(
        &self,
        manifest: Manifest,
        open: Vec<OpenTransaction>,
        made: Vec<Made>,
        side: Option<(ObjectKey, Bytes)>,
    ) -> Result<Committed, CatalogError> {
        let bytes = manifest
            .encode()
            .map_err(|error| CatalogError::defect(&manifest.of, &error.to_string()))?;
        self.upload(&made, side).await?;
        self.create(&manifest, &bytes).await?;

        for page in made {
            self.pages.keep(&page.at, page.page);
        }
        self.remember_epoch(&manifest.of, manifest.writer_epoch);
        let digest = *blake3::hash(&bytes).as_bytes();
        let snapshot = Snapshot::new(manifest, digest, open, self.pages.clone());
        Ok(Committed { snapshot: Arc::new(snapshot) })
    }

    /// The newest manifest of the partition of `known`, asked for now. Who would
    /// release what `known` holds looks here first: an archive may have been
    /// dropped since.
    ///
    /// # Errors
    /// As [`Catalog::newer`].
    pub async fn confirm(&self, known: &Arc<Snapshot>) -> Result<Committed, CatalogError> {
        Ok(Committed { snapshot: self.newer(known).await? })
    }

    /// The first incarnation of a topic begins with the first commit to any of
    /// its partitions; later ones are begun by [`Catalog::begin_incarnation`].
    async fn ensure_incarnation(
        &self,
        of: &PartitionKey,
        topic_id: Option<[u8; 16]>,
    ) -> Result<(), CatalogError> {
        let (topic, number) = (of.tp.topic(), of.incarnation);
        let found = incarnations::read(&self.store, &of.cluster, topic, number).await?;
        match found {
            Some(_) => Ok(()),
            None if number == 0 => self.begin_incarnation(topic, 0, topic_id).await.map(drop),
            None => Err(CatalogError::NoIncarnation { topic: topic.to_string(), number }),
        }
    }

    /// That every archive to be referenced is in the store, whole.
    async fn check_landed(&self, add: &[ArchiveEntry]) -> Result<(), CatalogError> {
        let checks: Vec<_> = add.iter().map(|entry| self.check_one_landed(entry)).collect();
        futures::stream::iter(checks).buffer_unordered(IN_FLIGHT).try_collect().await
    }

    async fn check_one_landed(&self, entry: &ArchiveEntry) -> Result<(), CatalogError> {
        let (key, expected) = (entry.key(), entry.summary.length);
        match self.store.head(&key).await? {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(CatalogError::Length { object: key.to_string(), expected, found }),
            None => Err(CatalogError::Absent { object: key.to_string() }),
        }
    }

    /// The manifest to come, its open transactions, and the objects it needs.
    async fn build(
        &self,
        of: &PartitionKey,
        number: u64,
        base: Option<&Snapshot>,
        edit: Edit,
    ) -> Result<(Manifest, Vec<OpenTransaction>, Vec<Made>, Option<(ObjectKey, Bytes)>), CatalogError>
    {
        let before = base.map(Snapshot::manifest);
        let log_start = edit.log_start.or(before.map(|m| m.log_start)).unwrap_or(0);
        check_log_start(log_start, before.map(|m| m.archived_through), &edit)?;
        let (filled, mut gaps) = self.fill(base, &edit.add).await?;
        gaps.extend(&edit.gaps);
        let add = edit.add.into_iter().map(Item::Entry).chain(gaps.into_iter().map(Item::Gap));
        let remove =
            edit.remove.into_iter().map(Item::Entry).chain(filled.into_iter().map(Item::Gap));
        let root = before.map_or_else(Root::default, |before| Root {
            pages: before.pages.clone(),
            recent: before.recent.clone(),
        });
        let editor = Editor::new(&self.pages, of, number, log_start, Limits::default());
        let (root, made) = editor.edit(root, add.collect(), remove.collect()).await?;

        let known = base.map_or(&[][..], Snapshot::open_transactions);
        let (open, list, side) = match (edit.open_transactions, before) {
            (None, Some(before)) => (before.open.clone(), known.to_vec(), None),
            (None, None) => (Open::Inline(Vec::new()), Vec::new(), None),
            (Some(list), _) if list.len() <= INLINE_OPEN_MAX => {
                (Open::Inline(list.clone()), list, None)
            }
            (Some(list), _) => {
                let (at, bytes) = side::make(of, number, &list);
                (Open::Side(at), list, Some((at.key(of), bytes)))
            }
        };
        let mut manifest = Manifest {
            of: of.clone(),
            number,
            nonce: (self.nonce)(),
            writer_epoch: self.epoch(of, base),
            writer: self.writer.clone(),
            committed_at_ms: self.clock.now_ms(),
            predecessor: base.map_or([0; 32], Snapshot::digest),
            topic_id: edit.topic_id.or(before.and_then(|before| before.topic_id)),
            log_start,
            archived_through: 0,
            open,
            ends_block: edit.ends_block,
            recent: root.recent,
            pages: root.pages,
        };
        manifest.archived_through = manifest.tiled_to()?;
        let through = before.map_or(0, |before| before.archived_through);
        if let Some(range) = OffsetRange::new(manifest.archived_through, through - 1) {
            return Err(CatalogError::Hole { range });
        }
        Ok((manifest, list, made, side))
    }

    /// The declared gaps that archives to add fill, and what is left of them.
    async fn fill(
        &self,
        base: Option<&Snapshot>,
        add: &[ArchiveEntry],
    ) -> Result<(Vec<Gap>, Vec<Gap>), CatalogError> {
        let Some(base) = base else { return Ok((Vec::new(), Vec::new())) };
        let mut tiles: Vec<OffsetRange> = add.iter().filter_map(ArchiveEntry::tile).collect();
        tiles.sort_unstable();
        let mut filled = Vec::new();
        for tile in &tiles {
            // What grows the log fills nothing: most commits ask no page.
            if tile.base() < base.archived_through() {
                filled.extend(base.gaps_in(*tile).await?);
            }
        }
        filled.sort_unstable();
        filled.dedup();
        let left = filled.iter().flat_map(|gap| rest_of(*gap, &tiles)).collect();
        Ok((filled, left))
    }

    async fn upload(
        &self,
        made: &[Made],
        side: Option<(ObjectKey, Bytes)>,
    ) -> Result<(), CatalogError> {
        if let Some((key, bytes)) = side {
            self.store.put(&key, bytes).await?;
        }
        let puts: Vec<_> =
            made.iter().map(|page| self.store.put(&page.key, page.bytes.clone())).collect();
        let mut puts = futures::stream::iter(puts).buffer_unordered(IN_FLIGHT);
        while puts.try_next().await?.is_some() {}
        Ok(())
    }

    /// Creates the manifest: on return it is committed.
    async fn create(&self, manifest: &Manifest, bytes: &Bytes) -> Result<(), CatalogError> {
        let key = manifest_key(&manifest.of, manifest.number);
        let found = arbiter::create(&self.store, &key, bytes, MANIFEST_BYTES_MAX as u64).await?;
        if found != *bytes {
            return Err(self.lost(manifest).await?);
        }
        let block = block_of(manifest.number);
        if is_closed(&self.store, &manifest.of, block).await? {
            // We slept while others went on and this number was collected: the
            // manifest is void, and no reader takes it for the newest.
            self.store.delete(&key).await?;
            return Err(self.lost(manifest).await?);
        }
        Ok(())
    }

    /// What the loser of a race is told.
    async fn lost(&self, manifest: &Manifest) -> Result<CatalogError, CatalogError> {
        let of = &manifest.of;
        match self.newest_from(of, Some(manifest.number)).await? {
            Some(newest) => Ok(CatalogError::Lost { newest }),
            None => Err(CatalogError::Unsettled { what: of.to_string() }),
        }
    }
}

/// The log start follows what is archived and never runs ahead of it: what lay
/// between would be told to nobody.
fn check_log_start(
    log_start: i64,
    archived_through: Option<i64>,
    edit: &Edit,
) -> Result<(), CatalogError> {
    let Some(through) = archived_through else { return Ok(()) };
    let added = edit.add.iter().filter_map(ArchiveEntry::tile);
    let added = added.chain(edit.gaps.iter().map(|gap| gap.range)).map(OffsetRange::end).max();
    match OffsetRange::new(through.max(added.unwrap_or(0)), log_start - 1) {
        Some(range) => Err(CatalogError::Hole { range }),
        None => Ok(()),
    }
}

/// What can be refused without asking the store.
fn check_edit(
    of: &PartitionKey,
    number: u64,
    base: Option<&Snapshot>,
    edit: &Edit,
) -> Result<(), CatalogError> {
    let count = edit.add.len() + edit.remove.len() + edit.gaps.len();
    if count > EDIT_CHANGES_MAX {
        return Err(CatalogError::TooMany { what: "changes", count, max: EDIT_CHANGES_MAX });
    }
    let open = edit.open_transactions.as_ref().map_or(0, Vec::len);
    if open > OPEN_MAX {
        let what = "open transactions";
        return Err(CatalogError::TooMany { what, count: open, max: OPEN_MAX });
    }
    if let Some(base) = base
        && base.of() != of
    {
        let object = manifest_key(base.of(), base.number()).to_string();
        return Err(CatalogError::OtherPartition { object, of: of.to_string() });
    }
    let mut seen = HashSet::new();
    for entry in edit.add.iter().chain(&edit.remove) {
        let key = entry.key();
        if entry.of() != of {
            return Err(CatalogError::OtherPartition {
                object: key.to_string(),
                of: of.to_string(),
            });
        }
        if !seen.insert(key.clone()) {
            return Err(CatalogError::Twice { object: key.to_string() });
        }
    }
    if let Some(entry) = edit.add.iter().find(|entry| entry.built_for != number) {
        let (object, built_for) = (entry.key().to_string(), entry.built_for);
        return Err(CatalogError::NotBuiltFor { object, built_for, number });
    }
    let from = base.map_or(0, Snapshot::log_start);
    if let Some(to) = edit.log_start
        && to < from
    {
        return Err(CatalogError::LogStart { of: of.to_string(), from, to });
    }
    let known = base.and_then(|base| base.manifest().topic_id);
    match (known, edit.topic_id) {
        (Some(known), Some(given)) if known != given => {
            Err(CatalogError::TopicId { of: of.to_string() })
        }
        _ => Ok(()),
    }
}

/// What is left of `gap` where `tiles`, ascending, fill it.
fn rest_of(gap: Gap, tiles: &[OffsetRange]) -> Vec<Gap> {
    let mut rest = Vec::new();
    let mut from = gap.range.base();
    for tile in tiles.iter().filter(|tile| tile.overlaps(gap.range)) {
        rest.extend(OffsetRange::new(from, tile.base() - 1));
        from = from.max(tile.end());
    }
    rest.extend(OffsetRange::new(from, gap.range.last()));
    rest.into_iter().map(|range| Gap { range, kind: gap.kind }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::GapKind;

    fn range(base: i64, last: i64) -> OffsetRange {
        OffsetRange::new(base, last).unwrap()
    }

    #[test]
    fn a_fill_leaves_what_it_does_not_cover() {
        let gap = Gap { range: range(10, 19), kind: GapKind::Missing };
        let rest = |tiles: &[OffsetRange]| -> Vec<OffsetRange> {
            rest_of(gap, tiles).into_iter().map(|gap| gap.range).collect()
        };
        assert_eq!(rest(&[range(10, 19)]), []);
        assert_eq!(rest(&[range(0, 30)]), []);
        assert_eq!(rest(&[range(10, 12)]), [range(13, 19)]);
        assert_eq!(rest(&[range(17, 25)]), [range(10, 16)]);
        assert_eq!(
            rest(&[range(0, 9), range(11, 11), range(14, 15), range(20, 30)]),
            [range(10, 10), range(12, 13), range(16, 19)]
        );
    }
}
