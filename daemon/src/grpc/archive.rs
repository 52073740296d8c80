//! Owns the calls of `tierd.v1.Archive`: each turns a request into a call of
//! `fetch` and the answer into messages.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tierd_proto::v1::{
    self, AdvanceLogStartRequest, AdvanceLogStartResponse, DeletePartitionRequest,
    DeletePartitionResponse, DescribeArchiveRequest, DescribeArchiveResponse, End,
    ExplainFetchRequest, ExplainFetchResponse, FetchArchivedRequest, FetchArchivedResponse,
    GetReplicaStateRequest, GetReplicaStateResponse, ListAbortedTransactionsRequest,
    ListAbortedTransactionsResponse, ListArchivesRequest, ListArchivesResponse, ListOffsetsRequest,
    ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    ReportPartitionStateRequest, ReportPartitionStateResponse, SearchRequest, SearchResponse,
    WatchArchivedRequest, WatchArchivedResponse, fetch_archived_response::Frame,
};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::admission::Admission;
use super::answers::EpochQuery;
use super::convert::GapPage;
use super::frames::Joiner;
use super::watch::Watch;
use super::{answers, convert, report, search};
use crate::catalog::Watermarks;
use crate::fetch::{EVENTS_QUEUED_MAX, FetchEvent, FetchRequest, Fetcher, Stage};
use crate::indexer::{LogStart, LogStarts};
use crate::metrics::{FetchCall, Metrics, SearchOutcome};
use crate::read::ReadStats;
use crate::record::{TopicName, TopicPartition};
use crate::reports::Reports;
use crate::search::Searcher;

type Frames = mpsc::Sender<Result<FetchArchivedResponse, Status>>;
type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service, over whatever answers fetches.
#[derive(Clone, Debug)]
pub(super) struct ArchiveService {
    fetcher: Fetcher,
    /// What the indexer in this process tells, where there is one.
    watermarks: Option<Watermarks>,
    searcher: Searcher,
    metrics: Metrics,
    admission: Admission,
    log_starts: LogStarts,
    /// Cancelled when streams without an end must end.
    closing: CancellationToken,
}

impl ArchiveService {
    pub(super) fn new(
        fetcher: Fetcher,
        searcher: Searcher,
        watermarks: Option<Watermarks>,
        metrics: Metrics,
        admission: Admission,
        closing: CancellationToken,
    ) -> Self {
        let log_starts = LogStarts::new(Arc::clone(fetcher.catalog()));
        Self { fetcher, searcher, watermarks, metrics, admission, log_starts, closing }
    }

    /// Where to keep what the broker says, if this process archives beside it.
    fn reports(&self) -> Result<&Reports, Status> {
        let reports = self.fetcher.reports();
        if reports.is_open() {
            return Ok(reports);
        }
        Err(Status::failed_precondition(
            "this tierd archives nothing; ask the one that runs beside the broker",
        ))
    }

    /// Moves a log start; the outcome, and where it is then.
    async fn move_log_start(
        &self,
        tp: &TopicPartition,
        to: LogStart,
        topic_id: Option<[u8; 16]>,
    ) -> Result<(v1::Outcome, i64), Status> {
        let report = self.reports()?.of(tp);
        let moved = self.log_starts.advance(tp, to, topic_id, report.as_ref()).await;
        // Read again: what is deleted must not be served from what was known before.
        let state = self.fetcher.renew(tp).await.map_err(|error| convert::status(&error))?;
        Ok(match moved {
            Ok(log_start) => (answers::well(state), log_start),
            Err(error) => (answers::refused(state, report::unmoved(&error)), -1),
        })
    }

    /// The partitions a request means: those it names, or all.
    async fn partitions(
        &self,
        named: Vec<v1::TopicPartition>,
    ) -> Result<Vec<(TopicPartition, Option<u32>)>, Status> {
        if named.is_empty() {
            let all = self.fetcher.partitions().await.map_err(|error| convert::status(&error))?;
            return Ok(all.into_iter().map(|(tp, incarnation)| (tp, Some(incarnation))).collect());
        }
        let parse = |named: v1::TopicPartition| {
            Ok((convert::topic_partition(&named.topic, named.partition)?, named.incarnation))
        };
        named.into_iter().map(parse).collect()
    }
}

