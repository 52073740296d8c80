//! Owns retention: which archives a partition need not keep. Pure: what is listed,
//! limits and a time in; a log start out.
//!
//! A log is cut from its front only, so a policy says one thing: the new log
//! start. Each limit says how far it would move it, and the farthest wins:
//!
//! | limit | moves the log start to |
//! |---|---|
//! | none | where it is |
//! | bytes | the end of the last archive without which the rest still has as many bytes |
//! | offsets | that many offsets before the end, in the middle of an archive too |
//! | time | the end of the last archive whose records are all older, before the first that holds a younger one; where the others take that one away, before the next |
//!
//! So what was done once is done: the same limits at the same time move nothing more.
//!
//! Archives wholly below the log start are dropped. The one it lies in stays, and
//! readers get nothing of it below the log start.
//!
//! **Time is the records' own**, and may be none, or nonsense: an archive without
//! timestamps, or with one more than [`FUTURE_MAX`] ahead of everybody's clock,
//! says nothing of its age. It goes together with the next archive behind that
//! does, since it was written before that one; until then it stays. A clock that
//! steps back makes nothing look like the future that was committed before.

use std::time::Duration;

use crate::catalog::{ArchiveEntry, Snapshot};
use crate::record::OffsetRange;

/// How far ahead of the clock a record's timestamp is believed. Hosts' clocks and
/// mistaken time zones stay below; seconds taken for milliseconds do not.
pub const FUTURE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a partition need not keep. The default keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Records older than this.
    pub time: Option<Duration>,
    /// What is beyond this many bytes of archives.
    pub bytes: Option<u64>,
    /// What is more than this many offsets before the end.
    pub offsets: Option<u64>,
}

/// Which limit moved a log start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// None: it stays, or moved before.
    None,
    /// Age of records.
    Time,
    /// Bytes of archives.
    Bytes,
    /// Offsets before the end.
    Offsets,
}

impl Limit {
    /// One word, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "log start",
            Self::Time => "time",
            Self::Bytes => "bytes",
            Self::Offsets => "offsets",
        }
    }
}

/// An archive as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its offsets.
    pub range: OffsetRange,
    /// Whether it serves them, or lies beneath.
    pub tiles: bool,
    /// Bytes of its object.
    pub bytes: u64,
    /// The greatest timestamp of its records, in milliseconds; -1 for none.
    pub max_timestamp: i64,
}

impl From<&ArchiveEntry> for Piece {
    fn from(entry: &ArchiveEntry) -> Self {
        let summary = &entry.summary;
        let (range, tiles, bytes) = (summary.range, summary.tiles, summary.length);
        Self { range, tiles, bytes, max_timestamp: summary.max_timestamp }
    }
}

/// A log as retention sees it. Pieces ascend by first offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// All archives.
    pub pieces: Vec<Piece>,
    /// First offset of the log.
    pub start: i64,
    /// First offset not archived.
    pub end: i64,
    /// When its manifest was committed, by the writer's clock, in milliseconds.
    pub committed_at_ms: i64,
}

impl Log {
    /// The log that `snapshot` tells of, whose entries are `entries`.
    #[must_use]
    pub fn of(snapshot: &Snapshot, entries: &[ArchiveEntry]) -> Self {
        Self {
            pieces: entries.iter().map(Piece::from).collect(),
            start: snapshot.log_start(),
            end: snapshot.archived_through(),
            committed_at_ms: snapshot.manifest().committed_at_ms,
        }
    }

    /// Where `limits` move the log start to at the time `now_ms`, and which does.
    #[must_use]
    pub fn start_under(&self, limits: &Limits, now_ms: i64) -> (i64, Limit) {
        let mut farthest = (self.start, Limit::None);
        let mut take = |start: Option<i64>, limit| {
            if let Some(start) = start.filter(|start| *start > farthest.0) {
                farthest = (start, limit);
            }
            farthest.0
        };
        take(limits.bytes.map(|bytes| self.start_by_bytes(bytes)), Limit::Bytes);
        let from = take(limits.offsets.map(|most| self.start_by_offsets(most)), Limit::Offsets);
        take(limits.time.map(|time| self.start_by_time(from, time, now_ms)), Limit::Time);
        farthest
    }

