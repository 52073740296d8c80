//! Owns what was seen of a partition's segments over time: since when each is
//! unchanged, and whether it is still the same file.
//!
//! ```text
//!  listing, again and again --observe--> Observed { first sighting, unchanged since, life }
//!                                        Change { shrank | another file | other frames | gone }
//! ```
//!
//! Parsing cannot tell a segment that was emptied and filled again from one that
//! was not, and ids are used again; only comparing with what was seen before can.
//! Waiting is measured by the monotonic clock. Reads no file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::classify::{Broker, Class, Facts, Rules, classify};
use super::{Gist, SegmentFile};
use crate::clock::Clock;

/// One segment over time.
#[derive(Clone, Debug)]
pub struct Observed {
    /// As it was listed last.
    pub file: SegmentFile,
    /// Which life of its id: another number is another content, whatever the name.
    pub life: u64,
    /// Whether the broker emptied it and filled it again: the same file all the same.
    pub emptied: bool,
    /// Whether it parses to a clean end, where it was scanned since it changed.
    pub clean_end: Option<bool>,
    first_seen_ms: i64,
    unchanged_since: Duration,
    head: Option<(i64, u32)>,
}

/// A segment that is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It became shorter: emptied, and perhaps filled again.
    Shrank {
        /// The segment.
        id: u64,
        /// Bytes before.
        from: u64,
        /// Bytes now.
        to: u64,
    },
    /// Another file has its name.
    Replaced {
        /// The segment.
        id: u64,
    },
    /// It begins with another frame than before.
    Refilled {
        /// The segment.
        id: u64,
    },
    /// It is gone.
    Vanished {
        /// The segment.
        id: u64,
    },
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shrank { id, from, to } => {
                write!(f, "segment {id} shrank from {from} to {to} bytes")
            }
            Self::Replaced { id } => write!(f, "another file has the name of segment {id}"),
            Self::Refilled { id } => write!(f, "segment {id} was emptied and filled again"),
            Self::Vanished { id } => write!(f, "segment {id} is gone"),
        }
    }
}

/// The segments of one partition over time.
#[derive(Debug, Default)]
pub struct Observations {
    segments: BTreeMap<u64, Observed>,
    lives: Arc<AtomicU64>,
}

impl Observations {
    /// Nothing seen yet; lives are counted by `lives`. One count for a partition that
    /// goes and comes again, or the number of a life would mean two contents.
    #[must_use]
    pub fn counted_by(lives: &Arc<AtomicU64>) -> Self {
        Self { segments: BTreeMap::new(), lives: Arc::clone(lives) }
    }

    /// Takes in a listing. Returns what is not what it was.
    pub fn observe(&mut self, listing: &[SegmentFile], clock: &dyn Clock) -> Vec<Change> {
        let mut before = std::mem::take(&mut self.segments);
        let mut changes = Vec::new();
        for file in listing {
            let known = before.remove(&file.id);
            let seen = match known {
                Some(seen) => self.again(seen, file, clock, &mut changes),
                None => self.first(file, clock),
            };
            self.segments.insert(file.id, seen);
        }
        changes.extend(before.into_keys().map(|id| Change::Vanished { id }));
        changes
    }

    fn first(&mut self, file: &SegmentFile, clock: &dyn Clock) -> Observed {
        Observed {
            file: file.clone(),
            life: next_life(&self.lives),
            emptied: false,
            clean_end: None,
            first_seen_ms: clock.now_ms(),
            unchanged_since: clock.monotonic(),
            head: None,
        }
    }

