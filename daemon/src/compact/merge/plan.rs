//! Owns which neighbours are merged, and when. Pure: what is listed and a target
//! in; jobs out.
//!
//! How *full* an archive is: the greatest of its shares of the target, in bytes of
//! log, and of half of each limit of the format. Only what adds up exactly counts,
//! or never shrinks: what several archives make together is at least as full as
//! they are in sum, however well it packs. From that, three sizes:
//!
//! ```text
//!  small < 1/32 full  <=  medium  <  full  <=  final
//! ```
//!
//! A *run* is a stretch of small and medium archives that tile without a gap
//! between. From its oldest on, as many as make one final archive are a job. What
//! remains before a gap, a final archive or another border that stays is a job as
//! it is: nothing will ever join it. What remains at the end of the log grows: of
//! it, small ones that lie together are a job once they make a medium one.
//!
//! So each job makes a larger size of each of its inputs, or leaves it alone for
//! good: a byte is rewritten at most twice, once into a medium and once into a
//! final archive. Both halves of a limit are below it, so no job exceeds one.

use std::collections::HashSet;

use crate::archive::ArchiveSummary;
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::compact::JobRequests;
use crate::record::OffsetRange;

/// Bytes of log of a final archive where nothing else is said: few enough requests
/// for years of data, and small enough to retain by and to copy in a minute.
pub const TARGET_BYTES_DEFAULT: u64 = 512 << 20;
/// Medium archives that make a final one.
const STEP: u64 = 32;
/// Halves of what one archive may hold of each: bytes of a log, batches, offsets.
/// See `archive`.
const LOG_BYTES: u64 = 1 << 30;
const BATCHES: u64 = 1 << 20;
const OFFSETS: u64 = 1 << 30;
/// The same of batches that may belong to transactions: each may be listed in the
/// table of contents, 25 bytes, which is read whole. How many are listed is known,
/// but is no measure: together archives list fewer than each on its own.
const LISTED: u64 = 1 << 16;
/// Inputs of one job at most: each is a file open and a request in a row.
pub const INPUTS_MAX: usize = 2048;

/// Archives to be made one. At least two, ascending neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeJob {
    /// The archives.
    pub inputs: Vec<ArchiveEntry>,
}

impl MergeJob {
    /// Bytes of the inputs' objects: read, and about as many written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|entry| entry.summary.length).sum()
    }

    /// The offsets that it tiles, `None` without inputs.
    #[must_use]
    pub fn range(&self) -> Option<OffsetRange> {
        let (first, last) = (self.inputs.first()?, self.inputs.last()?);
        OffsetRange::new(first.summary.range.base(), last.summary.range.last())
    }

    /// Requests it sends.
    #[must_use]
    pub fn requests(&self) -> JobRequests {
        JobRequests::of(&self.inputs)
    }
}

/// What adds up in an archive.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    log: u64,
    beneath: u64,
    batches: u64,
    offsets: u64,
    listed: u64,
}

impl Load {
    fn of(summary: &ArchiveSummary) -> Self {
        Self {
            log: summary.log_bytes,
            beneath: summary.overlap_bytes,
            batches: u64::from(summary.batches) + u64::from(summary.overlaps),
            offsets: summary.range.end().abs_diff(summary.range.base()),
            listed: if summary.transactions > 0 { summary.batches.into() } else { 0 },
        }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            log: self.log.saturating_add(more.log),
            beneath: self.beneath.saturating_add(more.beneath),
            batches: self.batches.saturating_add(more.batches),
            offsets: self.offsets.saturating_add(more.offsets),
            listed: self.listed.saturating_add(more.listed),
        }
    }

    /// Whether it is `1/part` full.
    fn is_full(self, target: u64, part: u64) -> bool {
        let reaches = |have: u64, whole: u64| have.saturating_mul(part) >= whole;
        reaches(self.log, target.clamp(1, LOG_BYTES))
            || reaches(self.beneath, LOG_BYTES)
            || reaches(self.batches, BATCHES)
            || reaches(self.offsets, OFFSETS)
            || reaches(self.listed, LISTED)
    }
}

/// The jobs that `entries`, all archives of `snapshot`, give for archives of
/// `target` bytes of log, oldest first. `borders` are archives, by digest, that refused
/// the one behind them.
#[must_use]
pub fn plan(
    snapshot: &Snapshot,
    entries: &[ArchiveEntry],
    target: u64,
    borders: &HashSet<[u8; 32]>,
) -> Vec<MergeJob> {
    let log_start = snapshot.log_start();
    let served: Vec<&ArchiveEntry> = entries
        .iter()
        // What the log start cuts will soon be gone whole.
        .filter(|entry| entry.summary.tiles && entry.summary.range.base() >= log_start)
        .collect();
    plan_served(&served, target, borders)
}

