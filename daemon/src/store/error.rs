//! Owns what can go wrong with a store, told as outcomes with the object's
//! name, and the one place that reads the errors of the library below.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Classify, ErrorKind, io_kind};

use super::answer::{Answer, Verdict};
use super::counters::Op;
use super::keys::ObjectKey;
use super::url::UNDERSTOOD;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failed request to the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no store this version understands.
    #[error("store URL {url:?} is not understood: {why}; use {UNDERSTOOD}")]
    Url {
        /// What was given.
        url: String,
        /// Why it is not understood.
        why: String,
    },
    /// The settings of a remote store do not fit together.
    #[error(
        "the store {store} cannot be used: {why}; check the {variables}* environment variables"
    )]
    Settings {
        /// The store.
        store: String,
        /// What is wrong.
        why: String,
        /// How the variables' names begin.
        variables: &'static str,
    },
    /// The store has no such bucket or container.
    #[error(
        "the store {store} is not there: its bucket or container does not exist; check the URL, or create it"
    )]
    NoBucket {
        /// The store.
        store: String,
    },
    /// The directory of a `file://` store is not there or not a directory.
    #[error("store directory {} cannot be opened: {source}; check the path, or create it with mkdir", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// No object has this name.
    #[error("{path} is not in the store {store}")]
    NotFound {
        /// The object.
        path: String,
        /// The store.
        store: String,
    },
    /// The store refuses this to us.
    #[error(
        "cannot {op} {path} in the store {store}: {source}; check permissions, credentials and mount options"
    )]
    Denied {
        /// The request.
        op: Op,
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// What the store says.
        source: Source,
    },
    /// No room is left.
    #[error("cannot {op} {path} in the store {store}: {source}; free some space")]
    Full {
        /// The request.
        op: Op,
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// What the store says.
        source: Source,
    },
    /// The request failed, several times where it may be repeated.
    #[error(
        "cannot {op} {path} in the store {store}: {source}; tried {attempts} times, will work again when the store does"
    )]
    Unavailable {
        /// The request.
        op: Op,
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// Attempts made.
        attempts: u32,
        /// What the store says.
        source: Source,
    },
    /// Reading an object stopped half-way.
    #[error("reading {path} stopped half-way: {why}; try again")]
    Interrupted {
        /// The object.
        path: String,
        /// What happened.
        why: String,
    },
    /// No answer came in time. Whether the request took effect is not known.
    #[error(
        "cannot {op} {path} in the store {store}: no answer within {after:?}, {attempts} times"
    )]
    Timeout {
        /// The request.
        op: Op,
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// Attempts made.
        attempts: u32,
        /// How long was waited.
        after: Duration,
    },
    /// An object does not have the length it should have.
    #[error(
        "{path} in the store {store} has {found} bytes where {expected} were expected; the object is damaged, run tierd verify"
    )]
    Length {
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// Bytes that should be there.
        expected: u64,
        /// Bytes that are.
        found: u64,
    },
    /// An object is larger than anything of its sort can be.
    #[error(
        "{path} in the store {store} has {found} bytes where at most {max} are possible; the object is damaged, run tierd verify"
    )]
    TooLarge {
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// The most it may have.
        max: u64,
        /// What it has.
        found: u64,
    },
    /// The store overwrites where it was asked to create only.
    #[error(
        "the store {store} overwrites objects it was asked to only create: two writers would destroy each other's work; use another store"
    )]
    NotCreateOnly {
        /// The store.
        store: String,
    },
    /// The local file to upload cannot be read.
    #[error("cannot read {} to upload it: {source}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The library below does not support what we ask, or a task of it died.
    #[error(
        "cannot {op} {path} in the store {store}: {source}; this is a defect, please report it"
    )]
    Defect {
        /// The request.
        op: Op,
        /// The object.
        path: String,
        /// The store.
        store: String,
        /// What the library says.
        source: Source,
    },
}

impl StoreError {
    /// That reading an object stopped half-way for a reason told elsewhere.
    #[must_use]
    pub fn interrupted(key: &ObjectKey, why: String) -> Self {
        Self::Interrupted { path: key.to_string(), why }
    }
}

impl Classify for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. }
            | Self::Settings { .. }
            | Self::NoBucket { .. }
            | Self::Directory { .. }
            | Self::Denied { .. }
            | Self::NotCreateOnly { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Unavailable { .. } | Self::Interrupted { .. } | Self::Timeout { .. } => {
                ErrorKind::Retry
            }
            Self::Length { .. } | Self::TooLarge { .. } => ErrorKind::Corrupt,
            Self::Source { source, .. } => io_kind(source),
            Self::Defect { .. } => ErrorKind::Internal,
        }
    }
}

