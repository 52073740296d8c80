//! Owns telling what is archived of a partition.

use super::state_of;
use super::types::PartitionState;
use crate::archive::UNKNOWN_TIMESTAMP;
use crate::catalog::{Gap, Snapshot};

/// What is archived of one partition, from one manifest.
#[derive(Clone, Debug)]
pub struct Description {
    /// Where the partition stands.
    pub state: PartitionState,
    /// Declared gaps, ascending.
    pub gaps: Vec<Gap>,
    /// Archives the manifest references.
    pub archives: u64,
    /// Bytes of their objects.
    pub bytes: u64,
    /// Bytes of the served batches before compression.
    pub log_bytes: u64,
    /// Served batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Batches beneath the served log.
    pub overlaps: u64,
    /// Lowest record timestamp in milliseconds, where every archive knows its own.
    pub min_timestamp: Option<i64>,
    /// Highest record timestamp in milliseconds; `None` without records.
    pub max_timestamp: Option<i64>,
}

impl Description {
    pub(super) fn of(snapshot: &Snapshot, gaps: Vec<Gap>) -> Self {
        let totals = snapshot.totals();
        let (min_timestamp, max_timestamp) = times(snapshot);
        Self {
            state: state_of(snapshot),
            gaps,
            archives: totals.entries,
            bytes: totals.object_bytes,
            log_bytes: totals.log_bytes,
            batches: totals.batches,
            records: totals.records,
            overlaps: totals.overlaps,
            min_timestamp,
            max_timestamp,
        }
    }
}

/// Least and greatest record timestamp, without reading a page. The least is
/// `None` while some archive does not know its own.
fn times(snapshot: &Snapshot) -> (Option<i64>, Option<i64>) {
    let manifest = snapshot.manifest();
    let recent = manifest.recent.entries.iter().map(|entry| &entry.summary);
    let recent = recent.filter(|summary| summary.records > 0);
    let recent = recent.map(|summary| (summary.min_timestamp, summary.max_timestamp));
    let all: Vec<(i64, i64)> = manifest.pages.iter().map(|page| page.times).chain(recent).collect();
    let least = all.iter().map(|times| times.0).min();
    let greatest = all.iter().map(|times| times.1).max();
    (least.filter(|&least| least != UNKNOWN_TIMESTAMP), greatest)
}
