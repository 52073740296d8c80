//! Owns the numbers a broker exports about its phase 3 reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::ArchiveError;
use crate::types::Outcome;

/// Counted since the client was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    fallbacks: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    errors: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
}

/// A reading of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterValues {
    /// Calls of `fetch`: reads that fell back to the archive. Each ends as one
    /// hit, miss or error; the difference is under way, or was dropped.
    pub fallbacks: u64,
    /// Calls that brought batches.
    pub hits: u64,
    /// Calls for what the archive does not hold, or not within their bound.
    pub misses: u64,
    /// Calls that ended in any other error.
    pub errors: u64,
    /// Attempts after a first that failed, of any call.
    pub retries: u64,
    /// Bytes of batches handed out, by streams too.
    pub bytes: u64,
}

impl CounterValues {
    /// The counters with the names to export them under.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("tierd_client_fallbacks_total", self.fallbacks),
            ("tierd_client_hits_total", self.hits),
            ("tierd_client_misses_total", self.misses),
            ("tierd_client_errors_total", self.errors),
            ("tierd_client_retries_total", self.retries),
            ("tierd_client_bytes_total", self.bytes),
        ]
    }
}

impl Counters {
    pub(crate) fn fallback(&self) {
        add(&self.fallbacks, 1);
    }

    pub(crate) fn retry(&self) {
        add(&self.retries, 1);
    }

    pub(crate) fn handed_out(&self, bytes: usize) {
        add(&self.bytes, bytes as u64);
    }

    pub(crate) fn ended(&self, result: &Result<Outcome, ArchiveError>) {
        match result {
            Ok(outcome) if outcome.is_hit() => {
                add(&self.hits, 1);
                self.handed_out(outcome.batches.len());
            }
            Ok(_) => add(&self.misses, 1),
            Err(error) if error.is_miss() => add(&self.misses, 1),
            Err(_) => add(&self.errors, 1),
        }
    }

    pub(crate) fn values(&self) -> CounterValues {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterValues {
            fallbacks: read(&self.fallbacks),
            hits: read(&self.hits),
            misses: read(&self.misses),
            errors: read(&self.errors),
            retries: read(&self.retries),
            bytes: read(&self.bytes),
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
