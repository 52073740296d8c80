//! Owns what is done to tierd from outside: a target takes any bytes, gives them to
//! the code that would meet them, and panics where that code breaks its promise.
//! Refusing is no breach; a panic, a wrong answer or a hunger for memory is.
//!
//! | target | the bytes are | what must hold |
//! |---|---|---|
//! | `wal_frames` | a segment | every good frame reads back as it was scanned; damage and frames never overlap |
//! | `batches` | a batch, or an old message set | wire bytes stay; what decodes is encoded and decoded to the same |
//! | `toc_footer` | a table, a footer, and the lists beside them | what decodes keeps its invariants, and encodes to what decodes to it |
//! | `tar_entries` | an archive, or changes to one with its digests mended | it is refused, or holds the very batches |
//! | `manifests` | an object of the catalog, its digest mended | what is read keeps its invariants |
//! | `records` | what a producer sends | an archive is made of it at any index level, whole |
//! | `requests` | a call and its message | an answer or an error of the caller's, never one of tierd's own |
//!
//! The fuzzer of `tests/fuzz` drives them, and so does `e2e/hostile.rs`: every seed,
//! and some thousands of changes of each.

mod archives;
mod batches;
mod manifests;
mod mend;
mod records;
mod requests;
mod segments;

pub use self::batches::batches;
pub use archives::{object_of, tar_entries, toc_footer, verify};
pub use manifests::manifests;
pub use records::records;
pub use requests::requests;
pub use segments::wal_frames;

/// Something that bytes are given to.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, as in `tests/fuzz/targets` and `tests/fuzz/seeds`.
    pub name: &'static str,
    /// Gives it bytes.
    ///
    /// # Panics
    /// When a promise is broken.
    pub check: fn(&[u8]),
    /// Bytes to begin with: good ones, and each kind of bad one that is known.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "wal_frames", check: wal_frames, seeds: segments::seeds },
    Target { name: "batches", check: batches, seeds: batches::seeds },
    Target { name: "toc_footer", check: toc_footer, seeds: archives::table_seeds },
    Target { name: "tar_entries", check: tar_entries, seeds: archives::seeds },
    Target { name: "manifests", check: manifests, seeds: manifests::seeds },
    Target { name: "records", check: records, seeds: records::seeds },
    Target { name: "requests", check: requests, seeds: requests::seeds },
];
