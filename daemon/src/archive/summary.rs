//! Owns the summary: what the catalog keeps of an archive, so that most
//! questions are answered without opening it.
//!
//! ```text
//!   0  version u8 = 1          4  batches u32        32  base offset i64      80  index bytes u64
//!   1  flags u8: bit 0 tiles   8  overlaps u32       40  last offset i64      88  object length u64
//!   2  index level u8         12  bad CRCs u32       48  least timestamp i64  96  place of the table u64
//!   3  table's encoding u8    16  unindexed u32      56  greatest timestamp  104  its length u32
//!                             20  transactions u32   64  records u64         108  its raw length u32
//!                             24  least epoch i32    72  .log bytes u64      112  its BLAKE3-128
//!                             28  greatest epoch i32                         128  BLAKE3 of the object
//!
//!   160  .overlap.log bytes u64                      168 bytes, little-endian
//! ```

use bytes::{Buf, BufMut};

use super::IndexLevel;
use super::chunk::Encoding;
use super::error::{ArchiveError, check_version, cut_short};
use super::footer::FOOTER_DISTANCE;
use super::toc::TocPlace;
use crate::record::OffsetRange;

/// Bytes of an encoded summary.
pub const SUMMARY_BYTES: usize = 168;
/// [`ArchiveSummary::min_timestamp`] when only decoding every record would tell.
pub const UNKNOWN_TIMESTAMP: i64 = i64::MIN;

const PART: &str = "an archive's summary";
const VERSION: u8 = 1;
const TILES: u8 = 1;

/// What an archive is, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// The offsets it tiles, from the first one it was started for. When it tiles
    /// nothing: from the least base to the greatest last offset of its batches.
    pub range: OffsetRange,
    /// Whether it has a `.log` and so takes part in tiling the partition.
    pub tiles: bool,
    /// Batches in `.log`.
    pub batches: u32,
    /// Records in `.log` by the batches' headers, control records included.
    pub records: u64,
    /// Bytes of `.log`.
    pub log_bytes: u64,
    /// Batches in `.overlap.log`.
    pub overlaps: u32,
    /// Bytes of `.overlap.log`.
    pub overlap_bytes: u64,
    /// Batches, of both logs, whose own CRC-32C is wrong.
    pub bad_crcs: u32,
    /// Batches of `.log` that could not be decoded and so are not in the index.
    /// Always 0 at level `none`.
    pub unindexed: u32,
    /// Least record timestamp in milliseconds: never above the truth, and
    /// [`UNKNOWN_TIMESTAMP`] where the headers alone cannot tell (level `none`,
    /// undecodable batches).
    pub min_timestamp: i64,
    /// Greatest record timestamp in milliseconds.
    pub max_timestamp: i64,
    /// Least and greatest known leader epoch of the batches; -1 where none is known.
    pub leader_epochs: (i32, i32),
    /// What can be searched for.
    pub index_level: IndexLevel,
    /// Bytes of the files of the search index, unpacked.
    pub index_bytes: u64,
    /// What its table of contents lists of transactions, see
    /// [`super::Toc::transactions`]. 0 where no batch has to do with any.
    pub transactions: u32,
    /// Bytes of the object.
    pub length: u64,
    /// BLAKE3 of the object.
    pub digest: [u8; 32],
    /// Where its table of contents lies.
    pub toc: TocPlace,
}

