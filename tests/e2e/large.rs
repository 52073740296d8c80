//! Size: what a read of a large archive costs, and what archiving a large
//! segment takes.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tierd::archive::{ArchiveIdentity, ArchiveOptions, ArchiveWriter};
use tierd::catalog::{ArchiveEntry, Edit};
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{FetchEvent, FetchRequest, PartitionRequest, Status};
use tierd::read::ReadStats;
use tierd::record::{CanonicalRecord, Codec, TopicName, TopicPartition};
use tierd::store::{Op, Store};
use tierd_tests::chronik::{Template, WalWriter, sample_batch};
use tierd_tests::process::{Tierd, peak_memory};
use tierd_tests::reads::all_from;

use crate::TIERD;

const MIB: u64 = 1 << 20;
/// Raw bytes of a chunk.
const CHUNK: u64 = 256 << 10;

/// A batch of 60 records of 1000 random bytes.
fn incompressible_batch() -> Bytes {
    let mut random = StdRng::seed_from_u64(7);
    let sample = CanonicalRecord::from_wire(sample_batch(0, 60, 1, Codec::None).unwrap()).unwrap();
    let mut entries = sample.decode().unwrap();
    for entry in &mut entries {
        let mut value = vec![0; 1000];
        random.fill_bytes(&mut value);
        entry.value = Some(value.into());
    }
    let batch = CanonicalRecord::from_entries(*sample.header(), entries).unwrap();
    batch.to_kafka_batch().unwrap()
}

/// Commits one archive of at least `bytes` of batches; returns its entry.
async fn one_archive(rooms: &Rooms, tp: &TopicPartition, bytes: u64) -> ArchiveEntry {
    let scratch = tempfile::tempdir().unwrap();
    let identity = ArchiveIdentity { tp: tp.clone(), incarnation: 0 };
    let options = ArchiveOptions::default();
    let mut writer = ArchiveWriter::create(scratch.path(), identity.clone(), 0, options).unwrap();
    let template = Template::new(tp.topic().as_str(), 0, &incompressible_batch()).unwrap();
    let (mut base, mut written) = (0, 0);
    while written < bytes {
        let wire = template.wire_at(base);
        written += wire.len() as u64;
        writer.push(&CanonicalRecord::from_wire(wire).unwrap(), Default::default()).unwrap();
        base += template.span();
    }
    let built = writer.finish().unwrap();
    let entry = ArchiveEntry::new(rooms.catalog.cluster(), &identity, 1, built.summary.clone());
    rooms.store.put_file(&entry.key(), &built.path).await.unwrap();
    let edit = Edit { add: vec![entry.clone()], ..Edit::default() };
    rooms.catalog.commit(tp, 0, None, edit).await.unwrap();
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn one_mib_in_the_middle_of_a_large_archive_costs_two_ranged_reads() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().join("store").display());
    let config =
        Config { writer_id: Some("w".to_owned()), store: Some(url.clone()), ..Config::default() };
    let tp = TopicPartition::new(TopicName::new("large").unwrap(), 0).unwrap();
    let writing = Rooms::open_for_writing(&config).unwrap();
    let entry = one_archive(&writing, &tp, 257 * MIB).await;
    assert!(entry.summary.length >= 256 * MIB, "{} bytes", entry.summary.length);

    // A process that has just started: nothing is cached.
    let cold = Rooms::over(Store::open(&url).unwrap(), &config).unwrap();
    cold.fetcher.snapshot(&tp, None).await.unwrap();
    let before = cold.store.requests();
    let middle = entry.summary.range.last() / 2;
    let request = PartitionRequest { max_bytes: MIB, ..all_from(&tp, middle) };
    let (sink, mut events) = tokio::sync::mpsc::channel(100);
    let stats = ReadStats::default();
    let request = FetchRequest { partitions: vec![request], max_bytes: MIB };
    cold.fetcher.fetch(request, &sink, &stats).await.unwrap();
    drop(sink);
    let mut answer = 0;
    while let Some(event) = events.recv().await {
        match event {
            FetchEvent::Data(data) => answer += data.wire.len() as u64,
            FetchEvent::Trailer(trailer) => assert_eq!(trailer.status, Status::Ok),
            FetchEvent::Header(_) => {}
        }
    }
    assert!(answer > MIB - 70_000 && answer <= MIB, "{answer} bytes came");

    let spent = cold.store.requests().since(&before);
    let ranged = spent.of(Op::GetRange);
    let allowed = u64::from(entry.summary.toc.length) + answer + 2 * CHUNK;
    println!(
        "1 MiB of {} MiB: {} ranged reads, {} bytes, of {allowed} allowed",
        entry.summary.length / MIB,
        ranged.requests,
        ranged.bytes
    );
    assert!(ranged.requests <= 2, "{ranged:?}");
    assert!(ranged.bytes <= allowed, "{ranged:?}, {allowed} allowed");
    assert_eq!(spent.of(Op::Get).bytes, 0, "no object was read whole");
}

#[test]
fn a_segment_of_one_gib_is_archived_in_less_than_256_mib() {
    if std::env::var_os("TIERD_TEST_LARGE").is_none() {
        println!("skipped: set TIERD_TEST_LARGE=1 to archive a segment of 1 GiB (3 GB of disk)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let wal = folder.path().join("wal");
    let mut segment = WalWriter::create(&wal, "large", 0, 0).unwrap();
    let wire = sample_batch(0, 100, 200, Codec::None).unwrap();
    let mut template = Template::new("large", 0, &wire).unwrap();
    let end = segment.fill(&mut template, 0, 1 << 30).unwrap();
    let path = segment.finish().unwrap();
    assert!(std::fs::metadata(path).unwrap().len() >= 1 << 30);

    let tierd = Tierd::new(TIERD, folder.path());
    let mut command = tierd.command();
    command.args(["run", "--once", "--offline", "--json", "--wal-dir"]).arg(&wal);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success());
    println!("1 GiB segment, {end} records: {} MiB resident at most", peak / MIB);
    assert!(peak > 0 && peak < 256 * MIB, "{} MiB", peak / MIB);
    let listed = tierd.run(&["ls", "--json"]).ok().text();
    assert!(listed.contains(&format!("\"archived_through\":{end}")), "{listed}");
}
