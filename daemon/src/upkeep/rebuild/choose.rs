//! Owns which of the archives that were found make up the log. Pure.
//!
//! Several may hold the same offsets: what was merged and what it was merged into, and
//! what writers made who lost a race. The one made for the later manifest is taken,
//! since a merge comes after what it merges, and who lost a race begins again behind
//! what won. Of those made for the same manifest, one writer's won, and nothing tells
//! which: of those that lie beside what is taken already, the ones are taken that hold
//! most offsets together, so that none is left out. All of them hold the broker's
//! batches, so whichever is taken serves the log.
//!
//! What the catalog still names is displaced only by a later archive that covers all of
//! it.

use std::collections::{BTreeMap, HashSet};

use super::LeftOut;
use crate::catalog::{ArchiveEntry, Gap, GapKind};
use crate::record::OffsetRange;

/// What can be read of the catalog.
pub(super) struct Known<'a> {
    /// Where the log starts, if anything says so.
    pub(super) log_start: Option<i64>,
    /// End of what was archived.
    pub(super) through: i64,
    pub(super) entries: &'a [ArchiveEntry],
    pub(super) gaps: &'a [Gap],
}

/// An archive that was read and is in no readable part of the catalog.
#[derive(Clone, Debug)]
pub(super) struct Found(pub(super) ArchiveEntry);

/// The log that comes out.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// All its archives.
    pub(super) entries: Vec<ArchiveEntry>,
    /// Those of them that were found.
    pub(super) taken_in: Vec<ArchiveEntry>,
    /// All its gaps, ascending.
    pub(super) gaps: Vec<Gap>,
    /// Those of them that were not known.
    pub(super) new_gaps: Vec<Gap>,
    pub(super) left_out: Vec<LeftOut>,
    /// Its end.
    pub(super) through: i64,
}

/// Tiles by first offset, with whether the catalog names it.
type Tiles = BTreeMap<i64, (ArchiveEntry, bool)>;

pub(super) fn choose(known: &Known<'_>, found: Vec<Found>, unreadable: &[LeftOut]) -> Chosen {
    let mut chosen = Chosen::default();
    let start = known.log_start.unwrap_or(0);
    let (tiling, beside): (Vec<_>, Vec<_>) = known.entries.iter().partition(|e| e.tile().is_some());
    let mut tiles: Tiles =
        tiling.iter().map(|e| (e.summary.range.base(), ((*e).clone(), true))).collect();
    let mut by_number: BTreeMap<u64, Vec<ArchiveEntry>> = BTreeMap::new();
    let mut found_beside = Vec::new();
    for Found(entry) in found {
        if entry.summary.range.last() < start {
            leave_out(&mut chosen, &entry, "it lies before the log start");
        } else if entry.tile().is_some() {
            by_number.entry(entry.built_for).or_default().push(entry);
        } else {
            found_beside.push(entry);
        }
    }
    let mut beaten = Vec::new();
    for (_, group) in by_number.into_iter().rev() {
        take_group(&mut tiles, group, &mut beaten);
    }
    for entry in &beaten {
        leave_out(&mut chosen, entry, "another archive holds its offsets");
    }
    let mut digests: HashSet<[u8; 32]> = beside.iter().map(|e| e.summary.digest).collect();
    chosen.entries = beside.into_iter().cloned().collect();
    for entry in found_beside {
        if digests.insert(entry.summary.digest) {
            chosen.entries.push(entry.clone());
            chosen.taken_in.push(entry);
        } else {
            leave_out(&mut chosen, &entry, "it is there under another name");
        }
    }
    let ranges: Vec<OffsetRange> = tiles.values().map(|(e, _)| e.summary.range).collect();
    chosen.taken_in.extend(tiles.values().filter(|(_, known)| !known).map(|(e, _)| e.clone()));
    chosen.entries.extend(tiles.into_values().map(|(entry, _)| entry));
    close_holes(known, start, &ranges, unreadable, &mut chosen);
    chosen
}

/// Takes in what was made for one manifest, as much of it as can be; the others are
/// `beaten`.
fn take_group(tiles: &mut Tiles, group: Vec<ArchiveEntry>, beaten: &mut Vec<ArchiveEntry>) {
    let (mut free, barred): (Vec<_>, Vec<_>) =
        group.into_iter().partition(|entry| has_room(tiles, entry));
    beaten.extend(barred);
    free.sort_unstable_by_key(|entry| {
        let summary = &entry.summary;
        (summary.range.last(), summary.range.base(), summary.batches, summary.digest)
    });
    let taken = most_offsets(&free);
    for (entry, taken) in free.into_iter().zip(taken) {
        if !taken {
            beaten.push(entry);
            continue;
        }
        let range = entry.summary.range;
        let over: Vec<i64> = overlapped(tiles, range).map(|(base, _)| *base).collect();
        for base in over {
            tiles.remove(&base);
        }
        tiles.insert(range.base(), (entry, false));
    }
}

