//! Owns the metrics: their list, and a handle through which rooms count.
//!
//! Does not own serving them (`http`) nor what is counted. A [`Metrics`] comes in
//! as an argument; nothing here is global, so that two daemons in one process, as
//! in a test, never share a number.
//!
//! Two ways in: rooms call a method as something happens ([`Metrics::fetch_begins`]),
//! or are asked when the page is asked for ([`Metrics::count_store_by`]).

mod list;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Registry, TextEncoder};

use self::list::List;
use crate::clock::Clock;

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

#[cfg(test)]
mod tests;
