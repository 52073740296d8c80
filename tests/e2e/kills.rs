//! The daemon's real process, killed at its requests to the store: right before one
//! takes effect, right after it did, or a moment after it was answered, which is
//! wherever the process was then. The bucket outlives it. Then it is started again and
//! comes to its end, and an independent reader finds what was written: in the archive,
//! in the WAL or in both at any moment, in the archive once at the end, the watermarks
//! true, and nothing left that a collection does not free.
//!
//! Which steps there are is read from the sources, as in `steps`: one that no process
//! here is killed at fails the test.

mod live;
mod site;
mod works;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tierd::record::Codec;
use tierd_tests::bucket::{Bucket, Kill, Lived, When};
use tierd_tests::chronik::sample_batch;

use crate::steps::calls;
use site::Site;
use works::{TOPICS, Work};

/// Seeded kills of every change.
const KILLS: u64 = 40;
/// Longest time after an answer at which a process is killed: it lives for about that.
const LATER_MAX: Duration = Duration::from_millis(60);

/// So many seeded kills are wanted, by `TIERD_TEST_DEATHS`; then also every single
/// request is one to be killed at.
fn wanted() -> Option<u64> {
    std::env::var("TIERD_TEST_DEATHS").ok().map(|text| text.parse().unwrap())
}

/// When to be killed: on both sides of every request in the long mode, else before the
/// first and after the last of each step.
fn chosen(writes: &[String]) -> Vec<Kill> {
    let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
    for step in writes {
        *counts.entry(step).or_default() += 1;
    }
    let all = wanted().is_some();
    let kills = counts.into_iter().flat_map(|(step, count)| {
        let at = move |at, when| Kill { at, of: Some(step.clone()), when };
        let before = (1..=if all { count } else { 1 }).map(move |n| at(n, When::Before));
        let after = (if all { 1 } else { count }..=count).map(move |n| at(n, When::After));
        before.chain(after)
    });
    kills.collect()
}

/// Runs a process to its end; panics when it ends badly without being killed.
fn ends(bucket: &Bucket, command: Command, kill: Option<Kill>, what: &str) -> Lived {
    let lived = bucket.run(command, kill).unwrap().wait().unwrap();
    let Lived { ended, killed, writes } = &lived;
    let told = || format!("{what}: {}\n{}\n{writes:?}", ended.text(), ended.stderr);
    assert!(*killed || ended.code == 0, "{}", told());
    lived
}

/// Kills a piece of work at its requests; which steps were met on both sides.
fn kill_everywhere(bucket: &Bucket, of: Work, deaths: &mut u64) -> BTreeSet<String> {
    let prepared = of.prepare(bucket);
    let mut site = prepared.begin(bucket);
    let through = prepared.work(bucket, &mut site, None, "without a kill");
    assert!(!through.killed && !through.writes.is_empty(), "{of:?} changes nothing");
    site.check_done(bucket, "without a kill");
    let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
    let chosen = chosen(&through.writes);
    for kill in &chosen {
        let step = kill.of.clone().unwrap_or_default();
        let mut site = prepared.begin(bucket);
        let what = format!("{of:?} killed {:?} {step} {}", kill.when, kill.at);
        let lived = prepared.work(bucket, &mut site, Some(kill.clone()), &what);
        if !lived.killed {
            // Partitions are archived side by side: it may need a request less.
            let count = lived.writes.iter().filter(|write| **write == step).count() as u64;
            assert!(count < kill.at, "{what}: it came to an end");
            site.check_done(bucket, &what);
            continue;
        }
        let met = if kill.when == When::Before { &mut before } else { &mut after };
        met.insert(step);
        *deaths += 1;
        if of.reads_meanwhile() {
            site.check_whole(bucket, &what);
        }
        let again = prepared.work(bucket, &mut site, None, &what);
        assert!(!again.killed);
        site.check_done(bucket, &what);
        site.collect(bucket, &what);
    }
    let steps: BTreeSet<&String> = through.writes.iter().collect();
    println!("{of:?}: {} writes, {} kills, {steps:?}", through.writes.len(), chosen.len());
    before.intersection(&after).cloned().collect()
}

/// Table: F1 F21 I1 I2 I3 I7 I9 I10 | the real process, right before and right after every
/// request that changes the store, indexing, merging, retention, gc, reindexing, rebuilding
/// and a broker's deletions included; which there are is read from the sources
#[test]
fn the_process_killed_before_and_after_every_durable_step_comes_to_the_same() {
    let bucket = Bucket::start().unwrap();
    let (mut visited, mut deaths) = (BTreeSet::new(), 0);
    for of in Work::ALL {
        visited.extend(kill_everywhere(&bucket, of, &mut deaths));
    }
    println!("{deaths} kills at chosen steps");
    let expected = calls::all_steps();
    let missing: Vec<_> = expected.difference(&visited).collect();
    assert!(missing.is_empty(), "no process was killed before and after {missing:?}");
    let unknown: Vec<_> = visited.difference(&expected).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in the sources");
}

