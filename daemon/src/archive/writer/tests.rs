use std::fs;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::archive::OpenTransaction;
use crate::archive::fixture::{control, data, header, on_the_wire, transactional, with};
use crate::error::{Classify, ErrorKind};
use crate::record::{TopicName, TopicPartition};

fn identity() -> ArchiveIdentity {
    let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 0).unwrap();
    ArchiveIdentity { tp, incarnation: 0 }
}

/// A writer in a folder of its own that starts at `start`.
fn writer(start: i64, options: ArchiveOptions) -> (TempDir, ArchiveWriter) {
    let scratch = tempfile::tempdir().unwrap();
    let writer = ArchiveWriter::create(scratch.path(), identity(), start, options).unwrap();
    (scratch, writer)
}

fn plain() -> ArchiveOptions {
    ArchiveOptions { index_level: IndexLevel::None, ..ArchiveOptions::default() }
}

fn push(writer: &mut ArchiveWriter, batch: &CanonicalRecord) -> Result<Room, ArchiveError> {
    writer.push(batch, WalRank::default())
}

fn files_in(scratch: &TempDir) -> usize {
    fs::read_dir(scratch.path()).unwrap().count()
}

#[test]
fn scratch_is_empty_once_writer_or_archive_is_dropped() {
    let (scratch, mut dropped) = writer(0, ArchiveOptions::default());
    push(&mut dropped, &data(0, 10)).unwrap();
    assert_eq!(files_in(&scratch), 1);
    drop(dropped);
    assert_eq!(files_in(&scratch), 0);

    let (scratch, mut finished) = writer(0, ArchiveOptions::default());
    push(&mut finished, &data(0, 10)).unwrap();
    let built = finished.finish().unwrap();
    assert_eq!(fs::metadata(&built.path).unwrap().len(), built.summary.length);
    drop(built);
    assert_eq!(files_in(&scratch), 0);
}

