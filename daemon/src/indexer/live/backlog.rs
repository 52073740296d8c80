//! Owns telling what of a partition is not archived and why: from the listing, and
//! from what its last step found. Reads nothing.

use super::work::{Partition, Standing, Work};
use crate::error::{Classify, ErrorKind};
use crate::indexer::IndexError;
use crate::metrics::{Backlog, Stall};
use crate::task::Leave;
use crate::wal::classify::Class;

/// How the last step of a partition left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standstill {
    /// First offset that is not archived, once the catalog was asked.
    pub(super) through: Option<i64>,
    /// What keeps it from going on, until the next step.
    pub(super) stall: Option<Stall>,
    pub(super) quarantined: bool,
}

impl Standstill {
    pub(super) fn failed(&mut self, error: &IndexError, leave: Leave) {
        self.stall = Some(why(error));
        self.quarantined = matches!(leave, Leave::Quarantined(_));
    }

    pub(super) fn stalled(&mut self, stall: Option<Stall>) {
        (self.stall, self.quarantined) = (stall, false);
    }
}

/// The reason an operator looks for.
fn why(error: &IndexError) -> Stall {
    match (error, error.kind()) {
        (IndexError::Scratch { .. }, _) => Stall::Scratch,
        (_, ErrorKind::Corrupt) => Stall::Corrupt,
        (IndexError::Wal(_), _) => Stall::Wal,
        // Archives are built in scratch.
        (IndexError::Archive(_), ErrorKind::Retry | ErrorKind::NotFound | ErrorKind::Exhausted) => {
            Stall::Scratch
        }
        (IndexError::Outrun, _) | (_, ErrorKind::Fenced) => Stall::Outrun,
        (IndexError::Archive(_) | IndexError::Worker(_), _) | (_, ErrorKind::Internal) => {
            Stall::Defect
        }
        (_, ErrorKind::Invalid) => Stall::Refused,
        _ => Stall::Store,
    }
}

impl Partition {
    /// What is not archived of it, given its segments as they stand, what is
    /// remembered of its steps, and where the log ends as the broker says.
    pub(super) fn backlog<'a>(
        &self,
        standing: impl Iterator<Item = Standing<'a>>,
        work: &Work,
        log_end: Option<i64>,
    ) -> Backlog {
        let Standstill { through, stall, quarantined } = work.standstill;
        let archived_through = through.unwrap_or(0);
        let mut backlog = Backlog { archived_through, stall, quarantined, ..Backlog::default() };
        let mut end = archived_through.max(log_end.unwrap_or(0));
        let mut any_ready = false;
        for Standing { seen, class, ready } in standing {
            backlog.segments[match class {
                Class::Closed => 0,
                Class::Rotated => 1,
                Class::Provisional => 2,
            }] += 1;
            let left = work.memory.left(&seen.file);
            if left.bytes == 0 || work.left.contains(&seen.file.id) {
                continue;
            }
            backlog.bytes += left.bytes;
            end = end.max(left.end.unwrap_or(end));
            any_ready |= ready;
            let written = seen.file.modified_ms;
            backlog.oldest_ms = Some(backlog.oldest_ms.map_or(written, |at| at.min(written)));
        }
        backlog.offsets = through.map_or(0, |through| end.abs_diff(through));
        if backlog.bytes > 0 && !any_ready && backlog.stall.is_none() {
            backlog.stall = Some(Stall::NotClosed);
        }
        backlog
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::archive::ArchiveError;
    use crate::store::StoreError;

    fn archive(kind: io::ErrorKind) -> IndexError {
        let (step, path) = ("write", "/scratch/a".into());
        ArchiveError::Io { step, path, source: io::Error::from(kind) }.into()
    }

    #[test]
    fn every_failure_is_told_as_what_an_operator_looks_for() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let gone = StoreError::NotFound { path: "a".to_owned(), store: "s3://b".to_owned() };
        let missing = StoreError::NoBucket { store: "s3://b".to_owned() };
        for (error, expected) in [
            (IndexError::Scratch { path: "/s".into(), source: full }, Stall::Scratch),
            (archive(io::ErrorKind::StorageFull), Stall::Scratch),
            (archive(io::ErrorKind::TimedOut), Stall::Scratch),
            (archive(io::ErrorKind::InvalidData), Stall::Corrupt),
            (ArchiveError::Empty.into(), Stall::Defect),
            (gone.into(), Stall::Store),
            (missing.into(), Stall::Refused),
            (IndexError::Outrun, Stall::Outrun),
            (IndexError::Worker("died".to_owned()), Stall::Defect),
        ] {
            assert_eq!(why(&error), expected, "{error}");
        }
    }
}
