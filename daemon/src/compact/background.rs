//! Owns compaction of a running daemon: one small step after the other, no faster
//! than its pace, everything it leaves undone told as numbers.
//!
//! A round looks at every partition and applies retention, then carries out the merges,
//! partition by partition. Now and then it collects garbage. What goes wrong with one
//! partition is logged and stops no other; the next round tries again.
//!
//! A merge whose inputs are lost, damaged or refused would fail in every round and stop
//! the ones behind it. So its inputs are left as they are, until garbage is collected
//! next: somebody has to act, and need not restart the daemon afterwards.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::gc::{Grace, Swept};
use super::merge::{MergeJob, Merged};
use super::{CompactError, Compactor, Policy};
use crate::catalog::Snapshot;
use crate::error::{Classify, ErrorKind};
use crate::metrics::Metrics;
use crate::record::{TopicName, TopicPartition};
use crate::store::PartitionKey;
use crate::task::{Pace, Ticker};

/// How often partitions are looked at where nothing else is said.
pub const EVERY_DEFAULT: Duration = Duration::from_secs(600);
/// Bytes moved a second where nothing else is said: a quarter of a line of 1 Gbit/s.
pub const BYTES_PER_SECOND_DEFAULT: u64 = 32 << 20;
/// Rounds from one collection of garbage to the next: an hour by default.
const ROUNDS_PER_GC: u64 = 6;

/// What topics keep.
pub type Policies = Box<dyn Fn(&TopicName) -> Policy + Send + Sync>;

/// Archives, by digest, that are not joined with the one behind them.
type Borders = HashMap<PartitionKey, HashSet<[u8; 32]>>;

/// The compaction of a running daemon.
pub struct Background {
    compactor: Compactor,
    policies: Policies,
    grace: Duration,
    scratch: PathBuf,
    pace: Pace,
    metrics: Metrics,
    /// Archives that refused the one behind them, for good.
    borders: Borders,
    /// Archives whose merge failed, until garbage is collected next.
    failed: Borders,
    rounds: u64,
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").field("rounds", &self.rounds).finish_non_exhaustive()
    }
}

/// What is left to merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Merges.
    pub jobs: u64,
    /// Bytes of their inputs.
    pub bytes: u64,
}

impl Background {
    /// Compacts by `compactor` what `policies` say, in the folder `scratch`, which
    /// is its own.
    #[must_use]
    pub fn new(
        compactor: Compactor,
        policies: Policies,
        grace: Duration,
        scratch: PathBuf,
        pace: Pace,
        metrics: Metrics,
    ) -> Self {
        let (borders, failed, rounds) = (Borders::new(), Borders::new(), 0);
        Self { compactor, policies, grace, scratch, pace, metrics, borders, failed, rounds }
    }

