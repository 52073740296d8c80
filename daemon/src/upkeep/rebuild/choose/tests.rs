use proptest::prelude::*;

use super::*;
use crate::archive::{
    ArchiveIdentity, ArchiveSummary, Encoding, FOOTER_DISTANCE, IndexLevel, TocPlace,
};
use crate::record::{TopicName, TopicPartition};
use crate::store::ClusterName;

fn range(base: i64, last: i64) -> OffsetRange {
    OffsetRange::new(base, last).unwrap()
}

fn archive(number: u64, base: i64, last: i64, batches: u32, tiles: bool) -> ArchiveEntry {
    let seed = format!("{base} {last} {batches} {tiles}");
    let summary = ArchiveSummary {
        range: range(base, last),
        tiles,
        batches: if tiles { batches } else { 0 },
        records: 1,
        log_bytes: 1,
        overlaps: if tiles { 0 } else { batches },
        overlap_bytes: 0,
        bad_crcs: 0,
        unindexed: 0,
        min_timestamp: 0,
        max_timestamp: 1,
        leader_epochs: (0, 0),
        index_level: IndexLevel::None,
        index_bytes: 0,
        transactions: 0,
        length: FOOTER_DISTANCE + 1,
        digest: *blake3::hash(seed.as_bytes()).as_bytes(),
        toc: TocPlace { offset: 0, length: 1, raw: 1, encoding: Encoding::Stored, digest: [0; 16] },
    };
    let tp = TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap();
    let cluster = ClusterName::new("c").unwrap();
    ArchiveEntry::new(&cluster, &ArchiveIdentity { tp, incarnation: 0 }, number, summary)
}

fn tile(number: u64, base: i64, last: i64) -> ArchiveEntry {
    archive(number, base, last, 1, true)
}

/// Nothing of the catalog is left.
const NOTHING: Known<'_> = Known { log_start: None, through: 0, entries: &[], gaps: &[] };

/// Manifest, first and last offset of what is chosen and tiles.
fn taken(chosen: &Chosen) -> Vec<(u64, i64, i64)> {
    let tiles = chosen.entries.iter().filter(|entry| entry.tile().is_some());
    let shown = |e: &ArchiveEntry| (e.built_for, e.summary.range.base(), e.summary.range.last());
    let mut shown: Vec<_> = tiles.map(shown).collect();
    shown.sort_unstable_by_key(|(_, base, _)| *base);
    shown
}

fn from_nothing(found: &[ArchiveEntry]) -> Chosen {
    choose(&NOTHING, found.iter().cloned().map(Found).collect(), &[])
}

#[test]
fn what_was_merged_gives_way_to_what_it_was_merged_into() {
    let found = [tile(1, 0, 9), tile(2, 10, 19), tile(3, 20, 29), tile(4, 0, 19), tile(5, 30, 39)];
    let chosen = from_nothing(&found);
    assert_eq!(taken(&chosen), [(4, 0, 19), (3, 20, 29), (5, 30, 39)]);
    assert_eq!((chosen.left_out.len(), chosen.through), (2, 40));
    assert!(chosen.gaps.is_empty());
}

#[test]
fn of_two_writers_the_one_on_whom_the_next_archive_follows_has_won() {
    let (won, lost) = (tile(2, 10, 19), archive(2, 10, 24, 9, true));
    let chosen = from_nothing(&[tile(1, 0, 9), lost, won, tile(3, 20, 29)]);
    assert_eq!(taken(&chosen), [(1, 0, 9), (2, 10, 19), (3, 20, 29)]);
    // At the end nobody knows; more is never less.
    let chosen = from_nothing(&[tile(1, 0, 9), tile(2, 10, 19), archive(2, 10, 24, 9, true)]);
    assert_eq!(taken(&chosen), [(1, 0, 9), (2, 10, 24)]);
    // Whoever is taken, it is all of one writer's, without a hole.
    let lost = [archive(2, 10, 22, 1, true), archive(2, 23, 29, 1, true)];
    let found = [&[tile(1, 0, 9), archive(2, 10, 19, 5, true)][..], &lost].concat();
    let chosen = from_nothing(&found);
    assert_eq!(taken(&chosen), [(1, 0, 9), (2, 10, 22), (2, 23, 29)]);
    assert_eq!((chosen.left_out.len(), chosen.gaps.len()), (1, 0));
}

