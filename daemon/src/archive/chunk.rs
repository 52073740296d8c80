//! Owns one chunk: its 64 bytes in the table of contents, and the way from the
//! bytes in the object back to the bytes of the file.
//!
//! ```text
//!  0       8         12      16      20         21        24      32     40          48
//!  | place | packed  | raw   | CRC-32| encoding | zeros   | first | last | greatest  | BLAKE3-128
//!  | u64   | u32     | u32   | of raw| u8       | 3 bytes | i64   | i64  | timestamp | of packed
//!
//!  little-endian; encoding: 0 stored blocks, 1 deflate ended by a full flush
//!  first, last: in the logs the least base offset and the greatest last offset of
//!  the chunk's batches; elsewhere the positions of its first and last byte in the file
//!  greatest timestamp: milliseconds, of the batches; elsewhere the least i64
//! ```
//!
//! A chunk is read in three steps, each of which can fail: the digest proves that
//! the bytes are those that were written, the encoding is undone within the
//! length told, the CRC-32 proves that the writer packed what it read.

use bytes::{Buf, BufMut, Bytes};
use flate2::{Decompress, FlushDecompress, Status};

use super::error::{ArchiveError, cut_short};
use super::layout;
use crate::record::batch::BATCH_BYTES_MAX;
use crate::record::{BatchHeader, CanonicalRecord};

/// Bytes of a chunk in the table of contents.
pub(super) const CHUNK_ENTRY_BYTES: usize = 64;
/// Largest chunk, raw: a batch is never cut, and this is the largest batch.
pub const CHUNK_RAW_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// The greatest timestamp of a chunk that holds no batches.
pub const NO_TIMESTAMP: i64 = i64::MIN;

const PART: &str = "a chunk of the table of contents";

/// The first 16 bytes of a BLAKE3 hash.
pub type Digest128 = [u8; 16];

/// The first 16 bytes of the BLAKE3 hash of `bytes`.
#[must_use]
pub fn digest128(bytes: &[u8]) -> Digest128 {
    truncate(&blake3::hash(bytes))
}

/// The first 16 bytes of a BLAKE3 hash.
pub(super) fn truncate(hash: &blake3::Hash) -> Digest128 {
    let [digest @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = *hash.as_bytes();
    digest
}

/// How bytes lie in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Stored deflate blocks: a copy with five bytes in front of every 65,535.
    Stored,
    /// Deflate with a window of its own, ended by a full flush.
    Deflate,
}

impl Encoding {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Stored => 0,
            Self::Deflate => 1,
        }
    }

    pub(super) fn from_code(part: &'static str, code: u8) -> Result<Self, ArchiveError> {
        match code {
            0 => Ok(Self::Stored),
            1 => Ok(Self::Deflate),
            _ => Err(ArchiveError::Unknown { part, what: format!("encoding {code}") }),
        }
    }

    /// Undoes the encoding of bytes that hold exactly `raw` bytes.
    pub(super) fn undo(self, packed: &Bytes, raw: u32) -> Result<Bytes, ArchiveError> {
        match self {
            Self::Stored => layout::unstore(packed, raw as usize),
            Self::Deflate => inflate(packed, raw as usize),
        }
    }
}

/// One piece of a file that can be read alone. See the module's drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Where it begins in the object, in bytes.
    pub place: u64,
    /// Bytes it takes in the object.
    pub packed: u32,
    /// Bytes of the file it holds; never 0.
    pub raw: u32,
    /// CRC-32 (that of gzip) of the raw bytes.
    pub crc32: u32,
    /// How it lies.
    pub encoding: Encoding,
    /// Logs: least base offset. Other files: position of the first byte.
    pub first: i64,
    /// Logs: greatest last offset. Other files: position of the last byte.
    pub last: i64,
    /// Logs: greatest timestamp in milliseconds. Other files: [`NO_TIMESTAMP`].
    pub max_timestamp: i64,
    /// BLAKE3-128 of the packed bytes.
    pub digest: Digest128,
}

