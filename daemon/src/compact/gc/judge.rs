//! Owns the judgement over one object. Pure.

use std::collections::{HashMap, HashSet};

use super::Grace;
use crate::store::{Listed, ObjectKey};

/// Why nobody needs an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// No manifest ever referenced it: its writer was killed or lost a race.
    NeverCommitted,
    /// A later manifest dropped it: merged, expired or deleted.
    Dropped,
    /// One of the two, so long ago that nobody has to know.
    Unreferenced,
    /// A later manifest took its place.
    OldManifest,
    /// A probe or clock reading of a writer that was killed.
    Probe,
    /// An upload that was begun and not ended.
    Unfinished,
}

impl Why {
    /// A few words, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NeverCommitted => "never committed",
            Self::Dropped => "dropped from the manifest",
            Self::Unreferenced => "in no manifest",
            Self::OldManifest => "superseded manifest",
            Self::Probe => "left by a probe",
            Self::Unfinished => "unfinished upload",
        }
    }
}

/// When an object may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum When {
    /// Now.
    Now,
    /// As soon as the manifest number it was made for is taken.
    OnceTaken,
    /// At this time of the store's clock, in milliseconds.
    At(i64),
    /// When enough manifests have followed that its block of them closes.
    WithItsBlock,
}

/// What is known of a partition.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// Number of the newest manifest, 0 where there is none.
    pub(super) newest: u64,
    /// What it references.
    pub(super) needed: &'a HashSet<ObjectKey>,
    /// Number of the settled manifest, 0 where there is none.
    pub(super) settled: u64,
    /// What it references.
    pub(super) held: &'a HashSet<ObjectKey>,
    /// What manifests between the two reference, as far as they were asked.
    pub(super) asked: &'a HashMap<u64, HashSet<ObjectKey>>,
    /// Manifests before this one are in blocks that are closed or may close.
    pub(super) closable: u64,
    /// When the newest manifest was written.
    pub(super) newest_at_ms: i64,
    pub(super) grace: Grace,
}

/// Whether an object can be garbage only if the manifest it was made for, which
/// lies between settled and newest, never referenced it: then that one is to be
/// asked.
pub(super) fn to_ask(key: &ObjectKey, object: &Listed, facts: &Facts<'_>) -> Option<u64> {
    let number = made_for(key)?;
    let between = facts.settled < number && number <= facts.newest;
    let old = object.modified_ms <= facts.grace.cutoff_ms();
    (between && old && !facts.needed.contains(key)).then_some(number)
}

/// The manifest an archive, page or side object was made for.
pub(super) fn made_for(key: &ObjectKey) -> Option<u64> {
    match key {
        ObjectKey::Archive { number, .. }
        | ObjectKey::Page { number, .. }
        | ObjectKey::Side { number, .. } => Some(*number),
        _ => None,
    }
}

