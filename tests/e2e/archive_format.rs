//! The archive format, version 1, seen from outside: by tools that know nothing
//! of tierd, by tierd's own reader, and by time (a stored archive must stay
//! readable, and be built again byte for byte).

mod build;
mod bytes;
mod foreign;
mod golden;
mod hostile;

use ::bytes::Bytes;
use proptest::prelude::*;
use tierd::archive::{
    ArchiveOptions, BatchList, CHUNK_BYTES, Encoding, EndedTransaction, FOOTER_DISTANCE, Footer,
    IndexLevel, Toc, UNKNOWN_TIMESTAMP, WalRank, batches_in,
};
use tierd::record::{CanonicalRecord, OffsetRange};

use build::{Input, bytes, concat, files, one_of_everything, untar, verify};
use bytes::{Batch, noise};

/// The batches of a file of logs, read chunk by chunk as a remote reader does.
fn read_by_chunks(archive: &[u8], toc: &Toc, name: &str) -> Vec<CanonicalRecord> {
    let file = toc.file(name).unwrap();
    let unpack = |chunk: &tierd::archive::Chunk| {
        let packed = &archive[chunk.place as usize..chunk.end() as usize];
        chunk.unpack(Bytes::copy_from_slice(packed)).unwrap()
    };
    toc.chunks_of(file)
        .iter()
        .flat_map(|chunk| batches_in(unpack(chunk)))
        .map(|batch| batch.unwrap())
        .collect()
}

/// The table of an archive, found by its footer.
fn toc_of(archive: &[u8]) -> Toc {
    let length = archive.len() as u64;
    let range = Footer::range(length).unwrap();
    let footer =
        Footer::decode(&archive[range.start as usize..range.end as usize], length).unwrap();
    let place = footer.toc.range();
    Toc::decode(&archive[place.start as usize..place.end as usize], &footer.toc).unwrap()
}

fn many(count: i64) -> Input {
    Input::chain((0..count).map(|n| Batch::of(n * 100, 100).record()).collect())
}

/// Table: F22 I7 | nothing; archives built twice
#[test]
fn the_same_batches_give_the_same_bytes() {
    for input in [one_of_everything(), many(300), many(20).without_index()] {
        let (once, twice) = (input.build(), input.build());
        assert!(bytes(&once) == bytes(&twice));
        assert_eq!(once.summary, twice.summary);
    }
}

#[test]
fn ranks_of_the_wal_change_nothing_unless_batches_overlap() {
    use tierd::archive::ArchiveWriter;
    let build = |shift: u64| {
        let scratch = std::env::temp_dir();
        let options = ArchiveOptions::default();
        let mut writer = ArchiveWriter::create(&scratch, build::identity(), 0, options).unwrap();
        for n in 0..5 {
            let rank = WalRank { segment: shift, position: n * shift };
            writer.push(&Batch::of(n as i64 * 10, 10).record(), rank).unwrap();
        }
        bytes(&writer.finish().unwrap())
    };
    assert!(build(1) == build(99));
}

#[test]
fn the_entries_are_those_of_the_format_in_order() {
    let built = one_of_everything().build();
    let names: Vec<_> = untar(&bytes(&built)).into_iter().map(|(name, _)| name).collect();
    let index: Vec<_> = names.iter().filter(|name| name.starts_with("index/")).cloned().collect();
    assert_eq!(index.len(), 7, "six files of one segment and meta.json: {index:?}");
    assert!(index.is_sorted());
    let mut expected = vec![
        "metadata.json".to_owned(),
        "00000000000000000098.log".to_owned(),
        "00000000000000000097.overlap.log".to_owned(),
    ];
    expected.extend(index);
    let own = [".tierd/keys", ".tierd/batches", ".tierd/toc", ".tierd/footer"];
    expected.extend(own.map(str::to_owned));
    assert_eq!(names, expected);
}

#[test]
fn batches_come_back_verbatim_by_tar_and_by_chunk() {
    let input = one_of_everything();
    let built = input.build();
    let archive = bytes(&built);
    let files = files(&archive);
    assert!(files["00000000000000000098.log"] == concat(&input.chain));
    assert!(files["00000000000000000097.overlap.log"] == concat(&input.overlaps));
    let toc = toc_of(&archive);
    assert_eq!(toc, built.toc);
    let log = read_by_chunks(&archive, &toc, "00000000000000000098.log");
    assert!(concat(&log) == concat(&input.chain));
    let overlap = read_by_chunks(&archive, &toc, "00000000000000000097.overlap.log");
    assert!(concat(&overlap) == concat(&input.overlaps));
}