fn plan_served(
    served: &[&ArchiveEntry],
    target: u64,
    borders: &HashSet<[u8; 32]>,
) -> Vec<MergeJob> {
    let is_final = |entry: &ArchiveEntry| Load::of(&entry.summary).is_full(target, 1);
    let joins = |a: &ArchiveEntry, b: &ArchiveEntry| {
        a.summary.range.end() == b.summary.range.base()
            && a.summary.index_level == b.summary.index_level
            && !borders.contains(&a.summary.digest)
            && !is_final(a)
            && !is_final(b)
    };
    let mut jobs = Vec::new();
    let mut runs = served.chunk_by(|a, b| joins(a, b)).peekable();
    while let Some(run) = runs.next() {
        if run.first().is_some_and(|only| is_final(only)) {
            continue;
        }
        let rest = full_jobs(run, target, &mut jobs);
        if runs.peek().is_some() {
            rest.chunks(INPUTS_MAX).for_each(|some| push(some, &mut jobs));
        } else {
            medium_jobs(rest, target, &mut jobs);
        }
    }
    jobs
}

/// Takes final archives off the front of `run`, and returns what remains.
fn full_jobs<'a, 'b>(
    run: &'a [&'b ArchiveEntry],
    target: u64,
    jobs: &mut Vec<MergeJob>,
) -> &'a [&'b ArchiveEntry] {
    let mut rest = run;
    loop {
        let mut load = Load::default();
        let full = rest.iter().take(INPUTS_MAX).position(|entry| {
            load = load.plus(Load::of(&entry.summary));
            load.is_full(target, 1)
        });
        let take = match full {
            Some(last) => last + 1,
            // So many that they are a job all the same.
            None if rest.len() > INPUTS_MAX => INPUTS_MAX,
            None => return rest,
        };
        let (now, later) = rest.split_at(take);
        push(now, jobs);
        rest = later;
    }
}

/// The end of the log: small ones that together are no longer.
fn medium_jobs(tail: &[&ArchiveEntry], target: u64, jobs: &mut Vec<MergeJob>) {
    let is_small = |entry: &ArchiveEntry| !Load::of(&entry.summary).is_full(target, STEP);
    for together in tail.chunk_by(|a, b| is_small(a) && is_small(b)) {
        let loads = together.iter().map(|entry| Load::of(&entry.summary));
        if loads.fold(Load::default(), Load::plus).is_full(target, STEP) {
            push(together, jobs);
        }
    }
}