#[test]
fn what_the_catalog_names_is_displaced_only_by_what_covers_it() {
    let entries = [tile(1, 0, 9), tile(2, 10, 19), tile(3, 20, 29)];
    let known = Known { log_start: Some(0), through: 30, entries: &entries, gaps: &[] };
    let take = |found: ArchiveEntry| taken(&choose(&known, vec![Found(found)], &[]));
    assert_eq!(take(tile(4, 0, 19)), [(4, 0, 19), (3, 20, 29)]);
    assert_eq!(take(tile(4, 5, 19)), [(1, 0, 9), (2, 10, 19), (3, 20, 29)]);
    assert_eq!(take(tile(2, 10, 29)), [(1, 0, 9), (2, 10, 19), (3, 20, 29)]);
    assert_eq!(take(tile(4, 30, 39)).len(), 4);
}

#[test]
fn holes_are_gaps_of_the_kind_that_is_known() {
    let chosen = from_nothing(&[tile(1, 10, 19), tile(2, 30, 39)]);
    let before = Gap { range: range(0, 9), kind: GapKind::BeforeFirst };
    let missing = Gap { range: range(20, 29), kind: GapKind::Missing };
    assert_eq!(chosen.gaps, [before, missing]);

    let gaps = [Gap { range: range(20, 26), kind: GapKind::Damaged }];
    let entries = [tile(1, 10, 19)];
    let known = Known { log_start: Some(10), through: 27, entries: &entries, gaps: &gaps };
    let broken = LeftOut { object: "x".to_owned(), range: range(35, 44), why: "broken".to_owned() };
    let chosen = choose(&known, vec![Found(tile(4, 22, 31))], &[broken]);
    let gap = |base, last, kind| Gap { range: range(base, last), kind };
    assert_eq!(
        chosen.gaps,
        [
            gap(20, 21, GapKind::Damaged),
            gap(32, 34, GapKind::Missing),
            gap(35, 44, GapKind::Damaged),
        ]
    );
    assert_eq!(chosen.new_gaps, chosen.gaps[1..]);
    assert_eq!(chosen.through, 45);
}

#[test]
fn archives_that_tile_nothing_come_once_and_none_from_before_the_log_start() {
    let beside = archive(3, 10, 15, 2, false);
    let known = Known { log_start: Some(8), through: 8, entries: &[], gaps: &[] };
    let found = [beside.clone(), beside.rebased(5), archive(1, 0, 7, 1, false), tile(1, 0, 7)];
    let chosen = choose(&known, found.into_iter().map(Found).collect(), &[]);
    assert_eq!(chosen.taken_in, [beside]);
    assert_eq!(chosen.left_out.len(), 3);
}

