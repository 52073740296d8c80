//! Owns the client: its options and its calls.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use tierd_proto::v1;
use tierd_proto::v1::archive_client::ArchiveClient as GrpcClient;
use tonic::transport::Channel;

use crate::broker::{
    BrokerReport, EpochArgs, EpochEnd, FoundOffset, OffsetArgs, PartitionAnswer, ReplicaState,
};
use crate::connect::Connection;
use crate::convert::{self, broker};
use crate::counters::{CounterValues, Counters};
use crate::describe::{Described, Explanation, ListArgs};
use crate::error::ArchiveError;
use crate::list::ArchiveList;
use crate::read;
use crate::retry::{Deadline, Retries};
use crate::search::{self, SearchArgs, SearchStream};
use crate::stream::{self as fetch_stream, FetchStream};
use crate::types::{AbortedTransactions, FetchArgs, OffsetRange, Outcome, TopicPartition};
use crate::watch::ArchiveWatch;

/// How a client behaves. The defaults suit a sidecar on the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Longest time for a call, retries included, where the call names none:
    /// 10 s, room for a cold read from a slow store. A broker that answers its
    /// consumer sooner gives its own.
    pub deadline: Duration,
    /// Longest time to connect: 1 s.
    pub connect_timeout: Duration,
    /// Attempts in a row that may fail before a call gives up, the first one not
    /// counted: 3. An attempt that brought batches begins the count anew.
    pub retries: u32,
    /// Pause before the first retry, doubled for each that follows: 50 ms.
    pub backoff: Duration,
    /// Longest pause: 1 s. A longer one asked for by the daemon is kept.
    pub backoff_max: Duration,
    /// Most bytes of one answer held in memory, whatever `max_bytes` says:
    /// 64 MiB, above the 50 MiB of Kafka's `fetch.max.bytes`.
    pub answer_bytes_max: u64,
    /// Largest single batch taken, in bytes: 128 MiB.
    pub batch_bytes_max: usize,
    /// Largest message taken, in bytes: 4 MiB. The daemon sends frames of 1 MiB.
    pub message_bytes_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            retries: 3,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            answer_bytes_max: 64 << 20,
            batch_bytes_max: 128 << 20,
            message_bytes_max: 4 << 20,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) connection: Connection,
    pub(crate) options: ClientOptions,
    pub(crate) counters: Counters,
}

impl Inner {
    pub(crate) fn grpc(&self) -> GrpcClient<Channel> {
        GrpcClient::new(self.connection.channel())
            .max_decoding_message_size(self.options.message_bytes_max)
    }

    pub(crate) fn call_error(&self, status: &tonic::Status) -> ArchiveError {
        convert::call_error(status, self.connection.name())
    }
}

/// Reads the archive of one tierd. Cheap to clone; clones share the connection
/// and the counters.
#[derive(Clone, Debug)]
pub struct ArchiveClient {
    inner: Arc<Inner>,
}

impl ArchiveClient {
    /// A client for the daemon at `endpoint`: `http://HOST:PORT`, `HOST:PORT` or
    /// `unix:/PATH`. It connects with its first call, within the Tokio runtime
    /// of that call, so it can be made before the runtime and before the daemon.
    ///
    /// # Errors
    /// [`ArchiveError::Invalid`] when the endpoint is none of these.
    pub fn connect_lazy(endpoint: &str) -> Result<Self, ArchiveError> {
        Self::with_options(endpoint, ClientOptions::default())
    }

    /// [`Self::connect_lazy`] with other options.
    ///
    /// # Errors
    /// As [`Self::connect_lazy`].
    pub fn with_options(endpoint: &str, options: ClientOptions) -> Result<Self, ArchiveError> {
        let connection = Connection::new(endpoint, &options)?;
        Ok(Self { inner: Arc::new(Inner { connection, options, counters: Counters::default() }) })
    }

