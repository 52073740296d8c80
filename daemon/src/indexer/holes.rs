//! Owns how long a hole in the log is waited for before it becomes a declared gap.
//! Pure: no file, no clock.
//!
//! Batches come out of order, so what is missing now may lie in a segment that is
//! not ready. A hole may be declared
//!
//! - when all segments that were there at its first sighting and one later one are
//!   closed or rotated: what could fill it has been seen;
//! - or when it is older than the gap timeout.
//!
//! Where another writer committed last, the hole is his to declare: his WAL may hold
//! what ours lacks. Only when he has been silent for the gap timeout is it ours.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Gap;
use crate::record::OffsetRange;

/// How long a hole is waited for at most.
pub const GAP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
/// Holes of one partition that are timed. Those behind them are timed once these
/// are declared or filled.
const HOLES_MAX: usize = 1024;

/// One content of one segment: its id and which life of that id.
pub(super) type SegmentKey = (u64, u64);

/// A segment in the directory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) key: SegmentKey,
    /// Whether it is closed or rotated and was read.
    pub(super) is_final: bool,
}

/// What the rule looks at.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// Monotonic time.
    pub(super) now: Duration,
    /// All segments of the partition.
    pub(super) segments: Vec<Present>,
    /// Since when the other writer who committed last is silent, where there is one.
    pub(super) other_silent_since: Option<Duration>,
}

/// The holes of one partition.
#[derive(Debug)]
pub(super) struct Holes {
    timeout: Duration,
    known: Vec<Hole>,
}

#[derive(Clone, Debug)]
struct Hole {
    range: OffsetRange,
    first_seen: Duration,
    present: Arc<[SegmentKey]>,
}

impl Holes {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, known: Vec::new() }
    }

    /// Takes in the holes there are now, ascending. One inside an older hole is what
    /// is left of it.
    pub(super) fn sight(&mut self, gaps: &[Gap], scene: &Scene) {
        let present: Arc<[SegmentKey]> = scene.segments.iter().map(|segment| segment.key).collect();
        let before = std::mem::take(&mut self.known);
        let mut older = before.iter().peekable();
        for gap in gaps.iter().take(HOLES_MAX) {
            let range = gap.range;
            while older.next_if(|hole| hole.range.last() < range.base()).is_some() {}
            let inherited = older.peek().filter(|hole| {
                hole.range.base() <= range.base() && range.last() <= hole.range.last()
            });
            let hole = match inherited {
                Some(hole) => Hole { range, ..(*hole).clone() },
                None => Hole { range, first_seen: scene.now, present: Arc::clone(&present) },
            };
            self.known.push(hole);
        }
    }

    /// How many of the holes sighted last may be declared, from the first on.
    pub(super) fn declarable(&self, scene: &Scene) -> usize {
        self.known.iter().take_while(|hole| self.may_declare(hole, scene)).count()
    }

    fn may_declare(&self, hole: &Hole, scene: &Scene) -> bool {
        let waited = |since: Duration| scene.now.saturating_sub(since) >= self.timeout;
        scene.other_silent_since.is_none_or(waited)
            && (waited(hole.first_seen) || nothing_can_fill(hole, scene))
    }

    /// When, by time alone, the first hole that has to wait may be declared.
    pub(super) fn wake_at(&self, scene: &Scene) -> Option<Duration> {
        let hole = self.known.iter().find(|hole| !self.may_declare(hole, scene))?;
        let (closed, timed_out) =
            (nothing_can_fill(hole, scene), hole.first_seen.saturating_add(self.timeout));
        let own = if closed { scene.now } else { timed_out };
        let other = scene.other_silent_since.map_or(own, |at| at.saturating_add(self.timeout));
        Some(own.max(other))
    }
}