fn push(inputs: &[&ArchiveEntry], jobs: &mut Vec<MergeJob>) {
    if inputs.len() > 1 {
        jobs.push(MergeJob { inputs: inputs.iter().map(|entry| (*entry).clone()).collect() });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::archive::{ArchiveIdentity, Encoding, FOOTER_DISTANCE, IndexLevel, TocPlace};
    use crate::record::{TopicName, TopicPartition};
    use crate::store::ClusterName;

    const TARGET: u64 = 1 << 20;

    /// An archive of `log_bytes`, one batch, no transaction.
    fn entry(base: i64, last: i64, log_bytes: u64) -> ArchiveEntry {
        entry_of(base, last, log_bytes, (1, 0))
    }

    fn entry_of(base: i64, last: i64, log_bytes: u64, batches: (u32, u32)) -> ArchiveEntry {
        let digest = *blake3::hash(format!("{base} {last} {log_bytes}").as_bytes()).as_bytes();
        let summary = ArchiveSummary {
            range: OffsetRange::new(base, last).unwrap(),
            tiles: true,
            batches: batches.0,
            records: 1,
            log_bytes,
            overlaps: 0,
            overlap_bytes: 0,
            bad_crcs: 0,
            unindexed: 0,
            min_timestamp: 0,
            max_timestamp: 0,
            leader_epochs: (0, 0),
            index_level: IndexLevel::Keys,
            index_bytes: 0,
            transactions: batches.1,
            // What packs well and what does not take turns.
            length: log_bytes / (1 + base.unsigned_abs() % 5) + FOOTER_DISTANCE,
            digest,
            toc: TocPlace {
                offset: 0,
                length: 1,
                raw: 1,
                encoding: Encoding::Stored,
                digest: [0; 16],
            },
        };
        let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 0).unwrap();
        let identity = ArchiveIdentity { tp, incarnation: 0 };
        ArchiveEntry::new(&ClusterName::new("default").unwrap(), &identity, 1, summary)
    }

    fn plan_of(entries: &[ArchiveEntry]) -> Vec<MergeJob> {
        plan_served(&entries.iter().collect::<Vec<_>>(), TARGET, &HashSet::new())
    }

    fn ranges(jobs: &[MergeJob]) -> Vec<(i64, i64)> {
        let base = |job: &MergeJob| job.inputs[0].summary.range.base();
        let last = |job: &MergeJob| job.inputs.last().unwrap().summary.range.last();
        jobs.iter().map(|job| (base(job), last(job))).collect()
    }

    fn merged(job: &MergeJob) -> ArchiveEntry {
        let (base, last) = ranges(std::slice::from_ref(job))[0];
        let all = || job.inputs.iter().map(|one| &one.summary);
        let batches = all().map(|one| one.batches).sum();
        // Together they list fewer.
        let listed = all().map(|one| one.transactions).max().unwrap();
        entry_of(base, last, all().map(|one| one.log_bytes).sum(), (batches, listed))
    }

    /// Carries `jobs` out in the list.
    fn apply(entries: &mut Vec<ArchiveEntry>, jobs: &[MergeJob]) {
        for job in jobs {
            entries.retain(|entry| !job.inputs.contains(entry));
            entries.push(merged(job));
        }
        entries.sort_by_key(|entry| entry.summary.range.base());
    }

    #[test]
    fn many_small_ones_become_final_ones_at_once() {
        let entries: Vec<_> = (0..100).map(|n| entry(n * 10, n * 10 + 9, TARGET / 40)).collect();
        let jobs = plan_of(&entries);
        assert_eq!(ranges(&jobs), [(0, 409), (410, 819), (820, 999)]);
        let mut after = entries;
        apply(&mut after, &jobs);
        assert_eq!(plan_of(&after), [], "done is done");
    }

    #[test]
    fn a_gap_a_final_archive_and_a_border_part_runs_and_the_end_waits() {
        let small = |base| entry(base, base + 9, 100);
        let apart = [small(0), small(10), small(30), small(40), entry(50, 59, TARGET), small(60)];
        assert_eq!(ranges(&plan_of(&apart)), [(0, 19), (30, 49)]);
        assert_eq!(plan_of(&[small(0), small(10), small(20)]), [], "the end of the log grows");
        let borders = [apart[0].summary.digest].into();
        let served: Vec<_> = apart.iter().collect();
        assert_eq!(ranges(&plan_served(&served, TARGET, &borders)), [(30, 49)]);
        let mut other = small(10);
        other.summary.index_level = IndexLevel::None;
        assert_eq!(plan_of(&[small(0), other, entry(20, 29, TARGET)]), []);
    }

    #[test]
    fn no_job_exceeds_a_limit_of_the_format() {
        // Offsets are sparse: two spans of 2^30 would be too many.
        let wide = 1 << 29;
        let entries: Vec<_> = (0..9).map(|n| entry(n * wide, (n + 1) * wide - 1, 1000)).collect();
        let jobs = plan_of(&entries);
        assert!(!jobs.is_empty());
        for job in &jobs {
            let (base, last) = ranges(std::slice::from_ref(job))[0];
            assert!(last - base < i64::from(i32::MAX), "{base} {last}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn archives_that_keep_coming_are_rewritten_at_most_twice_and_stay_few(
            arrivals in prop::collection::vec(
                (1u64..TARGET / 8, 0u8..40, 0u8..30, 1u32..3000, 0u32..3), 1..400),
        ) {
            let (mut entries, mut next) = (Vec::new(), 0);
            // First offset of what arrived, and how often it was rewritten.
            let mut rewrites: HashMap<i64, u32> = HashMap::new();
            for (bytes, gap, large, batches, listed) in arrivals {
                next += i64::from(gap == 0);
                let bytes = if large == 0 { TARGET } else { bytes };
                entries.push(entry_of(next, next + 9, bytes, (batches, listed)));
                rewrites.insert(next, 0);
                next += 10;
                for _ in 0..10 {
                    let jobs = plan_of(&entries);
                    for job in &jobs {
                        prop_assert!(job.inputs.len() >= 2);
                        for two in job.inputs.windows(2) {
                            prop_assert_eq!(two[0].summary.range.end(), two[1].summary.range.base());
                        }
                        let (base, last) = ranges(std::slice::from_ref(job))[0];
                        for (_, count) in rewrites.iter_mut().filter(|(at, _)| base <= **at && **at <= last) {
                            *count += 1;
                            prop_assert!(*count <= 2);
                        }
                    }
                    apply(&mut entries, &jobs);
                    if jobs.is_empty() {
                        break;
                    }
                }
                prop_assert!(plan_of(&entries).is_empty(), "it comes to rest");
            }
            // A run holds final ones, one rest, and at its end fewer than 32 + 32.
            let runs = entries.chunk_by(|a, b| a.summary.range.end() == b.summary.range.base());
            for run in runs {
                let small = run.iter().filter(|one| !Load::of(&one.summary).is_full(TARGET, 1));
                let finals = run.len() - small.clone().count();
                prop_assert!(small.count() <= 64 + finals);
            }
        }
    }
}