impl Chunk {
    /// Writes the 64 bytes.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u64_le(self.place);
        out.put_u32_le(self.packed);
        out.put_u32_le(self.raw);
        out.put_u32_le(self.crc32);
        out.put_u8(self.encoding.code());
        out.put_slice(&[0; 3]);
        out.put_i64_le(self.first);
        out.put_i64_le(self.last);
        out.put_i64_le(self.max_timestamp);
        out.put_slice(&self.digest);
    }

    /// Reads the 64 bytes and checks what can be checked from them alone.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ArchiveError> {
        let cut = cut_short(PART);
        let wrong = |why: &str| Err(ArchiveError::corrupt(PART, why));
        let place = bytes.try_get_u64_le().map_err(&cut)?;
        let packed = bytes.try_get_u32_le().map_err(&cut)?;
        let raw = bytes.try_get_u32_le().map_err(&cut)?;
        let crc32 = bytes.try_get_u32_le().map_err(&cut)?;
        let encoding = Encoding::from_code(PART, bytes.try_get_u8().map_err(&cut)?)?;
        let mut zeros = [0; 3];
        bytes.try_copy_to_slice(&mut zeros).map_err(&cut)?;
        let first = bytes.try_get_i64_le().map_err(&cut)?;
        let last = bytes.try_get_i64_le().map_err(&cut)?;
        let max_timestamp = bytes.try_get_i64_le().map_err(&cut)?;
        let mut digest = [0; 16];
        bytes.try_copy_to_slice(&mut digest).map_err(&cut)?;
        if !bytes.is_empty() || zeros != [0; 3] {
            return wrong("reserved bytes are not zero");
        }
        if raw == 0 || raw as usize > CHUNK_RAW_BYTES_MAX {
            return wrong("its raw length is out of bounds");
        }
        // Deflate is kept only where it is smaller than stored blocks.
        if packed == 0 || packed as usize > layout::stored_len(raw as usize) {
            return wrong("its packed length is out of bounds");
        }
        if place.checked_add(u64::from(packed)).is_none() {
            return wrong("its place is out of bounds");
        }
        if first < 0 || last < first {
            return wrong("its first and last are not a range");
        }
        Ok(Self { place, packed, raw, crc32, encoding, first, last, max_timestamp, digest })
    }

    /// The first byte of the object after the chunk.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.place + u64::from(self.packed)
    }

    /// Verifies the bytes of the chunk as they lie in the object and gives back
    /// the bytes of the file. Allocates `raw` bytes at most, none for a chunk
    /// that lies in one stored block.
    ///
    /// # Errors
    /// When digest, encoding or CRC-32 say that these are not the bytes written.
    pub fn unpack(&self, packed: Bytes) -> Result<Bytes, ArchiveError> {
        let wrong = |why: &str| ArchiveError::corrupt(format!("the chunk at {}", self.place), why);
        if packed.len() != self.packed as usize {
            return Err(wrong("the bytes read are not as many as it has"));
        }
        if digest128(&packed) != self.digest {
            return Err(wrong("its BLAKE3 digest differs"));
        }
        let raw = self.encoding.undo(&packed, self.raw)?;
        if crc32fast::hash(&raw) != self.crc32 {
            return Err(wrong("its CRC-32 differs"));
        }
        Ok(raw)
    }
}

/// Deflate makes no more of a byte than this many: 258 bytes from two bits.
const INFLATE_RATIO_MAX: usize = 1032;

/// Inflates a piece that ends with a full flush into exactly `raw` bytes.
fn inflate(packed: &[u8], raw: usize) -> Result<Bytes, ArchiveError> {
    let wrong = |why: &str| ArchiveError::corrupt("deflated chunk", why);
    let refused = |error: flate2::DecompressError| wrong(&error.to_string());
    // A length that lies must not reserve memory.
    if raw / INFLATE_RATIO_MAX > packed.len() {
        return Err(wrong("it cannot hold as many bytes as it says"));
    }
    let mut inflate = Decompress::new(false);
    // One byte of room more shows a piece that holds more than it says.
    let mut out = vec![0; raw + 1];
    let status = inflate.decompress(packed, &mut out, FlushDecompress::None).map_err(refused)?;
    if status == Status::StreamEnd {
        return Err(wrong("it ends the whole stream"));
    }
    if inflate.total_out() != raw as u64 || inflate.total_in() != packed.len() as u64 {
        return Err(wrong("it does not hold as many bytes as it says"));
    }
    // An empty last block must be all that is missing: the piece ended on a flush.
    let end = inflate.decompress(&[0x03, 0x00], &mut out[raw..], FlushDecompress::Finish);
    if end.map_err(refused)? != Status::StreamEnd || inflate.total_out() != raw as u64 {
        return Err(wrong("it does not end with a flush"));
    }
    out.truncate(raw);
    Ok(Bytes::from(out))
}

/// Walks the batches of an unpacked chunk of a log. Stops after the first error.
pub fn batches_in(raw_chunk: Bytes) -> Batches {
    Batches { rest: raw_chunk }
}

/// The batches of an unpacked chunk, as slices of it.
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
}