/// A step of a partition's life.
#[derive(Clone, Debug)]
enum Step {
    /// Archives of these lengths, and of another writer who lost, with whether he came to
    /// upload each.
    Append(Vec<i64>, Vec<(i64, bool)>),
    /// A hole of this length is declared, and an archive behind it.
    Skip(i64),
    /// This many neighbours from this one on are merged.
    Merge(prop::sample::Index, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let won = prop::collection::vec(1i64..20, 1..4);
    let lost = prop::collection::vec((1i64..20, any::<bool>()), 0..4);
    prop_oneof![
        3 => (won, lost).prop_map(|(won, lost)| Step::Append(won, lost)),
        1 => (1i64..9).prop_map(Step::Skip),
        1 => (any::<prop::sample::Index>(), 2usize..5).prop_map(|(at, count)| Step::Merge(at, count)),
    ]
}

/// Archives of these lengths from `from` on.
fn row(number: u64, from: i64, lengths: &[i64]) -> Vec<ArchiveEntry> {
    let mut at = from;
    let mut one = |len: &i64| {
        at += len;
        archive(number, at - len, at - 1, *len as u32, true)
    };
    lengths.iter().map(&mut one).collect()
}

/// Manifest, first and last offset of each stretch of `tiles` that one manifest brought.
fn stretches(tiles: &[(u64, i64, i64)]) -> Vec<(u64, i64, i64)> {
    let mut joined: Vec<(u64, i64, i64)> = Vec::new();
    for &(number, base, last) in tiles {
        match joined.last_mut() {
            Some(before) if before.0 == number && before.2 + 1 == base => before.2 = last,
            _ => joined.push((number, base, last)),
        }
    }
    joined
}

proptest! {
    /// From names and contents alone comes every offset that the last manifest had, each
    /// from an archive made for the same manifest; and the very same archives where only
    /// one writer made any.
    ///
    /// Table: F12 F30 I14 | archives of several writers, without any manifest
    #[test]
    fn the_log_is_found_again(steps in prop::collection::vec(any_step(), 1..30)) {
        let mut live: Vec<ArchiveEntry> = Vec::new();
        let mut stored: Vec<ArchiveEntry> = Vec::new();
        let (mut end, mut raced) = (0, false);
        for (number, step) in (1u64..).zip(&steps) {
            match step {
                Step::Append(won, lost) => {
                    let won = row(number, end, won);
                    let to = won.last().unwrap().summary.range.end();
                    let made: Vec<i64> = lost.iter().map(|(length, _)| *length).collect();
                    // Who lost and reaches farther than all that followed would be taken.
                    let lost: Vec<_> = row(number, end, &made)
                        .into_iter()
                        .zip(lost)
                        .filter(|(one, (_, uploaded))| *uploaded && one.summary.range.end() <= to)
                        .map(|(one, _)| one)
                        .collect();
                    raced |= !lost.is_empty();
                    stored.extend(lost);
                    stored.extend(won.clone());
                    live.extend(won);
                    end = to;
                }
                Step::Skip(hole) => {
                    let one = row(number, end + hole, &[5]);
                    end += hole + 5;
                    stored.extend(one.clone());
                    live.extend(one);
                }
                Step::Merge(at, count) if live.len() > 1 => {
                    live.sort_by_key(|one| one.summary.range.base());
                    let first = at.index(live.len());
                    let mut last = first;
                    while last + 1 < live.len()
                        && last - first + 1 < *count
                        && live[last].summary.range.end() == live[last + 1].summary.range.base()
                    {
                        last += 1;
                    }
                    let (from, to) = (live[first].summary.range, live[last].summary.range);
                    let one = row(number, from.base(), &[to.end() - from.base()]);
                    stored.extend(one.clone());
                    live.splice(first..=last, one);
                }
                Step::Merge(..) => {}
            }
        }
        // What closes the log, so that nobody can be in doubt about its end.
        let reach = stored.iter().map(|one| one.summary.range.end()).max().map_or(end, |to| to.max(end)) + 3;
        let last = row(steps.len() as u64 + 1, end, &[reach - end]);
        stored.extend(last.clone());
        live.extend(last);
        let chosen = from_nothing(&stored);
        live.sort_by_key(|one| one.summary.range.base());
        let expected: Vec<_> = live
            .iter()
            .map(|e| (e.built_for, e.summary.range.base(), e.summary.range.last()))
            .collect();
        let found = taken(&chosen);
        prop_assert_eq!(stretches(&found), stretches(&expected));
        prop_assert!(raced || found == expected, "{:?}", found);
        prop_assert_eq!(chosen.through, reach);
    }

    /// Whatever is found, archives and gaps cover the log once.
    #[test]
    fn what_comes_out_tiles(
        known in prop::collection::vec((1i64..20, any::<bool>()), 0..8),
        found in prop::collection::vec((1u64..12, 0i64..150, 1i64..40, 1u32..9), 0..12),
        broken in prop::collection::vec((0i64..200, 1i64..40), 0..3),
        start in 0i64..30,
    ) {
        let (mut entries, mut gaps, mut end) = (Vec::new(), Vec::new(), 0);
        for (number, (len, is_gap)) in (1u64..).zip(&known) {
            match is_gap {
                true => gaps.push(Gap { range: range(end, end + len - 1), kind: GapKind::Damaged }),
                false => entries.push(tile(number, end, end + len - 1)),
            }
            end += len;
        }
        let start = start.min(end);
        let of_catalog = Known { log_start: Some(start), through: end, entries: &entries, gaps: &gaps };
        let found = found.into_iter();
        let found = found.map(|(number, base, len, batches)| Found(archive(number, base, base + len, batches, true)));
        let broken: Vec<_> = broken
            .into_iter()
            .map(|(base, len)| LeftOut { object: String::new(), range: range(base, base + len), why: String::new() })
            .collect();
        let chosen = choose(&of_catalog, found.collect(), &broken);
        let mut tiles: Vec<_> = chosen.entries.iter().filter_map(ArchiveEntry::tile).collect();
        tiles.extend(chosen.gaps.iter().map(|gap| gap.range));
        tiles.sort_unstable();
        let mut next = start;
        for one in tiles.iter().filter(|one| one.last() >= start) {
            prop_assert!(one.base() == next || (one.base() < start && next == start), "{:?}", chosen);
            next = one.end();
        }
        prop_assert_eq!(next, chosen.through);
        prop_assert!(chosen.through >= end);
    }
}