#[tonic::async_trait]
impl v1::archive_server::Archive for ArchiveService {
    type FetchArchivedStream = Answer<FetchArchivedResponse>;

    async fn fetch_archived(
        &self,
        request: Request<FetchArchivedRequest>,
    ) -> Result<Response<Self::FetchArchivedStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let refused = |_: &Status| self.metrics.fetch_refused();
        let request = convert::fetch_request(request).inspect_err(refused)?;
        let room = self.admission.admit(&request, &metadata).await.inspect_err(refused)?;
        let (frames, answer) = mpsc::channel(EVENTS_QUEUED_MAX);
        let span = tracing::debug_span!("fetch", partitions = request.partitions.len());
        let call = self.metrics.fetch_begins();
        let fetch = stream_fetch(self.fetcher.clone(), request, frames, call);
        let fetch = async move {
            fetch.await;
            drop(room);
        };
        tokio::spawn(fetch.instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(answer))))
    }

    async fn describe_archive(
        &self,
        request: Request<DescribeArchiveRequest>,
    ) -> Result<Response<DescribeArchiveResponse>, Status> {
        let DescribeArchiveRequest { partitions: named, gaps_from } = request.into_inner();
        let of_wal = if named.is_empty() { self.metrics.partitions() } else { Vec::new() };
        let mut asked = self.partitions(named).await?;
        let archived: HashSet<&TopicPartition> = asked.iter().map(|(tp, _)| tp).collect();
        let waiting: Vec<_> = of_wal.into_iter().filter(|tp| !archived.contains(tp)).collect();
        if !waiting.is_empty() {
            asked.extend(waiting.into_iter().map(|tp| (tp, None)));
            asked.sort();
        }
        let all = self.fetcher.describe_all(asked).await;
        let mut gaps = GapPage::new(gaps_from);
        let describe = |(tp, described)| {
            let backlog = self.metrics.backlog(&tp).map(convert::backlog);
            v1::PartitionDescription { backlog, ..convert::description(&tp, described, &mut gaps) }
        };
        let partitions = all.into_iter().map(describe).collect();
        Ok(Response::new(DescribeArchiveResponse { partitions }))
    }

    type ListArchivesStream = Answer<ListArchivesResponse>;

    async fn list_archives(
        &self,
        request: Request<ListArchivesRequest>,
    ) -> Result<Response<Self::ListArchivesStream>, Status> {
        let wanted = request.into_inner();
        let partitions = if wanted.topic.is_empty() {
            if wanted.partition.is_some() || wanted.incarnation.is_some() {
                return Err(Status::invalid_argument("a partition or incarnation needs its topic"));
            }
            self.partitions(Vec::new()).await?
        } else if let Some(partition) = wanted.partition {
            vec![(convert::topic_partition(&wanted.topic, partition)?, wanted.incarnation)]
        } else {
            let topic = TopicName::new(&wanted.topic)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let all = self.partitions(Vec::new()).await?;
            let of_topic: Vec<_> = all.into_iter().filter(|(tp, _)| *tp.topic() == topic).collect();
            if of_topic.is_empty() {
                return Err(Status::not_found(format!("nothing of topic {topic} is archived")));
            }
            of_topic.into_iter().map(|(tp, newest)| (tp, wanted.incarnation.or(newest))).collect()
        };
        let (messages, answer) = mpsc::channel(EVENTS_QUEUED_MAX);
        tokio::spawn(stream_archives(self.fetcher.clone(), partitions, messages));
        Ok(Response::new(Box::pin(ReceiverStream::new(answer))))
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        let queries = answers::offset_queries(request.into_inner())?;
        let found = self.fetcher.offsets(&queries).await;
        let answer = |(query, found)| answers::found_offset(query, found);
        let partitions = queries.iter().zip(found).map(answer).collect();
        Ok(Response::new(ListOffsetsResponse { partitions }))
    }

    async fn offset_for_leader_epoch(
        &self,
        request: Request<OffsetForLeaderEpochRequest>,
    ) -> Result<Response<OffsetForLeaderEpochResponse>, Status> {
        let queries = answers::epoch_queries(request.into_inner())?;
        let mut partitions = Vec::with_capacity(queries.len());
        for query in queries {
            let EpochQuery { tp, incarnation, current, leader_epoch } = query;
            let found = self.fetcher.epoch_end(&tp, incarnation, current, leader_epoch).await;
            partitions.push(answers::epoch_end(&tp, found));
        }
        Ok(Response::new(OffsetForLeaderEpochResponse { partitions }))
    }

    async fn list_aborted_transactions(
        &self,
        request: Request<ListAbortedTransactionsRequest>,
    ) -> Result<Response<ListAbortedTransactionsResponse>, Status> {
        let (tp, incarnation, range) = answers::aborted_query(request.into_inner())?;
        let found = self.fetcher.aborted(&tp, incarnation, range).await;
        Ok(Response::new(answers::aborted(found)))
    }

    async fn get_replica_state(
        &self,
        request: Request<GetReplicaStateRequest>,
    ) -> Result<Response<GetReplicaStateResponse>, Status> {
        let wire = request.into_inner();
        let tp = convert::topic_partition(&wire.topic, wire.partition)?;
        let found = self.fetcher.replica_state(&tp, wire.incarnation, wire.offset).await;
        Ok(Response::new(answers::replica_state(found)))
    }

    async fn report_partition_state(
        &self,
        request: Request<ReportPartitionStateRequest>,
    ) -> Result<Response<ReportPartitionStateResponse>, Status> {
        let answered = report::take(self.reports()?, request.into_inner())?;
        Ok(Response::new(answered))
    }

    async fn advance_log_start(
        &self,
        request: Request<AdvanceLogStartRequest>,
    ) -> Result<Response<AdvanceLogStartResponse>, Status> {
        let wire = request.into_inner();
        let tp = convert::topic_partition(&wire.topic, wire.partition)?;
        let topic_id = convert::topic_id(&wire.topic_id)?;
        let (outcome, log_start) =
            self.move_log_start(&tp, LogStart::At(wire.offset), topic_id).await?;
        Ok(Response::new(AdvanceLogStartResponse { outcome: Some(outcome), log_start }))
    }

    async fn delete_partition(
        &self,
        request: Request<DeletePartitionRequest>,
    ) -> Result<Response<DeletePartitionResponse>, Status> {
        let wire = request.into_inner();
        let tp = convert::topic_partition(&wire.topic, wire.partition)?;
        let topic_id = convert::topic_id(&wire.topic_id)?;
        let (outcome, log_start) = self.move_log_start(&tp, LogStart::End, topic_id).await?;
        Ok(Response::new(DeletePartitionResponse { outcome: Some(outcome), log_start }))
    }

    async fn explain_fetch(
        &self,
        request: Request<ExplainFetchRequest>,
    ) -> Result<Response<ExplainFetchResponse>, Status> {
        let Some(fetch) = request.into_inner().fetch else {
            return Err(Status::invalid_argument(
                "the field `fetch` is missing: which fetch to explain",
            ));
        };
        let request = convert::fetch_request(fetch)?;
        let explained = self.fetcher.explain(&request).await;
        let partitions = request
            .partitions
            .iter()
            .zip(explained)
            .map(|(asked, explanation)| convert::explanation(&asked.tp, explanation))
            .collect();
        Ok(Response::new(ExplainFetchResponse { partitions }))
    }

    type WatchArchivedStream = Answer<WatchArchivedResponse>;

    async fn watch_archived(
        &self,
        request: Request<WatchArchivedRequest>,
    ) -> Result<Response<Self::WatchArchivedStream>, Status> {
        let wanted = convert::watched(request.into_inner())?;
        let Some(watermarks) = &self.watermarks else {
            return Err(Status::failed_precondition(
                "this tierd archives nothing; ask the one that runs beside the broker",
            ));
        };
        let (messages, answer) = mpsc::channel(EVENTS_QUEUED_MAX);
        let watch = Watch::new(watermarks, wanted, self.closing.clone());
        tokio::spawn(watch.run(messages));
        Ok(Response::new(Box::pin(ReceiverStream::new(answer))))
    }

    type SearchStream = Answer<SearchResponse>;

    async fn search(
        &self,
        request: Request<SearchRequest>,
    ) -> Result<Response<Self::SearchStream>, Status> {
        let call = self.metrics.search_begins();
        let request = match search::request(request.into_inner()) {
            Ok(request) => request,
            Err(refused) => {
                call.ends(SearchOutcome::Refused);
                return Err(refused);
            }
        };
        let (pieces, answer) = mpsc::channel(search::PIECES_QUEUED_MAX);
        let span = tracing::debug_span!("search", scope = ?request.scope);
        tokio::spawn(search::stream(self.searcher.clone(), request, pieces, call).instrument(span));
        Ok(Response::new(Box::pin(ReceiverStream::new(answer))))
    }
}

