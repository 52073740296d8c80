//! Owns what a run of the indexer tells: what was archived, what was found.

use super::IndexError;
use crate::catalog::Gap;
use crate::record::{OffsetRange, TopicPartition};

/// Something in the WAL that a person should know: one line, saying what, where
/// and what happened to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The line.
    pub line: String,
    /// Whether data was found damaged, as opposed to merely odd.
    pub damage: bool,
}

/// What became of one partition.
#[derive(Debug)]
pub struct PartitionReport {
    /// The partition.
    pub tp: TopicPartition,
    /// Segments that are ready.
    pub segments: usize,
    /// Batches in them that verify.
    pub found: u64,
    /// Of these, batches that were committed before.
    pub known: u64,
    /// Of these, copies of other batches in the WAL.
    pub copies: u64,
    /// Archives committed now.
    pub archives: u32,
    /// Offsets they tile, in order of commit.
    pub ranges: Vec<OffsetRange>,
    /// Batches that are served from now on.
    pub batches: u64,
    /// Batches archived beneath others.
    pub overlaps: u64,
    /// Bytes of the new objects.
    pub bytes: u64,
    /// Gaps declared now.
    pub gaps: Vec<Gap>,
    /// The life of the topic that the WAL belongs to.
    pub incarnation: u32,
    /// First offset that is not archived.
    pub archived_through: i64,
    /// Missing offsets that may still come; what lies behind them waits.
    pub waits_for: Option<OffsetRange>,
    /// How far the broker may delete its WAL (exclusive), as it is remembered; 0
    /// for nothing.
    pub releasable_through: i64,
    /// Segments that may be deleted, by the broker's number.
    pub releasable: Vec<u64>,
    /// Segments that were deleted now.
    pub reclaimed: Vec<u64>,
    /// What a person should know.
    pub findings: Vec<Finding>,
    /// Why the partition could not be archived to its end.
    pub error: Option<IndexError>,
}

impl PartitionReport {
    pub(super) fn new(tp: TopicPartition) -> Self {
        Self {
            tp,
            segments: 0,
            found: 0,
            known: 0,
            copies: 0,
            archives: 0,
            ranges: Vec::new(),
            batches: 0,
            overlaps: 0,
            bytes: 0,
            gaps: Vec::new(),
            incarnation: 0,
            archived_through: 0,
            waits_for: None,
            releasable_through: 0,
            releasable: Vec::new(),
            reclaimed: Vec::new(),
            findings: Vec::new(),
            error: None,
        }
    }
}

/// What became of a whole run.
#[derive(Debug)]
pub struct RunReport {
    /// Partitions, ascending.
    pub partitions: Vec<PartitionReport>,
    /// Findings outside any partition: folders and files that could not be read.
    pub findings: Vec<Finding>,
}

impl RunReport {
    pub(super) fn new(unreadable: Vec<String>) -> Self {
        let findings = unreadable.into_iter().map(|line| Finding { line, damage: true }).collect();
        Self { partitions: Vec::new(), findings }
    }

    pub(super) fn add(&mut self, partition: PartitionReport) {
        self.partitions.push(partition);
    }

    pub(super) fn sort(&mut self) {
        self.partitions.sort_by(|a, b| a.tp.cmp(&b.tp));
    }

    /// Whether some partition could not be archived to its end.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.partitions.iter().any(|partition| partition.error.is_some())
    }

    /// Whether damaged data was found anywhere.
    #[must_use]
    pub fn damaged(&self) -> bool {
        let mut all = self.partitions.iter().flat_map(|p| &p.findings).chain(&self.findings);
        all.any(|finding| finding.damage)
    }
}
