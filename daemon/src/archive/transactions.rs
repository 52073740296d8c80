//! Owns the transactions along a chain of batches: which are open, which were
//! aborted, and where the last stable offset stood then.
//!
//! As a broker does it: a transaction begins with the first batch of its
//! producer, ends with a marker, and an aborted one is told to consumers with
//! its first offset. The last stable offset is the first offset of the oldest
//! open transaction, or what follows the marker when none is open.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{AbortedTransaction, OpenTransaction};
use crate::record::{CanonicalRecord, MarkerKind};

/// The transactions after the batches seen so far.
#[derive(Debug)]
pub(super) struct Transactions {
    /// First offset by producer.
    open: BTreeMap<i64, i64>,
    /// The same, oldest first.
    oldest: BTreeSet<(i64, i64)>,
    aborted: Vec<AbortedTransaction>,
}

impl Transactions {
    /// Goes on from the transactions open before the first batch.
    pub(super) fn from(open: Vec<OpenTransaction>) -> Self {
        let mut transactions =
            Self { open: BTreeMap::new(), oldest: BTreeSet::new(), aborted: Vec::new() };
        for one in open {
            transactions.begin(one.producer_id, one.first_offset);
        }
        transactions
    }

    /// Takes the next batch of the chain, which is served from `first` on. A
    /// marker that does not decode ends nothing: its transaction stays open,
    /// which shows no record too early.
    pub(super) fn observe(&mut self, batch: &CanonicalRecord, first: i64) {
        let header = batch.header();
        if !header.is_transactional() || header.producer_id < 0 {
            return;
        }
        if !header.is_control() {
            self.begin(header.producer_id, first);
            return;
        }
        let Ok(Some(marker)) = batch.marker() else { return };
        match marker.kind {
            MarkerKind::Abort => {
                // An abort of a transaction that wrote nothing is not told.
                if let Some(first_offset) = self.end(header.producer_id) {
                    let last_offset = header.last_offset();
                    let oldest = self.oldest.first().map(|(first_offset, _)| *first_offset);
                    self.aborted.push(AbortedTransaction {
                        producer_id: header.producer_id,
                        first_offset,
                        last_offset,
                        last_stable_offset: oldest.unwrap_or(last_offset + 1),
                    });
                }
            }
            MarkerKind::Commit => {
                self.end(header.producer_id);
            }
            MarkerKind::Other(_) => {}
        }
    }

    /// How many were aborted.
    pub(super) fn aborted_len(&self) -> usize {
        self.aborted.len()
    }

    /// Those aborted, ascending by marker, and those still open, by producer.
    pub(super) fn finish(self) -> (Vec<AbortedTransaction>, Vec<OpenTransaction>) {
        let open = self
            .open
            .into_iter()
            .map(|(producer_id, first_offset)| OpenTransaction { producer_id, first_offset })
            .collect();
        (self.aborted, open)
    }

    fn begin(&mut self, producer_id: i64, first_offset: i64) {
        if let Entry::Vacant(vacant) = self.open.entry(producer_id) {
            vacant.insert(first_offset);
            self.oldest.insert((first_offset, producer_id));
        }
    }

    fn end(&mut self, producer_id: i64) -> Option<i64> {
        let first_offset = self.open.remove(&producer_id)?;
        self.oldest.remove(&(first_offset, producer_id));
        Some(first_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture::{control, data, transactional};

    fn run(open: &[(i64, i64)], batches: &[CanonicalRecord]) -> Transactions {
        let open = open
            .iter()
            .map(|(producer_id, first_offset)| OpenTransaction {
                producer_id: *producer_id,
                first_offset: *first_offset,
            })
            .collect();
        let mut transactions = Transactions::from(open);
        for batch in batches {
            transactions.observe(batch, batch.range().base());
        }
        transactions
    }

    fn aborted(producer_id: i64, first: i64, last: i64, stable: i64) -> AbortedTransaction {
        AbortedTransaction {
            producer_id,
            first_offset: first,
            last_offset: last,
            last_stable_offset: stable,
        }
    }

    #[test]
    fn an_abort_is_told_with_the_oldest_transaction_still_open() {
        let (told, open) = run(
            &[],
            &[
                transactional(0, 2, 7),
                transactional(2, 1, 8),
                transactional(3, 1, 7),
                control(4, 7, 0),
                data(5, 1),
                control(6, 8, 0),
            ],
        )
        .finish();
        assert_eq!(told, [aborted(7, 0, 4, 2), aborted(8, 2, 6, 7)]);
        assert_eq!(open, []);
    }

    #[test]
    fn commits_and_other_markers_tell_nothing() {
        let (told, open) = run(
            &[],
            &[transactional(0, 2, 7), control(2, 7, 5), control(3, 9, 0), control(4, 7, 1)],
        )
        .finish();
        assert_eq!((told, open), (vec![], vec![]));
    }

    #[test]
    fn a_transaction_may_begin_archives_before_its_marker() {
        let (told, open) = run(&[(7, 10), (8, 20)], &[transactional(100, 1, 7)]).finish();
        assert!(told.is_empty());
        let pairs: Vec<_> = open.iter().map(|one| (one.producer_id, one.first_offset)).collect();
        assert_eq!(pairs, [(7, 10), (8, 20)]);
        let (told, open) = run(&pairs, &[control(101, 7, 0)]).finish();
        assert_eq!(told, [aborted(7, 10, 101, 20)]);
        assert_eq!(open.len(), 1);
    }
}
