//! Owns the border between the wire's types and the plain ones: every message
//! and every status is translated here, and nowhere else.

pub(crate) mod broker;

use std::time::Duration;

use bytes::Bytes;
use tierd_proto::v1;
use tonic::Code;

use crate::describe::{
    ArchiveInfo, Backlog, Described, Description, ExplainedArchive, ExplainedRead, Explanation,
    IndexLevel, ReadPurpose,
};
use crate::error::ArchiveError;
use crate::types::{
    AbortedTransaction, AbortedTransactions, Bounds, End, FetchArgs, Gap, GapKind, Isolation,
    OffsetRange, Overlaps, TopicPartition,
};
use crate::watch::Watermark;

fn isolation(isolation: Isolation) -> v1::IsolationLevel {
    match isolation {
        Isolation::ReadUncommitted => v1::IsolationLevel::ReadUncommitted,
        Isolation::ReadCommitted => v1::IsolationLevel::ReadCommitted,
    }
}

/// A topic's id; empty for none.
pub(crate) fn topic_id(id: Option<[u8; 16]>) -> Bytes {
    id.map_or(Bytes::new(), |id| Bytes::copy_from_slice(&id))
}

pub(crate) fn request(args: &FetchArgs) -> v1::FetchArchivedRequest {
    let overlaps = match args.overlaps {
        Overlaps::Served => v1::Overlaps::Served,
        Overlaps::All => v1::Overlaps::All,
    };
    v1::FetchArchivedRequest {
        partitions: vec![v1::PartitionRequest {
            topic: args.topic.clone(),
            partition: args.partition,
            incarnation: args.incarnation,
            topic_id: topic_id(args.topic_id),
            current_leader_epoch: args.current_leader_epoch,
            fetch_offset_epoch: args.fetch_offset_epoch,
            fetch_offset: args.fetch_offset,
            upper_bound: args.upper_bound,
            max_bytes: args.max_bytes,
            min_one_batch: args.min_one_batch,
            isolation_level: isolation(args.isolation).into(),
            overlaps: overlaps.into(),
            selection: args.selection.clone().map(crate::search::selection),
        }],
        max_bytes: None,
        replica_id: args.replica_id,
    }
}

pub(crate) fn topic_partition(tp: &TopicPartition) -> v1::TopicPartition {
    v1::TopicPartition {
        topic: tp.topic.clone(),
        partition: tp.partition,
        incarnation: tp.incarnation,
    }
}

pub(crate) fn bounds(bounds: &v1::Bounds) -> Bounds {
    Bounds {
        incarnation: bounds.incarnation,
        generation: bounds.generation,
        log_start: bounds.log_start,
        archived_through: bounds.archived_through,
        last_stable_offset: bounds.last_stable_offset,
    }
}

pub(crate) fn range(range: Option<v1::OffsetRange>) -> Result<OffsetRange, ArchiveError> {
    match range {
        Some(range) if range.first <= range.last => {
            Ok(OffsetRange { first: range.first, last: range.last })
        }
        _ => Err(ArchiveError::protocol("a range of offsets is absent or inverted")),
    }
}

pub(crate) fn gap(gap: &v1::Gap) -> Result<Gap, ArchiveError> {
    let kind = match gap.kind() {
        v1::GapKind::BeforeFirst => GapKind::BeforeFirst,
        v1::GapKind::Missing => GapKind::Missing,
        v1::GapKind::Damaged => GapKind::Damaged,
        v1::GapKind::Unspecified => {
            return Err(ArchiveError::protocol("a gap of a kind this client does not know"));
        }
    };
    Ok(Gap { range: range(gap.range)?, kind })
}

pub(crate) fn end(reason: i32, of_gap: Option<&v1::Gap>) -> Result<End, ArchiveError> {
    match v1::EndReason::try_from(reason) {
        Ok(v1::EndReason::EndOfArchive) => Ok(End::EndOfArchive),
        Ok(v1::EndReason::Limit) => Ok(End::Limit),
        Ok(v1::EndReason::UpperBound) => Ok(End::UpperBound),
        Ok(v1::EndReason::OffsetsGoBack) => Ok(End::OffsetsGoBack),
        Ok(v1::EndReason::Gap) => match of_gap {
            Some(of_gap) => gap(of_gap).map(End::Gap),
            None => Err(ArchiveError::protocol("an answer ends at a gap and does not say which")),
        },
        Ok(v1::EndReason::Unspecified) | Err(_) => Err(ArchiveError::protocol(format!(
            "an answer ends for reason {reason}, which this client does not know"
        ))),
    }
}

