//! Keeps the shape of the code true: the layer table and the only-here rules of
//! `daemon/src/lib.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows of the layer table, upper rows first. A room may import rooms of higher
/// rows only; rooms of one row never import each other, except in the rows of the
/// vocabulary and of assembly, which are one room each in all but name.
const LAYERS: &[&[&str]] = &[
    &["error", "clock", "task", "health", "metrics", "record", "reports"],
    &["wal", "archive", "store", "listen"],
    &["catalog"],
    &["read"],
    &["indexer", "compact", "fetch", "search", "upkeep"],
    &["grpc", "http"],
    &["config", "cli", "daemon", "main"],
];
const VOCABULARY: usize = 0;
const ASSEMBLY: usize = 6;

/// Imports that the table forbids beyond the order of its rows.
const NEVER: &[(&str, &str)] =
    &[("catalog", "wal"), ("read", "wal"), ("grpc", "wal"), ("http", "wal")];

/// A crate, and the only places of the daemon that may name it.
const ONLY_HERE: &[(&str, &[&str])] = &[
    ("notify", &["wal"]),
    ("tantivy", &["archive", "search"]),
    ("tar", &["archive"]),
    ("async_compression", &["archive"]),
    ("object_store", &["store"]),
    ("tonic", &["grpc"]),
    ("tonic_health", &["grpc"]),
    ("tonic_reflection", &["grpc"]),
    ("prost", &["grpc"]),
    ("tierd_proto", &["grpc"]),
    ("hyper", &["http"]),
    ("hyper_util", &["http"]),
    ("http_body_util", &["http"]),
    ("prometheus", &["metrics"]),
    ("tierd_client", &["cli"]),
    ("clap", &["cli"]),
    ("anyhow", &["config", "cli", "daemon", "main"]),
];

struct Source {
    path: PathBuf,
    room: String,
    /// The code without comments and without its inline tests.
    code: String,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn daemon_sources() -> Vec<Source> {
    let root = workspace().join("daemon/src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let sources: Vec<Source> = files
        .into_iter()
        .filter(|path| !path.ends_with("lib.rs") && !path.ends_with("tests.rs"))
        .filter(|path| !path.components().any(|part| part.as_os_str() == "tests"))
        .map(|path| {
            let inner = path.strip_prefix(&root).unwrap();
            let first = inner.components().next().unwrap().as_os_str().to_str().unwrap();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            Source { room, code: lines.collect::<Vec<_>>().join("\n"), path }
        })
        .collect();
    assert!(sources.len() > 30, "the daemon's sources were not found");
    sources
}

fn row(room: &str) -> usize {
    LAYERS.iter().position(|row| row.contains(&room)).unwrap_or_else(|| {
        panic!("room {room} is not in the layer table; give it a row there and in lib.rs")
    })
}

/// The rooms that `code` names by `crate::ROOM`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for after in code.split("crate::").skip(1) {
        if let Some(group) = after.strip_prefix('{') {
            // use crate::{a::B, c::{D, E}}: the names at depth one.
            let (mut depth, mut name) = (1, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => found.push(std::mem::take(&mut name)),
                    _ if depth == 1 && !c.is_whitespace() => name.push(c),
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            found.push(name);
        } else {
            found.push(after.to_owned());
        }
    }
    found
        .into_iter()
        .map(|path| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|room: &String| !room.is_empty())
        .collect()
}

#[test]
fn imports_go_up_the_layer_table_only() {
    let mut wrong = Vec::new();
    for source in daemon_sources() {
        let from = row(&source.room);
        for room in imports(&source.code) {
            if room == source.room {
                continue;
            }
            let to = row(&room);
            let together = from == to && (from == VOCABULARY || from == ASSEMBLY);
            let never = NEVER.contains(&(source.room.as_str(), room.as_str()));
            if (to >= from && !together) || never {
                wrong.push(format!("{} imports {room}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "the layer table forbids:\n{}", wrong.join("\n"));
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    let mut wrong = Vec::new();
    for source in daemon_sources() {
        for (name, rooms) in ONLY_HERE {
            let named = [format!("{name}::"), format!("use {name};")].iter().any(|path| {
                source.code.match_indices(path.as_str()).any(|(at, _)| {
                    let before = source.code[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                })
            });
            if named && !rooms.contains(&source.room.as_str()) {
                wrong.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "only-here rules are broken:\n{}", wrong.join("\n"));
}

#[test]
fn every_import_of_the_table_is_seen_by_the_reader_of_imports() {
    let code = "use crate::{wal::{A, B}, store::C};\nlet x = crate::catalog::D::new();";
    assert_eq!(imports(code), ["wal", "store", "catalog"]);
}

#[test]
fn the_table_in_the_code_map_names_every_room() {
    let map = std::fs::read_to_string(workspace().join("daemon/src/lib.rs")).unwrap();
    let rooms: BTreeMap<String, ()> =
        daemon_sources().into_iter().map(|source| (source.room, ())).collect();
    for room in rooms.keys().filter(|room| *room != "main") {
        assert!(map.contains(&format!("pub mod {room};")), "lib.rs does not declare {room}");
        let linked = map.contains(&format!("[`{room}`]")) || map.contains(&format!("`{room}`"));
        assert!(linked, "the code map does not mention {room}");
    }
}

#[test]
fn the_rooms_never_wait_or_roll_dice_by_themselves() {
    // The lint protects most of it; tokio's own sleep is easy to reach for.
    for source in daemon_sources() {
        let sleeps = source.code.contains("thread::sleep(") || source.code.contains("time::sleep(");
        let may = ["task", "store", "cli", "daemon"].contains(&source.room.as_str());
        assert!(!sleeps || may, "{} sleeps; drive it by a step instead", source.path.display());
    }
}
