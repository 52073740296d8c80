//! Owns what can go wrong with a search as a whole, or with one archive of it.

use tantivy::TantivyError;

use crate::archive::ArchiveError;
use crate::catalog::CatalogError;
use crate::error::{Classify, ErrorKind};
use crate::read::ReadError;

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The search makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Nothing of what is to be searched is archived.
    #[error("nothing of {0} is archived")]
    Unknown(String),
    /// The catalog could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// An archive could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bytes of an archive are whole, and what they say is not right.
    #[error("archive {object}: {source}; run `tierd verify --deep` on the partition")]
    Archive {
        /// Name of the object.
        object: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// Tantivy refused an index whose bytes are whole.
    #[error("the index of archive {object} cannot be searched: {source}")]
    Index {
        /// Name of the object.
        object: String,
        /// Tantivy's reason.
        source: Box<TantivyError>,
    },
    /// An archive and its manifest or index contradict each other.
    #[error("archive {object}: {why}; run `tierd verify --deep` on the partition")]
    Contradiction {
        /// Name of the object.
        object: String,
        /// What does not fit.
        why: String,
    },
    /// More records have to be looked at one by one than are held at once.
    #[error(
        "more than {max} records of archive {object} have to be compared one by one; \
         narrow the search by time or offset"
    )]
    TooMany {
        /// Name of the object.
        object: String,
        /// The most.
        max: usize,
    },
    /// A worker thread died, which is a defect.
    #[error("a search of archive {object} did not finish: {why}")]
    Worker {
        /// Name of the object.
        object: String,
        /// What the runtime says.
        why: String,
    },
    /// Nobody waits for the answer any more, or its time is over.
    #[error("the search was given up")]
    Cancelled,
}

impl Classify for SearchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::Catalog(source) => source.kind(),
            Self::Read(source) => source.kind(),
            Self::Archive { source, .. } => source.kind(),
            Self::Index { .. } | Self::Contradiction { .. } => ErrorKind::Corrupt,
            Self::TooMany { .. } => ErrorKind::Exhausted,
            Self::Worker { .. } => ErrorKind::Internal,
            Self::Cancelled => ErrorKind::Retry,
        }
    }
}
