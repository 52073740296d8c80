//! Owns the five codecs of a records section, both ways.
//!
//! Decompression is bounded and grows with what really comes out: a size that a
//! header declares is compared, never allocated. (zstd maps the window a frame
//! asks for, at most 128 MiB of address space; pages are touched as they fill.)
//! The whole input must be used up: trailing bytes are an error.
//!
//! Compression is deterministic for a given build, so that a batch rebuilt from
//! the same entries has the same bytes and the same CRC.
//!
//! Snappy comes in two framings. Java clients write that of `snappy-java`
//! ("xerial"), librdkafka and most Go clients write one raw block:
//!
//! ```text
//!  | 82 'S' 'N' 'A' 'P' 'P' 'Y' 00 | version | least version | block | block | …
//!  | 8 bytes                       | i32 BE  | able to read, |
//!                                              i32 BE           block: length i32 BE, raw snappy
//! ```
//!
//! The first bytes tell them apart: as a raw block the magic would begin with a
//! copy from before the first byte, which no compressor writes. We write the
//! framing, because every consumer must read what Java producers send.

use std::cell::Cell;
use std::io::{self, Read, Write};

use bytes::Bytes;
use zstd::zstd_safe::DCtx;

use super::batch::{BatchError, Codec};
use super::lz4;

/// Bytes a section may reach on the first allocation, as a multiple of its
/// compressed size: what JSON compresses to, so that most need no second one.
const FIRST_GUESS: usize = 4;
/// Largest zstd window accepted, as a power of two: 128 MiB, what level 22
/// writes; beyond it only `--long` frames go, which no producer sends.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Largest zstd context kept between batches, in bytes: the 2 MiB window of
/// default levels and the context itself.
const ZSTD_CONTEXT_BYTES_MAX: usize = 4 << 20;
/// zstd's own default, and that of the Java client.
const ZSTD_LEVEL: i32 = 3;
/// zlib's own default, and that of the Java client.
const GZIP_LEVEL: u32 = 6;

const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_VERSION: u32 = 1;
const XERIAL_HEADER_BYTES: usize = 16;
/// Raw bytes of one block that we write: the default of `snappy-java`.
const XERIAL_BLOCK_BYTES: usize = 32 << 10;
/// Most bytes that one byte of raw snappy can become: a copy of 64 bytes takes
/// three. A larger size in a block's preamble is a lie.
const SNAPPY_EXPANSION_MAX: usize = 22;

thread_local! {
    /// A zstd context of this thread, kept because making one takes ten times
    /// as long as decoding a small batch. Reset for every batch.
    static ZSTD_CONTEXT: Cell<Option<DCtx<'static>>> = const { Cell::new(None) };
}

/// Why a section does not decompress.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// More comes out than the limit allows.
    TooLarge,
    /// The bytes are not what the codec writes.
    Broken(String),
}

impl Refusal {
    pub(super) fn broken(why: impl ToString) -> Self {
        Self::Broken(why.to_string())
    }

    /// The refusal as an error about the batch at `base_offset`.
    pub(super) fn of_batch(self, base_offset: i64, codec: Codec, limit: usize) -> BatchError {
        match self {
            Self::TooLarge => BatchError::TooLarge { base_offset, limit },
            Self::Broken(why) => BatchError::Decompress { base_offset, codec, why },
        }
    }
}

/// The bytes of `section` without compression, at most `limit` of them.
/// A section that is not compressed is returned as it is, whatever its size:
/// it takes no further memory. An empty section is empty under every codec.
pub(super) fn decompress(codec: Codec, section: &Bytes, limit: usize) -> Result<Bytes, Refusal> {
    if codec == Codec::None || section.is_empty() {
        return Ok(section.clone());
    }
    let mut out = Vec::with_capacity(section.len().saturating_mul(FIRST_GUESS).min(limit));
    match codec {
        Codec::None => {}
        Codec::Gzip => {
            // Several members in a row are one stream, as in Java.
            read_bounded(flate2::bufread::MultiGzDecoder::new(&section[..]), limit, &mut out)?;
        }
        Codec::Snappy => unsnappy(section, limit, &mut out)?,
        Codec::Lz4 => lz4::decompress(section, limit, lz4::HeaderChecksum::Standard, &mut out)?,
        Codec::Zstd => unzstd(section, limit, &mut out)?,
    }
    Ok(Bytes::from(out))
}

/// As [`decompress`], for the wrapper messages of magic 0 and 1: their LZ4
/// headers carry a checksum that early Kafka computed over the wrong bytes.
pub(super) fn decompress_legacy(
    codec: Codec,
    section: &Bytes,
    limit: usize,
) -> Result<Bytes, Refusal> {
    if codec != Codec::Lz4 || section.is_empty() {
        return decompress(codec, section, limit);
    }
    let mut out = Vec::new();
    lz4::decompress(section, limit, lz4::HeaderChecksum::StandardOrKafka, &mut out)?;
    Ok(Bytes::from(out))
}

