//! Owns what searches count: how they end, how long they take, what becomes of the
//! archives, what they read.

use std::time::Duration;

use super::Metrics;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchOutcome {
    /// With every hit that was asked for.
    Complete,
    /// With an answer that names what it lacks.
    Incomplete,
    /// The caller left before the end.
    Cancelled,
    /// The request made no sense, or nothing of its scope is archived.
    Refused,
    /// With an error.
    Failed,
}

impl SearchOutcome {
    /// Every outcome, in the order of the declaration.
    pub const ALL: [Self; 5] =
        [Self::Complete, Self::Incomplete, Self::Cancelled, Self::Refused, Self::Failed];

    /// One word, the value of the label `outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// What became of the archives that hold offsets asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchedArchives {
    /// Ruled out by their times.
    pub pruned_by_time: u64,
    /// Ruled out by their key filters.
    pub pruned_by_key: u64,
    /// Searched through their index.
    pub searched: u64,
    /// Read whole.
    pub scanned: u64,
    /// Not readable.
    pub unreadable: u64,
    /// Without an index for the query.
    pub not_searchable: u64,
}

impl SearchedArchives {
    /// The values of the label `fate`.
    pub(super) const FATES: [&'static str; 6] =
        ["pruned_by_time", "pruned_by_key", "searched", "scanned", "unreadable", "not_searchable"];

    fn counts(self) -> [u64; 6] {
        let Self { pruned_by_time, pruned_by_key, searched, scanned, unreadable, not_searchable } =
            self;
        [pruned_by_time, pruned_by_key, searched, scanned, unreadable, not_searchable]
    }
}

impl Metrics {
    /// A search begins; it is counted when what is returned is dropped.
    #[must_use]
    pub fn search_begins(&self) -> SearchCall {
        self.inner.list.search_in_flight.inc();
        let began = self.inner.clock.monotonic();
        SearchCall { metrics: self.clone(), began, outcome: SearchOutcome::Cancelled }
    }
}

/// One search under way. Dropped before [`Self::ends`], it was cancelled.
#[derive(Debug)]
pub struct SearchCall {
    metrics: Metrics,
    began: Duration,
    outcome: SearchOutcome,
}

impl SearchCall {
    /// How many hits the answer has, told once.
    pub fn hits(&self, hits: u64) {
        self.metrics.inner.list.search_hits.inc_by(hits);
    }

    /// What the search read from the store, told once.
    pub fn read(&self, bytes: u64) {
        self.metrics.inner.list.search_bytes.inc_by(bytes);
    }

    /// What became of the archives, told once.
    pub fn archives(&self, archives: SearchedArchives) {
        let counters = &self.metrics.inner.list.search_archives;
        for (fate, count) in SearchedArchives::FATES.iter().zip(archives.counts()) {
            counters.with_label_values(&[fate]).inc_by(count);
        }
    }

    /// It ended so.
    pub fn ends(mut self, outcome: SearchOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for SearchCall {
    fn drop(&mut self) {
        let list = &self.metrics.inner.list;
        let took = self.metrics.inner.clock.monotonic().saturating_sub(self.began);
        list.search_in_flight.dec();
        list.search_duration.observe(took.as_secs_f64());
        list.search_requests.with_label_values(&[self.outcome.as_str()]).inc();
    }
}