/// What one seed does to a bucket, in sentences.
struct Story<'a> {
    bucket: &'a Bucket,
    site: Site,
    random: StdRng,
    seed: u64,
    ends: BTreeMap<(&'static str, i32), i64>,
    segments: u64,
    deaths: u64,
    lives: u64,
}

impl Story<'_> {
    /// A few segments of a few partitions, batches in any order.
    fn write(&mut self) {
        for (topic, partition) in TOPICS {
            if partition > 0 && self.random.random_bool(0.5) {
                continue;
            }
            for _ in 0..self.random.random_range(1..3) {
                let end = self.ends.entry((topic, partition)).or_default();
                let mut batches = Vec::new();
                for _ in 0..self.random.random_range(1..6) {
                    let count = self.random.random_range(1..12);
                    let codecs = [Codec::None, Codec::Gzip, Codec::Lz4, Codec::Zstd];
                    let codec = codecs[self.random.random_range(0..codecs.len())];
                    let len = self.random.random_range(1..2_000);
                    batches.push(sample_batch(*end, count, len, codec).unwrap());
                    *end += i64::from(count);
                }
                batches.shuffle(&mut self.random);
                self.site.segment(topic, partition, self.segments, &batches);
                self.segments += 1;
            }
        }
    }

    /// About the requests that a command of this sort sends.
    fn kill(&mut self, most: u64) -> Kill {
        let when = match self.random.random_range(0..3) {
            0 => When::Before,
            1 => When::After,
            _ => When::Later(self.random.random_range(Duration::ZERO..LATER_MAX)),
        };
        Kill { at: self.random.random_range(1..=most), of: None, when }
    }

    /// A command, killed up to three times before it comes to its end.
    fn act(&mut self, args: &[&str]) {
        let most = if args[0] == "run" { 14 } else { 5 };
        for _ in 0..self.random.random_range(1..4) {
            let kill = self.kill(most);
            let what = format!("seed {}, {args:?}, to be killed at {kill:?}", self.seed);
            let command = self.site.command(self.bucket, args);
            let lived = ends(self.bucket, command, Some(kill), &what);
            self.lives += 1;
            self.deaths += u64::from(lived.killed);
            self.site.check_whole(self.bucket, &what);
        }
        let what = format!("seed {}, {args:?}, at last", self.seed);
        let lived = ends(self.bucket, self.site.command(self.bucket, args), None, &what);
        assert!(!lived.killed);
        self.lives += 1;
        self.site.check_done(self.bucket, &what);
    }

    fn any_act(&mut self) {
        match self.random.random_range(0..4) {
            0 => {
                let most = self.random.random_range(1..80);
                self.site.keep_last(most);
                let (most, strategy) = (most.to_string(), ["--strategy", "offset"]);
                let compact = ["compact", "--once", "--confirm", "--retention-offsets", &most];
                self.act(&[&compact[..], &strategy].concat());
            }
            1 => {
                let target = format!("{}KiB", self.random.random_range(4..64));
                self.act(&["compact", "--once", "--confirm", "--merge-target", &target]);
            }
            2 => self.act(&["gc", "--confirm", "--grace", "0s"]),
            _ => {
                let Some(end) = self.ends.get(&("orders", 0)).copied().filter(|end| *end > 0)
                else {
                    return;
                };
                let before = self.random.random_range(0..end);
                self.site.cut("orders", 0, before);
                let before = before.to_string();
                let cut = ["delete", "orders", "0", "--before-offset", &before, "--confirm"];
                self.act(&cut);
            }
        }
    }

    fn tell(&mut self) {
        for _ in 0..self.random.random_range(1..4) {
            self.write();
            let reclaim: &[&str] = if self.random.random_bool(0.5) { &["--reclaim"] } else { &[] };
            self.act(&[&["run", "--once", "--offline"], reclaim].concat());
            for _ in 0..self.random.random_range(0..3) {
                self.any_act();
            }
        }
        let what = format!("seed {}", self.seed);
        self.site.collect(self.bucket, &what);
        self.site.verify(self.bucket, &what);
    }
}

/// Table: F1 F21 I1 I2 I3 I7 I9 I10 | the real process, at random requests and random moments
/// behind them, up to three times in a row | KILLS TIERD_TEST_DEATHS
#[test]
fn whatever_it_does_the_process_killed_again_and_again_loses_and_doubles_nothing() {
    let wanted = wanted().unwrap_or(KILLS);
    let first: u64 = std::env::var("TIERD_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    let bucket = Bucket::start().unwrap();
    let (mut deaths, mut lives, mut seed) = (0, 0, first);
    while deaths < wanted {
        bucket.restore(&object_store::memory::InMemory::new());
        let mut story = Story {
            bucket: &bucket,
            site: Site::new(),
            random: StdRng::seed_from_u64(seed),
            seed,
            ends: BTreeMap::new(),
            segments: 0,
            deaths: 0,
            lives: 0,
        };
        story.tell();
        deaths += story.deaths;
        lives += story.lives;
        seed += 1;
    }
    println!("{} seeds from {first}: {lives} processes, {deaths} killed", seed - first);
}
