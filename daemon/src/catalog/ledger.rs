//! Owns what a writer must remember of a partition across a lost disk: one small
//! object per writer and partition, written over by that writer alone.
//!
//! ```text
//!  0   8  "TIERDLED"
//!  8   2  version, 1
//! 10   4  incarnation
//! 14   4  partition
//! 18   1  length of the topic, n
//! 19   n  topic
//!      1  length of the writer's id, w
//!      w  writer's id
//!      8  releasable_through
//!      2  number of segments
//!     20  each, ascending by id: id 8, base of the first batch 8, its CRC-32C 4
//!     16  BLAKE3-128 of the rest
//! ```
//!
//! A ledger is never ahead of a manifest: [`Ledger::release`] takes a
//! [`Committed`]. One that is behind costs nothing but time: what it allows to
//! delete is less, and what it recorded is older.

use std::collections::HashSet;

use bytes::{BufMut, Bytes};
use futures::TryStreamExt;

use crate::error::{Classify, ErrorKind};
use crate::record::TopicPartition;
use crate::store::{ObjectKey, WriterId, keys};

use super::Catalog;
use super::codec::{self, FormatError, Reader};
use super::commit::Committed;
use super::error::CatalogError;

/// The format's version.
pub const LEDGER_VERSION: u16 = 1;

/// Most segments recorded of a partition: 1 TiB of them at 128 MiB each. Beyond
/// it those that are gone are forgotten, greatest ids first: a topic made anew
/// counts from 0, so the lowest ids are the ones that come again.
pub const RECORDED_MAX: usize = 8192;

/// Largest ledger, in bytes: names and segments.
const LEDGER_BYTES_MAX: u64 = 1024 + RECORDED_BYTES as u64 * RECORDED_MAX as u64;
const RECORDED_BYTES: usize = 20;
const MAGIC: [u8; 8] = *b"TIERDLED";

/// A segment as its writer saw it: a number that the broker uses again, and what
/// tells two files of that number apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recorded {
    /// The broker's number of the segment.
    pub id: u64,
    /// Base offset of the first batch in it.
    pub first_base: i64,
    /// CRC-32C over all bytes of that batch.
    pub first_crc32c: u32,
}

/// What a writer remembers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    incarnation: u32,
    releasable_through: i64,
    segments: Vec<Recorded>,
}

impl Ledger {
    /// An empty ledger of one life of the topic.
    #[must_use]
    pub fn new(incarnation: u32) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// The life of the topic that all of it is about.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// How far the broker may delete its WAL (exclusive), as it was told last; 0
    /// when nothing may be deleted.
    #[must_use]
    pub fn releasable_through(&self) -> i64 {
        self.releasable_through
    }

    /// The segments seen, ascending by id, those that are gone by now included.
    #[must_use]
    pub fn segments(&self) -> &[Recorded] {
        &self.segments
    }

    /// Records the segments that are there. Returns whether that is news.
    pub fn record(&mut self, present: &[Recorded]) -> bool {
        let there: HashSet<u64> = present.iter().map(|recorded| recorded.id).collect();
        let gone = self.segments.iter().filter(|recorded| !there.contains(&recorded.id));
        // Ascending by id, so what is cut off are the greatest.
        let gone = gone.take(RECORDED_MAX.saturating_sub(present.len()));
        let mut merged: Vec<Recorded> = present.iter().chain(gone).copied().collect();
        merged.sort_unstable();
        merged.dedup_by_key(|recorded| recorded.id);
        merged.truncate(RECORDED_MAX);
        let news = merged != self.segments;
        self.segments = merged;
        news
    }

    /// Moves `releasable_through` forward, never back and never beyond what is
    /// committed. Returns whether it moved.
    pub fn release(&mut self, committed: &Committed, through: i64) -> bool {
        let snapshot = committed.snapshot();
        let through = through.min(snapshot.archived_through());
        if snapshot.incarnation() != self.incarnation || through <= self.releasable_through {
            return false;
        }
        self.releasable_through = through;
        true
    }

    fn encode(&self, tp: &TopicPartition, writer: &WriterId) -> Bytes {
        let mut out = codec::begin(MAGIC, LEDGER_VERSION);
        out.put_u32_le(self.incarnation);
        out.put_i32_le(tp.partition());
        codec::put_text(&mut out, tp.topic().as_str());
        codec::put_text(&mut out, writer.as_str());
        out.put_i64_le(self.releasable_through);
        out.put_u16_le(self.segments.len() as u16);
        for segment in &self.segments {
            out.put_u64_le(segment.id);
            out.put_i64_le(segment.first_base);
            out.put_u32_le(segment.first_crc32c);
        }
        codec::seal(out).0
    }

