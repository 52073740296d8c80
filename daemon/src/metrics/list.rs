//! Owns the list of metrics: every name, type, help text and label is here, and
//! `README.md` sends operators here.
//!
//! Conventions of Prometheus: prefix `tierd_`, base units, `_total` on counters.
//! No label names a topic or a partition: a broker has thousands of them.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::{Outcome, SearchOutcome, SearchedArchives, SegmentClass, Stage, Stall};

/// Bounds of the histograms of fetches and searches in seconds: from a read out of the cache to the
/// patience of a Kafka client (`request.timeout.ms`, 30 s) and a retry of it.
const FETCH_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Bounds of the archiving histogram in seconds: from a manifest on a local disk to
/// an archive of 2 GiB over a slow line.
const STAGE_SECONDS: &[f64] =
    &[0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1800.0];

/// The caches that reads go through, as the label `cache` says them.
pub(super) const CACHES: [&str; 2] = ["toc", "chunk"];

/// What the scrub finds, as the label `result` says it.
pub(super) const SCRUB_RESULTS: [&str; 2] = ["well", "damaged"];

#[derive(Debug)]
pub(super) struct List {
    pub(super) fetch_requests: IntCounterVec,
    pub(super) fetch_in_flight: IntGauge,
    pub(super) fetch_duration: Histogram,
    pub(super) fetch_partitions: IntCounterVec,
    pub(super) fetch_errors: IntCounterVec,
    pub(super) fetch_batches: IntCounter,
    pub(super) fetch_bytes: IntCounter,
    pub(super) search_requests: IntCounterVec,
    pub(super) search_in_flight: IntGauge,
    pub(super) search_duration: Histogram,
    pub(super) search_archives: IntCounterVec,
    pub(super) search_hits: IntCounter,
    pub(super) search_bytes: IntCounter,
    pub(super) read_archives: IntCounter,
    pub(super) cache_hits: IntCounterVec,
    pub(super) cache_misses: IntCounterVec,
    pub(super) read_bytes: IntCounterVec,
    pub(super) store_requests: IntCounterVec,
    pub(super) store_failures: IntCounterVec,
    pub(super) store_bytes: IntCounterVec,
    pub(super) partitions: IntGauge,
    pub(super) stalled: IntGaugeVec,
    pub(super) quarantined: IntGauge,
    pub(super) segments: IntGaugeVec,
    pub(super) archived_through: IntGauge,
    pub(super) lag_offsets: IntGauge,
    pub(super) lag_offsets_worst: IntGauge,
    pub(super) lag_bytes: IntGauge,
    pub(super) lag_bytes_worst: IntGauge,
    pub(super) lag_seconds: Gauge,
    pub(super) lag_seconds_worst: Gauge,
    pub(super) committed_archives: IntCounter,
    pub(super) committed_batches: IntCounter,
    pub(super) committed_bytes: IntCounter,
    pub(super) last_commit: Gauge,
    pub(super) reclaimed_segments: IntCounter,
    pub(super) reclaimed_bytes: IntCounter,
    pub(super) steps: IntCounterVec,
    pub(super) steps_in_flight: IntGauge,
    pub(super) compaction_jobs: IntGauge,
    pub(super) compaction_bytes: IntGauge,
    pub(super) compacted_bytes: IntCounter,
    pub(super) compaction_failures: IntCounter,
    pub(super) collected_objects: IntCounter,
    pub(super) collected_bytes: IntCounter,
    pub(super) stage_duration: HistogramVec,
    pub(super) quarantined_archives: IntGauge,
    pub(super) scrub_archives: IntCounterVec,
    pub(super) scrub_bytes: IntCounter,
    pub(super) scrub_last_success: Gauge,
}

