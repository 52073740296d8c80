//! Owns archiving beside a broker that writes: which partitions have something to
//! do now, one step of one partition, and leaving alone what fails.
//!
//! ```text
//!  look:  list the WAL -> observe -> which partitions are due     every RESCAN, or woken
//!  step:  classify -> scan what is ready -> plan, cut, archive    one partition
//! ```
//!
//! The directory listing is the truth; a step trusts nothing older than the last one
//! and ends with [`Progress::Changed`] where the broker was faster. A partition in
//! which nothing changed costs its listing. Nothing here waits: time is the clock's,
//! and the loop that calls is in [`run`](LiveIndexer::run).

mod backlog;
mod reclaim;
mod release;
mod run;
mod step;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use self::work::{Partition, Work, signature};
use super::lives::Lives;
use super::{IndexError, Indexer, PARTITIONS_AT_ONCE};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::reports::{Lineage, Reports, Role};
use crate::task::{Jitter, Leave};
use crate::wal::classify::{Broker, Rules};
use crate::wal::{BrokerStart, Observations, WalDir};

pub use run::{RESCAN, Watched};

/// How long a segment that cannot be read or deleted is left alone.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(60);

/// What may be archived when.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Where the broker's start is to be learned.
    pub broker: BrokerStart,
    /// When a segment is closed, and when its frames may be taken.
    pub rules: Rules,
    /// How long a hole is waited for at most.
    pub gap_timeout: Duration,
    /// How long another writer who committed last is given for what is to archive.
    pub standby_wait: Duration,
    /// Whether segments that may go are deleted.
    pub reclaim: bool,
}

/// Archives what the broker's WAL holds, while the broker writes or after it.
pub struct LiveIndexer {
    indexer: Indexer,
    wal: WalDir,
    options: LiveOptions,
    clock: Arc<dyn Clock>,
    jitter: Jitter,
    reports: Arc<Reports>,
    partitions: Mutex<BTreeMap<TopicPartition, Partition>>,
    lives: Lives,
    /// Numbers the contents that segments have had, over all partitions.
    file_lives: Arc<AtomicU64>,
    permits: Semaphore,
}

impl std::fmt::Debug for LiveIndexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveIndexer").field("wal", &self.wal).finish_non_exhaustive()
    }
}

/// What a look at the directory came to.
#[derive(Debug, Default)]
pub struct Look {
    /// Partitions in which something may be archived now, ascending.
    pub due: Vec<TopicPartition>,
    /// All partitions, ascending.
    pub all: Vec<TopicPartition>,
    /// What could not be listed.
    pub findings: Vec<String>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything that is ready is committed.
    Done,
    /// These offsets are missing and may still come; what lies behind them waits.
    Waiting(OffsetRange),
    /// There is more, and another writer who committed last has the first turn.
    Standby,
    /// There is more than one step takes.
    More,
    /// The broker changed files meanwhile: look again.
    Changed,
    /// It failed, and is left alone for so long.
    Failed(Leave),
    /// The partition is gone, has a step under way, or the process stops.
    Idle,
}

impl Progress {
    /// Every word of [`Self::as_str`].
    pub const WORDS: [&str; 7] =
        ["done", "waiting", "standby", "more", "changed", "failed", "idle"];

    /// One word, as metrics use it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Waiting(_) => "waiting",
            Self::Standby => "standby",
            Self::More => "more",
            Self::Changed => "changed",
            Self::Failed(_) => "failed",
            Self::Idle => "idle",
        }
    }
}

impl LiveIndexer {
    /// Archives from `wal`. `jitter` spreads waits.
    #[must_use]
    pub fn new(
        indexer: Indexer,
        wal: WalDir,
        options: LiveOptions,
        clock: Arc<dyn Clock>,
        jitter: Jitter,
    ) -> Self {
        let (permits, partitions) = (Semaphore::new(PARTITIONS_AT_ONCE), Mutex::default());
        let (reports, lives) = (Arc::default(), Lives::default());
        Self {
            indexer,
            wal,
            options,
            clock,
            jitter,
            reports,
            partitions,
            lives,
            file_lives: Arc::default(),
            permits,
        }
    }

    /// The same, heeding what the broker reports.
    #[must_use]
    pub fn heeding(self, reports: Arc<Reports>) -> Self {
        Self { reports, ..self }
    }

    /// The WAL it archives.
    #[must_use]
    pub fn wal(&self) -> &WalDir {
        &self.wal
    }

    /// Gives up every archive that is being built, soon. For the end of the process.
    pub fn abandon(&self) {
        self.indexer.abandon();
    }