fn read_bounded(reader: impl Read, limit: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    // One byte more than allowed tells "too large" from "just fits".
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(most).read_to_end(out).map_err(Refusal::broken)?;
    if out.len() > limit { Err(Refusal::TooLarge) } else { Ok(()) }
}

fn unzstd(section: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let Some(mut context) = ZSTD_CONTEXT.take().or_else(DCtx::try_create) else {
        return Err(Refusal::broken("no memory for a zstd context"));
    };
    let mut decoder = zstd::stream::read::Decoder::with_context(section, &mut context);
    let read = decoder
        .window_log_max(ZSTD_WINDOW_LOG_MAX)
        .map_err(Refusal::broken)
        .and_then(|()| read_bounded(decoder, limit, out));
    if context.sizeof() <= ZSTD_CONTEXT_BYTES_MAX {
        ZSTD_CONTEXT.set(Some(context));
    }
    read
}

fn unsnappy(section: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    if !section.starts_with(XERIAL_MAGIC) {
        return unsnappy_block(section, limit, out);
    }
    let (Some(_version), Some(least)) = (be32(section, 8), be32(section, 12)) else {
        return Err(Refusal::broken("snappy-java header is cut short"));
    };
    if least > XERIAL_VERSION {
        return Err(Refusal::broken(format!("snappy-java framing needs version {least}")));
    }
    let mut rest = &section[XERIAL_HEADER_BYTES..];
    while !rest.is_empty() {
        let length = be32(rest, 0).ok_or_else(|| Refusal::broken("block length is cut short"))?;
        let end = usize::try_from(length).ok().and_then(|length| length.checked_add(4));
        let block = end.and_then(|end| rest.get(4..end));
        let block = block.ok_or_else(|| Refusal::broken("snappy block is cut short"))?;
        unsnappy_block(block, limit, out)?;
        rest = &rest[4 + block.len()..];
    }
    Ok(())
}

fn unsnappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let declared = snap::raw::decompress_len(block).map_err(Refusal::broken)?;
    if declared > block.len().saturating_mul(SNAPPY_EXPANSION_MAX) {
        return Err(Refusal::broken(format!(
            "{} bytes of snappy cannot hold the {declared} they declare",
            block.len()
        )));
    }
    if declared > limit.saturating_sub(out.len()) {
        return Err(Refusal::TooLarge);
    }
    let start = out.len();
    out.resize(start + declared, 0);
    let written =
        snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(Refusal::broken)?;
    out.truncate(start + written);
    Ok(())
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|four| u32::from_be_bytes(*four))
}

