//! Owns what can go wrong while an archive is written, read or verified.

use std::io;
use std::path::{Path, PathBuf};

use super::FORMAT_VERSION;
use crate::error::{Classify, ErrorKind, io_kind};
use crate::record::BatchError;

/// Why an archive could not be written, read or verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The scratch folder or the archive file failed.
    #[error("cannot {step} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: `create`, `write`, `read`, `patch`.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The stream that brings an archive failed.
    #[error("cannot read the archive: {source}")]
    Stream {
        /// The stream's reason.
        source: io::Error,
    },
    /// A part of the archive was written by a later tierd.
    #[error(
        "{part}: archive format version {found} is newer than this tierd understands \
         ({FORMAT_VERSION}); upgrade tierd"
    )]
    Newer {
        /// The part that says so.
        part: &'static str,
        /// The version it has.
        found: u16,
    },
    /// A part of the archive needs something this tierd does not have.
    #[error("{part} needs {what}, which this tierd does not understand; upgrade tierd")]
    Unknown {
        /// The part that says so.
        part: &'static str,
        /// What it needs.
        what: String,
    },
    /// The bytes are not what was written.
    #[error("archive is corrupt at {part}: {why}")]
    Corrupt {
        /// Which part: a tar entry, a chunk, the footer.
        part: String,
        /// What is wrong with it.
        why: String,
    },
    /// A batch could not be turned into wire bytes.
    #[error("cannot archive the batch at offset {base_offset}: {source}")]
    Batch {
        /// Base offset of the batch.
        base_offset: i64,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A batch came where it cannot go: a defect of the caller.
    #[error("the batch at {base_offset}..{last_offset} cannot be added to the archive: {why}")]
    Refused {
        /// Base offset of the batch.
        base_offset: i64,
        /// Last offset of the batch.
        last_offset: i64,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Archives cannot be made one.
    #[error("these archives cannot be merged: {why}; they stay as they are")]
    Unmergeable {
        /// Which rule they break.
        why: &'static str,
        /// Which of them, from 0, may not be joined to the one behind it.
        left: usize,
    },
    /// `finish` without a single batch: a defect of the caller.
    #[error("an archive needs at least one batch")]
    Empty,
    /// Tantivy refused. Its I/O errors arrive as [`ArchiveError::Io`].
    #[error("cannot {step} the search index: {source}")]
    Index {
        /// What was being done, as a verb.
        step: &'static str,
        /// Tantivy's reason.
        source: Box<tantivy::TantivyError>,
    },
}

impl Classify for ArchiveError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } | Self::Stream { source } => io_kind(source),
            Self::Newer { .. }
            | Self::Unknown { .. }
            | Self::Batch { .. }
            | Self::Unmergeable { .. } => ErrorKind::Invalid,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Refused { .. } | Self::Empty | Self::Index { .. } => ErrorKind::Internal,
        }
    }
}

impl ArchiveError {
    /// The bytes of `part` are wrong.
    #[must_use]
    pub fn corrupt(part: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt { part: part.into(), why: why.into() }
    }

    /// For `map_err`: an I/O error with what was done to which file.
    pub(super) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step, path: path.to_owned(), source }
    }
}

/// For `map_err` over `Buf::try_get_*`: `part` ends too early.
pub(super) fn cut_short(part: &'static str) -> impl Fn(bytes::TryGetError) -> ArchiveError {
    move |error| {
        ArchiveError::corrupt(
            part,
            format!("cut short: {} bytes wanted, {} left", error.requested, error.available),
        )
    }
}

/// Refuses every version but the one this tierd writes.
pub(super) fn check_version(part: &'static str, found: u16) -> Result<(), ArchiveError> {
    match found {
        FORMAT_VERSION => Ok(()),
        0 => Err(ArchiveError::corrupt(part, "format version 0 was never written")),
        _ => Err(ArchiveError::Newer { part, found }),
    }
}
