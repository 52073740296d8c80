//! Owns merging: neighbouring archives become one, and one manifest puts it in
//! their place.
//!
//! ```text
//!  fetch the inputs -> merge and verify (`archive::merge_archives`) -> replace them
//! ```
//!
//! Fetching, the commit, and what becomes of it on a race or a death: see
//! `compact::replace`. Where an input is gone by then, the planner is asked anew.

mod plan;

use std::path::Path;
use std::sync::Arc;

use super::replace::{Replaced, blocking};
use super::{CompactError, Compactor};
use crate::archive::{ArchiveError, ArchiveIdentity, merge_archives};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::task::Pace;

pub use plan::{INPUTS_MAX, MergeJob, TARGET_BYTES_DEFAULT, plan};

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
        let inputs = self.fetch(&job.inputs, scratch, pace).await?;
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
        pace.take(built.summary.length).await;
        let what = "archives merged";
        Ok(match self.replace(base, &job.inputs, &identity, built, what).await? {
            Replaced::Committed(newest, made) => Merged::Committed(newest, made),
            Replaced::Overtaken(newest) => Merged::Overtaken(newest),
        })
    }
}
