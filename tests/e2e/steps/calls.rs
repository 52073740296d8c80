//! Where the sources write to the store, and what each place is called as a step.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The verbs of the store that change something.
const VERBS: [&str; 5] = ["put", "put_file", "create", "copy", "delete"];

/// Every place that writes, by file, verb and count in that file, and its steps. An
/// upload is one request or several, by size.
const STEPS: &[(&str, &[&str])] = &[
    // The arbiter creates for the catalog: manifests and incarnations.
    ("catalog/arbiter.rs create 1", &["Create Manifest", "Create Incarnation"]),
    ("catalog/commit.rs put 1", &["Put Side"]),
    ("catalog/commit.rs put 2", &["Put Page"]),
    ("catalog/commit.rs delete 1", &["Delete Manifest"]),
    ("catalog/ledger.rs put 1", &["Put Ledger"]),
    (
        "indexer/partition.rs put_file 1",
        &["Put Archive", "Multipart Archive", "Part Archive", "Complete Archive"],
    ),
    // What probes a store before the first commit.
    ("store/mod.rs create 1", &["Create Probe"]),
    ("store/mod.rs create 2", &["Create Probe"]),
    ("store/mod.rs delete 2", &["Delete Probe"]),
    // A small file is put whole, which is the put of who uploads it.
    ("store/upload.rs put 1", &["Put Archive"]),
];

/// Places that another test kills at: its file and its name.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("compact/gc/sweep.rs delete 1", "collect.rs", KILLED_COLLECTING),
    ("compact/replace.rs put_file 1", "merging.rs", KILLED_MERGING),
    ("compact/replace.rs copy 1", "merging.rs", KILLED_MERGING),
    // What closes blocks: gc, and who begins a partition anew.
    ("catalog/collect.rs create 1", "rebuild.rs", KILLED_REBUILDING),
    // What asks the store for its time before anything is collected.
    ("store/mod.rs put 1", "collect.rs", KILLED_COLLECTING),
    ("store/mod.rs delete 1", "collect.rs", KILLED_COLLECTING),
];

const KILLED_COLLECTING: &str = "killed_at_every_change_and_resumed_it_comes_to_the_same";
const KILLED_MERGING: &str = "killed_at_every_change_of_a_merge_and_resumed_it_comes_to_the_same";

const KILLED_REBUILDING: &str = "killed_at_every_change_it_is_done_by_doing_it_again";

/// Whether a place is killed at by another test.
pub(super) fn is_elsewhere(call: &str) -> bool {
    let Some((_, file, test)) = ELSEWHERE.iter().find(|(of, ..)| *of == call) else { return false };
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e").join(file));
    assert!(text.unwrap().contains(&format!("fn {test}(")), "{file} has no {test}");
    true
}

/// The steps of places that this test does not come to, for the one that kills the
/// real process at all of them.
const STEPS_ELSEWHERE: &[(&str, &[&str])] = &[
    ("catalog/collect.rs create 1", &["Create Closed"]),
    (
        "compact/gc/sweep.rs delete 1",
        &["Delete Archive", "Delete Page", "Delete Side", "Delete Manifest", "Delete Probe"],
    ),
    ("compact/replace.rs put_file 1", &["Put Archive"]),
    ("compact/replace.rs copy 1", &["Copy Archive"]),
    ("store/mod.rs put 1", &["Put Probe"]),
    ("store/mod.rs delete 1", &["Delete Probe"]),
];

/// Every step that the sources can take.
pub(crate) fn all_steps() -> BTreeSet<String> {
    let of = |call: &String| {
        let mut known = STEPS.iter().chain(STEPS_ELSEWHERE);
        let (_, steps) = known.find(|(of, _)| of == call).unwrap_or_else(|| {
            panic!("{call} writes to the store; say as what step, and let `kills` come to it")
        });
        steps.iter().map(|step| (*step).to_owned())
    };
    in_the_sources().iter().flat_map(of).collect()
}

pub(super) fn steps_of(call: &str) -> Option<&'static [&'static str]> {
    STEPS.iter().find(|(of, _)| *of == call).map(|(_, steps)| *steps)
}

/// Every call of a verb on a store, outside tests.
pub(super) fn in_the_sources() -> Vec<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/src");
    let mut calls = Vec::new();
    walk(&sources, &mut |path| {
        let text = fs::read_to_string(path).unwrap();
        // Tests stand last in a file.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let name = path.strip_prefix(&sources).unwrap().display().to_string();
        // What a benchmark writes is its own, and gone with it.
        if name.starts_with("cli/bench/") {
            return;
        }
        for verb in VERBS {
            let inside = name.starts_with("store/");
            let found = code.lines().filter(|line| calls_verb(line, verb, inside)).count();
            calls.extend((1..=found).map(|number| format!("{name} {verb} {number}")));
        }
    });
    assert!(calls.len() >= 8, "the sources are not there: {calls:?}");
    calls
}

/// Whether a verb is called on a store; `inside` the store's room, on itself.
fn calls_verb(line: &str, verb: &str, inside: bool) -> bool {
    let line = line.trim_start();
    let called = format!(".{verb}(");
    let Some((before, after)) = line.split_once(&called) else { return false };
    let on_store = before.ends_with("store") || (inside && before.ends_with("self"));
    on_store && (after.starts_with("key") || after.starts_with('&')) && !line.starts_with("//")
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" {
                walk(&path, visit);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" && name != "testing.rs" {
            visit(&path);
        }
    }
}