#[test]
fn the_list_of_batches_proves_each_and_ranks_where_bases_are_shared() {
    let input = one_of_everything();
    let files = files(&bytes(&input.build()));
    let list = BatchList::decode(files[".tierd/batches"].clone().into()).unwrap();
    let facts = |batch: &CanonicalRecord| {
        let wire = batch.wire().unwrap();
        let range = batch.range();
        (range.base(), range.last(), wire.len() as u32, crc32c::crc32c(wire))
    };
    let chain: Vec<_> = list.chain().collect();
    let overlaps: Vec<_> = list.overlaps().collect();
    assert!(
        chain.iter().map(|b| (b.base, b.last, b.len, b.crc32c)).eq(input.chain.iter().map(facts))
    );
    assert!(
        overlaps
            .iter()
            .map(|b| (b.base, b.last, b.len, b.crc32c))
            .eq(input.overlaps.iter().map(facts))
    );
    let ranked: Vec<_> =
        chain.iter().filter(|batch| batch.rank.is_some()).map(|batch| batch.base).collect();
    assert_eq!(ranked, [121], "the only chain batch that shares its base with an overlap");
    assert_eq!(overlaps[0].rank, Some(WalRank { segment: 0, position: 12_000 }));
}

#[test]
fn the_summary_counts_what_was_pushed() {
    let input = one_of_everything();
    let built = input.build();
    let summary = &built.summary;
    assert_eq!(summary.range, OffsetRange::new(100, 1644).unwrap());
    assert!(summary.tiles);
    assert_eq!((summary.batches, summary.overlaps), (12, 3));
    assert_eq!(summary.records, 12 + 4 + 3 + 1 + 1 + 2 + 5 + 3 + 2 + 2 + 1 + 1500);
    assert_eq!(summary.log_bytes, concat(&input.chain).len() as u64);
    assert_eq!(summary.overlap_bytes, concat(&input.overlaps).len() as u64);
    assert_eq!((summary.bad_crcs, summary.unindexed), (3, 1));
    assert_eq!(summary.leader_epochs, (0, 3));
    assert_eq!(summary.length, bytes(&built).len() as u64);
    assert_eq!(summary.digest, *blake3::hash(&bytes(&built)).as_bytes());
    // One batch did not decode: its records may be older than its header says.
    assert_eq!(summary.min_timestamp, UNKNOWN_TIMESTAMP);
    assert_eq!(summary.max_timestamp, bytes::EPOCH_MS + 145 + 1499 * 7);
    assert_eq!(built.toc.epochs, [(0, 100), (1, 114), (3, 119)]);
    let ended = |producer_id, first_offset, marker, aborted| EndedTransaction {
        producer_id,
        first_offset,
        marker,
        aborted,
    };
    assert_eq!(built.toc.ended, [ended(41, None, 117, false), ended(42, Some(114), 118, true)]);
    let open: Vec<_> =
        built.toc.open.iter().map(|one| (one.producer_id, one.first_offset)).collect();
    assert_eq!(open, [(43, 144)]);
    assert_eq!(built.summary.transactions, 3);
}

#[test]
fn times_are_exact_where_all_records_decode() {
    let summary = many(3).build().summary;
    assert_eq!(summary.min_timestamp, bytes::EPOCH_MS);
    assert_eq!(summary.max_timestamp, bytes::EPOCH_MS + 200 + 99 * 7);
    let summary = many(3).without_index().build().summary;
    assert_eq!(summary.min_timestamp, UNKNOWN_TIMESTAMP, "headers do not tell the least");
    assert_eq!(summary.max_timestamp, bytes::EPOCH_MS + 200 + 99 * 7);
}

