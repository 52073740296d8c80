//! Owns which life of its topic a partition's WAL belongs to.
//!
//! Where the broker reports topic ids they decide: an id that no life has begins one,
//! or is adopted by the newest where that has none. A partition of which an older id
//! is still reported stays in the life of that id. Segments that this writer recorded
//! in the life before are of that life for as long as they are there, and no part of
//! the new one; until they are gone the ledger in the store stays theirs, and nothing
//! of the new life is told releasable.
//!
//! The rest is for brokers that give topics no id. A topic that was deleted and made
//! again has the same name, offsets from 0 and other bytes; a broker that crashed may
//! write offsets again, with other bytes too, and that is the same topic. What tells
//! them apart is that the first left no file behind. So a new life begins only when,
//! over all partitions of the topic at hand,
//!
//! 1. none of the segments that this writer recorded is left,
//! 2. the number of one is there again, on a file with another first batch, and
//! 3. below `archived_through` there are bytes other than those archived.
//!
//! Everything else is overlap. All partitions of a topic begin a life together.
//! Killed in between, the next run finds the same: the life that was begun is
//! joined, not counted again.
//!
//! It is settled anew when segments of the topic came, went or became others; else
//! it costs nothing. What is remembered here between steps is what the ledgers in
//! the store say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};

use super::partition::blocking;
use super::plan::Frame;
use super::proof::look_up;
use super::report::Finding;
use super::scan::hull;
use super::{IndexError, Indexer};
use crate::catalog::{Ledger, Recorded, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::wal::{SegmentFile, WalFormat, first_frame, scan};

/// Ledgers of a topic that are read together, each by one small request.
const IN_FLIGHT: usize = 16;

/// An id that the broker gave the topic.
pub(super) type TopicId = [u8; 16];

/// The segments of one partition, each with the life of its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) tp: TopicPartition,
    pub(super) segments: Vec<(SegmentFile, u64)>,
    /// The topic's id, where the broker reported one for this partition.
    pub(super) topic_id: Option<TopicId>,
    /// Those that the broker emptied and filled again: they are left, whatever they
    /// begin with.
    pub(super) emptied: Vec<u64>,
}

impl Local {
    /// What tells its contents from others: a segment that grows stays the same.
    pub(super) fn keys(&self) -> impl Iterator<Item = (u64, u64)> {
        self.segments.iter().map(|(file, life)| (file.id, *life))
    }
}

/// The life a partition's WAL belongs to, and what is remembered of it.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) ledger: Ledger,
    /// Whether what is remembered in the store is of an earlier life.
    pub(super) moved: bool,
    /// The segments that are there and hold a batch, by what tells them apart.
    pub(super) present: Vec<Recorded>,
    /// Numbers of the segments that are there and of an earlier life.
    pub(super) left: HashSet<u64>,
    /// The topic's id by which it was found out.
    pub(super) topic_id: Option<TopicId>,
    /// The highest segment that begins with a good frame: the broker learns its
    /// next offset from it.
    pub(super) anchor: Option<u64>,
    /// What a person should know.
    pub(super) findings: Vec<Finding>,
}

impl Life {
    pub(super) fn incarnation(&self) -> u32 {
        self.ledger.incarnation()
    }
}

/// The lives of all topics at hand.
#[derive(Debug, Default)]
pub(super) struct Lives {
    topics: Mutex<HashMap<TopicName, Arc<tokio::sync::Mutex<Topic>>>>,
}

/// One topic between steps of its partitions.
#[derive(Debug, Default)]
struct Topic {
    incarnation: u32,
    /// The lives of partitions of which an older id is still reported.
    behind: BTreeMap<i32, u32>,
    /// The lives there are, with the id of each as far as it is known.
    ids: BTreeMap<u32, Option<TopicId>>,
    /// Those of them that were read in the store.
    began: BTreeSet<u32>,
    /// What was there when it was found out; `None` before.
    settled_on: Option<(Signature, Ids)>,
    /// What the store remembers, by partition.
    ledgers: BTreeMap<i32, Option<Ledger>>,
    /// The first batch of each segment, by partition, number and its life.
    heads: HashMap<(i32, u64, u64), Head>,
    findings: HashMap<i32, Vec<Finding>>,
}

/// By partition, segment and the life of its number; with the size of those that
/// have no batch yet.
type Signature = Vec<(i32, u64, u64, Option<u64>)>;

/// What is reported of the partitions that are listed.
type Ids = Vec<(i32, Option<TopicId>)>;

