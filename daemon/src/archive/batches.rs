//! Owns `.tierd/batches`: what every batch of the archive is, without the batch.
//! Read only to prove that a batch of the broker's is committed.
//!
//! ```text
//!  0            8         10     12              16                 20
//!  | "TIERDBAT" | version | zero | chain batches | overlap batches | entries ...
//!  |            | u16     | u16  | u32           | u32             |
//!
//!  entry, the chain's first, in the order of the logs:
//!    zigzag varint   base minus (last of the entry before in the same log, plus 1; 0 at first)
//!    varint          last - base
//!    varint          bytes of the batch * 2, plus 1 when a rank follows
//!    u32 LE          CRC-32C of the whole batch, header and all
//!    varint, varint  segment, position of the batch in the broker's WAL
//!
//!  little-endian; varints are LEB128, at most ten bytes
//! ```
//!
//! A rank stands at every overlap batch and at chain batches that share their
//! base with one, to tell which is newer. Elsewhere it would make the archive
//! depend on how the broker cut its files.

use bytes::{Buf, BufMut, Bytes};

use super::error::{ArchiveError, check_version, cut_short};
use super::{FORMAT_VERSION, WalRank};
use crate::record::OffsetRange;
use crate::record::batch::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES};

const PART: &str = "the list of batches";
const MAGIC: &[u8; 8] = b"TIERDBAT";
/// Least bytes of an entry: three varints and a CRC.
const ENTRY_BYTES_MIN: usize = 7;
/// Longest varint of 64 bits.
const VARINT_BYTES_MAX: u32 = 10;

/// One batch, as the list knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRef {
    /// Base offset.
    pub base: i64,
    /// Last offset.
    pub last: i64,
    /// Bytes on the wire.
    pub len: u32,
    /// CRC-32C over all its bytes (not the one in its header, which leaves the base out).
    pub crc32c: u32,
    /// Where it lay in the broker's WAL, where that matters.
    pub rank: Option<WalRank>,
}

/// The list of all batches of an archive.
#[derive(Clone, Debug)]
pub struct BatchList {
    chain: (u32, Bytes),
    overlaps: (u32, Bytes),
}

impl BatchList {
    /// Reads the file `.tierd/batches` and checks every entry. Allocates nothing.
    ///
    /// # Errors
    /// Names what is wrong, or which later version wrote it.
    pub fn decode(raw: Bytes) -> Result<Self, ArchiveError> {
        let cut = cut_short(PART);
        let wrong = |why: &str| Err(ArchiveError::corrupt(PART, why));
        let mut bytes = raw;
        let mut magic = [0; 8];
        bytes.try_copy_to_slice(&mut magic).map_err(&cut)?;
        if &magic != MAGIC {
            return wrong("it does not begin with TIERDBAT");
        }
        check_version(PART, bytes.try_get_u16_le().map_err(&cut)?)?;
        if bytes.try_get_u16_le().map_err(&cut)? != 0 {
            return wrong("reserved bytes are not zero");
        }
        let chain = bytes.try_get_u32_le().map_err(&cut)?;
        let overlaps = bytes.try_get_u32_le().map_err(&cut)?;
        let most = (bytes.len() / ENTRY_BYTES_MIN) as u64;
        if u64::from(chain) + u64::from(overlaps) > most {
            return wrong("it counts more batches than fit into it");
        }
        let mut walk = BatchRefs::over(chain, bytes.clone());
        let mut before = -1;
        while let Some(batch) = walk.step()? {
            if batch.last <= before {
                return wrong("the chain does not ascend");
            }
            before = batch.last;
        }
        let chain = (chain, bytes.slice(..bytes.len() - walk.bytes.len()));
        let rest = walk.bytes;
        let mut walk = BatchRefs::over(overlaps, rest.clone());
        while let Some(batch) = walk.step()? {
            if batch.rank.is_none() {
                return wrong("an overlap batch has no rank");
            }
        }
        if !walk.bytes.is_empty() {
            return wrong("bytes follow its last entry");
        }
        Ok(Self { chain, overlaps: (overlaps, rest) })
    }

    /// The batches of `.log`, ascending by last offset.
    #[must_use]
    pub fn chain(&self) -> BatchRefs {
        BatchRefs::over(self.chain.0, self.chain.1.clone())
    }

