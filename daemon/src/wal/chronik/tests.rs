use bytes::{BufMut, Bytes};

use super::super::testing::{
    Payload, batch, entries, frame, frame_with, judge, seal, vector, window,
};
use super::*;
use crate::record::CanonicalRecord;

/// Judges one frame that must be good, and gives its batch.
fn good(bytes: &[u8]) -> (GoodFrame, Bytes) {
    let Verdict::Good(frame) = judge(bytes) else { panic!("{:?}", judge(bytes)) };
    assert_eq!(frame.end, bytes.len() as u64);
    let wire = match &frame.wire {
        Wire::At(at) => window(bytes).copy(at.clone()).unwrap(),
        Wire::Rebuilt(wire) => wire.clone(),
    };
    (frame, wire)
}

fn refused(bytes: &[u8]) -> String {
    match judge(bytes) {
        Verdict::Refused { fault, verified: true, end } if end == bytes.len() as u64 => {
            fault.to_string()
        }
        other => panic!("{other:?}"),
    }
}

fn broken(bytes: &[u8]) -> String {
    let Verdict::Broken { fault } = judge(bytes) else { panic!("{:?}", judge(bytes)) };
    fault.to_string()
}

#[test]
fn the_frame_of_the_specification_is_read_and_written_back() {
    let (frame_read, wire) = good(&vector());
    assert_eq!((wire.len(), frame_read.header.base_offset), (73, 5));
    let record = CanonicalRecord::from_wire(wire.clone()).unwrap();
    record.verify_crc().unwrap();
    let entry = record.decode().unwrap().remove(0);
    assert_eq!((&entry.key.unwrap()[..], &entry.value.unwrap()[..]), (&b"k"[..], &b"v"[..]));
    assert_eq!(frame_read.flags, FrameFlags::default());
    // So the frames of these tests are the broker's.
    assert_eq!(frame(&wire), vector());
}

#[test]
fn every_layout_and_both_checksums_are_read() {
    let batch = batch(7, &[b"one", b"two", b"three"]);
    let mut payload = Payload::of(&batch);
    for extra in [30, 10, 23] {
        for zeroed in [false, true] {
            let (frame, wire) = good(&frame_with(&payload.encode(), extra, (7, 9, 3), zeroed));
            assert_eq!(wire, batch, "{extra} {zeroed}");
            assert_eq!(frame.flags.contains(FrameFlags::OLD_FRAME_CRC), zeroed);
        }
    }
    for extra in [0, 9, 11, 22, 24, 29, 31, 50] {
        assert!(
            broken(&frame_with(&payload.encode(), extra, (7, 9, 3), false)).contains("lengths")
        );
    }
    payload.base = 8;
    assert!(refused(&frame_with(&payload.encode(), 10, (0, 0, 0), false)).contains("base offset"));
}

#[test]
fn before_v2_2_0_field_13_holds_the_whole_batch_and_the_payload_ends_there() {
    let batch = batch(7, &[b"one", b"two", b"three"]);
    let payload = Payload {
        section: Some(Some(batch.clone())),
        legacy: None,
        batch: None,
        ..Payload::of(&batch)
    };
    for extra in [30, 10, 23] {
        let (frame, wire) = good(&frame_with(&payload.encode(), extra, (7, 9, 3), true));
        assert_eq!(wire, batch);
        assert!(!frame.flags.contains(FrameFlags::REBUILT));
    }
}

#[test]
fn a_payload_that_ends_after_its_entries_is_rebuilt_from_them() {
    let batch = batch(7, &[b"one", b"two", b"three"]);
    let bare = Payload { section: None, legacy: None, batch: None, ..Payload::of(&batch) };
    let none = Payload { section: Some(None), ..bare.clone() };
    for payload in [bare, none] {
        for extra in [30, 10] {
            let (frame, wire) = good(&frame_with(&payload.encode(), extra, (7, 9, 3), true));
            // The same attributes, timestamps and entries: the same bytes.
            assert_eq!(wire, batch);
            assert!(frame.flags.contains(FrameFlags::REBUILT));
        }
    }
}

#[test]
fn a_payload_that_ends_between_its_last_fields_is_refused() {
    let batch = batch(7, &[b"one"]);
    let payload = Payload { batch: None, ..Payload::of(&batch) };
    let why = refused(&frame_with(&payload.encode(), 30, (7, 7, 1), false));
    assert!(why.contains("field 15"), "{why}");
}

