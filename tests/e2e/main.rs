//! The whole-system tests: one binary.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a failed test should panic")]
#![allow(clippy::disallowed_methods, reason = "a test of a real process waits by the real clock")]

mod archive_format;
mod bench;
mod borders;
mod catalog;
mod client;
mod collect;
mod complaints;
mod corruption;
mod durability;
mod environment;
mod hostile;
mod kills;
mod large;
mod live;
mod live_steps;
mod merging;
mod offsets;
mod operations;
mod oracle;
mod outage;
mod pipeline;
mod rebuild;
mod reclaim;
mod record_codec;
mod reindexing;
mod release;
mod reports;
mod retaining;
mod scrub;
mod search;
mod selected;
mod simulation;
mod steps;
mod streams;
mod three_phase;
mod tidy;
mod values;
mod verify;
mod wal_fixtures;

/// The daemon's binary, as built with these tests.
const TIERD: &str = env!("CARGO_BIN_EXE_tierd-under-test");

/// Waits for asynchronous work in a test of processes.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