pub(crate) fn aborted(aborted: &v1::AbortedTransactions) -> AbortedTransactions {
    let transaction = |of: &v1::AbortedTransaction| AbortedTransaction {
        producer_id: of.producer_id,
        first_offset: of.first_offset,
        last_offset: of.last_offset,
    };
    AbortedTransactions {
        transactions: aborted.transactions.iter().map(transaction).collect(),
        searched_to: aborted.searched_to,
        complete: aborted.complete,
    }
}

/// Where a status stands, for its error to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    /// The offset that the status is about, if it is about one.
    pub(crate) offset: Option<i64>,
    pub(crate) bounds: Option<Bounds>,
}

/// The facts beside a partition's status.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Details<'a> {
    pub(crate) message: &'a str,
    pub(crate) object: &'a str,
    pub(crate) retry_after_ms: Option<u32>,
}

/// The status of one partition.
pub(crate) fn status(
    status: i32,
    place: Place<'_>,
    details: Details<'_>,
) -> Result<(), ArchiveError> {
    let offset = place.offset.unwrap_or(-1);
    let message = details.message.to_owned();
    let bounds =
        || place.bounds.ok_or_else(|| ArchiveError::protocol("a status without its bounds"));
    Err(match v1::Status::try_from(status) {
        Ok(v1::Status::Ok) => return Ok(()),
        Ok(v1::Status::BelowLogStart) => {
            let Bounds { log_start, archived_through, .. } = bounds()?;
            ArchiveError::BelowLogStart { offset, log_start, archived_through }
        }
        Ok(v1::Status::NotArchivedYet) => {
            let archived_through = bounds()?.archived_through;
            ArchiveError::NotArchivedYet { offset, archived_through }
        }
        Ok(v1::Status::UnknownTopicOrPartition) => ArchiveError::UnknownTopicOrPartition {
            topic: place.topic.to_owned(),
            partition: Some(place.partition),
        },
        Ok(v1::Status::NotReported) => ArchiveError::NotReported { message },
        Ok(v1::Status::FencedLeaderEpoch) => ArchiveError::FencedLeaderEpoch { message },
        Ok(v1::Status::UnknownLeaderEpoch) => ArchiveError::UnknownLeaderEpoch { message },
        Ok(v1::Status::UnknownTopicId) => ArchiveError::UnknownTopicId { message },
        Ok(v1::Status::InconsistentTopicId) => ArchiveError::InconsistentTopicId { message },
        Ok(v1::Status::OutsideLineage) => ArchiveError::OutsideLineage { offset, message },
        Ok(v1::Status::OffsetMovedToTieredStorage) => {
            let Bounds { log_start, archived_through, .. } = bounds()?;
            ArchiveError::OffsetMovedToTieredStorage { offset, log_start, archived_through }
        }
        Ok(v1::Status::AboveHighWatermark) => ArchiveError::AboveHighWatermark { message },
        Ok(v1::Status::Unavailable) => {
            let retry_after = details.retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
            ArchiveError::Unavailable { message, retry_after }
        }
        Ok(v1::Status::DataLoss) => {
            let object = details.object.to_owned();
            ArchiveError::DataLoss { offset: place.offset, object, message }
        }
        Ok(v1::Status::InvalidRequest) => ArchiveError::Invalid { message },
        Ok(v1::Status::Internal) => ArchiveError::Internal { message },
        Ok(v1::Status::Unspecified) | Err(_) => ArchiveError::protocol(format!(
            "status {status}, which this client does not know: {message}"
        )),
    })
}

/// When to come back, by gRPC's word for it (gRFC A6).
fn pushback(status: &tonic::Status) -> Option<Duration> {
    let text = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?;
    text.parse().ok().map(Duration::from_millis)
}

/// A gRPC error: the whole call failed.
pub(crate) fn call_error(status: &tonic::Status, endpoint: &str) -> ArchiveError {
    let message = match status.message() {
        "" => format!("{} at {endpoint}", status.code()),
        message => format!("{message} ({} at {endpoint})", status.code()),
    };
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated => ArchiveError::Invalid { message },
        // Tonic's word for a message above our limit.
        Code::OutOfRange => ArchiveError::Protocol { message },
        Code::Unimplemented => ArchiveError::Protocol {
            message: format!("{message}: no tierd listens there, or it is older than this client"),
        },
        Code::ResourceExhausted if pushback(status).is_some() => {
            ArchiveError::Throttled { message, retry_after: pushback(status).unwrap_or_default() }
        }
        Code::DataLoss => ArchiveError::DataLoss { offset: None, object: String::new(), message },
        // The rest is what a daemon that stops, restarts or is overrun looks
        // like, broken connections under Unknown and Internal among them.
        _ => ArchiveError::Unavailable { message, retry_after: None },
    }
}

