//! Owns rebuilding a partition's catalog from the bucket alone, where manifests, pages
//! or the objects of a topic's lives are lost or damaged.
//!
//! What can still be read of the catalog is kept as it says. Archives that it does not
//! name, made for a manifest behind the newest that can be read, or of offsets that a
//! lost page listed, are read whole and taken in by what they say of themselves;
//! [`choose`] says which, where several hold the same offsets. The outcome is committed
//! as the first manifest of a new block, see [`crate::catalog::Remains`]; daemons may go
//! on meanwhile, and lose at most one commit, which they make again.
//!
//! What nobody can know once the manifests that said it are gone is told in
//! [`Rebuilt::unknown`] and decided so that no batch is lost by it: archives that
//! retention had dropped and `gc` not yet deleted come back, offsets that nothing holds
//! are a gap, and the log starts at 0 until the broker says where.
//!
//! An archive that is in the catalog stays there, though its object may be lost: reads
//! of it fail and are never shorter. One that is in no manifest and cannot be read
//! leaves a gap of kind `damaged`, which the WAL fills if it still has the batches.

mod choose;
mod open;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::whole::read_whole;
use crate::archive::{ArchiveError, ArchiveIdentity, ArchiveSummary, Footer};
use crate::catalog::{
    Anew, ArchiveEntry, Catalog, CatalogError, Committed, Gap, Remains, Snapshot,
};
use crate::error::{Classify, ErrorKind};
use crate::read::{ArchiveReader, ReadError};
use crate::record::{OffsetRange, TopicPartition};
use crate::store::{ObjectKey, PartitionKey, Store, StoreError};
use crate::task::Pace;

use choose::{Found, Known, choose};

/// Archives read whole at a time: two workers inflate while two requests are under way.
const READ_AT_ONCE: usize = 4;

/// Why a catalog could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// An archive could not be read for another reason than its bytes.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Classify for RebuildError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(source) => source.kind(),
            Self::Catalog(source) => source.kind(),
            Self::Read(source) => source.kind(),
        }
    }
}

/// An archive that is not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its object.
    pub object: String,
    /// Its offsets.
    pub range: OffsetRange,
    /// Why.
    pub why: String,
}

/// What a rebuild did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Rebuilt {
    /// The number of the newest manifest that can be read, where one can.
    pub base: Option<u64>,
    /// What is wrong. Where that is nothing, nothing is rebuilt unless told.
    pub damage: Vec<String>,
    /// Archives kept as the catalog has them.
    pub kept: usize,
    /// Archives taken in from the bucket.
    pub taken_in: Vec<ArchiveEntry>,
    /// Archives in no manifest that are not taken in.
    pub left_out: Vec<LeftOut>,
    /// Gaps that the catalog did not have.
    pub gaps: Vec<Gap>,
    /// Where the log starts.
    pub log_start: i64,
    /// What nobody can know, and how it is taken.
    pub unknown: Vec<String>,
    /// The manifest that was committed.
    pub committed: Option<u64>,
    /// End of what is archived: after the commit, or as the base says.
    pub archived_through: i64,
}

impl Rebuilt {
    /// Whether anything is wrong.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.damage.is_empty()
    }
}

/// Rebuilds one partition.
#[derive(Debug)]
pub struct Rebuild {
    store: Store,
    catalog: Arc<Catalog>,
    reader: ArchiveReader,
    /// Archives read so far, by name: none is read twice.
    read: BTreeMap<ObjectKey, Result<ArchiveEntry, String>>,
}

/// What would be committed, and what is told of it.
struct Draft {
    anew: Anew,
    told: Rebuilt,
}

impl Rebuild {
    /// A rebuild over these rooms.
    #[must_use]
    pub fn new(store: Store, catalog: Arc<Catalog>, reader: ArchiveReader) -> Self {
        Self { store, catalog, reader, read: BTreeMap::new() }
    }

    /// Tells what a rebuild of a partition would do; changes nothing. Where nothing is
    /// wrong and `anyway` is not set, no archive is read.
    ///
    /// # Errors
    /// When store or catalog cannot be asked.
    pub async fn plan(
        &mut self,
        tp: &TopicPartition,
        incarnation: u32,
        anyway: bool,
    ) -> Result<Rebuilt, RebuildError> {
        let remains = self.catalog.remains(tp, incarnation).await?;
        if remains.damage.is_empty() && !anyway {
            return Ok(told(&remains));
        }
        Ok(self.draft(&remains).await?.told)
    }

