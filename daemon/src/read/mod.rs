//! Owns reading archives by range: tables of contents, chunks, their caches and
//! the budget of bytes in flight.
//!
//! Does not know what is asked for or why: callers name an archive and a range of
//! its chunks. Every chunk handed out was verified against its digest first, so a
//! caller never sees a byte that differs from what was archived.
//!
//! ```text
//!  ArchiveEntry --toc()--> Toc --chunks(range)--> windows of neighbouring chunks
//!                |                                 | one ranged request each
//!                v                                 v
//!            TOC cache                     verify, inflate, chunk cache
//! ```

mod quarantine;
mod stats;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::archive::{ArchiveError, BatchList, Chunk, KeyFilter, Toc};
use crate::catalog::ArchiveEntry;
use crate::error::{Classify, ErrorKind};
use crate::store::{Store, StoreError};

pub use quarantine::Quarantine;
pub use stats::{ReadStats, ReadTotals};

/// Bytes one ranged request asks for at most, unless one chunk alone is larger:
/// enough to keep a connection busy, little enough to hand out the first batch soon.
pub const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// Bytes one request brings at most once inflated, unless one chunk alone is
/// larger. Logs of JSON stay below it; what deflates a hundred times would be
/// hundreds of megabytes in one window.
pub const WINDOW_RAW_BYTES_MAX: u64 = 16 << 20;
/// Bytes between two chunks that one request brings along to get both: the tar
/// header and padding between two files of an archive.
const SKIPPED_BYTES_MAX: u64 = 2 << 10;
/// Windows of one reader under way at once: the next is on its way while the
/// consumer works on this one.
const WINDOWS_AHEAD: usize = 2;
/// Bytes of all readers together that are requested and not yet handed out.
const IN_FLIGHT_BYTES_MAX: usize = 128 << 20;
/// Unit of the in-flight budget: a semaphore counts in `u32`.
const PERMIT_BYTES: usize = 1 << 10;
/// Least memory charged for a cached object, for its key and bookkeeping.
const CACHE_ENTRY_BYTES: u64 = 128;

/// Sizes of the caches.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Bytes of decoded tables of contents kept in memory. One costs about 64
    /// bytes per 256 KiB of archive; a miss costs one request per archive read.
    pub toc_cache_bytes: u64,
    /// Bytes of verified, inflated chunks kept in memory.
    pub chunk_cache_bytes: u64,
    /// Bytes of key filters kept in memory: about 1.7 for each distinct key of an
    /// archive. A miss costs a search for a key one request per archive.
    pub key_filter_cache_bytes: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            toc_cache_bytes: 32 << 20,
            chunk_cache_bytes: 64 << 20,
            key_filter_cache_bytes: 64 << 20,
        }
    }
}

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store did not give the bytes.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are not those that were archived.
    #[error(
        "archive {object}: {source}; the range is quarantined, run `tierd verify --deep` on it"
    )]
    Archive {
        /// Name of the object.
        object: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// A worker thread died, which is a defect.
    #[error("a read of archive {object} did not finish: {why}")]
    Worker {
        /// Name of the object.
        object: String,
        /// What the runtime says.
        why: String,
    },
}

impl Classify for ReadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(source) => source.kind(),
            Self::Archive { source, .. } => source.kind(),
            Self::Worker { .. } => ErrorKind::Internal,
        }
    }
}

/// Which chunk of which archive: archives are named by the digest of their bytes.
type ChunkKey = ([u8; 32], u32);

#[derive(Clone, Debug)]
struct TocWeight;
impl Weighter<[u8; 32], Arc<Toc>> for TocWeight {
    fn weight(&self, _: &[u8; 32], toc: &Arc<Toc>) -> u64 {
        CACHE_ENTRY_BYTES + (toc.chunks.len() * size_of::<Chunk>()) as u64
    }
}

#[derive(Clone, Debug)]
struct FilterWeight;
impl Weighter<[u8; 32], Arc<KeyFilter>> for FilterWeight {
    fn weight(&self, _: &[u8; 32], filter: &Arc<KeyFilter>) -> u64 {
        CACHE_ENTRY_BYTES + filter.bytes()
    }
}

#[derive(Clone, Debug)]
struct ChunkWeight;
impl Weighter<ChunkKey, Bytes> for ChunkWeight {
    fn weight(&self, _: &ChunkKey, raw: &Bytes) -> u64 {
        CACHE_ENTRY_BYTES + raw.len() as u64
    }
}

/// Reads archives by range. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ArchiveReader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    tocs: Cache<[u8; 32], Arc<Toc>, TocWeight>,
    chunks: Cache<ChunkKey, Bytes, ChunkWeight>,
    filters: Cache<[u8; 32], Arc<KeyFilter>, FilterWeight>,
    in_flight: Arc<Semaphore>,
    quarantine: Quarantine,
}

/// Neighbouring chunks that one request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Indices into [`Toc::chunks`].
    pub chunks: Range<usize>,
    /// Bytes of the object.
    pub place: Range<u64>,
}

