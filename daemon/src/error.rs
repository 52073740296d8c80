//! Owns the few kinds an error can have, chosen by what the caller should do.
//!
//! Does not own the errors themselves: every room has its own `thiserror` enum
//! with the facts as fields, and says its kind through [`Classify`]. Loops act
//! on the kind, the gRPC surface maps the kind; nobody matches on another
//! room's variants.

use std::fmt;

/// What the one who meets an error should do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The outside is unavailable or busy: try again later, unchanged.
    Retry,
    /// The thing asked for does not exist.
    NotFound,
    /// The request, configuration or input is wrong: change it.
    Invalid,
    /// Stored bytes are not what was written: quarantine, tell the operator.
    Corrupt,
    /// Another writer is ahead: stop writing, reload.
    Fenced,
    /// A limit of this process or machine is reached: wait or raise it.
    Exhausted,
    /// A defect of tierd: report it.
    Internal,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retry => "unavailable",
            Self::NotFound => "not found",
            Self::Invalid => "invalid",
            Self::Corrupt => "corrupt",
            Self::Fenced => "fenced",
            Self::Exhausted => "exhausted",
            Self::Internal => "internal",
        })
    }
}

/// Says of an error which reaction it calls for.
pub trait Classify {
    /// The kind of this error.
    fn kind(&self) -> ErrorKind;
}

/// The kind of an I/O error of the local file system.
pub fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory => ErrorKind::Exhausted,
        Io::PermissionDenied | Io::InvalidInput | Io::ReadOnlyFilesystem | Io::NotADirectory => {
            ErrorKind::Invalid
        }
        Io::InvalidData | Io::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::Retry,
    }
}
