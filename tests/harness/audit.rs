//! Owns an independent reading of what is archived: every object that the newest
//! manifest names, whole, through `flate2` and `tar`, and the batches in it by the
//! first bytes of their headers. The manifests are the catalog's word; everything it
//! says of the objects is checked here.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flate2::read::GzDecoder;
use tierd::catalog::{ArchiveEntry, Catalog, Gap, Snapshot};
use tierd::record::TopicPartition;
use tierd::store::Store;

/// Longest object that is read whole.
const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// What is archived of one partition.
#[derive(Debug)]
pub struct Audit {
    /// The newest manifest.
    pub snapshot: Arc<Snapshot>,
    /// The served log, batch by batch.
    pub served: Vec<Bytes>,
    /// Batches beneath it.
    pub beneath: Vec<Bytes>,
    /// Declared gaps, ascending.
    pub gaps: Vec<Gap>,
}

/// Reads everything that is archived of `tp`, and checks that it is what the manifests
/// say: each object with its length and digest, archives and gaps one after the other
/// from the log start to the end, and the batches without a hole in each archive.
///
/// # Errors
/// What is wrong first. `None` where nothing was ever committed.
pub async fn audit(store: &Store, catalog: &Catalog, tp: &TopicPartition) -> Result<Option<Audit>> {
    let Some(snapshot) = catalog.load(tp, None).await? else { return Ok(None) };
    catalog.verify_history(&snapshot).await?;
    let mut found = Audit {
        served: Vec::new(),
        beneath: Vec::new(),
        gaps: snapshot.gaps().await?,
        snapshot: Arc::clone(&snapshot),
    };
    let mut tiles: Vec<(i64, i64)> = found.gaps.iter().map(|gap| ends(gap.range)).collect();
    for entry in snapshot.entries().await? {
        let what = entry.key();
        let (log, overlaps) = contents(store, &entry).await.with_context(|| what.to_string())?;
        if entry.summary.tiles {
            let (base, last) = ends(entry.summary.range);
            tiles.push((base, last));
            check_chain(&log, base, last).with_context(|| what.to_string())?;
        } else {
            ensure!(log.is_empty(), "{what} tiles nothing and serves something");
        }
        found.served.extend(log);
        found.beneath.extend(overlaps);
    }
    tiles.sort_unstable();
    let mut next = snapshot.log_start();
    for (base, last) in tiles {
        // The first may reach below a log start that moved.
        let follows = base == next || (base < next && next == snapshot.log_start());
        ensure!(follows, "offsets from {next} on, and then from {base} on");
        next = last + 1;
    }
    ensure!(next == snapshot.archived_through(), "the log ends at {next}");
    Ok(Some(found))
}

fn ends(range: tierd::record::OffsetRange) -> (i64, i64) {
    (range.base(), range.last())
}

/// First and last offset of a batch as it stands on the wire.
#[must_use]
pub fn range_of(wire: &[u8]) -> (i64, i64) {
    let base = i64::from_be_bytes(wire[0..8].try_into().unwrap_or_default());
    let delta = i32::from_be_bytes(wire[23..27].try_into().unwrap_or_default());
    (base, base + i64::from(delta))
}

/// Each batch holds the offset that is due: one may begin below it, where it lies over
/// the end of the one before.
fn check_chain(log: &[Bytes], base: i64, last: i64) -> Result<()> {
    let mut next = base;
    for wire in log {
        let (first, end) = range_of(wire);
        ensure!(first <= next && next <= end, "batch {first} to {end} where {next} is due");
        next = end + 1;
    }
    ensure!(next > last, "the batches end before {next}, the archive at {last}");
    Ok(())
}

/// The batches of one archive: of its log, and beneath it.
///
/// # Errors
/// When the object is not the one that `entry` tells of.
pub async fn contents(store: &Store, entry: &ArchiveEntry) -> Result<(Vec<Bytes>, Vec<Bytes>)> {
    let bytes = store.get(&entry.key(), OBJECT_BYTES_MAX).await?;
    ensure!(bytes.len() as u64 == entry.summary.length, "it has {} bytes", bytes.len());
    ensure!(*blake3::hash(&bytes).as_bytes() == entry.summary.digest, "its digest is another");
    let mut archive = tar::Archive::new(GzDecoder::new(&bytes[..]));
    let (mut log, mut overlaps) = (Vec::new(), Vec::new());
    for file in archive.entries()? {
        let mut file = file?;
        let name = file.path()?.to_string_lossy().into_owned();
        if !name.ends_with(".log") {
            continue;
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let batches = split(content.into())?;
        if name.ends_with(".overlap.log") { overlaps = batches } else { log = batches }
    }
    Ok((log, overlaps))
}

/// The batches of a log, one after the other.
fn split(log: Bytes) -> Result<Vec<Bytes>> {
    let (mut batches, mut at) = (Vec::new(), 0);
    while at < log.len() {
        ensure!(log.len() - at >= 27, "a batch is cut off at {at}");
        let len = u32::from_be_bytes([log[at + 8], log[at + 9], log[at + 10], log[at + 11]]);
        let end = at + 12 + len as usize;
        ensure!(end <= log.len(), "a batch of {len} bytes at {at} reaches over the end");
        batches.push(log.slice(at..end));
        at = end;
    }
    Ok(batches)
}