    fn again(
        &mut self,
        seen: Observed,
        file: &SegmentFile,
        clock: &dyn Clock,
        changes: &mut Vec<Change>,
    ) -> Observed {
        let id = file.id;
        // A number of a file that was deleted is soon used again; its birth is not.
        if (seen.file.inode, seen.file.created_ms) != (file.inode, file.created_ms) {
            changes.push(Change::Replaced { id });
            return self.first(file, clock);
        }
        if file.len < seen.file.len {
            changes.push(Change::Shrank { id, from: seen.file.len, to: file.len });
            let emptied = is_same_file(file);
            return Observed { emptied, ..self.first(file, clock) };
        }
        if file.len == seen.file.len && file.modified_ms == seen.file.modified_ms {
            return Observed { file: file.clone(), ..seen };
        }
        let unchanged_since = clock.monotonic();
        Observed { file: file.clone(), unchanged_since, clean_end: None, ..seen }
    }

    /// Takes in what a scan of `file` found. Another first frame than before begins
    /// another life, which is returned as a change.
    pub fn scanned(&mut self, file: &SegmentFile, gist: Gist) -> Option<Change> {
        let seen = self.segments.get_mut(&file.id).filter(|seen| seen.file == *file)?;
        seen.clean_end = Some(gist.clean_end);
        let before = std::mem::replace(&mut seen.head, gist.head);
        if before.is_none() || before == gist.head {
            return None;
        }
        (seen.life, seen.emptied) = (next_life(&self.lives), is_same_file(file));
        Some(Change::Refilled { id: file.id })
    }

    /// Forgets a segment that its observer deleted.
    pub fn forget(&mut self, id: u64) {
        self.segments.remove(&id);
    }

    /// The segments, by ascending id.
    pub fn segments(&self) -> impl Iterator<Item = &Observed> {
        self.segments.values()
    }

    /// Their facts and classes now, by ascending id.
    #[must_use]
    pub fn classes(&self, broker: Broker, rules: &Rules, clock: &dyn Clock) -> Vec<(Facts, Class)> {
        let facts: Vec<Facts> = self.segments.values().map(|seen| seen.facts(clock)).collect();
        let classes = classify(&facts, broker, rules);
        facts.into_iter().zip(classes).collect()
    }
}

/// Whether a file of the same number and birth is the same one. Where the file
/// system knows no birth it may be another, made after the first was deleted.
fn is_same_file(file: &SegmentFile) -> bool {
    file.created_ms.is_some()
}

impl Observed {
    fn facts(&self, clock: &dyn Clock) -> Facts {
        Facts {
            id: self.file.id,
            len: self.file.len,
            modified_ms: self.file.modified_ms,
            created_ms: self.file.created_ms.unwrap_or(self.first_seen_ms),
            unchanged_for: clock.monotonic().saturating_sub(self.unchanged_since),
            clean_end: self.clean_end,
        }
    }
}

