//! Owns what is left of a partition's catalog when objects of it are lost or damaged,
//! and beginning it anew from that.
//!
//! A partition begins anew in a block of its own:
//!
//! 1. Every block in which anything has a number is closed ([`Catalog::fence`]). From
//!    then on nobody commits there: who sleeps over it finds his manifest void.
//! 2. What is left is read, now that nothing is added to it ([`Catalog::remains`]).
//! 3. The first manifest of the block behind is created, create-only: **the commit
//!    point** ([`Catalog::begin_anew`]).
//!
//! Killed between 1 and 3, the partition has closed blocks and no manifest, which
//! readers take for damage and no writer commits to; doing it again finishes it.
//! Archives and pages keep their names: their numbers lie before that of the new
//! manifest, which references them first, and nothing that is not referenced there
//! can be referenced ever again.
//!
//! Does not own: which archives to take in, and reading them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::TryStreamExt;

use crate::archive::OpenTransaction;
use crate::record::TopicPartition;
use crate::store::{ObjectKey, PartitionKey, WriterId};

use super::commit::Committed;
use super::entry::{ArchiveEntry, Gap, order};
use super::error::CatalogError;
use super::manifest::{INLINE_OPEN_MAX, Manifest, Open};
use super::newest::{BLOCK, block_of};
use super::page::{Page, PageRef};
use super::side;
use super::snapshot::Snapshot;
use super::tree::{Editor, Item, Limits, Root};
use super::{Catalog, incarnations, manifest_key};

/// What is left of a partition's catalog.
#[derive(Debug)]
pub struct Remains {
    /// The partition.
    pub of: PartitionKey,
    /// The newest manifest that can be read.
    pub newest: Option<Arc<Snapshot>>,
    /// Its entries, as far as its pages can be read; ascending by offset.
    pub entries: Vec<ArchiveEntry>,
    /// Its gaps, as far as its pages can be read; ascending.
    pub gaps: Vec<Gap>,
    /// Its pages that cannot be read.
    pub lost_pages: Vec<PageRef>,
    /// Whether its transactions open at the end can be read.
    pub knows_open: bool,
    /// Every archive that lies in the partition's folder, with its length in bytes.
    pub archives: BTreeMap<ObjectKey, u64>,
    /// How far a writer let its broker delete, where one did.
    pub released: Option<(WriterId, i64)>,
    /// The broker's id of the topic, where anything tells it.
    pub topic_id: Option<[u8; 16]>,
    /// What is wrong; nothing where all can be read.
    pub damage: Vec<String>,
    /// The number of the manifest that begins anew.
    anew: u64,
}

/// What the first manifest of a partition that begins anew says.
#[derive(Clone, Debug, Default)]
pub struct Anew {
    /// First offset of the log.
    pub log_start: i64,
    /// Its archives, made for any manifest before.
    pub entries: Vec<ArchiveEntry>,
    /// Its gaps; with what the archives tile they cover the log.
    pub gaps: Vec<Gap>,
    /// The transactions open at the end.
    pub open: Vec<OpenTransaction>,
    /// The broker's id of the topic.
    pub topic_id: Option<[u8; 16]>,
}

/// What a manifest lists, as far as it can be read.
#[derive(Default)]
struct Readable {
    entries: Vec<ArchiveEntry>,
    gaps: Vec<Gap>,
    lost: Vec<PageRef>,
}

