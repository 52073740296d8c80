//! Owns the rule by which a segment counts as closed. Pure: no file, no clock.
//!
//! A segment carries no seal, and a higher id does not close a lower one: when a
//! broker's first writes to a partition race, several files appear and a lower one
//! may stay the active one. So:
//!
//! | class | condition |
//! |---|---|
//! | closed | no broker runs, or the last write is older than the broker's start |
//! | rotated | (1) as large or as old as a rotation leaves it, (2) a higher id was written later, (3) unchanged for the settle time, (4) parses to a clean end |
//! | provisional | everything else |
//!
//! Closed is certain. Rotated is a rule that agrees with every case observed, so
//! such a segment stays watched. Silence alone is never closure: an idle partition
//! never rotates.
//!
//! Does not own: the observations ([`super::Observations`]), what is done with them.

use std::time::Duration;

/// Smallest segment that its size lets pass for rotated, in bytes: brokers rotate
/// at 128 MiB, and a commit never takes bytes away.
pub const ROTATED_BYTES_MIN: u64 = 100 << 20;
/// Least time from birth to last write that lets a smaller segment pass for
/// rotated: brokers rotate at 1800 s, and the last write comes after that.
pub const ROTATED_AGE_MIN: Duration = Duration::from_secs(1799);
/// How long a segment has to be unchanged before it passes for rotated.
pub const SETTLE_DEFAULT: Duration = Duration::from_secs(30);
/// How long a provisional segment has to be unchanged before its frames are taken.
pub const ARCHIVE_IDLE_DEFAULT: Duration = Duration::from_secs(600);
/// File systems stamp by a clock that lags by one tick of the kernel, 10 ms at
/// most: a write just after the broker's start may seem to be before it.
const STAMP_LAG_MS: i64 = 10;

/// What may be concluded of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Certainly never written again.
    Closed,
    /// By all signs never written again.
    Rotated,
    /// May be written, truncated and filled again.
    Provisional,
}

impl Class {
    /// Whether everything the segment will hold is taken to be there.
    #[must_use]
    pub fn is_final(self) -> bool {
        self != Self::Provisional
    }
}

/// What is known of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broker {
    /// None runs on this WAL.
    Stopped,
    /// One runs, since this time in milliseconds since 1970 where that is known.
    Running {
        /// When it started.
        since_ms: Option<i64>,
    },
}

/// One segment, as the rule needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its number.
    pub id: u64,
    /// Bytes.
    pub len: u64,
    /// Last write, milliseconds since 1970.
    pub modified_ms: i64,
    /// Birth, or else the first sighting, milliseconds since 1970.
    pub created_ms: i64,
    /// How long nothing about it has changed, by the monotonic clock.
    pub unchanged_for: Duration,
    /// Whether it parses to a clean end. Unknown counts as clean: the caller asks
    /// again once it has looked.
    pub clean_end: Option<bool>,
}

/// The times and sizes of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// See [`SETTLE_DEFAULT`].
    pub settle: Duration,
    /// See [`ARCHIVE_IDLE_DEFAULT`].
    pub archive_idle: Duration,
    /// See [`ROTATED_BYTES_MIN`].
    pub rotated_bytes_min: u64,
    /// See [`ROTATED_AGE_MIN`].
    pub rotated_age_min: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            settle: SETTLE_DEFAULT,
            archive_idle: ARCHIVE_IDLE_DEFAULT,
            rotated_bytes_min: ROTATED_BYTES_MIN,
            rotated_age_min: ROTATED_AGE_MIN,
        }
    }
}

impl Rules {
    /// Whether the frames of a provisional segment may be archived.
    #[must_use]
    pub fn is_idle(&self, facts: &Facts) -> bool {
        facts.unchanged_for >= self.archive_idle
    }

    /// When a segment may change its class, or become idle, by time alone: how long
    /// it has to be unchanged for that.
    #[must_use]
    pub fn next_threshold(&self, facts: &Facts) -> Option<Duration> {
        [self.settle, self.archive_idle].into_iter().filter(|at| *at > facts.unchanged_for).min()
    }

    /// Whether a rotation leaves a segment like this: condition (1).
    fn looks_rotated(&self, facts: &Facts) -> bool {
        let age = facts.modified_ms.saturating_sub(facts.created_ms);
        let age_min = i64::try_from(self.rotated_age_min.as_millis()).unwrap_or(i64::MAX);
        facts.len >= self.rotated_bytes_min || age >= age_min
    }
}

/// Classifies the segments of one partition, given by ascending id. Needs all of
/// them: one is judged by its successors.
#[must_use]
pub fn classify(segments: &[Facts], broker: Broker, rules: &Rules) -> Vec<Class> {
    let mut classes = Vec::with_capacity(segments.len());
    let mut newest_above = i64::MIN;
    for facts in segments.iter().rev() {
        classes.push(one(facts, newest_above, broker, rules));
        newest_above = newest_above.max(facts.modified_ms);
    }
    classes.reverse();
    classes
}

