//! The daemon as a process beside a broker that writes, and what must hold at the
//! end whatever became of both and of the store.

#![allow(clippy::disallowed_methods, reason = "a real process is waited for by the real clock")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::broker::Broker;
use crate::process::{Served, Tierd};

/// Size at which the broker rotates here.
pub const ROTATE_BYTES: u64 = 48 << 10;
/// How long a test waits for what should come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A WAL, a store and the daemon between them.
#[derive(Debug)]
pub struct Beside {
    folder: tempfile::TempDir,
    /// The daemon's binary, on the store.
    pub tierd: Tierd,
}

impl Beside {
    /// On a store in a folder of its own.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new(binary: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let tierd = Tierd::new(binary, folder.path());
        Ok(Self { folder, tierd })
    }

    /// On the store at `url`, which `environment` sets up.
    #[must_use]
    pub fn on_store(self, url: &str, environment: &[(String, String)]) -> Self {
        Self { tierd: self.tierd.on_store(url, environment), ..self }
    }

    /// The folder of all of it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The broker's WAL.
    #[must_use]
    pub fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    /// The file that the broker touches when it starts.
    #[must_use]
    pub fn started(&self) -> PathBuf {
        self.folder.path().join("broker-started")
    }

    /// A broker of three partitions.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn broker(&self, seed: u64) -> Result<Broker> {
        let partitions = [("orders", 0), ("orders", 1), ("日志", 0)];
        Broker::new(&self.wal(), &self.started(), &partitions, ROTATE_BYTES, seed)
    }

    /// The daemon, with a settle time and a gap timeout.
    #[must_use]
    pub fn daemon(&self, settle: &str, gap_timeout: &str) -> Served {
        let (started, bytes) = (self.started().display().to_string(), ROTATE_BYTES.to_string());
        let started = ["--broker-started-at", &started, "--rotated-bytes-min", &bytes];
        let times = ["--settle", settle, "--gap-timeout", gap_timeout];
        self.tierd.live(&self.wal(), &[started, times].concat())
    }

    /// Every batch in the archive of a partition, sorted, straight from the store.
    #[must_use]
    pub fn archived(&self, topic: &str, partition: i32) -> Vec<Bytes> {
        let number = partition.to_string();
        let all =
            ["fetch", topic, &number, "--offset", "0", "--format", "raw", "--overlaps", "all"];
        let mut wire = Bytes::from(self.tierd.run(&all).stdout);
        let mut batches = Vec::new();
        while let Some(length) = wire.get(8..12) {
            let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            batches.push(wire.split_to(12 + length));
        }
        batches.sort_unstable();
        batches
    }

    /// Waits until everything in segments of earlier processes is archived; then
    /// checks the whole.
    ///
    /// # Panics
    /// When a batch is missing, twice there or nobody's, or `verify --deep` is not
    /// clean.
    pub fn expect_everything(&self, broker: &Broker) {
        let deadline = Instant::now() + PATIENCE;
        for (topic, number) in broker.partitions() {
            let closed = broker.closed(&topic, number);
            assert!(closed.len() > 20, "{topic}-{number} was hardly written to");
            let archived = loop {
                let archived = self.archived(&topic, number);
                let missing = closed.iter().filter(|b| archived.binary_search(b).is_err()).count();
                if missing == 0 {
                    break archived;
                }
                assert!(Instant::now() < deadline, "{topic}-{number}: {missing} are not archived");
                std::thread::sleep(Duration::from_millis(200));
            };
            assert!(archived.is_sorted_by(|a, b| a < b), "{topic}-{number}: one is there twice");
            let written = broker.written(&topic, number);
            let foreign = archived.iter().filter(|b| written.binary_search(b).is_err()).count();
            assert_eq!(foreign, 0, "{topic}-{number}: batches nobody wrote");
        }
        let deep = self.tierd.run(&["verify", "--deep"]).ok();
        assert!(!deep.text().contains("CORRUPT"), "{}", deep.text());
    }
}

/// Lets the broker run for `time`, with a restart now and then.
///
/// # Errors
/// When the file system refuses.
pub fn write_for(broker: &mut Broker, random: &mut StdRng, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        broker.produce()?;
        std::thread::sleep(Duration::from_millis(random.random_range(2..15)));
        match random.random_range(0..200) {
            0 => {
                broker.kill()?;
                broker.start()?;
            }
            1 => {
                broker.stop()?;
                broker.start()?;
            }
            _ => {}
        }
    }
    Ok(())
}