#[test]
fn a_scratch_folder_that_is_not_there_is_named() {
    let missing = Path::new("/nonexistent/scratch");
    let error = ArchiveWriter::create(missing, identity(), 0, plain()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/scratch"), "{error}");
}

#[test]
fn an_archive_of_nothing_is_refused() {
    let (_scratch, empty) = writer(0, plain());
    assert!(matches!(empty.finish(), Err(ArchiveError::Empty)));
}

#[test]
fn a_chain_that_does_not_ascend_is_refused() {
    let (_scratch, mut writer) = writer(5, plain());
    let refused = |result| assert!(matches!(result, Err(ArchiveError::Refused { .. })));
    refused(push(&mut writer, &data(0, 5)));
    push(&mut writer, &data(3, 7)).unwrap();
    refused(push(&mut writer, &data(0, 10)));
    refused(push(&mut writer, &data(9, 1)));
    push(&mut writer, &data(2, 9)).unwrap();
    writer.push_overlap(&data(0, 3), WalRank::default()).unwrap();
    refused(push(&mut writer, &data(11, 1)));
    let summary = writer.finish().unwrap().summary;
    assert_eq!(summary.range, OffsetRange::new(5, 10).unwrap());
}

#[test]
fn overlaps_that_reach_beyond_the_chain_do_not_widen_the_tile() {
    let (_scratch, mut writer) = writer(5, plain());
    push(&mut writer, &data(5, 5)).unwrap();
    writer.push_overlap(&data(0, 30), WalRank::default()).unwrap();
    let summary = writer.finish().unwrap().summary;
    assert_eq!(summary.range, OffsetRange::new(5, 9).unwrap());
}

#[test]
fn an_archive_is_full_at_its_target_and_at_its_span() {
    let batch = data(0, 10);
    let two = 2 * batch.wire().unwrap().len() as u64;
    let options = ArchiveOptions { target_log_bytes: two, ..plain() };
    let (_scratch, mut small) = writer(0, options);
    assert_eq!(push(&mut small, &batch).unwrap(), Room::Open);
    assert_eq!(push(&mut small, &data(10, 10)).unwrap(), Room::Full);
    assert!(small.batch_bytes() >= two);

    let (_scratch, mut wide) = writer(7, plain());
    push(&mut wide, &data(7, 1)).unwrap();
    let far = 7 + i64::from(i32::MAX);
    assert!(wide.fits(OffsetRange::new(far, far).unwrap()));
    assert!(!wide.fits(OffsetRange::new(far, far + 1).unwrap()));
    assert!(push(&mut wide, &data(far, 2)).is_err());
    assert!(wide.push_overlap(&data(far, 2), WalRank::default()).is_err());
    assert_eq!(push(&mut wide, &data(far, 1)).unwrap(), Room::Full);
    wide.finish().unwrap();
}

#[test]
fn an_archive_lists_what_its_own_batches_say_of_transactions() {
    let (_scratch, mut writer) = writer(4, plain());
    let chain = [data(4, 3), control(7, 8, 1), transactional(8, 1, 9), transactional(9, 2, 7)];
    for batch in &chain {
        push(&mut writer, batch).unwrap();
    }
    push(&mut writer, &control(11, 9, 0)).unwrap();
    let built = writer.finish().unwrap();
    let ended: Vec<_> =
        built.toc.ended.iter().map(|one| (one.producer_id, one.first_offset, one.marker)).collect();
    assert_eq!(ended, [(8, None, 7), (9, Some(8), 11)]);
    assert_eq!(built.toc.open, [OpenTransaction { producer_id: 7, first_offset: 9 }]);
    assert_eq!((built.summary.transactions, built.toc.transactions()), (3, 3));
}

#[test]
fn a_batch_that_compaction_emptied_is_archived() {
    let empty = CanonicalRecord::from_entries(header(10, 19), Vec::new()).unwrap();
    let mut sizes = Vec::new();
    for options in [plain(), ArchiveOptions::default()] {
        let (_scratch, mut writer) = writer(0, options);
        push(&mut writer, &data(0, 10)).unwrap();
        push(&mut writer, &on_the_wire(&empty)).unwrap();
        let summary = writer.finish().unwrap().summary;
        assert_eq!((summary.batches, summary.records, summary.unindexed), (2, 10, 0));
        assert_eq!(summary.range.last(), 19);
        assert_eq!(summary.max_timestamp, 1_700_000_000_019);
        sizes.push(summary.length);
    }
    assert!(sizes[0] < sizes[1]);
}

#[test]
fn a_record_later_than_its_header_admits_still_counts() {
    let mut late = header(0, 2);
    late.max_timestamp = 5;
    let (_scratch, mut writer) = writer(0, ArchiveOptions::default());
    push(&mut writer, &with(late)).unwrap();
    let built = writer.finish().unwrap();
    assert_eq!(built.summary.min_timestamp, 5);
    assert_eq!(built.summary.max_timestamp, 1_700_000_000_002);
    let chunk = built.toc.chunks_of(built.toc.log().unwrap())[0];
    assert_eq!(chunk.max_timestamp, 1_700_000_000_002);
}

#[test]
fn batches_made_from_entries_are_archived_as_kafka_reads_them() {
    let made = CanonicalRecord::from_entries(header(0, 0), vec![crate::archive::fixture::entry(0)])
        .unwrap();
    let (_scratch, mut writer) = writer(0, plain());
    push(&mut writer, &made).unwrap();
    let built = writer.finish().unwrap();
    let chunk = built.toc.chunks_of(built.toc.log().unwrap())[0];
    let file = fs::read(&built.path).unwrap();
    let packed = Bytes::copy_from_slice(&file[chunk.place as usize..chunk.end() as usize]);
    assert_eq!(chunk.unpack(packed).unwrap(), made.to_kafka_batch().unwrap());
}
