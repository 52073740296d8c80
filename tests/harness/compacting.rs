//! Owns merging to the end: what a daemon does in the background, at once.

use std::collections::HashSet;
use std::path::Path;

use tierd::catalog::Catalog;
use tierd::compact::merge::{Merged, plan};
use tierd::compact::{CompactError, Compactor};
use tierd::record::TopicPartition;
use tierd::task::Pace;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merges {
    /// Archives made of several.
    pub committed: u64,
    /// Bytes of the objects that they were made of.
    pub rewritten: u64,
    /// Jobs for nothing, because another writer changed what was to be merged.
    pub overtaken: u64,
    /// Borders that stay.
    pub refused: u64,
}

/// Merges the newest life of `tp` into archives of `target` bytes of log until there is
/// nothing to merge.
///
/// # Errors
/// What the compactor says.
pub async fn merge_all(
    compactor: &Compactor,
    catalog: &Catalog,
    tp: &TopicPartition,
    target: u64,
    scratch: &Path,
) -> Result<Merges, CompactError> {
    let (mut done, mut borders) = (Merges::default(), HashSet::new());
    loop {
        let Some(base) = catalog.load(tp, None).await? else { return Ok(done) };
        let entries = base.entries().await?;
        let jobs = plan(&base, &entries, target, &borders);
        let Some(job) = jobs.first() else { return Ok(done) };
        match compactor.merge(base, job, scratch, &Pace::unlimited()).await? {
            Merged::Committed(..) => {
                done.committed += 1;
                done.rewritten += job.bytes();
            }
            Merged::Overtaken(_) => done.overtaken += 1,
            Merged::Refused(left, _) => {
                done.refused += 1;
                assert!(borders.insert(left), "a border is refused once");
            }
        }
    }
}
