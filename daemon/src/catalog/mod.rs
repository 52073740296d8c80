//! Owns which archives exist: manifests, their pages, and the protocol by which
//! a new manifest comes to be.
//!
//! # Consistency
//!
//! A partition's state is its newest manifest: one small immutable object that
//! lists, over a tree of immutable pages, every archive and every declared gap.
//! From the log start to `archived_through` each offset is in exactly one of
//! them; a commit that would break this is refused, whoever asks (`tiling`).
//! `archived_through` is never told to the catalog: it follows from the list.
//!
//! An object that no manifest references does not exist.
//!
//! # The commit point
//!
//! 1. The archive is in the store, under a name that carries the number *n+1* of
//!    the manifest it is for. Commit looks that it is there, whole.
//! 2. Pages and side objects are written, under names with the same number.
//! 3. Manifest *n+1* is created, create-only: **the commit point**. Of many
//!    writers one creates it.
//! 4. `closed/{(n+1)/1024}` must be absent after that, see below.
//! 5. Only then is there a [`Committed`], and only with one may anyone release
//!    or delete anything.
//!
//! A create that is answered "exists", or that got no answer, says nothing: the
//! manifest is read back, and who finds his own bytes has won; no two attempts
//! make equal bytes, for each carries a nonce. Who finds others has lost and is
//! given the newest manifest; the catalog never tries again by itself, since what
//! should be committed on top of another state is not its to know.
//!
//! # Crash consistency
//!
//! Killed before 3, a writer leaves objects that do not exist; their names carry
//! a number that is taken as soon as anyone commits, and from then on nothing may
//! ever reference them: they can be collected. Killed after 3, it has committed,
//! and finds that out by loading the partition. A commit that failed with an
//! error of kind `Retry` is in the same position.
//!
//! # The writer that sleeps
//!
//! A writer paused between 2 and 3 for so long that manifest *n+1* was made by
//! others, superseded and collected, would create it again. Before collecting
//! anything of a block of 1024 manifests, the collector creates `closed/{block}`.
//! A create is void, and is undone, when its block is closed after it. Readers
//! never take such a manifest for the newest (`newest`).
//!
//! Does not own: who commits or reads, what archives hold, deleting anything.

mod arbiter;
mod codec;
mod collect;
mod commit;
mod entry;
mod error;
mod incarnations;
mod ledger;
mod manifest;
mod newest;
mod page;
mod pages;
mod recent;
mod remains;
mod seek;
mod side;
mod snapshot;
#[cfg(test)]
mod testing;
mod tiling;
mod tree;
mod watermarks;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};

use crate::clock::Clock;
use crate::record::{TopicName, TopicPartition};
use crate::store::{ObjectKey, Store, StoreError, keys};

pub use self::codec::FormatError;
pub use self::collect::closable;
pub use self::commit::{Committed, EDIT_CHANGES_MAX, Edit};
pub use self::entry::{ArchiveEntry, Gap, GapKind, Items};
pub use self::error::CatalogError;
pub use self::incarnations::Incarnation;
pub use self::ledger::{LEDGER_VERSION, Ledger, RECORDED_MAX, Recorded};
pub use self::manifest::{
    INLINE_ENTRIES_MAX, INLINE_GAPS_MAX, INLINE_OPEN_MAX, MANIFEST_BYTES_MAX, MANIFEST_VERSION,
    Manifest, Open, ROOT_REFS_MAX,
};
pub use self::newest::BLOCK;
pub use self::page::{PAGE_BYTES_MAX, PAGE_VERSION, Page, PageRef, Totals};
pub use self::pages::PAGES_BYTES_MAX;
pub use self::recent::{FRESH_FOR, Snapshots};
pub use self::remains::{Anew, Remains};
pub use self::seek::TimeRank;
pub use self::side::{OPEN_MAX, SideRef};
pub use self::snapshot::Snapshot;
pub use self::watermarks::{Following, Watermark, Watermarks};
pub use crate::store::{ClusterName, PartitionKey, WriterId};

use self::pages::Pages;

/// Where nonces come from: sixteen bytes that no other call, of any process,
/// returns.
pub type NonceSource = Box<dyn Fn() -> [u8; 16] + Send + Sync>;

