use proptest::prelude::*;

use super::*;
use crate::archive::chunk::NO_TIMESTAMP;

/// A table as a writer makes it: chunks of random lengths, glue between files.
fn any_toc() -> impl Strategy<Value = Toc> {
    let chunk = (1u32..300_000, any::<u32>(), any::<[u8; 16]>());
    let files = (
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(chunk.clone(), 1..8),
        prop::collection::vec(chunk, 0..5),
    );
    let epochs = prop::collection::btree_map(0i32..100, 0i64..1000, 0..4);
    let ended = prop::collection::vec((any::<i64>(), 0i64..1000, 0i64..1000), 0..5);
    let open = prop::collection::btree_map(any::<i64>(), 0i64..1000, 0..5);
    (files, epochs, ended, open).prop_map(|((log, overlap, some, others), epochs, ended, open)| {
        let mut toc = Toc::default();
        let mut place = 10;
        add(&mut toc, &mut place, EntryName::Metadata, &some[..1]);
        if log {
            add(&mut toc, &mut place, EntryName::Log(5), &some);
        }
        if overlap || !log {
            add(&mut toc, &mut place, EntryName::OverlapLog(3), &some);
        }
        add(&mut toc, &mut place, EntryName::Index("ab.term".to_owned()), &others);
        add(&mut toc, &mut place, EntryName::Batches, &some[..1]);
        let mut offset = 0;
        for (epoch, more) in epochs {
            offset += more;
            toc.epochs.push((epoch, offset));
        }
        for (producer_id, first_offset, more) in ended {
            offset += more;
            toc.ended.push(EndedTransaction {
                producer_id,
                first_offset: (more % 3 > 0).then_some(first_offset),
                marker: offset,
                aborted: more % 2 == 0,
            });
        }
        toc.open = open
            .into_iter()
            .map(|(producer_id, first_offset)| OpenTransaction { producer_id, first_offset })
            .collect();
        toc
    })
}

fn add(toc: &mut Toc, place: &mut u64, name: EntryName, chunks: &[(u32, u32, [u8; 16])]) {
    *place += 517;
    let start = toc.chunks.len() as u32;
    let mut position = 0;
    for (raw, crc32, digest) in chunks {
        toc.chunks.push(Chunk {
            place: *place,
            packed: *raw,
            raw: *raw,
            crc32: *crc32,
            encoding: Encoding::Deflate,
            first: position,
            last: position + i64::from(*raw) - 1,
            max_timestamp: NO_TIMESTAMP,
            digest: *digest,
        });
        *place += u64::from(*raw);
        position += i64::from(*raw);
    }
    let chunks = start..toc.chunks.len() as u32;
    toc.files.push(TocFile { name: name.to_string(), raw_len: position as u64, chunks });
}

/// The table as it would lie, stored, behind its last chunk.
fn packed(raw: &[u8], offset: u64) -> (Vec<u8>, TocPlace) {
    let mut bytes = Vec::new();
    let _ = layout::store(raw, |piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), ArchiveError>(())
    });
    let place = TocPlace {
        offset,
        length: bytes.len() as u32,
        raw: raw.len() as u32,
        encoding: Encoding::Stored,
        digest: digest128(&bytes),
    };
    (bytes, place)
}

fn decode(raw: &[u8], offset: u64) -> Result<Toc, ArchiveError> {
    let (bytes, place) = packed(raw, offset);
    Toc::decode(&bytes, &place)
}

fn end(toc: &Toc) -> u64 {
    toc.chunks.last().unwrap().end() + 517
}

fn example() -> Toc {
    let mut toc = Toc::default();
    let mut place = 10;
    let chunk = (100, 1, [2; 16]);
    add(&mut toc, &mut place, EntryName::Metadata, &[chunk]);
    add(&mut toc, &mut place, EntryName::Log(0), &[chunk, chunk, chunk]);
    add(&mut toc, &mut place, EntryName::Batches, &[chunk]);
    toc
}