#[test]
fn an_archive_of_overlaps_alone_tiles_nothing() {
    let overlaps = vec![Batch::of(50, 5).record(), Batch::of(20, 5).record()];
    let input = Input { start: 1000, overlaps, ..Input::default() };
    let built = input.build();
    assert!(!built.summary.tiles);
    assert_eq!(built.summary.range, OffsetRange::new(20, 54).unwrap());
    assert_eq!((built.summary.batches, built.summary.overlaps), (0, 2));
    let archive = bytes(&built);
    let names: Vec<_> = untar(&archive).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[1], "00000000000000000020.overlap.log");
    assert!(built.toc.log().is_none());
    assert!(built.toc.log_chunks(OffsetRange::new(0, 100).unwrap()).is_empty());
    let back = read_by_chunks(&archive, &built.toc, &names[1]);
    assert!(concat(&back) == concat(&input.overlaps), "in the order they were pushed");
}

#[test]
fn level_none_writes_no_index() {
    let built = many(3).without_index().build();
    assert_eq!(built.summary.index_level, IndexLevel::None);
    assert_eq!((built.summary.index_bytes, built.toc.index_files().count()), (0, 0));
}

#[test]
fn a_batch_beyond_a_mebibyte_is_a_chunk_of_its_own() {
    let chain = vec![
        Batch::of(0, 10).record(),
        Batch::huge(10, 3 << 20).record(),
        Batch::of(11, 10).record(),
    ];
    let input = Input::chain(chain);
    let built = input.build();
    let chunks = built.toc.chunks_of(built.toc.log().unwrap());
    let lasts: Vec<_> = chunks.iter().map(|chunk| chunk.last).collect();
    assert_eq!(lasts, [9, 10, 20]);
    assert_eq!(chunks[1].encoding, Encoding::Stored);
    let back = read_by_chunks(&bytes(&built), &built.toc, "00000000000000000000.log");
    assert!(concat(&back) == concat(&input.chain));
}

#[test]
fn chunks_hold_whole_batches_and_little_more_than_they_should() {
    let built = many(400).build();
    let log = built.toc.log().unwrap();
    let chunks = built.toc.chunks_of(log);
    assert!(chunks.len() > 5);
    let batch = Batch::of(0, 100).wire().len() + 500;
    for chunk in &chunks[..chunks.len() - 1] {
        let raw = chunk.raw as usize;
        assert!(raw <= CHUNK_BYTES && raw > CHUNK_BYTES - batch, "{raw}");
        assert_eq!(chunk.encoding, Encoding::Deflate);
        assert!(chunk.packed < chunk.raw / 2);
    }
    // What a reader asks for any offset is the chunk that holds it, and no other.
    for offset in (0..40_000).step_by(777) {
        let found = built.toc.log_chunks(OffsetRange::new(offset, offset).unwrap());
        assert_eq!(found.len(), 1);
        assert!(found[0].first <= offset && offset <= found[0].last);
    }
}

#[test]
fn what_producers_compressed_and_what_does_not_compress_is_stored() {
    let compressed = |n: i64| Batch { attributes: bytes::SNAPPY, ..Batch::of(n * 100, 100) };
    let input = Input::chain((0..50).map(|n| compressed(n).record()).collect()).without_index();
    let built = input.build();
    let chunks = built.toc.chunks_of(built.toc.log().unwrap());
    assert!(chunks.iter().all(|chunk| chunk.encoding == Encoding::Stored));

    let noisy = |n: i64| Batch { ..Batch::huge(n, 100_000) };
    let built = Input::chain((0..10).map(|n| noisy(n).record()).collect()).build();
    let chunks = built.toc.chunks_of(built.toc.log().unwrap());
    assert!(chunks.iter().all(|chunk| chunk.encoding == Encoding::Stored));
    assert!(built.summary.length < built.summary.log_bytes * 101 / 100 + 20_000);
    assert_eq!(noise(4).len(), 4);
}

#[test]
fn every_chunk_of_every_file_inflates_alone() {
    let archive = bytes(&many(300).build());
    let toc = toc_of(&archive);
    let files = files(&archive);
    for file in &toc.files {
        let mut whole = Vec::new();
        for chunk in toc.chunks_of(file) {
            let packed = &archive[chunk.place as usize..chunk.end() as usize];
            let raw = chunk.unpack(Bytes::copy_from_slice(packed)).unwrap();
            // And with a bare inflate, which knows nothing of chunks.
            let mut bare = packed.to_vec();
            bare.extend_from_slice(&[0x01, 0x00, 0x00, 0xff, 0xff]);
            let mut inflated = Vec::new();
            let mut inflate = flate2::read::DeflateDecoder::new(bare.as_slice());
            std::io::Read::read_to_end(&mut inflate, &mut inflated).unwrap();
            assert!(raw == inflated, "{} at {}", file.name, chunk.place);
            whole.extend_from_slice(&raw);
        }
        assert!(files[&file.name] == whole, "{}", file.name);
    }
}