    /// Works in the rhythm of `ticker` until `stop` is cancelled. The first round
    /// is one interval away: a daemon that starts has better things to do.
    pub async fn run(mut self, mut ticker: Ticker, stop: CancellationToken) {
        let work = async {
            ticker.tick().await;
            loop {
                ticker.tick().await;
                self.turn().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    /// A round, then garbage where its turn has come.
    async fn turn(&mut self) {
        or_later(self.round().await);
        if self.rounds.is_multiple_of(ROUNDS_PER_GC) {
            or_later(self.collect().await);
        }
        self.rounds += 1;
    }

    /// Retention everywhere, then every merge that is to do. Returns what is left,
    /// because it failed.
    ///
    /// # Errors
    /// When the store cannot be listed. What goes wrong with one partition does not
    /// stop the others.
    pub async fn round(&mut self) -> Result<Left, CompactError> {
        let now_ms = self.compactor.now_ms().await?;
        let (mut left, mut busy) = (Left::default(), Vec::new());
        for (tp, incarnation) in self.compactor.catalog.partitions().await? {
            match self.look(&tp, incarnation, now_ms).await {
                Ok(Some((_, jobs))) if jobs.is_empty() => {}
                Ok(Some((snapshot, jobs))) => {
                    left.jobs += jobs.len() as u64;
                    left.bytes += jobs.iter().map(MergeJob::bytes).sum::<u64>();
                    busy.push(snapshot.of().clone());
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(partition = %tp, "compaction waits: {error}"),
            }
        }
        self.metrics.compaction_todo(left.jobs, left.bytes);
        for of in busy {
            if let Err(error) = self.merge_all(&of, now_ms, &mut left).await {
                tracing::warn!(partition = %of.tp, "merging waits: {error}");
            }
        }
        Ok(left)
    }

    /// Carries out the merges of one partition, oldest first.
    async fn merge_all(
        &mut self,
        of: &PartitionKey,
        now_ms: i64,
        left: &mut Left,
    ) -> Result<(), CompactError> {
        while let Some((snapshot, jobs)) = self.look(&of.tp, of.incarnation, now_ms).await? {
            let Some(job) = jobs.into_iter().next() else { break };
            if self.merge(snapshot, &job).await? {
                left.jobs = left.jobs.saturating_sub(1);
                left.bytes = left.bytes.saturating_sub(job.bytes());
                self.metrics.compaction_todo(left.jobs, left.bytes);
            }
        }
        Ok(())
    }

    /// Carries `job` out; says whether that is done with, or failed.
    async fn merge(&mut self, base: Arc<Snapshot>, job: &MergeJob) -> Result<bool, CompactError> {
        let of = base.of().clone();
        match self.compactor.merge(base, job, &self.scratch, &self.pace).await {
            Ok(Merged::Committed(..)) => self.metrics.compacted(job.bytes()),
            Ok(Merged::Overtaken(_)) => {}
            Ok(Merged::Refused(digest, why)) => {
                tracing::debug!(partition = %of.tp, "a border stays: {why}");
                self.borders.entry(of).or_default().insert(digest);
            }
            // It passes by itself, and would befall the next one too.
            Err(error) if passes(error.kind()) => return Err(error),
            Err(error) => {
                let range = job.range();
                tracing::error!(partition = %of.tp, ?range, "archives stay unmerged: {error}");
                self.metrics.compaction_failed();
                let inputs = job.inputs.iter().map(|one| one.summary.digest);
                self.failed.entry(of).or_default().extend(inputs);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Applies retention to one partition and plans its merges.
    async fn look(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        now_ms: i64,
    ) -> Result<Option<(Arc<Snapshot>, Vec<MergeJob>)>, CompactError> {
        let catalog = &self.compactor.catalog;
        let Some(mut snapshot) = catalog.load(tp, Some(incarnation)).await? else {
            return Ok(None);
        };
        let policy = (self.policies)(tp.topic());
        let apart = [&self.borders, &self.failed].into_iter();
        let apart = apart.filter_map(|borders| borders.get(snapshot.of())).flatten().copied();
        let apart = apart.collect();
        let look = |base| self.compactor.todo(base, policy, now_ms, &apart);
        let mut todo = look(Arc::clone(&snapshot)).await?;
        if todo.retained.is_needed() {
            let plan = |base| self.compactor.plan_retention(base, policy, now_ms);
            self.compactor.retain(todo.retained, plan).await?;
            let Some(newer) = catalog.load(tp, Some(incarnation)).await? else { return Ok(None) };
            snapshot = newer;
            todo = look(Arc::clone(&snapshot)).await?;
        }
        if !self.compactor.is_ours(&snapshot, now_ms) {
            todo.merges.clear();
        }
        Ok(Some((snapshot, todo.merges)))
    }

    /// Deletes the garbage that may go now, and gives merges that failed another try.
    ///
    /// # Errors
    /// When store or catalog fail.
    pub async fn collect(&mut self) -> Result<Swept, CompactError> {
        self.failed.clear();
        let grace = Grace { now_ms: self.compactor.store_now_ms().await?, grace: self.grace };
        let mut swept = Swept::default();
        for (tp, incarnation) in self.compactor.catalog.partitions().await? {
            let collected = async {
                let survey = self.compactor.survey(&tp, incarnation, grace).await?;
                self.compactor.sweep(survey, grace).await
            };
            match collected.await {
                Ok(more) => swept = swept.plus(more),
                Err(error) => tracing::warn!(partition = %tp, "garbage waits: {error}"),
            }
        }
        let strays = self.compactor.strays(grace).await?;
        swept = swept.plus(self.compactor.sweep_strays(&strays).await?);
        self.metrics.collected(swept.objects, swept.bytes);
        Ok(swept)
    }
}

/// Whether an error says nothing about what was to be merged.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Retry | ErrorKind::Exhausted | ErrorKind::Fenced)
}

/// What failed is for the next round.
fn or_later<T>(done: Result<T, CompactError>) -> Option<T> {
    done.map_err(|error| tracing::warn!("compaction waits: {error}")).ok()
}