impl ArchiveSummary {
    /// Writes the 168 bytes.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(VERSION);
        out.put_u8(u8::from(self.tiles));
        out.put_u8(self.index_level.code());
        out.put_u8(self.toc.encoding.code());
        out.put_u32_le(self.batches);
        out.put_u32_le(self.overlaps);
        out.put_u32_le(self.bad_crcs);
        out.put_u32_le(self.unindexed);
        out.put_u32_le(self.transactions);
        out.put_i32_le(self.leader_epochs.0);
        out.put_i32_le(self.leader_epochs.1);
        out.put_i64_le(self.range.base());
        out.put_i64_le(self.range.last());
        out.put_i64_le(self.min_timestamp);
        out.put_i64_le(self.max_timestamp);
        out.put_u64_le(self.records);
        out.put_u64_le(self.log_bytes);
        out.put_u64_le(self.index_bytes);
        out.put_u64_le(self.length);
        out.put_u64_le(self.toc.offset);
        out.put_u32_le(self.toc.length);
        out.put_u32_le(self.toc.raw);
        out.put_slice(&self.toc.digest);
        out.put_slice(&self.digest);
        out.put_u64_le(self.overlap_bytes);
    }

    /// Reads a summary from the front of `bytes`, which may go on after it.
    ///
    /// # Errors
    /// Names what is wrong, or which later version wrote it.
    pub fn decode(bytes: &mut impl Buf) -> Result<Self, ArchiveError> {
        let cut = cut_short(PART);
        let wrong = |why: &str| Err(ArchiveError::corrupt(PART, why));
        if bytes.remaining() < SUMMARY_BYTES {
            return wrong("cut short");
        }
        check_version(PART, u16::from(bytes.try_get_u8().map_err(&cut)?))?;
        let flags = bytes.try_get_u8().map_err(&cut)?;
        if flags & !TILES != 0 {
            return wrong("a reserved flag is set");
        }
        let index_level = IndexLevel::from_code(PART, bytes.try_get_u8().map_err(&cut)?)?;
        let encoding = Encoding::from_code(PART, bytes.try_get_u8().map_err(&cut)?)?;
        let batches = bytes.try_get_u32_le().map_err(&cut)?;
        let overlaps = bytes.try_get_u32_le().map_err(&cut)?;
        let bad_crcs = bytes.try_get_u32_le().map_err(&cut)?;
        let unindexed = bytes.try_get_u32_le().map_err(&cut)?;
        let transactions = bytes.try_get_u32_le().map_err(&cut)?;
        let leader_epochs =
            (bytes.try_get_i32_le().map_err(&cut)?, bytes.try_get_i32_le().map_err(&cut)?);
        let base = bytes.try_get_i64_le().map_err(&cut)?;
        let last = bytes.try_get_i64_le().map_err(&cut)?;
        let Some(range) = OffsetRange::new(base, last) else {
            return wrong("its offsets are not a range");
        };
        let min_timestamp = bytes.try_get_i64_le().map_err(&cut)?;
        let max_timestamp = bytes.try_get_i64_le().map_err(&cut)?;
        let records = bytes.try_get_u64_le().map_err(&cut)?;
        let log_bytes = bytes.try_get_u64_le().map_err(&cut)?;
        let index_bytes = bytes.try_get_u64_le().map_err(&cut)?;
        let length = bytes.try_get_u64_le().map_err(&cut)?;
        let mut toc = TocPlace {
            offset: bytes.try_get_u64_le().map_err(&cut)?,
            length: bytes.try_get_u32_le().map_err(&cut)?,
            raw: bytes.try_get_u32_le().map_err(&cut)?,
            encoding,
            digest: [0; 16],
        };
        bytes.try_copy_to_slice(&mut toc.digest).map_err(&cut)?;
        let mut digest = [0; 32];
        bytes.try_copy_to_slice(&mut digest).map_err(&cut)?;
        let overlap_bytes = bytes.try_get_u64_le().map_err(&cut)?;
        toc.check(PART, length.saturating_sub(FOOTER_DISTANCE))?;
        let tiles = flags & TILES != 0;
        if tiles != (batches > 0) || (batches == 0 && overlaps == 0) || unindexed > batches {
            return wrong("its counts contradict each other");
        }
        if min_timestamp > max_timestamp || leader_epochs.0 > leader_epochs.1 {
            return wrong("its times or epochs are not a range");
        }
        Ok(Self {
            range,
            tiles,
            batches,
            records,
            log_bytes,
            overlaps,
            overlap_bytes,
            bad_crcs,
            unindexed,
            min_timestamp,
            max_timestamp,
            leader_epochs,
            index_level,
            index_bytes,
            transactions,
            length,
            digest,
            toc,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_summary() -> impl Strategy<Value = ArchiveSummary> {
        let offsets = (0..i64::MAX / 2, 0..i64::from(i32::MAX), any::<bool>(), any::<bool>());
        let counts = (1..u32::MAX, any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>());
        let times = (any::<i64>(), 0..i64::MAX, -1..100, 0..100);
        let toc = (1..1u32 << 20, 1..1u32 << 20, 0..1u64 << 40, any::<[u8; 16]>());
        (offsets, counts, times, toc, any::<[u8; 32]>()).prop_map(
            |((base, span, tiles, keys), counts, times, toc, digest)| ArchiveSummary {
                range: OffsetRange::new(base, base + span).unwrap(),
                tiles,
                batches: if tiles { counts.0 } else { 0 },
                records: counts.3,
                log_bytes: counts.4,
                overlaps: if tiles { counts.1 } else { counts.0 },
                overlap_bytes: counts.4 / 2,
                bad_crcs: counts.2,
                unindexed: if tiles { counts.0 / 2 } else { 0 },
                min_timestamp: times.0.saturating_sub(times.1),
                max_timestamp: times.0,
                leader_epochs: (times.2, times.2 + times.3),
                index_level: if keys { IndexLevel::Keys } else { IndexLevel::None },
                index_bytes: counts.3 / 3,
                transactions: counts.2,
                length: toc.2 + u64::from(toc.0) + FOOTER_DISTANCE,
                digest,
                toc: TocPlace {
                    offset: toc.2,
                    length: toc.0,
                    raw: toc.0 + toc.1,
                    encoding: if keys { Encoding::Deflate } else { Encoding::Stored },
                    digest: toc.3,
                },
            },
        )
    }

    proptest! {
        #[test]
        fn a_summary_survives_encoding_and_decoding(summary in any_summary()) {
            let mut bytes = Vec::new();
            summary.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), SUMMARY_BYTES);
            prop_assert!(ArchiveSummary::decode(&mut &bytes[..SUMMARY_BYTES - 1]).is_err());
            bytes.extend_from_slice(b"rest");
            let mut rest = bytes.as_slice();
            prop_assert_eq!(ArchiveSummary::decode(&mut rest).unwrap(), summary);
            prop_assert_eq!(rest, b"rest");
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), SUMMARY_BYTES)) {
            bytes[..4].copy_from_slice(&[1, 1, 1, 1]);
            let _ = ArchiveSummary::decode(&mut bytes.as_slice());
        }
    }

    #[test]
    fn a_future_version_is_refused_by_name() {
        let bytes = [2; SUMMARY_BYTES];
        let error = ArchiveSummary::decode(&mut bytes.as_slice()).unwrap_err().to_string();
        assert!(error.contains("archive format version 2 is newer"), "{error}");
    }
}
