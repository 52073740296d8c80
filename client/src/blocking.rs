//! Owns the face for brokers that do not run on Tokio: the same calls, waited
//! for on the calling thread. The work runs on one thread of its own.

use std::sync::mpsc;

use tokio::runtime::{Builder, Runtime};

use crate::archive_fetch::Phase3;
use crate::broker::{
    BrokerReport, EpochArgs, EpochEnd, FoundOffset, OffsetArgs, PartitionAnswer, ReplicaState,
};
use crate::client::{ArchiveClient, ClientOptions};
use crate::counters::CounterValues;
use crate::describe::{ArchiveInfo, Described, Explanation, ListArgs};
use crate::error::ArchiveError;
use crate::stream::FetchStream;
use crate::types::{
    AbortedTransactions, FetchArgs, OffsetRange, Outcome, StreamItem, TopicPartition,
};

/// An [`ArchiveClient`] whose calls block. Calls from several threads run side
/// by side. Called on an async worker it holds that worker up, as any blocking
/// call does, and works.
#[derive(Debug)]
pub struct BlockingArchiveClient {
    client: ArchiveClient,
    // None only while it is dropped.
    runtime: Option<Runtime>,
}

impl BlockingArchiveClient {
    /// See [`ArchiveClient::connect_lazy`].
    ///
    /// # Errors
    /// As there, and [`ArchiveError::Internal`] when no thread can be started.
    pub fn connect_lazy(endpoint: &str) -> Result<Self, ArchiveError> {
        Self::with_options(endpoint, ClientOptions::default())
    }

    /// See [`ArchiveClient::with_options`].
    ///
    /// # Errors
    /// As [`Self::connect_lazy`].
    pub fn with_options(endpoint: &str, options: ClientOptions) -> Result<Self, ArchiveError> {
        let client = ArchiveClient::with_options(endpoint, options)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tierd-client")
            .enable_all()
            .build()
            .map_err(|error| internal(format!("no thread for the archive client: {error}")))?;
        Ok(Self { client, runtime: Some(runtime) })
    }