impl ArchiveReader {
    /// A reader over `store` with empty caches.
    #[must_use]
    pub fn new(store: Store, options: ReadOptions) -> Self {
        let items =
            |bytes: u64, each: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX).max(8);
        let inner = Inner {
            store,
            tocs: Cache::with_weighter(
                items(options.toc_cache_bytes, 4 << 10),
                options.toc_cache_bytes,
                TocWeight,
            ),
            chunks: Cache::with_weighter(
                items(options.chunk_cache_bytes, 256 << 10),
                options.chunk_cache_bytes,
                ChunkWeight,
            ),
            filters: Cache::with_weighter(
                items(options.key_filter_cache_bytes, 4 << 10),
                options.key_filter_cache_bytes,
                FilterWeight,
            ),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX / PERMIT_BYTES)),
            quarantine: Quarantine::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Which archives are known to be damaged.
    #[must_use]
    pub fn quarantine(&self) -> &Quarantine {
        &self.inner.quarantine
    }

    /// What is said of bytes of `entry` that are not those that were archived.
    fn damaged(&self, entry: &ArchiveEntry, source: ArchiveError) -> ReadError {
        if source.kind() == ErrorKind::Corrupt {
            self.inner.quarantine.put(entry, &source.to_string());
        }
        ReadError::Archive { object: entry.key().to_string(), source }
    }

    /// Whether the table of contents of `entry` is at hand without a request.
    #[must_use]
    pub fn has_toc(&self, entry: &ArchiveEntry) -> bool {
        self.inner.tocs.peek(&entry.summary.digest).is_some()
    }

    /// Whether a chunk of `entry` is at hand without a request.
    #[must_use]
    pub fn has_chunk(&self, entry: &ArchiveEntry, chunk: usize) -> bool {
        self.inner.chunks.peek(&chunk_key(entry, chunk)).is_some()
    }

    /// The table of contents of `entry`: from the cache, or by one request for
    /// exactly its bytes, whose digest the manifest pins.
    ///
    /// # Errors
    /// When the store fails, or the bytes are not those the manifest pins.
    pub async fn toc(
        &self,
        entry: &ArchiveEntry,
        stats: &ReadStats,
    ) -> Result<Arc<Toc>, ReadError> {
        let found = self.inner.tocs.get_value_or_guard_async(&entry.summary.digest).await;
        let guard = match found {
            Ok(toc) => {
                stats.toc_hit();
                return Ok(toc);
            }
            Err(guard) => guard,
        };
        let place = entry.summary.toc;
        let key = entry.key();
        let range = place.offset..place.offset + u64::from(place.length);
        let span = tracing::debug_span!("toc", object = %key);
        let packed = self.inner.store.get_range(&key, range).instrument(span).await?;
        stats.toc_request(packed.len() as u64);
        let toc = Toc::decode(&packed, &place).map_err(|source| self.damaged(entry, source))?;
        let toc = Arc::new(toc);
        // A guard that fails to insert lost to an eviction; the value is still right.
        let _ = guard.insert(Arc::clone(&toc));
        Ok(toc)
    }

    /// The chunks `wanted` of `entry`, in order, verified and inflated.
    /// Neighbours that are not cached come by one request of at most
    /// [`WINDOW_BYTES_MAX`] and [`WINDOW_RAW_BYTES_MAX`]; the next request is under way while one is consumed.
    /// A damaged chunk is an error in its place, behind those before it.
    pub fn chunks<'a>(
        &'a self,
        entry: &'a ArchiveEntry,
        toc: &'a Arc<Toc>,
        wanted: Range<usize>,
        stats: &'a ReadStats,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'a {
        let windows = self.windows(entry, toc, wanted);
        stream::iter(windows)
            .map(move |window| self.window(entry, toc, window, stats))
            .buffered(WINDOWS_AHEAD)
            .map_ok(stream::iter)
            .try_flatten()
    }

    /// How `wanted` would be requested: cached chunks split the windows.
    #[must_use]
    pub fn windows(&self, entry: &ArchiveEntry, toc: &Toc, wanted: Range<usize>) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        let mut last_cached = None;
        let mut raw = 0;
        for index in wanted {
            let chunk = &toc.chunks[index];
            let end = chunk.end();
            let cached = self.has_chunk(entry, index);
            raw += u64::from(chunk.raw);
            match windows.last_mut() {
                Some(window)
                    if last_cached == Some(cached)
                        && chunk.place - window.place.end <= SKIPPED_BYTES_MAX
                        && end - window.place.start <= WINDOW_BYTES_MAX
                        && raw <= WINDOW_RAW_BYTES_MAX =>
                {
                    window.chunks.end = index + 1;
                    window.place.end = end;
                }
                _ => {
                    raw = u64::from(chunk.raw);
                    windows.push(Window { chunks: index..index + 1, place: chunk.place..end });
                }
            }
            last_cached = Some(cached);
        }
        windows
    }

    async fn window(
        &self,
        entry: &ArchiveEntry,
        toc: &Arc<Toc>,
        window: Window,
        stats: &ReadStats,
    ) -> Result<Vec<Result<Bytes, ReadError>>, ReadError> {
        let cached: Option<Vec<Bytes>> =
            window.chunks.clone().map(|i| self.inner.chunks.get(&chunk_key(entry, i))).collect();
        if let Some(chunks) = cached {
            stats.chunk_hits(chunks.len() as u64);
            return Ok(chunks.into_iter().map(Ok).collect());
        }
        let key = entry.key();
        let length = window.place.end - window.place.start;
        let permits = (length as usize).min(IN_FLIGHT_BYTES_MAX).div_ceil(PERMIT_BYTES) as u32;
        let budget = Arc::clone(&self.inner.in_flight);
        let Ok(_permit) = budget.acquire_many_owned(permits).await else {
            unreachable!("the budget is never closed");
        };
        let span = tracing::debug_span!("window", object = %key, chunks = ?window.chunks);
        let packed =
            self.inner.store.get_range(&key, window.place.clone()).instrument(span).await?;
        stats.chunk_request(window.chunks.len() as u64, packed.len() as u64);

        let (inner, toc, digest) = (Arc::clone(&self.inner), Arc::clone(toc), entry.summary.digest);
        let several = window.chunks.len() > 1;
        // Hashing and inflating take milliseconds: not on the threads that serve.
        let unpack = move || {
            window
                .chunks
                .map(|index| {
                    let chunk = &toc.chunks[index];
                    let start = (chunk.place - window.place.start) as usize;
                    let raw = chunk.unpack(packed.slice(start..start + chunk.packed as usize))?;
                    let raw = if several { own(raw, &packed) } else { raw };
                    inner.chunks.insert((digest, index as u32), raw.clone());
                    Ok(raw)
                })
                .collect::<Vec<Result<Bytes, ArchiveError>>>()
        };
        let chunks = tokio::task::spawn_blocking(unpack)
            .await
            .map_err(|died| ReadError::Worker { object: key.to_string(), why: died.to_string() })?;
        let told = |chunk: Result<_, _>| chunk.map_err(|source| self.damaged(entry, source));
        Ok(chunks.into_iter().map(told).collect())
    }

    /// Whether a key filter at hand rules out that `entry` holds records with `key`:
    /// without a request, so that a search passes over thousands of archives at once.
    #[must_use]
    pub fn surely_lacks_key(&self, entry: &ArchiveEntry, key: &[u8]) -> bool {
        let filter = self.inner.filters.get(&entry.summary.digest);
        filter.is_some_and(|filter| !filter.may_hold(key))
    }

    /// Whether `entry` may hold records with `key`: a no is certain, out of the
    /// archive's key filter, which takes a request unless it is at hand. An archive
    /// without one may.
    ///
    /// # Errors
    /// As [`Self::toc`], or when the filter cannot be read.
    pub async fn may_hold_key(
        &self,
        entry: &ArchiveEntry,
        key: &[u8],
        stats: &ReadStats,
    ) -> Result<bool, ReadError> {
        let digest = &entry.summary.digest;
        if let Some(filter) = self.inner.filters.get(digest) {
            return Ok(filter.may_hold(key));
        }
        let toc = self.toc(entry, stats).await?;
        let Some(file) = toc.keys() else { return Ok(true) };
        let range = file.chunks.start as usize..file.chunks.end as usize;
        let chunks: Vec<Bytes> = self.chunks(entry, &toc, range, stats).try_collect().await?;
        let filter = KeyFilter::decode(chunks.concat().into())
            .map_err(|source| self.damaged(entry, source))?;
        let filter = Arc::new(filter);
        self.inner.filters.insert(*digest, Arc::clone(&filter));
        Ok(filter.may_hold(key))
    }

    /// The list of every batch in `entry`, the proof of what it commits.
    ///
    /// # Errors
    /// As [`Self::toc`], or when the archive has no readable list.
    pub async fn batch_list(
        &self,
        entry: &ArchiveEntry,
        stats: &ReadStats,
    ) -> Result<BatchList, ReadError> {
        let toc = self.toc(entry, stats).await?;
        let broken = |source| self.damaged(entry, source);
        let file = toc.batches().map_err(broken)?;
        let range = file.chunks.start as usize..file.chunks.end as usize;
        let chunks: Vec<Bytes> = self.chunks(entry, &toc, range, stats).try_collect().await?;
        BatchList::decode(chunks.concat().into()).map_err(broken)
    }
}

/// `raw` by itself where it is a part of `packed`: a cached chunk that was stored
/// would else hold the memory of its whole window, of which the cache knows nothing.
fn own(raw: Bytes, packed: &Bytes) -> Bytes {
    let whole = packed.as_ptr_range();
    if whole.contains(&raw.as_ptr()) { Bytes::copy_from_slice(&raw) } else { raw }
}

fn chunk_key(entry: &ArchiveEntry, chunk: usize) -> ChunkKey {
    (entry.summary.digest, chunk as u32)
}

#[cfg(test)]
mod tests;
