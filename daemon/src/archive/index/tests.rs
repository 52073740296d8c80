use bytes::Bytes;
use tantivy::collector::{Count, DocSetCollector};
use tantivy::query::TermQuery;
use tantivy::schema::IndexRecordOption;
use tantivy::{Searcher, Term};

use super::*;
use crate::archive::fixture::{data, entry, header, on_the_wire, transactional};
use crate::record::{BatchHeader, TopicName, TopicPartition};

fn identity() -> ArchiveIdentity {
    let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 3).unwrap();
    ArchiveIdentity { tp, incarnation: 1 }
}

/// Builds an index of `batches`, served from `from` on, and lays its files in `folder`.
fn build(folder: &Path, batches: &[CanonicalRecord], mut from: i64) -> Vec<(String, Vec<u8>)> {
    let scratch = tempfile::tempdir().unwrap();
    let mut builder =
        IndexBuilder::create(&scratch.path().join("index"), &identity(), None).unwrap();
    for batch in batches {
        builder.add(batch, batch.entries().unwrap(), from, 7).unwrap();
        from = batch.range().end();
    }
    let files: Vec<_> = builder
        .finish()
        .unwrap()
        .0
        .into_iter()
        .map(|file| (file.name, fs::read(file.path).unwrap()))
        .collect();
    for (name, bytes) in &files {
        fs::write(folder.join(name), bytes).unwrap();
    }
    files
}

fn open(folder: &Path) -> Searcher {
    Index::open_in_dir(folder).unwrap().reader().unwrap().searcher()
}

/// The offsets of the records that have `term` in `field`.
fn find(searcher: &Searcher, field: &str, term: &[u8]) -> Vec<i64> {
    let field = searcher.schema().get_field(field).unwrap();
    let query = TermQuery::new(Term::from_field_bytes(field, term), IndexRecordOption::Basic);
    offsets(searcher, &query)
}

fn offsets(searcher: &Searcher, query: &dyn tantivy::query::Query) -> Vec<i64> {
    let mut found: Vec<i64> = searcher
        .search(query, &DocSetCollector)
        .unwrap()
        .into_iter()
        .map(|address| {
            let segment = searcher.segment_reader(address.segment_ord);
            let column = segment.fast_fields().i64("offset").unwrap();
            column.first(address.doc_id).unwrap()
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn stock_tantivy_finds_keys_headers_and_producers() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), &[data(100, 50), transactional(150, 10, 77)], 100);
    let searcher = open(folder.path());
    assert_eq!(searcher.num_docs(), 60);
    assert_eq!(find(&searcher, "key", &key_term(b"key-123")), [123]);
    assert_eq!(find(&searcher, "key", &key_term(b"key-99")), [0; 0]);
    assert_eq!(find(&searcher, "header", &header_term(b"trace", Some(b"124"))), [124]);
    let producer = searcher.schema().get_field("producer").unwrap();
    let query = TermQuery::new(Term::from_field_i64(producer, 77), IndexRecordOption::Basic);
    assert_eq!(searcher.search(&query, &Count).unwrap(), 10);
}

#[test]
fn null_empty_and_long_keys_and_doubled_headers_are_told_apart() {
    let long = vec![b'x'; 5000];
    let keys = [None, Some(vec![]), Some(long.clone()), Some(vec![b'x'; 5001]), Some(vec![0xff])];
    let header_value = |value: Option<&'static [u8]>| crate::record::Header {
        name: Bytes::from_static(b"h"),
        value: value.map(Bytes::from_static),
    };
    let entries = keys
        .into_iter()
        .enumerate()
        .map(|(offset, key)| crate::record::CanonicalRecordEntry {
            key: key.map(Bytes::from),
            headers: vec![header_value(None), header_value(Some(b"")), header_value(None)],
            ..entry(offset as i64)
        })
        .collect();
    let batch = on_the_wire(&CanonicalRecord::from_entries(header(0, 4), entries).unwrap());
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), &[batch], 0);
    let searcher = open(folder.path());
    assert_eq!(find(&searcher, "key", &key_term(b"")), [1]);
    assert_eq!(find(&searcher, "key", &key_term(&long)), [2]);
    assert_eq!(find(&searcher, "key", &key_term(&[0xff])), [4]);
    assert_eq!(find(&searcher, "header", &header_term(b"h", None)), [0, 1, 2, 3, 4]);
    assert_eq!(find(&searcher, "header", &header_term(b"h", Some(b""))), [0, 1, 2, 3, 4]);
}

#[test]
fn timestamps_are_those_a_consumer_sees() {
    let created = data(0, 3);
    let appended = BatchHeader { attributes: 8, max_timestamp: 42, ..header(3, 4) };
    let entries = (3..=4).map(entry).collect();
    let appended = on_the_wire(&CanonicalRecord::from_entries(appended, entries).unwrap());
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), &[created, appended], 0);
    let searcher = open(folder.path());
    let column = searcher.segment_reader(0).fast_fields().i64("timestamp").unwrap();
    let seen: Vec<_> = (0..5).map(|doc| column.first(doc).unwrap()).collect();
    assert_eq!(seen, [1_700_000_000_000, 1_700_000_000_001, 1_700_000_000_002, 42, 42]);
}

