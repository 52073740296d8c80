//! Owns finding the aborted transactions that have batches in an answer (KIP-98).
//!
//! Whether a batch was aborted is told by the next marker of its producer in the
//! log as this manifest serves it: in the same archive, or archives later. So the
//! search goes forward, from the archive in which the answer begins, over what each
//! table of contents says of its own batches, until every transaction that has
//! batches in the answer has met its marker. What lies in front of the answer never
//! matters, nor does it which archive came first: one that filled a gap counts like
//! any other.
//!
//! A transaction that the manifest lists as open has no marker in the archive; it is
//! not looked for, and the list is not complete. Cost: the tables of contents that
//! the answer needed anyway, and those of archives with markers up to the end of the
//! transactions that the answer cuts. Pages and archives that have nothing to do with
//! transactions are passed by.

use std::collections::HashMap;

use super::answered::{Answered, Refusal, answered};
use super::types::{Aborted, AbortedTransaction, Status};
use super::{FetchError, Fetcher};
use crate::archive::Toc;
use crate::catalog::Snapshot;
use crate::read::ReadStats;
use crate::record::{OffsetRange, TopicPartition};

/// The aborted transactions that touch `range`, asked for by themselves.
pub(super) async fn list(
    fetcher: &Fetcher,
    tp: &TopicPartition,
    incarnation: Option<u32>,
    range: OffsetRange,
) -> Answered<Aborted> {
    answered(fetcher, tp, incarnation, |snapshot| {
        let fetcher = fetcher.clone();
        async move {
            let (start, through) = (snapshot.log_start(), snapshot.archived_through());
            if range.base() < start {
                let message = format!("offset {} lies below log start {start}", range.base());
                return Ok(Err(Refusal::new(Status::BelowLogStart, message)));
            }
            if range.base() >= through {
                let message = format!("the archive ends before {through}");
                return Ok(Err(Refusal::new(Status::NotArchivedYet, message)));
            }
            let stats = ReadStats::default();
            let mut found = collect(&fetcher, &snapshot, Some(range), &stats).await?;
            // Of what lies above the archive nothing is known.
            found.complete &= range.last() < through;
            Ok(Ok(found))
        }
    })
    .await
}

/// The aborted transactions that have batches in `returned`, all from `snapshot`.
pub(super) async fn collect(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    returned: Option<OffsetRange>,
    stats: &ReadStats,
) -> Result<Aborted, FetchError> {
    let through = snapshot.archived_through();
    let Some(returned) = returned else {
        return Ok(Aborted { transactions: Vec::new(), searched_to: through, complete: true });
    };
    let open = snapshot.open_transactions().iter();
    let open = open.filter(|open| open.first_offset <= returned.last());
    let mut search = Search {
        returned,
        endless: open.map(|open| (open.producer_id, open.first_offset)).collect(),
        unresolved: HashMap::new(),
        found: Vec::new(),
    };
    let mut searched_to = through;
    let mut next = returned.base();
    while let Some(entry) = snapshot.next_transactional(next).await? {
        let base = entry.summary.range.base();
        if search.is_done_before(base) {
            searched_to = base;
            break;
        }
        search.take(&*fetcher.reader.toc(&entry, stats).await?);
        next = entry.summary.range.end();
    }
    // A transaction still open may yet turn out to be aborted, behind the archive.
    let complete = search.endless.is_empty();
    let searched_to = if complete { searched_to } else { through };
    Ok(Aborted { transactions: search.found, searched_to, complete })
}

/// A search under way.
struct Search {
    returned: OffsetRange,
    /// Transactions without a marker in the archive: first offset by producer.
    endless: HashMap<i64, i64>,
    /// Transactions that begin in the answer, or before it in its first archive, and
    /// have not met their marker yet: first offset by producer.
    unresolved: HashMap<i64, i64>,
    found: Vec<AbortedTransaction>,
}

impl Search {
    /// Whether nothing from `offset` on can say more of the answer.
    fn is_done_before(&self, offset: i64) -> bool {
        offset > self.returned.last() && self.unresolved.is_empty()
    }

    /// Takes what the next archive says.
    fn take(&mut self, toc: &Toc) {
        for ended in &toc.ended {
            let before = self.unresolved.remove(&ended.producer_id);
            let Some(first_offset) = before.or(ended.first_offset) else { continue };
            if ended.aborted
                && first_offset <= self.returned.last()
                && ended.marker >= self.returned.base()
            {
                let (producer_id, last_offset) = (ended.producer_id, ended.marker);
                self.found.push(AbortedTransaction { producer_id, first_offset, last_offset });
            }
        }
        for open in &toc.open {
            let endless = self.endless.get(&open.producer_id);
            if open.first_offset <= self.returned.last()
                && endless.is_none_or(|first| *first > open.first_offset)
            {
                self.unresolved.entry(open.producer_id).or_insert(open.first_offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{EndedTransaction, OpenTransaction};

    /// A table: producer, first offset, marker and whether it aborts; then what is open.
    fn toc(ended: &[(i64, Option<i64>, i64, bool)], open: &[(i64, i64)]) -> Toc {
        let ended = ended.iter().map(|&(producer_id, first_offset, marker, aborted)| {
            EndedTransaction { producer_id, first_offset, marker, aborted }
        });
        let open = open
            .iter()
            .map(|&(producer_id, first_offset)| OpenTransaction { producer_id, first_offset });
        Toc { ended: ended.collect(), open: open.collect(), ..Toc::default() }
    }

    fn search(base: i64, last: i64, endless: &[(i64, i64)]) -> Search {
        Search {
            returned: OffsetRange::new(base, last).unwrap(),
            endless: endless.iter().copied().collect(),
            unresolved: HashMap::new(),
            found: Vec::new(),
        }
    }

    fn found(search: &Search) -> Vec<(i64, i64, i64)> {
        search.found.iter().map(|a| (a.producer_id, a.first_offset, a.last_offset)).collect()
    }

    #[test]
    fn the_next_marker_decides_wherever_it_lies() {
        let mut search = search(0, 9, &[]);
        search.take(&toc(&[(7, None, 1, true), (8, Some(0), 3, true)], &[(7, 4), (8, 5), (9, 6)]));
        assert!(!search.is_done_before(10));
        // 8 has no marker here; what 7 does behind it is another transaction.
        search.take(&toc(&[(7, None, 12, true), (7, Some(13), 14, true)], &[(8, 11)]));
        search.take(&toc(&[(8, None, 20, false), (9, Some(19), 21, true)], &[(7, 22)]));
        assert!(search.is_done_before(23));
        assert_eq!(found(&search), [(8, 0, 3), (7, 4, 12), (9, 6, 21)]);
    }

    #[test]
    fn what_lies_before_or_behind_the_answer_is_not_told() {
        let mut search = search(10, 19, &[]);
        search.take(&toc(
            &[(7, Some(3), 9, true), (8, Some(2), 10, true), (9, Some(20), 22, true)],
            &[(7, 25)],
        ));
        assert_eq!(found(&search), [(8, 2, 10)]);
        assert!(search.is_done_before(20) && !search.is_done_before(19));
    }

    #[test]
    fn no_marker_is_looked_for_that_is_not_there() {
        let mut search = search(0, 9, &[(7, 5), (8, 9)]);
        search.take(&toc(&[], &[(7, 5), (8, 2)]));
        assert_eq!(search.unresolved, HashMap::from([(8, 2)]));
    }
}
