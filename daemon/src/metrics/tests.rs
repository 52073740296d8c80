use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::ManualClock;

const NOW_MS: i64 = 1_800_000_000_000;

fn metrics() -> (Metrics, Arc<ManualClock>) {
    let clock = ManualClock::at(NOW_MS);
    let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    (Metrics::new(as_clock).unwrap(), clock)
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
    metrics.count_store_by(|| vec![StoreCount { op: "get", requests: 0, failures: 0, bytes: 0 }]);
    let page = metrics.page().unwrap();
    let named = |comment: &str| -> BTreeSet<String> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(comment));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(named("# HELP "), named("# TYPE "));
    // The list's fields and build_info: nothing is registered and then not shown.
    assert_eq!(named("# TYPE ").len(), 15, "{page}");
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
