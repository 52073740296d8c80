//! Hostile bytes on every build: each seed of the fuzz targets, each input that once
//! broke something, and changes of both. The fuzzer itself finds its own way, for
//! hours: see `tests/fuzz`.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd_tests::hostile::{TARGETS, Target, object_of, verify};

/// Changes of each seed.
const CHANGES: u64 = 150;
/// Most bytes that one change takes or puts.
const SPAN_MAX: usize = 24;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The inputs of `target` in the repository: seeds, and what was found.
fn stored(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = ["seeds", "findings"].map(|kind| fuzz().join(kind).join(target.name));
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let mut inputs: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

fn change(bytes: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=changed.len());
        let to = changed.len().min(at + random.random_range(0..SPAN_MAX));
        match random.random_range(0..7) {
            0 => drop(changed.drain(at..to)),
            1 => changed.truncate(at),
            2 => changed[at..to].fill([0, 0xff, 0x7f, 0x80][random.random_range(0..4)]),
            3 => {
                let from = random.random_range(0..=other.len());
                let end = other.len().min(from + SPAN_MAX);
                changed.splice(at..at, other[from..end].iter().copied());
            }
            _ if at < changed.len() => changed[at] ^= 1 << random.random_range(0..8),
            _ => changed.push(random.random()),
        }
    }
    changed
}

fn hold(target: &Target) {
    let inputs = stored(target);
    assert!(!inputs.is_empty(), "{} has no seeds: see tests/fuzz/README.md", target.name);
    let mut random = StdRng::seed_from_u64(7);
    for (_, seed) in &inputs {
        (target.check)(seed);
        for _ in 0..CHANGES {
            let other = &inputs[random.random_range(0..inputs.len())].1;
            let changed = change(seed, other, &mut random);
            let broken = std::panic::catch_unwind(|| (target.check)(&changed)).is_err();
            if broken {
                let found = std::env::temp_dir().join(format!("tierd-hostile-{}", target.name));
                fs::write(&found, &changed).unwrap();
                panic!("{} broke on the bytes in {}", target.name, found.display());
            }
        }
    }
}

fn named(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).unwrap()
}

/// Table: F16 F25 I6 I12 | segments of a WAL: every seed of the fuzzer, and changes of each |
/// CHANGES
#[test]
fn segments_are_scanned_whatever_they_hold() {
    hold(&named("wal_frames"));
}

/// Table: F25 I4 I6 I12 | batches: every seed of the fuzzer, and changes of each | CHANGES
#[test]
fn batches_are_refused_or_kept() {
    hold(&named("batches"));
}

/// Table: F25 I6 I12 | footers, tables and lists: every seed of the fuzzer, and changes of each
/// | CHANGES
#[test]
fn tables_and_lists_are_refused_or_true() {
    hold(&named("toc_footer"));
}

/// Table: F25 I6 I12 | whole archives: every seed of the fuzzer, and changes of each | CHANGES
#[test]
fn archives_are_refused_or_true() {
    hold(&named("tar_entries"));
}

/// Table: F25 I6 I12 | manifests and pages: every seed of the fuzzer, and changes of each |
/// CHANGES
#[test]
fn objects_of_the_catalog_are_refused_or_true() {
    hold(&named("manifests"));
}

/// Table: F25 I6 I12 | records of producers: every seed of the fuzzer, and changes of each | CHANGES
#[test]
fn what_producers_send_is_archived() {
    hold(&named("records"));
}

/// Table: F25 I12 | calls over gRPC: every seed of the fuzzer, and changes of each | CHANGES
#[test]
fn calls_are_answered_or_refused() {
    hold(&named("requests"));
}

#[test]
fn every_target_is_driven_by_the_fuzzer_too() {
    for target in TARGETS {
        let driver = fuzz().join("targets").join(format!("{}.rs", target.name));
        let driver = fs::read_to_string(&driver).unwrap();
        assert!(driver.contains(&format!("hostile::{}", target.name)), "{driver}");
    }
}

#[test]
fn only_the_archive_that_nobody_changed_is_one() {
    let seeds = (named("tar_entries").seeds)();
    let good: Vec<bool> = seeds.iter().map(|seed| verify(&object_of(seed)).is_ok()).collect();
    let all = good.len();
    assert_eq!(good, [vec![true; 2], vec![false; all - 2]].concat());
}

#[test]
#[ignore = "writes the seeds of the fuzz targets; after a change of what they are made of"]
fn write_the_seeds() {
    for target in TARGETS {
        let folder = fuzz().join("seeds").join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("{number:02}")), seed).unwrap();
        }
    }
}
