//! Owns what this process tells others of each partition: how far it is archived
//! and how far the broker may delete. Never stored; what is told is in a manifest
//! and a ledger before it is here.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::record::TopicPartition;

use super::commit::Committed;

/// Where one partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Which life of the topic.
    pub incarnation: u32,
    /// Number of the manifest that says so.
    pub generation: u64,
    /// End (exclusive) of the prefix of offsets that is archived or declared a gap.
    pub archived_through: i64,
    /// End (exclusive) of what the broker may delete of its WAL; 0 for nothing.
    pub releasable_through: i64,
}

#[derive(Debug, Default)]
struct Told {
    /// With the change that set it.
    marks: BTreeMap<TopicPartition, (u64, Watermark)>,
    changes: u64,
}

/// The partitions this process archives, and where each stands. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Watermarks {
    told: Arc<watch::Sender<Told>>,
}

impl Watermarks {
    /// Nothing told yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells what `committed` says of its partition, and how far the broker may
    /// delete, as its ledger has it. Within one life of the topic neither mark
    /// moves back, and an older manifest changes nothing.
    pub fn tell(&self, committed: &Committed, releasable_through: i64) {
        let snapshot = committed.snapshot();
        let archived_through = snapshot.archived_through();
        let mut mark = Watermark {
            incarnation: snapshot.incarnation(),
            generation: snapshot.number(),
            archived_through,
            releasable_through: releasable_through.min(archived_through),
        };
        self.told.send_if_modified(|told| {
            if let Some((_, before)) = told.marks.get(snapshot.tp()) {
                let order = (mark.incarnation, mark.generation);
                if order < (before.incarnation, before.generation) {
                    return false;
                }
                if mark.incarnation == before.incarnation {
                    let least = before.releasable_through.min(archived_through);
                    mark.releasable_through = mark.releasable_through.max(least);
                }
                if mark == *before {
                    return false;
                }
            }
            told.changes += 1;
            told.marks.insert(snapshot.tp().clone(), (told.changes, mark));
            true
        });
    }

    /// Where a partition stands, if anything was told of it.
    #[must_use]
    pub fn get(&self, tp: &TopicPartition) -> Option<Watermark> {
        self.told.borrow().marks.get(tp).map(|(_, mark)| *mark)
    }

    /// Follows what is told from now on; everything told so far comes first.
    #[must_use]
    pub fn follow(&self) -> Following {
        Following { told: self.told.subscribe(), seen: 0 }
    }
}

/// One follower of [`Watermarks`], and how far it has come.
#[derive(Debug)]
pub struct Following {
    told: watch::Receiver<Told>,
    seen: u64,
}

impl Following {
    /// What changed since the call before: the newest of each partition, by topic
    /// and partition. In the first call all there is. Does not wait.
    pub fn changes(&mut self) -> Vec<(TopicPartition, Watermark)> {
        let told = self.told.borrow_and_update();
        let news = told.marks.iter().filter(|(_, (change, _))| *change > self.seen);
        let news = news.map(|(tp, (_, mark))| (tp.clone(), *mark)).collect();
        self.seen = told.changes;
        news
    }

    /// Waits until there is a change; `false` when there can be none any more.
    pub async fn changed(&mut self) -> bool {
        self.told.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::testing::{catalog, entry, land, partition};
    use crate::catalog::{Catalog, Edit};
    use crate::store::Store;

    /// Commits `0..=9`, then `10..=19`, and gives both proofs.
    async fn two_commits() -> (Arc<Catalog>, Committed, Committed) {
        let store = Store::open("memory:").unwrap();
        let (catalog, tp) = (catalog(&store, "one", 1), partition().tp);
        let mut proofs: Vec<Committed> = Vec::new();
        for number in 1..=2 {
            let add = vec![entry(number, number as i64 * 10 - 10, number as i64 * 10 - 1)];
            land(&store, &add).await;
            let base = proofs.last().map(|before| Arc::clone(before.snapshot()));
            let edit = Edit { add, ..Edit::default() };
            proofs.push(catalog.commit(&tp, 0, base, edit).await.unwrap());
        }
        let second = proofs.remove(1);
        (catalog, proofs.remove(0), second)
    }

    #[tokio::test]
    async fn a_follower_hears_what_is_there_first_and_then_only_changes() {
        let (_catalog, first, second) = two_commits().await;
        let (marks, tp) = (Watermarks::new(), partition().tp);
        let mut early = marks.follow();
        assert_eq!(early.changes(), []);
        marks.tell(&first, 5);
        assert!(early.changed().await);
        let mark = Watermark {
            incarnation: 0,
            generation: 1,
            archived_through: 10,
            releasable_through: 5,
        };
        assert_eq!(early.changes(), [(tp.clone(), mark)]);
        assert_eq!(early.changes(), []);
        marks.tell(&second, 15);
        let newest = Watermark { generation: 2, archived_through: 20, ..mark };
        let newest = Watermark { releasable_through: 15, ..newest };
        assert_eq!(early.changes(), [(tp.clone(), newest)]);
        assert_eq!(marks.follow().changes(), [(tp.clone(), newest)]);
        assert_eq!(marks.get(&tp), Some(newest));
        marks.tell(&second, 15);
        assert_eq!(early.changes(), [], "the same again is no change");
    }

    #[tokio::test]
    async fn marks_never_move_back_and_never_pass_what_is_archived() {
        let (_catalog, first, second) = two_commits().await;
        let (marks, tp) = (Watermarks::new(), partition().tp);
        marks.tell(&second, 1_000);
        assert_eq!(marks.get(&tp).unwrap().releasable_through, 20);
        marks.tell(&second, 3);
        marks.tell(&first, 3);
        let mark = marks.get(&tp).unwrap();
        assert_eq!((mark.generation, mark.archived_through, mark.releasable_through), (2, 20, 20));
    }
}
