use bytes::Bytes;
use proptest::prelude::*;

use super::testing::{Payload, batch, frame, frame_with, scan, seal, tp, vector};
use super::*;
use crate::error::{Classify, ErrorKind};
use crate::record::CanonicalRecord;

#[test]
fn a_frame_ref_stays_small() {
    assert_eq!(size_of::<FrameRef>(), 40);
}

/// Small batches of different sizes at consecutive offsets.
fn batches(count: usize) -> Vec<Bytes> {
    let mut base = 0;
    let mut make = |i: usize| {
        let value = vec![b'a' + i as u8; 3 + 7 * i];
        let batch = batch(base, &vec![&value[..]; 1 + i % 3]);
        base += 1 + (i % 3) as i64;
        batch
    };
    (0..count).map(&mut make).collect()
}

fn bases(scan: &SegmentScan) -> Vec<i64> {
    scan.frames.iter().map(|frame| frame.base).collect()
}

/// A segment on disk, and what pass 1 and 2 make of it.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new(bytes: &[u8]) -> Self {
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        disk.write(bytes);
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("wal_3_0.log")
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.path(), bytes).unwrap();
    }

    fn file(&self) -> SegmentFile {
        SegmentFile { id: 0, path: self.path(), len: 0, modified_ms: 0, created_ms: None, inode: 0 }
    }

    fn scan(&self) -> SegmentScan {
        super::scan(WalFormat::Chronik, &tp(), &self.file()).unwrap()
    }

    fn reader(&self) -> SegmentReader {
        SegmentReader::open(WalFormat::Chronik, &tp(), &self.file()).unwrap()
    }
}

#[test]
fn pass_two_gives_back_the_bytes_that_pass_one_saw() {
    let batches = batches(9);
    let disk = Disk::new(&batches.iter().flat_map(frame).collect::<Vec<_>>());
    let scan = disk.scan();
    assert_eq!(scan.frames.len(), 9);
    assert_eq!((scan.damaged.len(), scan.torn_at), (0, None));
    let mut reader = disk.reader();
    for (frame, batch) in scan.frames.iter().zip(&batches).rev() {
        let record = reader.batch(frame).unwrap();
        assert_eq!(record.wire(), Some(batch));
        assert_eq!((frame.base, frame.last()), (record.range().base(), record.range().last()));
        assert_eq!(frame.wire_crc32c, crc32c::crc32c(batch));
    }
}

#[test]
fn a_segment_torn_at_any_byte_keeps_its_whole_frames() {
    let frames: Vec<_> = batches(3).iter().map(frame).collect();
    let whole = frames.concat();
    for end in 0..=whole.len() {
        let scan = scan(&whole[..end]);
        let mut ends = vec![0];
        ends.extend(frames.iter().scan(0, |at, frame| {
            *at += frame.len();
            Some(*at)
        }));
        let good = ends.iter().filter(|e| **e <= end).count() - 1;
        assert_eq!(scan.frames.len(), good, "cut at {end}");
        assert!(scan.damaged.is_empty(), "cut at {end}: {:?}", scan.damaged);
        let torn = (ends[good] < end).then_some(ends[good] as u64);
        assert_eq!(scan.torn_at, torn, "cut at {end}");
    }
}

#[test]
fn a_flipped_byte_anywhere_costs_its_own_frame_and_no_other() {
    let batches = batches(3);
    let frames: Vec<_> = batches.iter().map(frame).collect();
    let whole = frames.concat();
    for at in 0..whole.len() {
        for mask in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            let hit = if at < frames[0].len() {
                0
            } else {
                1 + usize::from(at >= frames[0].len() + frames[1].len())
            };
            let scan = scan(&bytes);
            let mut expected = vec![0, 1, 3];
            expected.remove(hit);
            assert_eq!(bases(&scan), expected, "byte {at} ^ {mask:#x}");
            let start: usize = frames[..hit].iter().map(Vec::len).sum();
            let [damage] = &scan.damaged[..] else { panic!("byte {at}: {:?}", scan) };
            assert_eq!(damage.start, start as u64);
            assert_eq!(damage.end, (start + frames[hit].len()) as u64);
            assert_eq!(scan.torn_at, None);
        }
    }
}

