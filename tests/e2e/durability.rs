//! The table of what must hold and what is done to it, in `docs/durability.md`: made out
//! of what the tests say of themselves, so that it cannot say more than they do.
//!
//! A test that belongs into it says so above its attribute, as a paragraph:
//!
//! ```text
//! /// Table: F2 F3 I7 | the store's answer to a create is lost | RUNS TIERD_TEST_RUNS
//! ```
//!
//! The faults that are injected and the invariants that are checked; where they are
//! injected; and, where one test is many runs, the constant of the same file that says
//! how many, and the variable that makes them more. The greatest number of these that
//! `docs/results.md` records is told too. Where a test's fault is but its own name, the
//! invariants may stand alone.
//!
//! With `TIERD_TEST_LOG`, what `cargo test` printed, the page is written to
//! `target/durability.md` with what came of every test in that very run.

mod declared;
mod page;

use std::fs;
use std::path::Path;

use declared::{Declared, declared};
use page::page;

/// Invariants of the specification.
const INVARIANTS: [(&str, &str); 14] = [
    ("I1", "what may be deleted is readable without the WAL"),
    ("I2", "watermarks never go back and never run ahead of their manifest"),
    ("I3", "archives and declared gaps tile the log"),
    ("I4", "bytes in are bytes out"),
    ("I5", "a reader sees all of an archive or none"),
    ("I6", "never a wrong byte, never fewer batches"),
    ("I7", "doing it again changes nothing"),
    ("I8", "one effective writer"),
    ("I9", "nothing referenced is deleted"),
    ("I10", "killed anywhere, it converges"),
    ("I11", "the WAL is not touched, and its broker not slowed"),
    ("I12", "bounded in memory, disk, files and tasks; no space stops archiving, not reading"),
    ("I13", "when faults end the backlog drains"),
    ("I14", "recoverable from the bucket alone"),
];

/// Faults of the specification.
const FAULTS: [(&str, &str); 30] = [
    ("F1", "death at every step"),
    ("F2", "a request takes effect and its answer is lost"),
    ("F3", "time-out, then 412 or 409 for our own object"),
    ("F4", "409 that says nothing"),
    ("F5", "an upload torn in its parts, and left behind"),
    ("F6", "storms of 429 and 503, an outage, recovery"),
    ("F7", "credentials expire: 403 in the middle, and then new ones"),
    ("F8", "short body, reset, 200 for 206"),
    ("F9", "flipped bits, at rest and on the way"),
    ("F10", "listings stale, short and in another order"),
    ("F11", "an object is deleted or replaced behind our back"),
    ("F12", "several daemons on one partition"),
    ("F13", "a writer sleeps, also over collection"),
    ("F14", "clocks differ and step"),
    ("F15", "the broker deletes or changes a segment meanwhile"),
    ("F16", "growing, torn, damaged segments"),
    ("F17", "inotify overflows or tells nothing"),
    ("F18", "no space, no files, read-only scratch"),
    ("F19", "fsync fails"),
    ("F20", "no memory, huge records"),
    ("F21", "death around a merge or a deletion"),
    ("F22", "a merge that comes out differently"),
    ("F23", "a fetch beside merging and collection"),
    ("F24", "clients that stall, leave and are many"),
    ("F25", "hostile archives"),
    ("F26", "other versions"),
    ("F27", "the wrong bucket or cluster"),
    ("F28", "offsets go back, a broker restored or truncated"),
    ("F29", "SIGTERM in the middle"),
    ("F30", "manifests and all local state are lost"),
];

/// What no test shows, and why. What one does show must not stand here.
const NOT_COVERED: [(&str, &str); 1] =
    [("I11", "`wal` opens for reading only; the latency of a broker beside is not measured")];

/// What is known to be less than an invariant says.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("I2", "a store that denies an object it has may make one report start over"),
    (
        "I6",
        "of a manifest that is gone, other than by collection, `verify` tells and a reader cannot",
    ),
    ("I14", "what only lost manifests said is told to be unknown: see below"),
];

/// Where the page's tables begin and end.
const MARKS: [&str; 2] = ["<!-- made by `durability` -->", "<!-- until here -->"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The page with its tables as `tests` have them.
fn made_anew(tests: &[Declared], log: Option<&str>) -> (String, String) {
    let old = fs::read_to_string(root().join("docs/durability.md")).unwrap();
    let (front, rest) = old.split_once(MARKS[0]).unwrap();
    let (_, back) = rest.split_once(MARKS[1]).unwrap();
    let tables = page(tests, log);
    let new = format!("{front}{}\n\n{tables}\n{}{back}", MARKS[0], MARKS[1]);
    (old, new)
}

#[test]
fn the_table_is_what_the_tests_say_and_leaves_no_fault_out() {
    let tests = declared(root());
    let shows = |id: &str| tests.iter().any(|test| test.shows(id));
    for (id, _) in INVARIANTS.iter().chain(&FAULTS) {
        let said = NOT_COVERED.iter().any(|(not, _)| not == id);
        assert!(shows(id) != said, "{id}: a test shows it, or NOT_COVERED says why not");
    }
    let known = |id: &str| INVARIANTS.iter().chain(&FAULTS).any(|(known, _)| *known == id);
    for test in &tests {
        let strange = test.ids.iter().find(|id| !known(id));
        assert_eq!(strange, None, "{} declares what is not known", test.name());
        assert!(test.ids.iter().any(|id| id.starts_with('I')), "{} shows nothing", test.name());
    }
    assert!(tests.len() > 50, "{} tests declare anything", tests.len());
    let (old, new) = made_anew(&tests, None);
    assert!(
        old == new,
        "docs/durability.md is not what the tests say; to write it: \
        cargo test --workspace --test e2e durability -- --ignored"
    );
}

#[test]
#[ignore = "writes docs/durability.md as the tests have it"]
fn write_the_table() {
    let (_, new) = made_anew(&declared(root()), None);
    fs::write(root().join("docs/durability.md"), new).unwrap();
}

#[test]
fn what_came_of_every_test_of_the_table_in_a_run_is_written_beside_it() {
    let Some(log) = std::env::var_os("TIERD_TEST_LOG") else { return };
    let log = fs::read_to_string(log).unwrap();
    let tests = declared(root());
    let (_, new) = made_anew(&tests, Some(&log));
    fs::write(root().join("target/durability.md"), new).unwrap();
    let bad: Vec<_> = tests.iter().filter(|test| test.violations(&log) != Some(0)).collect();
    assert!(
        bad.is_empty(),
        "failed or did not run: {:?}",
        bad.iter().map(|t| t.name()).collect::<Vec<_>>()
    );
}