/// The first batch of a segment.
#[derive(Clone, Copy, Debug)]
struct Head {
    recorded: Recorded,
    /// Whether its frame is the file's first bytes.
    at_start: bool,
}

/// What one partition of a topic shows of its life.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The segments that this writer recorded.
    pub recorded: &'a [Recorded],
    /// Those that are there now.
    pub present: &'a [Recorded],
}

/// Whether the first two of the three rules say that the topic was made anew.
#[must_use]
pub fn looks_reborn(topic: &[Sight<'_>]) -> bool {
    let found = |sight: &Sight<'_>, old: &Recorded| {
        sight.present.iter().find(|new| new.id == old.id).copied()
    };
    let mut again = false;
    for sight in topic {
        for old in sight.recorded {
            match found(sight, old) {
                Some(new) if new == *old => return false,
                Some(_) => again = true,
                None => {}
            }
        }
    }
    again
}

impl Lives {
    /// Finds out which life the partitions `locals` of one topic are in, begins it
    /// where it is new, and says what there is to know of `tp`.
    ///
    /// # Errors
    /// When the store does not answer, or a segment is not what was listed.
    pub(super) async fn settle(
        &self,
        indexer: &Indexer,
        tp: &TopicPartition,
        locals: &[Local],
    ) -> Result<Life, IndexError> {
        let topic = self.topic(tp.topic());
        let mut topic = topic.lock().await;
        if topic.settled_on.as_ref() != Some(&topic.signature(locals)) {
            topic.settled_on = None;
            let sure = topic.look(indexer, locals).await?;
            topic.recall(indexer, locals).await?;
            topic.incarnation = topic.decide(indexer, tp.topic(), locals, sure).await?;
            topic.settled_on = Some(topic.signature(locals));
        }
        Ok(topic.life(tp, locals))
    }

    /// Takes in what is about to be remembered in the store.
    pub(super) async fn remember(&self, tp: &TopicPartition, ledger: &Ledger) {
        let topic = self.topic(tp.topic());
        topic.lock().await.ledgers.insert(tp.partition(), Some(ledger.clone()));
    }

    /// Forgets what the store was thought to remember: it is read again.
    pub(super) async fn doubt(&self, tp: &TopicPartition) {
        let topic = self.topic(tp.topic());
        let mut topic = topic.lock().await;
        topic.ledgers.remove(&tp.partition());
        topic.settled_on = None;
    }

    /// Forgets topics that are not there any more.
    pub(super) fn retain(&self, is_there: impl Fn(&TopicName) -> bool) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.retain(|topic, _| is_there(topic));
    }

    fn topic(&self, topic: &TopicName) -> Arc<tokio::sync::Mutex<Topic>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(topics.entry(topic.clone()).or_default())
    }
}

impl Topic {
    fn signature(&self, locals: &[Local]) -> (Signature, Ids) {
        let mut signature = Signature::new();
        for local in locals {
            let partition = local.tp.partition();
            signature.extend(local.segments.iter().map(|(file, life)| {
                let known = self.heads.contains_key(&(partition, file.id, *life));
                (partition, file.id, *life, (!known).then_some(file.len))
            }));
        }
        let ids = locals.iter().map(|local| (local.tp.partition(), local.topic_id)).collect();
        (signature, ids)
    }

    /// Reads the first batch of every segment of which it is not known. Says whether
    /// all could be looked at.
    async fn look(&mut self, indexer: &Indexer, locals: &[Local]) -> Result<bool, IndexError> {
        let mut known = std::mem::take(&mut self.heads);
        let (format, locals) = (indexer.format, locals.to_vec());
        let (heads, sure) = blocking(move || {
            let (mut heads, mut sure) = (HashMap::new(), true);
            for local in &locals {
                for (file, life) in &local.segments {
                    let key = (local.tp.partition(), file.id, *life);
                    let head = match known.remove(&key) {
                        Some(head) => Some(head),
                        None => match head(format, &local.tp, file) {
                            // The scan meets it again and says why.
                            Err(IndexError::Wal(error)) if !error.is_change() => {
                                sure = false;
                                None
                            }
                            other => other?,
                        },
                    };
                    heads.extend(head.map(|head| (key, head)));
                }
            }
            Ok((heads, sure))
        })
        .await?;
        self.heads = heads;
        Ok(sure)
    }