/// Times a load begins again because its manifest was collected meanwhile.
const RELOADS_MAX: u32 = 4;

/// Manifests whose chain is checked. Older ones are collected sooner or later, and
/// nothing depends on them.
pub const HISTORY_MAX: u64 = 2 * BLOCK;

/// Requests in flight when partitions are listed or a history is read.
const IN_FLIGHT: usize = 16;

/// The catalog of one cluster in one store.
pub struct Catalog {
    store: Store,
    cluster: ClusterName,
    writer: WriterId,
    clock: Arc<dyn Clock>,
    nonce: NonceSource,
    pages: Pages,
    /// The epochs under which this process committed last.
    epochs: Mutex<HashMap<PartitionKey, u64>>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("store", &self.store)
            .field("cluster", &self.cluster)
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// The catalog of `cluster` in `store`. Commits are made in the name of
    /// `writer`; reading needs none of the rest.
    #[must_use]
    pub fn new(
        store: Store,
        cluster: ClusterName,
        writer: WriterId,
        clock: Arc<dyn Clock>,
        nonce: NonceSource,
    ) -> Self {
        let (pages, epochs) = (Pages::new(store.clone()), Mutex::default());
        Self { store, cluster, writer, clock, nonce, pages, epochs }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// In whose name commits are made.
    #[must_use]
    pub fn writer(&self) -> &WriterId {
        &self.writer
    }

    /// Sees whether the store can be trusted with commits. To be called before
    /// the first one; see [`Store::probe`].
    ///
    /// # Errors
    /// When it cannot, or cannot be written at all.
    pub async fn probe(&self) -> Result<(), CatalogError> {
        Ok(self.store.probe(&self.cluster, &self.writer, (self.nonce)()).await?)
    }

    /// Every partition that has a folder in the store, with every incarnation,
    /// ascending. Lists folders: for start-up and for people. A partition may
    /// have no manifest yet.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn partitions(&self) -> Result<Vec<(TopicPartition, u32)>, CatalogError> {
        let folders = self.store.list_folders(self.cluster.as_str()).await?;
        let topics = folders.iter().filter_map(|folder| keys::decode_topic(folder));
        let lists: Vec<_> = topics.map(|topic| self.partitions_of(topic)).collect();
        let found: Vec<_> =
            futures::stream::iter(lists).buffer_unordered(IN_FLIGHT).try_collect().await?;
        let mut found: Vec<_> = found.concat();
        found.sort_unstable();
        Ok(found)
    }

