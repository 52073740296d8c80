//! Owns the metrics: their list, and a handle through which rooms count.
//!
//! Does not own serving them (`http`) nor what is counted. A [`Metrics`] comes in
//! as an argument; nothing here is global, so that two daemons in one process, as
//! in a test, never share a number.
//!
//! Three ways in: rooms call a method as something happens ([`Metrics::fetch_begins`],
//! [`Metrics::committed`]), tell where they stand ([`Metrics::stands`]), or are asked
//! when the page is asked for ([`Metrics::count_store_by`]).

mod archiving;
mod list;
mod searches;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Registry, TextEncoder};

use self::archiving::Backlogs;
use self::list::List;
use crate::clock::Clock;
use crate::record::TopicPartition;

pub use archiving::{Backlog, SegmentClass, Stage, Stall};
pub use searches::{SearchCall, SearchOutcome, SearchedArchives};

/// Media type of the page: the text format of Prometheus.
pub const MEDIA_TYPE: &str = prometheus::TEXT_FORMAT;

/// The list of metrics contradicts itself, which is a defect.
#[derive(Debug, thiserror::Error)]
#[error("the metrics do not fit together: {0}; this is a defect of tierd")]
pub struct MetricsError(#[from] prometheus::Error);

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every partition was answered, well or not.
    Answered,
    /// The caller left before the end.
    Cancelled,
    /// The request made no sense.
    Refused,
}

impl Outcome {
    /// Every outcome, in the order of the declaration.
    pub const ALL: [Self; 3] = [Self::Answered, Self::Cancelled, Self::Refused];

    /// One word, the value of the label `outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}

/// What one fetch cost in one of the caches it read through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCost {
    /// Found in memory.
    pub hits: u64,
    /// Requested from the store.
    pub misses: u64,
    /// Bytes that came for the misses.
    pub bytes: u64,
}

/// What one fetch cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCost {
    /// Archives that were opened.
    pub archives: u64,
    /// Tables of contents.
    pub toc: CacheCost,
    /// Chunks.
    pub chunk: CacheCost,
}

/// One sort of request to the object store, counted since the process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreCount {
    /// The sort, the value of the label `op`.
    pub op: &'static str,
    /// Attempts.
    pub requests: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Bytes sent or received.
    pub bytes: u64,
}

/// Reads a store's counters.
type StoreCounts = Box<dyn Fn() -> Vec<StoreCount> + Send + Sync>;

/// The metrics of one daemon. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    list: List,
    clock: Arc<dyn Clock>,
    gathered: Mutex<Gathered>,
}

