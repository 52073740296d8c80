//! Keeps `docs/durability.md` true: every invariant and every fault has its row, and
//! every test it names is there.

use std::fs;
use std::path::{Path, PathBuf};

/// Names of one sort and how many there are.
const ROWS: [(&str, u32); 2] = [("I", 14), ("F", 30)];

#[test]
fn every_row_of_the_table_is_there_and_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("../docs/durability.md")).unwrap();
    for (sort, count) in ROWS {
        for number in 1..=count {
            let id = format!("| {sort}{number} |");
            let rows: Vec<&str> = table.lines().filter(|line| line.starts_with(&id)).collect();
            assert_eq!(rows.len(), 1, "rows of {id}");
            let named = tests_in(rows[0]).count();
            let said = rows[0].contains("**not covered yet**");
            assert!(named > 0 || said, "{id} names no test and does not say so");
        }
    }
    let sources = sources(&root.join("e2e"));
    let mut named = 0;
    for (module, test) in table.lines().flat_map(tests_in) {
        let there = sources
            .iter()
            .any(|(name, text)| name == module && (text.contains(&format!("fn {test}("))));
        assert!(there, "there is no test {module}::{test}");
        named += 1;
    }
    assert!(named > 40, "the table names {named} tests");
}

/// Module and name of every test in a row.
fn tests_in(row: &str) -> impl Iterator<Item = (&str, &str)> {
    let code = row.split('`').skip(1).step_by(2);
    code.filter_map(|code| code.split_once("::")).filter(|(_, test)| test.contains('_'))
}

/// The test modules by name, with their text.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}
