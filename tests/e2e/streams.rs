//! Length: one batch of 150,000 records and one range of millions, read through a
//! daemon that serves them, whose memory stays as it is however long the read.

use tierd::record::{CanonicalRecord, Codec};
use tierd_client::{ArchiveClient, End, FetchArgs, Isolation, StreamItem};
use tierd_tests::chronik::{Template, WalWriter, sample_batch};
use tierd_tests::process::{Tierd, resident_memory};

use crate::TIERD;

const MIB: u64 = 1 << 20;
/// Records of the one large batch.
const LARGE_BATCH: i32 = 150_000;
/// Records of each batch of the long range.
const BATCH: i32 = 500;
/// What a daemon may hold: its caches of 96 MiB, what is in flight, itself.
const RESIDENT_MAX: u64 = 256 * MIB;

/// Records of the long range: 5 million where time does not matter.
fn range_records() -> i64 {
    if std::env::var_os("TIERD_TEST_LARGE").is_some() { 5_000_000 } else { 400_000 }
}

/// Table: F20 I12 | one batch of 150,000 records and a range of 400,000, through the process
#[tokio::test(flavor = "multi_thread")]
async fn a_huge_batch_and_a_long_range_are_streamed_in_flat_memory() {
    let folder = tempfile::tempdir().unwrap();
    let wal = folder.path().join("wal");
    let mut segment = WalWriter::create(&wal, "long", 0, 0).unwrap();
    let large = sample_batch(0, LARGE_BATCH, 20, Codec::None).unwrap();
    segment.append(&large).unwrap();
    let wire = sample_batch(0, BATCH, 20, Codec::None).unwrap();
    let mut template = Template::new("long", 0, &wire).unwrap();
    let mut base = i64::from(LARGE_BATCH);
    let end = base + range_records();
    while base < end {
        segment.append_raw(template.frame_at(base)).unwrap();
        base += template.span();
    }
    segment.finish().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&wal).ok();

    let daemon = tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        let mut stream =
            client.fetch_stream(FetchArgs { isolation, ..FetchArgs::new("long", 0, 0) });
        let (mut next, mut records, mut bytes) = (0, 0, 0);
        // What the daemon held at most until half was read, and from then on.
        let (mut early, mut late) = (0, 0);
        let ended = loop {
            let set = match stream.next().await.unwrap().unwrap() {
                StreamItem::Batches(set) => set,
                StreamItem::End(ended) => break ended,
            };
            for batch in set.iter() {
                let batch = CanonicalRecord::from_wire(batch.unwrap().bytes).unwrap();
                batch.verify_crc().unwrap();
                assert_eq!(batch.range().base(), next);
                let expected = if next == 0 { large.clone() } else { template.wire_at(next) };
                assert!(batch.to_kafka_batch().unwrap() == expected, "the batch at {next}");
                next = batch.range().end();
                records += i64::from(batch.header().record_count);
            }
            bytes += set.batches.len() as u64;
            let resident = resident_memory(daemon.id()).unwrap();
            let half = if next < end / 2 { &mut early } else { &mut late };
            *half = resident.max(*half);
        };
        assert_eq!((ended.end, next, records), (End::EndOfArchive, end, end));
        println!(
            "{records} records, {} MiB, {isolation:?}: {} MiB resident while the first half was \
             read, {} MiB after it",
            bytes / MIB,
            early / MIB,
            late / MIB
        );
        assert!(early > 0 && early.max(late) < RESIDENT_MAX, "{early} {late}");
    }
}
