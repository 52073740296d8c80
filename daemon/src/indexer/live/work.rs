//! Owns what is remembered of one partition between its steps, and how its segments
//! stand.

use std::collections::HashSet;
use std::time::Duration;

use super::LiveOptions;
use super::backlog::Standstill;
use crate::catalog::{Snapshot, WriterId};
use crate::clock::Clock;
use crate::indexer::holes::{Holes, SegmentKey};
use crate::indexer::report::Finding;
use crate::indexer::scan::Memory;
use crate::indexer::standby::Standby;
use crate::task::Backoff;
use crate::wal::classify::{Broker, Class, Facts, Rules};
use crate::wal::{Observations, Observed};

/// Segments of an earlier life that are told by their numbers.
const LEFT_TOLD_MAX: usize = 5;

/// One partition between steps.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) seen: Observations,
    /// Away while a step has it.
    pub(super) work: Option<Work>,
}

/// What is remembered of a partition's steps.
#[derive(Debug)]
pub(super) struct Work {
    /// The life of the topic that all of it is about.
    pub(super) incarnation: u32,
    pub(super) memory: Memory,
    /// Holes of the log, until they are declared gaps.
    pub(super) holes: Holes,
    /// Holes of the local WAL below what may be released, until nothing can fill them.
    pub(super) unwritten: Holes,
    pub(super) backoff: Backoff,
    /// What the directory showed when a step last left nothing to do.
    pub(super) settled_on: Option<Signature>,
    /// When there may be something to do though nothing changes.
    pub(super) wake_at: Option<Duration>,
    /// When it may be tried again after a failure.
    pub(super) not_before: Duration,
    /// The manifest that another writer committed last, and since when it is known.
    pub(super) other: Option<(u64, Duration)>,
    /// The committed end that something waits for to move.
    pub(super) held_at: Option<i64>,
    /// The topic's id that the last step went by.
    pub(super) topic_id: Option<[u8; 16]>,
    /// Segments of an earlier life, by number: no part of this one.
    pub(super) left: HashSet<u64>,
    pub(super) standby: Standby,
    /// Whether the last step left the turn to another writer.
    pub(super) stands_by: bool,
    /// How the last step left it.
    pub(super) standstill: Standstill,
}

impl Work {
    pub(super) fn new(options: &LiveOptions, incarnation: u32) -> Self {
        Self {
            incarnation,
            memory: Memory::default(),
            holes: Holes::new(options.gap_timeout),
            unwritten: Holes::new(options.gap_timeout),
            backoff: Backoff::default(),
            settled_on: None,
            wake_at: None,
            not_before: Duration::ZERO,
            other: None,
            held_at: None,
            topic_id: None,
            left: HashSet::new(),
            standby: Standby::new(options.standby_wait),
            stands_by: false,
            standstill: Standstill::default(),
        }
    }

    /// Sees to it that the partition is due at `at`.
    pub(super) fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// Since when the writer of `newest` is silent, where it is not `writer`.
    pub(super) fn other_silent_since(
        &mut self,
        newest: Option<&Snapshot>,
        writer: &WriterId,
        now: Duration,
    ) -> Option<Duration> {
        let other = newest.filter(|newest| newest.writer() != writer).map(Snapshot::number);
        self.other = other.map(|number| match self.other {
            Some((known, since)) if known == number => (number, since),
            _ => (number, now),
        });
        self.other.map(|(_, since)| since)
    }
}

/// All that a step depends on of the directory. Of a segment that is not ready only
/// that it is there: it may grow all the time.
pub(super) type Signature = Vec<(SegmentKey, Option<(Class, u64, i64)>)>;

/// A segment as it stands now.
pub(super) struct Standing<'a> {
    pub(super) seen: &'a Observed,
    pub(super) class: Class,
    /// Whether its frames may be archived.
    pub(super) ready: bool,
}

impl Partition {
    pub(super) fn standing(
        &self,
        broker: Broker,
        rules: &Rules,
        clock: &dyn Clock,
    ) -> impl Iterator<Item = Standing<'_>> {
        let classes = self.seen.classes(broker, rules, clock);
        let ready = |facts: &Facts, class: Class| class.is_final() || rules.is_idle(facts);
        self.seen
            .segments()
            .zip(classes.into_iter().map(move |(facts, class)| (ready(&facts, class), class)))
            .map(|(seen, (ready, class))| Standing { seen, class, ready })
    }
}

pub(super) fn key(seen: &Observed) -> SegmentKey {
    (seen.file.id, seen.life)
}

pub(super) fn signature<'a>(standing: impl Iterator<Item = Standing<'a>>) -> Signature {
    standing
        .map(|segment| {
            let file = &segment.seen.file;
            let state = (segment.class, file.len, file.modified_ms);
            (key(segment.seen), segment.ready.then_some(state))
        })
        .collect()
}

/// What a person should know of segments that are of an earlier life.
pub(super) fn left_over(work: &Work) -> Finding {
    let mut ids: Vec<u64> = work.left.iter().copied().collect();
    ids.sort_unstable();
    ids.truncate(LEFT_TOLD_MAX);
    let line = format!(
        "{} segments are left of the topic that had this name before, as {ids:?}: they are not archived, and nothing is releasable until the broker has deleted them",
        work.left.len()
    );
    Finding { line, damage: false }
}
