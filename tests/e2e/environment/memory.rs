//! Little memory: a large segment is archived while many read, some of them slowly, in
//! a process that cannot have more than so much.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tierd::record::Codec;
use tierd_proto::v1::archive_client::ArchiveClient;
use tierd_proto::v1::{FetchArchivedRequest, Status};
use tierd_tests::beside::Beside;
use tierd_tests::chronik::{Template, WalWriter, sample_batch};
use tierd_tests::process::{Served, peak_memory};
use tierd_tests::reads::{Answer, connect, request};
use tonic::Code;

use super::cgroup::Cgroup;
use super::{broker_starts, say, stop, within};
use crate::{TIERD, block_on};

const MIB: u64 = 1 << 20;
/// What the process may have; beyond it the system kills or refuses.
const MEMORY: u64 = 512 * MIB;
/// Clients that read all the time, each as a broker does: 1 MiB at a time.
const READERS: usize = 40;
/// Clients that ask for everything, and take nothing but the first message of it for as
/// long as the segment is being archived.
const SLEEPERS: usize = 24;
/// How long a reader leaves the daemon alone that has no room for it.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of the segment that is read.
const READ_SEGMENT: u64 = 128 * MIB;

/// Bytes of the segment that is archived meanwhile.
fn segment_bytes() -> u64 {
    if std::env::var_os("TIERD_TEST_LARGE").is_some() { 1 << 30 } else { 96 * MIB }
}

/// A segment of about so many bytes; its batches as one, and how many of them there are.
fn large(bench: &Beside, topic: &str, bytes: u64) -> (Vec<u8>, usize, i64) {
    let mut segment = WalWriter::create(&bench.wal(), topic, 0, 0).unwrap();
    let wire = sample_batch(0, 100, 200, Codec::None).unwrap();
    let mut template = Template::new(topic, 0, &wire).unwrap();
    let end = segment.fill(&mut template, 0, bytes).unwrap();
    segment.finish().unwrap();
    let bases = (0..end).step_by(usize::try_from(template.span()).unwrap());
    let all: Vec<_> = bases.map(|base| template.wire_at(base)).collect();
    (all.concat(), all.len(), end)
}

/// What `work` comes to; `None` where the daemon has no room for it now.
fn admitted<T>(work: Result<T, anyhow::Error>) -> Option<T> {
    match work {
        Ok(done) => Some(done),
        Err(error) => {
            let status = error.downcast_ref::<tonic::Status>().expect("the daemon answers");
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            None
        }
    }
}

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    done: AtomicBool,
    reads: AtomicU64,
    refused: AtomicU64,
    slept: AtomicU64,
}

impl Seen {
    fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(REFUSED_PAUSE);
    }

    /// Reads a MiB from one batch after the other on.
    async fn reads(&self, daemon: &Served, written: &[u8], batches: usize, mut at: usize) {
        let batch = written.len() / batches;
        let mut client = ArchiveClient::new(connect(daemon).await.unwrap());
        while !self.done.load(Ordering::Relaxed) {
            let asked =
                FetchArchivedRequest { max_bytes: Some(MIB), ..request("read", at as i64 * 100) };
            let answer = async {
                let mut stream = client.fetch_archived(asked).await?.into_inner();
                let mut answer = Answer::default();
                answer.take_all(&mut stream).await?;
                Ok(answer)
            };
            let Some(answer) = admitted(answer.await) else {
                self.refused();
                continue;
            };
            assert_eq!(answer.trailers[0].status(), Status::Ok, "{}", answer.trailers[0].message);
            assert!(!answer.wire.is_empty() && written[at * batch..].starts_with(&answer.wire));
            self.reads.fetch_add(1, Ordering::Relaxed);
            at = (at + 997) % batches;
        }
    }

    /// Asks for everything and takes it in the end.
    async fn sleeps(&self, daemon: &Served, written: &[u8]) {
        let mut client = ArchiveClient::new(connect(daemon).await.unwrap());
        while !self.done.load(Ordering::Relaxed) {
            let asked = client.fetch_archived(request("read", 0)).await;
            let Some(stream) = admitted(asked.map_err(Into::into)) else {
                self.refused();
                continue;
            };
            let mut stream = stream.into_inner();
            self.slept.fetch_add(1, Ordering::Relaxed);
            let mut answer = Answer::default();
            answer.take(stream.message().await.unwrap().unwrap());
            while !self.done.load(Ordering::Relaxed) {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            answer.take_all(&mut stream).await.unwrap();
            assert!(answer.wire == written, "{} bytes are not as written", answer.wire.len());
        }
    }
}

/// Table: F20 F24 I6 I12 | the process has 512 MiB, in a control group where one can be made
#[test]
fn sixty_four_readers_beside_a_large_segment_stay_within_512_mib() {
    let bench = Beside::new(TIERD).unwrap();
    let (written, batches, _) = large(&bench, "read", READ_SEGMENT);
    let _ = bench.tierd.archive(&bench.wal()).ok();
    let bytes = segment_bytes();
    let (_, _, end) = large(&bench, "large", bytes);
    broker_starts(&bench);

    let group = Cgroup::new(MEMORY);
    let limited = group.as_ref().map(Cgroup::inside).unwrap_or_else(|why| {
        say(&format!("no control group can be made here, the limit is `ulimit -d`: {why}"));
        let mut shell = Command::new("sh");
        // KiB of data, stacks of threads included.
        let limit = (MEMORY / 1024).to_string();
        shell.args(["-c", r#"ulimit -d "$0" && exec "$@""#, &limit]);
        shell
    });
    let mut run = bench.tierd.command();
    run.args(["run", "--listen", "127.0.0.1:0", "--settle", "0s", "--wal-dir"]);
    run.arg(bench.wal()).arg("--broker-started-at").arg(bench.started());
    let daemon = Served::start(within(limited, &run));
    let seen = Seen::default();
    std::thread::scope(|scope| {
        for number in 0..READERS {
            let (seen, daemon, written) = (&seen, &daemon, &written);
            let at = number * batches / READERS;
            scope.spawn(move || block_on(seen.reads(daemon, written, batches, at)));
        }
        for _ in 0..SLEEPERS {
            scope.spawn(|| block_on(seen.sleeps(&daemon, &written)));
        }
        let archived = || {
            let listed = bench.tierd.run(&["ls", "--json"]).ok().text();
            listed.lines().any(|line| {
                line.contains("\"large\"") && line.contains(&format!("\"archived_through\":{end}"))
            })
        };
        // As long as it takes: 1 GiB with 64 readers on two cores is minutes.
        while !archived() && peak_memory(daemon.id()).is_some() {
            std::thread::sleep(Duration::from_millis(500));
        }
        seen.done.store(true, Ordering::Relaxed);
    });
    let peak = peak_memory(daemon.id()).expect("the daemon lives");
    println!(
        "a segment of {} MiB beside {READERS} readers and {SLEEPERS} sleepers of {} MiB: {seen:?}, \
         {} MiB resident at most, {:?} MiB with files, of {}",
        bytes / MIB,
        written.len() as u64 / MIB,
        peak / MIB,
        group.as_ref().ok().and_then(Cgroup::peak).map(|peak| peak / MIB),
        MEMORY / MIB
    );
    assert!(peak < MEMORY, "{} MiB", peak / MIB);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert!(count(&seen.reads) > 0 && count(&seen.slept) > 0, "nothing was read");
    stop(daemon);
    if let Ok(group) = group {
        assert_eq!(group.kills(), 0, "the system killed");
    }
}
