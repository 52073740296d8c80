//! Owns the count of requests a store was sent, for metrics and for tests that
//! hold us to how few they should be.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A sort of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Writing an object whole.
    Put,
    /// Writing one part of a large object.
    PutPart,
    /// Writing an object only where there is none.
    Create,
    /// Reading an object whole.
    Get,
    /// Reading part of an object.
    GetRange,
    /// Asking for an object's length.
    Head,
    /// Listing names.
    List,
    /// Copying an object inside the store.
    Copy,
    /// Deleting an object.
    Delete,
}

impl Op {
    /// Every sort, in the order of the declaration.
    pub const ALL: [Self; 9] = [
        Self::Put,
        Self::PutPart,
        Self::Create,
        Self::Get,
        Self::GetRange,
        Self::Head,
        Self::List,
        Self::Copy,
        Self::Delete,
    ];

    /// One word, as metrics and messages use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::PutPart => "put_part",
            Self::Create => "create",
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Head => "head",
            Self::List => "list",
            Self::Copy => "copy",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PutPart => "write a part of",
            Self::Put => "write",
            Self::Get | Self::GetRange => "read",
            Self::Head => "look for",
            Self::Create | Self::List | Self::Copy | Self::Delete => self.as_str(),
        })
    }
}

/// What was counted of one sort of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Attempts, each repetition included.
    pub requests: u64,
    /// Attempts that failed; "not found" and "exists already" are answers.
    pub failures: u64,
    /// Bytes of objects sent or received.
    pub bytes: u64,
}

/// A reading of all counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests([Count; Op::ALL.len()]);

impl Requests {
    /// What was counted of `op`.
    #[must_use]
    pub fn of(&self, op: Op) -> Count {
        self.0[op as usize]
    }

    /// What was counted since `earlier`, a reading of the same store.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.0;
        for (count, before) in counts.iter_mut().zip(&earlier.0) {
            count.requests -= before.requests;
            count.failures -= before.failures;
            count.bytes -= before.bytes;
        }
        Self(counts)
    }

    /// Attempts of every sort.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| count.requests).sum()
    }
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Counters([Counter; Op::ALL.len()]);

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Counts one attempt.
    pub(super) fn request(&self, op: Op) {
        self.0[op as usize].requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one failed attempt.
    pub(super) fn failure(&self, op: Op) {
        self.0[op as usize].failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes sent or received.
    pub(super) fn bytes(&self, op: Op, bytes: u64) {
        self.0[op as usize].bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads them all.
    pub(super) fn read(&self) -> Requests {
        Requests(std::array::from_fn(|at| Count {
            requests: self.0[at].requests.load(Ordering::Relaxed),
            failures: self.0[at].failures.load(Ordering::Relaxed),
            bytes: self.0[at].bytes.load(Ordering::Relaxed),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_has_a_place_and_a_word_of_its_own() {
        let words: std::collections::BTreeSet<_> = Op::ALL.iter().map(|op| op.as_str()).collect();
        assert_eq!(words.len(), Op::ALL.len());
        for (at, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, at);
        }
    }

    #[test]
    fn a_reading_tells_what_happened_since_an_earlier_one() {
        let counters = Counters::default();
        counters.request(Op::Get);
        let before = counters.read();
        counters.request(Op::Get);
        counters.bytes(Op::Get, 7);
        counters.failure(Op::Head);
        let since = counters.read().since(&before);
        assert_eq!(since.of(Op::Get), Count { requests: 1, failures: 0, bytes: 7 });
        assert_eq!(since.of(Op::Head).failures, 1);
        assert_eq!(since.total(), 1);
    }
}
