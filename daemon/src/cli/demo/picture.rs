//! Owns the demo's picture of compaction: the archives of a partition before and
//! after, each where it lies in the log.

use std::sync::Arc;

use crate::catalog::{ArchiveEntry, Snapshot};
use crate::cli::{output, wanted};
use crate::compact::gc::{GRACE_DEFAULT, Grace, When};
use crate::compact::merge::{Merged, plan};
use crate::daemon::Rooms;
use crate::record::{OffsetRange, TopicPartition};
use crate::task::Pace;

/// Letters from one end of the log to the other.
const WIDTH: u64 = 40;

/// What compaction made of one partition.
struct Changed {
    tp: TopicPartition,
    log: OffsetRange,
    before: Vec<ArchiveEntry>,
    after: Vec<ArchiveEntry>,
}

/// Merges what can be merged and shows it, one partition archive by archive.
pub(super) async fn compact(rooms: &Rooms, shown: (&str, i32)) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for (tp, _) in wanted(rooms, None, None).await? {
        all.extend(merge(rooms, tp).await?);
    }
    let is_shown = |one: &&Changed| (one.tp.topic().as_str(), one.tp.partition()) == shown;
    if let Some(one) = all.iter().find(is_shown) {
        output::say(&format!(
            "\n4. Archives of closed segments are small; neighbours become one, as they lie. {}, \
             partition {}:\n\n",
            shown.0, shown.1
        ))?;
        let mut table = output::Table::new(HEADS);
        one.before.iter().for_each(|entry| table.row(row("before", entry, one.log)));
        one.after.iter().for_each(|entry| table.row(row("after", entry, one.log)));
        table.print()?;
    }
    output::say("\nAll partitions, and what it takes to read each from its start, cold:\n\n")?;
    let mut table = output::Table::new(SUMS);
    all.iter().for_each(|one| table.row(sums(one)));
    table.print()?;
    output::say(&waiting(rooms).await?)
}

/// Merges all archives of a partition that are neighbours.
async fn merge(rooms: &Rooms, tp: TopicPartition) -> anyhow::Result<Option<Changed>> {
    let Some(mut base) = rooms.catalog.load(&tp, None).await? else { return Ok(None) };
    let before = base.entries().await?;
    let scratch = tempfile::tempdir()?;
    // So much that all together are just enough for one.
    let target = base.totals().log_bytes.max(1);
    let mut borders = std::collections::HashSet::new();
    loop {
        let jobs = plan(&base, &base.entries().await?, target, &borders);
        let Some(job) = jobs.first() else { break };
        let (from, pace) = (Arc::clone(&base), Pace::unlimited());
        match rooms.compactor().merge(from, job, scratch.path(), &pace).await? {
            Merged::Committed(newest, _) | Merged::Overtaken(newest) => base = newest,
            Merged::Refused(left, _) => drop(borders.insert(left)),
        }
    }
    // What answers from now on is the newest.
    rooms.fetcher.renew(&tp).await?;
    let after = base.entries().await?;
    let log = log_of(&base);
    Ok(log.map(|log| Changed { tp, log, before, after }))
}

fn log_of(snapshot: &Snapshot) -> Option<OffsetRange> {
    OffsetRange::new(snapshot.log_start(), snapshot.archived_through() - 1)
}

const HEADS: &[&str] =
    &["", ">first", ">last", ">batches", ">records", ">size", "where it lies in the log"];

fn row(when: &str, entry: &ArchiveEntry, log: OffsetRange) -> Vec<String> {
    let summary = &entry.summary;
    vec![
        when.to_owned(),
        summary.range.base().to_string(),
        summary.range.last().to_string(),
        summary.batches.to_string(),
        summary.records.to_string(),
        output::bytes(summary.length),
        bar(summary.range, log),
    ]
}

/// `range` as a bar on a line that is the whole `log`.
fn bar(range: OffsetRange, log: OffsetRange) -> String {
    let whole = log.end().abs_diff(log.base()).max(1);
    let at = |offset: i64| offset.saturating_sub(log.base()).max(0) as u64 * WIDTH / whole;
    let from = at(range.base()).min(WIDTH - 1);
    let to = at(range.end()).clamp(from + 1, WIDTH);
    let letter = |column| if (from..to).contains(&column) { '\u{2588}' } else { '\u{b7}' };
    (0..WIDTH).map(letter).collect()
}

const SUMS: &[&str] =
    &["topic", ">partition", ">archives", ">become", ">size", ">becomes", ">requests", ">become"];

fn sums(one: &Changed) -> Vec<String> {
    let bytes = |all: &[ArchiveEntry]| all.iter().map(|entry| entry.summary.length).sum();
    // A table of contents and the data: neighbours share nothing.
    let requests = |all: &[ArchiveEntry]| (2 * all.len()).to_string();
    vec![
        one.tp.topic().to_string(),
        one.tp.partition().to_string(),
        one.before.len().to_string(),
        one.after.len().to_string(),
        output::bytes(bytes(&one.before)),
        output::bytes(bytes(&one.after)),
        requests(&one.before),
        requests(&one.after),
    ]
}

/// What gc would say.
async fn waiting(rooms: &Rooms) -> anyhow::Result<String> {
    let compactor = rooms.compactor();
    let grace = Grace { now_ms: compactor.store_now_ms().await?, grace: GRACE_DEFAULT };
    let (mut objects, mut bytes, mut until) = (0, 0, None);
    for (tp, incarnation) in wanted(rooms, None, None).await? {
        for one in compactor.survey(&tp, incarnation, grace).await?.litter {
            if let When::At(ms) = one.when {
                objects += 1;
                bytes += one.object.length;
                until = until.max(Some(ms));
            }
        }
    }
    Ok(format!(
        "\nThe old ones, {objects} objects of {}, stay for who still reads them, until {}; tierd \
         gc lists\nthem, and deletes them then.\n",
        output::bytes(bytes),
        output::time(until)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_lie_where_the_offsets_do_and_none_is_empty() {
        let range = |base, last| OffsetRange::new(base, last).unwrap();
        let log = range(100, 499);
        let full = |bar: &str| {
            let at = |wanted: bool| bar.chars().position(|letter| (letter == '\u{2588}') == wanted);
            (at(true).unwrap(), bar.chars().filter(|letter| *letter == '\u{2588}').count())
        };
        assert_eq!(full(&bar(log, log)), (0, 40));
        assert_eq!(full(&bar(range(100, 299), log)), (0, 20));
        assert_eq!(full(&bar(range(300, 499), log)), (20, 20));
        assert_eq!(full(&bar(range(499, 499), log)), (39, 1), "the least is seen too");
        assert_eq!(full(&bar(range(0, 109), log)), (0, 1), "cut by the log start");
        assert_eq!(bar(range(300, 499), log).chars().count(), 40);
    }
}