pub(crate) fn watermark(of: v1::Watermark) -> Watermark {
    Watermark {
        topic: of.topic,
        partition: of.partition,
        incarnation: of.incarnation,
        generation: of.generation,
        archived_through: of.archived_through,
        releasable_through: of.releasable_through,
    }
}

pub(crate) fn described(of: v1::PartitionDescription) -> Described {
    let result = describe(&of);
    let backlog = of.backlog.map(backlog);
    Described { topic: of.topic, partition: of.partition, result, backlog }
}

fn backlog(of: v1::Backlog) -> Backlog {
    Backlog {
        offsets: of.offsets,
        bytes: of.bytes,
        age: Duration::from_millis(of.age_ms.max(0).unsigned_abs()),
        stall: Some(of.stall).filter(|stall| !stall.is_empty()),
        quarantined: of.quarantined,
    }
}

fn describe(of: &v1::PartitionDescription) -> Result<Description, ArchiveError> {
    let known = of.bounds.as_ref().map(bounds);
    let place = Place { topic: &of.topic, partition: of.partition, offset: None, bounds: known };
    status(of.status, place, Details { message: &of.message, ..Details::default() })?;
    Ok(Description {
        bounds: known.ok_or_else(|| ArchiveError::protocol("a description without bounds"))?,
        gaps: of.gaps.iter().map(gap).collect::<Result<_, _>>()?,
        more_gaps: of.more_gaps,
        archives: of.archives,
        bytes: of.bytes,
        log_bytes: of.log_bytes,
        batches: of.batches,
        records: of.records,
        overlaps: of.overlaps,
        min_timestamp: of.min_timestamp,
        max_timestamp: of.max_timestamp,
    })
}

pub(crate) fn archive_info(of: v1::ListArchivesResponse) -> Result<ArchiveInfo, ArchiveError> {
    let index_level = match of.index_level() {
        v1::IndexLevel::Unspecified => IndexLevel::Unknown,
        v1::IndexLevel::None => IndexLevel::None,
        v1::IndexLevel::Keys => IndexLevel::Keys,
        v1::IndexLevel::Full => IndexLevel::Full,
    };
    Ok(ArchiveInfo {
        topic: of.topic,
        partition: of.partition,
        incarnation: of.incarnation,
        generation: of.generation,
        object: of.object,
        length: of.length,
        digest: of.digest,
        built_for: of.built_for,
        range: range(of.range)?,
        tiles: of.tiles,
        batches: of.batches,
        records: of.records,
        log_bytes: of.log_bytes,
        overlaps: of.overlaps,
        bad_crcs: of.bad_crcs,
        transactions: of.transactions,
        min_timestamp: of.min_timestamp,
        max_timestamp: of.max_timestamp,
        min_leader_epoch: of.min_leader_epoch,
        max_leader_epoch: of.max_leader_epoch,
        index_level,
    })
}

pub(crate) fn explanation(
    of: v1::PartitionExplanation,
    offset: i64,
) -> Result<Explanation, ArchiveError> {
    let known = of.bounds.as_ref().map(bounds);
    let place =
        Place { topic: &of.topic, partition: of.partition, offset: Some(offset), bounds: known };
    let result = status(of.status, place, Details { message: &of.message, ..Details::default() });
    let end = match result {
        Ok(()) => Some(end(of.end_reason, of.gap.as_ref())?),
        Err(_) => None,
    };
    let archive = |of: v1::ExplainedArchive| {
        let range = range(of.range)?;
        Ok(ExplainedArchive {
            object: of.object,
            range,
            chunks: of.chunks,
            raw_bytes: of.raw_bytes,
        })
    };
    let read = |of: v1::ExplainedRead| ExplainedRead {
        purpose: match of.purpose() {
            v1::ReadPurpose::Unspecified => ReadPurpose::Unknown,
            v1::ReadPurpose::Toc => ReadPurpose::Toc,
            v1::ReadPurpose::Data => ReadPurpose::Data,
        },
        object: of.object,
        offset: of.offset,
        length: of.length,
        cached: of.cached,
    };
    Ok(Explanation {
        result,
        end,
        bounds: known,
        archives: of.archives.into_iter().map(archive).collect::<Result<_, ArchiveError>>()?,
        reads: of.reads.into_iter().map(read).collect(),
        store_bytes: of.store_bytes,
        store_requests: of.store_requests,
    })
}