#[test]
fn the_footer_lies_where_it_always_lies() {
    for archive in [bytes(&many(1).build()), bytes(&one_of_everything().build())] {
        let footer = &files(&archive)[".tierd/footer"];
        let at = archive.len() - FOOTER_DISTANCE as usize;
        assert_eq!(&archive[at..at + footer.len()], footer);
        assert_eq!(FOOTER_DISTANCE, 1544);
    }
}

#[test]
fn verifying_gives_the_summary_that_writing_gave() {
    for input in [one_of_everything(), many(10), many(1).without_index()] {
        let built = input.build();
        let verified = verify(&bytes(&built)).unwrap();
        assert_eq!(verified.summary, built.summary);
        assert_eq!(verified.identity, build::identity());
        assert_eq!(verified.toc, built.toc);
    }
}

/// A batch of one of many kinds, small or large, its base and count chosen by others.
fn any_batch(base: i64, count: i64, kind: u8) -> CanonicalRecord {
    let plain = Batch::of(base, count);
    match kind % 8 {
        0 => Batch { attributes: bytes::SNAPPY, ..plain }.record(),
        1 => Batch { attributes: bytes::LOG_APPEND_TIME, leader_epoch: base as i32, ..plain }
            .record(),
        2 => plain.garbage(),
        3 => Batch::huge(base, count as usize * 5000).record(),
        4 => Batch::transactional(base, count, base % 3).record(),
        5 => Batch::marker(base, base % 3, (base % 2) as i16).record(),
        6 => Batch { last_delta: Some(count as i32 + 5), ..plain }.record(),
        _ => plain.record(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_batches_come_back_and_every_offset_is_found(
        kinds in prop::collection::vec((any::<u8>(), 1i64..300, 0i64..4), 1..40),
        overlaps in prop::collection::vec((any::<u8>(), 0i64..500, 1i64..300), 0..5),
        start in 0i64..1000,
        indexed in any::<bool>(),
    ) {
        let mut input = Input { start, ..Input::default() };
        let mut next = start;
        for (kind, count, back) in kinds {
            // Now and then a batch reaches back over the ones before.
            let base = (next - back).max(0);
            let batch = any_batch(base, count + back, kind);
            if batch.range().last() >= next {
                next = batch.range().end();
                input.chain.push(batch);
            }
        }
        prop_assume!(!input.chain.is_empty());
        for (kind, base, count) in overlaps {
            input.overlaps.push(any_batch(base, count, kind));
        }
        if !indexed {
            input.options.index_level = IndexLevel::None;
        }
        let built = input.build();
        prop_assert_eq!(built.summary.range, OffsetRange::new(start, next - 1).unwrap());
        let archive = bytes(&built);
        let toc = toc_of(&archive);
        let log = read_by_chunks(&archive, &toc, &toc.log().unwrap().name);
        prop_assert!(concat(&log) == concat(&input.chain));
        if let Some(overlap) = toc.overlap_log() {
            let overlap = read_by_chunks(&archive, &toc, &overlap.name);
            prop_assert!(concat(&overlap) == concat(&input.overlaps));
        }
        for offset in (start..next).step_by(97) {
            let holds = |batch: &CanonicalRecord| batch.range().contains(offset);
            let Some(batch) = input.chain.iter().find(|batch| holds(batch)) else { continue };
            let chunks = toc.log_chunks(OffsetRange::new(offset, offset).unwrap());
            prop_assert!(chunks.len() <= 1);
            let found = chunks.iter().any(|chunk| {
                let packed = &archive[chunk.place as usize..chunk.end() as usize];
                let raw = chunk.unpack(Bytes::copy_from_slice(packed)).unwrap();
                batches_in(raw).any(|one| one.unwrap().wire() == batch.wire())
            });
            prop_assert!(found, "offset {}", offset);
        }
    }
}
