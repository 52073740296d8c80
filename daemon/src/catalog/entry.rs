//! Owns what a manifest says of one archive and of one gap, and their bytes.
//!
//! ```text
//! entry                             gap
//!  0   8  manifest it was made for   0   1  kind: 1 before first, 2 missing, 3 damaged
//!  8   2  length of the summary, n   1   8  first offset
//! 10   n  the archive's summary      9   8  last offset
//! ```

use std::fmt;

use bytes::BufMut;

use crate::archive::{ArchiveError, ArchiveIdentity, ArchiveSummary, SUMMARY_BYTES};
use crate::record::OffsetRange;
use crate::store::{ClusterName, ObjectKey, PartitionKey};

use super::codec::{FormatError, Reader};

/// Bytes of an entry in this version.
pub(super) const ENTRY_BYTES: usize = 10 + SUMMARY_BYTES;

/// Least bytes of an entry in any version.
const ENTRY_BYTES_MIN: usize = 10;

/// Bytes of a gap.
pub(super) const GAP_BYTES: usize = 17;

/// One committed archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveEntry {
    of: PartitionKey,
    /// The number of the manifest the archive was made for: only that one may be
    /// the first to reference it.
    pub built_for: u64,
    /// What the archive holds and where in it.
    pub summary: ArchiveSummary,
}

impl ArchiveEntry {
    /// The entry of an archive of `identity` made for manifest `built_for`.
    #[must_use]
    pub fn new(
        cluster: &ClusterName,
        identity: &ArchiveIdentity,
        built_for: u64,
        summary: ArchiveSummary,
    ) -> Self {
        let (cluster, tp) = (cluster.clone(), identity.tp.clone());
        let of = PartitionKey { cluster, tp, incarnation: identity.incarnation };
        Self { of, built_for, summary }
    }

    /// The partition it belongs to.
    #[must_use]
    pub fn of(&self) -> &PartitionKey {
        &self.of
    }

    /// The name of the archive's object.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.summary.digest[..16]);
        let (of, range) = (self.of.clone(), self.summary.range);
        ObjectKey::Archive { of, number: self.built_for, range, digest }
    }

    /// The same archive under the name it takes when copied for manifest `number`.
    #[must_use]
    pub fn rebased(&self, number: u64) -> Self {
        Self { built_for: number, ..self.clone() }
    }

    /// The offsets it tiles, if it tiles any.
    #[must_use]
    pub fn tile(&self) -> Option<OffsetRange> {
        self.summary.tiles.then_some(self.summary.range)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.built_for);
        let at = out.len();
        out.put_u16_le(0);
        self.summary.encode(out);
        let len = (out.len() - at - 2) as u16;
        out[at..at + 2].copy_from_slice(&len.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>, of: &PartitionKey) -> Result<Self, FormatError> {
        let built_for = reader.u64("an entry")?;
        if built_for == 0 {
            return Err(FormatError::invalid("an entry", "manifests are numbered from 1"));
        }
        let len = usize::from(reader.u16("an entry")?);
        let mut bytes = reader.bytes(len, "an archive's summary")?;
        let summary = ArchiveSummary::decode(&mut bytes).map_err(|error| match error {
            ArchiveError::Newer { found, .. } => {
                FormatError::Future { found, known: crate::archive::FORMAT_VERSION }
            }
            other => FormatError::invalid("an archive's summary", other.to_string()),
        })?;
        if !bytes.is_empty() {
            return Err(FormatError::Surplus(bytes.len()));
        }
        Ok(Self { of: of.clone(), built_for, summary })
    }
}

/// Why offsets are in no archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GapKind {
    /// The log that was found began after them.
    BeforeFirst,
    /// The broker's log has nothing there.
    Missing,
    /// The broker's log is damaged there.
    Damaged,
}

impl GapKind {
    /// One word, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeFirst => "before-first",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::BeforeFirst => 1,
            Self::Missing => 2,
            Self::Damaged => 3,
        }
    }
}

impl fmt::Display for GapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Offsets that no archive will serve, declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gap {
    /// The offsets.
    pub range: OffsetRange,
    /// Why.
    pub kind: GapKind,
}

impl Gap {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.kind.code());
        out.put_i64_le(self.range.base());
        out.put_i64_le(self.range.last());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let kind = match reader.u8("a gap")? {
            1 => GapKind::BeforeFirst,
            2 => GapKind::Missing,
            3 => GapKind::Damaged,
            other => return Err(FormatError::invalid("a gap's kind", format!("{other}"))),
        };
        Ok(Self { range: reader.range("a gap")?, kind })
    }
}

/// Entries and gaps of one stretch, each in order: the content of a leaf, and of
/// a root beside its pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    /// By first offset; of one offset, what tiles before what does not.
    pub entries: Vec<ArchiveEntry>,
    /// By first offset.
    pub gaps: Vec<Gap>,
}

/// What entries are sorted by: first offset, what tiles before what does not,
/// then the order of making. No two entries of a partition share it.
pub(super) fn order(entry: &ArchiveEntry) -> (i64, bool, u64, &[u8; 32]) {
    let summary = &entry.summary;
    (summary.range.base(), !summary.tiles, entry.built_for, &summary.digest)
}

impl Items {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.gaps.is_empty()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16_le(self.entries.len() as u16);
        self.entries.iter().for_each(|entry| entry.encode(out));
        out.put_u16_le(self.gaps.len() as u16);
        self.gaps.iter().for_each(|gap| gap.encode(out));
    }

    pub(super) fn decode(
        reader: &mut Reader<'_>,
        of: &PartitionKey,
        entries_max: usize,
        gaps_max: usize,
    ) -> Result<Self, FormatError> {
        let count = reader.count(entries_max, ENTRY_BYTES_MIN, "the entries")?;
        let entries: Vec<_> =
            (0..count).map(|_| ArchiveEntry::decode(reader, of)).collect::<Result<_, _>>()?;
        let count = reader.count(gaps_max, GAP_BYTES, "the gaps")?;
        let gaps: Vec<_> = (0..count).map(|_| Gap::decode(reader)).collect::<Result<_, _>>()?;
        if !entries.is_sorted_by(|a, b| order(a) < order(b)) {
            return Err(FormatError::invalid("the entries", "they are not in order"));
        }
        if !gaps.is_sorted_by(|a, b| a.range.last() < b.range.base()) {
            return Err(FormatError::invalid("the gaps", "they are not in order"));
        }
        Ok(Self { entries, gaps })
    }

    /// Everything that tiles, ascending.
    pub(super) fn tiles(&self) -> Vec<OffsetRange> {
        let entries = self.entries.iter().filter_map(ArchiveEntry::tile);
        let mut tiles: Vec<_> = entries.chain(self.gaps.iter().map(|gap| gap.range)).collect();
        tiles.sort_unstable();
        tiles
    }
}
