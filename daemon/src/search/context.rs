//! Owns what all steps of one search share: what is asked, the rooms, what was
//! counted and noted so far, the budget of memory, whether anyone still waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::SearchError;
use super::query::Asked;
use super::types::{ArchiveCounts, Note, NoteKind, SearchRequest};
use crate::archive::ArchiveError;
use crate::catalog::{ArchiveEntry, Snapshots};
use crate::read::{ArchiveReader, ReadStats};
use crate::record::{OffsetRange, TopicPartition};

/// Bytes that the searches of a process hold of indexes and logs at once.
const MEMORY_BYTES: u64 = 256 << 20;
/// Unit of the budget: a semaphore counts in `u32`.
const PERMIT_BYTES: u64 = 1 << 10;
/// Bytes charged for an archive besides its index: windows of its log, hits.
const BESIDES_BYTES: u64 = 4 << 20;
/// Most notes of one kind in one answer: a store that is gone makes one an archive.
const NOTES_MAX: usize = 1_000;

/// Memory shared by the searches of a process.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new((MEMORY_BYTES / PERMIT_BYTES) as usize)))
    }

    /// Waits until an archive may be searched whose index has `index_bytes`.
    async fn charge(&self, index_bytes: u64) -> OwnedSemaphorePermit {
        // Once as chunks, once as what Tantivy made of them.
        let wanted = index_bytes.saturating_mul(2).saturating_add(BESIDES_BYTES);
        let permits = (wanted.min(MEMORY_BYTES) / PERMIT_BYTES) as u32;
        let Ok(permit) = Arc::clone(&self.0).acquire_many_owned(permits).await else {
            unreachable!("the budget is never closed");
        };
        permit
    }
}

/// What one search works with.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) request: SearchRequest,
    /// Its query, understood.
    pub(super) asked: Option<Asked>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) reader: ArchiveReader,
    pub(super) stats: Arc<ReadStats>,
    /// Cancelled when the search ends, however it ends.
    pub(super) cancelled: CancellationToken,
    pub(super) memory: Memory,
    pub(super) tally: Mutex<Tally>,
}

/// What was counted and noted so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) archives: ArchiveCounts,
    /// Not told yet.
    notes: Vec<Note>,
    noted: usize,
    lacks: bool,
}

impl Context {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut ArchiveCounts)) {
        count(&mut self.tally().archives);
    }

    pub(super) fn counts(&self) -> ArchiveCounts {
        self.tally().archives
    }

    /// Whether hits may be missing.
    pub(super) fn lacks(&self) -> bool {
        self.tally().lacks
    }

    pub(super) fn note(&self, note: Note) {
        let mut tally = self.tally();
        tally.lacks |= note.kind.is_lack();
        tally.noted += 1;
        if tally.noted <= NOTES_MAX {
            tally.notes.push(note);
        }
    }

    pub(super) fn note_archive(&self, kind: NoteKind, archive: &ArchiveEntry, message: String) {
        self.note(Note {
            kind,
            tp: archive.of().tp.clone(),
            range: Some(archive.summary.range),
            object: Some(archive.key().to_string()),
            message,
        });
    }

    pub(super) fn note_partition(
        &self,
        kind: NoteKind,
        tp: &TopicPartition,
        range: Option<OffsetRange>,
        message: String,
    ) {
        self.note(Note { kind, tp: tp.clone(), range, object: None, message });
    }

    /// The notes that were not told yet.
    pub(super) fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.tally().notes)
    }

    pub(super) async fn charge(&self, index_bytes: u64) -> OwnedSemaphorePermit {
        self.memory.charge(index_bytes).await
    }

    pub(super) fn died(&self, archive: &ArchiveEntry, died: &impl ToString) -> SearchError {
        SearchError::Worker { object: archive.key().to_string(), why: died.to_string() }
    }

    pub(super) fn broken(&self, archive: &ArchiveEntry, source: ArchiveError) -> SearchError {
        SearchError::Archive { object: archive.key().to_string(), source }
    }
}