/// The class of a segment, where the last write to any higher id was at
/// `newest_above`.
fn one(facts: &Facts, newest_above: i64, broker: Broker, rules: &Rules) -> Class {
    let closed = match broker {
        Broker::Stopped => true,
        Broker::Running { since_ms } => {
            since_ms.is_some_and(|since| facts.modified_ms < since.saturating_sub(STAMP_LAG_MS))
        }
    };
    let rotated = rules.looks_rotated(facts)
        && newest_above > facts.modified_ms
        && facts.unchanged_for >= rules.settle
        && facts.clean_end != Some(false);
    match (closed, rotated) {
        (true, _) => Class::Closed,
        (false, true) => Class::Rotated,
        (false, false) => Class::Provisional,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const HOUR: Duration = Duration::from_secs(3600);
    /// Birth of every segment here.
    const BORN: i64 = 1_700_000_000_000;

    /// A segment of `mib`, last written `after` seconds after its birth, unchanged
    /// for `quiet` seconds.
    fn segment(id: u64, mib: u64, after: i64, quiet: u64) -> Facts {
        Facts {
            id,
            len: mib * MIB,
            modified_ms: BORN + after * 1000,
            created_ms: BORN,
            unchanged_for: Duration::from_secs(quiet),
            clean_end: Some(true),
        }
    }

    fn running(after: i64) -> Broker {
        Broker::Running { since_ms: Some(BORN + after * 1000) }
    }

    const UNKNOWN: Broker = Broker::Running { since_ms: None };

    #[test]
    fn every_row_of_the_rule() {
        use Class::{Closed, Provisional, Rotated};
        let unclean = |facts: Facts| Facts { clean_end: Some(false), ..facts };
        let unparsed = |facts: Facts| Facts { clean_end: None, ..facts };
        let rows: &[(&str, Broker, &[Facts], &[Class])] = &[
            ("no broker runs", Broker::Stopped, &[unclean(segment(0, 0, 0, 0))], &[Closed]),
            ("older than the broker", running(60), &[unclean(segment(0, 1, 59, 0))], &[Closed]),
            (
                "written in the second of the start",
                running(60),
                &[segment(0, 1, 60, 999)],
                &[Provisional],
            ),
            ("written since the start", running(60), &[segment(0, 1, 61, 999)], &[Provisional]),
            (
                "an unknown start closes nothing",
                UNKNOWN,
                &[segment(0, 1, 0, 99_999)],
                &[Provisional],
            ),
            (
                "rotated by size",
                UNKNOWN,
                &[segment(0, 100, 50, 30), segment(1, 0, 51, 29)],
                &[Rotated, Provisional],
            ),
            (
                "just below the size",
                UNKNOWN,
                &[segment(0, 99, 50, 30), segment(1, 0, 51, 29)],
                &[Provisional, Provisional],
            ),
            (
                "rotated by age",
                UNKNOWN,
                &[segment(0, 1, 1799, 30), segment(1, 0, 1800, 29)],
                &[Rotated, Provisional],
            ),
            (
                "just too young",
                UNKNOWN,
                &[segment(0, 1, 1798, 30), segment(1, 0, 1800, 29)],
                &[Provisional, Provisional],
            ),
            ("no successor", UNKNOWN, &[segment(0, 128, 50, 30)], &[Provisional]),
            (
                "a successor that is older",
                UNKNOWN,
                &[segment(0, 128, 50, 30), segment(1, 0, 49, 31)],
                &[Provisional, Provisional],
            ),
            (
                "a successor of the same time",
                UNKNOWN,
                &[segment(0, 128, 50, 30), segment(1, 0, 50, 30)],
                &[Provisional, Provisional],
            ),
            (
                "a lower id written later says nothing",
                UNKNOWN,
                &[segment(0, 1, 99, 30), segment(1, 128, 50, 79)],
                &[Provisional, Provisional],
            ),
            (
                "not settled",
                UNKNOWN,
                &[segment(0, 128, 50, 29), segment(1, 0, 51, 28)],
                &[Provisional, Provisional],
            ),
            (
                "no clean end",
                UNKNOWN,
                &[unclean(segment(0, 128, 50, 30)), segment(1, 0, 51, 29)],
                &[Provisional, Provisional],
            ),
            (
                "not parsed yet",
                UNKNOWN,
                &[unparsed(segment(0, 128, 50, 30)), segment(1, 0, 51, 29)],
                &[Rotated, Provisional],
            ),
            (
                "ids may have gaps",
                UNKNOWN,
                &[segment(0, 128, 50, 30), segment(7, 0, 51, 29)],
                &[Rotated, Provisional],
            ),
            (
                "after the race: the higher ids are idle, a lower one is active",
                UNKNOWN,
                &[
                    segment(0, 7, 5, 40),
                    segment(1, 0, 4, 41),
                    segment(2, 2, 45, 0),
                    segment(3, 7, 6, 39),
                ],
                &[Provisional; 4],
            ),
        ];
        for (what, broker, segments, expected) in rows {
            assert_eq!(classify(segments, *broker, &Rules::default()), *expected, "{what}");
        }
    }

    #[test]
    fn silence_makes_frames_ready_and_closes_nothing() {
        let rules = Rules::default();
        let quiet = segment(3, 5, 50, HOUR.as_secs());
        assert_eq!(classify(&[quiet], UNKNOWN, &rules), [Class::Provisional]);
        assert!(rules.is_idle(&quiet));
        assert!(!rules.is_idle(&segment(3, 5, 50, 599)));
    }

    #[test]
    fn the_next_threshold_is_the_nearest_one_ahead() {
        let rules = Rules::default();
        assert_eq!(rules.next_threshold(&segment(0, 1, 0, 0)), Some(rules.settle));
        assert_eq!(rules.next_threshold(&segment(0, 1, 0, 30)), Some(rules.archive_idle));
        assert_eq!(rules.next_threshold(&segment(0, 1, 0, 600)), None);
    }

    #[test]
    fn a_stamp_of_the_kernels_last_tick_before_the_start_closes_nothing() {
        let rules = Rules::default();
        let broker = Broker::Running { since_ms: Some(BORN + 5) };
        assert_eq!(classify(&[segment(0, 1, 0, 0)], broker, &rules), [Class::Provisional]);
    }
}