    /// The batches of `.overlap.log`, as they lie. Each has a rank.
    #[must_use]
    pub fn overlaps(&self) -> BatchRefs {
        BatchRefs::over(self.overlaps.0, self.overlaps.1.clone())
    }

    /// How many batches `.log` has.
    #[must_use]
    pub fn chain_len(&self) -> u32 {
        self.chain.0
    }

    /// How many batches `.overlap.log` has.
    #[must_use]
    pub fn overlaps_len(&self) -> u32 {
        self.overlaps.0
    }
}

/// The batches of one of the two logs, in the order of the log.
#[derive(Clone, Debug)]
pub struct BatchRefs {
    left: u32,
    next: i64,
    bytes: Bytes,
}

impl BatchRefs {
    fn over(left: u32, bytes: Bytes) -> Self {
        Self { left, next: 0, bytes }
    }

    fn step(&mut self) -> Result<Option<BatchRef>, ArchiveError> {
        let wrong = |why: &str| ArchiveError::corrupt(PART, why);
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let delta = unzigzag(get_varint(&mut self.bytes)?);
        let span = i64::try_from(get_varint(&mut self.bytes)?).ok();
        let base = self.next.checked_add(delta);
        let last = base.zip(span).and_then(|(base, span)| base.checked_add(span));
        let Some(range) = base.zip(last).and_then(|(base, last)| OffsetRange::new(base, last))
        else {
            return Err(wrong("an entry's offsets are not a range"));
        };
        self.next = range.end();
        let len = get_varint(&mut self.bytes)?;
        let ranked = len & 1 == 1;
        let len = len >> 1;
        if len < BATCH_HEADER_BYTES as u64 || len > BATCH_BYTES_MAX as u64 {
            return Err(wrong("an entry's length is not that of a batch"));
        }
        let crc32c = self.bytes.try_get_u32_le().map_err(cut_short(PART))?;
        let rank = if ranked {
            let segment = get_varint(&mut self.bytes)?;
            Some(WalRank { segment, position: get_varint(&mut self.bytes)? })
        } else {
            None
        };
        let (base, last) = (range.base(), range.last());
        Ok(Some(BatchRef { base, last, len: len as u32, crc32c, rank }))
    }
}

impl Iterator for BatchRefs {
    type Item = BatchRef;

    fn next(&mut self) -> Option<BatchRef> {
        // decode() has walked these very bytes: there is no error left to meet.
        self.step().ok().flatten()
    }
}

/// Writes the list, entry by entry, for whoever knows the counts beforehand.
#[derive(Debug)]
pub(super) struct BatchListEncoder {
    next: i64,
}

impl BatchListEncoder {
    /// Writes what stands in front of the entries.
    pub(super) fn begin(chain: u32, overlaps: u32, out: &mut Vec<u8>) -> Self {
        out.put_slice(MAGIC);
        out.put_u16_le(FORMAT_VERSION);
        out.put_u16_le(0);
        out.put_u32_le(chain);
        out.put_u32_le(overlaps);
        Self { next: 0 }
    }

    /// Goes on to the overlap batches.
    pub(super) fn begin_overlaps(&mut self) {
        self.next = 0;
    }

