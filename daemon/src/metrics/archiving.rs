//! Owns what the archiving side tells of each partition, and its sums: no series
//! of its own for a partition.

use std::collections::BTreeMap;

use super::list::List;
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
    /// All that is not archived may still grow.
    NotClosed,
    /// It waits for missing offsets.
    Hole,
    /// The rest is not committed by the broker yet, or of an open transaction.
    Held,
    /// Another writer has archived it so far and has the first turn.
    Standby,
    /// The store does not answer, or has no room.
    Store,
    /// The store refuses: permissions, credentials, no such bucket.
    Refused,
    /// What was archived before is not what was written.
    Corrupt,
    /// The scratch folder is full or cannot be used.
    Scratch,
    /// The WAL cannot be read.
    Wal,
    /// Other writers are faster, again and again.
    Outrun,
    /// A defect of tierd.
    Defect,
}

impl Stall {
    /// Every reason, in the order of the declaration.
    pub const ALL: [Self; 11] = [
        Self::NotClosed,
        Self::Hole,
        Self::Held,
        Self::Standby,
        Self::Store,
        Self::Refused,
        Self::Corrupt,
        Self::Scratch,
        Self::Wal,
        Self::Outrun,
        Self::Defect,
    ];

    /// One word, the value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotClosed => "not_closed",
            Self::Hole => "hole",
            Self::Held => "held",
            Self::Standby => "standby",
            Self::Store => "store",
            Self::Refused => "refused",
            Self::Corrupt => "corrupt",
            Self::Scratch => "scratch",
            Self::Wal => "wal",
            Self::Outrun => "outrun",
            Self::Defect => "defect",
        }
    }
}

/// A part of one step of archiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the frames of segments that are ready.
    Scan,
    /// Asking the catalog what of it is committed.
    Compare,
    /// Packing and verifying an archive.
    Build,
    /// Uploading it.
    Upload,
    /// Committing its manifest.
    Commit,
}

impl Stage {
    /// Every stage, in the order of the declaration.
    pub const ALL: [Self; 5] = [Self::Scan, Self::Compare, Self::Build, Self::Upload, Self::Commit];

    /// One word, the value of the label `stage`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Compare => "compare",
            Self::Build => "build",
            Self::Upload => "upload",
            Self::Commit => "commit",
        }
    }
}

/// What of one partition of the WAL is not archived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// First offset that is neither archived nor in a declared gap; 0 until known.
    pub archived_through: i64,
    /// Offsets from there to the end of what was scanned.
    pub offsets: u64,
    /// Bytes of segments that are not archived, of growing ones too.
    pub bytes: u64,
    /// When the oldest segment was last written that is not archived whole, in Unix
    /// milliseconds; `None` when all are.
    pub oldest_ms: Option<i64>,
    /// Segments on disk, in the order of [`SegmentClass::ALL`].
    pub segments: [u64; SegmentClass::ALL.len()],
    /// Why it does not get on, if it does not.
    pub stall: Option<Stall>,
    /// Whether it is left alone until somebody looks.
    pub quarantined: bool,
}

impl Backlog {
    /// How long the oldest segment is unchanged that is not archived whole, in
    /// milliseconds. A clock set back, or a file from the future, is no negative age.
    #[must_use]
    pub fn age_ms(&self, now_ms: i64) -> i64 {
        self.oldest_ms.map_or(0, |oldest| now_ms.saturating_sub(oldest).max(0))
    }
}

/// All partitions of the WAL.
#[derive(Debug, Default)]
pub(super) struct Backlogs(BTreeMap<TopicPartition, Backlog>);

impl Backlogs {
    pub(super) fn set(&mut self, tp: &TopicPartition, backlog: Backlog) {
        match self.0.get_mut(tp) {
            Some(known) => *known = backlog,
            None => drop(self.0.insert(tp.clone(), backlog)),
        }
    }

    /// Takes `bytes` off the backlog of a partition that is now archived up to
    /// `through`: a step may take long, and ends with the exact figures.
    pub(super) fn shrink(&mut self, tp: &TopicPartition, through: i64, bytes: u64) {
        let Some(backlog) = self.0.get_mut(tp) else { return };
        let grown = through.saturating_sub(backlog.archived_through).max(0).unsigned_abs();
        backlog.offsets = backlog.offsets.saturating_sub(grown);
        backlog.bytes = backlog.bytes.saturating_sub(bytes);
        backlog.archived_through = through;
        backlog.stall = None;
    }

    pub(super) fn forget(&mut self, tp: &TopicPartition) {
        self.0.remove(tp);
    }

    pub(super) fn of(&self, tp: &TopicPartition) -> Option<Backlog> {
        self.0.get(tp).copied()
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.0.keys()
    }

    /// Writes sums and worst cases; ages are those of `now_ms`.
    pub(super) fn sum_up(&self, list: &List, now_ms: i64) {
        let all = || self.0.values();
        let sum = |of: fn(&Backlog) -> u64| gauge(all().map(of).sum());
        let worst = |of: fn(&Backlog) -> u64| gauge(all().map(of).max().unwrap_or(0));
        list.partitions.set(gauge(self.0.len() as u64));
        list.archived_through.set(all().map(|one| one.archived_through).sum());
        list.lag_offsets.set(sum(|one| one.offsets));
        list.lag_offsets_worst.set(worst(|one| one.offsets));
        list.lag_bytes.set(sum(|one| one.bytes));
        list.lag_bytes_worst.set(worst(|one| one.bytes));
        let ages = || all().map(|one| one.age_ms(now_ms));
        list.lag_seconds.set(ages().map(seconds).sum());
        list.lag_seconds_worst.set(seconds(ages().max().unwrap_or(0)));
        list.quarantined.set(sum(|one| one.quarantined.into()));
        for reason in Stall::ALL {
            let stalled = all().filter(|one| one.stall == Some(reason)).count();
            list.stalled.with_label_values(&[reason.as_str()]).set(gauge(stalled as u64));
        }
        for (at, class) in SegmentClass::ALL.into_iter().enumerate() {
            let segments = all().map(|one| one.segments[at]).sum();
            list.segments.with_label_values(&[class.as_str()]).set(gauge(segments));
        }
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1e3
}