/// One failed attempt, before it is known whether another one follows.
#[derive(Debug)]
pub(super) enum Attempt {
    /// There is no such object.
    NotFound,
    /// There is no such bucket.
    NoBucket,
    /// There is one already.
    Exists,
    /// The store says no, and will again.
    Denied(Source),
    /// No room.
    Full(Source),
    /// May work next time.
    Failed(Source),
    /// The range lies behind the object's end.
    OutOfRange(Source),
    /// No answer.
    Timeout(Duration),
    /// The object is shorter than it should be.
    Short { expected: u64, found: u64 },
    /// More bytes than may be.
    TooLarge { max: u64, found: u64 },
    /// Not supported by the library.
    Defect(Source),
}

impl Attempt {
    /// An attempt that the operating system failed.
    pub(super) fn from_io(error: io::Error) -> Self {
        match (error.kind(), io_kind(&error)) {
            (io::ErrorKind::NotFound, _) => Self::NotFound,
            (_, ErrorKind::Exhausted) => Self::Full(error.into()),
            (_, ErrorKind::Invalid) => Self::Denied(error.into()),
            _ => Self::Failed(error.into()),
        }
    }

    /// Whether the same request may do better.
    pub(super) fn may_repeat(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Timeout(_))
    }

    /// The error to tell, after `attempts` of them.
    pub(super) fn into_error(self, store: &str, op: Op, path: &str, attempts: u32) -> StoreError {
        let (store, path) = (store.to_owned(), path.to_owned());
        match self {
            Self::NotFound => StoreError::NotFound { path, store },
            Self::NoBucket => StoreError::NoBucket { store },
            Self::Exists => {
                let source = "it exists already".into();
                StoreError::Defect { op, path, store, source }
            }
            Self::Denied(source) => StoreError::Denied { op, path, store, source },
            Self::Full(source) => StoreError::Full { op, path, store, source },
            Self::Failed(source) | Self::OutOfRange(source) => {
                StoreError::Unavailable { op, path, store, attempts, source }
            }
            Self::Timeout(after) => StoreError::Timeout { op, path, store, attempts, after },
            Self::Short { expected, found } => StoreError::Length { path, store, expected, found },
            Self::TooLarge { max, found } => StoreError::TooLarge { path, store, max, found },
            Self::Defect(source) => StoreError::Defect { op, path, store, source },
        }
    }
}

impl From<object_store::Error> for Attempt {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as Below;
        match error {
            Below::NotFound { source, .. } => match Answer::read(&*source) {
                Some(answer) if answer.verdict() == Verdict::NoBucket => Self::NoBucket,
                _ => Self::NotFound,
            },
            // 412 and 409 both mean "something may be there": only reading tells.
            Below::AlreadyExists { .. } | Below::Precondition { .. } => Self::Exists,
            Below::PermissionDenied { source, .. } | Below::Unauthenticated { source, .. } => {
                match Answer::read(&*source) {
                    Some(answer) => Self::Denied(answer.line.into()),
                    None => Self::Denied(source),
                }
            }
            Below::Generic { source, .. } => match Answer::read(&*source) {
                Some(answer) => Self::from(answer),
                None => match io_error(&*source).map(io_kind) {
                    Some(ErrorKind::Exhausted) => Self::Full(plain(source)),
                    Some(ErrorKind::Invalid) => Self::Denied(plain(source)),
                    _ => Self::Failed(source),
                },
            },
            Below::NotSupported { .. }
            | Below::NotImplemented { .. }
            | Below::InvalidPath { .. }
            | Below::UnknownConfigurationKey { .. } => Self::Defect(Box::new(error)),
            other => Self::Failed(Box::new(other)),
        }
    }
}

impl From<Answer> for Attempt {
    fn from(answer: Answer) -> Self {
        match answer.verdict() {
            Verdict::NoBucket => Self::NoBucket,
            Verdict::Again => Self::Failed(answer.line.into()),
            Verdict::OutOfRange => Self::OutOfRange(answer.line.into()),
            Verdict::Never => Self::Denied(answer.line.into()),
        }
    }
}

/// The error of the operating system at the bottom of a chain, if there is one.
fn io_error<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    loop {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        error = error.source()?;
    }
}

/// What the operating system says, without the library's words around it.
fn plain(source: Source) -> Source {
    match io_error(&*source) {
        Some(error) => error.to_string().into(),
        None => source,
    }
}
