use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::ManualClock;
use crate::record::TopicName;

const NOW_MS: i64 = 1_800_000_000_000;

fn metrics() -> (Metrics, Arc<ManualClock>) {
    let clock = ManualClock::at(NOW_MS);
    let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    (Metrics::new(as_clock).unwrap(), clock)
}

fn tp(topic: &str) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).unwrap(), 0).unwrap()
}

#[track_caller]
fn shows(metrics: &Metrics, series: &str, value: &str) {
    let page = metrics.page().unwrap();
    let line = format!("{series} {value}");
    assert!(page.lines().any(|found| found == line), "no {line:?} in:\n{page}");
}

#[test]
fn every_metric_has_our_prefix_a_type_and_a_help_that_is_a_sentence() {
    let (metrics, _) = metrics();
    metrics.expect_of_fetches(&["ok"], &["store"]);
    metrics.expect_of_steps(&["done"]);
    metrics.count_store_by(|| vec![StoreCount { op: "get", requests: 0, failures: 0, bytes: 0 }]);
    let page = metrics.page().unwrap();
    let named = |comment: &str| -> BTreeSet<String> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(comment));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(named("# HELP "), named("# TYPE "));
    // The list's fields and build_info: nothing is registered and then not shown.
    assert_eq!(named("# TYPE ").len(), 51, "{page}");
    for line in page.lines() {
        match line.strip_prefix("# HELP ") {
            Some(help) => assert!(help.starts_with("tierd_") && help.ends_with('.'), "{line}"),
            None => assert!(line.starts_with("# TYPE tierd_") || line.starts_with("tierd_")),
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        }
    }
}

#[test]
fn the_scrub_counts_what_it_found_and_when_it_was_through() {
    let (metrics, _) = metrics();
    metrics.count_quarantined_by(|| 3);
    shows(&metrics, "tierd_scrub_last_success_timestamp_seconds", "0");
    metrics.scrubbed(10, false);
    metrics.scrubbed(20, true);
    metrics.scrubbed_all();
    shows(&metrics, "tierd_quarantined_archives", "3");
    shows(&metrics, "tierd_scrub_archives_total{result=\"damaged\"}", "1");
    shows(&metrics, "tierd_scrub_archives_total{result=\"well\"}", "1");
    shows(&metrics, "tierd_scrub_bytes_total", "30");
    let now = (NOW_MS / 1000).to_string();
    shows(&metrics, "tierd_scrub_last_success_timestamp_seconds", &now);
}

#[test]
fn series_stand_at_zero_before_anything_happens() {
    let (metrics, _) = metrics();
    metrics.expect_of_fetches(&["ok", "data_loss"], &["verify"]);
    for outcome in Outcome::ALL {
        let series = format!("tierd_fetch_requests_total{{outcome=\"{}\"}}", outcome.as_str());
        shows(&metrics, &series, "0");
    }
    for series in [
        "tierd_fetch_partitions_total{status=\"data_loss\"}",
        "tierd_fetch_errors_total{stage=\"verify\"}",
        "tierd_fetch_duration_seconds_count",
        "tierd_read_cache_misses_total{cache=\"chunk\"}",
    ] {
        shows(&metrics, series, "0");
    }
}

#[test]
fn a_fetch_is_counted_once_with_its_time_and_its_outcome() {
    let (metrics, clock) = metrics();
    let call = metrics.fetch_begins();
    shows(&metrics, "tierd_fetch_in_flight_requests", "1");
    call.sends(3, 700);
    call.sends(1, 300);
    call.partition("ok", None);
    call.partition("unavailable", Some("store"));
    let toc = CacheCost { hits: 1, misses: 2, bytes: 90 };
    call.cost(&ReadCost { archives: 3, toc, chunk: CacheCost { hits: 4, ..toc } });
    clock.advance(Duration::from_millis(20));
    call.answered();
    drop(metrics.fetch_begins());
    metrics.fetch_refused();
    for (series, value) in [
        ("tierd_fetch_in_flight_requests", "0"),
        ("tierd_fetch_requests_total{outcome=\"answered\"}", "1"),
        ("tierd_fetch_requests_total{outcome=\"cancelled\"}", "1"),
        ("tierd_fetch_requests_total{outcome=\"refused\"}", "1"),
        ("tierd_fetch_duration_seconds_count", "2"),
        ("tierd_fetch_duration_seconds_sum", "0.02"),
        ("tierd_fetch_duration_seconds_bucket{le=\"0.01\"}", "1"),
        ("tierd_fetch_duration_seconds_bucket{le=\"0.025\"}", "2"),
        ("tierd_fetch_batches_total", "4"),
        ("tierd_fetch_bytes_total", "1000"),
        ("tierd_fetch_partitions_total{status=\"ok\"}", "1"),
        ("tierd_fetch_errors_total{stage=\"store\"}", "1"),
        ("tierd_read_archives_total", "3"),
        ("tierd_read_cache_hits_total{cache=\"toc\"}", "1"),
        ("tierd_read_cache_hits_total{cache=\"chunk\"}", "4"),
        ("tierd_read_cache_misses_total{cache=\"toc\"}", "2"),
        ("tierd_read_bytes_total{cache=\"toc\"}", "90"),
    ] {
        shows(&metrics, series, value);
    }
}

