//! What a broker embeds to read archived record batches from tierd: its "phase
//! 3", after its buffer and its local log.
//!
//! Plain types throughout: nothing of gRPC shows, so a broker with another
//! version of a gRPC library of its own is not disturbed. What stands between
//! the two is `tierd.v1`, in `proto/tierd/v1/archive.proto`.
//!
//! # The drop-in
//!
//! A broker whose read of last resort is one function takes [`Phase3`]:
//!
//! ```no_run
//! # async fn read(offset: i64, high_watermark: i64) -> Result<(), tierd_client::ArchiveError> {
//! use tierd_client::Phase3;
//!
//! let phase3 = Phase3::connect_lazy(Some("unix:/run/tierd/tierd.sock"))?;
//! let bytes = phase3.fetch("orders", 0, offset, high_watermark, 1 << 20).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `Ok(None)` is "not in the archive" and nothing else. An error is never "no
//! data": answered with an empty set, it makes a consumer skip or hang. The crate's
//! README says what a broker changes around the call.
//!
//! # The whole answer
//!
//! [`ArchiveClient::fetch`] also tells why the answer ends, where the next begins,
//! and which transactions were aborted:
//!
//! ```no_run
//! # async fn read() -> Result<(), tierd_client::ArchiveError> {
//! use tierd_client::{ArchiveClient, ArchiveError, FetchArgs, Isolation};
//!
//! let client = ArchiveClient::connect_lazy("http://127.0.0.1:9095")?;
//! let args = FetchArgs {
//!     upper_bound: Some(1_000),
//!     max_bytes: Some(1 << 20),
//!     isolation: Isolation::ReadCommitted,
//!     ..FetchArgs::new("orders", 0, 42)
//! };
//! match client.fetch(args).await {
//!     Ok(outcome) => {
//!         for batch in outcome.iter() {
//!             println!("{} bytes at offset {}", batch?.bytes.len(), outcome.next_offset);
//!         }
//!     }
//!     Err(error) if error.is_miss() => println!("in the local log: {error}"),
//!     Err(ArchiveError::BelowLogStart { log_start, .. }) => println!("begins at {log_start}"),
//!     Err(error) => println!("Kafka error {}: {error}", error.kafka_error_code()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`ArchiveClient::fetch_stream`] reads on for as long as the archive goes, in
//! flat memory. [`ArchiveClient::list_offsets`] finds offsets by time,
//! [`ArchiveClient::offset_for_leader_epoch`] the ends of leader epochs,
//! [`ArchiveClient::watch`] tells how far the broker may delete its local log.
//! [`BlockingArchiveClient`] is for brokers without Tokio, the trait
//! [`ArchiveFetch`] for those that hold the archive as an object.
//!
//! # What it promises
//!
//! - Whole batches, byte for byte as the broker wrote them; never a half one.
//! - A broken connection, a restarted daemon, a store that stumbles: tried again,
//!   a bounded number of times, within the deadline, behind the last whole batch.
//! - An answer that breaks the protocol, or whose trailer counts other batches
//!   than came, is [`ArchiveError::Protocol`].
//! - Batches that came are handed out even where what follows cannot be read.

mod answer;
mod archive_fetch;
mod batch;
mod blocking;
mod broker;
mod client;
mod connect;
mod convert;
mod counters;
mod describe;
mod error;
mod list;
mod read;
mod retry;
mod search;
mod stream;
mod types;
mod watch;

#[cfg(test)]
mod tests;

pub use archive_fetch::{ArchiveFetch, BoxFuture, Phase3};
pub use batch::{Batch, BatchIter, batches_in};
pub use blocking::{BlockingArchiveClient, BlockingStream};
pub use broker::{
    BrokerReport, EpochArgs, EpochEnd, FoundOffset, OffsetArgs, OffsetSpec, PartitionAnswer,
    PartitionReport, ProducerState, ReplicaState, Role,
};
pub use client::{ArchiveClient, ClientOptions};
pub use counters::CounterValues;
pub use describe::{
    ArchiveInfo, Backlog, Described, Description, ExplainedArchive, ExplainedRead, Explanation,
    IndexLevel, ListArgs, ReadPurpose,
};
pub use error::ArchiveError;
pub use list::ArchiveList;
pub use search::{
    HeaderCondition, NoteKind, Record, SearchArgs, SearchDelivery, SearchEnd, SearchEndReason,
    SearchHit, SearchItem, SearchNote, SearchOrder, SearchStream, SearchedArchives,
    SearchedPartition, Selection,
};
pub use stream::FetchStream;
pub use types::{
    AbortedTransaction, AbortedTransactions, BatchSet, Bounds, End, FetchArgs, Gap, GapKind,
    Isolation, OffsetRange, Outcome, Overlaps, StreamEnd, StreamItem, TopicPartition,
};
pub use watch::{ArchiveWatch, WatchItem, Watermark};
