//! Owns the choice between storing and deflating a chunk, and the deflating.
//!
//! A chunk is deflated when that saves a sixteenth. To find out costs little
//! where it will not: of a chunk above 64 KiB a sample is deflated first. The
//! rule looks at the bytes alone, so equal chunks always pack equally.

use flate2::{Compress, Compression, FlushCompress};

use super::chunk::{Digest128, Encoding, truncate};
use super::error::ArchiveError;
use super::layout;

/// Deflating must save at least one byte in this many, or the chunk is stored:
/// reading it then needs no inflating.
const WORTHWHILE: usize = 16;
/// The sample must save one byte in this many: short pieces deflate a little
/// worse than the whole.
const SAMPLE_WORTHWHILE: usize = 32;
/// Chunks up to this many bytes are deflated without a sample.
const SAMPLED_FROM: usize = 64 << 10;
/// The sample is this many pieces of this many bytes, evenly spread: 16 KiB, a
/// sixteenth of a usual chunk.
const SAMPLE_PIECES: usize = 4;
const SAMPLE_PIECE_BYTES: usize = 4 << 10;
/// Larger chunks (one huge batch) are stored: deflating needs a buffer of the
/// same size beside the batch, and memory for one archive is bounded.
const DEFLATED_UP_TO: usize = 16 << 20;

/// What is known of a chunk's bytes beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing: look.
    Unknown,
    /// The producer compressed them already.
    Compressed,
}

/// Packs chunks, one at a time, with one buffer and one deflate state.
#[derive(Debug)]
pub(super) struct Packer {
    level: Compression,
    deflate: Compress,
    buffer: Vec<u8>,
    sample: Vec<u8>,
}

/// A chunk on its way into the object.
#[derive(Debug)]
pub(super) struct Packed<'a> {
    pub(super) encoding: Encoding,
    pub(super) crc32: u32,
    bytes: &'a [u8],
}

impl Packed<'_> {
    /// Gives the bytes, as they will lie, to `emit`; returns their number and digest.
    ///
    /// # Errors
    /// Those of `emit`.
    pub(super) fn write(
        &self,
        mut emit: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(u32, Digest128), ArchiveError> {
        let mut hasher = blake3::Hasher::new();
        let mut count = 0;
        let mut emit = |piece: &[u8]| {
            hasher.update(piece);
            count += piece.len();
            emit(piece)
        };
        match self.encoding {
            Encoding::Stored => layout::store(self.bytes, &mut emit)?,
            Encoding::Deflate => emit(self.bytes)?,
        }
        Ok((count as u32, truncate(&hasher.finalize())))
    }
}

impl Packer {
    /// A packer that deflates at `level`, 1 to 9.
    pub(super) fn new(level: u8) -> Self {
        let level = Compression::new(u32::from(level.clamp(1, 9)));
        let deflate = Compress::new(level, false);
        Self { level, deflate, buffer: Vec::new(), sample: Vec::new() }
    }

    /// Chooses how `raw` will lie.
    pub(super) fn pack<'a>(&'a mut self, raw: &'a [u8], content: Content) -> Packed<'a> {
        let crc32 = crc32fast::hash(raw);
        let worthwhile = content == Content::Unknown && self.is_worthwhile(raw);
        if worthwhile && let Some(len) = self.deflate(raw, raw.len() - raw.len() / WORTHWHILE) {
            return Packed { encoding: Encoding::Deflate, crc32, bytes: &self.buffer[..len] };
        }
        Packed { encoding: Encoding::Stored, crc32, bytes: raw }
    }

    /// Whether `raw` looks as if deflating would save enough.
    fn is_worthwhile(&mut self, raw: &[u8]) -> bool {
        if raw.len() <= SAMPLED_FROM {
            return true;
        }
        if raw.len() > DEFLATED_UP_TO {
            return false;
        }
        let mut sample = std::mem::take(&mut self.sample);
        sample.clear();
        let stride = raw.len() / SAMPLE_PIECES;
        for piece in raw.chunks_exact(stride).take(SAMPLE_PIECES) {
            sample.extend_from_slice(&piece[..SAMPLE_PIECE_BYTES]);
        }
        let fits = self.deflate(&sample, sample.len() - sample.len() / SAMPLE_WORTHWHILE).is_some();
        self.sample = sample;
        fits
    }

