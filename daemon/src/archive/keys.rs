//! Owns the key filter: which keys an archive may hold, in about twelve bits a key,
//! so that a search for a key opens only the archives that can hold it.
//!
//! A split block Bloom filter, as Apache Parquet specifies it ("Parquet Bloom
//! Filter"): one block is looked at for a key, eight bits in it.
//!
//! ```text
//!  0            8         10      12       16     24
//!  | "TIERDKEY" | version | zeros | blocks | keys | block, block, ..       little-endian
//!  |            | u16, 1  |       | u32    | u64  | 32 bytes each: eight words u32
//!
//!  h = XXH64 of the key's term in the index, seed 0: up to 1024 bytes the key itself
//!  block: (h >> 32) * blocks >> 32
//!  word i of it: the bit ((h as u32) * SALT[i]) >> 27
//! ```
//!
//! `keys` counts the distinct keys, give or take those that look alike. A null key is
//! none. Keys come one by one and their number is known only at the end, so the
//! filter is first as large as it may become and then folded: with `f` a divisor of
//! its blocks, block `b` falls on block `b / f`, which is where a filter with that
//! many fewer blocks has it. Same keys, same bytes. Two filters cannot be made one,
//! but the terms of two indexes can: that is why terms are hashed and not keys.

use bytes::{Buf, BufMut, Bytes};
use twox_hash::XxHash64;

use super::error::{ArchiveError, check_version, cut_short};
use super::index::{TERM_BYTES_MAX, key_term};

/// Blocks of the largest filter, 6.8 MiB: good for 4.7 million keys, and with more
/// still of use. It has 168 divisors, so that a folded filter is hardly larger than
/// it must be.
const BLOCKS_MAX: usize = 221_760;
/// Bits for each key at least: one look-up in two hundred is wrong then.
const BITS_PER_KEY: usize = 12;
/// With fewer bits for each key a filter rules out too little to be read.
const BITS_PER_KEY_MIN: usize = 5;
const WORDS: usize = 8;
const BLOCK_BYTES: usize = WORDS * 4;
const BLOCK_BITS: usize = BLOCK_BYTES * 8;
const HEADER_BYTES: usize = 24;
/// Bytes of the largest file.
pub(super) const KEYS_BYTES_MAX: usize = HEADER_BYTES + BLOCKS_MAX * BLOCK_BYTES;

const PART: &str = "the key filter";
const MAGIC: &[u8; 8] = b"TIERDKEY";
/// Parquet's salts.
const SALT: [u32; WORDS] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

type Block = [u32; WORDS];

/// The bits of a key in its block.
fn mask(hash: u64) -> Block {
    SALT.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

/// The block of a key among `blocks`.
fn block_of(hash: u64, blocks: usize) -> usize {
    ((hash >> 32) as usize * blocks) >> 32
}

fn hash_of(term: &[u8]) -> u64 {
    XxHash64::oneshot(0, term)
}

/// The hash of a key, by its term.
fn hash_of_key(key: &[u8]) -> u64 {
    // A short key is its own term, without a copy.
    if key.len() <= TERM_BYTES_MAX { hash_of(key) } else { hash_of(&key_term(key)) }
}

/// A filter under way.
#[derive(Debug)]
pub(super) struct KeyFilterBuilder {
    blocks: Vec<Block>,
    keys: usize,
}

impl KeyFilterBuilder {
    pub(super) fn new() -> Self {
        Self { blocks: vec![[0; WORDS]; BLOCKS_MAX], keys: 0 }
    }

    /// Adds a key.
    pub(super) fn add(&mut self, key: &[u8]) {
        self.add_hash(hash_of_key(key));
    }

    /// Adds the key of this term.
    pub(super) fn add_term(&mut self, term: &[u8]) {
        self.add_hash(hash_of(term));
    }

    fn add_hash(&mut self, hash: u64) {
        let block = &mut self.blocks[block_of(hash, BLOCKS_MAX)];
        let mut new = false;
        for (word, bit) in block.iter_mut().zip(mask(hash)) {
            new |= *word & bit == 0;
            *word |= bit;
        }
        self.keys += usize::from(new);
    }

    /// The bytes of the file; `None` when there are more keys than a filter can tell
    /// apart.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        let least = self.keys * BITS_PER_KEY;
        let divides = |factor: &usize| BLOCKS_MAX.is_multiple_of(*factor);
        let enough = |factor: &usize| BLOCKS_MAX / factor * BLOCK_BITS >= least;
        let factor = (1..=BLOCKS_MAX).rev().filter(divides).find(enough).unwrap_or(1);
        if BLOCKS_MAX / factor * BLOCK_BITS < self.keys * BITS_PER_KEY_MIN {
            return None;
        }
        let blocks = BLOCKS_MAX / factor;
        let mut out = Vec::with_capacity(HEADER_BYTES + blocks * BLOCK_BYTES);
        out.put_slice(MAGIC);
        out.put_u16_le(super::FORMAT_VERSION);
        out.put_u16_le(0);
        out.put_u32_le(blocks as u32);
        out.put_u64_le(self.keys as u64);
        for folded in self.blocks.chunks_exact(factor) {
            for word in 0..WORDS {
                out.put_u32_le(folded.iter().fold(0, |all, block| all | block[word]));
            }
        }
        Some(out)
    }
}

/// The keys that an archive may hold.
#[derive(Clone, Debug)]
pub struct KeyFilter {
    blocks: Bytes,
    keys: u64,
}

