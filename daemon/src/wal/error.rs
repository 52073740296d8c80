//! Owns why a WAL directory or a segment cannot be read.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Classify, ErrorKind, io_kind};

/// Why the WAL cannot be read. Damage inside a segment is no error: see
/// [`Damage`](super::Damage).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// There is nothing where the WAL should be.
    #[error(
        "WAL directory {} does not exist; give the folder that holds the broker's topic \
         folders, which for Chronik is \"wal\" inside its data directory", path.display()
    )]
    RootMissing {
        /// The path given.
        path: PathBuf,
    },
    /// A file lies where the WAL directory should be.
    #[error("WAL directory {} is not a directory; give the folder, not a file in it", path.display())]
    RootNotDirectory {
        /// The path given.
        path: PathBuf,
    },
    /// A file that is no segment by its place and name.
    #[error("{} is not a segment: {why}", path.display())]
    NotASegment {
        /// The path given.
        path: PathBuf,
        /// The rule it breaks.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The broker truncated, replaced or rewrote a segment under the reader.
    #[error(
        "segment {} changed while it was read: {what}; nothing of the changed part is used, \
         scan the segment again to take what it holds now", path.display()
    )]
    Changed {
        /// The segment.
        path: PathBuf,
        /// What is not as it was.
        what: String,
    },
}

impl WalError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the broker changed or removed the file meanwhile: what was listed is
    /// out of date, and listing again says what is there now.
    #[must_use]
    pub fn is_change(&self) -> bool {
        match self {
            Self::Changed { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// The error of a failed read: an early end means that the file shrank.
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            Self::Changed { path: path.to_owned(), what: "it became shorter".to_owned() }
        } else {
            Self::io("read", path, source)
        }
    }
}

impl Classify for WalError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::RootMissing { .. } | Self::RootNotDirectory { .. } | Self::NotASegment { .. } => {
                ErrorKind::Invalid
            }
            Self::Io { source, .. } => io_kind(source),
            Self::Changed { .. } => ErrorKind::Retry,
        }
    }
}