proptest! {
    #[test]
    fn a_table_survives_encoding_and_decoding(toc in any_toc()) {
        prop_assert_eq!(decode(&toc.encode(), end(&toc)).unwrap(), toc);
    }

    #[test]
    fn every_cut_is_refused(toc in any_toc(), cut in any::<prop::sample::Index>()) {
        let raw = toc.encode();
        prop_assert!(Toc::decode_raw(&raw[..cut.index(raw.len())]).is_err());
    }

    #[test]
    fn flipped_bytes_never_panic_and_never_give_the_same_table(
        toc in any_toc(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut raw = toc.encode();
        let at = at.index(raw.len());
        raw[at] ^= flip;
        if let Ok(other) = decode(&raw, end(&toc)) {
            prop_assert_ne!(other, toc);
        }
    }

    #[test]
    fn the_chunks_of_a_range_are_those_that_hold_its_chain(
        lasts in prop::collection::btree_set(0i64..100, 1..10),
        base in 0i64..100,
        span in 0i64..100,
    ) {
        let mut toc = example();
        let log = toc.files[1].chunks.start as usize;
        toc.chunks.truncate(log);
        let mut first = 0;
        for last in &lasts {
            toc.chunks.push(Chunk { first, last: *last, ..toc.chunks[0] });
            first = last + 1;
        }
        toc.files[1].chunks = log as u32..toc.chunks.len() as u32;
        let range = OffsetRange::new(base, base + span).unwrap();
        let expected: Vec<_> = toc.chunks[log..]
            .iter()
            .filter(|chunk| chunk.last >= base && chunk.first <= base + span)
            .collect();
        prop_assert_eq!(toc.log_chunks(range).iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_future_version_encryption_or_section_is_refused_by_name() {
    let refuse = |at: usize, byte: u8, expected: &str| {
        let mut raw = example().encode();
        raw[at] = byte;
        let error = decode(&raw, end(&example())).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(
        8,
        2,
        "archive format version 2 is newer than this tierd understands (1); upgrade tierd",
    );
    refuse(10, 1, "encryption scheme 1");
    let mut raw = example().encode();
    raw[12] = 6;
    raw.extend_from_slice(&[6, 0, 1, 0, 3, 0, 0, 0, 1, 2, 3]);
    let error = decode(&raw, end(&example())).unwrap_err().to_string();
    assert!(error.contains("section 6") && error.contains("upgrade"), "{error}");
}

#[test]
fn an_unknown_optional_section_is_skipped() {
    let mut raw = example().encode();
    raw[12] = 6;
    raw.extend_from_slice(&[6, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3]);
    assert_eq!(decode(&raw, end(&example())).unwrap(), example());
}

#[test]
fn lying_counts_and_lengths_allocate_nothing() {
    let mut files = example().encode();
    // The count of files, behind the header and the section's own header.
    files[24..28].fill(0xff);
    assert!(Toc::decode_raw(&files).is_err());
    let mut length = example().encode();
    length[20..24].fill(0xff);
    assert!(Toc::decode_raw(&length).is_err());
    let mut sections = example().encode();
    sections[12..16].fill(0xff);
    assert!(Toc::decode_raw(&sections).is_err());
}

#[test]
fn tables_that_contradict_themselves_are_refused() {
    let toc = example();
    decode(&toc.encode(), end(&toc)).unwrap();
    let refuse = |what: &str, edit: fn(&mut Toc)| {
        let mut bad = example();
        edit(&mut bad);
        assert!(decode(&bad.encode(), end(&example())).is_err(), "{what}");
    };
    refuse("overlapping chunks", |toc| toc.chunks[2].place -= 1);
    refuse("a hole between chunks", |toc| toc.chunks[3].place += 1);
    refuse("a file in front of another", |toc| toc.chunks[4].place = 10);
    refuse("a chunk in the gzip header", |toc| toc.chunks[0].place = 9);
    refuse("a chunk behind the table", |toc| toc.chunks[4].place += 10_000);
    refuse("a file longer than its chunks", |toc| toc.files[1].raw_len += 1);
    refuse("chunks of no file", |toc| toc.chunks.push(Chunk { place: 1500, ..toc.chunks[4] }));
    refuse("a missing chunk", |toc| toc.chunks.truncate(4));
    refuse("two files of one name", |toc| toc.files[1].name = toc.files[0].name.clone());
    refuse("files out of order", |toc| toc.files[1].name = ".tierd/batches".to_owned());
    refuse("two logs", |toc| {
        let mut place = end(toc);
        add(toc, &mut place, EntryName::Log(9), &[(1, 1, [0; 16])]);
        toc.files.swap(2, 3);
    });
    refuse("a strange name", |toc| toc.files[1].name = "../etc/passwd".to_owned());
    refuse("a long name", |toc| toc.files[1].name = "x".repeat(200));
    refuse("the table itself as a file", |toc| toc.files[2].name = ".tierd/toc".to_owned());
    refuse("log chunks that do not ascend", |toc| toc.chunks[2].last = toc.chunks[1].last);
    refuse("positions that do not follow", |toc| toc.chunks[4].first = 1);
    refuse("epochs that fall", |toc| toc.epochs = vec![(2, 5), (1, 6)]);
    let ended = |first_offset, marker| EndedTransaction {
        producer_id: 1,
        first_offset,
        marker,
        aborted: true,
    };
    let with = |ended: Vec<EndedTransaction>| Toc { ended, ..example() }.encode();
    for bad in [vec![ended(None, 5), ended(None, 4)], vec![ended(Some(-2), 4)]] {
        assert!(decode(&with(bad.clone()), end(&example())).is_err(), "{bad:?}");
    }
    let mut neither = with(vec![ended(Some(3), 4)]);
    // Behind it lies the empty section of what is open.
    let outcome = neither.len() - 9;
    neither[outcome] = 2;
    assert!(decode(&neither, end(&example())).is_err(), "neither committed nor aborted");
    refuse("a producer twice", |toc| {
        toc.open = vec![OpenTransaction { producer_id: 1, first_offset: 0 }; 2];
    });
}

#[test]
fn a_place_that_does_not_fit_the_bytes_is_refused() {
    let toc = example();
    let (bytes, place) = packed(&toc.encode(), end(&toc));
    Toc::decode(&bytes, &place).unwrap();
    for bad in [
        TocPlace { length: place.length - 1, ..place },
        TocPlace { raw: place.raw - 1, ..place },
        TocPlace { raw: u32::MAX, ..place },
        TocPlace { digest: [0; 16], ..place },
        TocPlace { offset: u64::MAX, ..place },
        TocPlace { offset: 20, ..place },
    ] {
        assert!(Toc::decode(&bytes, &bad).is_err(), "{bad:?}");
    }
    assert!(Toc::decode(&bytes[1..], &place).is_err());
}
