//! Owns keeping the archive healthy: checking that all of it can be read.
//!
//! Does not own: archiving, serving, or repairing what it finds broken. Restore,
//! replication and rebuilding manifests will live here too.

mod verify;

pub use verify::{Check, Health, Problem, VerifyError, verify_partition};