#[test]
fn damage_knows_its_neighbours_in_the_file() {
    let frames: Vec<_> = batches(4).iter().map(frame).collect();
    let mut bytes = frames.concat();
    for hit in [1, 2] {
        let start: usize = frames[..hit].iter().map(Vec::len).sum();
        bytes[start + 100] ^= 1;
    }
    let scan = scan(&bytes);
    assert_eq!(bases(&scan), [0, 6]);
    assert_eq!(scan.damaged.len(), 2);
    for damage in &scan.damaged {
        assert_eq!((damage.after, damage.before), (Some(0), Some(6)));
        assert!(damage.why.contains("checksum"), "{}", damage.why);
    }
    assert_eq!(scan.damaged[0].end, scan.damaged[1].start);
}

#[test]
fn what_a_failed_write_left_in_the_middle_is_damage_and_the_frames_after_it_come() {
    let frames: Vec<_> = batches(3).iter().map(frame).collect();
    for keep in 1..frames[1].len() {
        let bytes = [&frames[0][..], &frames[1][..keep], &frames[2]].concat();
        let scan = scan(&bytes);
        assert_eq!(bases(&scan), [0, 3], "kept {keep}");
        let [damage] = &scan.damaged[..] else { panic!("kept {keep}: {scan:?}") };
        assert_eq!(damage.end - damage.start, keep as u64);
    }
}

#[test]
fn a_value_that_holds_the_magic_or_half_a_frame_is_no_frame() {
    let half = &frame(&batch(50, &[b"inner"]))[..100];
    let outer = frame(&batch(0, &[b"\x7e\xca\x02\x00", half]));
    let next = frame(&batch(2, &[b"next"]));
    for at in [0, 5, 8, 60, 75, outer.len() - 3] {
        let mut bytes = [&outer[..], &next].concat();
        bytes[at] ^= 0x10;
        assert_eq!(bases(&scan(&bytes)), [2], "byte {at}");
    }
}

#[test]
fn a_whole_frame_inside_a_value_does_not_come_out_of_a_damaged_one() {
    let inner = frame(&batch(50, &[b"inner"]));
    let outer = frame(&batch(0, &[b"before", &inner, b"after"]));
    let next = frame(&batch(3, &[b"next"]));
    let inside = outer.windows(inner.len()).position(|bytes| bytes == inner).unwrap();
    // In the checksum, a count, a value, the batch: everywhere but in the frame's
    // own lengths and offsets.
    for at in [8, 11, 80, 95, inside, inside + 40, outer.len() - 21] {
        let mut bytes = [&outer[..], &next].concat();
        bytes[at] ^= 0x10;
        assert_eq!(bases(&scan(&bytes)), [3], "byte {at}");
    }
}

#[test]
fn zeros_at_the_end_are_torn_and_anything_else_there_is_damage() {
    let good = frame(&batch(0, &[b"one"]));
    let scanned = scan(&[&good[..], &[0; 5000]].concat());
    assert_eq!((scanned.torn_at, scanned.damaged.len()), (Some(good.len() as u64), 0));
    let scanned = scan(&[&good[..], b"garbage"].concat());
    assert_eq!((scanned.torn_at, scanned.damaged.len()), (None, 1));
    assert_eq!(scanned.damaged[0].end, scanned.len);
    // A frame of another partition that is cut off is not ours to call torn.
    let mut foreign = vector();
    foreign[14] = b'u';
    assert_eq!(scan(&foreign[..200]).torn_at, None);
}

#[test]
fn no_flipped_bit_makes_a_torn_tail_of_a_frame_that_was_whole() {
    let good = frame(&batch(0, &[b"one"]));
    let last = frame(&batch(1, &[b"two"]));
    for bit in 0..last.len() * 8 {
        let mut bytes = [&good[..], &last].concat();
        bytes[good.len() + bit / 8] ^= 1 << (bit % 8);
        let scanned = scan(&bytes);
        assert_eq!((scanned.torn_at, scanned.damaged.len()), (None, 1), "bit {bit}");
    }
}