/// What becomes numbers only when the page is asked for.
#[derive(Default)]
struct Gathered {
    store: Option<StoreCounts>,
    quarantined: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
    backlogs: Backlogs,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics at zero. Durations and ages are read from `clock`.
    ///
    /// # Errors
    /// Only by a defect in the list of metrics.
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let list = List::register(&registry)?;
        let gathered = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { registry, list, clock, gathered }) })
    }

    /// Makes the page show `statuses` and `stages` of fetches before one occurs.
    pub fn expect_of_fetches(&self, statuses: &[&str], stages: &[&str]) {
        for status in statuses {
            self.inner.list.fetch_partitions.with_label_values(&[status]);
        }
        for stage in stages {
            self.inner.list.fetch_errors.with_label_values(&[stage]);
        }
    }

    /// A fetch begins; it is counted when what is returned is dropped.
    #[must_use]
    pub fn fetch_begins(&self) -> FetchCall {
        self.inner.list.fetch_in_flight.inc();
        let began = self.inner.clock.monotonic();
        FetchCall { metrics: self.clone(), began, outcome: Outcome::Cancelled }
    }

    /// A fetch was refused before it began.
    pub fn fetch_refused(&self) {
        let refused = Outcome::Refused.as_str();
        self.inner.list.fetch_requests.with_label_values(&[refused]).inc();
    }

    /// Makes the page show `outcomes` of steps before one occurs.
    pub fn expect_of_steps(&self, outcomes: &[&str]) {
        for outcome in outcomes {
            self.inner.list.steps.with_label_values(&[outcome]);
        }
    }

    /// Tells where a partition of the WAL stands.
    pub fn stands(&self, tp: &TopicPartition, backlog: Backlog) {
        self.gathered().backlogs.set(tp, backlog);
    }

    /// Forgets a partition that left the WAL directory.
    pub fn forget(&self, tp: &TopicPartition) {
        self.gathered().backlogs.forget(tp);
    }

    /// Where a partition of the WAL stands, and the age of its backlog in
    /// milliseconds; `None` where this daemon archives none of that name.
    #[must_use]
    pub fn backlog(&self, tp: &TopicPartition) -> Option<(Backlog, i64)> {
        let backlog = self.gathered().backlogs.of(tp)?;
        Some((backlog, backlog.age_ms(self.inner.clock.now_ms())))
    }

    /// The partitions of the WAL, ascending.
    #[must_use]
    pub fn partitions(&self) -> Vec<TopicPartition> {
        self.gathered().backlogs.partitions().cloned().collect()
    }

    /// An archive of `tp` was committed, which is archived up to `through` now: so
    /// many batches, bytes of log and bytes of object.
    pub fn committed(
        &self,
        tp: &TopicPartition,
        through: i64,
        batches: u64,
        log_bytes: u64,
        bytes: u64,
    ) {
        let list = &self.inner.list;
        list.committed_archives.inc();
        list.committed_batches.inc_by(batches);
        list.committed_bytes.inc_by(bytes);
        list.last_commit.set(self.inner.clock.now_ms() as f64 / 1e3);
        self.gathered().backlogs.shrink(tp, through, log_bytes);
    }

    /// A segment of so many bytes was deleted.
    pub fn reclaimed(&self, bytes: u64) {
        self.inner.list.reclaimed_segments.inc();
        self.inner.list.reclaimed_bytes.inc_by(bytes);
    }

    /// A step of archiving begins; it is counted when what is returned is dropped.
    #[must_use]
    pub fn step_begins(&self) -> StepCall {
        self.inner.list.steps_in_flight.inc();
        StepCall { metrics: self.clone() }
    }

    /// A part of a step begins; its time is taken when what is returned is dropped.
    #[must_use]
    pub fn stage_begins(&self, stage: Stage) -> StageCall {
        let began = self.inner.clock.monotonic();
        StageCall { metrics: self.clone(), stage, began }
    }

    /// What compaction has to do: merges, and bytes of their inputs.
    pub fn compaction_todo(&self, jobs: u64, bytes: u64) {
        let shown = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.inner.list.compaction_jobs.set(shown(jobs));
        self.inner.list.compaction_bytes.set(shown(bytes));
    }

    /// Archives of so many bytes were merged.
    pub fn compacted(&self, bytes: u64) {
        self.inner.list.compacted_bytes.inc_by(bytes);
    }

    /// Archives stay as they are because merging them failed; the log says why.
    pub fn compaction_failed(&self) {
        self.inner.list.compaction_failures.inc();
    }

    /// Garbage was deleted.
    pub fn collected(&self, objects: u64, bytes: u64) {
        self.inner.list.collected_objects.inc_by(objects);
        self.inner.list.collected_bytes.inc_by(bytes);
    }

    /// The scrub read an archive of so many bytes.
    pub fn scrubbed(&self, bytes: u64, damaged: bool) {
        let list = &self.inner.list;
        let result = list::SCRUB_RESULTS[usize::from(damaged)];
        list.scrub_archives.with_label_values(&[result]).inc();
        list.scrub_bytes.inc_by(bytes);
    }

    /// The scrub ended a round.
    pub fn scrubbed_all(&self) {
        self.inner.list.scrub_last_success.set(self.inner.clock.now_ms() as f64 / 1e3);
    }

    /// Reads how many archives are in quarantine from `count` whenever the page is asked
    /// for.
    pub fn count_quarantined_by(&self, count: impl Fn() -> u64 + Send + Sync + 'static) {
        self.gathered().quarantined = Some(Box::new(count));
    }

    /// Reads the store's counters from `counts` whenever the page is asked for.
    pub fn count_store_by(&self, counts: impl Fn() -> Vec<StoreCount> + Send + Sync + 'static) {
        self.gathered().store = Some(Box::new(counts));
    }

    /// The page, in the text format of Prometheus.
    ///
    /// # Errors
    /// Only by a defect in the list of metrics.
    pub fn page(&self) -> Result<String, MetricsError> {
        let list = &self.inner.list;
        // Held to the end: two pages at once must not add the same requests twice.
        let gathered = self.gathered();
        for count in gathered.store.as_ref().map(|counts| counts()).unwrap_or_default() {
            for (counters, total) in [
                (&list.store_requests, count.requests),
                (&list.store_failures, count.failures),
                (&list.store_bytes, count.bytes),
            ] {
                let counter = counters.with_label_values(&[count.op]);
                counter.inc_by(total.saturating_sub(counter.get()));
            }
        }
        let quarantined = gathered.quarantined.as_ref().map_or(0, |count| count());
        list.quarantined_archives.set(i64::try_from(quarantined).unwrap_or(i64::MAX));
        gathered.backlogs.sum_up(list, self.inner.clock.now_ms());
        Ok(TextEncoder::new().encode_to_string(&self.inner.registry.gather())?)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.inner.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One fetch under way. Dropped before [`Self::answered`], it was cancelled.
#[derive(Debug)]
pub struct FetchCall {
    metrics: Metrics,
    began: Duration,
    outcome: Outcome,
}

impl FetchCall {
    /// Batches go to the caller.
    pub fn sends(&self, batches: u64, bytes: u64) {
        self.metrics.inner.list.fetch_batches.inc_by(batches);
        self.metrics.inner.list.fetch_bytes.inc_by(bytes);
    }

    /// A partition is answered with `status`; where that is a failure, `stage` failed.
    pub fn partition(&self, status: &str, stage: Option<&str>) {
        let list = &self.metrics.inner.list;
        list.fetch_partitions.with_label_values(&[status]).inc();
        if let Some(stage) = stage {
            list.fetch_errors.with_label_values(&[stage]).inc();
        }
    }

    /// What the fetch cost, told once.
    pub fn cost(&self, cost: &ReadCost) {
        let list = &self.metrics.inner.list;
        list.read_archives.inc_by(cost.archives);
        for (cache, cost) in list::CACHES.iter().zip([cost.toc, cost.chunk]) {
            list.cache_hits.with_label_values(&[cache]).inc_by(cost.hits);
            list.cache_misses.with_label_values(&[cache]).inc_by(cost.misses);
            list.read_bytes.with_label_values(&[cache]).inc_by(cost.bytes);
        }
    }

    /// Every partition was answered.
    pub fn answered(mut self) {
        self.outcome = Outcome::Answered;
    }
}

impl Drop for FetchCall {
    fn drop(&mut self) {
        let list = &self.metrics.inner.list;
        let took = self.metrics.inner.clock.monotonic().saturating_sub(self.began);
        list.fetch_in_flight.dec();
        list.fetch_duration.observe(took.as_secs_f64());
        list.fetch_requests.with_label_values(&[self.outcome.as_str()]).inc();
    }
}

/// One step of archiving under way.
#[derive(Debug)]
pub struct StepCall {
    metrics: Metrics,
}

impl StepCall {
    /// It ended so, one of the words given to [`Metrics::expect_of_steps`].
    pub fn ends(self, outcome: &str) {
        self.metrics.inner.list.steps.with_label_values(&[outcome]).inc();
    }
}

impl Drop for StepCall {
    fn drop(&mut self) {
        self.metrics.inner.list.steps_in_flight.dec();
    }
}

/// One part of a step under way.
#[derive(Debug)]
pub struct StageCall {
    metrics: Metrics,
    stage: Stage,
    began: Duration,
}

impl Drop for StageCall {
    fn drop(&mut self) {
        let took = self.metrics.inner.clock.monotonic().saturating_sub(self.began);
        let times = &self.metrics.inner.list.stage_duration;
        times.with_label_values(&[self.stage.as_str()]).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
