//! What the machine does to the daemon's real process: a disk that is full, a disk that
//! cannot keep what was written, file events that are lost, folders that vanish, no handle
//! left, little memory.

mod cgroup;
mod disk;
mod files;
mod fsync;
mod handles;
mod memory;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierd::record::{CanonicalRecord, Codec};
use tierd_proto::v1::Status;
use tierd_tests::beside::{Beside, PATIENCE};
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::process::Served;
use tierd_tests::reads::{Answer, fetch, request};

use crate::block_on;

/// Bytes of a batch of [`noise`].
const NOISE_BYTES: usize = 256 << 10;

/// Says what a test of this machine could not do, in every run: what passing tests print
/// is not shown.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "environment: {what}");
}

/// Waits for something that should come.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: it does not come to it");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A batch of one record that does not compress.
fn noise(base: i64) -> Bytes {
    let sample =
        CanonicalRecord::from_wire(sample_batch(base, 1, 1, Codec::None).unwrap()).unwrap();
    let mut entries = sample.decode().unwrap();
    let mut value = vec![0; NOISE_BYTES];
    blake3::Hasher::new().update(&base.to_le_bytes()).finalize_xof().fill(&mut value);
    entries[0].value = Some(value.into());
    CanonicalRecord::from_entries(*sample.header(), entries).unwrap().to_kafka_batch().unwrap()
}

/// A whole segment of partition 0; its batches as one.
fn segment(bench: &Beside, topic: &str, id: u64, batches: &[Bytes]) -> Vec<u8> {
    let mut segment = WalWriter::create(&bench.wal(), topic, 0, id).unwrap();
    for batch in batches {
        segment.append(batch).unwrap();
    }
    segment.finish().unwrap();
    batches.concat()
}

/// Batches of ten records each, from offset 0 on.
fn tens(count: i64) -> Vec<Bytes> {
    (0..count).map(|n| sample_batch(10 * n, 10, 100, Codec::None).unwrap()).collect()
}

/// Marks the start of a broker: what was written before is closed.
fn broker_starts(bench: &Beside) {
    // Longer than a tick of the clock that stamps files.
    std::thread::sleep(Duration::from_millis(25));
    std::fs::write(bench.started(), "").unwrap();
}

/// All of partition 0 of a topic, as a consumer reads it.
fn read(daemon: &Served, topic: &str) -> Answer {
    block_on(fetch(daemon, request(topic, 0))).unwrap()
}

/// The whole of a topic that is archived.
fn expect_whole(daemon: &Served, topic: &str, written: &[u8]) {
    let answer = read(daemon, topic);
    let trailer = &answer.trailers[0];
    assert_eq!(trailer.status(), Status::Ok, "{topic}: {}", trailer.message);
    assert!(answer.wire == written, "{topic}: {} bytes are not as written", answer.wire.len());
}

/// Waits until a topic is archived whole.
fn until_whole(daemon: &Served, topic: &str, written: &[u8]) {
    until(&format!("{topic} is archived"), || read(daemon, topic).wire.len() >= written.len());
    expect_whole(daemon, topic, written);
}

/// `inner`, with its environment, as what `outer` is told to become.
fn within(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Partitions that do not get on for `reason`.
fn stalled(daemon: &Served, reason: &str) -> f64 {
    let name = format!("tierd_partitions_stalled{{reason=\"{reason}\"}}");
    daemon.metrics().get(&name).copied().unwrap_or_default()
}

/// A daemon that archives what is closed.
fn live(bench: &Beside) -> Served {
    let started = bench.started().display().to_string();
    let args = ["--settle", "0s", "--gap-timeout", "1s", "--broker-started-at", &started];
    bench.tierd.live(&bench.wal(), &args)
}

/// Stops a daemon in order.
fn stop(daemon: Served) {
    daemon.terminate();
    assert_eq!(daemon.wait(), 0);
}