    /// Reads whole batches into memory: what a broker does for one consumer's
    /// Fetch.
    ///
    /// Batches that came are never dropped: where the archive cannot go on
    /// behind them, the outcome ends with [`End::Failed`](crate::End::Failed).
    ///
    /// # Errors
    /// When there are no batches and that is not for a bound or a limit; see
    /// [`ArchiveError`].
    pub async fn fetch(&self, args: FetchArgs) -> Result<Outcome, ArchiveError> {
        let Inner { options, counters, .. } = &*self.inner;
        counters.fallback();
        let deadline = Deadline::after(args.deadline.unwrap_or(options.deadline));
        let cap = options.answer_bytes_max;
        let args =
            FetchArgs { max_bytes: Some(args.max_bytes.map_or(cap, |n| n.min(cap))), ..args };
        let mut failures = 0;
        let mut retries = Retries::new(options, counters, &mut failures);
        let result = read::collect(&self.inner, &args, &mut retries, deadline).await;
        counters.ended(&result);
        result
    }

    /// Reads batches as they come, in flat memory, for as long as the archive
    /// has them. A broken connection is resumed behind the last whole batch.
    ///
    /// Nothing is asked for before the stream is first polled.
    #[must_use]
    pub fn fetch_stream(&self, args: FetchArgs) -> FetchStream {
        fetch_stream::open(Arc::clone(&self.inner), args)
    }

