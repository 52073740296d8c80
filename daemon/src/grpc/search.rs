//! Owns the call `Search`: its request and its answer on the wire.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierd_proto::v1;
use tierd_proto::v1::DATA_FRAME_BYTES_MAX;
use tierd_proto::v1::search_response::Piece;
use tokio::sync::mpsc;
use tonic::Status;

use super::{convert, frames};
use crate::error::{Classify, ErrorKind};
use crate::fetch::Data;
use crate::metrics::{SearchCall, SearchOutcome, SearchedArchives};
use crate::read::ReadStats;
use crate::record::{
    CanonicalRecord, CanonicalRecordEntry, Header, HeaderCondition, Selection, TopicName,
};
use crate::search::{
    self, Deliver, Hit, LIMIT_DEFAULT, Note, NoteKind, Order, Scope, SearchError, SearchEvent,
    SearchRequest, SearchSummary, Searcher,
};

/// Pieces of one answer that wait for the caller: at most 1 MiB each.
pub(super) const PIECES_QUEUED_MAX: usize = 16;

type Pieces = mpsc::Sender<Result<v1::SearchResponse, Status>>;

pub(super) fn request(wire: v1::SearchRequest) -> Result<SearchRequest, Status> {
    let order = match v1::SearchOrder::try_from(wire.order) {
        Ok(v1::SearchOrder::Newest) => Order::Newest,
        Ok(v1::SearchOrder::Oldest) => Order::Oldest,
        Err(_) => return Err(Status::invalid_argument("unknown order; upgrade tierd")),
    };
    let deliver = match v1::SearchDelivery::try_from(wire.delivery) {
        Ok(v1::SearchDelivery::Refs) => Deliver::Refs,
        Ok(v1::SearchDelivery::Records) => Deliver::Records,
        Ok(v1::SearchDelivery::Batches) => Deliver::Batches,
        Err(_) => return Err(Status::invalid_argument("unknown delivery; upgrade tierd")),
    };
    let topic = (!wire.topic.is_empty()).then(|| TopicName::new(&wire.topic)).transpose();
    Ok(SearchRequest {
        scope: Scope {
            topic: topic.map_err(|error| Status::invalid_argument(error.to_string()))?,
            partition: wire.partition,
            incarnation: wire.incarnation,
        },
        selection: wire.selection.map(selection).unwrap_or_default(),
        query: (!wire.query.is_empty()).then_some(wire.query),
        order,
        limit: wire.limit.unwrap_or(LIMIT_DEFAULT),
        deliver,
        page: (!wire.page.is_empty()).then_some(wire.page),
        time_limit: wire.time_limit_ms.map(Duration::from_millis),
    })
}

pub(super) fn selection(wire: v1::Selection) -> Selection {
    let header = |of: v1::HeaderCondition| HeaderCondition { name: of.name, value: of.value };
    Selection {
        key: wire.key,
        key_prefix: wire.key_prefix,
        headers: wire.headers.into_iter().map(header).collect(),
        from_ms: wire.from_ms,
        until_ms: wire.until_ms,
        from_offset: wire.from_offset,
        until_offset: wire.until_offset,
        producer_id: wire.producer_id,
    }
}

/// Runs a search and sends its pieces until they are all sent or nobody listens.
pub(super) async fn stream(
    searcher: Searcher,
    request: SearchRequest,
    pieces: Pieces,
    call: SearchCall,
) {
    let (sink, mut events) = mpsc::channel(search::EVENTS_QUEUED_MAX);
    let stats = Arc::new(ReadStats::default());
    let produce = async {
        let ended = searcher.search(request, &sink, &stats).await;
        drop(sink);
        ended
    };
    let forward = async {
        while let Some(event) = events.recv().await {
            for piece in pieces_of(event) {
                if !send(&pieces, piece).await {
                    return;
                }
            }
        }
    };
    let ended = tokio::select! {
        (ended, ()) = async { tokio::join!(produce, forward) } => ended,
        () = pieces.closed() => {
            call.read(stats.totals().bytes());
            return;
        }
    };
    tracing::debug!(cost = ?stats.totals(), ?ended, "search ended");
    call.read(stats.totals().bytes());
    match ended {
        Ok(summary) => {
            call.hits(summary.hits);
            call.archives(fates(&summary));
            let complete = summary.complete;
            if send(&pieces, Piece::End(end(summary))).await {
                call.ends(match complete {
                    true => SearchOutcome::Complete,
                    false => SearchOutcome::Incomplete,
                });
            }
        }
        Err(error) => {
            call.ends(match error {
                SearchError::Invalid(_) | SearchError::Unknown(_) => SearchOutcome::Refused,
                SearchError::Cancelled => SearchOutcome::Cancelled,
                _ => SearchOutcome::Failed,
            });
            // Nobody there is nobody to tell.
            let _ = pieces.send(Err(status(&error))).await;
        }
    }
}

fn fates(summary: &SearchSummary) -> SearchedArchives {
    let archives = summary.archives;
    SearchedArchives {
        pruned_by_time: archives.pruned_by_time,
        pruned_by_key: archives.pruned_by_key,
        searched: archives.searched,
        scanned: archives.scanned,
        unreadable: archives.unreadable,
        not_searchable: archives.not_searchable,
    }
}

