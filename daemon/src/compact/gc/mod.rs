//! Owns garbage: which objects nobody needs any more, and deleting them.
//!
//! An object that no manifest references does not exist; this room frees the space
//! it takes. An object carries the number of the manifest it was made for, and
//! only that manifest may be the first to reference it, none again once dropped.
//! So with *N* the newest manifest and *S* the settled one, the last that is
//! older than the grace time:
//!
//! | an archive, page or side object made for *n*, not referenced by *N* | goes |
//! |---|---|
//! | *n* <= *S*, not referenced by *S* | now: no reader can hold a manifest that needs it |
//! | *n* <= *S*, referenced by *S* | when the manifest that dropped it is older than the grace time |
//! | *S* < *n* <= *N*, never referenced by *n* | when it is itself older than the grace time |
//! | *n* > *N* | as above, once *n* is taken: by whoever commits next, else by an empty manifest of ours |
//!
//! Manifests before *S* go by whole blocks, which are closed first, in ascending
//! order (see [`crate::catalog`]). Where nobody commits and many wait for a block that
//! is not full, it is ended early, by two empty manifests of ours. Probes and unfinished
//! uploads go by their age.
//!
//! **Time is the store's alone**: when objects were written and what time it is are
//! both read from the store, so no host's clock can shorten the grace time.
//! **A listing only proposes**: it may miss or lag, but what is deleted is decided
//! by manifests read by name, and looked up again right before.
//!
//! Killed anywhere, the next run goes on: every deletion can be repeated.

mod judge;
mod survey;
mod sweep;

use std::time::Duration;

use crate::catalog::Committed;
use crate::store::{Listed, ObjectKey, PartitionKey};

pub use judge::{When, Why};

/// How long what was dropped stays readable where nothing else is said: longer
/// than any stream of one manifest, and a day to notice a mistake.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// An object that will go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Litter {
    /// The object as it was listed.
    pub object: Listed,
    /// Its name, understood; `None` for an unfinished upload.
    pub key: Option<ObjectKey>,
    /// Why nobody needs it.
    pub why: Why,
    /// When it may go.
    pub when: When,
}

/// What gc found in one partition.
#[derive(Clone, Debug)]
pub struct PartitionSurvey {
    /// The partition.
    pub of: PartitionKey,
    /// Its newest manifest, where it has one.
    pub newest: Option<Committed>,
    /// Objects that will go, ascending by name.
    pub litter: Vec<Litter>,
    /// Objects that are needed, and their bytes.
    pub live: (u64, u64),
    /// Manifests before this one may be deleted once their blocks are closed.
    pub settled: u64,
    /// The manifest number to be taken before more can go.
    pub to_take: Option<u64>,
    /// Whether so many manifests wait for their block that it is to be ended.
    pub to_end: bool,
}

/// What gc found outside partitions.
#[derive(Clone, Debug, Default)]
pub struct Strays {
    /// Probes and unfinished uploads that will go.
    pub litter: Vec<Litter>,
    /// Whether this store can list unfinished uploads.
    pub lists_unfinished: bool,
}

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The moment and the mercy by which everything is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// The time by the store's clock, in milliseconds.
    pub now_ms: i64,
    /// How long what was dropped stays.
    pub grace: Duration,
}

impl Grace {
    fn ms(self) -> i64 {
        i64::try_from(self.grace.as_millis()).unwrap_or(i64::MAX)
    }

    /// What is not younger than this has had its grace.
    fn cutoff_ms(self) -> i64 {
        self.now_ms.saturating_sub(self.ms())
    }

    /// When something of the time `ms` has had its grace.
    fn free_at(self, ms: i64) -> i64 {
        ms.saturating_add(self.ms())
    }
}
