//! Owns which transactions are open at the end of the log once an archive is
//! committed: what bounds read_committed.
//!
//! A transaction is open when no marker of its producer follows it in the log as it
//! is served. An archive at the end of the log says that by itself, given what was
//! open before it. One that fills a gap says it only of producers that have no marker
//! behind the gap, so the tables of contents behind it are asked, as far as needed.
//! A fill may so end a transaction that seemed open, and open one whose marker was
//! never written, or lies where nothing is archived: its data must not be shown as
//! committed.

use std::collections::BTreeMap;

use super::IndexError;
use crate::archive::{OpenTransaction, Toc};
use crate::catalog::Snapshot;
use crate::read::{ArchiveReader, ReadStats};

/// What an archive does to one producer.
#[derive(Clone, Copy, Debug, Default)]
struct Effect {
    /// It holds a marker of the producer.
    ends: bool,
    /// Where the producer goes on without a marker, in the archive or behind it.
    first_offset: Option<i64>,
}

/// The transactions open at the end of the log when an archive with the table `toc`
/// is added to `snapshot` at offsets that end before `end`.
pub(super) async fn open_after(
    reader: &ArchiveReader,
    snapshot: Option<&Snapshot>,
    toc: &Toc,
    end: i64,
) -> Result<Vec<OpenTransaction>, IndexError> {
    let mut effects = effects(toc);
    let Some(snapshot) = snapshot else { return Ok(apply(&[], effects)) };
    let stats = ReadStats::default();
    let mut next = end;
    while !effects.is_empty()
        && let Some(entry) = snapshot.next_transactional(next).await?
    {
        let behind = reader.toc(&entry, &stats).await?;
        pass(&mut effects, &behind);
        next = entry.summary.range.end();
    }
    Ok(apply(snapshot.open_transactions(), effects))
}

fn effects(toc: &Toc) -> BTreeMap<i64, Effect> {
    let mut effects: BTreeMap<i64, Effect> = BTreeMap::new();
    for ended in &toc.ended {
        effects.entry(ended.producer_id).or_default().ends = true;
    }
    for open in &toc.open {
        effects.entry(open.producer_id).or_default().first_offset = Some(open.first_offset);
    }
    effects
}

/// What is left of `effects` behind an archive that follows.
fn pass(effects: &mut BTreeMap<i64, Effect>, behind: &Toc) {
    for ended in &behind.ended {
        effects.remove(&ended.producer_id);
    }
    for open in &behind.open {
        if let Some(effect) = effects.get_mut(&open.producer_id) {
            effect.first_offset.get_or_insert(open.first_offset);
        }
    }
}

/// What is open after `effects`, where `known` was.
fn apply(known: &[OpenTransaction], effects: BTreeMap<i64, Effect>) -> Vec<OpenTransaction> {
    let mut open: BTreeMap<i64, i64> =
        known.iter().map(|open| (open.producer_id, open.first_offset)).collect();
    for (producer, effect) in effects {
        let before = open.remove(&producer).filter(|_| !effect.ends);
        open.extend(before.into_iter().chain(effect.first_offset).min().map(|at| (producer, at)));
    }
    let open = open.into_iter();
    open.map(|(producer_id, first_offset)| OpenTransaction { producer_id, first_offset }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::EndedTransaction;

    fn toc(markers: &[(i64, i64)], open: &[(i64, i64)]) -> Toc {
        let ended = |&(producer_id, marker)| EndedTransaction {
            producer_id,
            first_offset: None,
            marker,
            aborted: false,
        };
        Toc { ended: markers.iter().map(ended).collect(), open: list(open), ..Toc::default() }
    }

    fn list(open: &[(i64, i64)]) -> Vec<OpenTransaction> {
        let one = |&(producer_id, first_offset)| OpenTransaction { producer_id, first_offset };
        open.iter().map(one).collect()
    }

    fn after(known: &[(i64, i64)], archive: &Toc, behind: &[Toc]) -> Vec<(i64, i64)> {
        let mut effects = effects(archive);
        behind.iter().for_each(|behind| pass(&mut effects, behind));
        let open = apply(&list(known), effects);
        open.iter().map(|open| (open.producer_id, open.first_offset)).collect()
    }

    #[test]
    fn at_the_end_of_the_log_markers_end_and_records_begin() {
        let known = [(1, 5), (2, 6), (3, 7)];
        let archive = toc(&[(1, 20), (2, 21), (9, 22)], &[(2, 25), (3, 23), (4, 24)]);
        assert_eq!(after(&known, &archive, &[]), [(2, 25), (3, 7), (4, 24)]);
    }

    #[test]
    fn a_fill_changes_nothing_where_a_marker_follows() {
        let fill = toc(&[(1, 12)], &[(1, 13), (2, 14)]);
        let behind = [toc(&[], &[(1, 20)]), toc(&[(1, 30), (2, 31)], &[(1, 33)])];
        assert_eq!(after(&[(1, 33)], &fill, &behind), [(1, 33)]);
    }

    #[test]
    fn a_marker_in_a_fill_ends_what_seemed_open() {
        let fill = toc(&[(1, 12), (2, 13), (3, 14)], &[(3, 15)]);
        let behind = [toc(&[(8, 20)], &[(2, 21)]), toc(&[], &[(2, 30), (3, 31)])];
        assert_eq!(after(&[(1, 5), (2, 6), (3, 7)], &fill, &behind), [(2, 21), (3, 15)]);
    }

    #[test]
    fn records_in_a_fill_open_what_no_marker_follows() {
        let fill = toc(&[], &[(1, 12), (2, 13), (3, 14)]);
        let behind = [toc(&[], &[(3, 30)])];
        assert_eq!(after(&[(2, 4), (3, 30)], &fill, &behind), [(1, 12), (2, 4), (3, 14)]);
    }
}
