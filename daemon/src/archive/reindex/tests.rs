use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::archive::fixture::{control, data, header, transactional, with};
use crate::archive::{ArchiveOptions, ArchiveWriter, WalRank, merge_archives};
use crate::error::{Classify, ErrorKind};
use crate::record::{BatchHeader, CanonicalRecord, TopicName, TopicPartition};

fn identity() -> ArchiveIdentity {
    let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 3).unwrap();
    ArchiveIdentity { tp, incarnation: 1 }
}

/// An archive that tiles from `start` on.
fn build(
    scratch: &Path,
    start: i64,
    batches: &[CanonicalRecord],
    beneath: &[CanonicalRecord],
    index_level: IndexLevel,
) -> BuiltArchive {
    let options = ArchiveOptions { index_level, ..ArchiveOptions::default() };
    let mut writer = ArchiveWriter::create(scratch, identity(), start, options).unwrap();
    for batch in batches {
        let position = batch.range().base() as u64;
        let _ = writer.push(batch, WalRank { segment: 1, position }).unwrap();
    }
    for batch in beneath {
        let _ = writer.push_overlap(batch, WalRank { segment: 0, position: 7 }).unwrap();
    }
    writer.finish().unwrap()
}

fn input(built: &BuiltArchive) -> MergeInput {
    let file = Arc::new(File::open(&built.path).unwrap());
    MergeInput::within(file, &built.path, 0, built.summary.clone()).unwrap()
}

fn reindex(scratch: &Path, built: &BuiltArchive, level: IndexLevel) -> BuiltArchive {
    reindex_archive(scratch, &identity(), &input(built), level).unwrap()
}

fn bytes(built: &BuiltArchive) -> Vec<u8> {
    std::fs::read(&built.path).unwrap()
}

/// A batch that says it is compressed and is not: nobody decodes it.
fn undecodable(base: i64) -> CanonicalRecord {
    let mut wire = data(base, 3).to_kafka_batch().unwrap().to_vec();
    wire[22] |= 4;
    CanonicalRecord::from_wire(wire.into()).unwrap()
}

/// Logs with transactions, batches that reach back over those before, that have times
/// behind their header's, that nobody decodes; and what some of them supersede.
fn any_log() -> impl Strategy<Value = (Vec<CanonicalRecord>, Vec<CanonicalRecord>)> {
    let steps = prop::collection::vec((0u8..9, 1i64..60, 1i64..4), 1..40);
    steps.prop_map(|steps| {
        let (mut next, mut beneath) = (100, Vec::new());
        let batches = steps.into_iter().map(|(kind, count, some)| {
            let batch = match kind {
                0 => control(next, some, (count % 2) as i16),
                1 => transactional(next, count, some),
                2 => data((next - some).max(100), count + some),
                3 => with(BatchHeader { max_timestamp: 7, ..header(next, next + count) }),
                4 => with(BatchHeader { attributes: 8, ..header(next, next + count) }),
                5 => undecodable(next),
                _ => data(next, count),
            };
            if kind == 6 {
                beneath.push(data(next, some));
            }
            next = batch.range().end();
            batch
        });
        (batches.collect(), beneath)
    })
}

fn any_level() -> impl Strategy<Value = IndexLevel> {
    prop::sample::select(IndexLevel::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_reindexed_archive_is_the_one_that_had_been_written_with_that_level(
        (batches, beneath) in any_log(),
        (from, to) in (any_level(), any_level()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path();
        let was = build(scratch, 90, &batches, &beneath, from);
        let is = reindex(scratch, &was, to);
        prop_assert_eq!(logs(&is.toc), logs(&was.toc));
        prop_assert_eq!(is.summary.index_level, to);
        if to == IndexLevel::None {
            // What was known of times stays known.
            prop_assert_eq!(is.summary.min_timestamp, was.summary.min_timestamp);
            prop_assert_eq!(is.toc.index_files().count(), 0);
            prop_assert!(is.toc.keys().is_none());
        } else {
            let written = build(scratch, 90, &batches, &beneath, to);
            prop_assert_eq!(&is.summary, &written.summary);
            prop_assert!(bytes(&is) == bytes(&written));
        }
        let back = reindex(scratch, &is, from);
        prop_assert_eq!(logs(&back.toc), logs(&was.toc));
        if from != IndexLevel::None {
            prop_assert!(bytes(&back) == bytes(&was));
        }
    }

    #[test]
    fn a_merged_archive_keeps_its_chunks_and_gets_the_index_of_all_batches(
        (batches, _) in any_log(),
        cut in any::<prop::sample::Index>(),
        (from, to) in (any_level(), any_level()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path();
        let cut = cut.index(batches.len());
        let (front, back) = batches.split_at(cut);
        let start = front.last().map_or(100, |batch| batch.range().end());
        let parts = [(100, front), (start, back)].into_iter().filter(|part| !part.1.is_empty());
        let parts: Vec<MergeInput> =
            parts.map(|(start, part)| input(&build(scratch, start, part, &[], from))).collect();
        let was = merge_archives(scratch, &identity(), &parts).unwrap();
        let is = reindex(scratch, &was, to);
        prop_assert_eq!(logs(&is.toc), logs(&was.toc));
        let whole = build(scratch, 100, &batches, &[], to);
        let index = |built: &BuiltArchive| {
            let files = built.toc.index_files().chain(built.toc.keys());
            let of = |file: &TocFile| {
                let digests = built.toc.chunks_of(file).iter().map(|chunk| chunk.digest);
                (file.name.clone(), digests.collect())
            };
            files.map(of).collect::<Vec<(String, Vec<Digest128>)>>()
        };
        prop_assert_eq!(index(&is), index(&whole));
        prop_assert_eq!(is.summary.unindexed, whole.summary.unindexed);
    }
}

#[test]
fn an_archive_of_overlaps_alone_and_one_of_nothing_but_markers_get_an_index_too() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path();
    for (batches, beneath) in [(vec![], vec![data(3, 9)]), (vec![control(90, 1, 0)], vec![])] {
        let was = build(scratch, 90, &batches, &beneath, IndexLevel::None);
        let is = reindex(scratch, &was, IndexLevel::Keys);
        let written = build(scratch, 90, &batches, &beneath, IndexLevel::Keys);
        assert_eq!(bytes(&is), bytes(&written));
    }
}

#[test]
fn a_damaged_chunk_is_found_at_every_level() {
    let folder = tempfile::tempdir().unwrap();
    let was = build(folder.path(), 0, &[data(0, 500)], &[], IndexLevel::Keys);
    let chunk = was.toc.chunks_of(was.toc.log().unwrap())[0];
    let mut bytes = bytes(&was);
    bytes[chunk.place as usize + 7] ^= 1;
    std::fs::write(&was.path, bytes).unwrap();
    for level in IndexLevel::ALL {
        let error = reindex_archive(folder.path(), &identity(), &input(&was), level).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{level}: {error}");
    }
    // Whatever was begun is gone.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
