//! Owns a page: an immutable object of at most 16 KiB that holds older entries
//! and gaps (a leaf) or references to pages (an inner page), and the reference
//! to one.
//!
//! ```text
//! page                               reference to a page, 141 bytes
//!  0   8  "TIERDPAG"                   0   8  manifest it was made for
//!  8   2  version, 1                   8   1  height: 0 is a leaf
//! 10   1  height: 0 is a leaf          9   4  length of the page
//! 11   8  manifest it was made for    13  16  digest of the page, its last 16 bytes
//! 19   4  incarnation                 29  16  first and last offset anything inside reaches
//! 23   4  partition                   45  16  first offset tiled, first offset no longer tiled;
//! 27   1  length of the topic, n              both 0 where nothing inside tiles
//! 28   n  topic                       61  16  least and greatest timestamp, ms;
//!         leaf:                               reversed extremes where it has no entry
//!      2  number of entries           77   8  entries
//!      .  entries                     85   8  gaps
//!      2  number of gaps              93   8  batches served
//!      .  gaps                       101   8  records served
//!         inner page:                109   8  bytes of batches served
//!      2  number of references       117   8  batches beneath the served log
//!      .  references, one height     125   8  entries of lists of transactions
//!     16  BLAKE3-128 of the rest     133   8  bytes of archives
//! ```

use bytes::{BufMut, Bytes};

use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::store::{ObjectKey, PartitionKey};

use super::codec::{self, FormatError, Reader};
use super::entry::{ENTRY_BYTES, GAP_BYTES, Items};
use super::tiling::{self, Broken};

/// Largest page, in bytes.
pub const PAGE_BYTES_MAX: usize = 16 << 10;

/// Version of pages written here.
pub const PAGE_VERSION: u16 = 1;

/// Greatest height of a page. With 60 references a page it is never reached.
pub(super) const HEIGHT_MAX: u8 = 8;

/// Bytes of a reference.
pub(super) const REF_BYTES: usize = 141;

const MAGIC: [u8; 8] = *b"TIERDPAG";

/// Sums over everything below a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries.
    pub entries: u64,
    /// Gaps.
    pub gaps: u64,
    /// Batches served.
    pub batches: u64,
    /// Records served.
    pub records: u64,
    /// Bytes of batches served.
    pub log_bytes: u64,
    /// Batches beneath the served log.
    pub overlaps: u64,
    /// What tables of contents list of transactions.
    pub transactions: u64,
    /// Bytes of archives.
    pub object_bytes: u64,
}

/// A reference to a page, with what is needed to pass it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// The manifest the page was made for.
    pub built_for: u64,
    /// 0 is a leaf.
    pub height: u8,
    /// Length of the page in bytes.
    pub length: u32,
    /// Digest of the page.
    pub digest: [u8; 16],
    /// First and last offset that anything inside reaches.
    pub reach: OffsetRange,
    /// Offsets tiled inside: first, and first no longer tiled; both 0 where none.
    pub tiled: (i64, i64),
    /// Least and greatest timestamp of the entries in milliseconds.
    pub times: (i64, i64),
    /// Sums over everything below.
    pub totals: Totals,
}

/// The times of a page without an entry.
const NO_TIMES: (i64, i64) = (i64::MAX, i64::MIN);

impl PageRef {
    /// The name of the page's object.
    #[must_use]
    pub fn key(&self, of: &PartitionKey) -> ObjectKey {
        let (of, number) = (of.clone(), self.built_for);
        ObjectKey::Page { of, number, range: self.reach, digest: self.digest }
    }

