//! Owns the two shapes in which a broker holds the archive: a trait object, and
//! the drop-in for a broker whose phase 3 is one function.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::broker::{
    BrokerReport, EpochArgs, EpochEnd, FoundOffset, OffsetArgs, PartitionAnswer, ReplicaState,
};
use crate::client::ArchiveClient;
use crate::counters::CounterValues;
use crate::describe::Described;
use crate::error::ArchiveError;
use crate::stream::FetchStream;
use crate::types::{AbortedTransactions, FetchArgs, OffsetRange, Outcome, TopicPartition};

/// A future in a box, so that traits with it make objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a broker asks of an archive. [`ArchiveClient`] is one; a broker's tests
/// may bring their own.
pub trait ArchiveFetch: fmt::Debug + Send + Sync {
    /// See [`ArchiveClient::fetch`].
    fn fetch(&self, args: FetchArgs) -> BoxFuture<'_, Result<Outcome, ArchiveError>>;

    /// See [`ArchiveClient::fetch_stream`].
    fn fetch_stream(&self, args: FetchArgs) -> FetchStream;

    /// See [`ArchiveClient::describe`].
    fn describe<'a>(
        &'a self,
        partitions: &'a [TopicPartition],
    ) -> BoxFuture<'a, Result<Vec<Described>, ArchiveError>>;

    /// See [`ArchiveClient::list_offsets`].
    fn list_offsets<'a>(
        &'a self,
        queries: &'a [OffsetArgs],
    ) -> BoxFuture<'a, Result<Vec<PartitionAnswer<Option<FoundOffset>>>, ArchiveError>>;

    /// See [`ArchiveClient::offset_for_leader_epoch`].
    fn offset_for_leader_epoch<'a>(
        &'a self,
        queries: &'a [EpochArgs],
    ) -> BoxFuture<'a, Result<Vec<PartitionAnswer<Option<EpochEnd>>>, ArchiveError>>;

    /// See [`ArchiveClient::list_aborted_transactions`].
    fn list_aborted_transactions<'a>(
        &'a self,
        partition: &'a TopicPartition,
        range: OffsetRange,
    ) -> BoxFuture<'a, Result<AbortedTransactions, ArchiveError>>;

    /// See [`ArchiveClient::replica_state`].
    fn replica_state<'a>(
        &'a self,
        partition: &'a TopicPartition,
        offset: Option<i64>,
    ) -> BoxFuture<'a, Result<ReplicaState, ArchiveError>>;

    /// See [`ArchiveClient::report`].
    fn report<'a>(
        &'a self,
        report: &'a BrokerReport,
    ) -> BoxFuture<'a, Result<Vec<PartitionAnswer<()>>, ArchiveError>>;

    /// See [`ArchiveClient::advance_log_start`].
    fn advance_log_start<'a>(
        &'a self,
        partition: &'a TopicPartition,
        topic_id: Option<[u8; 16]>,
        offset: i64,
    ) -> BoxFuture<'a, Result<i64, ArchiveError>>;

    /// See [`ArchiveClient::delete_partition`].
    fn delete_partition<'a>(
        &'a self,
        partition: &'a TopicPartition,
        topic_id: Option<[u8; 16]>,
    ) -> BoxFuture<'a, Result<i64, ArchiveError>>;

    /// See [`ArchiveClient::counters`].
    fn counters(&self) -> CounterValues;
}

