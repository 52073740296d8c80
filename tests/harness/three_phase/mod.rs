//! A Kafka broker with three read phases: a buffer, a local WAL whose old files
//! may be gone, and tierd. Real Kafka clients read from it over TCP.
//!
//! It keeps every rule of "What a broker changes around the call" in
//! `tierd-client`'s README, and nothing of it is tierd's but that crate: the WAL is
//! read by the harness's own decoder, transactions are followed by brute force.
//!
//! - `local`: what the broker itself holds of a partition.
//! - `read`: the three phases.
//! - `times`: offsets by time, of the archive and what is local.
//! - `server`: the Kafka protocol in front.
//! - [`client`]: a Kafka client of few lines, where a test wants to see the answer.
//! - [`scene`]: broker, WAL and a real `tierd run` beside them.
//! - [`ledger`]: a WAL of transactions for it.
//!
//! Does not own: writing. The WAL is there when the broker starts.

pub mod client;
pub mod ledger;
mod local;
mod read;
pub mod scene;
mod server;
mod times;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tierd_client::{
    ArchiveClient, ClientOptions, CounterValues, Gap, Phase3, TopicPartition, WatchItem,
};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use local::Partition;

/// Longest wait for the archive: several clients' fetches must fit in a test.
const ARCHIVE_DEADLINE: Duration = Duration::from_secs(5);

/// What the broker does at a declared gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapPolicy {
    /// Consumers stop before it, with an error.
    Refuse,
    /// Consumers go on behind it, and the broker notes the loss.
    GoOn,
}

/// How reads of one partition were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// From the buffer, with batches.
    pub buffer: u64,
    /// From the WAL, with batches.
    pub wal: u64,
    /// Reads that fell back to the archive.
    pub fallbacks: u64,
    /// Of those, answered with batches.
    pub archive: u64,
    /// Kafka errors answered, by number.
    pub errors: BTreeMap<i16, u64>,
    /// Gaps that consumers were led across.
    pub gaps: Vec<Gap>,
}

/// What the phases share.
#[derive(Debug)]
struct Core {
    partitions: Mutex<BTreeMap<(String, i32), Partition>>,
    counts: Mutex<BTreeMap<(String, i32), Counts>>,
    archive: ArchiveClient,
    phase3: Phase3,
    gap_policy: GapPolicy,
}

/// A running broker; it stops when dropped.
#[derive(Debug)]
pub struct ThreePhase {
    core: Arc<Core>,
    address: SocketAddr,
    runtime: Runtime,
}

impl ThreePhase {
    /// Recovers every partition below `wal` and serves them on a free port of
    /// loopback, with the archive at `endpoint` behind.
    ///
    /// # Errors
    /// When the WAL cannot be read or nothing can be listened on.
    pub fn start(wal: &Path, endpoint: &str, gap_policy: GapPolicy) -> Result<Self> {
        let options = ClientOptions { deadline: ARCHIVE_DEADLINE, ..ClientOptions::default() };
        let archive = ArchiveClient::with_options(endpoint, options)?;
        let core = Arc::new(Core {
            partitions: Mutex::new(local::recover(wal)?),
            counts: Mutex::default(),
            phase3: Phase3::new(Arc::new(archive.clone())),
            archive,
            gap_policy,
        });
        let runtime = Runtime::new()?;
        let address = runtime.block_on(server::listen(Arc::clone(&core)))?;
        Ok(Self { core, address, runtime })
    }

    /// `HOST:PORT` for Kafka clients.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// Topics, partitions and high watermarks.
    #[must_use]
    pub fn partitions(&self) -> Vec<(String, i32, i64)> {
        let partitions = lock(&self.core.partitions);
        partitions.iter().map(|((t, p), held)| (t.clone(), *p, held.high_watermark)).collect()
    }

    /// Deletes the segments below `keep_from`, and forgets what it knows from them.
    /// The number of files.
    ///
    /// # Errors
    /// When one holds a batch that is not below `through`, or a file stays.
    pub fn delete_segments(
        &self,
        topic: &str,
        partition: i32,
        keep_from: u64,
        through: i64,
    ) -> Result<usize> {
        let mut partitions = lock(&self.core.partitions);
        let held = partitions.get_mut(&(topic.to_owned(), partition)).context("no partition")?;
        held.delete_segments(keep_from, through)
    }

    /// How reads of a partition were answered so far.
    #[must_use]
    pub fn counts(&self, topic: &str, partition: i32) -> Counts {
        lock(&self.core.counts).get(&(topic.to_owned(), partition)).cloned().unwrap_or_default()
    }

    /// The counters that a broker exports.
    #[must_use]
    pub fn archive_counters(&self) -> CounterValues {
        self.core.phase3.counters()
    }

    /// Waits until the log of a partition may be deleted up to `end`, as the daemon
    /// tells. How far it may.
    ///
    /// # Errors
    /// When it may not within `patience`.
    pub fn await_release(
        &self,
        topic: &str,
        partition: i32,
        end: i64,
        patience: Duration,
    ) -> Result<i64> {
        let mut watch = self.core.archive.watch(&[TopicPartition::new(topic, partition)]);
        let released = async {
            loop {
                // A daemon that is not there yet is asked again.
                if let Ok(WatchItem::Watermark(mark)) = watch.next().await
                    && mark.releasable_through >= end
                {
                    return mark.releasable_through;
                }
            }
        };
        let waited = self.runtime.block_on(async { timeout(patience, released).await });
        waited.with_context(|| format!("{topic}-{partition} is not released up to {end}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