    /// The offsets it tiles, if it tiles any.
    pub(super) fn tile(&self) -> Option<OffsetRange> {
        OffsetRange::new(self.tiled.0, self.tiled.1 - 1)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.built_for);
        out.put_u8(self.height);
        out.put_u32_le(self.length);
        out.put_slice(&self.digest);
        for offset in [self.reach.base(), self.reach.last(), self.tiled.0, self.tiled.1] {
            out.put_i64_le(offset);
        }
        out.put_i64_le(self.times.0);
        out.put_i64_le(self.times.1);
        let sums = &self.totals;
        for sum in [sums.entries, sums.gaps, sums.batches, sums.records] {
            out.put_u64_le(sum);
        }
        for sum in [sums.log_bytes, sums.overlaps, sums.transactions, sums.object_bytes] {
            out.put_u64_le(sum);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        const WHAT: &str = "a reference to a page";
        let page = Self {
            built_for: reader.u64(WHAT)?,
            height: reader.u8(WHAT)?,
            length: reader.u32(WHAT)?,
            digest: reader.array(WHAT)?,
            reach: reader.range(WHAT)?,
            tiled: (reader.i64(WHAT)?, reader.i64(WHAT)?),
            times: (reader.i64(WHAT)?, reader.i64(WHAT)?),
            totals: Totals {
                entries: reader.u64(WHAT)?,
                gaps: reader.u64(WHAT)?,
                batches: reader.u64(WHAT)?,
                records: reader.u64(WHAT)?,
                log_bytes: reader.u64(WHAT)?,
                overlaps: reader.u64(WHAT)?,
                transactions: reader.u64(WHAT)?,
                object_bytes: reader.u64(WHAT)?,
            },
        };
        let refuse = |why: &str| Err(FormatError::invalid(WHAT, why));
        let (from, end) = page.tiled;
        let tiles = from >= page.reach.base() && from < end && end <= page.reach.end();
        if page.built_for == 0 {
            return refuse("manifests are numbered from 1");
        }
        if page.height > HEIGHT_MAX {
            return refuse("no tree is so high");
        }
        if page.length as usize > PAGE_BYTES_MAX {
            return refuse("no page is so long");
        }
        if !tiles && page.tiled != (0, 0) {
            return refuse("the offsets it tiles are not among those it reaches");
        }
        if page.totals.entries == 0 && (page.totals.gaps == 0 || page.times != NO_TIMES) {
            return refuse("it counts no entries");
        }
        if page.totals.entries > 0 && page.times.0 > page.times.1 {
            return refuse("its times are no range");
        }
        Ok(page)
    }

    pub(super) fn encode_all(refs: &[Self], out: &mut Vec<u8>) {
        out.put_u16_le(refs.len() as u16);
        refs.iter().for_each(|page| page.encode(out));
    }

    /// Decodes references of one height, in order.
    pub(super) fn decode_all(
        reader: &mut Reader<'_>,
        max: usize,
    ) -> Result<Vec<Self>, FormatError> {
        const WHAT: &str = "the references";
        let count = reader.count(max, REF_BYTES, WHAT)?;
        let refs: Vec<_> = (0..count).map(|_| Self::decode(reader)).collect::<Result<_, _>>()?;
        if refs.windows(2).any(|two| two[0].height != two[1].height) {
            return Err(FormatError::invalid(WHAT, "their heights differ"));
        }
        if !refs.is_sorted_by_key(|page| page.reach.base()) {
            return Err(FormatError::invalid(WHAT, "they are not in order"));
        }
        Ok(refs)
    }
}

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Entries and gaps.
    Leaf(Items),
    /// References to pages one lower, at least one.
    Inner(Vec<PageRef>),
}

/// A page, encoded, with its name and the reference to it.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) key: ObjectKey,
    pub(super) page: Page,
    pub(super) at: PageRef,
    pub(super) bytes: Bytes,
}

impl Page {
    /// Bytes of a page of `of` that holds nothing.
    pub(super) fn overhead(of: &PartitionKey) -> usize {
        28 + of.tp.topic().as_str().len() + 2 + codec::TRAILER_BYTES
    }

    /// 0 is a leaf.
    #[must_use]
    pub fn height(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner(refs) => refs.first().map_or(0, |page| page.height) + 1,
        }
    }

    /// Encodes the page for manifest `number`. `None` where it holds nothing.
    pub(super) fn make(self, of: &PartitionKey, number: u64) -> Option<Made> {
        let (reach, tiled, times, totals) = match &self {
            Self::Leaf(items) => bounds_of_items(items)?,
            Self::Inner(refs) => bounds_of_refs(refs)?,
        };
        let height = self.height();
        let mut out = codec::begin(MAGIC, PAGE_VERSION);
        out.put_u8(height);
        out.put_u64_le(number);
        put_identity(&mut out, of);
        match &self {
            Self::Leaf(items) => items.encode(&mut out),
            Self::Inner(refs) => PageRef::encode_all(refs, &mut out),
        }
        let (bytes, digest) = codec::seal(out);
        let length = bytes.len() as u32;
        let at = PageRef { built_for: number, height, length, digest, reach, tiled, times, totals };
        Some(Made { key: at.key(of), page: self, at, bytes })
    }

    /// Decodes a page of `of` and checks it against the reference that led to it.
    ///
    /// # Errors
    /// When the bytes are not that page.
    pub fn decode(bytes: &[u8], of: &PartitionKey, at: &PageRef) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, "TIERDPAG", PAGE_VERSION)?;
        let trailer = bytes.len() - codec::TRAILER_BYTES;
        if bytes.len() != at.length as usize || bytes[trailer..] != at.digest {
            return Err(FormatError::Digest);
        }
        let height = reader.u8("the height")?;
        let number = reader.u64("the manifest's number")?;
        check_identity(&mut reader, of)?;
        let most = PAGE_BYTES_MAX;
        let page = if height == 0 {
            Self::Leaf(Items::decode(&mut reader, of, most / ENTRY_BYTES, most / GAP_BYTES)?)
        } else {
            Self::Inner(PageRef::decode_all(&mut reader, most / REF_BYTES)?)
        };
        reader.finish()?;
        let found = match &page {
            Self::Leaf(items) => bounds_of_items(items),
            Self::Inner(refs) => bounds_of_refs(refs),
        };
        if found != Some((at.reach, at.tiled, at.times, at.totals))
            || (height, number) != (at.height, at.built_for)
            || page.height() != height
        {
            return Err(FormatError::invalid("the page", "its reference describes another one"));
        }
        Ok(page)
    }

    /// Checks that what tiles inside does so without overlap, and without a hole
    /// from `log_start` on.
    pub(super) fn check_tiling(&self, log_start: i64) -> Result<(), Broken> {
        let tiles = match self {
            Self::Leaf(items) => items.tiles(),
            Self::Inner(refs) => refs.iter().filter_map(PageRef::tile).collect(),
        };
        tiling::check(&tiles, log_start)
    }
}

