//! The tables, as Markdown.

use std::fmt::Write;

use super::declared::Declared;
use super::{EXCEPTIONS, FAULTS, INVARIANTS, NOT_COVERED};

/// Both tables out of what `tests` declare, with what came of them in the run of `log`.
pub(super) fn page(tests: &[Declared], log: Option<&str>) -> String {
    let mut out = String::from(
        "## Faults\n\n| id | fault | where injected | invariants | test | runs | violations |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (id, fault) in FAULTS {
        let injected: Vec<_> = tests.iter().filter(|test| test.shows(id)).collect();
        for test in &injected {
            let held: Vec<_> = test.ids.iter().filter(|id| id.starts_with('I')).cloned().collect();
            let (place, held) = (&test.place, held.join(" "));
            let row = format!("| {id} | {fault} | {place} | {held} |");
            writeln!(out, "{row} {} |", outcome(test, log)).unwrap();
        }
        if injected.is_empty() {
            writeln!(out, "| {id} | {fault} | **not covered yet**: {} | | | | |", why(id)).unwrap();
        }
    }
    out.push_str(
        "\n## Invariants\n\n| id | invariant | tests | known to be less |\n|---|---|---|---|\n",
    );
    for (id, invariant) in INVARIANTS {
        let shown: Vec<_> = tests.iter().filter(|test| test.shows(id)).collect();
        let shown: Vec<_> = shown.iter().map(|test| format!("`{}`", test.name())).collect();
        let shown = match shown.is_empty() {
            true => format!("**not covered yet**: {}", why(id)),
            false => shown.join(", "),
        };
        let less = EXCEPTIONS.iter().find(|(of, _)| *of == id).map_or("", |(_, what)| what);
        writeln!(out, "| {id} | {invariant} | {shown} | {less} |").unwrap();
    }
    out
}

fn why(id: &str) -> &'static str {
    NOT_COVERED.iter().find(|(not, _)| *not == id).map_or("", |(_, why)| why)
}

/// Test, runs and violations.
fn outcome(test: &Declared, log: Option<&str>) -> String {
    let mut runs = grouped(test.runs);
    if let Some(recorded) = test.recorded {
        write!(runs, "; {} recorded", grouped(recorded)).unwrap();
    }
    let violations = match log.map(|log| test.violations(log)) {
        // The page stands only where all its tests pass.
        None => "0".to_owned(),
        Some(Some(violations)) => violations.to_string(),
        Some(None) => "not run".to_owned(),
    };
    format!("`{}` | {runs} | {violations}", test.name())
}

/// A number with a comma for every thousand.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[test]
fn thousands_are_parted() {
    assert_eq!(
        [7, 999, 1000, 38_537, 1_000_000].map(grouped),
        ["7", "999", "1,000", "38,537", "1,000,000"]
    );
}