    /// What is archived of each of `partitions`; of every partition when empty.
    ///
    /// # Errors
    /// When the call fails as a whole.
    pub async fn describe(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Described>, ArchiveError> {
        self.describe_from(partitions, 0).await
    }

    /// As [`Self::describe`], with the gaps from offset `gaps_from` on: one answer
    /// lists some hundred of a partition.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub async fn describe_from(
        &self,
        partitions: &[TopicPartition],
        gaps_from: i64,
    ) -> Result<Vec<Described>, ArchiveError> {
        let partitions = partitions.iter().map(convert::topic_partition).collect();
        let request = v1::DescribeArchiveRequest { partitions, gaps_from: Some(gaps_from) };
        let described = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.describe_archive(request).await }
            })
            .await?;
        Ok(described.partitions.into_iter().map(convert::described).collect())
    }

    /// Lists archives, by topic, partition and first offset.
    ///
    /// # Errors
    /// [`ArchiveError::UnknownTopicOrPartition`], or when the call fails.
    pub async fn list(&self, args: ListArgs) -> Result<ArchiveList, ArchiveError> {
        let request = v1::ListArchivesRequest {
            topic: args.topic.clone().unwrap_or_default(),
            partition: args.partition,
            incarnation: args.incarnation,
        };
        // The first message too: an error of the whole list comes instead of it.
        let (first, messages) = self
            .call(Some(&args), |mut grpc| {
                let request = request.clone();
                async move {
                    let mut messages = grpc.list_archives(request).await?.into_inner();
                    let first = messages.message().await?;
                    Ok(tonic::Response::new((first, messages)))
                }
            })
            .await?;
        let state = Some((Arc::clone(&self.inner), Some(first), messages));
        Ok(ArchiveList::new(stream::unfold(state, |state| async {
            let (inner, read_already, mut messages) = state?;
            let message = match read_already {
                Some(first) => Ok(first),
                None => {
                    match Deadline::after(inner.options.deadline).limit(messages.message()).await {
                        Ok(message) => message.map_err(|status| inner.call_error(&status)),
                        Err(error) => Err(error),
                    }
                }
            };
            let item = message.transpose()?.and_then(convert::archive_info);
            let state = item.is_ok().then_some((inner, None, messages));
            Some((item, state))
        })))
    }

    /// What a fetch would do now: archives, requests to the object store, bytes.
    ///
    /// # Errors
    /// When the call fails as a whole.
    pub async fn explain(&self, args: &FetchArgs) -> Result<Explanation, ArchiveError> {
        let fetch = Some(convert::request(args));
        let request = v1::ExplainFetchRequest { fetch };
        let explained = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.explain_fetch(request).await }
            })
            .await?;
        match explained.partitions.into_iter().next() {
            Some(partition) => convert::explanation(partition, args.fetch_offset),
            None => Err(ArchiveError::protocol("an explanation of nothing")),
        }
    }

    /// The offset that each of `queries` means, in their order; `None` where the
    /// archive holds no such record. What lies behind the archive's end the broker
    /// looks for in its own log.
    ///
    /// # Errors
    /// When the call fails as a whole.
    pub async fn list_offsets(
        &self,
        queries: &[OffsetArgs],
    ) -> Result<Vec<PartitionAnswer<Option<FoundOffset>>>, ArchiveError> {
        let partitions = queries.iter().map(broker::offset_query).collect();
        let request = v1::ListOffsetsRequest { partitions };
        let found = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.list_offsets(request).await }
            })
            .await?;
        Ok(found.partitions.into_iter().map(broker::offset_answer).collect())
    }

    /// Where each leader epoch ends within the archive, in the order of `queries`;
    /// `None` for one above all that are archived (Kafka's undefined epoch).
    ///
    /// # Errors
    /// When the call fails as a whole.
    pub async fn offset_for_leader_epoch(
        &self,
        queries: &[EpochArgs],
    ) -> Result<Vec<PartitionAnswer<Option<EpochEnd>>>, ArchiveError> {
        let partitions = queries.iter().map(broker::epoch_query).collect();
        let request = v1::OffsetForLeaderEpochRequest { partitions };
        let found = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.offset_for_leader_epoch(request).await }
            })
            .await?;
        Ok(found.partitions.into_iter().map(broker::epoch_answer).collect())
    }

    /// The aborted transactions that touch `range`, as far as the archive knows: the
    /// broker goes on in its own index from where the search ended.
    ///
    /// # Errors
    /// When the range begins outside of the archive, or the call fails.
    pub async fn list_aborted_transactions(
        &self,
        partition: &TopicPartition,
        range: OffsetRange,
    ) -> Result<AbortedTransactions, ArchiveError> {
        let request = broker::aborted_query(partition, range);
        let found = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.list_aborted_transactions(request).await }
            })
            .await?;
        broker::aborted_answer(partition, range, found)
    }

    /// What a follower takes over of a partition below `offset`, or below the archive's
    /// end without one: it goes on behind it instead of fetching what is archived.
    ///
    /// # Errors
    /// When the offset lies outside of the archive, or the call fails.
    pub async fn replica_state(
        &self,
        partition: &TopicPartition,
        offset: Option<i64>,
    ) -> Result<ReplicaState, ArchiveError> {
        let request = v1::GetReplicaStateRequest {
            topic: partition.topic.clone(),
            partition: partition.partition,
            incarnation: partition.incarnation,
            offset,
        };
        let found = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.get_replica_state(request).await }
            })
            .await?;
        broker::replica_state(partition, offset, found)
    }

    /// Tells tierd how the broker and its partitions stand. Repeated after either side
    /// restarts, and whenever something changes.
    ///
    /// # Errors
    /// [`ArchiveError::Invalid`] when the daemon archives nothing; when the call fails
    /// as a whole. What is wrong with one partition stands in its answer.
    pub async fn report(
        &self,
        report: &BrokerReport,
    ) -> Result<Vec<PartitionAnswer<()>>, ArchiveError> {
        let request = broker::report(report);
        let answered = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.report_partition_state(request).await }
            })
            .await?;
        Ok(answered.partitions.into_iter().map(broker::report_answer).collect())
    }

    /// Follows how far the daemon has archived `partitions`, and how far the broker
    /// may delete its local log; every partition when empty. `incarnation` of a
    /// partition stays `None`.
    ///
    /// Nothing is asked for before [`ArchiveWatch::next`] is called.
    #[must_use]
    pub fn watch(&self, partitions: &[TopicPartition]) -> ArchiveWatch {
        ArchiveWatch::new(Arc::clone(&self.inner), partitions)
    }

    /// Finds records: hits as they are found, in order, then the end.
    ///
    /// # Errors
    /// [`ArchiveError::UnknownTopicOrPartition`], or when the search makes no sense or
    /// the call fails before its first piece. A search that breaks off later ends with
    /// an error and is to be asked again, from the last page on.
    pub async fn search(&self, args: SearchArgs) -> Result<SearchStream, ArchiveError> {
        let scope = ListArgs {
            topic: args.topic.clone(),
            partition: args.partition,
            incarnation: args.incarnation,
        };
        let wait = args.patience.unwrap_or(self.inner.options.deadline);
        let request = search::request(args);
        let (first, messages) = self
            .call_within(wait, Some(&scope), |mut grpc| {
                let request = request.clone();
                async move {
                    let mut messages = grpc.search(request).await?.into_inner();
                    let first = messages.message().await?;
                    Ok(tonic::Response::new((first, messages)))
                }
            })
            .await?;
        Ok(SearchStream::new(Arc::clone(&self.inner), first, messages, wait))
    }

    /// Moves the log start of a partition's newest life to `offset`, or with -1 to the
    /// reported high watermark, as Kafka's DeleteRecords does. Gives where it is then:
    /// committed, and never moved back. `topic_id` is compared where both sides know
    /// one.
    ///
    /// # Errors
    /// [`ArchiveError::AboveHighWatermark`]; [`ArchiveError::NotReported`] where the
    /// high watermark is needed and was not reported; when the call fails.
    pub async fn advance_log_start(
        &self,
        partition: &TopicPartition,
        topic_id: Option<[u8; 16]>,
        offset: i64,
    ) -> Result<i64, ArchiveError> {
        let request = v1::AdvanceLogStartRequest {
            topic: partition.topic.clone(),
            partition: partition.partition,
            topic_id: convert::topic_id(topic_id),
            offset,
        };
        let moved = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.advance_log_start(request).await }
            })
            .await?;
        broker::log_start(partition, moved.outcome.as_ref(), moved.log_start)
    }

    /// Says that the broker deleted a partition: nothing of its newest life is read any
    /// more. Gives its log start, which is its end.
    ///
    /// # Errors
    /// As [`Self::advance_log_start`].
    pub async fn delete_partition(
        &self,
        partition: &TopicPartition,
        topic_id: Option<[u8; 16]>,
    ) -> Result<i64, ArchiveError> {
        let request = v1::DeletePartitionRequest {
            topic: partition.topic.clone(),
            partition: partition.partition,
            topic_id: convert::topic_id(topic_id),
        };
        let moved = self
            .call(None, |mut grpc| {
                let request = request.clone();
                async move { grpc.delete_partition(request).await }
            })
            .await?;
        broker::log_start(partition, moved.outcome.as_ref(), moved.log_start)
    }

    /// The counters, of all clones.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.inner.counters.values()
    }

    /// One call that changes nothing and may be repeated. What `asked` names is
    /// unknown where the daemon finds nothing.
    async fn call<T, F>(
        &self,
        asked: Option<&ListArgs>,
        work: impl Fn(GrpcClient<Channel>) -> F,
    ) -> Result<T, ArchiveError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.call_within(self.inner.options.deadline, asked, work).await
    }

    /// As [`Self::call`], within another time.
    async fn call_within<T, F>(
        &self,
        within: Duration,
        asked: Option<&ListArgs>,
        work: impl Fn(GrpcClient<Channel>) -> F,
    ) -> Result<T, ArchiveError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let Inner { options, counters, .. } = &*self.inner;
        let deadline = Deadline::after(within);
        let mut failures = 0;
        let mut retries = Retries::new(options, counters, &mut failures);
        loop {
            let status = match deadline.limit(work(self.inner.grpc())).await? {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            let error = match asked {
                Some(args) if status.code() == tonic::Code::NotFound => {
                    ArchiveError::UnknownTopicOrPartition {
                        topic: args.topic.clone().unwrap_or_default(),
                        partition: args.partition,
                    }
                }
                _ => self.inner.call_error(&status),
            };
            retries.pause(error, deadline).await?;
        }
    }
}