#[test]
fn skipped_frames_are_counted() {
    let empty = Payload {
        entries: vec![],
        batch: Some(Some(Bytes::new())),
        ..Payload::of(&batch(7, &[b"x"]))
    };
    let empty = frame_with(&empty.encode(), 30, (7, 6, 0), false);
    let mut v1 = [&[0x7e, 0xca, 1, 0, 40, 0, 0, 0][..], &[0; 32]].concat();
    let crc = crc32fast::hash(&[&v1[..24], &v1[28..]].concat());
    v1[24..28].copy_from_slice(&crc.to_le_bytes());
    let scan = scan(&[&v1[..], &v1, &empty, &vector()].concat());
    assert_eq!(scan.skipped, Skipped { v1: 2, empty: 1 });
    assert_eq!(bases(&scan), [5]);
    assert!(scan.damaged.is_empty());
}

#[test]
fn a_producers_wrong_checksum_is_flagged_and_served() {
    let mut bad = batch(0, &[b"one"]).to_vec();
    bad[17] ^= 1;
    let bad = Bytes::from(bad);
    let disk = Disk::new(&frame(&bad));
    let scan = disk.scan();
    assert!(scan.frames[0].flags.contains(FrameFlags::BATCH_CRC_BAD));
    assert_eq!(disk.reader().batch(&scan.frames[0]).unwrap().wire(), Some(&bad));
}

#[test]
fn a_rebuilt_batch_is_the_same_in_both_passes() {
    let batch = batch(7, &[b"one", b"two"]);
    let payload = Payload { section: None, legacy: None, batch: None, ..Payload::of(&batch) };
    let disk = Disk::new(&frame_with(&payload.encode(), 30, (7, 8, 2), true));
    let scan = disk.scan();
    assert!(scan.frames[0].flags.contains(FrameFlags::REBUILT));
    assert!(scan.frames[0].flags.contains(FrameFlags::OLD_FRAME_CRC));
    assert_eq!(disk.reader().batch(&scan.frames[0]).unwrap().to_kafka_batch().unwrap(), batch);
}

#[test]
fn a_frame_far_larger_than_the_buffer_is_read() {
    let value = vec![b'x'; 3 * window::WINDOW_BYTES];
    let large = batch(0, &[&value]);
    let next = batch(1, &[b"next"]);
    let mut bytes = [frame(&large), frame(&next)].concat();
    let disk = Disk::new(&bytes);
    let scan = disk.scan();
    assert_eq!(bases(&scan), [0, 1]);
    assert_eq!(disk.reader().batch(&scan.frames[0]).unwrap().wire(), Some(&large));
    bytes[window::WINDOW_BYTES] ^= 1;
    disk.write(&bytes);
    assert_eq!(bases(&disk.scan()), [1]);
}

