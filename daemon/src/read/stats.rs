//! Owns what one read cost: requests, bytes, cache hits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::metrics::{CacheCost, ReadCost};

/// Counts what one read costs, shared by the steps that serve it.
#[derive(Debug, Default)]
pub struct ReadStats {
    toc_requests: AtomicU64,
    toc_bytes: AtomicU64,
    toc_hits: AtomicU64,
    chunk_requests: AtomicU64,
    chunk_bytes: AtomicU64,
    chunk_hits: AtomicU64,
    chunk_misses: AtomicU64,
    archives: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadTotals {
    /// Archives that were opened.
    pub archives: u64,
    /// Requests for tables of contents, and the bytes they brought.
    pub toc_requests: u64,
    /// Bytes of tables of contents, as they lie in the store.
    pub toc_bytes: u64,
    /// Tables of contents found in the cache.
    pub toc_hits: u64,
    /// Ranged requests for chunks.
    pub chunk_requests: u64,
    /// Bytes of chunks, as they lie in the store.
    pub chunk_bytes: u64,
    /// Chunks found in the cache.
    pub chunk_hits: u64,
    /// Chunks that the ranged requests brought.
    pub chunk_misses: u64,
}

impl ReadTotals {
    /// Bytes that came from the store.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.toc_bytes + self.chunk_bytes
    }
}

impl From<ReadTotals> for ReadCost {
    fn from(totals: ReadTotals) -> Self {
        let (hits, misses, bytes) = (totals.toc_hits, totals.toc_requests, totals.toc_bytes);
        let toc = CacheCost { hits, misses, bytes };
        let (hits, misses, bytes) = (totals.chunk_hits, totals.chunk_misses, totals.chunk_bytes);
        Self { archives: totals.archives, toc, chunk: CacheCost { hits, misses, bytes } }
    }
}

impl ReadStats {
    pub(crate) fn archive_opened(&self) {
        self.archives.fetch_add(1, Relaxed);
    }

    pub(crate) fn toc_hit(&self) {
        self.toc_hits.fetch_add(1, Relaxed);
    }

    pub(crate) fn toc_request(&self, bytes: u64) {
        self.toc_requests.fetch_add(1, Relaxed);
        self.toc_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn chunk_hits(&self, chunks: u64) {
        self.chunk_hits.fetch_add(chunks, Relaxed);
    }

    pub(crate) fn chunk_request(&self, chunks: u64, bytes: u64) {
        self.chunk_misses.fetch_add(chunks, Relaxed);
        self.chunk_requests.fetch_add(1, Relaxed);
        self.chunk_bytes.fetch_add(bytes, Relaxed);
    }

    /// The counts so far.
    #[must_use]
    pub fn totals(&self) -> ReadTotals {
        ReadTotals {
            archives: self.archives.load(Relaxed),
            toc_requests: self.toc_requests.load(Relaxed),
            toc_bytes: self.toc_bytes.load(Relaxed),
            toc_hits: self.toc_hits.load(Relaxed),
            chunk_requests: self.chunk_requests.load(Relaxed),
            chunk_bytes: self.chunk_bytes.load(Relaxed),
            chunk_hits: self.chunk_hits.load(Relaxed),
            chunk_misses: self.chunk_misses.load(Relaxed),
        }
    }
}
