//! Owns the list of archives whose objects are known to be lost or damaged.
//!
//! It is there to be seen: by a metric, by logs, by who checks again. It makes no
//! answer shorter and hides no archive: every read verifies what it gets, so that what
//! is whole of a damaged archive is served still, and what is not is an error. Only in
//! memory: the next process finds out again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::catalog::ArchiveEntry;
use crate::store::ObjectKey;

/// Archives listed at most, 300 bytes each: with more, the store is lost and not a disk.
const LISTED_MAX: usize = 1 << 16;

/// Archives in quarantine. Clones share the list.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    listed: Arc<Mutex<BTreeMap<ObjectKey, ArchiveEntry>>>,
}

impl Quarantine {
    /// Lists `entry`, of which `why` is wrong. Said in the log when it is news.
    pub fn put(&self, entry: &ArchiveEntry, why: &str) {
        let (key, mut listed) = (entry.key(), self.lock());
        if listed.len() < LISTED_MAX && listed.insert(key.clone(), entry.clone()).is_none() {
            let range = entry.summary.range;
            tracing::error!(object = %key, offsets = %range, why, "an archive is in quarantine");
        }
    }

    /// Takes `entry` off the list: it was read whole and is well, or nobody needs it.
    pub fn lift(&self, entry: &ArchiveEntry) {
        if self.lock().remove(&entry.key()).is_some() {
            tracing::info!(object = %entry.key(), "an archive left quarantine");
        }
    }

    /// What is listed, ascending by name.
    #[must_use]
    pub fn entries(&self) -> Vec<ArchiveEntry> {
        self.lock().values().cloned().collect()
    }

    /// How many are listed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.lock().len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, ArchiveEntry>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
