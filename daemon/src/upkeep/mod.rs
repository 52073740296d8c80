//! Owns keeping the archive healthy: checking that all of it can be read, and
//! rebuilding a catalog that lost objects.
//!
//! Does not own: archiving, serving, or what of the archives themselves is lost.
//! Restore and replication will live here too.

mod rebuild;
mod verify;
mod whole;

pub use rebuild::{LeftOut, Rebuild, RebuildError, Rebuilt};
pub use verify::{Check, Health, Problem, VerifyError, verify_partition};