fn next_life(lives: &AtomicU64) -> u64 {
    lives.fetch_add(1, Ordering::Relaxed) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn file(id: u64, len: u64, modified_ms: i64) -> SegmentFile {
        let path = format!("/wal/t/0/wal_0_{id}.log").into();
        SegmentFile { id, path, len, modified_ms, created_ms: None, inode: 7 }
    }

    fn beginning_with(base: i64) -> Gist {
        Gist { head: Some((base, 7)), clean_end: true }
    }

    fn unchanged_for(seen: &Observations, clock: &ManualClock) -> Vec<u64> {
        let running = Broker::Running { since_ms: None };
        let classes = seen.classes(running, &Rules::default(), clock);
        classes.iter().map(|(facts, _)| facts.unchanged_for.as_secs()).collect()
    }

    #[test]
    fn silence_is_counted_from_the_last_change_by_the_monotonic_clock() {
        let (clock, mut seen) = (ManualClock::at(0), Observations::default());
        seen.observe(&[file(0, 10, 1), file(1, 10, 1)], &*clock);
        clock.advance(Duration::from_secs(20));
        clock.set_wall_ms(-99_000_000);
        assert!(seen.observe(&[file(0, 11, 1), file(1, 10, 1)], &*clock).is_empty());
        clock.advance(Duration::from_secs(5));
        seen.observe(&[file(0, 11, 1), file(1, 10, 1)], &*clock);
        assert_eq!(unchanged_for(&seen, &clock), [5, 25]);
        seen.observe(&[file(0, 11, 1), file(1, 10, 2)], &*clock);
        assert_eq!(unchanged_for(&seen, &clock), [5, 0]);
    }

    #[test]
    fn what_shrinks_is_replaced_or_vanishes_begins_another_life() {
        let (clock, mut seen) = (ManualClock::at(0), Observations::default());
        let life = |seen: &Observations| seen.segments().next().map(|segment| segment.life);
        seen.observe(&[file(0, 10, 1)], &*clock);
        let first = life(&seen);
        assert_eq!(
            seen.observe(&[file(0, 0, 2)], &*clock),
            [Change::Shrank { id: 0, from: 10, to: 0 }]
        );
        let second = life(&seen);
        let other = SegmentFile { inode: 8, ..file(0, 99, 3) };
        assert_eq!(
            seen.observe(std::slice::from_ref(&other), &*clock),
            [Change::Replaced { id: 0 }]
        );
        let third = life(&seen);
        assert_eq!(seen.observe(&[], &*clock), [Change::Vanished { id: 0 }]);
        assert!(seen.observe(&[other], &*clock).is_empty());
        let lives = [first, second, third, life(&seen)];
        assert!(lives.is_sorted_by(|a, b| a < b), "{lives:?}");
    }

    #[test]
    fn an_emptied_file_is_told_from_one_deleted_and_made_anew() {
        let born = |at, len| SegmentFile { created_ms: Some(at), ..file(0, len, len as i64) };
        let emptied = |first: SegmentFile, then: SegmentFile| {
            let (clock, mut seen) = (ManualClock::at(0), Observations::default());
            seen.observe(&[first], &*clock);
            let change = seen.observe(&[then], &*clock);
            (change, seen.segments().next().map(|segment| segment.emptied))
        };
        let shrank = vec![Change::Shrank { id: 0, from: 10, to: 5 }];
        assert_eq!(emptied(born(1, 10), born(1, 5)), (shrank.clone(), Some(true)));
        // The number of the deleted file came again at once.
        let replaced = vec![Change::Replaced { id: 0 }];
        assert_eq!(emptied(born(1, 10), born(2, 50)), (replaced, Some(false)));
        assert_eq!(emptied(file(0, 10, 1), file(0, 5, 2)), (shrank, Some(false)));
    }

    #[test]
    fn a_segment_that_was_emptied_and_filled_beyond_its_size_is_told_by_its_first_frame() {
        let (clock, mut seen) = (ManualClock::at(0), Observations::default());
        seen.observe(&[file(0, 10, 1)], &*clock);
        assert_eq!(seen.scanned(&file(0, 10, 1), beginning_with(5)), None);
        seen.observe(&[file(0, 20, 2)], &*clock);
        assert_eq!(seen.scanned(&file(0, 20, 2), beginning_with(5)), None);
        seen.observe(&[file(0, 30, 3)], &*clock);
        let change = seen.scanned(&file(0, 30, 3), beginning_with(6));
        assert_eq!(change, Some(Change::Refilled { id: 0 }));
    }

    #[test]
    fn what_was_scanned_says_whether_the_end_is_clean_until_the_file_changes() {
        let (clock, mut seen) = (ManualClock::at(0), Observations::default());
        let clean = |seen: &Observations| seen.segments().next().and_then(|s| s.clean_end);
        seen.observe(&[file(0, 100, 1)], &*clock);
        assert_eq!(clean(&seen), None);
        let torn = Gist { clean_end: false, ..beginning_with(1) };
        seen.scanned(&file(0, 100, 1), torn);
        assert_eq!(clean(&seen), Some(false));
        seen.scanned(&file(0, 100, 1), beginning_with(1));
        assert_eq!(clean(&seen), Some(true));
        // A scan of what is no longer there says nothing.
        seen.observe(&[file(0, 120, 2)], &*clock);
        seen.scanned(&file(0, 100, 1), beginning_with(1));
        assert_eq!(clean(&seen), None);
    }
}
