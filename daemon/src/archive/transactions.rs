//! Owns what the batches of one archive say of transactions.
//!
//! A transaction's fate is told by the next marker of its producer in the served
//! log, which may lie archives later, or come late and fill a gap between. What an
//! archive keeps for good is therefore what its own batches say, whatever lies
//! before or behind them:
//!
//! - **ended**: of each producer the first marker, since it may end what began in
//!   front of the archive; and every later marker that aborts. Both with the first
//!   offset that the transaction has here, if it has any.
//! - **open**: of each producer whose last transaction here has no marker here, its
//!   first offset here.
//!
//! Put together in offset order, archive by archive, these give the fate of every
//! transaction in the log as it is served now; nothing that was kept goes stale
//! when a gap between is filled. A commit that is not its producer's first marker
//! tells nobody anything, and is left out.
//!
//! Does not own: putting archives together (`fetch` for an answer, the indexer for
//! the end of the log).

use std::collections::{BTreeMap, HashSet};

use super::{EndedTransaction, OpenTransaction};
use crate::record::{CanonicalRecord, MarkerKind};

/// The transactions of the batches seen so far.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// First offset by producer.
    open: BTreeMap<i64, i64>,
    ended: Vec<EndedTransaction>,
    /// Producers that have a marker here.
    marked: HashSet<i64>,
}

impl Transactions {
    /// Takes the next batch of the chain, which is served from `first` on. A
    /// marker that does not decode ends nothing: its transaction stays open,
    /// which shows no record too early.
    pub(super) fn observe(&mut self, batch: &CanonicalRecord, first: i64) {
        let header = batch.header();
        let producer_id = header.producer_id;
        if !header.is_transactional() || producer_id < 0 {
            return;
        }
        if !header.is_control() {
            self.open.entry(producer_id).or_insert(first);
            return;
        }
        let Ok(Some(marker)) = batch.marker() else { return };
        let aborted = match marker.kind {
            MarkerKind::Abort => true,
            MarkerKind::Commit => false,
            MarkerKind::Other(_) => return,
        };
        let first_offset = self.open.remove(&producer_id);
        let is_first = self.marked.insert(producer_id);
        if is_first || (aborted && first_offset.is_some()) {
            let marker = header.last_offset();
            self.ended.push(EndedTransaction { producer_id, first_offset, marker, aborted });
        }
    }

    /// Takes all batches of an archive that follows, by its own two lists.
    pub(super) fn follow(&mut self, ended: &[EndedTransaction], open: &[OpenTransaction]) {
        let mut marked_there = HashSet::new();
        for one in ended {
            let producer_id = one.producer_id;
            // Its first marker there ends what began here.
            let began = match marked_there.insert(producer_id) {
                true => self.open.remove(&producer_id),
                false => None,
            };
            let first_offset = began.or(one.first_offset);
            let is_first = self.marked.insert(producer_id);
            if is_first || (one.aborted && first_offset.is_some()) {
                self.ended.push(EndedTransaction { first_offset, ..*one });
            }
        }
        for one in open {
            self.open.entry(one.producer_id).or_insert(one.first_offset);
        }
    }

    /// How many are to be listed.
    pub(super) fn len(&self) -> usize {
        self.ended.len() + self.open.len()
    }

    /// Those ended, ascending by marker, and those open, by producer.
    pub(super) fn finish(self) -> (Vec<EndedTransaction>, Vec<OpenTransaction>) {
        let open = self
            .open
            .into_iter()
            .map(|(producer_id, first_offset)| OpenTransaction { producer_id, first_offset })
            .collect();
        (self.ended, open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture::{control, data, transactional};

    fn run(batches: &[CanonicalRecord]) -> (Vec<EndedTransaction>, Vec<(i64, i64)>) {
        let mut transactions = Transactions::default();
        for batch in batches {
            transactions.observe(batch, batch.range().base());
        }
        let len = transactions.len();
        let (ended, open) = transactions.finish();
        assert_eq!(len, ended.len() + open.len());
        (ended, open.iter().map(|one| (one.producer_id, one.first_offset)).collect())
    }

    fn ended(producer_id: i64, first: Option<i64>, marker: i64, aborted: bool) -> EndedTransaction {
        EndedTransaction { producer_id, first_offset: first, marker, aborted }
    }

    #[test]
    fn every_abort_and_each_first_marker_is_listed() {
        let (told, open) = run(&[
            transactional(0, 2, 7),
            transactional(2, 1, 8),
            transactional(3, 1, 7),
            control(4, 7, 0),
            data(5, 1),
            control(6, 8, 1),
            transactional(7, 1, 8),
            control(8, 8, 1),
            transactional(9, 1, 8),
            control(10, 8, 0),
            transactional(11, 1, 7),
            transactional(12, 1, 7),
        ]);
        let first = [ended(7, Some(0), 4, true), ended(8, Some(2), 6, false)];
        assert_eq!(told, [&first[..], &[ended(8, Some(9), 10, true)]].concat());
        assert_eq!(open, [(7, 11)]);
    }

    #[test]
    fn a_marker_without_records_may_end_what_began_before() {
        let (told, open) = run(&[control(3, 9, 1), control(4, 9, 0), control(5, 7, 0)]);
        assert_eq!(told, [ended(9, None, 3, false), ended(7, None, 5, true)]);
        assert_eq!(open, []);
    }

    #[test]
    fn markers_of_other_kinds_end_nothing() {
        let (told, open) = run(&[transactional(0, 2, 7), control(2, 7, 5)]);
        assert_eq!((told, open), (vec![], vec![(7, 0)]));
    }

    #[test]
    fn a_transaction_begins_where_its_batch_is_served_from() {
        let mut transactions = Transactions::default();
        transactions.observe(&transactional(0, 9, 7), 4);
        let open = transactions.finish().1;
        assert_eq!(open, [OpenTransaction { producer_id: 7, first_offset: 4 }]);
    }
}