/// Whether every segment of the first sighting is final or gone, and a later one is
/// final too.
fn nothing_can_fill(hole: &Hole, scene: &Scene) -> bool {
    let (mut early_are_final, mut later_is_final) = (true, false);
    for segment in &scene.segments {
        if hole.present.contains(&segment.key) {
            early_are_final &= segment.is_final;
        } else {
            later_is_final |= segment.is_final;
        }
    }
    early_are_final && later_is_final
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::GapKind;

    const TIMEOUT: Duration = Duration::from_secs(100);

    fn gap(base: i64, last: i64) -> Gap {
        Gap { range: OffsetRange::new(base, last).unwrap(), kind: GapKind::Missing }
    }

    fn scene(now: u64, segments: &[(u64, bool)]) -> Scene {
        let present = |&(id, is_final): &(u64, bool)| Present { key: (id, id), is_final };
        Scene {
            now: Duration::from_secs(now),
            segments: segments.iter().map(present).collect(),
            other_silent_since: None,
        }
    }

    fn sighted(gaps: &[Gap], scene: &Scene) -> Holes {
        let mut holes = Holes::new(TIMEOUT);
        holes.sight(gaps, scene);
        holes
    }

    #[test]
    fn a_hole_waits_for_what_was_there_and_one_later_one() {
        let holes = sighted(&[gap(5, 9)], &scene(0, &[(0, true), (1, false)]));
        let declarable = |segments: &[(u64, bool)]| holes.declarable(&scene(1, segments)) == 1;
        assert!(!declarable(&[(0, true), (1, false)]));
        assert!(!declarable(&[(0, true), (1, true)]), "no later one");
        assert!(!declarable(&[(0, true), (1, true), (2, false)]), "the later one may grow");
        assert!(!declarable(&[(0, true), (1, false), (2, true)]), "one of before may grow");
        assert!(declarable(&[(0, true), (1, true), (2, true), (3, false)]));
        assert!(declarable(&[(2, true)]), "what is gone can fill nothing");
    }

    #[test]
    fn a_segment_filled_anew_is_a_later_one() {
        let holes = sighted(&[gap(5, 9)], &scene(0, &[(0, true)]));
        let mut now = scene(1, &[(0, true)]);
        now.segments[0].key = (0, 99);
        assert_eq!(holes.declarable(&now), 1);
    }

    #[test]
    fn time_alone_declares_a_hole_and_says_when() {
        let first = scene(7, &[(0, false)]);
        let holes = sighted(&[gap(5, 9)], &first);
        assert_eq!(holes.wake_at(&first), Some(Duration::from_secs(107)));
        assert_eq!(holes.declarable(&scene(106, &[(0, false)])), 0);
        assert_eq!(holes.declarable(&scene(107, &[(0, false)])), 1);
    }

    #[test]
    fn what_is_left_of_a_hole_keeps_its_age_and_another_hole_has_its_own() {
        let mut holes = sighted(&[gap(5, 9), gap(50, 99)], &scene(0, &[(0, false)]));
        holes.sight(&[gap(7, 8), gap(20, 30), gap(60, 70), gap(80, 99)], &scene(60, &[(0, false)]));
        assert_eq!(holes.declarable(&scene(100, &[(0, false)])), 1);
        assert_eq!(holes.declarable(&scene(160, &[(0, false)])), 4);
        // Grown: batches that were there are gone. That is a new hole.
        holes.sight(&[gap(6, 8)], &scene(200, &[(0, false)]));
        assert_eq!(holes.declarable(&scene(201, &[(0, false)])), 0);
    }

    #[test]
    fn a_hole_that_must_wait_holds_back_those_behind_it() {
        let mut holes = sighted(&[gap(50, 59)], &scene(0, &[(0, false)]));
        holes.sight(&[gap(5, 9), gap(50, 59)], &scene(90, &[(0, false)]));
        assert_eq!(holes.declarable(&scene(120, &[(0, false)])), 0);
    }

    #[test]
    fn where_another_writer_committed_last_he_must_have_been_silent() {
        let holes = sighted(&[gap(5, 9)], &scene(0, &[(0, true)]));
        let mut now = scene(150, &[(0, true), (1, true)]);
        now.other_silent_since = Some(Duration::from_secs(60));
        assert_eq!(holes.declarable(&now), 0);
        assert_eq!(holes.wake_at(&now), Some(Duration::from_secs(160)));
        now.now = Duration::from_secs(160);
        assert_eq!(holes.declarable(&now), 1);
    }
}
