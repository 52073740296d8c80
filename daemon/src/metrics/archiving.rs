//! Owns what the archiving side tells of each partition, and its sums: no series
//! of its own for a partition.

use std::collections::BTreeMap;

use super::list::List;
use crate::error::ErrorKind;
use crate::record::TopicPartition;

/// How far a WAL segment is from being final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentClass {
    /// No running broker can append to it.
    Closed,
    /// A newer segment has taken its place.
    Rotated,
    /// The broker may still append to it.
    Provisional,
}

impl SegmentClass {
    /// Every class, in the order of the declaration.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Rotated, Self::Provisional];

    /// One word, the value of the label `class`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Rotated => "rotated",
            Self::Provisional => "provisional",
        }
    }
}

/// Why a partition that has something to archive does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// It waits for a hole in its offsets to fill.
    Hole,
    /// Its last step failed.
    Failed(ErrorKind),
}

impl Stall {
    pub(super) fn all() -> [Self; 8] {
        [
            Self::Hole,
            Self::Failed(ErrorKind::Retry),
            Self::Failed(ErrorKind::NotFound),
            Self::Failed(ErrorKind::Invalid),
            Self::Failed(ErrorKind::Corrupt),
            Self::Failed(ErrorKind::Fenced),
            Self::Failed(ErrorKind::Exhausted),
            Self::Failed(ErrorKind::Internal),
        ]
    }

    /// One word, the value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hole => "hole",
            Self::Failed(ErrorKind::Retry) => "unavailable",
            Self::Failed(ErrorKind::NotFound) => "not_found",
            Self::Failed(ErrorKind::Invalid) => "invalid",
            Self::Failed(ErrorKind::Corrupt) => "corrupt",
            Self::Failed(ErrorKind::Fenced) => "fenced",
            Self::Failed(ErrorKind::Exhausted) => "exhausted",
            Self::Failed(ErrorKind::Internal) => "internal",
        }
    }
}

/// Where one partition stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionLag {
    /// First offset that is neither archived nor in a declared gap.
    pub archived_through: i64,
    /// Offsets of complete batches in the WAL at or above it.
    pub offsets: u64,
    /// Bytes of these batches.
    pub bytes: u64,
    /// When the oldest segment was last written that holds something archivable
    /// and not archived, in Unix milliseconds; `None` when all of it is archived.
    pub oldest_ms: Option<i64>,
    /// Segments on disk, in the order of [`SegmentClass::ALL`].
    pub segments: [u64; SegmentClass::ALL.len()],
    /// Why it does not get on, if it does not.
    pub stall: Option<Stall>,
    /// Whether it is left alone until somebody looks.
    pub quarantined: bool,
}

/// All partitions of the WAL.
#[derive(Debug, Default)]
pub(super) struct Partitions(BTreeMap<TopicPartition, PartitionLag>);

impl Partitions {
    pub(super) fn set(&mut self, tp: &TopicPartition, lag: PartitionLag) {
        match self.0.get_mut(tp) {
            Some(known) => *known = lag,
            None => drop(self.0.insert(tp.clone(), lag)),
        }
    }

    pub(super) fn forget(&mut self, tp: &TopicPartition) {
        self.0.remove(tp);
    }

    /// Writes sums and worst cases; ages are those of `now_ms`.
    pub(super) fn sum_up(&self, list: &List, now_ms: i64) {
        let all = || self.0.values();
        let sum = |of: fn(&PartitionLag) -> u64| gauge(all().map(of).sum());
        let worst = |of: fn(&PartitionLag) -> u64| gauge(all().map(of).max().unwrap_or(0));
        list.partitions.set(gauge(self.0.len() as u64));
        list.archived_through.set(all().map(|lag| lag.archived_through).sum());
        list.lag_offsets.set(sum(|lag| lag.offsets));
        list.lag_offsets_worst.set(worst(|lag| lag.offsets));
        list.lag_bytes.set(sum(|lag| lag.bytes));
        list.lag_bytes_worst.set(worst(|lag| lag.bytes));
        let oldest = all().filter_map(|lag| lag.oldest_ms).min().unwrap_or(now_ms);
        // A clock set back, or a file from the future, is no negative lag.
        list.lag_seconds_worst.set(now_ms.saturating_sub(oldest).max(0) as f64 / 1e3);
        list.quarantined.set(sum(|lag| lag.quarantined.into()));
        for reason in Stall::all() {
            let stalled = all().filter(|lag| lag.stall == Some(reason)).count();
            list.stalled.with_label_values(&[reason.as_str()]).set(gauge(stalled as u64));
        }
        for (at, class) in SegmentClass::ALL.into_iter().enumerate() {
            let segments = all().map(|lag| lag.segments[at]).sum();
            list.segments.with_label_values(&[class.as_str()]).set(gauge(segments));
        }
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