/// A message set of magic 1, numbered from 0 as producers do.
fn message_set(values: &[&[u8]]) -> Bytes {
    let mut set = Vec::new();
    for (offset, value) in values.iter().enumerate() {
        let mut body = vec![1, 0];
        body.put_i64(1_600_000_000_000 + offset as i64);
        body.put_i32(-1);
        body.put_i32(value.len() as i32);
        body.put_slice(value);
        set.put_i64(offset as i64);
        set.put_i32(body.len() as i32 + 4);
        set.put_u32(crc32fast::hash(&body));
        set.put_slice(&body);
    }
    set.into()
}

fn legacy(base: i64, set: &Bytes, entries_base: i64) -> Payload {
    Payload {
        base,
        entries: entries(entries_base, &[b"one", b"two", b"three"]),
        section: Some(None),
        legacy: Some(Some(set.clone())),
        batch: Some(None),
    }
}

#[test]
fn a_legacy_message_set_is_numbered_from_the_base_of_the_frame() {
    let set = message_set(&[b"one", b"two", b"three"]);
    // The broker's own base and entries are off by one here, as it was seen to do.
    let bytes = frame_with(&legacy(1, &set, 1).encode(), 30, (0, 2, 3), false);
    let (frame, wire) = good(&bytes);
    assert!(frame.flags.contains(FrameFlags::REBUILT));
    let record = CanonicalRecord::from_wire(wire.clone()).unwrap();
    record.verify_crc().unwrap();
    let read: Vec<_> = record.decode().unwrap().iter().map(|e| (e.offset, e.timestamp)).collect();
    assert_eq!(read, [(0, 1_600_000_000_000), (1, 1_600_000_000_001), (2, 1_600_000_000_002)]);
    assert_eq!(good(&bytes).1, wire, "twice the same bytes");
}

#[test]
fn a_legacy_set_that_does_not_decode_gives_way_to_the_brokers_own_entries() {
    for set in [Bytes::from_static(b"not a message set"), message_set(&[b"one", b"two"])] {
        let (_, wire) = good(&frame_with(&legacy(1, &set, 1).encode(), 30, (0, 2, 3), false));
        let record = CanonicalRecord::from_wire(wire).unwrap();
        let read: Vec<_> =
            record.decode().unwrap().into_iter().map(|e| (e.offset, e.value.unwrap())).collect();
        let expected = [(0, &b"one"[..]), (1, b"two"), (2, b"three")];
        assert!(read.iter().map(|(o, v)| (*o, &v[..])).eq(expected), "{read:?}");
    }
}

#[test]
fn a_frame_without_records_is_empty() {
    let batch = batch(7, &[b"one"]);
    let nothing =
        Payload { entries: vec![], batch: Some(Some(Bytes::new())), ..Payload::of(&batch) };
    for (payload, trailer) in
        [(&nothing, (7, 6, 0)), (&nothing, (7, 7, 1)), (&Payload::of(&batch), (7, 6, 0))]
    {
        let verdict = judge(&frame_with(&payload.encode(), 30, trailer, false));
        assert!(matches!(verdict, Verdict::Empty { .. }), "{verdict:?}");
    }
}

#[test]
fn bytes_after_the_last_field_are_ignored_and_told() {
    let batch = batch(7, &[b"one"]);
    let mut payload = Payload::of(&batch).encode();
    payload.extend(b"more");
    let (frame, wire) = good(&frame_with(&payload, 30, (7, 7, 1), false));
    assert_eq!(wire, batch);
    assert!(frame.flags.contains(FrameFlags::TRAILING_BYTES));
}

#[test]
fn excess_of_field_13_over_the_batch_is_noise() {
    let batch = batch(7, &[b"one"]);
    let section = [&batch[61..], &batch[..]].concat();
    let payload = Payload { section: Some(Some(section.into())), ..Payload::of(&batch) };
    assert_eq!(good(&frame_with(&payload.encode(), 30, (7, 7, 1), false)).1, batch);
}

#[test]
fn the_batch_header_wins_over_the_last_offset_of_the_trailer_but_not_over_its_base() {
    let batch = batch(7, &[b"one", b"two", b"three"]);
    let payload = Payload::of(&batch).encode();
    let (frame, _) = good(&frame_with(&payload, 30, (7, 8, 2), false));
    assert_eq!(frame.header.last_offset(), 9);
    let why = refused(&frame_with(&payload, 30, (6, 8, 3), false));
    assert_eq!(why, "frame has base offset 6, its batch 7");
    for trailer in [(7, 9, 2), (7, 6, -1), (-1, 1, 3), (i64::MAX, i64::MAX, 2)] {
        assert!(refused(&frame_with(&payload, 30, trailer, false)).contains("trailer"));
    }
}