    fn decode(bytes: &[u8], tp: &TopicPartition, writer: &WriterId) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, "TIERDLED", LEDGER_VERSION)?;
        let incarnation = reader.u32("the incarnation")?;
        let partition = reader.u32("the partition")? as i32;
        let topic = reader.text("the topic")?;
        if topic != tp.topic().as_str() || partition != tp.partition() {
            let topic: String = topic.chars().take(64).collect();
            let why = format!("it is of {topic:?} partition {partition}");
            return Err(FormatError::invalid("the partition", why));
        }
        let found = reader.text("the writer")?;
        if found != writer.as_str() {
            let found: String = found.chars().take(64).collect();
            return Err(FormatError::invalid("the writer", format!("it is {found:?}")));
        }
        let releasable_through = reader.i64("releasable_through")?;
        if releasable_through < 0 {
            return Err(FormatError::invalid("releasable_through", "it is below 0"));
        }
        let count = reader.count(RECORDED_MAX, RECORDED_BYTES, "the segments")?;
        let mut segments: Vec<Recorded> = Vec::with_capacity(count);
        for _ in 0..count {
            let recorded = Recorded {
                id: reader.u64("a segment")?,
                first_base: reader.i64("a segment")?,
                first_crc32c: reader.u32("a segment")?,
            };
            if segments.last().is_some_and(|before| before.id >= recorded.id) {
                return Err(FormatError::invalid("the segments", "they do not ascend"));
            }
            segments.push(recorded);
        }
        reader.finish()?;
        Ok(Self { incarnation, releasable_through, segments })
    }
}

impl Catalog {
    /// What this writer remembers of a partition; `None` where that is nothing.
    ///
    /// # Errors
    /// When the store does not answer, or holds something else than was written.
    pub async fn ledger(&self, tp: &TopicPartition) -> Result<Option<Ledger>, CatalogError> {
        let key = self.ledger_key(tp);
        let bytes = match self.store.get(&key, LEDGER_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ledger = Ledger::decode(&bytes, tp, &self.writer);
        ledger.map(Some).map_err(|error| CatalogError::format(&key, error))
    }

    /// Remembers `ledger`, in the place of what was remembered before.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub async fn put_ledger(
        &self,
        tp: &TopicPartition,
        ledger: &Ledger,
    ) -> Result<(), CatalogError> {
        Ok(self.store.put(&self.ledger_key(tp), ledger.encode(tp, &self.writer)).await?)
    }