impl ArchiveFetch for ArchiveClient {
    fn fetch(&self, args: FetchArgs) -> BoxFuture<'_, Result<Outcome, ArchiveError>> {
        Box::pin(Self::fetch(self, args))
    }

    fn fetch_stream(&self, args: FetchArgs) -> FetchStream {
        Self::fetch_stream(self, args)
    }

    fn describe<'a>(
        &'a self,
        partitions: &'a [TopicPartition],
    ) -> BoxFuture<'a, Result<Vec<Described>, ArchiveError>> {
        Box::pin(Self::describe(self, partitions))
    }

    fn list_offsets<'a>(
        &'a self,
        queries: &'a [OffsetArgs],
    ) -> BoxFuture<'a, Result<Vec<PartitionAnswer<Option<FoundOffset>>>, ArchiveError>> {
        Box::pin(Self::list_offsets(self, queries))
    }

    fn offset_for_leader_epoch<'a>(
        &'a self,
        queries: &'a [EpochArgs],
    ) -> BoxFuture<'a, Result<Vec<PartitionAnswer<Option<EpochEnd>>>, ArchiveError>> {
        Box::pin(Self::offset_for_leader_epoch(self, queries))
    }

    fn list_aborted_transactions<'a>(
        &'a self,
        partition: &'a TopicPartition,
        range: OffsetRange,
    ) -> BoxFuture<'a, Result<AbortedTransactions, ArchiveError>> {
        Box::pin(Self::list_aborted_transactions(self, partition, range))
    }

    fn replica_state<'a>(
        &'a self,
        partition: &'a TopicPartition,
        offset: Option<i64>,
    ) -> BoxFuture<'a, Result<ReplicaState, ArchiveError>> {
        Box::pin(Self::replica_state(self, partition, offset))
    }

    fn report<'a>(
        &'a self,
        report: &'a BrokerReport,
    ) -> BoxFuture<'a, Result<Vec<PartitionAnswer<()>>, ArchiveError>> {
        Box::pin(Self::report(self, report))
    }

    fn advance_log_start<'a>(
        &'a self,
        partition: &'a TopicPartition,
        topic_id: Option<[u8; 16]>,
        offset: i64,
    ) -> BoxFuture<'a, Result<i64, ArchiveError>> {
        Box::pin(Self::advance_log_start(self, partition, topic_id, offset))
    }

    fn delete_partition<'a>(
        &'a self,
        partition: &'a TopicPartition,
        topic_id: Option<[u8; 16]>,
    ) -> BoxFuture<'a, Result<i64, ArchiveError>> {
        Box::pin(Self::delete_partition(self, partition, topic_id))
    }

    fn counters(&self) -> CounterValues {
        Self::counters(self)
    }
}

/// A broker's read of last resort, as one function.
///
/// ```no_run
/// # async fn answer() -> Result<(), tierd_client::ArchiveError> {
/// use tierd_client::Phase3;
///
/// let endpoint = std::env::var("BROKER_ARCHIVE").ok();
/// let phase3 = Phase3::connect_lazy(endpoint.as_deref())?;
/// match phase3.fetch("orders", 0, 42, 1_000, 1 << 20).await? {
///     Some(batches) => println!("{} bytes from the archive", batches.len()),
///     None => println!("not in the archive"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Phase3 {
    archive: Option<Arc<dyn ArchiveFetch>>,
}

impl Phase3 {
    /// Over an archive that the broker holds already.
    #[must_use]
    pub fn new(archive: Arc<dyn ArchiveFetch>) -> Self {
        Self { archive: Some(archive) }
    }

    /// Over no archive: every read is "not in the archive".
    #[must_use]
    pub fn disabled() -> Self {
        Self { archive: None }
    }

    /// Over the daemon at `endpoint`, as [`ArchiveClient::connect_lazy`] takes
    /// it. None, or an empty one, is [`Self::disabled`].
    ///
    /// # Errors
    /// As [`ArchiveClient::connect_lazy`].
    pub fn connect_lazy(endpoint: Option<&str>) -> Result<Self, ArchiveError> {
        match endpoint.map(str::trim) {
            None | Some("") => Ok(Self::disabled()),
            Some(endpoint) => Ok(Self::new(Arc::new(ArchiveClient::connect_lazy(endpoint)?))),
        }
    }

    /// Whole batches of the served log from `offset` on and below
    /// `high_watermark`, read_uncommitted: at most `max_bytes`, but at least one
    /// batch. The first may begin below `offset`.
    ///
    /// `None` is "not in the archive": not archived yet, an unknown partition,
    /// nothing below the high watermark, or no endpoint. It is never a failure.
    ///
    /// # Errors
    /// A gap, an offset below the start, or an archive that cannot answer. The
    /// broker answers its consumer with
    /// [`kafka_error_code`](ArchiveError::kafka_error_code), never with an empty
    /// set.
    pub async fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        high_watermark: i64,
        max_bytes: i32,
    ) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(archive) = &self.archive else { return Ok(None) };
        let args = FetchArgs {
            upper_bound: Some(high_watermark),
            max_bytes: Some(u64::try_from(max_bytes).unwrap_or(0)),
            ..FetchArgs::new(topic, partition, offset)
        };
        match archive.fetch(args).await {
            Ok(outcome) if outcome.is_hit() => Ok(Some(Vec::from(outcome.batches))),
            Ok(_) => Ok(None),
            Err(error) if error.is_miss() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The archive's counters; zero without one.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.archive.as_ref().map(|archive| archive.counters()).unwrap_or_default()
    }
}