    /// Deflates `raw` into the front of the buffer, ended by a full flush, and
    /// returns the length; `None` when it is not below `limit`.
    fn deflate(&mut self, raw: &[u8], limit: usize) -> Option<usize> {
        if self.buffer.len() < limit {
            self.buffer.resize(limit, 0);
        }
        self.deflate.reset();
        let out = &mut self.buffer[..limit];
        self.deflate.compress(raw, out, FlushCompress::Full).ok()?;
        let len = self.deflate.total_out() as usize;
        // A full buffer may hold only a part: the flush is complete when room is left.
        if self.deflate.total_in() == raw.len() as u64 && len < limit {
            return Some(len);
        }
        // A reset of zlib-rs 0.6.8 forgets what did not fit and keeps its place in the
        // buffer for it, which shrinks with each: a few make it panic.
        self.deflate = Compress::new(self.level, false);
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::archive::chunk::{Chunk, NO_TIMESTAMP};

    /// Bytes that nothing compresses, from a small generator of our own.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn text(len: usize) -> Vec<u8> {
        b"{\"customer\":\"c-00042\",\"amount\":12}\n".iter().copied().cycle().take(len).collect()
    }

    fn pack(packer: &mut Packer, raw: &[u8], content: Content) -> (Chunk, Bytes) {
        let packed = packer.pack(raw, content);
        let mut bytes = Vec::new();
        let (len, digest) = packed
            .write(|piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        let chunk = Chunk {
            place: 0,
            packed: len,
            raw: raw.len() as u32,
            crc32: packed.crc32,
            encoding: packed.encoding,
            first: 0,
            last: raw.len() as i64 - 1,
            max_timestamp: NO_TIMESTAMP,
            digest,
        };
        (chunk, Bytes::from(bytes))
    }

    #[test]
    fn noise_after_noise_is_stored_at_every_level() {
        for level in 1..=9 {
            let mut packer = Packer::new(level);
            for number in 0..64_u32 {
                for len in [4 << 10, 64 << 10, 256 << 10] {
                    let mut raw = vec![0; len];
                    let mut hasher = blake3::Hasher::new();
                    hasher.update(&number.to_le_bytes()).finalize_xof().fill(&mut raw);
                    let packed = packer.pack(&raw, Content::Unknown);
                    assert_eq!(packed.encoding, Encoding::Stored, "level {level}");
                }
            }
        }
    }

    #[test]
    fn text_is_deflated_and_noise_is_stored() {
        let mut packer = Packer::new(3);
        for len in [100, 5000, 70_000, 300_000] {
            let (chunk, _) = pack(&mut packer, &text(len), Content::Unknown);
            assert_eq!(chunk.encoding, Encoding::Deflate, "{len}");
            assert!(chunk.packed < chunk.raw / 2 + 50);
            let (chunk, _) = pack(&mut packer, &noise(len), Content::Unknown);
            assert_eq!(chunk.encoding, Encoding::Stored, "{len}");
        }
        let (chunk, _) = pack(&mut packer, &text(100_000), Content::Compressed);
        assert_eq!(chunk.encoding, Encoding::Stored, "what is known is not tried");
    }

    #[test]
    fn a_huge_chunk_is_stored_whatever_it_holds() {
        let (chunk, packed) = pack(&mut Packer::new(3), &text(17 << 20), Content::Unknown);
        assert_eq!(chunk.encoding, Encoding::Stored);
        assert_eq!(chunk.unpack(packed).unwrap(), text(17 << 20));
    }

    #[test]
    fn a_chunk_does_not_depend_on_the_one_before() {
        let mut used = Packer::new(3);
        pack(&mut used, &text(200_000), Content::Unknown);
        pack(&mut used, &noise(200_000), Content::Unknown);
        let first = pack(&mut Packer::new(3), &text(100_000), Content::Unknown);
        assert_eq!(pack(&mut used, &text(100_000), Content::Unknown), first);
    }

    #[test]
    fn an_altered_chunk_is_refused() {
        let (chunk, packed) = pack(&mut Packer::new(3), &text(1000), Content::Unknown);
        for at in 0..packed.len() {
            let mut bad = packed.to_vec();
            bad[at] ^= 1;
            assert!(chunk.unpack(Bytes::from(bad)).is_err(), "byte {at}");
        }
        assert!(chunk.unpack(packed.slice(1..)).is_err());
        assert!(Chunk { crc32: !chunk.crc32, ..chunk }.unpack(packed.clone()).is_err());
        assert!(Chunk { raw: chunk.raw - 1, ..chunk }.unpack(packed.clone()).is_err());
        assert!(Chunk { raw: chunk.raw + 1, ..chunk }.unpack(packed.clone()).is_err());
    }

    proptest! {
        #[test]
        fn every_chunk_unpacks_alone(
            words in prop::collection::vec("[a-f]{1,9}", 1..2000),
            noisy in 0usize..5000,
            level in 1u8..=9,
        ) {
            let mut raw = words.concat().into_bytes();
            raw.extend(noise(noisy));
            let (chunk, packed) = pack(&mut Packer::new(level), &raw, Content::Unknown);
            prop_assert_eq!(chunk.unpack(packed).unwrap(), raw);
        }
    }
}
