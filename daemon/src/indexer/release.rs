//! Owns what the broker may delete of its WAL. Pure: no file, no store, no clock.
//!
//! A segment may go when it is closed, was read from its first byte to its last,
//! and every batch in it is proven committed. `releasable_through` follows from
//! that, such that a broker which deletes every segment that lies wholly below it
//! deletes none that may not go:
//!
//! | a segment that is | holds it at |
//! |---|---|
//! | closed, whole, all proven | nothing |
//! | closed, whole, with a batch that is not proven | the lowest such base |
//! | damaged, or not closed | its lowest base |
//! | not read, or damaged so that no batch is left to go by | where it was |
//!
//! It never passes the last batch that is proven here either: what another writer
//! archived behind that, this broker has yet to write. Nor does it pass offsets that
//! no segment here has held, as long as the broker may write them: batches come out of
//! order, and a segment made tomorrow may hold what another writer archived otherwise.
//!
//! Does not own: which segments are closed (the caller knows), what is proven
//! (`proof`), or deleting anything.

use crate::record::OffsetRange;

/// How much of a segment was understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Every byte is a frame that verifies, but for a torn tail, which is the end
    /// of a closed segment.
    #[default]
    Whole,
    /// It holds bytes that do not verify, or frames that are not archived.
    Damaged,
    /// It was not read.
    Unread,
}

/// What is known of one local segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The broker's number.
    pub id: u64,
    /// Whether the broker will never write to it again, for certain.
    pub closed: bool,
    /// How much of it was understood.
    pub condition: Condition,
    /// Lowest base of its batches.
    lowest: Option<i64>,
    /// Lowest base of those that are not proven.
    unproven: Option<i64>,
    /// Greatest last offset of those that are.
    proven: Option<i64>,
}

impl Segment {
    /// A segment without batches.
    #[must_use]
    pub fn new(id: u64, closed: bool, condition: Condition) -> Self {
        Self { id, closed, condition, ..Self::default() }
    }

    /// Adds one of its batches.
    pub fn add(&mut self, base: i64, last: i64, proven: bool) {
        let least = |known: Option<i64>| Some(known.map_or(base, |known| known.min(base)));
        self.lowest = least(self.lowest);
        if proven {
            self.proven = self.proven.max(Some(last));
        } else {
            self.unproven = least(self.unproven);
        }
    }

    /// Whether every batch in it is proven, damaged or not, closed or not.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.unproven.is_none()
    }

    /// Whether it may be deleted.
    #[must_use]
    pub fn is_releasable(&self) -> bool {
        self.closed && self.condition == Condition::Whole && self.is_proven()
    }

    /// The offset it holds `releasable_through` at, which stands at `before`.
    fn holds_at(&self, before: i64) -> Option<i64> {
        match self.condition {
            _ if self.is_releasable() => None,
            Condition::Unread => Some(before),
            Condition::Damaged => Some(self.lowest.unwrap_or(before)),
            Condition::Whole if self.closed => self.unproven,
            // One without a batch holds nothing that could be lost.
            Condition::Whole => self.lowest,
        }
    }
}

/// What may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// The segments that may be deleted, by number, in the order given.
    pub segments: Vec<u64>,
    /// How far the broker may delete (exclusive). Never below what it was, unless
    /// `archived_through` is.
    pub through: i64,
}

/// Decides what may go of all `segments` there are, where the newest manifest ends
/// at `archived_through` and `before` was told last.
#[must_use]
pub fn release(segments: &[Segment], archived_through: i64, before: i64) -> Release {
    let reach = segments.iter().filter_map(|one| one.proven).max().map_or(0, |last| last + 1);
    let held = segments.iter().filter_map(|one| one.holds_at(before)).min();
    let through = reach.min(held.unwrap_or(i64::MAX)).max(before).min(archived_through);
    let segments = segments.iter().filter(|one| one.is_releasable()).map(|one| one.id).collect();
    Release { segments, through }
}

