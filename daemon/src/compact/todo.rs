//! Owns what is to do in one partition: what retention lets go, and which merges follow.

use std::collections::HashSet;
use std::sync::Arc;

use super::merge::{self, MergeJob};
use super::{CompactError, Compactor, Policy, Retained};
use crate::catalog::Snapshot;

/// What is to do in one partition.
#[derive(Clone, Debug)]
pub struct Todo {
    /// What retention does.
    pub retained: Retained,
    /// What is merged of that which stays, oldest first.
    pub merges: Vec<MergeJob>,
}

impl Todo {
    /// Bytes of the archives to merge.
    #[must_use]
    pub fn merge_bytes(&self) -> u64 {
        self.merges.iter().map(MergeJob::bytes).sum()
    }

    /// Archives to merge.
    #[must_use]
    pub fn merge_inputs(&self) -> usize {
        self.merges.iter().map(|job| job.inputs.len()).sum()
    }
}

impl Compactor {
    /// What `policy` has to do in the partition of `base` at the time `now_ms`.
    /// `borders` are archives, by digest, that refused the one behind them.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn todo(
        &self,
        base: Arc<Snapshot>,
        policy: Policy,
        now_ms: i64,
        borders: &HashSet<[u8; 32]>,
    ) -> Result<Todo, CompactError> {
        let retained = self.plan_retention(Arc::clone(&base), policy, now_ms).await?;
        let Some(target) = policy.merge_target else {
            return Ok(Todo { retained, merges: Vec::new() });
        };
        let mut entries = base.entries().await?;
        // As if retention had been committed.
        entries.retain(|entry| entry.summary.range.base() >= retained.log_start);
        let merges = merge::plan(&base, &entries, target, borders);
        Ok(Todo { retained, merges })
    }
}