impl Catalog {
    /// What is left of a partition's catalog, by a listing of its folder and reading
    /// what stands there.
    ///
    /// # Errors
    /// When the store does not answer, or holds a manifest or page of a later tierd.
    pub async fn remains(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
    ) -> Result<Remains, CatalogError> {
        let of = self.key(tp, incarnation);
        let mut remains = Remains {
            of: of.clone(),
            newest: None,
            entries: Vec::new(),
            gaps: Vec::new(),
            lost_pages: Vec::new(),
            knows_open: false,
            archives: BTreeMap::new(),
            released: self.released(tp, incarnation).await?,
            topic_id: None,
            damage: Vec::new(),
            anew: 0,
        };
        let (mut manifests, mut greatest) = (BTreeSet::new(), 0);
        let mut listed = Box::pin(self.store.list(&of.to_string()));
        while let Some(object) = listed.try_next().await? {
            let Ok(key) = ObjectKey::decode(&object.name) else { continue };
            let (ObjectKey::Manifest { number, .. }
            | ObjectKey::Archive { number, .. }
            | ObjectKey::Page { number, .. }
            | ObjectKey::Side { number, .. }) = key
            else {
                continue;
            };
            greatest = number.max(greatest);
            match key {
                ObjectKey::Manifest { .. } => drop(manifests.insert(number)),
                ObjectKey::Archive { .. } => drop(remains.archives.insert(key, object.length)),
                _ => {}
            }
        }
        let open = self.first_open(&of).await?;
        remains.anew = ((block_of(greatest + 1) + 1) * BLOCK).max(open);
        self.read_newest(&mut remains, &manifests).await?;
        look_for_holes(&mut remains, &manifests, open, greatest);
        self.read_lives(&mut remains).await?;
        if let Some(newest) = remains.newest.clone() {
            let Readable { mut entries, mut gaps, lost } = self.readable(&newest).await?;
            entries.sort_by(|a, b| order(a).cmp(&order(b)));
            gaps.sort_unstable();
            let of_pages = lost.iter().map(|page| format!("{} cannot be read", page.key(&of)));
            remains.damage.extend(of_pages);
            if lost.is_empty()
                && let Some(why) = damage(self.verify_history(&newest).await)?
            {
                remains.damage.push(why);
            }
            (remains.entries, remains.gaps, remains.lost_pages) = (entries, gaps, lost);
        }
        Ok(remains)
    }

    /// The newest manifest that can be read, from the greatest number down.
    async fn read_newest(
        &self,
        remains: &mut Remains,
        manifests: &BTreeSet<u64>,
    ) -> Result<(), CatalogError> {
        let of = remains.of.clone();
        for &number in manifests.iter().rev() {
            let key = manifest_key(&of, number);
            let Some(bytes) = self.manifest_bytes(&of, number).await? else { continue };
            let manifest = match self.decode(&key, &of, number, &bytes) {
                Ok(manifest) => manifest,
                Err(error) => {
                    remains.damage.extend(damage(Err(error))?);
                    continue;
                }
            };
            remains.topic_id = manifest.topic_id;
            let digest = *blake3::hash(&bytes).as_bytes();
            let pages = self.pages.clone();
            let found = Snapshot::load(&self.store, pages, manifest.clone(), digest).await;
            remains.knows_open = found.is_ok();
            remains.newest = Some(Arc::new(match found {
                Ok(snapshot) => snapshot,
                // Its side object alone is lost.
                Err(error) => {
                    remains.damage.extend(damage(Err(error))?);
                    Snapshot::new(manifest, digest, Vec::new(), self.pages.clone())
                }
            }));
            return Ok(());
        }
        Ok(())
    }

    /// The objects of the topic's lives: what they tell, and which are missing.
    async fn read_lives(&self, remains: &mut Remains) -> Result<(), CatalogError> {
        let (topic, last) = (&remains.of.tp.topic().clone(), remains.of.incarnation);
        for number in 0..=last {
            match incarnations::read(&self.store, &self.cluster, topic, number).await {
                Ok(Some(life)) if number == last => {
                    remains.topic_id = remains.topic_id.or(life.topic_id);
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    remains.damage.push(format!("the object of life {number} of {topic} is gone"));
                }
                Err(error) => remains.damage.extend(damage(Err(error))?),
            }
        }
        Ok(())
    }

    async fn readable(&self, snapshot: &Snapshot) -> Result<Readable, CatalogError> {
        let recent = snapshot.manifest().recent.clone();
        let mut found = Readable { entries: recent.entries, gaps: recent.gaps, lost: Vec::new() };
        let mut next = snapshot.manifest().pages.clone();
        while let Some(at) = next.pop() {
            match snapshot.page(&at).await {
                Ok(page) => match &*page {
                    Page::Inner(refs) => next.extend_from_slice(refs),
                    Page::Leaf(items) => {
                        found.entries.extend_from_slice(&items.entries);
                        found.gaps.extend_from_slice(&items.gaps);
                    }
                },
                Err(error) => {
                    damage(Err(error))?;
                    found.lost.push(at);
                }
            }
        }
        Ok(found)
    }