/// Runs a fetch and sends its frames until they are all sent or nobody listens.
async fn stream_fetch(fetcher: Fetcher, request: FetchRequest, frames: Frames, call: FetchCall) {
    let (sink, mut events) = mpsc::channel(EVENTS_QUEUED_MAX);
    let stats = ReadStats::default();
    let produce = async {
        let ended = fetcher.fetch(request, &sink, &stats).await;
        drop(sink);
        ended.is_ok()
    };
    let forward = async {
        let mut joiner = Joiner::default();
        loop {
            let event = match events.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Disconnected) => break,
                // Nothing is ready: what waits to be joined goes out now.
                Err(TryRecvError::Empty) => {
                    if let Some(data) = joiner.flush()
                        && !send(&frames, Frame::Data(data)).await
                    {
                        return false;
                    }
                    let Some(event) = events.recv().await else { break };
                    event
                }
            };
            count(&call, &event);
            for frame in frames_of(event, &mut joiner) {
                if !send(&frames, frame).await {
                    return false;
                }
            }
        }
        true
    };
    // A caller that leaves ends the reads under way at once, not at their next event.
    let whole = tokio::select! {
        (produced, forwarded) = async { tokio::join!(produce, forward) } => produced && forwarded,
        () = frames.closed() => false,
    };
    let cost = stats.totals();
    // Counted before the caller hears the end, so that what it asks next is true.
    call.cost(&cost.into());
    if whole {
        call.answered();
        send(&frames, Frame::End(End {})).await;
    }
    tracing::debug!(whole, ?cost, "fetch ended");
}

