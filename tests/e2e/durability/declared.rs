//! What the tests say of themselves, read from their sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Where tests lie, and what is put before their names so that they are told apart.
const FOLDERS: [(&str, &str); 4] = [
    ("tests/e2e", ""),
    ("tests/stores", "stores"),
    ("tests/peers", "peers"),
    ("daemon/src", "tierd"),
];
/// How a declaration begins.
const BEGINS: &str = "/// Table: ";
/// Lines between a declaration and its test, at most: its attributes.
const ATTRIBUTES_MAX: usize = 6;

/// A test and what it declares.
#[derive(Debug)]
pub(super) struct Declared {
    module: String,
    test: String,
    /// The faults it injects and the invariants it checks.
    pub(super) ids: Vec<String>,
    /// Where it injects them.
    pub(super) place: String,
    /// How often every change runs it.
    pub(super) runs: u64,
    /// The most runs that were recorded at once.
    pub(super) recorded: Option<u64>,
}

impl Declared {
    pub(super) fn name(&self) -> String {
        format!("{}::{}", self.module, self.test)
    }

    pub(super) fn shows(&self, id: &str) -> bool {
        self.ids.iter().any(|shown| shown == id)
    }

    /// What came of it in the run of `log`; `None` where it was not run.
    pub(super) fn violations(&self, log: &str) -> Option<u64> {
        let ours = |name: &str| name == self.test || name.ends_with(&format!("::{}", self.test));
        let told = log.lines().filter_map(|line| {
            let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
            ours(name).then_some(outcome.trim())
        });
        // Suites of real servers run twice, at first without them.
        let told: Vec<&str> = told.collect();
        let bad = told.iter().filter(|outcome| **outcome != "ok").count();
        (!told.is_empty()).then_some(bad as u64)
    }
}

/// Every declaration below `root`, by module and place in the source.
pub(super) fn declared(root: &Path) -> Vec<Declared> {
    let results = fs::read_to_string(root.join("docs/results.md")).unwrap();
    let mut found = Vec::new();
    for (folder, named) in FOLDERS {
        let folder = root.join(folder);
        for path in sources(&folder) {
            let text = fs::read_to_string(&path).unwrap();
            let module = module(named, path.strip_prefix(&folder).unwrap());
            found.extend(in_source(&module, &text, &results));
        }
    }
    let mut names: Vec<_> = found.iter().map(|one| one.test.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), found.len(), "two tests of the table have the same name");
    found
}

/// The declarations of one source.
fn in_source(module: &str, text: &str, results: &str) -> Vec<Declared> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let begins = lines.iter().enumerate().filter(|(_, line)| line.starts_with(BEGINS));
    begins.map(|(at, _)| one(module, &lines[at..], text, results)).collect()
}

fn one(module: &str, lines: &[&str], text: &str, results: &str) -> Declared {
    let words: Vec<&str> = lines
        .iter()
        .map_while(|line| line.strip_prefix("///"))
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let attributes = lines[words.len()..].iter().take(ATTRIBUTES_MAX);
    let test = attributes.clone().find_map(|line| line.split_once("fn ")?.1.split('(').next());
    let is_test = attributes
        .clone()
        .any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test"));
    let test = test.filter(|_| is_test || text.contains("proptest! {"));
    let test =
        test.unwrap_or_else(|| panic!("no test follows on {words:?} in {module}")).to_owned();
    let said = words.join(" ");
    let mut parts = said["Table: ".len()..].split(" | ");
    let ids = parts.next().unwrap_or_default().split(' ').map(str::to_owned).collect();
    let place = parts.next().unwrap_or_default().to_owned();
    let mut counted = parts.next().unwrap_or_default().split(' ').filter(|word| !word.is_empty());
    let runs = counted.next().map_or(1, |name| constant(text, name));
    let recorded = counted.next().and_then(|variable| recorded(results, variable));
    Declared { module: module.to_owned(), test, ids, place, runs, recorded }
}

/// The number that the constant `name` of a source stands for.
fn constant(text: &str, name: &str) -> u64 {
    let begins = format!("const {name}: ");
    let value = text.split_once(&begins).and_then(|(_, rest)| rest.split_once(" = "));
    let value = value.and_then(|(_, rest)| rest.split(';').next());
    let value = value.and_then(|value| value.replace('_', "").parse().ok());
    value.unwrap_or_else(|| panic!("no number {name}"))
}

/// The greatest number that `variable` was set to in a recorded run.
fn recorded(results: &str, variable: &str) -> Option<u64> {
    let set = format!("{variable}=");
    let numbers = results.split(&set).skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    numbers.max()
}

/// What the module in `path` is called, below `named`.
fn module(named: &str, path: &Path) -> String {
    let parts = path.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs"));
    let parts = parts.filter(|part| !["mod", "main", "tests"].contains(part));
    let parts: Vec<&str> = std::iter::once(named).chain(parts).collect();
    parts.join("::").trim_start_matches(':').to_owned()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // This room's own pages show how a declaration looks.
            if path.is_dir() && !path.ends_with("e2e/durability") {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "rs")
                && !path.ends_with("e2e/durability.rs")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

const SOURCE: &str = "
const SEEDS: u64 = 1_500;

/// Said of it.
///
/// Table: F2 I7 | answers that
/// are lost | SEEDS TIERD_TEST_SEEDS
#[tokio::test]
async fn first() {}

/// Table: I3 | by hand
#[test]
fn second() {}
";

#[test]
fn a_module_is_called_as_its_place() {
    let called = |named, path: &str| module(named, Path::new(path));
    assert_eq!(called("", "steps/works.rs"), "steps::works");
    assert_eq!(called("stores", "main.rs"), "stores");
    assert_eq!(called("tierd", "upkeep/rebuild/mod.rs"), "tierd::upkeep::rebuild");
    assert_eq!(called("tierd", "catalog/tests.rs"), "tierd::catalog");
}

#[test]
fn a_declaration_is_read_with_its_runs_and_what_came_of_it() {
    let results = "`TIERD_TEST_SEEDS=200 x`, `TIERD_TEST_SEEDS=10000 cargo`";
    let found = in_source("room", SOURCE, results);
    let told =
        |at: usize| (found[at].name(), &found[at].place[..], found[at].runs, found[at].recorded);
    assert_eq!(told(0), ("room::first".to_owned(), "answers that are lost", 1500, Some(10_000)));
    assert_eq!(told(1), ("room::second".to_owned(), "by hand", 1, None));
    assert!(found[0].shows("F2") && found[0].shows("I7") && !found[0].shows("I3"));
    let log = "running 3 tests\\ntest room::first ... ok\\ntest other::second ... FAILED\\n"
        .replace("\\n", "\n");
    assert_eq!((found[0].violations(&log), found[1].violations(&log)), (Some(0), Some(1)));
    assert_eq!(found[0].violations("test room::first_of_all ... ok"), None);
}
