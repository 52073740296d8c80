//! Owns the LZ4 frame around a records section.
//!
//! Source: LZ4 Frame Format 1.6.4; KIP-57 for the checksum. Little-endian.
//!
//! ```text
//!  | magic       | FLG | BD | content size | HC | block | block | … | 00 00 00 00 | content |
//!  | 04 22 4d 18 | u8  | u8 | u64 if FLG 3 | u8 |       |       |   | end mark    | u32     |
//!
//!  FLG  bits 7-6 version = 01 | 5 blocks are independent | 4 block checksums
//!       | 3 content size | 2 content checksum | 1 reserved = 0 | 0 dictionary id
//!  BD   bits 6-4 largest block: 4 = 64 KiB, 5 = 256 KiB, 6 = 1 MiB, 7 = 4 MiB | others 0
//!  HC   second byte of XXH32 over FLG to before HC
//!       (Kafka before magic 2: over the magic as well)
//!  block: u32 length, top bit = stored as it is; that many bytes; u32 XXH32 if FLG 4
//! ```
//!
//! Frames are walked here and not by a general reader for three reasons: such
//! readers take a frame without its end mark for a whole one, set aside what the
//! block size claims, and refuse the checksum of old Kafka clients.
//!
//! Does not own: the block format (`lz4_flex`).

use std::io::{self, Write};

use lz4_flex::block::{DecompressError, decompress_into, decompress_into_with_dict};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use twox_hash::XxHash32;

use super::compression::Refusal;

const MAGIC: u32 = 0x184d_2204;
const VERSION_MASK: u8 = 0xc0;
const VERSION: u8 = 0x40;
const INDEPENDENT: u8 = 0x20;
const BLOCK_CHECKSUM: u8 = 0x10;
const CONTENT_SIZE: u8 = 0x08;
const CONTENT_CHECKSUM: u8 = 0x04;
const RESERVED: u8 = 0x02;
const DICTIONARY: u8 = 0x01;
const STORED: u32 = 0x8000_0000;
/// How far back a block may refer to the ones before it.
const WINDOW_BYTES: usize = 64 << 10;
/// Most bytes that one byte of an LZ4 block can become: a length byte adds 255.
const EXPANSION_MAX: usize = 255;
/// What a block of one sequence yields beyond that.
const EXPANSION_EXTRA: usize = 64;

/// Which checksum of the frame header is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderChecksum {
    /// That of the LZ4 specification.
    Standard,
    /// Also the one that Kafka clients computed before magic 2.
    StandardOrKafka,
}