#[test]
fn store_counters_are_read_anew_for_each_page_and_never_added_twice() {
    let (metrics, _) = metrics();
    let requests = Arc::new(AtomicU64::new(2));
    let read = Arc::clone(&requests);
    metrics.count_store_by(move || {
        let requests = read.load(Ordering::Relaxed);
        vec![StoreCount { op: "get", requests, failures: 1, bytes: 10 * requests }]
    });
    shows(&metrics, "tierd_store_requests_total{op=\"get\"}", "2");
    shows(&metrics, "tierd_store_requests_total{op=\"get\"}", "2");
    requests.store(5, Ordering::Relaxed);
    shows(&metrics, "tierd_store_requests_total{op=\"get\"}", "5");
    shows(&metrics, "tierd_store_failures_total{op=\"get\"}", "1");
    shows(&metrics, "tierd_store_bytes_total{op=\"get\"}", "50");
}

#[test]
fn partitions_are_told_as_sums_and_worst_cases_and_never_by_name() {
    let (metrics, clock) = metrics();
    let behind = Backlog {
        archived_through: 100,
        offsets: 40,
        bytes: 4_000,
        oldest_ms: Some(NOW_MS - 90_000),
        segments: [3, 2, 1],
        stall: Some(Stall::Store),
        quarantined: false,
    };
    let broken = Backlog {
        archived_through: 7,
        offsets: 60,
        bytes: 100,
        oldest_ms: Some(NOW_MS - 1_000),
        segments: [1, 0, 1],
        stall: Some(Stall::Corrupt),
        quarantined: true,
    };
    metrics.stands(&tp("orders"), behind);
    metrics.stands(&tp("payments"), broken);
    // A page is as old as the moment it is asked for: the lag of a stuck loop grows.
    clock.advance(Duration::from_millis(500));
    for (series, value) in [
        ("tierd_partitions", "2"),
        ("tierd_archived_through_offsets", "107"),
        ("tierd_archive_lag_offsets", "100"),
        ("tierd_archive_lag_worst_offsets", "60"),
        ("tierd_archive_lag_bytes", "4100"),
        ("tierd_archive_lag_worst_bytes", "4000"),
        ("tierd_archive_lag_seconds", "92"),
        ("tierd_archive_lag_worst_seconds", "90.5"),
        ("tierd_wal_segments{class=\"closed\"}", "4"),
        ("tierd_wal_segments{class=\"provisional\"}", "2"),
        ("tierd_partitions_stalled{reason=\"store\"}", "1"),
        ("tierd_partitions_stalled{reason=\"corrupt\"}", "1"),
        ("tierd_partitions_stalled{reason=\"hole\"}", "0"),
        ("tierd_partitions_quarantined", "1"),
    ] {
        shows(&metrics, series, value);
    }
    assert!(!metrics.page().unwrap().contains("orders"), "a topic is named");
    assert_eq!(metrics.partitions(), [tp("orders"), tp("payments")]);
    assert_eq!(metrics.backlog(&tp("payments")), Some((broken, 1_500)));

    metrics.forget(&tp("payments"));
    assert_eq!(metrics.backlog(&tp("payments")), None);
    metrics.stands(&tp("orders"), Backlog { archived_through: 140, ..Backlog::default() });
    for (series, value) in [
        ("tierd_partitions", "1"),
        ("tierd_archived_through_offsets", "140"),
        ("tierd_archive_lag_worst_seconds", "0"),
        ("tierd_partitions_stalled{reason=\"store\"}", "0"),
        ("tierd_partitions_quarantined", "0"),
    ] {
        shows(&metrics, series, value);
    }
}