    /// See [`ArchiveClient::fetch`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch(&self, args: FetchArgs) -> Result<Outcome, ArchiveError> {
        let client = self.client.clone();
        self.wait(async move { client.fetch(args).await })?
    }

    /// See [`Phase3::fetch`].
    ///
    /// # Errors
    /// As there.
    pub fn phase3(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        high_watermark: i64,
        max_bytes: i32,
    ) -> Result<Option<Vec<u8>>, ArchiveError> {
        let phase3 = Phase3::new(std::sync::Arc::new(self.client.clone()));
        let topic = topic.to_owned();
        self.wait(async move {
            phase3.fetch(&topic, partition, offset, high_watermark, max_bytes).await
        })?
    }

    /// See [`ArchiveClient::fetch_stream`].
    #[must_use]
    pub fn fetch_stream(&self, args: FetchArgs) -> BlockingStream<'_> {
        BlockingStream { client: self, stream: Some(self.client.fetch_stream(args)) }
    }

    /// See [`ArchiveClient::describe`].
    ///
    /// # Errors
    /// As there.
    pub fn describe(&self, partitions: &[TopicPartition]) -> Result<Vec<Described>, ArchiveError> {
        let (client, partitions) = (self.client.clone(), partitions.to_vec());
        self.wait(async move { client.describe(&partitions).await })?
    }

    /// See [`ArchiveClient::list`].
    ///
    /// # Errors
    /// As there; archives listed before an error are not handed out.
    pub fn list(&self, args: ListArgs) -> Result<Vec<ArchiveInfo>, ArchiveError> {
        let client = self.client.clone();
        self.wait(async move {
            let mut list = client.list(args).await?;
            let mut archives = Vec::new();
            while let Some(archive) = list.next().await {
                archives.push(archive?);
            }
            Ok(archives)
        })?
    }

    /// See [`ArchiveClient::explain`].
    ///
    /// # Errors
    /// As there.
    pub fn explain(&self, args: FetchArgs) -> Result<Explanation, ArchiveError> {
        let client = self.client.clone();
        self.wait(async move { client.explain(&args).await })?
    }

    /// See [`ArchiveClient::list_offsets`].
    ///
    /// # Errors
    /// As there.
    pub fn list_offsets(
        &self,
        queries: &[OffsetArgs],
    ) -> Result<Vec<PartitionAnswer<Option<FoundOffset>>>, ArchiveError> {
        let (client, queries) = (self.client.clone(), queries.to_vec());
        self.wait(async move { client.list_offsets(&queries).await })?
    }

    /// See [`ArchiveClient::offset_for_leader_epoch`].
    ///
    /// # Errors
    /// As there.
    pub fn offset_for_leader_epoch(
        &self,
        queries: &[EpochArgs],
    ) -> Result<Vec<PartitionAnswer<Option<EpochEnd>>>, ArchiveError> {
        let (client, queries) = (self.client.clone(), queries.to_vec());
        self.wait(async move { client.offset_for_leader_epoch(&queries).await })?
    }

    /// See [`ArchiveClient::list_aborted_transactions`].
    ///
    /// # Errors
    /// As there.
    pub fn list_aborted_transactions(
        &self,
        partition: &TopicPartition,
        range: OffsetRange,
    ) -> Result<AbortedTransactions, ArchiveError> {
        let (client, partition) = (self.client.clone(), partition.clone());
        self.wait(async move { client.list_aborted_transactions(&partition, range).await })?
    }

    /// See [`ArchiveClient::replica_state`].
    ///
    /// # Errors
    /// As there.
    pub fn replica_state(
        &self,
        partition: &TopicPartition,
        offset: Option<i64>,
    ) -> Result<ReplicaState, ArchiveError> {
        let (client, partition) = (self.client.clone(), partition.clone());
        self.wait(async move { client.replica_state(&partition, offset).await })?
    }

    /// See [`ArchiveClient::report`].
    ///
    /// # Errors
    /// As there.
    pub fn report(&self, report: BrokerReport) -> Result<Vec<PartitionAnswer<()>>, ArchiveError> {
        let client = self.client.clone();
        self.wait(async move { client.report(&report).await })?
    }

    /// See [`ArchiveClient::advance_log_start`].
    ///
    /// # Errors
    /// As there.
    pub fn advance_log_start(
        &self,
        partition: &TopicPartition,
        topic_id: Option<[u8; 16]>,
        offset: i64,
    ) -> Result<i64, ArchiveError> {
        let (client, partition) = (self.client.clone(), partition.clone());
        self.wait(async move { client.advance_log_start(&partition, topic_id, offset).await })?
    }

    /// See [`ArchiveClient::delete_partition`].
    ///
    /// # Errors
    /// As there.
    pub fn delete_partition(
        &self,
        partition: &TopicPartition,
        topic_id: Option<[u8; 16]>,
    ) -> Result<i64, ArchiveError> {
        let (client, partition) = (self.client.clone(), partition.clone());
        self.wait(async move { client.delete_partition(&partition, topic_id).await })?
    }

    /// See [`ArchiveClient::counters`].
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.client.counters()
    }

    /// Runs `work` on the client's thread and waits for it. Not `block_on`, which
    /// panics where the caller is a thread of another runtime.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let Some(runtime) = &self.runtime else {
            return Err(internal("the archive client is shut down".to_owned()));
        };
        let (done, result) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            // Fails only when the caller is gone.
            let _ = done.send(work.await);
        });
        result.recv().map_err(|_| internal("the archive client's thread panicked".to_owned()))
    }
}

impl Drop for BlockingArchiveClient {
    fn drop(&mut self) {
        // Dropping a runtime waits for it, and panics on an async worker.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A [`FetchStream`] as an iterator.
#[derive(Debug)]
pub struct BlockingStream<'a> {
    client: &'a BlockingArchiveClient,
    stream: Option<FetchStream>,
}

impl Iterator for BlockingStream<'_> {
    type Item = Result<StreamItem, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut stream = self.stream.take()?;
        let waited = self.client.wait(async move {
            let item = stream.next().await;
            (item, stream)
        });
        match waited {
            Ok((Some(item), stream)) => {
                self.stream = Some(stream);
                Some(item)
            }
            Ok((None, _)) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

fn internal(message: String) -> ArchiveError {
    ArchiveError::Internal { message }
}