/// Whose object it is: incarnation, partition, topic. Not the cluster, which is
/// the name of a folder and may change.
pub(super) fn put_identity(out: &mut Vec<u8>, of: &PartitionKey) {
    out.put_u32_le(of.incarnation);
    out.put_i32_le(of.tp.partition());
    codec::put_text(out, of.tp.topic().as_str());
}

/// Reads whose object it is and refuses another's.
pub(super) fn check_identity(
    reader: &mut Reader<'_>,
    of: &PartitionKey,
) -> Result<(), FormatError> {
    let incarnation = reader.u32("the incarnation")?;
    let partition = reader.u32("the partition")?;
    let topic = reader.text("the topic")?;
    let tp = i32::try_from(partition)
        .ok()
        .and_then(|partition| TopicPartition::new(TopicName::new(topic).ok()?, partition).ok());
    if tp.as_ref() == Some(&of.tp) && incarnation == of.incarnation {
        return Ok(());
    }
    let topic: String = topic.chars().take(64).collect();
    let why = format!("it is of {topic}-{partition}, incarnation {incarnation}");
    Err(FormatError::invalid("the partition", why))
}

type Bounds = (OffsetRange, (i64, i64), (i64, i64), Totals);

impl Totals {
    /// The sums over `items`.
    pub(super) fn of_items(items: &Items) -> Self {
        let sums = Self { gaps: items.gaps.len() as u64, ..Self::default() };
        items.entries.iter().fold(sums, |sums, entry| {
            let summary = &entry.summary;
            sums.plus(Self {
                entries: 1,
                gaps: 0,
                batches: summary.batches.into(),
                records: summary.records,
                log_bytes: summary.log_bytes,
                overlaps: summary.overlaps.into(),
                transactions: summary.transactions.into(),
                object_bytes: summary.length,
            })
        })
    }

    /// The sums over `refs`.
    pub(super) fn of_refs(refs: &[PageRef]) -> Self {
        refs.iter().fold(Self::default(), |sums, page| sums.plus(page.totals))
    }

    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        let add = u64::saturating_add;
        Self {
            entries: add(self.entries, other.entries),
            gaps: add(self.gaps, other.gaps),
            batches: add(self.batches, other.batches),
            records: add(self.records, other.records),
            log_bytes: add(self.log_bytes, other.log_bytes),
            overlaps: add(self.overlaps, other.overlaps),
            transactions: add(self.transactions, other.transactions),
            object_bytes: add(self.object_bytes, other.object_bytes),
        }
    }
}

fn bounds_of_items(items: &Items) -> Option<Bounds> {
    let entries = || items.entries.iter().map(|entry| &entry.summary);
    let ranges = entries().map(|summary| summary.range).chain(items.gaps.iter().map(|g| g.range));
    let reach = hull(ranges)?;
    let totals = Totals::of_items(items);
    let times = entries().fold(NO_TIMES, |times, summary| {
        (times.0.min(summary.min_timestamp), times.1.max(summary.max_timestamp))
    });
    let tiled = hull(items.tiles().into_iter()).map_or((0, 0), |all| (all.base(), all.end()));
    Some((reach, tiled, times, totals))
}

fn bounds_of_refs(refs: &[PageRef]) -> Option<Bounds> {
    let reach = hull(refs.iter().map(|page| page.reach))?;
    let totals = Totals::of_refs(refs);
    let times = refs
        .iter()
        .fold(NO_TIMES, |times, page| (times.0.min(page.times.0), times.1.max(page.times.1)));
    let tiled = hull(refs.iter().filter_map(PageRef::tile));
    Some((reach, tiled.map_or((0, 0), |all| (all.base(), all.end())), times, totals))
}

fn hull(ranges: impl Iterator<Item = OffsetRange>) -> Option<OffsetRange> {
    ranges
        .map(|range| (range.base(), range.last()))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
        .and_then(|(base, last)| OffsetRange::new(base, last))
}

#[cfg(test)]
mod tests;