/// Appends what the frames in `input` hold to `out`, which must be empty.
pub(super) fn decompress(
    input: &[u8],
    limit: usize,
    checksum: HeaderChecksum,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let mut input = Input(input);
    while !input.0.is_empty() {
        frame(&mut input, limit, checksum, out)?;
    }
    Ok(())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Refusal> {
        let Some((head, rest)) = self.0.split_at_checked(n) else {
            return Err(Refusal::broken(format!("lz4 frame is cut short at the {what}")));
        };
        self.0 = rest;
        Ok(head)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Refusal> {
        Ok(self.take(4, what)?.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }
}

fn frame(
    input: &mut Input<'_>,
    limit: usize,
    checksum: HeaderChecksum,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let frame = input.0;
    if input.u32("magic")? != MAGIC {
        return Err(Refusal::broken("not an lz4 frame"));
    }
    let descriptor = input.take(2, "descriptor")?;
    let (flags, block_descriptor) = (descriptor[0], descriptor[1]);
    if flags & VERSION_MASK != VERSION || flags & (RESERVED | DICTIONARY) != 0 {
        return Err(Refusal::broken(format!("lz4 frame flags {flags:02x} are not understood")));
    }
    let block_max = match block_descriptor {
        0x40 => 64 << 10,
        0x50 => 256 << 10,
        0x60 => 1 << 20,
        0x70 => 4 << 20,
        other => {
            return Err(Refusal::broken(format!("lz4 block descriptor {other:02x} is unknown")));
        }
    };
    let content_size = if flags & CONTENT_SIZE == 0 {
        None
    } else {
        let size = input.take(8, "content size")?;
        Some(size.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let covered = frame.len() - input.0.len();
    let stored = input.take(1, "header checksum")?[0];
    let is = |from: usize| (xxh32(&frame[from..covered]) >> 8) as u8 == stored;
    let right = match checksum {
        HeaderChecksum::Standard => is(4),
        HeaderChecksum::StandardOrKafka => is(4) || is(0),
    };
    if !right {
        return Err(Refusal::broken("lz4 header checksum is wrong"));
    }

    let start = out.len();
    loop {
        let length = input.u32("block length")?;
        if length == 0 {
            break;
        }
        let bytes = (length & !STORED) as usize;
        if bytes > block_max {
            return Err(Refusal::broken(format!("lz4 block has {bytes} bytes")));
        }
        let block = input.take(bytes, "block")?;
        if flags & BLOCK_CHECKSUM != 0 && input.u32("block checksum")? != xxh32(block) {
            return Err(Refusal::broken("lz4 block checksum is wrong"));
        }
        if length & STORED == 0 {
            let window = if flags & INDEPENDENT == 0 { start } else { out.len() };
            unpack(block, block_max, window, limit, out)?;
        } else if block.len() > limit.saturating_sub(out.len()) {
            return Err(Refusal::TooLarge);
        } else {
            out.extend_from_slice(block);
        }
    }
    let content = &out[start..];
    if content_size.is_some_and(|size| u64::try_from(content.len()) != Ok(size)) {
        return Err(Refusal::broken("lz4 content size is wrong"));
    }
    if flags & CONTENT_CHECKSUM != 0 && input.u32("content checksum")? != xxh32(content) {
        return Err(Refusal::broken("lz4 content checksum is wrong"));
    }
    Ok(())
}

/// Appends one compressed block; it may refer to `out[window..]`.
fn unpack(
    block: &[u8],
    block_max: usize,
    window: usize,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let start = out.len();
    let possible = block.len().saturating_mul(EXPANSION_MAX).saturating_add(EXPANSION_EXTRA);
    let allowed = limit.saturating_sub(start);
    let room = block_max.min(possible).min(allowed);
    out.resize(start + room, 0);
    let (before, target) = out.split_at_mut(start);
    let window = &before[window.max(start.saturating_sub(WINDOW_BYTES))..];
    let unpacked = if window.is_empty() {
        decompress_into(block, target)
    } else {
        decompress_into_with_dict(block, target, window)
    };
    match unpacked {
        Ok(written) => {
            out.truncate(start + written);
            Ok(())
        }
        Err(DecompressError::OutputTooSmall { .. }) if room == allowed => Err(Refusal::TooLarge),
        Err(why) => Err(Refusal::broken(why)),
    }
}

fn xxh32(bytes: &[u8]) -> u32 {
    XxHash32::oneshot(0, bytes)
}

/// Appends `section` as one frame: independent blocks of 64 KiB without
/// checksums, what Java clients write and the only kind they read.
pub(super) fn compress(section: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(section)?;
    encoder.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(input: &[u8], limit: usize, checksum: HeaderChecksum) -> Result<Vec<u8>, Refusal> {
        let mut out = Vec::new();
        decompress(input, limit, checksum, &mut out).map(|()| out)
    }

    fn standard(input: &[u8]) -> Result<Vec<u8>, Refusal> {
        unpacked(input, 1 << 20, HeaderChecksum::Standard)
    }

    fn broken(input: &[u8], with: &str) {
        let refusal = standard(input).unwrap_err();
        assert!(matches!(&refusal, Refusal::Broken(why) if why.contains(with)), "{refusal:?}");
    }

    fn text(bytes: usize) -> Vec<u8> {
        b"an offset is a promise; ".iter().copied().cycle().take(bytes).collect()
    }

    fn frame_with(info: FrameInfo, section: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(section).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_option_of_a_frame_is_read() {
        let section = text(400_000);
        for block_mode in [BlockMode::Independent, BlockMode::Linked] {
            for block_size in [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max4MB] {
                for checksums in [false, true] {
                    let info = FrameInfo::new()
                        .block_mode(block_mode)
                        .block_size(block_size)
                        .block_checksums(checksums)
                        .content_checksum(checksums)
                        .content_size(checksums.then_some(400_000));
                    let frame = frame_with(info, &section);
                    assert!(standard(&frame).unwrap() == section, "{block_mode:?} {block_size:?}");
                    let last = frame.len() - 1;
                    assert!(standard(&frame[..last]).is_err());
                }
            }
        }
    }

    #[test]
    fn what_we_write_is_what_java_reads() {
        for bytes in [0, 1, 70_000] {
            let mut frame = Vec::new();
            compress(&text(bytes), &mut frame).unwrap();
            // Version 01, independent blocks, no checksums, 64 KiB; the mark at the end.
            assert_eq!(frame[..7], [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82]);
            assert_eq!(frame[frame.len() - 4..], [0; 4]);
            assert_eq!(standard(&frame).unwrap(), text(bytes));
        }
    }

    #[test]
    fn frames_in_a_row_are_one_section_and_anything_else_is_refused() {
        let mut frames = Vec::new();
        compress(b"one ", &mut frames).unwrap();
        compress(b"two", &mut frames).unwrap();
        assert_eq!(standard(&frames).unwrap(), b"one two");
        frames.extend_from_slice(b"tail");
        broken(&frames, "not an lz4 frame");
        frames.truncate(frames.len() - 2);
        broken(&frames, "cut short at the magic");
    }

    #[test]
    fn a_frame_that_a_field_spoils_is_refused_by_name() {
        let mut good = Vec::new();
        compress(&text(1000), &mut good).unwrap();
        let spoiled = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            bad
        };
        broken(&spoiled(4, 0xa0), "flags");
        broken(&spoiled(4, 0x61), "flags");
        broken(&spoiled(5, 0x30), "block descriptor 30");
        broken(&spoiled(6, 0x83), "header checksum");
        broken(&spoiled(9, 0x7f), "bytes");
        broken(&good[..good.len() - 4], "cut short at the block length");

        let info = FrameInfo::new().content_checksum(true).block_checksums(true);
        let mut bad = frame_with(info.content_size(Some(3)), b"abc");
        let last = bad.len() - 1;
        bad[last] ^= 1;
        broken(&bad, "content checksum");
        bad[last - 8] ^= 1;
        broken(&bad, "block checksum");
    }

    #[test]
    fn the_checksum_of_old_kafka_clients_counts_for_old_messages_only() {
        let mut frame = Vec::new();
        compress(b"abc", &mut frame).unwrap();
        frame[6] = (xxh32(&frame[..6]) >> 8) as u8;
        broken(&frame, "header checksum");
        let legacy = unpacked(&frame, 3, HeaderChecksum::StandardOrKafka);
        assert_eq!(legacy.unwrap(), b"abc");
    }

    #[test]
    fn a_claim_of_four_mebibytes_reserves_none_of_them() {
        let mut frame = frame_with(FrameInfo::new().block_size(BlockSize::Max4MB), b"abc");
        let mut out = Vec::new();
        decompress(&frame, 1 << 30, HeaderChecksum::Standard, &mut out).unwrap();
        assert!(out.capacity() < 4096, "{}", out.capacity());
        frame.truncate(12);
        let mut out = Vec::new();
        assert!(decompress(&frame, 1 << 30, HeaderChecksum::Standard, &mut out).is_err());
        assert_eq!(out.capacity(), 0);
    }
}