/// Appends `section` to `out`, compressed.
///
/// # Errors
/// What the codec says; none of them fails on input this room accepts.
pub(super) fn compress(codec: Codec, section: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    match codec {
        Codec::None => out.extend_from_slice(section),
        Codec::Gzip => {
            // GzBuilder's defaults: no name, mtime 0.
            let mut encoder =
                flate2::GzBuilder::new().write(out, flate2::Compression::new(GZIP_LEVEL));
            encoder.write_all(section)?;
            encoder.finish()?;
        }
        Codec::Snappy => {
            out.extend_from_slice(XERIAL_MAGIC);
            out.extend_from_slice(&XERIAL_VERSION.to_be_bytes());
            out.extend_from_slice(&XERIAL_VERSION.to_be_bytes());
            let mut encoder = snap::raw::Encoder::new();
            // An empty section still gets a block: some readers want one.
            let mut rest = section;
            loop {
                let (block, after) = rest.split_at(rest.len().min(XERIAL_BLOCK_BYTES));
                let packed = encoder.compress_vec(block).map_err(io::Error::other)?;
                // A block of 32 KiB packs into little more than itself.
                out.extend_from_slice(&(packed.len() as u32).to_be_bytes());
                out.extend_from_slice(&packed);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
        Codec::Lz4 => lz4::compress(section, out)?,
        Codec::Zstd => {
            out.extend_from_slice(&zstd::bulk::compress(section, ZSTD_LEVEL)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    const COMPRESSED: [Codec; 4] = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    fn packed(codec: Codec, section: &[u8]) -> Bytes {
        let mut out = Vec::new();
        compress(codec, section, &mut out).unwrap();
        Bytes::from(out)
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| b"{\"user\": 17, \"action\": \"buy!\"}"[i * i % 97 % 30]).collect()
    }

    #[test]
    fn what_goes_in_comes_out_up_to_the_limit_and_not_beyond() {
        for codec in COMPRESSED {
            for bytes in [1, 100, XERIAL_BLOCK_BYTES, XERIAL_BLOCK_BYTES + 1, 200_000] {
                let section = text(bytes);
                let packed = packed(codec, &section);
                let same = decompress(codec, &packed, bytes).unwrap();
                assert!(same == section, "{codec}, {bytes} bytes");
                let refusal = decompress(codec, &packed, bytes - 1).unwrap_err();
                assert_eq!(refusal, Refusal::TooLarge, "{codec}, {bytes} bytes");
            }
        }
    }

    #[test]
    fn an_empty_section_is_empty_however_it_is_written() {
        for codec in CODECS {
            assert_eq!(decompress(codec, &packed(codec, b""), 0).unwrap(), Bytes::new());
            assert_eq!(decompress(codec, &Bytes::new(), 0).unwrap(), Bytes::new());
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_goes_off() {
        let zeros = vec![0; 64 << 20];
        for codec in COMPRESSED {
            let bomb = packed(codec, &zeros);
            let refusal = decompress(codec, &bomb, 1 << 20).unwrap_err();
            assert_eq!(refusal, Refusal::TooLarge, "{codec}: {} bytes", bomb.len());
        }
        let raw = Bytes::from(snap::raw::Encoder::new().compress_vec(&zeros).unwrap());
        assert_eq!(decompress(Codec::Snappy, &raw, 1 << 20), Err(Refusal::TooLarge));
    }

    #[test]
    fn a_snappy_block_that_declares_more_than_it_can_hold_is_refused() {
        let lie = Bytes::from_static(b"\xff\xff\xff\xff\x0f\0a");
        let refusal = decompress(Codec::Snappy, &lie, usize::MAX).unwrap_err();
        assert!(matches!(&refusal, Refusal::Broken(why) if why.contains("declare")), "{refusal:?}");
    }

    #[test]
    fn both_snappy_framings_are_read() {
        // Stored by the kafka-protocol crate from an upstream Kafka broker.
        let framed = Bytes::from_static(
            b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x0f\x0d0\x18\0\0\0\x01\x0csdfdsf\0",
        );
        let raw = Bytes::from_static(b"\x0d0\x18\0\0\0\x01\x0csdfdsf\0");
        let section = b"\x18\0\0\0\x01\x0csdfdsf\0";
        assert_eq!(decompress(Codec::Snappy, &framed, 99).unwrap(), &section[..]);
        assert_eq!(decompress(Codec::Snappy, &raw, 99).unwrap(), &section[..]);
        assert_eq!(packed(Codec::Snappy, section), framed);
    }

    #[test]
    fn a_snappy_framing_from_the_future_is_refused() {
        let mut framed = packed(Codec::Snappy, b"abc").to_vec();
        framed[15] = 2;
        let refusal = decompress(Codec::Snappy, &Bytes::from(framed), 99).unwrap_err();
        assert_eq!(refusal, Refusal::broken("snappy-java framing needs version 2"));
    }

    #[test]
    fn a_broken_zstd_section_leaves_nothing_to_the_next() {
        let whole = packed(Codec::Zstd, &text(50_000));
        for end in [5, whole.len() / 2, whole.len() - 1] {
            assert!(decompress(Codec::Zstd, &whole.slice(..end), 50_000).is_err());
            assert!(decompress(Codec::Zstd, &whole, 49_999).is_err());
            assert!(decompress(Codec::Zstd, &whole, 50_000).unwrap() == text(50_000));
        }
    }

    #[test]
    fn streams_in_a_row_are_one_section() {
        for codec in [Codec::Gzip, Codec::Lz4, Codec::Zstd] {
            let both = [packed(codec, b"one "), packed(codec, b"two")].concat();
            assert_eq!(decompress(codec, &Bytes::from(both), 99).unwrap(), "one two", "{codec}");
        }
    }

    #[test]
    fn bytes_after_the_stream_are_refused() {
        for codec in COMPRESSED {
            let mut long = packed(codec, b"abc").to_vec();
            long.extend_from_slice(b"\x01\x02\x03");
            assert!(decompress(codec, &Bytes::from(long), 99).is_err(), "{codec}");
        }
    }

    #[test]
    fn no_cut_and_no_flipped_byte_passes_for_more_than_the_limit_or_panics() {
        let section = text(2000);
        for codec in COMPRESSED {
            let whole = packed(codec, &section);
            for end in 1..whole.len() {
                let cut = decompress(codec, &whole.slice(..end), 4000);
                assert!(cut.is_err() || codec == Codec::Snappy && end == 16, "{codec}, {end}");
            }
            for at in 0..whole.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bad = whole.to_vec();
                    bad[at] ^= flip;
                    if let Ok(out) = decompress(codec, &Bytes::from(bad), 4000) {
                        assert!(out.len() <= 4000, "{codec}, byte {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_same_section_packs_into_the_same_bytes() {
        let section = text(100_000);
        for codec in CODECS {
            assert_eq!(packed(codec, &section), packed(codec, &section), "{codec}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_survive_every_codec(section in prop::collection::vec(any::<u8>(), 0..3000)) {
            for codec in CODECS {
                let same = decompress(codec, &packed(codec, &section), section.len()).unwrap();
                prop_assert_eq!(same, &section[..]);
            }
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            for codec in COMPRESSED {
                for magic in [&b""[..], b"\x1f\x8b\x08\0", XERIAL_MAGIC, b"\x04\x22\x4d\x18\x60\x40\x82",
                    b"\x28\xb5\x2f\xfd"]
                {
                    let bytes = Bytes::from([magic, &noise[..]].concat());
                    if let Ok(out) = decompress(codec, &bytes, 10_000) {
                        prop_assert!(out.len() <= 10_000);
                    }
                }
            }
        }
    }
}
