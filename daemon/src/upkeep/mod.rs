//! Owns keeping the archive healthy: checking that all of it can be read, when asked and
//! in the background, and rebuilding a catalog that lost objects.
//!
//! Does not own: archiving, serving, or what of the archives themselves is lost.
//! Restore and replication will live here too.

mod rebuild;
mod scrub;
mod verify;
mod whole;

pub use rebuild::{LeftOut, Rebuild, RebuildError, Rebuilt};
pub use scrub::{SCRUB_EVERY_DEFAULT, SCRUB_RATE_DEFAULT, Scrub, ScrubOptions, ScrubStep};
pub use verify::{Check, Checked, Health, VerifyError, verify_partition};