impl Iterator for Batches {
    type Item = Result<CanonicalRecord, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut rest = std::mem::take(&mut self.rest);
        let corrupt = |why: String| ArchiveError::corrupt("a batch of a log chunk", why);
        let next = (|| {
            let header = BatchHeader::decode(&rest).map_err(|error| corrupt(error.to_string()))?;
            if header.wire_len() > rest.len() {
                return Err(corrupt(format!("offset {} is cut short", header.base_offset)));
            }
            let wire = rest.split_to(header.wire_len());
            CanonicalRecord::from_wire(wire).map_err(|error| corrupt(error.to_string()))
        })();
        if next.is_ok() {
            self.rest = rest;
        }
        Some(next)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any chunk that decode accepts, from `place` on.
    pub(in super::super) fn any_chunk(place: u64) -> impl Strategy<Value = Chunk> {
        (1u32..1 << 20, any::<u32>(), any::<bool>(), 0..i64::MAX / 2, 0..i64::MAX / 2, any::<i64>())
            .prop_flat_map(move |(raw, crc32, stored, first, span, max_timestamp)| {
                let most = layout::stored_len(raw as usize) as u32;
                (1..=most, any::<Digest128>()).prop_map(move |(packed, digest)| Chunk {
                    place,
                    packed,
                    raw,
                    crc32,
                    encoding: if stored { Encoding::Stored } else { Encoding::Deflate },
                    first,
                    last: first + span,
                    max_timestamp,
                    digest,
                })
            })
    }

    fn bytes_of(chunk: &Chunk) -> Vec<u8> {
        let mut bytes = Vec::new();
        chunk.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn a_chunk_survives_encoding_and_decoding(chunk in any_chunk(77)) {
            let bytes = bytes_of(&chunk);
            prop_assert_eq!(bytes.len(), CHUNK_ENTRY_BYTES);
            prop_assert_eq!(Chunk::decode(&bytes).unwrap(), chunk);
            prop_assert!(Chunk::decode(&bytes[..63]).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(chunk) = Chunk::decode(&bytes) {
                prop_assert_eq!(bytes_of(&chunk), bytes.clone());
            }
            let _ = inflate(&bytes, 40);
            for batch in batches_in(Bytes::from(bytes)) {
                let _ = batch;
            }
        }
    }

    #[test]
    fn lying_fields_are_refused() {
        let good = Chunk {
            place: 10,
            packed: 10,
            raw: 10,
            crc32: 0,
            encoding: Encoding::Deflate,
            first: 0,
            last: 9,
            max_timestamp: NO_TIMESTAMP,
            digest: [0; 16],
        };
        Chunk::decode(&bytes_of(&good)).unwrap();
        for bad in [
            Chunk { raw: 0, ..good },
            Chunk { raw: u32::MAX, ..good },
            Chunk { packed: 0, ..good },
            Chunk { packed: 16, ..good },
            Chunk { place: u64::MAX, ..good },
            Chunk { first: -1, ..good },
            Chunk { last: -1, ..good },
        ] {
            assert!(Chunk::decode(&bytes_of(&bad)).is_err(), "{bad:?}");
        }
        let mut encoding = bytes_of(&good);
        encoding[20] = 2;
        let error = Chunk::decode(&encoding).unwrap_err().to_string();
        assert!(error.contains("encoding 2"), "{error}");
        let mut reserved = bytes_of(&good);
        reserved[21] = 1;
        assert!(Chunk::decode(&reserved).is_err());
    }

    #[test]
    fn a_bomb_is_stopped_at_the_length_told() {
        let mut bomb = vec![0; 1 << 16];
        let mut deflate = flate2::Compress::new(flate2::Compression::new(9), false);
        let zeros = vec![0; 32 << 20];
        deflate.compress(&zeros, &mut bomb, flate2::FlushCompress::Full).unwrap();
        bomb.truncate(deflate.total_out() as usize);
        assert!(inflate(&bomb, 1000).is_err());
        assert!(inflate(&bomb, (32 << 20) + 1).is_err());
        assert_eq!(inflate(&bomb, 32 << 20).unwrap().len(), 32 << 20);
    }

    #[test]
    fn a_piece_without_a_flush_at_its_end_is_refused() {
        let mut out = vec![0; 100];
        let mut deflate = flate2::Compress::new(flate2::Compression::new(6), false);
        deflate.compress(b"hello", &mut out, flate2::FlushCompress::Finish).unwrap();
        out.truncate(deflate.total_out() as usize);
        assert!(inflate(&out, 5).is_err(), "a finished stream is not a chunk");
        assert!(inflate(&[], 5).is_err());
        assert!(inflate(&[], 0).is_ok(), "zero bytes need no piece");
    }
}
