//! Owns the files of an archive's index as Tantivy sees them: a folder that is
//! read in place, by byte range, through the verified chunks of the archive.
//!
//! Tantivy asks for bytes and waits; it runs on a worker thread, and a chunk that is
//! not at hand is read while that thread waits. So that it seldom waits:
//!
//! - a small index comes whole, in one request: its chunks are neighbours;
//! - of a larger one the end of every file comes first, all at once: that is where
//!   Tantivy begins to read each, and all there is of the short ones.
//!
//! What came stays until the search of this archive ends: its memory is bounded by
//! the length of the index, which is charged before it begins.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    DirectoryLock, FileHandle, Lock, OwnedBytes, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::{Directory, HasLen};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::archive::{Toc, TocFile};
use crate::catalog::ArchiveEntry;
use crate::read::{ArchiveReader, ReadError, ReadStats, WINDOW_BYTES_MAX};

/// Bytes of an index, as it lies, up to which it is read whole: one request.
const WHOLE_BYTES_MAX: u64 = WINDOW_BYTES_MAX;
/// Requests for the ends of files under way at once.
const ENDS_AT_ONCE: usize = 16;
/// The folder of the index in an archive.
const FOLDER: &str = "index/";

/// The index of one archive.
#[derive(Clone)]
pub(super) struct IndexFiles {
    inner: Arc<Inner>,
}

struct Inner {
    reader: ArchiveReader,
    archive: Arc<ArchiveEntry>,
    toc: Arc<Toc>,
    stats: Arc<ReadStats>,
    cancelled: CancellationToken,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: HashMap<usize, Bytes>,
    /// The first error, which Tantivy turns into text on the way up.
    failure: Option<ReadError>,
}

impl fmt::Debug for IndexFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexFiles").field("archive", &self.inner.archive.key()).finish()
    }
}

impl IndexFiles {
    /// Gets what every search of the index of `archive` needs. To be called inside
    /// the runtime that reads.
    pub(super) async fn open(
        reader: &ArchiveReader,
        archive: &Arc<ArchiveEntry>,
        toc: &Arc<Toc>,
        stats: &Arc<ReadStats>,
        cancelled: &CancellationToken,
    ) -> Result<Self, ReadError> {
        let ranges = first_needed(toc);
        let reads = ranges.into_iter().map(|range| async move {
            let chunks = reader.chunks(archive, toc, range.clone(), stats);
            let chunks: Vec<Bytes> = chunks.try_collect().await?;
            Ok::<_, ReadError>(range.zip(chunks).collect::<Vec<_>>())
        });
        // Collected first: the closure above would be asked to outlive itself else.
        let reads: Vec<_> = reads.collect();
        let read: Vec<_> = stream::iter(reads).buffer_unordered(ENDS_AT_ONCE).try_collect().await?;
        let state = State { chunks: read.into_iter().flatten().collect(), failure: None };
        let inner = Inner {
            reader: reader.clone(),
            archive: Arc::clone(archive),
            toc: Arc::clone(toc),
            stats: Arc::clone(stats),
            cancelled: cancelled.clone(),
            runtime: Handle::current(),
            state: Mutex::new(state),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The first error of a read.
    pub(super) fn take_failure(&self) -> Option<ReadError> {
        self.inner.state().failure.take()
    }

    fn file(&self, path: &Path) -> Option<&TocFile> {
        self.inner.toc.file(&format!("{FOLDER}{}", path.to_str()?))
    }
}

/// The chunks to begin with, as ranges.
fn first_needed(toc: &Toc) -> Vec<Range<usize>> {
    let files: Vec<_> = toc.index_files().filter(|file| !file.chunks.is_empty()).collect();
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return Vec::new() };
    // The files of an index follow one another, and so do their chunks.
    let all = first.chunks.start as usize..last.chunks.end as usize;
    if toc.chunks[all.end - 1].end() - toc.chunks[all.start].place <= WHOLE_BYTES_MAX {
        return vec![all];
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for file in files {
        let end = file.chunks.end as usize;
        match ranges.last_mut() {
            Some(range) if range.end == end - 1 => range.end = end,
            _ => ranges.push(end - 1..end),
        }
    }
    ranges
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunk(&self, index: usize) -> io::Result<Bytes> {
        if self.cancelled.is_cancelled() {
            return Err(io::Error::other("the search was given up"));
        }
        if let Some(chunk) = self.state().chunks.get(&index) {
            return Ok(chunk.clone());
        }
        let read = async {
            let chunks =
                self.reader.chunks(&self.archive, &self.toc, index..index + 1, &self.stats);
            let mut chunks = std::pin::pin!(chunks);
            tokio::select! {
                chunk = chunks.next() => chunk,
                () = self.cancelled.cancelled() => None,
            }
        };
        match self.runtime.block_on(read) {
            Some(Ok(chunk)) => {
                self.state().chunks.insert(index, chunk.clone());
                Ok(chunk)
            }
            Some(Err(error)) => {
                let text = error.to_string();
                self.state().failure.get_or_insert(error);
                Err(io::Error::other(text))
            }
            None => Err(io::Error::other("the search was given up")),
        }
    }

    fn read(&self, file: &TocFile, range: Range<usize>) -> io::Result<Vec<u8>> {
        let (from, to) = (range.start as i64, range.end as i64);
        let chunks = self.toc.chunks_of(file);
        let first = chunks.partition_point(|chunk| chunk.last < from);
        let mut bytes = Vec::with_capacity(range.len());
        for (nth, chunk) in chunks.iter().enumerate().skip(first) {
            if chunk.first >= to {
                break;
            }
            let raw = self.chunk(file.chunks.start as usize + nth)?;
            let start = (from.max(chunk.first) - chunk.first) as usize;
            let end = (to.min(chunk.last + 1) - chunk.first) as usize;
            bytes.extend_from_slice(&raw[start..end]);
        }
        if bytes.len() == range.len() {
            Ok(bytes)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// One file of the index.
struct IndexFile {
    inner: Arc<Inner>,
    file: TocFile,
}

impl fmt::Debug for IndexFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexFile").field("name", &self.file.name).finish()
    }
}

impl HasLen for IndexFile {
    fn len(&self) -> usize {
        self.file.raw_len as usize
    }
}

impl FileHandle for IndexFile {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        self.inner.read(&self.file, range).map(OwnedBytes::new)
    }
}

/// What nobody does to an archive.
fn read_only(path: &Path) -> (io::Error, PathBuf) {
    (io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "archives never change"), path.to_owned())
}

impl Directory for IndexFiles {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let file = self.file(path).cloned();
        let file = file.ok_or_else(|| OpenReadError::FileDoesNotExist(path.to_owned()))?;
        Ok(Arc::new(IndexFile { inner: Arc::clone(&self.inner), file }))
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        let (io_error, filepath) = read_only(path);
        Err(DeleteError::IoError { io_error: Arc::new(io_error), filepath })
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        Ok(self.file(path).is_some())
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let (error, path) = read_only(path);
        Err(OpenWriteError::wrap_io_error(error, path))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        let file = self.file(path);
        let file = file.ok_or_else(|| OpenReadError::FileDoesNotExist(path.to_owned()))?;
        let read = self.inner.read(file, 0..file.raw_len as usize);
        read.map_err(|error| OpenReadError::wrap_io_error(error, path.to_owned()))
    }

    fn atomic_write(&self, path: &Path, _: &[u8]) -> io::Result<()> {
        Err(read_only(path).0)
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        // Nobody writes: there is nothing to keep out.
        Ok(DirectoryLock::from(Box::new(())))
    }

    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}