#[test]
fn records_below_the_chain_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path(), &[data(0, 10), data(5, 10)], 3);
    let searcher = open(folder.path());
    let all = offsets(&searcher, &tantivy::query::AllQuery);
    assert_eq!(all, (3..15).collect::<Vec<_>>());
    let column = searcher.segment_reader(0).fast_fields().i64("offset").unwrap();
    let in_order: Vec<_> = (0..12).map(|doc| column.first(doc).unwrap()).collect();
    assert_eq!(in_order, all, "documents lie in offset order");
}

#[test]
fn the_same_batches_give_the_same_files_and_others_give_other_names() {
    let folder = tempfile::tempdir().unwrap();
    let batches: Vec<_> = (0..100).map(|n| data(n * 100, 100)).collect();
    let once = build(folder.path(), &batches, 0);
    let twice = build(tempfile::tempdir().unwrap().path(), &batches, 0);
    assert!(once == twice);
    assert!(once.is_sorted());
    let other = build(tempfile::tempdir().unwrap().path(), &batches, 1);
    assert_ne!(once[0].0, other[0].0);
    assert!(once.iter().all(|(name, _)| !name.starts_with('.')));
}

#[test]
fn memory_used_up_begins_a_segment_at_the_next_batch() {
    let scratch = tempfile::tempdir().unwrap();
    let mut builder =
        IndexBuilder::create(&scratch.path().join("index"), &identity(), None).unwrap();
    // 1000 keys of 1000 bytes a batch: about 50 batches fill a segment.
    let batch = |n: i64| {
        let entries = (n * 1000..(n + 1) * 1000)
            .map(|offset| crate::record::CanonicalRecordEntry {
                key: Some(Bytes::from(format!("{offset:01000}"))),
                ..entry(offset)
            })
            .collect();
        CanonicalRecord::from_entries(header(n * 1000, n * 1000 + 999), entries).unwrap()
    };
    let mut count = 0;
    while builder.segments.len() < 2 {
        let batch = batch(count);
        builder.add(&batch, batch.entries().unwrap(), 0, 7).unwrap();
        count += 1;
    }
    assert!(builder.segments.iter().all(|segment| segment.documents % 1000 == 0));
    assert!((60..200).contains(&count), "{count}");
    let folder = tempfile::tempdir().unwrap();
    for file in builder.finish().unwrap().0 {
        fs::copy(&file.path, folder.path().join(&file.name)).unwrap();
    }
    let searcher = open(folder.path());
    assert_eq!(searcher.num_docs(), count as u64 * 1000);
    let key = format!("{:01000}", count * 1000 - 1);
    assert_eq!(find(&searcher, "key", &key_term(key.as_bytes())), [count * 1000 - 1]);
}

#[test]
fn an_index_with_too_many_segments_gets_fewer_and_finds_the_same_in_order() {
    let scratch = tempfile::tempdir().unwrap();
    let create =
        |name: &str| IndexBuilder::create(&scratch.path().join(name), &identity(), None).unwrap();
    let mut many = IndexBuilder { segment_bytes: 1, ..create("many") };
    let mut one = create("one");
    for n in 0..40 {
        let batch = data(n * 10, 10);
        many.add(&batch, batch.entries().unwrap(), 0, 7).unwrap();
        one.add(&batch, batch.entries().unwrap(), 0, 7).unwrap();
    }
    assert_eq!(many.segments.len(), 40);
    let ((files, keys), (_, expected)) = (many.finish().unwrap(), one.finish().unwrap());
    assert_eq!(keys, expected);
    assert!(files.is_sorted_by_key(|file| file.name.clone()));
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(&file.path, folder.path().join(&file.name)).unwrap();
    }
    let searcher = open(folder.path());
    assert!(searcher.segment_readers().len() <= SEGMENTS_FULL);
    assert_eq!(find(&searcher, "key", &key_term(b"key-273")), [273]);
    let all: Vec<i64> = searcher
        .segment_readers()
        .iter()
        .flat_map(|segment| {
            let column = segment.fast_fields().i64("offset").unwrap();
            (0..segment.max_doc()).map(|doc| column.first(doc).unwrap()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(all, (0..400).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_is_told_as_one() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("index");
    let mut builder = IndexBuilder::create(&folder, &identity(), None).unwrap();
    // The folder vanishes underneath: every write from now on fails.
    fs::remove_dir(&folder).unwrap();
    let batch = data(0, 1);
    let error = builder.add(&batch, batch.entries().unwrap(), 0, 7).unwrap_err();
    assert!(matches!(error, ArchiveError::Io { .. }), "{error}");
}
