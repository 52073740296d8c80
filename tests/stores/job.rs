//! The main job by the real binary: the fixtures' WAL goes in, the same batches
//! come out, a deep verify is clean, and a second run writes nothing.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::ObjectStore;
use sha2::{Digest, Sha256};
use tierd_tests::fixture;
use tierd_tests::process::Tierd;

use crate::TIERD;

/// Offsets, length and SHA-256 of every batch in `wire`.
fn batches_of(mut wire: &[u8]) -> Vec<(i64, i64, usize, String)> {
    let mut found = Vec::new();
    while !wire.is_empty() {
        let base = i64::from_be_bytes(wire[0..8].try_into().unwrap());
        let len = 12 + i32::from_be_bytes(wire[8..12].try_into().unwrap()) as usize;
        let delta = i32::from_be_bytes(wire[23..27].try_into().unwrap());
        let digest = Sha256::digest(&wire[..len]);
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        found.push((base, base + i64::from(delta), len, hex));
        wire = &wire[len..];
    }
    found
}

/// Name, and length, tag and time, of everything below `url`, as a client that is
/// not ours reads them.
async fn objects(url: &str, environment: &[(String, String)]) -> BTreeMap<String, String> {
    let url = url::Url::parse(url).unwrap();
    let options = environment.iter().map(|(name, value)| (name.to_lowercase(), value.clone()));
    let (store, prefix) = object_store::parse_url_opts(&url, options).unwrap();
    let found: Vec<_> = store.list(Some(&prefix)).try_collect().await.unwrap();
    found
        .into_iter()
        .map(|meta| {
            let facts = format!("{} {:?} {}", meta.size, meta.e_tag, meta.last_modified);
            (meta.location.to_string(), facts)
        })
        .collect()
}

/// Does the main job on the store at `url`.
pub async fn works(url: &str, environment: &[(String, String)]) {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path()).on_store(url, environment);
    let _ = tierd.archive(&fixture::wal()).ok();
    for ((topic, partition), mut batches) in fixture::batches() {
        batches.sort_by_key(|batch| (batch.base, batch.order));
        let wanted: Vec<_> =
            batches.iter().map(|b| (b.base, b.last, b.length, b.sha256.clone())).collect();
        let partition = partition.to_string();
        let fetch = ["fetch", &topic, &partition, "--offset", "0", "--format", "raw"];
        let got = tierd.run(&[&fetch[..], &["--overlaps", "all"]].concat()).ok();
        assert_eq!(batches_of(&got.stdout), wanted, "{topic}-{partition}");
    }
    let deep = tierd.run(&["verify", "--deep"]).ok();
    assert!(!deep.text().contains("CORRUPT"), "{}", deep.text());

    let before = objects(url, environment).await;
    assert!(before.len() >= 10, "{before:?}");
    let _ = tierd.archive(&fixture::wal()).ok();
    assert_eq!(objects(url, environment).await, before);
}
