//! Owns compaction of a running daemon: one small step after the other, no faster
//! than its pace, everything it leaves undone told as numbers.
//!
//! A step looks at every partition, applies retention, and carries out one merge.
//! Now and then it collects garbage. What goes wrong with one partition is logged
//! and stops no other; the next round tries again.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::gc::{Grace, Swept};
use super::merge::{self, MergeJob, Merged};
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

/// The compaction of a running daemon.
pub struct Background {
    compactor: Compactor,
    policies: Policies,
    grace: Duration,
    scratch: PathBuf,
    pace: Pace,
    metrics: Metrics,
    /// Archives that refused the one behind them.
    borders: HashMap<PartitionKey, HashSet<[u8; 32]>>,
    rounds: u64,
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").field("rounds", &self.rounds).finish_non_exhaustive()
    }
}

/// What is left to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Todo {
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
        let (borders, rounds) = (HashMap::new(), 0);
        Self { compactor, policies, grace, scratch, pace, metrics, borders, rounds }
    }

    /// Works in the rhythm of `ticker` until `stop` is cancelled. The first round
    /// is one interval away: a daemon that starts has better things to do.
    pub async fn run(mut self, mut ticker: Ticker, stop: CancellationToken) {
        let work = async {
            ticker.tick().await;
            loop {
                ticker.tick().await;
                self.round().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Steps until nothing is left, then garbage where its turn has come.
    async fn round(&mut self) {
        while let Some(Todo { jobs: 1.., .. }) = or_later(self.step().await) {}
        if self.rounds.is_multiple_of(ROUNDS_PER_GC) {
            or_later(self.collect().await);
        }
        self.rounds += 1;
    }

    /// Retention everywhere, and one merge. Returns what is left to merge.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn step(&mut self) -> Result<Todo, CompactError> {
        let now_ms = self.compactor.now_ms().await?;
        let mut todo = Todo::default();
        let mut first: Option<(Arc<Snapshot>, MergeJob)> = None;
        for (tp, incarnation) in self.compactor.catalog.partitions().await? {
            match self.look(&tp, incarnation, now_ms).await {
                Ok(Some((snapshot, jobs))) => {
                    todo.jobs += jobs.len() as u64;
                    todo.bytes += jobs.iter().map(MergeJob::bytes).sum::<u64>();
                    let job = jobs.into_iter().next();
                    first = first.or(job.map(|job| (snapshot, job)));
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(partition = %tp, "compaction waits: {error}"),
            }
        }
        self.metrics.compaction_todo(todo.jobs, todo.bytes);
        let Some((snapshot, job)) = first else { return Ok(todo) };
        let of = snapshot.of().clone();
        let merged = self.compactor.merge(snapshot, &job, &self.scratch, &self.pace).await;
        match merged {
            Ok(Merged::Committed(..)) => self.metrics.compacted(job.bytes()),
            Ok(Merged::Overtaken(_)) => {}
            Ok(Merged::Refused(left, why)) => {
                tracing::debug!(partition = %of.tp, "a border stays: {why}");
                self.refuse(of, left);
            }
            // What is damaged stays as it is; the others go on.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(partition = %of.tp, "{error}");
                job.inputs.iter().for_each(|one| self.refuse(of.clone(), one.summary.digest));
            }
            Err(error) => return Err(error),
        }
        todo.jobs -= 1;
        todo.bytes -= job.bytes();
        self.metrics.compaction_todo(todo.jobs, todo.bytes);
        Ok(todo)
    }

    fn refuse(&mut self, of: PartitionKey, left: [u8; 32]) {
        self.borders.entry(of).or_default().insert(left);
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
        let plan = |base| self.compactor.plan_retention(base, policy, now_ms);
        let planned = plan(Arc::clone(&snapshot)).await?;
        if planned.is_needed() {
            self.compactor.retain(planned, plan).await?;
            let Some(newer) = catalog.load(tp, Some(incarnation)).await? else { return Ok(None) };
            snapshot = newer;
        }
        let Some(target) = policy.merge_target else { return Ok(Some((snapshot, Vec::new()))) };
        let none = HashSet::new();
        let borders = self.borders.get(snapshot.of()).unwrap_or(&none);
        let entries = snapshot.entries().await?;
        let jobs = merge::plan(&snapshot, &entries, target, borders);
        Ok(Some((snapshot, jobs)))
    }

    /// Deletes the garbage that may go now.
    ///
    /// # Errors
    /// When store or catalog fail.
    pub async fn collect(&mut self) -> Result<Swept, CompactError> {
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

/// What failed is for the next round.
fn or_later<T>(done: Result<T, CompactError>) -> Option<T> {
    done.map_err(|error| tracing::warn!("compaction waits: {error}")).ok()
}