#[test]
fn a_segment_that_changed_between_the_passes_is_an_error_and_never_another_batch() {
    let first: Vec<_> = batches(3).iter().flat_map(frame).collect();
    let disk = Disk::new(&first);
    let scan = disk.scan();
    let last = scan.frames[2];

    // Truncated and filled again: other frames at the same places.
    let mut other = first.clone();
    let at = last.position as usize + 100;
    other[at] ^= 1;
    seal(&mut other[last.position as usize..], false);
    disk.write(&other);
    let mut reader = disk.reader();
    reader.batch(&scan.frames[0]).unwrap();
    reader.batch(&scan.frames[1]).unwrap();
    for bytes in [&other[..], &first[..at], b""] {
        disk.write(bytes);
        let error = disk.reader().batch(&last).unwrap_err();
        assert!(matches!(error, WalError::Changed { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Retry);
        assert!(error.to_string().contains("wal_3_0.log changed while it was read"), "{error}");
    }

    // A reader that is open sees a file that grew, and one that shrank.
    disk.write(&first[..last.position as usize]);
    let mut reader = disk.reader();
    reader.batch(&scan.frames[0]).unwrap();
    assert!(reader.batch(&last).is_err());
    disk.write(&first);
    reader.batch(&last).unwrap();

    std::fs::remove_file(disk.path()).unwrap();
    reader.batch(&scan.frames[1]).unwrap();
    let error = super::scan(WalFormat::Chronik, &tp(), &disk.file()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_hostile_file_of_false_starts_is_given_up_in_bounded_work() {
    // Every 34 bytes a frame of ours that claims half of the file.
    let len = 24 << 20;
    let (count, mut bytes) = (len / 34 / 2, Vec::new());
    let claim = len as u32 / 2;
    for _ in 0..count {
        bytes.extend([0x7e, 0xca, 2, 0]);
        bytes.extend((claim + 31).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend([1, 0, b't', 3, 0, 0, 0]);
        bytes.extend(claim.to_le_bytes());
        bytes.extend([0xff; 11]);
    }
    bytes.resize(len, 0xff);
    let scan = scan(&bytes);
    assert!(scan.frames.is_empty());
    assert!(scan.damaged[0].why.contains("false starts"), "{:?}", scan.damaged);
}

#[test]
fn the_list_of_damage_does_not_grow_with_the_file() {
    let good = frame(&batch(0, &[b"x"]));
    let mut bytes = Vec::new();
    for _ in 0..1500 {
        bytes.extend(&good);
        bytes.push(b'!');
    }
    bytes.extend(&good);
    let scan = scan(&bytes);
    assert_eq!(scan.frames.len(), 1501);
    assert_eq!(scan.damaged.len(), 1024);
    let last = scan.damaged.last().unwrap();
    assert_eq!((last.end, last.before), ((bytes.len() - good.len()) as u64, Some(0)));
    assert!(last.why.contains("more than 1024"));
}

#[derive(Clone, Debug)]
enum Piece {
    Good(usize),
    Garbage(Vec<u8>),
    Torn(usize, usize),
    Damaged(usize, usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        4 => (0..6_usize).prop_map(Piece::Good),
        1 => prop::collection::vec(any::<u8>(), 1..90).prop_map(Piece::Garbage),
        1 => Just(Piece::Garbage(vec![0x7e, 0xca, 2, 0])),
        1 => (0..6_usize, 1..400_usize).prop_map(|(which, keep)| Piece::Torn(which, keep)),
        1 => (0..6_usize, any::<usize>()).prop_map(|(which, at)| Piece::Damaged(which, at)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_good_frame_comes_out_of_any_mixture(pieces in prop::collection::vec(piece(), 0..14)) {
        let batches = batches(6);
        let frames: Vec<_> = batches.iter().map(frame).collect();
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for piece in &pieces {
            match piece {
                Piece::Good(which) => {
                    expected.push((bytes.len() as u64, *which));
                    bytes.extend(&frames[*which]);
                }
                Piece::Garbage(garbage) => bytes.extend(garbage),
                Piece::Torn(which, keep) => {
                    // Without its trailer: cut later, zeros that follow may complete it.
                    let keep = (*keep).min(frames[*which].len() - 20);
                    bytes.extend(&frames[*which][..keep]);
                }
                Piece::Damaged(which, at) => {
                    let from = bytes.len();
                    bytes.extend(&frames[*which]);
                    bytes[from + at % frames[*which].len()] ^= 0x55;
                }
            }
        }
        let disk = Disk::new(&bytes);
        let scan = disk.scan();
        let found: Vec<_> = scan.frames.iter().map(|frame| frame.position).collect();
        let places: Vec<_> = expected.iter().map(|(position, _)| *position).collect();
        prop_assert_eq!(found, places);
        let mut reader = disk.reader();
        for (frame, (_, which)) in scan.frames.iter().zip(expected) {
            let record = reader.batch(frame).unwrap();
            prop_assert_eq!(record.wire(), Some(&batches[which]));
        }
        // Every byte is accounted for, once.
        let mut spans: Vec<_> = scan.damaged.iter().map(|d| (d.start, d.end)).collect();
        spans.extend(scan.frames.iter().map(|f| (f.position, f.position + u64::from(f.frame_len))));
        spans.extend(scan.torn_at.map(|at| (at, scan.len)));
        spans.sort_unstable();
        let mut at = 0;
        for (start, end) in spans {
            prop_assert_eq!(start, at);
            at = end;
        }
        prop_assert_eq!(at, scan.len);
    }

    #[test]
    fn no_bytes_make_the_scan_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut framed = vector();
        let at = bytes.len() % framed.len();
        framed.splice(at..at, bytes.iter().copied());
        for bytes in [&bytes, &framed] {
            for frame in scan(bytes).frames {
                prop_assert_eq!(frame.base, 5);
            }
        }
        let sealed = frame_with(&bytes, 30, (5, 5, 1), false);
        prop_assert!(scan(&sealed).frames.is_empty());
        let _ = CanonicalRecord::from_wire(bytes.into());
    }
}