    /// Rebuilds a partition where anything is wrong, or `anyway`.
    ///
    /// # Errors
    /// When store or catalog cannot be asked or written. Killed or failed, it is to be
    /// done again; see [`Remains`].
    pub async fn confirm(
        &mut self,
        tp: &TopicPartition,
        incarnation: u32,
        anyway: bool,
    ) -> Result<Rebuilt, RebuildError> {
        let planned = self.plan(tp, incarnation, anyway).await?;
        if !planned.is_needed() && !anyway {
            return Ok(planned);
        }
        // From here on nobody adds anything, so what is read is all there is. The
        // archives were read by the plan: the partition has no manifest only shortly.
        let remains = self.catalog.remains(tp, incarnation).await?;
        self.catalog.fence(&remains).await?;
        let remains = self.catalog.remains(tp, incarnation).await?;
        let Draft { anew, mut told } = self.draft(&remains).await?;
        let committed: Committed = self.catalog.begin_anew(&remains, anew).await?;
        told.damage = planned.damage;
        told.committed = Some(committed.snapshot().number());
        told.archived_through = committed.archived_through();
        Ok(told)
    }

    async fn draft(&mut self, remains: &Remains) -> Result<Draft, RebuildError> {
        let candidates: Vec<_> = candidates(remains).collect();
        let mut told = told(remains);
        let mut found = Vec::new();
        let mut unreadable = Vec::new();
        for (key, entry) in self.read_all(candidates).await? {
            let ObjectKey::Archive { range, .. } = key else { continue };
            match entry {
                Ok(entry) => found.push(Found(entry)),
                Err(why) => unreadable.push(LeftOut { object: key.to_string(), range, why }),
            }
        }
        let chosen = choose(&known(remains), found, &unreadable);
        let open = self.open_after(remains, &chosen.entries, &mut told.unknown).await?;
        tell_unknown(remains, &chosen.taken_in, &mut told);
        told.kept = chosen.entries.len() - chosen.taken_in.len();
        told.log_start = remains.newest.as_deref().map_or(0, Snapshot::log_start);
        told.archived_through = chosen.through;
        told.gaps = chosen.new_gaps;
        told.left_out = chosen.left_out.into_iter().chain(unreadable).collect();
        told.taken_in = chosen.taken_in;
        let anew = Anew {
            log_start: told.log_start,
            entries: chosen.entries,
            gaps: chosen.gaps,
            open,
            topic_id: remains.topic_id,
        };
        Ok(Draft { anew, told })
    }

    /// Reads archives whole, those that were not read yet.
    async fn read_all(
        &mut self,
        candidates: Vec<(ObjectKey, u64)>,
    ) -> Result<Vec<(ObjectKey, Result<ArchiveEntry, String>)>, RebuildError> {
        let new = candidates.iter().filter(|(key, _)| !self.read.contains_key(key)).cloned();
        let reads: Vec<_> = new.map(|(key, length)| read_named(&self.store, key, length)).collect();
        let read: Vec<_> =
            futures::stream::iter(reads).buffered(READ_AT_ONCE).try_collect().await?;
        self.read.extend(read);
        let known = candidates.into_iter();
        Ok(known.filter_map(|(key, _)| self.read.get_key_value(&key)).map(own).collect())
    }
}

fn own<K: Clone, V: Clone>((key, value): (&K, &V)) -> (K, V) {
    (key.clone(), value.clone())
}

/// What is told of a partition before anything is read.
fn told(remains: &Remains) -> Rebuilt {
    let newest = remains.newest.as_deref();
    Rebuilt {
        base: newest.map(Snapshot::number),
        damage: remains.damage.clone(),
        kept: remains.entries.len(),
        log_start: newest.map_or(0, Snapshot::log_start),
        archived_through: newest.map_or(0, Snapshot::archived_through),
        ..Rebuilt::default()
    }
}

fn known(remains: &Remains) -> Known<'_> {
    let newest = remains.newest.as_deref();
    Known {
        log_start: newest.map(Snapshot::log_start),
        through: newest.map_or(0, Snapshot::archived_through),
        entries: &remains.entries,
        gaps: &remains.gaps,
    }
}