/// Sends one piece; false when the caller is gone.
async fn send(pieces: &Pieces, piece: Piece) -> bool {
    pieces.send(Ok(v1::SearchResponse { piece: Some(piece) })).await.is_ok()
}

fn status(error: &SearchError) -> Status {
    let message = error.to_string();
    match error {
        SearchError::Invalid(_) => Status::invalid_argument(message),
        SearchError::Unknown(_) => Status::not_found(message),
        SearchError::Cancelled => Status::cancelled(message),
        _ => match error.kind() {
            ErrorKind::Retry | ErrorKind::Invalid => Status::unavailable(message),
            ErrorKind::NotFound | ErrorKind::Corrupt => Status::data_loss(message),
            ErrorKind::Exhausted => Status::resource_exhausted(message),
            ErrorKind::Fenced | ErrorKind::Internal => Status::internal(message),
        },
    }
}

fn pieces_of(event: SearchEvent) -> Vec<Piece> {
    match event {
        SearchEvent::Hit(hit, found) => {
            vec![Piece::Hit(v1::SearchHit {
                record: found.map(|found| record(*found)),
                ..of(&hit)
            })]
        }
        SearchEvent::Batch(hit, batch) => batches(&hit, &batch),
        SearchEvent::Note(told) => vec![Piece::Note(note(told))],
    }
}

fn of(hit: &Hit) -> v1::SearchHit {
    v1::SearchHit {
        topic: hit.tp.topic().to_string(),
        partition: hit.tp.partition(),
        incarnation: hit.incarnation,
        offset: hit.offset,
        timestamp: hit.timestamp,
        object: hit.archive.key().to_string(),
        record: None,
    }
}

fn record(entry: CanonicalRecordEntry) -> v1::Record {
    let CanonicalRecordEntry { key, value, headers, .. } = entry;
    let of_headers =
        |header: &Header| header.name.len() + header.value.as_ref().map_or(0, Bytes::len);
    let bytes = key.as_ref().map_or(0, Bytes::len)
        + value.as_ref().map_or(0, Bytes::len)
        + headers.iter().map(of_headers).sum::<usize>();
    if bytes > DATA_FRAME_BYTES_MAX {
        return v1::Record { omitted_bytes: bytes as u64, ..v1::Record::default() };
    }
    let headers = headers.into_iter();
    let headers =
        headers.map(|header| v1::RecordHeader { name: header.name, value: header.value }).collect();
    v1::Record { key, value, headers, omitted_bytes: 0 }
}

fn batches(hit: &Hit, batch: &CanonicalRecord) -> Vec<Piece> {
    // A batch made from entries always has its bytes.
    let Ok(wire) = batch.to_kafka_batch() else { return Vec::new() };
    let ends = vec![wire.len()];
    let piece = |frame: v1::Data| {
        Piece::Batch(v1::SearchBatch {
            topic: hit.tp.topic().to_string(),
            partition: hit.tp.partition(),
            incarnation: hit.incarnation,
            object: hit.archive.key().to_string(),
            batch: frame.batches,
            continued: frame.continued,
        })
    };
    frames::frames(&Data { wire, ends }).into_iter().map(piece).collect()
}

fn note(note: Note) -> v1::SearchNote {
    let kind = match note.kind {
        NoteKind::Unreadable => v1::SearchNoteKind::Unreadable,
        NoteKind::Undecodable => v1::SearchNoteKind::Undecodable,
        NoteKind::NotSearchable => v1::SearchNoteKind::NotSearchable,
        NoteKind::Unindexed => v1::SearchNoteKind::Unindexed,
        NoteKind::Gap => v1::SearchNoteKind::Gap,
        NoteKind::GenerationGone => v1::SearchNoteKind::GenerationGone,
    };
    v1::SearchNote {
        kind: kind.into(),
        topic: note.tp.topic().to_string(),
        partition: note.tp.partition(),
        range: note.range.map(convert::range),
        object: note.object.unwrap_or_default(),
        message: note.message,
    }
}

fn end(summary: SearchSummary) -> v1::SearchEnd {
    let reason = match summary.end {
        search::SearchEnd::Exhausted => v1::SearchEndReason::Exhausted,
        search::SearchEnd::Limit => v1::SearchEndReason::Limit,
        search::SearchEnd::TimeLimit => v1::SearchEndReason::TimeLimit,
    };
    let partition = |searched: search::PartitionSearched| v1::SearchedPartition {
        topic: searched.tp.topic().to_string(),
        partition: searched.tp.partition(),
        bounds: Some(v1::Bounds {
            incarnation: searched.incarnation,
            generation: searched.generation,
            log_start: searched.log_start,
            archived_through: searched.archived_through,
            last_stable_offset: searched.last_stable_offset,
        }),
    };
    let archives = summary.archives;
    v1::SearchEnd {
        hits: summary.hits,
        reason: reason.into(),
        complete: summary.complete,
        next_page: summary.next_page.unwrap_or_default(),
        partitions: summary.partitions.into_iter().map(partition).collect(),
        archives: Some(v1::SearchedArchives {
            in_range: archives.in_range,
            pruned_by_time: archives.pruned_by_time,
            pruned_by_key: archives.pruned_by_key,
            searched: archives.searched,
            scanned: archives.scanned,
            unreadable: archives.unreadable,
            not_searchable: archives.not_searchable,
        }),
    }
}