fn count(call: &FetchCall, event: &FetchEvent) {
    match event {
        FetchEvent::Header(_) => {}
        FetchEvent::Data(data) => call.sends(data.ends.len() as u64, data.wire.len() as u64),
        FetchEvent::Trailer(trailer) => {
            call.partition(trailer.status.as_str(), trailer.failed_in.map(Stage::as_str));
        }
    }
}

/// Sends one frame; false when the caller is gone.
async fn send(frames: &Frames, frame: Frame) -> bool {
    frames.send(Ok(FetchArchivedResponse { frame: Some(frame) })).await.is_ok()
}

fn frames_of(event: FetchEvent, joiner: &mut Joiner) -> Vec<Frame> {
    match event {
        FetchEvent::Header(header) => vec![Frame::Header(convert::header(header))],
        FetchEvent::Data(data) => joiner.push(&data).into_iter().map(Frame::Data).collect(),
        FetchEvent::Trailer(trailer) => joiner
            .flush()
            .map(Frame::Data)
            .into_iter()
            .chain([Frame::Trailer(convert::trailer(trailer))])
            .collect(),
    }
}

async fn stream_archives(
    fetcher: Fetcher,
    partitions: Vec<(TopicPartition, Option<u32>)>,
    messages: mpsc::Sender<Result<ListArchivesResponse, Status>>,
) {
    for (tp, incarnation) in partitions {
        let listed = match fetcher.archives(&tp, incarnation).await {
            Ok(Some((state, entries))) => {
                entries.iter().map(|entry| Ok(convert::archive(&tp, &state, entry))).collect()
            }
            Ok(None) => vec![Err(Status::not_found(format!("nothing of {tp} is archived")))],
            Err(error) => vec![Err(convert::status(&error))],
        };
        for message in listed {
            let failed = message.is_err();
            if messages.send(message).await.is_err() || failed {
                return;
            }
        }
    }
}
