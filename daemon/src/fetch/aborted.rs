//! Owns finding the aborted transactions that touch an answer (KIP-98).
//!
//! A transaction's marker may lie archives after its data, so the search goes on
//! into later archives until an entry's last stable offset passes the end of the
//! answer. Only tables of contents are read, and only of archives that have any.

use super::types::Aborted;
use super::{FetchError, Fetcher};
use crate::archive::AbortedTransaction;
use crate::catalog::Snapshot;
use crate::read::ReadStats;
use crate::record::OffsetRange;

/// The aborted transactions that touch `returned`, all from `snapshot`.
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
    let mut found = Aborted::default();
    if let Some(rest) = OffsetRange::new(returned.base(), through - 1) {
        for entry in snapshot.find_by_offset_range(rest).await? {
            if !entry.summary.tiles || entry.summary.aborted == 0 {
                continue;
            }
            let toc = fetcher.reader.toc(&entry, stats).await?;
            if take(&toc.aborted, returned, &mut found) {
                found.searched_to = entry.summary.range.end();
                found.complete = true;
                return Ok(found);
            }
        }
    }
    found.searched_to = through;
    // A transaction still open may yet turn out to be aborted.
    found.complete =
        !snapshot.open_transactions().iter().any(|open| open.first_offset <= returned.last());
    Ok(found)
}

/// Takes what touches `returned`; true once nothing later can.
fn take(entries: &[AbortedTransaction], returned: OffsetRange, found: &mut Aborted) -> bool {
    for entry in entries {
        if entry.first_offset <= returned.last() && entry.last_offset >= returned.base() {
            found.transactions.push(*entry);
        }
        if entry.last_stable_offset > returned.last() {
            return true;
        }
    }
    false
}
