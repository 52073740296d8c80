//! Bytes as a segment of the broker's log.

use std::fs;

use tempfile::TempDir;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::wal::{SegmentFile, SegmentReader, SegmentScan, WalFormat, scan};

use crate::chronik::{FrameCrc, FrameParts, Style, sample_batch, seal};

/// Where a version 2 frame begins.
const FRAME_START: [u8; 3] = [0x7e, 0xca, 2];
/// From the first byte of a frame to the one behind its checksum.
const FRAME_HEAD: usize = 12;

/// Scans the segment as it is, then with the checksums of its frames mended, so
/// that what lies inside the frames is looked at.
pub fn wal_frames(bytes: &[u8]) {
    check(bytes);
    if let Some(mended) = mend(bytes) {
        check(&mended);
    }
}

fn check(bytes: &[u8]) {
    thread_local! {
        static FOLDER: TempDir = tempfile::tempdir().expect("a folder");
    }
    let path = FOLDER.with(|folder| folder.path().join("wal_0_0.log"));
    fs::write(&path, bytes).expect("a file");
    let len = bytes.len() as u64;
    let file = SegmentFile { id: 0, path, len, modified_ms: 0, created_ms: None, inode: 0 };
    let tp = partition();
    let found = scan(WalFormat::Chronik, &tp, &file).expect("any bytes can be scanned");
    tiles(&found, len);
    let mut reader = SegmentReader::open(WalFormat::Chronik, &tp, &file).expect("it is there");
    for frame in &found.frames {
        let batch = reader.batch(frame).expect("what was scanned is read");
        let wire = batch.to_kafka_batch().expect("its bytes");
        assert_eq!(crc32c::crc32c(&wire), frame.wire_crc32c);
        assert_eq!((batch.range().base(), batch.range().last()), (frame.base, frame.last()));
    }
}

/// Frames and damage lie in the file, in order, and apart.
fn tiles(found: &SegmentScan, len: u64) {
    assert_eq!(found.len, len);
    let frames = found
        .frames
        .iter()
        .map(|frame| (frame.position, frame.position + u64::from(frame.frame_len)));
    let damaged = found.damaged.iter().map(|damage| (damage.start, damage.end));
    let mut all: Vec<(u64, u64)> = frames.chain(damaged).collect();
    all.sort_unstable();
    let ends = all.iter().scan(0, |end, &(from, to)| {
        let apart = *end <= from && from < to && to <= len;
        *end = to;
        Some(apart)
    });
    assert!(ends.into_iter().all(|apart| apart), "{all:?} of {len} bytes");
}

/// The bytes with the right checksum in every frame that is whole; `None` where
/// nothing had to be mended.
fn mend(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut mended = bytes.to_vec();
    let mut at = 0;
    while let Some(next) = mended[at..].windows(3).position(|three| three == FRAME_START) {
        let start = at + next;
        at = start + FRAME_START.len();
        let Some(&length) = mended[start..].get(4..).and_then(|rest| rest.first_chunk()) else {
            break;
        };
        let end = start + FRAME_HEAD + u32::from_le_bytes(length) as usize;
        if end <= mended.len() {
            seal(&mut mended[start..end], FrameCrc::AsItLies);
            at = end;
        }
    }
    (mended != bytes).then_some(mended)
}

fn partition() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").expect("a topic"), 0).expect("a partition")
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let frame = |base: i64, count: i32, codec: Codec, style: Style| {
        let wire = sample_batch(base, count, 40, codec).expect("a batch");
        FrameParts::of_batch("t", 0, &wire, style).expect("a frame").encode()
    };
    let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    let mut seeds: Vec<Vec<u8>> = codecs.map(|codec| frame(0, 2, codec, Style::CURRENT)).to_vec();
    let several: Vec<u8> =
        (0..4).flat_map(|number| frame(3 * number, 3, Codec::None, Style::CURRENT)).collect();
    let mut torn = several.clone();
    torn.truncate(torn.len() - 30);
    let mut holed = several.clone();
    holed[300..340].fill(0);
    seeds.extend([several, torn, holed, Vec::new()]);
    seeds
}