/// The offsets in `range` that none of `held` covers, ascending.
#[must_use]
pub fn missing(range: OffsetRange, mut held: Vec<OffsetRange>) -> Vec<OffsetRange> {
    held.sort_unstable_by_key(|held| held.base());
    let (mut at, mut missing) = (range.base(), Vec::new());
    for held in held.into_iter().take_while(|held| held.base() <= range.last()) {
        missing.extend(OffsetRange::new(at, held.base() - 1));
        at = at.max(held.end());
    }
    missing.extend(OffsetRange::new(at, range.last()));
    missing
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(id: u64, batches: &[(i64, i64, bool)]) -> Segment {
        let mut segment = Segment::new(id, true, Condition::Whole);
        batches.iter().for_each(|&(base, last, proven)| segment.add(base, last, proven));
        segment
    }

    fn with(mut segment: Segment, closed: bool, condition: Condition) -> Segment {
        (segment.closed, segment.condition) = (closed, condition);
        segment
    }

    #[test]
    fn segments_that_are_proven_go_and_the_mark_stands_behind_the_last_batch() {
        let segments = [segment(0, &[(0, 9, true)]), segment(1, &[(15, 19, true), (10, 14, true)])];
        assert_eq!(release(&segments, 20, 0), Release { segments: vec![0, 1], through: 20 });
        assert_eq!(release(&segments, 500, 0).through, 20, "the rest is not ours to release");
        assert_eq!(release(&segments, 12, 0).through, 12);
    }

    #[test]
    fn a_batch_that_is_not_proven_keeps_its_segment_and_stops_the_mark() {
        let segments =
            [segment(0, &[(0, 9, true)]), segment(1, &[(10, 14, true), (15, 19, false)])];
        assert_eq!(release(&segments, 20, 0), Release { segments: vec![0], through: 15 });
    }

    #[test]
    fn a_damaged_segment_stops_the_mark_at_its_lowest_base() {
        let whole = segment(0, &[(0, 9, true)]);
        let damaged = with(segment(1, &[(15, 19, true), (12, 14, true)]), true, Condition::Damaged);
        assert_eq!(release(&[whole, damaged], 20, 0), Release { segments: vec![0], through: 12 });
    }

    #[test]
    fn a_segment_that_may_grow_is_kept_whatever_is_proven() {
        let open = with(segment(1, &[(10, 19, true)]), false, Condition::Whole);
        let closed = segment(0, &[(0, 9, true)]);
        assert_eq!(release(&[closed, open], 20, 0), Release { segments: vec![0], through: 10 });
        let empty = Segment::new(2, false, Condition::Whole);
        assert_eq!(release(&[closed, empty], 20, 0), Release { segments: vec![0], through: 10 });
    }

    #[test]
    fn what_was_not_read_stops_everything_where_it_is() {
        let closed = segment(0, &[(0, 9, true)]);
        for unknown in
            [Segment::new(1, true, Condition::Unread), Segment::new(1, true, Condition::Damaged)]
        {
            let found = release(&[closed, unknown], 20, 4);
            assert_eq!(found, Release { segments: vec![0], through: 4 });
        }
        assert_eq!(release(&[], 20, 4), Release { segments: vec![], through: 4 });
    }

    #[test]
    fn what_is_missing_is_what_nothing_covers() {
        let range = |base: i64, last: i64| OffsetRange::new(base, last).unwrap();
        let held = vec![range(13, 17), range(0, 2), range(1, 4), range(30, 90)];
        assert_eq!(missing(range(0, 40), held.clone()), [range(5, 12), range(18, 29)]);
        assert_eq!(missing(range(14, 16), held.clone()), []);
        assert_eq!(missing(range(20, 25), held), [range(20, 25)]);
        assert_eq!(missing(range(7, 7), Vec::new()), [range(7, 7)]);
    }

    proptest! {
        #[test]
        fn every_offset_is_held_or_missing(
            held in prop::collection::vec((0..50_i64, 0..9_i64), 0..12),
            base in 0..50_i64,
            span in 0..30_i64,
        ) {
            let range = |base: i64, span: i64| OffsetRange::new(base, base + span).unwrap();
            let held: Vec<_> = held.into_iter().map(|(base, span)| range(base, span)).collect();
            let all = range(base, span);
            let missing = missing(all, held.clone());
            prop_assert!(missing.windows(2).all(|two| two[0].end() < two[1].base()));
            for offset in -1..90 {
                let is_held = held.iter().any(|held| held.contains(offset));
                let is_missing = missing.iter().any(|missing| missing.contains(offset));
                prop_assert_eq!(is_missing, all.contains(offset) && !is_held);
            }
        }
    }

    fn conditions() -> impl Strategy<Value = Condition> {
        prop_oneof![
            8 => Just(Condition::Whole),
            1 => Just(Condition::Damaged),
            1 => Just(Condition::Unread),
        ]
    }

    type Batches = Vec<(i64, i64, bool)>;

    fn wals() -> impl Strategy<Value = Vec<(Segment, Batches)>> {
        let batch = (0..60_i64, 0..8_i64, prop::bool::weighted(0.9))
            .prop_map(|(base, span, proven)| (base, base + span, proven));
        let one = (prop::collection::vec(batch, 0..5), prop::bool::weighted(0.8), conditions());
        prop::collection::vec(one, 0..6).prop_map(|all| {
            let make = |(id, (batches, closed, condition)): (usize, (Batches, bool, Condition))| {
                let batches = if condition == Condition::Unread { Vec::new() } else { batches };
                (with(segment(id as u64, &batches), closed, condition), batches)
            };
            all.into_iter().enumerate().map(make).collect()
        })
    }

    /// Whether a mark at `through` keeps every rule, batch by batch.
    fn allowed(wal: &[(Segment, Batches)], through: i64) -> bool {
        let reached =
            wal.iter().any(|(_, batches)| batches.iter().any(|b| b.2 && b.1 + 1 >= through));
        (through == 0 || reached)
            && wal.iter().all(|(segment, batches)| {
                let below = batches.iter().any(|batch| batch.0 < through);
                let unproven_below = batches.iter().any(|batch| !batch.2 && batch.0 < through);
                match segment.condition {
                    Condition::Unread => through == 0,
                    Condition::Damaged => !below && (through == 0 || !batches.is_empty()),
                    Condition::Whole if segment.closed => !unproven_below,
                    Condition::Whole => !below,
                }
            })
    }

    proptest! {
        #[test]
        fn the_mark_is_the_greatest_that_keeps_every_rule(wal in wals(), archived in 0..80_i64) {
            let segments: Vec<Segment> = wal.iter().map(|(segment, _)| *segment).collect();
            let greatest = (0..=archived).rev().find(|&mark| allowed(&wal, mark)).unwrap();
            prop_assert_eq!(release(&segments, archived, 0).through, greatest);
        }

        #[test]
        fn no_segment_below_the_mark_may_not_go(wal in wals(), archived in 0..80_i64) {
            let segments: Vec<Segment> = wal.iter().map(|(segment, _)| *segment).collect();
            let found = release(&segments, archived, 0);
            for (segment, batches) in &wal {
                let greatest = batches.iter().map(|batch| batch.1).max();
                if greatest.is_some_and(|last| last < found.through) {
                    prop_assert!(found.segments.contains(&segment.id), "{segment:?}");
                }
                let may_go = segment.closed
                    && segment.condition == Condition::Whole
                    && batches.iter().all(|batch| batch.2);
                prop_assert_eq!(may_go, found.segments.contains(&segment.id));
            }
        }

        #[test]
        fn the_mark_never_moves_back_and_never_passes_what_is_archived(
            wal in wals(), archived in 0..80_i64, before in 0..80_i64,
        ) {
            let segments: Vec<Segment> = wal.iter().map(|(segment, _)| *segment).collect();
            let anew = release(&segments, archived, 0).through;
            let found = release(&segments, archived, before).through;
            prop_assert!(found <= archived);
            prop_assert!(found >= before.min(archived));
            prop_assert!(found <= anew.max(before));
        }
    }
}