/// Whether all that `entry` overlaps gives way to it.
fn has_room(tiles: &Tiles, entry: &ArchiveEntry) -> bool {
    let range = entry.summary.range;
    overlapped(tiles, range).all(|(_, (other, known))| {
        let of = other.summary.range;
        *known
            && other.built_for < entry.built_for
            && range.base() <= of.base()
            && of.last() <= range.last()
    })
}

/// Which of `sorted`, ascending by last offset, hold most offsets together without an
/// overlap; of equals those with most batches.
fn most_offsets(sorted: &[ArchiveEntry]) -> Vec<bool> {
    let range = |index: usize| sorted[index].summary.range;
    let before = |index: usize| {
        sorted[..index].partition_point(|one| one.summary.range.last() < range(index).base())
    };
    // What the first so many can hold, with or without the last of them.
    let mut most = vec![(0, 0)];
    for (index, one) in sorted.iter().enumerate() {
        let (offsets, batches) = most[before(index)];
        let held = range(index).end() - range(index).base();
        let with = (offsets + held, batches + u64::from(one.summary.batches));
        most.push(with.max(most[index]));
    }
    let mut taken = vec![false; sorted.len()];
    let mut left = sorted.len();
    while left > 0 {
        if most[left] == most[left - 1] {
            left -= 1;
        } else {
            taken[left - 1] = true;
            left = before(left - 1);
        }
    }
    taken
}

fn overlapped(
    tiles: &Tiles,
    range: OffsetRange,
) -> impl Iterator<Item = (&i64, &(ArchiveEntry, bool))> {
    let before = tiles.range(..range.base()).next_back();
    let reaches = before.filter(|(_, (entry, _))| entry.summary.range.overlaps(range));
    reaches.into_iter().chain(tiles.range(range.base()..=range.last()))
}

fn leave_out(chosen: &mut Chosen, entry: &ArchiveEntry, why: &str) {
    let (object, range) = (entry.key().to_string(), entry.summary.range);
    chosen.left_out.push(LeftOut { object, range, why: why.to_owned() });
}

/// Declares what is between the tiles: as known, damaged where an archive cannot be
/// read, else missing.
fn close_holes(
    known: &Known<'_>,
    start: i64,
    tiles: &[OffsetRange],
    unreadable: &[LeftOut],
    chosen: &mut Chosen,
) {
    let ends = tiles.iter().chain(unreadable.iter().map(|one| &one.range)).map(|r| r.end());
    chosen.through = ends.chain([known.through, start]).max().unwrap_or(start);
    let mut holes = without(&[(start, chosen.through)], tiles);
    for gap in known.gaps {
        let kind = gap.kind;
        let (inside, rest) = cut(&holes, gap.range);
        chosen.gaps.extend(inside.into_iter().map(|range| Gap { range, kind }));
        holes = rest;
    }
    for one in unreadable {
        let (inside, rest) = cut(&holes, one.range);
        let damaged = inside.into_iter().map(|range| Gap { range, kind: GapKind::Damaged });
        chosen.new_gaps.extend(damaged);
        holes = rest;
    }
    for (from, end) in holes {
        let first = from == start && known.log_start.is_none();
        let kind = if first { GapKind::BeforeFirst } else { GapKind::Missing };
        chosen.new_gaps.extend(OffsetRange::new(from, end - 1).map(|range| Gap { range, kind }));
    }
    chosen.new_gaps.sort_unstable();
    chosen.gaps.extend(&chosen.new_gaps);
    chosen.gaps.sort_unstable();
}

/// The stretches (first, end) of `holes` that lie in `range`, and the others.
fn cut(holes: &[(i64, i64)], range: OffsetRange) -> (Vec<OffsetRange>, Vec<(i64, i64)>) {
    let inside = holes.iter().filter_map(|&(from, end)| {
        OffsetRange::new(from.max(range.base()), (end - 1).min(range.last()))
    });
    (inside.collect(), without(holes, &[range]))
}

/// What is left of `holes` where `tiles` are taken out; all ascend.
fn without(holes: &[(i64, i64)], tiles: &[OffsetRange]) -> Vec<(i64, i64)> {
    let mut left = Vec::new();
    for &(mut from, end) in holes {
        let first = tiles.partition_point(|tile| tile.end() <= from);
        for tile in tiles.iter().skip(first).take_while(|tile| tile.base() < end) {
            if from < tile.base() {
                left.push((from, tile.base()));
            }
            from = from.max(tile.end());
        }
        if from < end {
            left.push((from, end));
        }
    }
    left
}

#[cfg(test)]
mod tests;
