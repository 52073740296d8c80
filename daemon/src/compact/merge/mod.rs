//! Owns merging: neighbouring archives become one, and one manifest puts it in
//! their place.
//!
//! ```text
//!  fetch the inputs into scratch, each proven by the digest in its manifest
//!    -> merge and verify (`archive::merge_archives`) -> upload under the next number
//!    -> commit: out goes in, the inputs go out    <- the commit point
//! ```
//!
//! Killed before the commit, nothing happened: scratch is thrown away and what was
//! uploaded is litter for gc. Where another writer committed meanwhile and all
//! inputs are still listed, the object is copied to a name of the next number and
//! the commit tried again; where they are not, the work was for nothing and the
//! planner is asked anew.

mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::{CompactError, Compactor, RACES_MAX};
use crate::archive::{ArchiveError, ArchiveIdentity, BuiltArchive, MergeInput, merge_archives};
use crate::catalog::{ArchiveEntry, CatalogError, Edit, Snapshot};
use crate::task::Pace;

pub use plan::{INPUTS_MAX, JobRequests, MergeJob, TARGET_BYTES_DEFAULT, plan};

/// Inputs fetched at a time: small objects are mostly waiting.
pub const FETCHES: usize = 8;
/// Bytes one request of a fetch asks for.
const PIECE_BYTES: u64 = 8 << 20;

/// What came of a job.
#[derive(Clone, Debug)]
pub enum Merged {
    /// The manifest that lists the merged archive, and the archive.
    Committed(Arc<Snapshot>, Box<ArchiveEntry>),
    /// Another writer changed what was to be merged; the newest manifest.
    Overtaken(Arc<Snapshot>),
    /// The archive with this digest refuses the one behind it: plan without.
    Refused([u8; 32], &'static str),
}

impl Compactor {
    /// Carries `job` out, which was planned from `base`, in a folder of its own
    /// inside `scratch` and no faster than `pace`.
    ///
    /// # Errors
    /// When an input is lost or damaged, or store, catalog or scratch fail. Nothing
    /// was committed then, unless the error is of kind `Retry`: planning again shows.
    pub async fn merge(
        &self,
        base: Arc<Snapshot>,
        job: &MergeJob,
        scratch: &Path,
        pace: &Pace,
    ) -> Result<Merged, CompactError> {
        let failed = |source| CompactError::Scratch { path: scratch.to_owned(), source };
        let folder = tempfile::Builder::new().prefix("inputs-").tempdir_in(scratch);
        let folder = folder.map_err(failed)?;
        let fetches = job.inputs.iter().enumerate().map(|(number, entry)| {
            let path = folder.path().join(format!("{number}.tar.gz"));
            self.fetch(entry, path, pace)
        });
        let fetches: Vec<_> = fetches.collect();
        let inputs: Vec<MergeInput> =
            futures::stream::iter(fetches).buffered(FETCHES).try_collect().await?;
        let refused = inputs.windows(2).zip(&job.inputs);
        for (two, left) in refused {
            if let Some(why) = two[0].refuses(&two[1]) {
                return Ok(Merged::Refused(left.summary.digest, why));
            }
        }
        let (tp, incarnation) = (base.tp().clone(), base.incarnation());
        let identity = ArchiveIdentity { tp, incarnation };
        let (at, whose) = (scratch.to_owned(), identity.clone());
        let built = blocking(move || Ok(merge_archives(&at, &whose, &inputs)?)).await;
        let built = match built {
            Err(CompactError::Archive(ArchiveError::Unmergeable { why, left })) => {
                let left = job.inputs.get(left).map_or([0; 32], |entry| entry.summary.digest);
                return Ok(Merged::Refused(left, why));
            }
            built => built?,
        };
        drop(folder);
        pace.take(built.summary.length).await;
        self.publish(base, job, &identity, built).await
    }

    /// Fetches one input whole and proves it.
    async fn fetch(
        &self,
        entry: &ArchiveEntry,
        path: PathBuf,
        pace: &Pace,
    ) -> Result<MergeInput, CompactError> {
        let (key, length) = (entry.key(), entry.summary.length);
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < length {
            let to = (at + PIECE_BYTES).min(length);
            pace.take(to - at).await;
            let piece = self.store.get_range(&key, at..to).await?;
            let (file, first) = (path.clone(), at == 0);
            hasher = blocking(move || {
                let mut hasher = hasher;
                hasher.update(&piece);
                append(&file, first, &piece)
                    .map_err(|source| CompactError::Scratch { path: file, source })?;
                Ok(hasher)
            })
            .await?;
            at = to;
        }
        if *hasher.finalize().as_bytes() != entry.summary.digest {
            return Err(CompactError::Damaged { object: key.to_string() });
        }
        let summary = entry.summary.clone();
        blocking(move || Ok(MergeInput::open(&path, summary)?)).await
    }

    /// Uploads and commits; on a race again, for as long as the inputs are there.
    async fn publish(
        &self,
        mut base: Arc<Snapshot>,
        job: &MergeJob,
        identity: &ArchiveIdentity,
        built: BuiltArchive,
    ) -> Result<Merged, CompactError> {
        let cluster = self.catalog.cluster();
        let mut entry =
            ArchiveEntry::new(cluster, identity, base.number() + 1, built.summary.clone());
        self.store.put_file(&entry.key(), &built.path).await?;
        for _ in 0..RACES_MAX {
            let edit =
                Edit { add: vec![entry.clone()], remove: job.inputs.clone(), ..Edit::default() };
            match self.commit(base, edit).await {
                Ok(made) => {
                    let (range, bytes) = (entry.summary.range, entry.summary.length);
                    let inputs = job.inputs.len();
                    tracing::info!(partition = %identity.tp, %range, inputs, bytes, "archives merged");
                    return Ok(Merged::Committed(Arc::clone(made.snapshot()), Box::new(entry)));
                }
                Err(CatalogError::Lost { newest }) if still_lists(&newest, job).await? => {
                    let next = entry.rebased(newest.number() + 1);
                    self.store.copy(&entry.key(), &next.key()).await?;
                    (base, entry) = (newest, next);
                }
                Err(CatalogError::Lost { newest }) => return Ok(Merged::Overtaken(newest)),
                Err(error) => return Err(error.into()),
            }
        }
        Err(CompactError::Outrun)
    }
}

/// Whether all inputs of `job` are listed by `newest`, from its log start on.
async fn still_lists(newest: &Snapshot, job: &MergeJob) -> Result<bool, CompactError> {
    let Some(range) = job.range() else { return Ok(false) };
    let listed = newest.find_by_offset_range(range).await?;
    let all = job.inputs.iter().all(|input| listed.contains(input));
    Ok(all && range.base() >= newest.log_start())
}

fn append(path: &Path, first: bool, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::options().append(!first).write(true).create(true).open(path)?;
    std::io::Write::write_all(&mut file, bytes)
}

/// Runs CPU and file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompactError> + Send + 'static,
) -> Result<T, CompactError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|died| CompactError::Worker(died.to_string()))?
}