    /// Writes one entry.
    pub(super) fn put(&mut self, batch: &BatchRef, out: &mut Vec<u8>) {
        put_varint(zigzag(batch.base - self.next), out);
        put_varint((batch.last - batch.base) as u64, out);
        put_varint(u64::from(batch.len) << 1 | u64::from(batch.rank.is_some()), out);
        out.put_u32_le(batch.crc32c);
        if let Some(rank) = batch.rank {
            put_varint(rank.segment, out);
            put_varint(rank.position, out);
        }
        self.next = batch.last + 1;
    }
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get_varint(bytes: &mut Bytes) -> Result<u64, ArchiveError> {
    let mut value: u64 = 0;
    for count in 0..VARINT_BYTES_MAX {
        let byte = bytes.try_get_u8().map_err(cut_short(PART))?;
        let bits = u64::from(byte & 0x7f);
        if count == VARINT_BYTES_MAX - 1 && bits > 1 {
            break;
        }
        value |= bits << (7 * count);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ArchiveError::corrupt(PART, "a number is longer than 64 bits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_rank() -> impl Strategy<Value = WalRank> {
        (any::<u64>(), any::<u64>()).prop_map(|(segment, position)| WalRank { segment, position })
    }

    fn any_ref(rank: impl Strategy<Value = Option<WalRank>>) -> impl Strategy<Value = BatchRef> {
        let len = BATCH_HEADER_BYTES as u32..=BATCH_BYTES_MAX as u32;
        (0..i64::MAX, 0..=i64::from(i32::MAX), len, any::<u32>(), rank).prop_map(
            |(base, span, len, crc32c, rank)| BatchRef {
                base: base.min(i64::MAX - 1 - span),
                last: base.min(i64::MAX - 1 - span) + span,
                len,
                crc32c,
                rank,
            },
        )
    }

    fn any_lists() -> impl Strategy<Value = (Vec<BatchRef>, Vec<BatchRef>)> {
        let chain = prop::collection::vec(any_ref(prop::option::of(any_rank())), 0..40);
        let overlaps = prop::collection::vec(any_ref(any_rank().prop_map(Some)), 0..20);
        (chain, overlaps).prop_map(|(mut chain, overlaps)| {
            chain.sort_by_key(|batch| batch.last);
            chain.dedup_by_key(|batch| batch.last);
            (chain, overlaps)
        })
    }

    fn encode(chain: &[BatchRef], overlaps: &[BatchRef]) -> Vec<u8> {
        let mut out = Vec::new();
        let (chain_len, overlaps_len) = (chain.len() as u32, overlaps.len() as u32);
        let mut encoder = BatchListEncoder::begin(chain_len, overlaps_len, &mut out);
        chain.iter().for_each(|batch| encoder.put(batch, &mut out));
        encoder.begin_overlaps();
        overlaps.iter().for_each(|batch| encoder.put(batch, &mut out));
        out
    }

    proptest! {
        #[test]
        fn a_list_survives_encoding_and_decoding((chain, overlaps) in any_lists()) {
            let list = BatchList::decode(encode(&chain, &overlaps).into()).unwrap();
            prop_assert_eq!(list.chain_len() as usize, chain.len());
            prop_assert_eq!(list.overlaps_len() as usize, overlaps.len());
            prop_assert_eq!(list.chain().collect::<Vec<_>>(), chain);
            prop_assert_eq!(list.overlaps().collect::<Vec<_>>(), overlaps);
        }

        #[test]
        fn every_cut_is_refused((chain, overlaps) in any_lists(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&chain, &overlaps);
            let end = cut.index(bytes.len());
            prop_assert!(BatchList::decode(Bytes::copy_from_slice(&bytes[..end])).is_err());
        }

        #[test]
        fn flipped_bytes_never_panic(
            (chain, overlaps) in any_lists(),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut bytes = encode(&chain, &overlaps);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(list) = BatchList::decode(bytes.into()) {
                prop_assert_eq!(list.chain().count(), list.chain_len() as usize);
            }
        }

        #[test]
        fn numbers_survive(value in any::<u64>(), signed in any::<i64>()) {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            prop_assert_eq!(get_varint(&mut Bytes::from(out)).unwrap(), value);
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
        }
    }

    #[test]
    fn batches_that_follow_each_other_take_nine_bytes() {
        let batch = |n: i64| BatchRef {
            base: n * 100,
            last: n * 100 + 99,
            len: 16_000,
            crc32c: 7,
            rank: None,
        };
        let chain: Vec<_> = (0..1000).map(batch).collect();
        assert_eq!(encode(&chain, &[]).len(), 20 + 1000 * 9);
    }

    #[test]
    fn lying_counts_and_long_numbers_are_refused() {
        let mut counts = encode(&[], &[]);
        counts[12..20].fill(0xff);
        assert!(BatchList::decode(counts.into()).is_err());
        assert!(get_varint(&mut Bytes::from(vec![0xff; 11])).is_err());
        let mut future = encode(&[], &[]);
        future[8] = 2;
        let error = BatchList::decode(future.into()).unwrap_err().to_string();
        assert!(error.contains("version 2 is newer"), "{error}");
    }
}