impl List {
    /// Registers everything. Series whose labels are known here stand at zero.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let to = &Shelf(registry);
        to.gauges(
            "tierd_build_info",
            "Always 1; the label says which version runs.",
            "version",
            &[env!("CARGO_PKG_VERSION")],
        )?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
        Ok(Self {
            fetch_requests: to.counters(
                "tierd_fetch_requests_total",
                "Calls of FetchArchived that ended, by how.",
                "outcome",
                &Outcome::ALL.map(Outcome::as_str),
            )?,
            fetch_in_flight: to.gauge(
                "tierd_fetch_in_flight_requests",
                "Calls of FetchArchived whose reads are under way.",
            )?,
            fetch_duration: to.keep(Histogram::with_opts(
                HistogramOpts::new(
                    "tierd_fetch_duration_seconds",
                    "Time from a FetchArchived call until its last frame was given to the connection.",
                )
                .buckets(FETCH_SECONDS.to_vec()),
            )?)?,
            fetch_partitions: to.counters(
                "tierd_fetch_partitions_total",
                "Partitions answered by FetchArchived, by status.",
                "status",
                &[],
            )?,
            fetch_errors: to.counters(
                "tierd_fetch_errors_total",
                "Partitions whose answer failed, by the step that failed.",
                "stage",
                &[],
            )?,
            fetch_batches: to
                .counter("tierd_fetch_batches_total", "Record batches sent by FetchArchived.")?,
            fetch_bytes: to.counter(
                "tierd_fetch_bytes_total",
                "Bytes of record batches sent by FetchArchived.",
            )?,
            search_requests: to.counters(
                "tierd_search_requests_total",
                "Calls of Search that ended, by how.",
                "outcome",
                &SearchOutcome::ALL.map(SearchOutcome::as_str),
            )?,
            search_in_flight: to.gauge(
                "tierd_search_in_flight_requests",
                "Calls of Search that are under way.",
            )?,
            search_duration: to.keep(Histogram::with_opts(
                HistogramOpts::new(
                    "tierd_search_duration_seconds",
                    "Time from a Search call until its last piece was given to the connection.",
                )
                .buckets(FETCH_SECONDS.to_vec()),
            )?)?,
            search_archives: to.counters(
                "tierd_search_archives_total",
                "Archives in the range of searches, by what became of them.",
                "fate",
                &SearchedArchives::FATES,
            )?,
            search_hits: to.counter("tierd_search_hits_total", "Hits of the searches that came to their end.")?,
            search_bytes: to.counter(
                "tierd_search_read_bytes_total",
                "Bytes of archives that searches requested from the store.",
            )?,
            read_archives: to
                .counter("tierd_read_archives_total", "Archives opened to answer fetches.")?,
            cache_hits: to.counters(
                "tierd_read_cache_hits_total",
                "Tables of contents and chunks that fetches found in memory.",
                "cache",
                &CACHES,
            )?,
            cache_misses: to.counters(
                "tierd_read_cache_misses_total",
                "Tables of contents and chunks that fetches had to request.",
                "cache",
                &CACHES,
            )?,
            read_bytes: to.counters(
                "tierd_read_bytes_total",
                "Bytes of archives that fetches requested from the store.",
                "cache",
                &CACHES,
            )?,
            store_requests: to.counters(
                "tierd_store_requests_total",
                "Attempts at requests to the object store, repetitions included.",
                "op",
                &[],
            )?,
            store_failures: to.counters(
                "tierd_store_failures_total",
                "Attempts that failed; not found and exists already are answers.",
                "op",
                &[],
            )?,
            store_bytes: to.counters(
                "tierd_store_bytes_total",
                "Bytes of objects sent to or received from the object store.",
                "op",
                &[],
            )?,
            partitions: to.gauge("tierd_partitions", "Partitions of the WAL directory.")?,
            stalled: to.gauges(
                "tierd_partitions_stalled",
                "Partitions that have something to archive and do not get on, by reason.",
                "reason",
                &Stall::ALL.map(Stall::as_str),
            )?,
            quarantined: to.gauge(
                "tierd_partitions_quarantined",
                "Partitions whose last error does not pass by itself; tried again every 10 minutes.",
            )?,
            segments: to.gauges(
                "tierd_wal_segments",
                "Segments in the WAL directory, by class.",
                "class",
                &SegmentClass::ALL.map(SegmentClass::as_str),
            )?,
            archived_through: to.gauge(
                "tierd_archived_through_offsets",
                "Sum over partitions of the offset before which everything is archived or declared a gap.",
            )?,
            lag_offsets: to.gauge(
                "tierd_archive_lag_offsets",
                "Sum over partitions of the offsets not archived, to the log end that the broker reports or the last one scanned in the WAL.",
            )?,
            lag_offsets_worst: to.gauge(
                "tierd_archive_lag_worst_offsets",
                "Offsets not archived of the partition that has most of them.",
            )?,
            lag_bytes: to.gauge(
                "tierd_archive_lag_bytes",
                "Sum over partitions of the bytes in the WAL that are not archived, segments that grow included.",
            )?,
            lag_bytes_worst: to.gauge(
                "tierd_archive_lag_worst_bytes",
                "Bytes not archived of the partition that has most of them.",
            )?,
            lag_seconds: to.keep(Gauge::new(
                "tierd_archive_lag_seconds",
                "Sum over partitions of the age of the oldest segment that is not archived whole.",
            )?)?,
            lag_seconds_worst: to.keep(Gauge::new(
                "tierd_archive_lag_worst_seconds",
                "Time since the last write to the oldest segment of all that is not archived whole.",
            )?)?,
            committed_archives: to
                .counter("tierd_committed_archives_total", "Archives committed.")?,
            committed_batches: to
                .counter("tierd_committed_batches_total", "Record batches in committed archives.")?,
            committed_bytes: to
                .counter("tierd_committed_bytes_total", "Bytes of committed archives.")?,
            last_commit: to.keep(Gauge::new(
                "tierd_last_commit_timestamp_seconds",
                "When this process last committed an archive, in Unix time; 0 before the first.",
            )?)?,
            reclaimed_segments: to.counter(
                "tierd_reclaimed_segments_total",
                "Segments of the WAL deleted with --reclaim.",
            )?,
            reclaimed_bytes: to
                .counter("tierd_reclaimed_bytes_total", "Bytes of segments deleted so.")?,
            steps: to.counters(
                "tierd_archive_steps_total",
                "Steps of archiving one partition that ended, by how.",
                "outcome",
                &[],
            )?,
            steps_in_flight: to.gauge(
                "tierd_archive_in_flight_steps",
                "Steps of archiving one partition that are under way.",
            )?,
            compaction_jobs: to.gauge(
                "tierd_compaction_todo_jobs",
                "Merges of archives that are to be done.",
            )?,
            compaction_bytes: to.gauge(
                "tierd_compaction_todo_bytes",
                "Bytes of the archives that are to be merged.",
            )?,
            compacted_bytes: to.counter(
                "tierd_compacted_bytes_total",
                "Bytes of archives that were merged.",
            )?,
            compaction_failures: to.counter(
                "tierd_compaction_failures_total",
                "Merges that failed on what was to be merged; the log names it.",
            )?,
            collected_objects: to.counter(
                "tierd_collected_objects_total",
                "Objects deleted because nobody needs them.",
            )?,
            collected_bytes: to.counter(
                "tierd_collected_bytes_total",
                "Bytes of objects deleted because nobody needs them.",
            )?,
            stage_duration: {
                let durations = to.keep(HistogramVec::new(
                    HistogramOpts::new(
                        "tierd_archive_stage_duration_seconds",
                        "Time of one part of archiving: scan, compare, build, upload, commit.",
                    )
                    .buckets(STAGE_SECONDS.to_vec()),
                    &["stage"],
                )?)?;
                for stage in Stage::ALL {
                    durations.with_label_values(&[stage.as_str()]);
                }
                durations
            },
            quarantined_archives: to.gauge(
                "tierd_quarantined_archives",
                "Committed archives that reads or the scrub found lost or damaged; each is looked at again every 10 minutes.",
            )?,
            scrub_archives: to.counters(
                "tierd_scrub_archives_total",
                "Archives that the scrub read whole, by what it found.",
                "result",
                &SCRUB_RESULTS,
            )?,
            scrub_bytes: to
                .counter("tierd_scrub_bytes_total", "Bytes of archives that the scrub read.")?,
            scrub_last_success: to.keep(Gauge::new(
                "tierd_scrub_last_success_timestamp_seconds",
                "When the scrub last ended a round over all archives, in Unix time; 0 before the first.",
            )?)?,
        })
    }
}

/// Where metrics are put as they are made.
struct Shelf<'a>(&'a Registry);

impl Shelf<'_> {
    fn keep<M: Collector + Clone + 'static>(&self, metric: M) -> prometheus::Result<M> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let counters = self.keep(IntCounterVec::new(Opts::new(name, help), &[label])?)?;
        for value in values {
            // Alerts need a zero to rise from.
            counters.with_label_values(&[value]);
        }
        Ok(counters)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> prometheus::Result<IntGaugeVec> {
        let gauges = self.keep(IntGaugeVec::new(Opts::new(name, help), &[label])?)?;
        for value in values {
            gauges.with_label_values(&[value]);
        }
        Ok(gauges)
    }
}