    /// As [`Self::partitions`], of one topic.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn partitions_of(
        &self,
        topic: TopicName,
    ) -> Result<Vec<(TopicPartition, u32)>, CatalogError> {
        let folder = keys::topic_folder(&self.cluster, &topic);
        let mut found = Vec::new();
        for folder in self.store.list_folders(&folder).await? {
            let Some(number) = keys::decode_incarnation(&folder) else { continue };
            let folder = keys::incarnation_folder(&self.cluster, &topic, number);
            for partition in self.store.list_folders(&folder).await? {
                let tp = keys::decode_partition(&partition)
                    .and_then(|partition| TopicPartition::new(topic.clone(), partition).ok());
                found.extend(tp.map(|tp| (tp, number)));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The newest manifest of a partition, `None` where nothing was committed.
    /// Without an incarnation, that of the topic's newest.
    ///
    /// # Errors
    /// When the store does not answer, or holds something else than was written.
    pub async fn load(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let newest = match incarnation {
            Some(number) => Some(number),
            None => incarnations::newest(&self.store, &self.cluster, tp.topic()).await?,
        };
        match newest {
            Some(number) => self.newest_from(&self.key(tp, number), None).await,
            None => Ok(None),
        }
    }

    /// Manifest `number` of a partition, `None` where it is not there: not committed,
    /// or collected since.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub async fn generation(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        number: u64,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        match self.read(&self.key(tp, incarnation), number).await {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(CatalogError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The newest manifest of the partition of `known`, which is `known` itself
    /// where nothing was committed since: two small requests then.
    ///
    /// # Errors
    /// As [`Catalog::load`], and when the next manifest does not follow on `known`.
    pub async fn newer(&self, known: &Arc<Snapshot>) -> Result<Arc<Snapshot>, CatalogError> {
        let of = known.of();
        let found = self.newest_from(of, Some(known.next_number())).await?;
        let Some(found) = found else { return Ok(Arc::clone(known)) };
        if found.number() == known.next_number() && found.manifest().predecessor != known.digest() {
            return Err(CatalogError::Chain {
                object: manifest_key(of, found.number()).to_string(),
            });
        }
        Ok(found)
    }

    /// The number of the newest life of `topic`, `None` where it never lived.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn newest_incarnation(&self, topic: &TopicName) -> Result<Option<u32>, CatalogError> {
        incarnations::newest(&self.store, &self.cluster, topic).await
    }

    /// Whether the topic of `known` has begun another life since: one small request.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn is_outlived(&self, known: &Snapshot) -> Result<bool, CatalogError> {
        let (topic, next) = (known.tp().topic(), known.incarnation() + 1);
        Ok(incarnations::read(&self.store, &self.cluster, topic, next).await?.is_some())
    }

    /// The lives of `topic`, oldest first.
    ///
    /// # Errors
    /// When the store does not answer, or holds something else than was written.
    pub async fn incarnations(&self, topic: &TopicName) -> Result<Vec<Incarnation>, CatalogError> {
        let newest = incarnations::newest(&self.store, &self.cluster, topic).await?;
        let mut found = Vec::new();
        for number in 0..newest.map_or(0, |newest| newest + 1) {
            found.extend(incarnations::read(&self.store, &self.cluster, topic, number).await?);
        }
        Ok(found)
    }

    /// Begins incarnation `number` of `topic`, which must be the one after the
    /// newest, or tells who began it.
    ///
    /// # Errors
    /// [`CatalogError::NoIncarnation`] where the one before does not exist; when
    /// the store does not answer.
    pub async fn begin_incarnation(
        &self,
        topic: &TopicName,
        number: u32,
        topic_id: Option<[u8; 16]>,
    ) -> Result<Incarnation, CatalogError> {
        if let Some(before) = number.checked_sub(1)
            && incarnations::read(&self.store, &self.cluster, topic, before).await?.is_none()
        {
            return Err(CatalogError::NoIncarnation { topic: topic.to_string(), number: before });
        }
        let incarnation = Incarnation {
            number,
            topic: topic.clone(),
            topic_id,
            nonce: (self.nonce)(),
            created_at_ms: self.clock.now_ms(),
            writer: self.writer.clone(),
        };
        incarnations::create(&self.store, &self.cluster, incarnation).await
    }

    /// Checks what loading a manifest does not: that every page below it is
    /// there, is what was written and tiles, and that the last [`HISTORY_MAX`]
    /// manifests before it, as far as they are kept, follow on each other.
    ///
    /// # Errors
    /// What is wrong first.
    pub async fn verify_history(&self, snapshot: &Snapshot) -> Result<(), CatalogError> {
        snapshot.check_pages().await?;
        let of = snapshot.of();
        let least = snapshot.number().saturating_sub(HISTORY_MAX).max(1);
        let mut behind = (snapshot.number(), snapshot.manifest().predecessor);
        // The first has no predecessor, nor has one that began anew.
        while behind.0 > least && behind.1 != [0; 32] {
            let block = newest::block_of(behind.0 - 1);
            let first = (block * BLOCK).max(1);
            // The block before may have ended early.
            let end = match newest::block_of(behind.0) == block {
                true => behind.0,
                false => newest::end_of(&self.store, of, first).await?,
            };
            if first < end && end <= least {
                break;
            }
            let kept = self.verify_block(of, first.max(least)..end, behind).await?;
            let Some(before) = kept else { break };
            behind = before;
        }
        Ok(())
    }

    /// Checks that the manifests `numbers` of one block follow on each other, and the
    /// one `behind` on them: its number, and the digest of its predecessor. Returns the
    /// same of the first; `None` where the block is closed.
    async fn verify_block(
        &self,
        of: &PartitionKey,
        numbers: std::ops::Range<u64>,
        mut behind: (u64, [u8; 32]),
    ) -> Result<Option<(u64, [u8; 32])>, CatalogError> {
        let block = newest::block_of(numbers.start);
        // Of a block that lost its first manifest no end can be found.
        let mut lost = numbers.is_empty().then_some(numbers.start);
        let mut number = numbers.end;
        let mut reads = futures::stream::iter(numbers.rev())
            .map(|number| self.manifest_bytes(of, number))
            .buffered(IN_FLIGHT);
        while let Some(bytes) = reads.try_next().await? {
            number -= 1;
            let Some(bytes) = bytes else {
                lost = Some(number);
                break;
            };
            let key = manifest_key(of, number);
            let follows = *blake3::hash(&bytes).as_bytes() == behind.1;
            let manifest = self.decode(&key, of, number, &bytes)?;
            if !follows || manifest.next_number() != behind.0 {
                return Err(CatalogError::Chain { object: manifest_key(of, behind.0).to_string() });
            }
            behind = (number, manifest.predecessor);
        }
        match lost {
            None => Ok(Some(behind)),
            // Collected, where its block is closed: then all before it are too.
            Some(_) if newest::is_closed(&self.store, of, block).await? => Ok(None),
            Some(number) => {
                Err(CatalogError::Gone { object: manifest_key(of, number).to_string() })
            }
        }
    }

    fn key(&self, tp: &TopicPartition, incarnation: u32) -> PartitionKey {
        PartitionKey { cluster: self.cluster.clone(), tp: tp.clone(), incarnation }
    }

    /// The newest manifest; with `next`, the number that follows on one that is known,
    /// only what is newer than that one.
    async fn newest_from(
        &self,
        of: &PartitionKey,
        next: Option<u64>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let mut reloads = 0;
        loop {
            let Some(number) = newest::newest(&self.store, of, next).await? else {
                return Ok(None);
            };
            match self.read(of, number).await {
                // Collected between two requests: then there is a newer one.
                Err(CatalogError::Gone { .. }) if reloads < RELOADS_MAX => reloads += 1,
                other => return other.map(Some),
            }
        }
    }

    /// Reads manifest `number`.
    async fn read(&self, of: &PartitionKey, number: u64) -> Result<Arc<Snapshot>, CatalogError> {
        let key = manifest_key(of, number);
        let Some(bytes) = self.manifest_bytes(of, number).await? else {
            return Err(CatalogError::Gone { object: key.to_string() });
        };
        let manifest = self.decode(&key, of, number, &bytes)?;
        let digest = *blake3::hash(&bytes).as_bytes();
        let snapshot = Snapshot::load(&self.store, self.pages.clone(), manifest, digest).await?;
        Ok(Arc::new(snapshot))
    }

    async fn manifest_bytes(
        &self,
        of: &PartitionKey,
        number: u64,
    ) -> Result<Option<bytes::Bytes>, CatalogError> {
        match self.store.get(&manifest_key(of, number), MANIFEST_BYTES_MAX as u64).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Decodes a manifest and checks that it is the one its name says.
    fn decode(
        &self,
        key: &ObjectKey,
        of: &PartitionKey,
        number: u64,
        bytes: &[u8],
    ) -> Result<Manifest, CatalogError> {
        let manifest = Manifest::decode(bytes, &self.cluster)
            .map_err(|error| CatalogError::format(key, error))?;
        if manifest.of == *of && manifest.number == number {
            return Ok(manifest);
        }
        let why = format!("it says it is {}", manifest_key(&manifest.of, manifest.number));
        Err(CatalogError::format(key, FormatError::invalid("the manifest", why)))
    }

    /// The epoch to commit under: that of `base` where this process made it, else
    /// the next.
    fn epoch(&self, of: &PartitionKey, base: Option<&Snapshot>) -> u64 {
        let Some(base) = base.map(Snapshot::manifest) else { return 1 };
        let epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = base.writer == self.writer && epochs.get(of) == Some(&base.writer_epoch);
        base.writer_epoch + u64::from(!ours)
    }

    fn remember_epoch(&self, of: &PartitionKey, epoch: u64) {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        epochs.insert(of.clone(), epoch);
    }
}

fn manifest_key(of: &PartitionKey, number: u64) -> ObjectKey {
    ObjectKey::Manifest { of: of.clone(), number }
}

#[cfg(test)]
mod tests;