#[test]
fn a_commit_is_counted_with_its_time_and_shrinks_the_backlog_at_once() {
    let (metrics, _) = metrics();
    let behind = Backlog { archived_through: 100, offsets: 40, bytes: 4_000, ..Backlog::default() };
    metrics.stands(&tp("orders"), behind);
    metrics.committed(&tp("orders"), 130, 10, 3_500, 2_000);
    let left = metrics.backlog(&tp("orders")).unwrap().0;
    assert_eq!((left.archived_through, left.offsets, left.bytes), (130, 10, 500));
    // More than was known of, and a partition that nobody told of.
    metrics.committed(&tp("orders"), 200, 1, 9_999, 500);
    metrics.committed(&tp("unknown"), 5, 0, 0, 0);
    let left = metrics.backlog(&tp("orders")).unwrap().0;
    assert_eq!((left.archived_through, left.offsets, left.bytes), (200, 0, 0));
    shows(&metrics, "tierd_committed_archives_total", "3");
    shows(&metrics, "tierd_committed_batches_total", "11");
    shows(&metrics, "tierd_committed_bytes_total", "2500");
    shows(&metrics, "tierd_last_commit_timestamp_seconds", "1800000000");
}

#[test]
fn a_segment_that_is_deleted_is_counted_with_its_bytes() {
    let (metrics, _) = metrics();
    shows(&metrics, "tierd_reclaimed_segments_total", "0");
    metrics.reclaimed(3_000);
    metrics.reclaimed(500);
    shows(&metrics, "tierd_reclaimed_segments_total", "2");
    shows(&metrics, "tierd_reclaimed_bytes_total", "3500");
}

#[test]
fn steps_and_their_stages_are_counted_with_their_time() {
    let (metrics, clock) = metrics();
    metrics.expect_of_steps(&["done", "failed"]);
    let step = metrics.step_begins();
    shows(&metrics, "tierd_archive_in_flight_steps", "1");
    let stage = metrics.stage_begins(Stage::Upload);
    clock.advance(Duration::from_secs(3));
    drop(stage);
    step.ends("failed");
    drop(metrics.step_begins());
    for (series, value) in [
        ("tierd_archive_in_flight_steps", "0"),
        ("tierd_archive_steps_total{outcome=\"failed\"}", "1"),
        ("tierd_archive_steps_total{outcome=\"done\"}", "0"),
        ("tierd_archive_stage_duration_seconds_sum{stage=\"upload\"}", "3"),
        ("tierd_archive_stage_duration_seconds_count{stage=\"scan\"}", "0"),
    ] {
        shows(&metrics, series, value);
    }
}

#[test]
fn every_word_of_a_label_is_used_once() {
    let words: [Vec<&str>; 3] = [
        Stall::ALL.map(Stall::as_str).to_vec(),
        SegmentClass::ALL.map(SegmentClass::as_str).to_vec(),
        Stage::ALL.map(Stage::as_str).to_vec(),
    ];
    for words in words {
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len(), "{words:?}");
    }
}

#[test]
fn a_search_counts_its_end_its_archives_and_its_bytes() {
    let (metrics, clock) = metrics();
    for outcome in SearchOutcome::ALL {
        let series = format!("tierd_search_requests_total{{outcome=\"{}\"}}", outcome.as_str());
        shows(&metrics, &series, "0");
    }
    let call = metrics.search_begins();
    shows(&metrics, "tierd_search_in_flight_requests", "1");
    clock.advance(Duration::from_millis(30));
    call.hits(3);
    call.read(700);
    call.archives(SearchedArchives { pruned_by_key: 9, searched: 2, ..Default::default() });
    call.ends(SearchOutcome::Complete);
    drop(metrics.search_begins());
    for (series, value) in [
        ("tierd_search_requests_total{outcome=\"complete\"}", "1"),
        ("tierd_search_requests_total{outcome=\"cancelled\"}", "1"),
        ("tierd_search_in_flight_requests", "0"),
        ("tierd_search_duration_seconds_sum", "0.03"),
        ("tierd_search_archives_total{fate=\"pruned_by_key\"}", "9"),
        ("tierd_search_archives_total{fate=\"searched\"}", "2"),
        ("tierd_search_archives_total{fate=\"scanned\"}", "0"),
        ("tierd_search_hits_total", "3"),
        ("tierd_search_read_bytes_total", "700"),
    ] {
        shows(&metrics, series, value);
    }
}
