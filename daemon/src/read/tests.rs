use super::*;
use crate::archive::{ArchiveIdentity, ArchiveOptions, ArchiveWriter, BuiltArchive, WalRank};
use crate::catalog::ClusterName;
use crate::record::{
    BatchHeader, CanonicalRecord, CanonicalRecordEntry, Codec, TopicName, TopicPartition,
};

/// A batch of one record at `offset` whose value is `value`.
fn batch(offset: i64, value: Vec<u8>) -> CanonicalRecord {
    let entry = CanonicalRecordEntry {
        offset,
        timestamp: 1_000,
        attributes: 0,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    };
    let header = BatchHeader {
        base_offset: offset,
        batch_length: 0,
        partition_leader_epoch: -1,
        crc: 0,
        attributes: Codec::None.bits(),
        last_offset_delta: 0,
        base_timestamp: 1_000,
        max_timestamp: 1_000,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 1,
    };
    CanonicalRecord::from_entries(header, vec![entry]).unwrap()
}

struct Bench {
    _scratch: tempfile::TempDir,
    _built: BuiltArchive,
    entry: ArchiveEntry,
    reader: ArchiveReader,
    toc: Arc<Toc>,
}

/// An archive of `count` batches in a store, and a reader without anything cached.
async fn bench(count: i64, value: impl Fn(i64) -> Vec<u8>) -> Bench {
    let scratch = tempfile::tempdir().unwrap();
    let tp = TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap();
    let identity = ArchiveIdentity { tp, incarnation: 0 };
    let options = ArchiveOptions::default();
    let mut writer = ArchiveWriter::create(scratch.path(), identity.clone(), 0, options).unwrap();
    for offset in 0..count {
        writer.push(&batch(offset, value(offset)), WalRank::default()).unwrap();
    }
    let built = writer.finish().unwrap();
    let cluster = ClusterName::new("default").unwrap();
    let entry = ArchiveEntry::new(&cluster, &identity, 1, built.summary.clone());
    let store = Store::open("memory:").unwrap();
    store.put_file(&entry.key(), &built.path).await.unwrap();
    let reader = ArchiveReader::new(store, ReadOptions::default());
    let toc = reader.toc(&entry, &ReadStats::default()).await.unwrap();
    Bench { _scratch: scratch, _built: built, entry, reader, toc }
}

fn log(toc: &Toc) -> Range<usize> {
    let chunks = toc.log().unwrap().chunks.clone();
    chunks.start as usize..chunks.end as usize
}

#[tokio::test]
async fn a_window_is_bounded_in_raw_bytes_too() {
    // 64 MiB of zeros deflate into less than one window of packed bytes.
    let bench = bench(256, |_| vec![0; 250 << 10]).await;
    let all = log(&bench.toc);
    let packed: u64 = bench.toc.chunks[all.clone()].iter().map(|c| u64::from(c.packed)).sum();
    assert!(packed < WINDOW_BYTES_MAX, "{packed}");
    let windows = bench.reader.windows(&bench.entry, &bench.toc, all.clone());
    for window in &windows {
        let raw: u64 =
            bench.toc.chunks[window.chunks.clone()].iter().map(|c| u64::from(c.raw)).sum();
        assert!(raw <= WINDOW_RAW_BYTES_MAX, "{raw} bytes in one window");
    }
    let joined: Vec<usize> = windows.iter().flat_map(|window| window.chunks.clone()).collect();
    assert_eq!(joined, Vec::from_iter(all), "windows leave out nothing and double nothing");
}

#[test]
fn a_cached_chunk_never_holds_the_memory_of_its_window() {
    let packed = Bytes::from(vec![7; 100]);
    let part = own(packed.slice(5..10), &packed);
    assert_eq!(part, packed[5..10]);
    assert!(!packed.as_ptr_range().contains(&part.as_ptr()));
    let inflated = Bytes::from(vec![1; 10]);
    assert_eq!(own(inflated.clone(), &packed).as_ptr(), inflated.as_ptr());
}