    /// How far the writer that went farthest let its broker delete of a life of `tp`,
    /// and which writer. Lists what all writers keep; a ledger that cannot be read tells
    /// nothing.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn released(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
    ) -> Result<Option<(WriterId, i64)>, CatalogError> {
        let mut farthest: Option<(WriterId, i64)> = None;
        let mut listed = Box::pin(self.store.list(&keys::writers_folder(&self.cluster)));
        while let Some(object) = listed.try_next().await? {
            let Ok(key) = ObjectKey::decode(&object.name) else { continue };
            let ObjectKey::Ledger { writer, tp: of, .. } = &key else { continue };
            if of != tp {
                continue;
            }
            let bytes = match self.store.get(&key, LEDGER_BYTES_MAX).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let Ok(ledger) = Ledger::decode(&bytes, tp, writer) else { continue };
            let through = ledger.releasable_through;
            let before = farthest.as_ref().map_or(0, |(_, through)| *through);
            if ledger.incarnation == incarnation && through > before {
                farthest = Some((writer.clone(), through));
            }
        }
        Ok(farthest)
    }

    fn ledger_key(&self, tp: &TopicPartition) -> ObjectKey {
        let (cluster, writer) = (self.cluster.clone(), self.writer.clone());
        ObjectKey::Ledger { cluster, writer, tp: tp.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Edit;
    use crate::catalog::testing::{assert_golden, catalog, entry, land, partition};
    use crate::record::TopicName;
    use crate::store::Store;

    fn segment(id: u64, first_base: i64) -> Recorded {
        Recorded { id, first_base, first_crc32c: 0xC0FF_EE00 | id as u32 }
    }

    fn ledger(segments: u64) -> Ledger {
        let segments = (0..segments).map(|id| segment(id, id as i64 * 100)).collect();
        Ledger { incarnation: 2, releasable_through: 4_711, segments }
    }

    fn writer() -> WriterId {
        WriterId::new("host-1").unwrap()
    }

    #[test]
    fn a_ledger_comes_back_and_no_other_bytes_are_one() {
        let tp = partition().tp;
        for ledger in [Ledger::default(), ledger(3)] {
            let bytes = ledger.encode(&tp, &writer());
            assert_eq!(Ledger::decode(&bytes, &tp, &writer()).unwrap(), ledger);
            for cut in 0..bytes.len() {
                assert!(Ledger::decode(&bytes[..cut], &tp, &writer()).is_err(), "cut at {cut}");
            }
            for flip in 0..bytes.len() * 8 {
                let mut bytes = bytes.to_vec();
                bytes[flip / 8] ^= 1 << (flip % 8);
                assert!(Ledger::decode(&bytes, &tp, &writer()).is_err(), "flipped bit {flip}");
            }
            let other = TopicPartition::new(TopicName::new("x").unwrap(), 3).unwrap();
            assert!(Ledger::decode(&bytes, &other, &writer()).is_err());
            assert!(Ledger::decode(&bytes, &tp, &WriterId::new("host-2").unwrap()).is_err());
        }
    }

    #[test]
    fn the_format_is_what_was_released() {
        let tp = partition().tp;
        assert_golden("ledger-v1", &ledger(3).encode(&tp, &writer()));
        assert_golden("ledger-v1-empty", &Ledger::default().encode(&tp, &writer()));
        let full = ledger(RECORDED_MAX as u64).encode(&tp, &writer());
        assert!(full.len() as u64 <= LEDGER_BYTES_MAX, "{} bytes", full.len());
    }

    #[test]
    fn segments_out_of_order_and_marks_below_zero_are_refused() {
        let tp = partition().tp;
        let mut twice = ledger(3);
        twice.segments[2].id = 1;
        assert!(Ledger::decode(&twice.encode(&tp, &writer()), &tp, &writer()).is_err());
        let below = Ledger { releasable_through: -1, ..Ledger::default() };
        assert!(Ledger::decode(&below.encode(&tp, &writer()), &tp, &writer()).is_err());
    }

    #[test]
    fn what_is_gone_stays_recorded_and_what_is_there_replaces_its_id() {
        let mut ledger = Ledger::new(0);
        assert!(!ledger.record(&[]));
        assert!(ledger.record(&[segment(0, 0), segment(1, 100)]));
        assert!(!ledger.record(&[segment(1, 100)]), "segment 0 is gone, and still recorded");
        assert!(!ledger.record(&[]));
        assert!(ledger.record(&[segment(1, 150), segment(2, 200)]));
        assert_eq!(ledger.segments(), [segment(0, 0), segment(1, 150), segment(2, 200)]);
    }

    #[test]
    fn a_full_ledger_forgets_the_greatest_ids_that_are_gone() {
        let mut ledger = ledger(RECORDED_MAX as u64);
        let new = segment(1 << 40, 7);
        assert!(ledger.record(&[new]));
        assert_eq!(ledger.segments().len(), RECORDED_MAX);
        assert_eq!(ledger.segments().last(), Some(&new));
        assert_eq!(ledger.segments()[RECORDED_MAX - 2].id, RECORDED_MAX as u64 - 2);
        assert!(!ledger.record(&[new]), "the same again is no news");
    }

    #[tokio::test]
    async fn each_writer_finds_its_own_ledger_and_the_last_one_it_put() {
        let store = Store::open("memory:").unwrap();
        let (one, two, tp) = (catalog(&store, "one", 1), catalog(&store, "two", 2), partition().tp);
        assert_eq!(one.ledger(&tp).await.unwrap(), None);
        one.put_ledger(&tp, &ledger(3)).await.unwrap();
        one.put_ledger(&tp, &ledger(2)).await.unwrap();
        assert_eq!(one.ledger(&tp).await.unwrap(), Some(ledger(2)));
        assert_eq!(two.ledger(&tp).await.unwrap(), None);
        assert_eq!(one.partitions().await.unwrap(), [], "a ledger is no partition");
        store.put(&two.ledger_key(&tp), Bytes::from_static(b"TIERDLED")).await.unwrap();
        assert_eq!(two.ledger(&tp).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn release_moves_forward_only_and_never_beyond_the_manifest() {
        let store = Store::open("memory:").unwrap();
        let (catalog, of) = (catalog(&store, "one", 1), partition());
        let add = vec![entry(1, 0, 99)];
        land(&store, &add).await;
        let edit = Edit { add, ..Edit::default() };
        let committed = catalog.commit(&of.tp, 0, None, edit).await.unwrap();
        let confirmed = catalog.confirm(committed.snapshot()).await.unwrap();
        let mut ledger = Ledger::new(0);
        for (asked, moves, through) in
            [(0, false, 0), (40, true, 40), (30, false, 40), (500, true, 100), (500, false, 100)]
        {
            assert_eq!(ledger.release(&confirmed, asked), moves, "{asked}");
            assert_eq!(ledger.releasable_through(), through, "{asked}");
        }
        let mut other = Ledger::new(1);
        assert!(!other.release(&confirmed, 50), "a manifest of another life proves nothing");
    }
}