    /// Lists the WAL and says which partitions are due. Blocking.
    ///
    /// # Errors
    /// When the WAL directory itself cannot be listed.
    pub fn look(&self) -> Result<Look, IndexError> {
        let listing = self.wal.partitions()?;
        let (broker, now) = (self.broker(), self.clock.monotonic());
        let mut partitions = self.partitions();
        let listed: HashSet<&TopicPartition> =
            listing.partitions.iter().map(|dir| &dir.tp).collect();
        partitions.retain(|tp, partition| {
            let there = listed.contains(tp);
            if !there {
                tracing::info!(partition = %tp, "no segment is left of the partition");
                self.metrics().forget(tp);
                partition.seen = Observations::counted_by(&self.file_lives);
            }
            // A step under way has handles of its own and gives its work back here.
            there || partition.work.is_none()
        });
        let topics: HashSet<&TopicName> = listed.iter().map(|tp| tp.topic()).collect();
        self.lives.retain(|topic| topics.contains(topic));
        let mut look = Look { findings: listing.findings, ..Look::default() };
        for dir in listing.partitions {
            let partition = partitions.entry(dir.tp.clone()).or_insert_with(|| Partition {
                seen: Observations::counted_by(&self.file_lives),
                work: Some(Work::new(&self.options, 0)),
            });
            for change in partition.seen.observe(&dir.segments, &*self.clock) {
                tracing::warn!(partition = %dir.tp, "{change}");
            }
            if self.is_due(&dir.tp, partition, broker, now) {
                look.due.push(dir.tp.clone());
            }
            self.tell(&dir.tp, partition, partition.work.as_ref(), broker);
            look.all.push(dir.tp);
        }
        Ok(look)
    }

    fn is_due(
        &self,
        tp: &TopicPartition,
        partition: &Partition,
        broker: Broker,
        now: Duration,
    ) -> bool {
        let Some(work) = &partition.work else { return false };
        if now < work.not_before {
            return false;
        }
        let seen = signature(partition.standing(broker, &self.options.rules, &*self.clock));
        let any_ready = seen.iter().any(|(_, ready)| ready.is_some());
        let freed = work.held_at.is_some() && work.held_at != self.stable_end(tp, broker);
        let leads = work.stands_by && self.leads(tp);
        let renamed = work.topic_id != self.topic_id(tp);
        let woken = freed || leads || renamed || work.wake_at.is_some_and(|at| at <= now);
        any_ready && (woken || work.settled_on.as_ref() != Some(&seen))
    }

    /// Tells where a partition stands; `work` is away while a step has it.
    fn tell(
        &self,
        tp: &TopicPartition,
        partition: &Partition,
        work: Option<&Work>,
        broker: Broker,
    ) {
        let Some(work) = work else { return };
        let standing = partition.standing(broker, &self.options.rules, &*self.clock);
        let log_end = self.reports.of(tp).and_then(|report| report.log_end);
        self.metrics().stands(tp, partition.backlog(standing, work, log_end));
    }

    /// The topic's id, where the broker reported one for `tp`.
    fn topic_id(&self, tp: &TopicPartition) -> Option<[u8; 16]> {
        self.reports.of(tp).and_then(|report| report.topic_id)
    }

    fn metrics(&self) -> &Metrics {
        &self.indexer.metrics
    }

    fn broker(&self) -> Broker {
        let now_ms = self.clock.now_ms();
        match self.options.broker.broker(now_ms) {
            // A start in the future would close what is being written.
            Broker::Running { since_ms } => {
                let reported = self.reports.broker_started_ms().filter(|at| *at <= now_ms);
                Broker::Running { since_ms: since_ms.max(reported) }
            }
            stopped => stopped,
        }
    }

    /// First offset of `tp` that must not be archived yet. A broker that is stopped
    /// truncates nothing any more.
    fn stable_end(&self, tp: &TopicPartition, broker: Broker) -> Option<i64> {
        let report = self.reports.of(tp).filter(|_| broker != Broker::Stopped);
        report.and_then(|report| report.stable_end())
    }

    /// The leader epochs of `tp`, as far as the broker says.
    fn lineage(&self, tp: &TopicPartition) -> Lineage {
        self.reports.of(tp).map(|report| report.lineage).unwrap_or_default()
    }

    /// Whether the broker said last that it leads.
    fn leads(&self, tp: &TopicPartition) -> bool {
        self.reports.of(tp).is_some_and(|report| report.role == Role::Leader)
    }

    fn partitions(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
