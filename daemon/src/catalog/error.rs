//! Owns what can go wrong with the catalog.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Classify, ErrorKind};
use crate::record::OffsetRange;
use crate::store::{ObjectKey, PartitionKey, StoreError};

use super::codec::FormatError;
use super::snapshot::Snapshot;
use super::tiling::Broken;

/// Why the catalog cannot be read, or why a commit is refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store failed. After a commit it may or may not have happened: load
    /// the partition again and look.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What several asked for at once could not be read.
    #[error(transparent)]
    Shared(#[from] Arc<CatalogError>),
    /// The store does not say which manifest is the newest.
    #[error(
        "the store has not said for {waited:?} what is archived of {of} last; try again when it answers"
    )]
    Silent {
        /// The partition.
        of: String,
        /// How long it has been asked.
        waited: Duration,
    },
    /// An object is not what was written.
    #[error("{object} is damaged: {source}; run tierd verify")]
    Corrupt {
        /// The object.
        object: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An object was written by a later tierd.
    #[error("{object} cannot be read: {source}")]
    Future {
        /// The object.
        object: String,
        /// Which version it has.
        source: FormatError,
    },
    /// A manifest does not follow on the one before it.
    #[error(
        "{object} does not follow on the manifest before it: the history of the partition was changed; run tierd verify"
    )]
    Chain {
        /// The manifest.
        object: String,
    },
    /// An object that this manifest references is not there: the manifest is no
    /// longer the newest, or the object is lost.
    #[error(
        "{object} is gone; look at the newest manifest, and if it is still referenced there, run tierd verify"
    )]
    Gone {
        /// The object.
        object: String,
    },
    /// Another writer committed this number first. Nothing was committed.
    #[error("another writer ({}) committed manifest {} of {} first", newest.writer(), newest.number(), newest.of())]
    Lost {
        /// The newest manifest there is.
        newest: Arc<Snapshot>,
    },
    /// An entry was made for another manifest. Nothing was committed.
    #[error(
        "{object} was made for manifest {built_for} and cannot be committed by manifest {number}; copy it to a name of that number"
    )]
    NotBuiltFor {
        /// The archive.
        object: String,
        /// The manifest it was made for.
        built_for: u64,
        /// The manifest to be committed.
        number: u64,
    },
    /// An entry belongs to another partition than is committed to.
    #[error("{object} cannot be committed to {of}")]
    OtherPartition {
        /// The archive or manifest.
        object: String,
        /// The partition.
        of: String,
    },
    /// The same archive twice in one edit.
    #[error("{object} stands twice in one commit")]
    Twice {
        /// The archive.
        object: String,
    },
    /// What would be committed says twice what is at some offsets.
    #[error("offsets {first} and {second} overlap: what is committed must tile the log")]
    Overlap {
        /// One archive or gap.
        first: OffsetRange,
        /// The other.
        second: OffsetRange,
    },
    /// What would be committed leaves out offsets without declaring them a gap.
    #[error(
        "offsets {range} would be in no archive and no declared gap: what is committed must tile the log"
    )]
    Hole {
        /// The offsets.
        range: OffsetRange,
    },
    /// An archive to commit is not in the store.
    #[error("{object} is not in the store and cannot be committed; upload it first")]
    Absent {
        /// The archive.
        object: String,
    },
    /// An archive to commit has another length than was built.
    #[error("{object} has {found} bytes in the store where {expected} were built; upload it again")]
    Length {
        /// The archive.
        object: String,
        /// Bytes built.
        expected: u64,
        /// Bytes in the store.
        found: u64,
    },
    /// What should be removed is not there.
    #[error("{what} is not in the manifest and cannot be taken out of it")]
    NotListed {
        /// The archive or gap.
        what: String,
    },
    /// The log start cannot be what was asked for.
    #[error("the log start of {of} cannot move from {from} to {to}: it only moves forward")]
    LogStart {
        /// The partition.
        of: String,
        /// Where it is.
        from: i64,
        /// Where it should go.
        to: i64,
    },
    /// The broker's topic id is not the one this incarnation has.
    #[error("the topic id of {of} changed: it is a new incarnation")]
    TopicId {
        /// The partition.
        of: String,
    },
    /// There is no such incarnation of the topic.
    #[error("topic {topic} has no incarnation {number}")]
    NoIncarnation {
        /// The topic.
        topic: String,
        /// Its number.
        number: u32,
    },
    /// An edit is larger than can be done at once.
    #[error("{count} {what} in one commit, at most {max}; split it")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The most.
        max: usize,
    },
    /// What was looked for kept changing, or the store kept contradicting itself.
    #[error("what the store says of {what} kept changing; try again")]
    Unsettled {
        /// The partition or object.
        what: String,
    },
    /// A rule of this room was broken from inside.
    #[error("the catalog of {of} is wrong: {why}; this is a defect, please report it")]
    Defect {
        /// The partition.
        of: String,
        /// Which rule.
        why: String,
    },
}

impl CatalogError {
    pub(super) fn format(key: &ObjectKey, source: FormatError) -> Self {
        let object = key.to_string();
        match source {
            FormatError::Future { .. } => Self::Future { object, source },
            _ => Self::Corrupt { object, source },
        }
    }

    pub(super) fn defect(of: &PartitionKey, why: &str) -> Self {
        Self::Defect { of: of.to_string(), why: why.to_owned() }
    }
}

impl From<Broken> for CatalogError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Overlap(first, second) => Self::Overlap { first, second },
            Broken::Hole(range) => Self::Hole { range },
        }
    }
}

impl CatalogError {
    /// The object that is damaged or gone, where it is that.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::Gone { object } | Self::Corrupt { object, .. } => Some(object),
            Self::Shared(source) => source.object(),
            _ => None,
        }
    }
}

impl Classify for CatalogError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(source) => source.kind(),
            Self::Shared(source) => source.kind(),
            Self::Silent { .. } => ErrorKind::Retry,
            Self::Corrupt { .. } | Self::Chain { .. } => ErrorKind::Corrupt,
            Self::Gone { .. } | Self::NoIncarnation { .. } => ErrorKind::NotFound,
            Self::Lost { .. } => ErrorKind::Fenced,
            Self::Future { .. }
            | Self::LogStart { .. }
            | Self::TopicId { .. }
            | Self::TooMany { .. } => ErrorKind::Invalid,
            Self::Absent { .. } | Self::Length { .. } | Self::Unsettled { .. } => ErrorKind::Retry,
            Self::NotBuiltFor { .. }
            | Self::OtherPartition { .. }
            | Self::Twice { .. }
            | Self::Overlap { .. }
            | Self::Hole { .. }
            | Self::NotListed { .. }
            | Self::Defect { .. } => ErrorKind::Internal,
        }
    }
}