#[test]
fn a_frame_of_another_partition_is_refused_whole() {
    for (at, what) in [(14, "topic \"u\" partition 3"), (15, "topic \"t\" partition 2")] {
        let mut foreign = vector();
        foreign[at] ^= 1;
        seal(&mut foreign, false);
        let why = refused(&foreign);
        assert!(why.contains(what), "{why}");
    }
}

#[test]
fn payload_fields_that_no_writer_makes_are_refused_by_name() {
    let good = Payload::of(&batch(7, &[b"one", b"two"])).encode();
    for (at, byte, field) in [
        (26, 2, "is transactional"),
        (27, 255, "is control"),
        (28, 5, "compression"),
        (32, 2, "timestamp type"),
        (59, 1, "entries"),
        (76, 2, "entry key"),
        (84, 1, "entry value needs"),
    ] {
        let mut bad = good.clone();
        bad[at] = byte;
        let why = refused(&frame_with(&bad, 30, (7, 8, 2), false));
        assert!(why.contains(field), "{at}: {why}");
    }
    for end in 0..good.len() - 1 {
        let verdict = judge(&frame_with(&good[..end], 30, (7, 8, 2), false));
        // Cut before field 15, the payload is that of an older version.
        let older =
            matches!(&verdict, Verdict::Good(frame) if frame.flags.contains(FrameFlags::REBUILT));
        assert!(older || matches!(verdict, Verdict::Refused { verified: true, .. }), "{end}");
    }
}

#[test]
fn a_batch_that_is_none_is_refused() {
    let whole = batch(7, &[b"one"]);
    let refuse = |batch: Bytes| {
        let payload = Payload { batch: Some(Some(batch)), ..Payload::of(&whole) };
        refused(&frame_with(&payload.encode(), 30, (7, 7, 1), false))
    };
    assert!(refuse(whole.slice(..whole.len() - 1)).contains("batch"));
    assert!(refuse(whole.slice(..40)).contains("cut short"));
    let mut magic_1 = whole.to_vec();
    magic_1[16] = 1;
    assert!(refuse(magic_1.into()).contains("magic 1"));
}

#[test]
fn version_1_is_recognised_with_both_checksums_and_nothing_else_is_guessed() {
    let mut v1 = vec![0x7e, 0xca, 1, 0];
    v1.extend(43_u32.to_le_bytes());
    v1.extend([0; 20]);
    v1.extend((-1_i32).to_le_bytes());
    v1.extend(3_i32.to_le_bytes());
    v1.extend(b"abc");
    v1.extend([0; 4]);
    for zeroed in [false, true] {
        let mut hashed = v1[..24].to_vec();
        if zeroed {
            hashed[4..8].fill(0);
        }
        hashed.extend(&v1[28..]);
        v1[24..28].copy_from_slice(&crc32fast::hash(&hashed).to_le_bytes());
        assert!(matches!(judge(&v1), Verdict::V1 { end: 43 }), "{:?}", judge(&v1));
        assert!(matches!(judge(&v1[..42]), Verdict::Torn { .. }));
    }
    v1[30] ^= 1;
    assert!(broken(&v1).contains("checksum"));

    let vector = vector();
    let with = |at: usize, byte: u8| {
        let mut bytes = vector.clone();
        bytes[at] = byte;
        broken(&bytes)
    };
    assert!(with(0, 0).contains("no frame begins here"));
    assert!(with(2, 3).contains("version 3"));
    assert!(with(3, 1).contains("flags are 0x01"));
    assert!(broken(&[0xca, 0x7e, 2, 0]).contains("big-endian"));
}

#[test]
fn a_wrong_checksum_in_a_frame_whose_two_ends_agree_leaves_its_end_known() {
    let flip = |at: usize| {
        let mut bytes = vector();
        bytes[at] ^= 1;
        judge(&bytes)
    };
    // The checksum, a count, the key, the batch; then the trailer, base and length.
    for at in [8, 75, 108, 200] {
        let verdict = flip(at);
        assert!(
            matches!(verdict, Verdict::Refused { end: 262, verified: false, .. }),
            "{at}: {verdict:?}"
        );
    }
    for at in [4, 19, 23, 242, 250, 258] {
        assert!(matches!(flip(at), Verdict::Broken { .. }), "{at}");
    }
}

#[test]
fn the_beginning_of_a_frame_of_this_partition_is_torn_at_every_byte() {
    for end in 1..vector().len() {
        let verdict = judge(&vector()[..end]);
        assert!(matches!(verdict, Verdict::Torn { .. }), "{end}: {verdict:?}");
    }
}