    /// Archives that serve an offset from `from` on.
    fn served(&self, from: i64) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |piece| piece.tiles && piece.range.end() > from)
    }

    fn start_by_time(&self, from: i64, time: Duration, now_ms: i64) -> i64 {
        let oldest = now_ms.saturating_sub(millis(time));
        // Who committed last saw a clock too: if ours stepped back, what he wrote is
        // not the future.
        let latest = now_ms.max(self.committed_at_ms).saturating_add(millis(FUTURE_MAX));
        let mut start = from;
        for piece in self.served(from) {
            match piece.max_timestamp {
                told if told < 0 || told > latest => {}
                told if told < oldest => start = piece.range.end(),
                _ => break,
            }
        }
        start
    }

    fn start_by_bytes(&self, most: u64) -> i64 {
        let kept = |start: i64| -> u64 {
            let kept = self.pieces.iter().filter(|piece| piece.range.last() >= start);
            kept.map(|piece| piece.bytes).fold(0, u64::saturating_add)
        };
        // What is kept only shrinks along the log: bisecting keeps this n log n.
        let ends: Vec<i64> = self.served(self.start).map(|piece| piece.range.end()).collect();
        let enough = ends.partition_point(|end| kept(*end) >= most);
        enough.checked_sub(1).map_or(self.start, |last| ends[last])
    }

    fn start_by_offsets(&self, most: u64) -> i64 {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.end.saturating_sub(most).max(self.start)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_000_000;
    const DAY: i64 = 24 * 3600 * 1000;

    fn piece(base: i64, last: i64, bytes: u64, age_ms: i64) -> Piece {
        let range = OffsetRange::new(base, last).unwrap();
        Piece { range, tiles: true, bytes, max_timestamp: NOW - age_ms }
    }

    fn log(pieces: Vec<Piece>) -> Log {
        let end = pieces.iter().filter(|p| p.tiles).map(|p| p.range.end()).max().unwrap_or(0);
        Log { pieces, start: 0, end, committed_at_ms: NOW }
    }

    fn by_time(log: &Log, ms: i64, now: i64) -> i64 {
        let time = Some(Duration::from_millis(ms as u64));
        log.start_under(&Limits { time, ..Limits::default() }, now).0
    }

    fn by_bytes(log: &Log, bytes: u64) -> i64 {
        log.start_under(&Limits { bytes: Some(bytes), ..Limits::default() }, NOW).0
    }

    fn by_offsets(log: &Log, offsets: u64) -> i64 {
        log.start_under(&Limits { offsets: Some(offsets), ..Limits::default() }, NOW).0
    }

    #[test]
    fn an_archive_goes_when_its_youngest_record_is_older_than_the_limit_not_at_it() {
        let log = log(vec![piece(0, 9, 1, 5000), piece(10, 19, 1, 3000)]);
        assert_eq!(by_time(&log, 5000, NOW), 0);
        assert_eq!(by_time(&log, 4999, NOW), 10);
        assert_eq!(by_time(&log, 3000, NOW), 10);
        assert_eq!(by_time(&log, 2999, NOW), 20);
        assert_eq!(by_time(&log, 0, NOW), 20);
    }

    #[test]
    fn a_younger_archive_protects_older_records_behind_it() {
        let log = log(vec![piece(0, 9, 1, 10), piece(10, 19, 1, 9000)]);
        assert_eq!(by_time(&log, 100, NOW), 0);
    }

    #[test]
    fn what_a_younger_archive_protects_goes_with_it_where_another_limit_takes_that() {
        let young_first =
            log(vec![piece(0, 9, 1, 10), piece(10, 19, 1, 9000), piece(20, 29, 1, 0)]);
        let time = Some(Duration::from_millis(100));
        let limits = Limits { time, offsets: Some(20), ..Limits::default() };
        assert_eq!(young_first.start_under(&limits, NOW), (20, Limit::Time));
        let limits = Limits { offsets: Some(21), ..limits };
        assert_eq!(young_first.start_under(&limits, NOW), (9, Limit::Offsets));
    }

    #[test]
    fn what_has_no_usable_time_goes_with_the_next_that_has() {
        let unknown = Piece { max_timestamp: -1, ..piece(0, 9, 1, 0) };
        let future = piece(10, 19, 1, -400 * DAY);
        let alone = log(vec![unknown, future]);
        assert_eq!(by_time(&alone, 0, NOW), 0, "nothing tells that they are old");
        let old = log(vec![unknown, future, piece(20, 29, 1, 2 * DAY), piece(30, 39, 1, 0)]);
        assert_eq!(by_time(&old, DAY, NOW), 30);
        assert_eq!(by_time(&old, 2 * DAY, NOW), 0);
        let near = log(vec![piece(0, 9, 1, -DAY), piece(10, 19, 1, 2 * DAY)]);
        assert_eq!(by_time(&near, DAY, NOW), 0, "a day ahead is believed");
    }

    #[test]
    fn a_clock_that_steps_back_lets_nothing_go_that_it_kept_before() {
        let log = log(vec![piece(0, 9, 1, 0), piece(10, 19, 1, 91 * DAY)]);
        assert_eq!(by_time(&log, 30 * DAY, NOW), 0);
        // The first archive lies 50 days ahead of this clock, but it was committed.
        assert_eq!(by_time(&log, 30 * DAY, NOW - 50 * DAY), 0);
        assert_eq!(by_time(&log, 30 * DAY, i64::MIN), 0);
    }

    #[test]
    fn bytes_are_kept_up_to_the_limit_and_never_below() {
        let log = log(vec![piece(0, 9, 100, 0), piece(10, 19, 50, 0), piece(20, 29, 50, 0)]);
        assert_eq!(by_bytes(&log, 200), 0);
        assert_eq!(by_bytes(&log, 101), 0);
        assert_eq!(by_bytes(&log, 100), 10);
        assert_eq!(by_bytes(&log, 51), 10);
        assert_eq!(by_bytes(&log, 50), 20);
        assert_eq!(by_bytes(&log, 1), 20);
        assert_eq!(by_bytes(&log, 0), 30);
    }

    #[test]
    fn one_huge_archive_stays_until_something_is_behind_it() {
        let huge = piece(0, 9, 1 << 40, 0);
        assert_eq!(by_bytes(&log(vec![huge]), 1000), 0);
        assert_eq!(by_bytes(&log(vec![huge, piece(10, 19, 1000, 0)]), 1000), 10);
        assert_eq!(by_offsets(&log(vec![huge]), 3), 7, "offsets cut inside it");
    }

    #[test]
    fn offsets_cut_exactly_and_never_before_the_log_start() {
        let log = log(vec![piece(0, 9, 1, 0), piece(10, 19, 1, 0)]);
        assert_eq!(by_offsets(&log, 20), 0);
        assert_eq!(by_offsets(&log, 19), 1);
        assert_eq!(by_offsets(&log, 0), 20);
        assert_eq!(by_offsets(&log, u64::MAX), 0);
        let moved = Log { start: 15, ..log };
        assert_eq!(by_offsets(&moved, 12), 15);
        assert_eq!(by_offsets(&moved, 2), 18);
    }

    #[test]
    fn an_empty_partition_and_no_limits_move_nothing() {
        let all = Limits { time: Some(Duration::ZERO), bytes: Some(0), offsets: Some(0) };
        let empty = Log { start: 7, end: 7, ..log(vec![]) };
        assert_eq!(empty.start_under(&all, NOW), (7, Limit::None));
        let full = log(vec![piece(0, 9, 1, DAY)]);
        assert_eq!(full.start_under(&Limits::default(), NOW), (0, Limit::None));
    }

    /// A log with holes (gaps), archives that lie beneath, odd times.
    fn any_log() -> impl Strategy<Value = Log> {
        let step = (0i64..3, 1i64..5, 0u64..50, -3i64..12, any::<bool>(), 0i64..4);
        (prop::collection::vec(step, 0..8), 0i64..12, -30i64..30).prop_map(
            |(steps, start, skew)| {
                let (mut pieces, mut next) = (Vec::new(), 0);
                for (gap, span, bytes, age, beneath, odd) in steps {
                    next += gap;
                    let age = match odd {
                        0 => NOW + 1,
                        1 => -age * DAY,
                        _ => age * DAY,
                    };
                    pieces.push(piece(next, next + span - 1, bytes, age));
                    if beneath {
                        let back = (next - 2).max(0);
                        pieces.push(Piece { tiles: false, ..piece(back, next, bytes / 2, age) });
                    }
                    next += span;
                }
                pieces.sort_by_key(|piece| piece.range.base());
                let log = log(pieces);
                let start = start.min(log.end);
                Log { start, committed_at_ms: NOW + skew * DAY, ..log }
            },
        )
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let time = prop::option::of((0u64..12).prop_map(|d| Duration::from_secs(d * 86_400)));
        (time, prop::option::of(0u64..300), prop::option::of(0u64..40))
            .prop_map(|(time, bytes, offsets)| Limits { time, bytes, offsets })
    }

    /// The same rules, one offset at a time: the last at which the log may begin.
    fn brute_force(log: &Log, limits: &Limits, now: i64) -> i64 {
        let others = Limits { time: None, ..*limits };
        let mut begins = log.start;
        for limits in [&others, limits] {
            let log = Log { start: begins, ..log.clone() };
            let may = |start: &i64| may_begin(&log, limits, now, *start);
            begins = (begins + 1..=log.end).filter(may).max().unwrap_or(begins);
        }
        begins
    }

    /// Whether the log may begin at `start`.
    fn may_begin(log: &Log, limits: &Limits, now: i64, start: i64) -> bool {
        let latest = now.max(log.committed_at_ms) + DAY;
        let usable = |piece: &Piece| piece.max_timestamp >= 0 && piece.max_timestamp <= latest;
        let old = |piece: &Piece, time: Duration| {
            usable(piece) && now - piece.max_timestamp > time.as_millis() as i64
        };
        let served: Vec<_> = log.pieces.iter().filter(|piece| piece.tiles).collect();
        let gone: Vec<_> = served
            .iter()
            .filter(|piece| piece.range.end() > log.start && piece.range.base() < start)
            .collect();
        let by_time = limits.time.is_some_and(|time| {
            gone.iter().all(|piece| old(piece, time) || !usable(piece))
                && gone.last().is_some_and(|last| old(last, time) && last.range.end() == start)
        });
        let kept = log.pieces.iter().filter(|piece| piece.range.last() >= start);
        let kept: u64 = kept.map(|piece| piece.bytes).sum();
        let at_an_end = gone.last().is_some_and(|last| last.range.end() == start);
        let by_bytes = at_an_end && limits.bytes.is_some_and(|most| kept >= most);
        let by_offsets = limits.offsets.is_some_and(|most| log.end - start >= most as i64);
        by_time || by_bytes || by_offsets
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_log_begins_at_the_last_offset_that_brute_force_allows(
            log in any_log(),
            limits in any_limits(),
            back in 0i64..20,
        ) {
            let now = NOW - back * DAY;
            let begins = log.start_under(&limits, now).0;
            prop_assert_eq!(begins, brute_force(&log, &limits, now));
            for alone in [
                Limits { time: limits.time, ..Limits::default() },
                Limits { bytes: limits.bytes, ..Limits::default() },
                Limits { offsets: limits.offsets, ..Limits::default() },
            ] {
                prop_assert!(begins >= log.start_under(&alone, now).0, "{:?} is hindered", alone);
            }
            let mut done = Log { start: begins, ..log };
            done.pieces.retain(|piece| piece.range.last() >= begins);
            prop_assert_eq!(done.start_under(&limits, now), (begins, Limit::None), "done is done");
        }
    }
}