/// Why and when `object` goes; `None` for what is needed.
pub(super) fn judge(key: &ObjectKey, object: &Listed, facts: &Facts<'_>) -> Option<(Why, When)> {
    if facts.needed.contains(key) {
        return None;
    }
    let old = object.modified_ms <= facts.grace.cutoff_ms();
    let by_age = facts.grace.free_at(object.modified_ms);
    // Dropped by the newest manifest at the latest.
    let once_unread = When::At(by_age.max(facts.grace.free_at(facts.newest_at_ms)));
    if let ObjectKey::Manifest { number, .. } = key {
        let before = *number < facts.settled && *number < facts.closable;
        return match *number {
            // Not read as the newest, so not committed yet or void: leave it be.
            number if number > facts.newest => None,
            _ if before && old => Some((Why::OldManifest, When::Now)),
            _ => Some((Why::OldManifest, When::WithItsBlock)),
        };
    }
    let number = made_for(key)?;
    Some(if number > facts.newest {
        (Why::NeverCommitted, if old { When::OnceTaken } else { When::At(by_age) })
    } else if number <= facts.settled {
        match facts.held.contains(key) {
            true => (Why::Dropped, once_unread),
            false if old => (Why::Unreferenced, When::Now),
            false => (Why::NeverCommitted, When::At(by_age)),
        }
    } else {
        match facts.asked.get(&number) {
            Some(first) if !first.contains(key) => (Why::NeverCommitted, When::Now),
            _ => (Why::Dropped, once_unread),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{OffsetRange, TopicName, TopicPartition};
    use crate::store::{ClusterName, PartitionKey};

    const GRACE: i64 = 10;

    fn of() -> PartitionKey {
        let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 0).unwrap();
        PartitionKey { cluster: ClusterName::new("default").unwrap(), tp, incarnation: 0 }
    }

    fn archive(number: u64, id: u8) -> ObjectKey {
        let range = OffsetRange::new(0, 9).unwrap();
        ObjectKey::Archive { of: of(), number, range, digest: [id; 16] }
    }

    fn manifest(number: u64) -> ObjectKey {
        ObjectKey::Manifest { of: of(), number }
    }

    fn at(modified_ms: i64) -> Listed {
        Listed { name: "x".to_owned(), length: 1, modified_ms }
    }

    /// One step of a history: an upload, or a commit that adds and drops.
    #[derive(Clone, Debug)]
    enum Step {
        Upload,
        Commit { adds: bool, drops: bool },
        Wait(i64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Upload),
            (any::<bool>(), any::<bool>()).prop_map(|(adds, drops)| Step::Commit { adds, drops }),
            (1i64..8).prop_map(Step::Wait),
        ]
    }

    /// What the truth is, kept step by step.
    #[derive(Default)]
    struct World {
        now: i64,
        /// When each manifest was made and what it references; from number 1.
        manifests: Vec<(i64, HashSet<ObjectKey>)>,
        objects: Vec<(ObjectKey, i64)>,
        next_id: u8,
    }

    impl World {
        fn apply(&mut self, step: &Step) {
            match step {
                Step::Wait(ms) => self.now += ms,
                Step::Upload => {
                    let key = archive(self.manifests.len() as u64 + 1, self.next_id);
                    self.next_id = self.next_id.wrapping_add(1);
                    self.objects.push((key, self.now));
                }
                Step::Commit { adds, drops } => {
                    let number = self.manifests.len() as u64 + 1;
                    let mut refs = self.manifests.last().map(|m| m.1.clone()).unwrap_or_default();
                    refs.retain(|key| made_for(key).is_some());
                    if *drops && let Some(key) = refs.iter().min().cloned() {
                        refs.remove(&key);
                    }
                    let last = self.objects.last().map(|(key, _)| key.clone());
                    if *adds && last.as_ref().and_then(made_for) == Some(number) {
                        refs.extend(last);
                    }
                    refs.insert(manifest(number));
                    self.manifests.push((self.now, refs));
                }
            }
        }

        fn refs(&self, number: u64) -> HashSet<ObjectKey> {
            let index = number.checked_sub(1).map(|index| index as usize);
            index
                .and_then(|index| self.manifests.get(index))
                .map(|m| m.1.clone())
                .unwrap_or_default()
        }

        /// Whether a reader that began at most [`GRACE`] ago, or the newest, or a
        /// commit to come, may need `key`.
        fn may_be_needed(&self, key: &ObjectKey) -> bool {
            let newest = self.manifests.len() as u64;
            let made = |number: u64| self.manifests[number as usize - 1].0;
            // A manifest was the newest until the next one was made.
            let readable = (1..=newest)
                .filter(|number| *number == newest || made(number + 1) > self.now - GRACE);
            made_for(key).is_some_and(|number| number > newest)
                || readable.into_iter().any(|number| self.refs(number).contains(key))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        /// Table: F13 F23 I9 | histories of uploads and commits, gc at any time
        #[test]
        fn nothing_goes_that_anybody_may_need_and_everything_else_goes_in_time(
            steps in prop::collection::vec(any_step(), 1..40),
        ) {
            let mut world = World { now: 1000, ..World::default() };
            steps.iter().for_each(|step| world.apply(step));
            for pass in 0..2 {
                let grace = Grace { now_ms: world.now, grace: Duration::from_millis(GRACE as u64) };
                let newest = world.manifests.len() as u64;
                let settled = world.manifests.iter().take_while(|m| m.0 <= grace.cutoff_ms()).count();
                let settled = settled as u64;
                let (needed, held) = (world.refs(newest), world.refs(settled));
                let mut facts = Facts {
                    newest, needed: &needed, settled, held: &held, asked: &HashMap::new(),
                    closable: 0, grace,
                    newest_at_ms: world.manifests.last().map_or(0, |m| m.0),
                };
                let to_ask = world.objects.iter().filter_map(|(key, ms)| to_ask(key, &at(*ms), &facts));
                let asked: HashMap<_, _> = to_ask.map(|number| (number, world.refs(number))).collect();
                facts.asked = &asked;
                for (key, ms) in &world.objects {
                    let verdict = judge(key, &at(*ms), &facts);
                    if verdict.is_some_and(|(_, when)| when == When::Now) {
                        prop_assert!(!world.may_be_needed(key), "{key} in pass {pass}");
                    }
                    if pass == 1 && !needed.contains(key) {
                        // Long after, all that is not listed goes, or waits for its number.
                        let taken = made_for(key).unwrap() <= newest;
                        let when = if taken { When::Now } else { When::OnceTaken };
                        prop_assert_eq!(verdict.map(|(_, when)| when), Some(when), "{}", key);
                    }
                    prop_assert_eq!(needed.contains(key), verdict.is_none());
                }
                world.now += 3 * GRACE;
            }
        }
    }

    #[test]
    fn manifests_go_by_closed_blocks_and_never_the_settled_or_a_later_one() {
        let grace = Grace { now_ms: 100, grace: Duration::from_millis(10) };
        let (needed, none) = ([manifest(9)].into(), HashSet::new());
        let facts = Facts {
            newest: 9,
            needed: &needed,
            settled: 6,
            held: &none,
            asked: &HashMap::new(),
            closable: 4,
            newest_at_ms: 95,
            grace,
        };
        let when = |number, ms| judge(&manifest(number), &at(ms), &facts).map(|(_, when)| when);
        assert_eq!(when(3, 50), Some(When::Now));
        assert_eq!(when(3, 95), Some(When::WithItsBlock), "made anew by one that slept");
        assert_eq!(when(4, 50), Some(When::WithItsBlock));
        assert_eq!(when(6, 50), Some(When::WithItsBlock));
        assert_eq!(when(8, 95), Some(When::WithItsBlock));
        assert_eq!(when(9, 95), None);
        assert_eq!(when(10, 50), None);
    }
}