impl KeyFilter {
    /// Reads the file `.tierd/keys`.
    ///
    /// # Errors
    /// Names what is wrong, or which later version wrote it.
    pub fn decode(mut bytes: Bytes) -> Result<Self, ArchiveError> {
        let cut = cut_short(PART);
        let wrong = |why: &str| Err(ArchiveError::corrupt(PART, why));
        let mut magic = [0; 8];
        bytes.try_copy_to_slice(&mut magic).map_err(&cut)?;
        if &magic != MAGIC {
            return wrong("it does not begin with TIERDKEY");
        }
        check_version(PART, bytes.try_get_u16_le().map_err(&cut)?)?;
        if bytes.try_get_u16_le().map_err(&cut)? != 0 {
            return wrong("reserved bytes are not zero");
        }
        let blocks = bytes.try_get_u32_le().map_err(&cut)? as usize;
        let keys = bytes.try_get_u64_le().map_err(&cut)?;
        if blocks == 0 || blocks > BLOCKS_MAX || bytes.len() != blocks * BLOCK_BYTES {
            return wrong("its length is not that of its blocks");
        }
        Ok(Self { blocks: bytes, keys })
    }

    /// Whether the archive may hold `key`. A no is certain.
    #[must_use]
    pub fn may_hold(&self, key: &[u8]) -> bool {
        let hash = hash_of_key(key);
        let start = block_of(hash, self.blocks.len() / BLOCK_BYTES) * BLOCK_BYTES;
        let mut block = &self.blocks[start..start + BLOCK_BYTES];
        mask(hash).into_iter().all(|bit| block.get_u32_le() & bit != 0)
    }

    /// Distinct keys, about.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Bytes it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(keys: impl Iterator<Item = Vec<u8>>) -> KeyFilter {
        let mut builder = KeyFilterBuilder::new();
        keys.for_each(|key| builder.add(&key));
        KeyFilter::decode(builder.finish().unwrap().into()).unwrap()
    }

    fn key(number: u32) -> Vec<u8> {
        format!("key-{number}").into_bytes()
    }

    #[test]
    fn no_key_is_ever_denied_and_few_others_are_admitted_at_every_size() {
        for count in [0, 1, 20, 100, 5_000, 200_000] {
            let filter = filter((0..count).chain(0..count / 2).map(key));
            assert!((0..count).all(|number| filter.may_hold(&key(number))));
            let looks = 20_000;
            let wrong = (count..count + looks).filter(|&other| filter.may_hold(&key(other)));
            let wrong = wrong.count();
            assert!(wrong <= looks as usize / 80, "{wrong} of {looks} with {count} keys");
            let bits = filter.bytes() * 8;
            let most = u64::from(count) * 16 + BLOCK_BITS as u64;
            assert!(bits <= most, "{bits} bits for {count} keys");
            assert!(filter.keys().abs_diff(u64::from(count)) <= u64::from(count) / 500);
        }
    }

    #[test]
    fn doubled_keys_cost_nothing() {
        let once = filter((0..1_000).map(key));
        let often = filter((0..50).flat_map(|_| (0..1_000).map(key)));
        assert_eq!((once.blocks, once.keys), (often.blocks, often.keys));
    }

    #[test]
    fn a_filter_that_would_rule_out_nothing_is_not_written() {
        let mut builder = KeyFilterBuilder::new();
        builder.keys = BLOCKS_MAX * BLOCK_BITS / BITS_PER_KEY_MIN;
        assert!(builder.finish().is_some());
        let mut builder = KeyFilterBuilder::new();
        builder.keys = BLOCKS_MAX * BLOCK_BITS / BITS_PER_KEY_MIN + 1;
        assert!(builder.finish().is_none());
    }

    /// The example of Parquet's own implementations: what they set is where we look.
    #[test]
    fn the_hash_and_its_bits_are_those_of_parquet() {
        // XXH64 of no bytes with seed 0, from the specification of xxHash.
        assert_eq!(hash_of(b""), 0xef46_db37_51d8_e999);
        let bits = mask(hash_of(b""));
        assert!(bits.iter().all(|word| word.count_ones() == 1));
        assert_eq!(bits[0], 1 << (0x51d8_e999_u32.wrapping_mul(0x47b6_137b) >> 27));
    }

    #[test]
    fn a_filter_made_of_terms_is_the_one_made_of_keys() {
        let keys = || (1000..1050).chain([0, 1]).map(|len| vec![b'k'; len]);
        let mut terms = KeyFilterBuilder::new();
        keys().for_each(|key| terms.add_term(&key_term(&key)));
        let terms = KeyFilter::decode(terms.finish().unwrap().into()).unwrap();
        let of_keys = filter(keys());
        assert_eq!((&terms.blocks, terms.keys), (&of_keys.blocks, of_keys.keys));
        assert!(keys().all(|key| terms.may_hold(&key)));
    }

    #[test]
    fn bytes_that_are_no_filter_are_refused() {
        let good = {
            let mut builder = KeyFilterBuilder::new();
            builder.add(b"a");
            builder.finish().unwrap()
        };
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            KeyFilter::decode(bad.into())
        };
        assert!(with(0, b'x').is_err() && with(10, 1).is_err() && with(12, 2).is_err());
        let newer = with(8, 2).unwrap_err().to_string();
        assert!(newer.contains("version 2 is newer"), "{newer}");
        assert!(KeyFilter::decode(good[..good.len() - 1].to_vec().into()).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = KeyFilter::decode(bytes.into());
        }

        #[test]
        fn folding_moves_a_key_to_where_a_smaller_filter_has_it(hash in any::<u64>()) {
            for factor in [2, 3, 7, 11, 480, BLOCKS_MAX] {
                prop_assert_eq!(
                    block_of(hash, BLOCKS_MAX) / factor,
                    block_of(hash, BLOCKS_MAX / factor)
                );
            }
        }
    }
}