    /// Reads the ledgers that are not known, and forgets those of partitions that
    /// are gone.
    async fn recall(&mut self, indexer: &Indexer, locals: &[Local]) -> Result<(), IndexError> {
        self.ledgers.retain(|partition, _| locals.iter().any(|l| l.tp.partition() == *partition));
        let unknown = locals.iter().filter(|l| !self.ledgers.contains_key(&l.tp.partition()));
        let reads: Vec<_> = unknown.map(|local| read_ledger(indexer, &local.tp)).collect();
        let read: Vec<_> = futures::stream::iter(reads).buffered(IN_FLIGHT).try_collect().await?;
        for (partition, ledger, finding) in read {
            self.ledgers.insert(partition, ledger);
            self.findings.entry(partition).or_default().extend(finding);
        }
        Ok(())
    }

    /// The life that the segments at hand are in.
    async fn decide(
        &mut self,
        indexer: &Indexer,
        topic: &TopicName,
        locals: &[Local],
        sure: bool,
    ) -> Result<u32, IndexError> {
        let newest = indexer.catalog.newest_incarnation(topic).await?;
        self.learn(indexer, topic, newest).await?;
        self.behind.clear();
        let reported: BTreeSet<TopicId> = locals.iter().filter_map(|one| one.topic_id).collect();
        let mut strangers = self.strangers(&reported);
        if !strangers.is_empty() {
            self.learn_from_manifests(indexer, locals).await?;
            strangers = self.strangers(&reported);
        }
        let incarnation = match strangers[..] {
            [] if reported.is_empty() => {
                self.decide_by_bytes(indexer, topic, locals, newest, sure, None).await?
            }
            [] => reported.iter().filter_map(|id| self.life_of(id)).max().unwrap_or(0),
            [id] => self.welcome(indexer, topic, locals, newest, sure, id).await?,
            // Reports of the partitions come one after the other: soon they agree.
            _ => return Err(IndexError::Unsettled),
        };
        for local in locals {
            let life = local.topic_id.and_then(|id| self.life_of(&id));
            if let Some(older) = life.filter(|life| *life < incarnation) {
                self.behind.insert(local.tp.partition(), older);
            }
        }
        Ok(incarnation)
    }

    /// The life of `id`.
    fn life_of(&self, id: &TopicId) -> Option<u32> {
        self.ids.iter().rev().find(|(_, known)| known.as_ref() == Some(id)).map(|(life, _)| *life)
    }

    /// Those of `ids` that no life is known to have.
    fn strangers(&self, ids: &BTreeSet<TopicId>) -> Vec<TopicId> {
        ids.iter().filter(|id| self.life_of(id).is_none()).copied().collect()
    }

    /// Reads which lives there are, where there are more than known.
    async fn learn(
        &mut self,
        indexer: &Indexer,
        topic: &TopicName,
        newest: Option<u32>,
    ) -> Result<(), IndexError> {
        if newest.is_none_or(|newest| self.began.contains(&newest)) {
            return Ok(());
        }
        for life in indexer.catalog.incarnations(topic).await? {
            self.began.insert(life.number);
            let known = self.ids.entry(life.number).or_default();
            *known = life.topic_id.or(*known);
        }
        Ok(())
    }