/// The archives to be looked at: in no readable part of the catalog, and made for a
/// manifest that cannot be read, or of offsets that a lost page listed.
fn candidates(remains: &Remains) -> impl Iterator<Item = (ObjectKey, u64)> {
    let newest = remains.newest.as_deref().map_or(0, Snapshot::number);
    let named: HashSet<_> = remains.entries.iter().map(ArchiveEntry::key).collect();
    let lost: Vec<_> = remains.lost_pages.iter().map(|page| page.reach).collect();
    let all = remains.archives.iter().map(|(key, length)| (key.clone(), *length));
    all.filter(move |(key, _)| {
        let ObjectKey::Archive { number, range, .. } = key else { return false };
        let in_lost =
            lost.iter().any(|page| page.base() <= range.base() && range.last() <= page.last());
        !named.contains(key) && (*number > newest || in_lost)
    })
}

fn tell_unknown(remains: &Remains, taken_in: &[ArchiveEntry], told: &mut Rebuilt) {
    let unknown = &mut told.unknown;
    let Some(newest) = remains.newest.as_deref() else {
        unknown.push(
            "no manifest can be read: the log starts at 0 until the broker or `tierd delete` moves \
             it; archives that retention dropped and gc left are back; why offsets are in no \
             archive, and whether any followed on the last, nobody knows"
                .to_owned(),
        );
        return;
    };
    let later = taken_in.iter().filter(|entry| entry.built_for > newest.number()).count();
    if later > 0 {
        unknown.push(format!(
            "{later} archives were made for manifests behind {}: whether they were committed \
             nobody knows; where the log start moved to after it, neither",
            newest.number()
        ));
    }
    let listed: u64 = remains.lost_pages.iter().map(|page| page.totals.entries).sum();
    if listed > 0 {
        let found = taken_in.len() - later;
        unknown.push(format!(
            "pages that cannot be read listed {listed} archives, {found} of their offsets were \
             found; of what kind their {} gaps were nobody knows",
            remains.lost_pages.iter().map(|page| page.totals.gaps).sum::<u64>()
        ));
    }
    let is_there = |entry: &&ArchiveEntry| !remains.archives.contains_key(&entry.key());
    let lost = remains.entries.iter().filter(is_there).count();
    if lost > 0 {
        unknown.push(format!(
            "{lost} archives that the manifest names are not in the store: reads of them fail"
        ));
    }
}

/// Reads one archive whole and makes the entry that its name and bytes tell. What is
/// wrong with it is no error.
async fn read_named(
    store: &Store,
    key: ObjectKey,
    length: u64,
) -> Result<(ObjectKey, Result<ArchiveEntry, String>), RebuildError> {
    let read = read_archive(store, &key, length).await;
    match read {
        Ok(entry) => Ok((key, Ok(entry))),
        Err(ReadError::Archive { source, .. })
            if !matches!(source, ArchiveError::Newer { .. } | ArchiveError::Unknown { .. }) =>
        {
            Ok((key, Err(source.to_string())))
        }
        Err(ReadError::Store(error)) if error.kind() == ErrorKind::NotFound => {
            Ok((key, Err("it is gone".to_owned())))
        }
        Err(error) => Err(error.into()),
    }
}

async fn read_archive(
    store: &Store,
    key: &ObjectKey,
    length: u64,
) -> Result<ArchiveEntry, ReadError> {
    let broken = |source| ReadError::Archive { object: key.to_string(), source };
    let wrong = |why: &str| broken(ArchiveError::corrupt("its name", why));
    let ObjectKey::Archive { of, number, range, .. } = key else {
        return Err(wrong("it is not that of an archive"));
    };
    let place = Footer::range(length);
    let place = place.ok_or_else(|| broken(ArchiveError::corrupt("the footer", "too short")))?;
    let footer = store.get_range(key, place).await?;
    let toc = Footer::decode(&footer, length).map_err(broken)?.toc;
    let verified = read_whole(store, key, length, toc, &Arc::new(Pace::unlimited())).await?;
    let PartitionKey { cluster, tp, incarnation } = of;
    let identity = ArchiveIdentity { tp: tp.clone(), incarnation: *incarnation };
    if verified.identity != identity {
        return Err(wrong("the archive is another partition's"));
    }
    let held = verified.summary.range;
    if range.base() < held.base() || held.last() < range.last() {
        return Err(wrong("the archive holds other offsets"));
    }
    // One that fills a gap may hold more offsets than it tiles.
    let summary = ArchiveSummary { range: *range, ..verified.summary };
    let entry = ArchiveEntry::new(cluster, &identity, *number, summary);
    if entry.key() != *key {
        return Err(wrong("the archive has another digest"));
    }
    Ok(entry)
}