    /// Closes every block in which anything of the partition has a number: nothing
    /// is committed there from then on. Only for who begins it anew right after.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn fence(&self, remains: &Remains) -> Result<(), CatalogError> {
        let mut open = self.first_open(&remains.of).await?;
        while open < remains.anew {
            self.close_block(&remains.of, block_of(open)).await?;
            open += BLOCK;
        }
        Ok(())
    }

    /// Creates the manifest that begins the partition anew, and the objects of the
    /// topic's lives that are missing.
    ///
    /// # Errors
    /// [`CatalogError::Lost`] where another did so first; [`CatalogError::Unsettled`]
    /// where the partition is not fenced; as [`Catalog::commit`].
    pub async fn begin_anew(
        &self,
        remains: &Remains,
        anew: Anew,
    ) -> Result<Committed, CatalogError> {
        let (of, number) = (&remains.of, remains.anew);
        if self.first_open(of).await? != number {
            return Err(CatalogError::Unsettled { what: of.to_string() });
        }
        for life in 0..=of.incarnation {
            let found = incarnations::read(&self.store, &self.cluster, of.tp.topic(), life).await;
            if matches!(found, Ok(None)) {
                let topic_id = anew.topic_id.filter(|_| life == of.incarnation);
                self.begin_incarnation(of.tp.topic(), life, topic_id).await?;
            }
        }
        let entries = anew.entries.into_iter().map(Item::Entry);
        let items = entries.chain(anew.gaps.into_iter().map(Item::Gap)).collect();
        let editor = Editor::new(&self.pages, of, number, anew.log_start, Limits::default());
        let (root, made) = editor.edit(Root::default(), items, Vec::new()).await?;
        let (open, side) = if anew.open.len() <= INLINE_OPEN_MAX {
            (Open::Inline(anew.open.clone()), None)
        } else {
            let (at, bytes) = side::make(of, number, &anew.open);
            (Open::Side(at), Some((at.key(of), bytes)))
        };
        let mut manifest = Manifest {
            of: of.clone(),
            number,
            nonce: (self.nonce)(),
            // Above every epoch there was: they rise at most with the numbers.
            writer_epoch: number,
            writer: self.writer.clone(),
            committed_at_ms: self.clock.now_ms(),
            predecessor: [0; 32],
            topic_id: anew.topic_id,
            log_start: anew.log_start,
            archived_through: 0,
            open,
            ends_block: false,
            recent: root.recent,
            pages: root.pages,
        };
        manifest.archived_through = manifest.tiled_to()?;
        self.publish(manifest, anew.open, made, side).await
    }
}

/// Finds numbers that a manifest must have had and none has.
fn look_for_holes(remains: &mut Remains, manifests: &BTreeSet<u64>, open: u64, greatest: u64) {
    let first = open.max(1);
    let newest = remains.newest.as_deref().map_or(0, Snapshot::number);
    let next = remains.newest.as_deref().map_or(1, Snapshot::next_number);
    let last = manifests.range(first..).next_back().copied().unwrap_or(0);
    // A block may have ended early; whether it did, the history tells, by digests.
    let ended = |number: u64| {
        let behind = (block_of(number) + 1) * BLOCK;
        manifests.range(number..).next() == Some(&behind)
    };
    let is_gone = |number: &u64| !manifests.contains(number) && !ended(*number);
    let gone: Vec<u64> = (first..=last).filter(is_gone).collect();
    if let (Some(one), Some(other)) = (gone.first(), gone.last()) {
        let (count, of) = (gone.len(), &remains.of);
        remains.damage.push(format!("of {of} {count} manifests are gone, {one} to {other}"));
    } else if last < first && (open > 0 || !remains.archives.is_empty()) {
        remains.damage.push(format!("{} has no manifest", remains.of));
    } else if greatest > next.max(last + 1) {
        // Who writes is one number ahead.
        let why = format!("something was made for manifest {greatest}, the last is {newest}");
        remains.damage.push(why);
    }
    let through = remains.newest.as_deref().map_or(0, Snapshot::archived_through);
    if let Some((writer, released)) = &remains.released
        && *released > through
    {
        remains.damage.push(format!(
            "{writer} let its broker delete up to offset {released}, what can be read ends at \
             {through}: a manifest is gone"
        ));
    }
}

/// What is lost or damaged, as text; what only could not be asked is the error.
fn damage(result: Result<(), CatalogError>) -> Result<Option<String>, CatalogError> {
    fn is(error: &CatalogError) -> bool {
        match error {
            CatalogError::Gone { .. }
            | CatalogError::Corrupt { .. }
            | CatalogError::Chain { .. } => true,
            CatalogError::Shared(source) => is(source),
            _ => false,
        }
    }
    match result {
        Ok(()) => Ok(None),
        Err(error) if is(&error) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}