    /// Reads the ids of lives that began without one and adopted it later.
    async fn learn_from_manifests(
        &mut self,
        indexer: &Indexer,
        locals: &[Local],
    ) -> Result<(), IndexError> {
        for (life, id) in self.ids.iter_mut().filter(|(_, id)| id.is_none()) {
            for local in locals {
                let snapshot = indexer.catalog.load(&local.tp, Some(*life)).await?;
                *id = snapshot.and_then(|snapshot| snapshot.manifest().topic_id);
                if id.is_some() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The life of `id`, which none is known to have: the newest adopts it, or one
    /// begins.
    async fn welcome(
        &mut self,
        indexer: &Indexer,
        topic: &TopicName,
        locals: &[Local],
        newest: Option<u32>,
        sure: bool,
        id: TopicId,
    ) -> Result<u32, IndexError> {
        let last = newest.unwrap_or(0);
        let has_id = |life: &u32| self.ids.get(life).is_some_and(Option::is_some);
        let life = if has_id(&last) {
            if newest.is_none() {
                // Nothing of the first one was committed.
                self.begin(indexer, topic, 0, self.ids.get(&0).copied().flatten()).await?;
            }
            let next = last.saturating_add(1);
            self.begin(indexer, topic, next, Some(id)).await?;
            next
        } else {
            let life = self.decide_by_bytes(indexer, topic, locals, newest, sure, Some(id)).await?;
            if has_id(&life) { last } else { life }
        };
        self.ids.insert(life, Some(id));
        Ok(life)
    }

    async fn begin(
        &self,
        indexer: &Indexer,
        topic: &TopicName,
        next: u32,
        id: Option<TopicId>,
    ) -> Result<(), IndexError> {
        if next > 0 {
            tracing::warn!(%topic, incarnation = next, "the topic was made anew");
        }
        indexer.probe().await?;
        let begun = indexer.catalog.begin_incarnation(topic, next, id).await?;
        // Another daemon was faster, and was told of another topic.
        if id.is_some() && begun.topic_id.is_some() && begun.topic_id != id {
            return Err(IndexError::Unsettled);
        }
        Ok(())
    }

    /// The life by what the segments hold; `id` is that of one that begins.
    async fn decide_by_bytes(
        &self,
        indexer: &Indexer,
        topic: &TopicName,
        locals: &[Local],
        newest: Option<u32>,
        sure: bool,
        id: Option<TopicId>,
    ) -> Result<u32, IndexError> {
        let recorded = self.ledgers.values().flatten();
        let Some(current) = recorded.map(Ledger::incarnation).max() else {
            return Ok(newest.unwrap_or(0));
        };
        // One that a broker's word began needs no proof, of which this writer may have
        // nothing recorded yet.
        let by_id = |life: &u32| self.ids.get(life).is_some_and(Option::is_some);
        if let Some(newest) = newest.filter(|newest| *newest > current && by_id(newest)) {
            return Ok(newest);
        }
        let present: Vec<_> = locals.iter().map(|local| self.present(local)).collect();
        let sights: Vec<Sight<'_>> = locals
            .iter()
            .zip(&present)
            .filter_map(|(local, present)| {
                let ledger = self.ledgers.get(&local.tp.partition())?.as_ref();
                let ledger = ledger.filter(|ledger| ledger.incarnation() == current)?;
                Some(Sight { recorded: ledger.segments(), present })
            })
            .collect();
        let is_left = |recorded: &Recorded, local: &Local| local.emptied.contains(&recorded.id);
        let emptied = locals.iter().any(|local| {
            let ledger = self.ledgers.get(&local.tp.partition()).and_then(Option::as_ref);
            ledger.is_some_and(|ledger| ledger.segments().iter().any(|one| is_left(one, local)))
        });
        // A file that cannot be looked at may be one that is left.
        if !sure || emptied || !looks_reborn(&sights) || !differs(indexer, locals, current).await? {
            return Ok(current);
        }
        let next = newest.unwrap_or(0).max(current.saturating_add(1));
        if newest.is_none_or(|newest| newest < next) {
            self.begin(indexer, topic, next, id).await?;
        }
        Ok(next)
    }

    fn present(&self, local: &Local) -> Vec<Recorded> {
        self.heads_of(local).into_iter().map(|head| head.recorded).collect()
    }

    /// By ascending id.
    fn heads_of(&self, local: &Local) -> Vec<Head> {
        let partition = local.tp.partition();
        let head = |(id, life)| self.heads.get(&(partition, id, life)).copied();
        local.keys().filter_map(head).collect()
    }

    fn life(&mut self, tp: &TopicPartition, locals: &[Local]) -> Life {
        let findings = self.findings.remove(&tp.partition()).unwrap_or_default();
        let ledger = self.ledgers.get(&tp.partition()).and_then(Option::as_ref);
        let incarnation = self.behind.get(&tp.partition()).copied().unwrap_or(self.incarnation);
        let moved = ledger.is_some_and(|ledger| ledger.incarnation() != incarnation);
        let local = locals.iter().find(|local| local.tp == *tp);
        let heads = local.map(|local| self.heads_of(local)).unwrap_or_default();
        let anchor = heads.iter().rfind(|head| head.at_start).map(|head| head.recorded.id);
        let present: Vec<_> = heads.into_iter().map(|head| head.recorded).collect();
        let before = ledger.filter(|_| moved).map(Ledger::segments).unwrap_or_default();
        let is_left = |one: &&Recorded| before.contains(one);
        let left = present.iter().filter(is_left).map(|one| one.id).collect();
        let ledger = ledger.filter(|_| !moved).cloned();
        let ledger = ledger.unwrap_or_else(|| Ledger::new(incarnation));
        let topic_id = local.and_then(|local| local.topic_id);
        Life { ledger, moved, present, left, topic_id, anchor, findings }
    }
}

/// The ledger of a partition. One that cannot be understood is no reason to archive
/// nothing: it is told, and begun anew.
async fn read_ledger(
    indexer: &Indexer,
    tp: &TopicPartition,
) -> Result<(i32, Option<Ledger>, Option<Finding>), IndexError> {
    match indexer.catalog.ledger(tp).await {
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            let line = format!("{tp}: {error}; what this writer recorded is begun anew");
            Ok((tp.partition(), None, Some(Finding { line, damage: true })))
        }
        other => Ok((tp.partition(), other?, None)),
    }
}

/// The first batch of a segment. Blocking.
fn head(
    format: WalFormat,
    tp: &TopicPartition,
    file: &SegmentFile,
) -> Result<Option<Head>, IndexError> {
    let first = first_frame(format, tp, file)?;
    Ok(first.map(|first| {
        let (id, first_base, first_crc32c) = (file.id, first.base, first.wire_crc32c);
        let recorded = Recorded { id, first_base, first_crc32c };
        Head { recorded, at_start: first.position == 0 }
    }))
}

/// Whether some partition holds bytes other than those that life `incarnation`
/// serves at the same offsets. Reads all of the topic, which looks reborn: rare.
async fn differs(
    indexer: &Indexer,
    locals: &[Local],
    incarnation: u32,
) -> Result<bool, IndexError> {
    for local in locals {
        let snapshot = indexer.catalog.load(&local.tp, Some(incarnation)).await?;
        let Some(snapshot) = snapshot else { continue };
        let (format, local) = (indexer.format, local.clone());
        let frames = blocking(move || all_frames(format, &local)).await?;
        let found = look_up(&indexer.reader, &snapshot, frames).await?;
        let strangers: Vec<Frame> = found.frames.into_iter().filter(|one| !one.known).collect();
        if serves_others(&snapshot, &strangers).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every frame of a partition that verifies, in the files as they are now. Blocking.
fn all_frames(format: WalFormat, local: &Local) -> Result<Vec<Frame>, IndexError> {
    let mut frames = Vec::new();
    for (number, (file, _)) in local.segments.iter().enumerate() {
        let found = scan(format, &local.tp, file)?;
        let segment = number as u32;
        frames.extend(found.frames.into_iter().map(|at| Frame {
            segment,
            at,
            known: false,
            truncated: false,
        }));
    }
    Ok(frames)
}

/// Whether an archive tiles offsets of one of `strangers`, none of which it holds.
async fn serves_others(snapshot: &Snapshot, strangers: &[Frame]) -> Result<bool, IndexError> {
    let Some(hull) = hull(strangers) else { return Ok(false) };
    let entries = snapshot.find_by_offset_range(hull).await?;
    let tiles: Vec<OffsetRange> = entries.iter().filter_map(|entry| entry.tile()).collect();
    Ok(strangers.iter().any(|frame| {
        let range = OffsetRange::new(frame.base(), frame.last());
        range.is_some_and(|range| tiles.iter().any(|tile| tile.overlaps(range)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: u64, crc: u32) -> Recorded {
        Recorded { id, first_base: 0, first_crc32c: crc }
    }

    #[test]
    fn a_topic_is_reborn_when_nothing_is_left_and_a_number_came_again() {
        let old = [segment(0, 1), segment(1, 2)];
        let reborn = |present: &[Recorded]| looks_reborn(&[Sight { recorded: &old, present }]);
        assert!(reborn(&[segment(0, 9)]));
        assert!(reborn(&[segment(0, 9), segment(7, 9)]));
        assert!(!reborn(&[segment(0, 9), segment(1, 2)]), "one is left");
        assert!(!reborn(&[segment(2, 9)]), "a number that was never seen: a later segment");
        assert!(!reborn(&[]), "deleted, and nothing made anew yet");
        let moved = [Recorded { first_base: 5, ..segment(0, 1) }];
        assert!(reborn(&moved), "another base is another first batch");
    }

    #[test]
    fn one_segment_left_in_any_partition_is_the_same_life() {
        let old = [segment(0, 1)];
        let (same, other) = ([segment(0, 1)], [segment(0, 9)]);
        let sight = |present| Sight { recorded: &old, present };
        assert!(looks_reborn(&[sight(&other[..]), sight(&other[..])]));
        assert!(looks_reborn(&[sight(&other[..]), sight(&[])]));
        assert!(!looks_reborn(&[sight(&other[..]), sight(&same[..])]));
        assert!(!looks_reborn(&[Sight { recorded: &[], present: &same }]));
        assert!(!looks_reborn(&[]));
    }
}
