//! Owns the mapping between the wire and `fetch`: one function per message, no
//! decision beyond refusing requests that make no sense.

use std::collections::BTreeSet;

use tierd_proto::v1;
use tonic::Status;

use crate::archive::{ArchiveSummary, IndexLevel, UNKNOWN_TIMESTAMP};
use crate::catalog::{ArchiveEntry, Gap, GapKind, Watermark};
use crate::error::{Classify, ErrorKind};
use crate::fetch::{
    self, Aborted, Caller, Description, EndReason, Explanation, FetchError, FetchRequest,
    Isolation, Overlaps, PARTITIONS_MAX, PartitionHeader, PartitionRequest, PartitionState,
    PartitionTrailer, Purpose,
};
use crate::metrics::{Backlog, Stall};
use crate::record::{OffsetRange, TopicName, TopicPartition};

/// When a caller may ask again after a store that did not answer, in milliseconds.
pub(super) const RETRY_AFTER_MS: u32 = 1_000;
/// Gaps that one partition's description lists.
const GAPS_MAX: usize = 1_000;
/// Gaps that one answer lists, some 30 bytes each: gRPC libraries take messages of
/// 4 MiB.
const GAPS_PER_ANSWER_MAX: usize = 20_000;

/// The gRPC error of a call that failed as a whole.
pub(super) fn status(error: &FetchError) -> Status {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::Retry | ErrorKind::Invalid => Status::unavailable(message),
        ErrorKind::NotFound | ErrorKind::Corrupt => Status::data_loss(message),
        ErrorKind::Exhausted => Status::resource_exhausted(message),
        ErrorKind::Fenced | ErrorKind::Internal => Status::internal(message),
    }
}

pub(super) fn topic_partition(topic: &str, partition: i32) -> Result<TopicPartition, Status> {
    let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    let topic = TopicName::new(topic).map_err(|error| invalid(&error))?;
    TopicPartition::new(topic, partition).map_err(|error| invalid(&error))
}

pub(super) fn fetch_request(wire: v1::FetchArchivedRequest) -> Result<FetchRequest, Status> {
    if wire.partitions.is_empty() || wire.partitions.len() > PARTITIONS_MAX {
        return Err(Status::invalid_argument(format!(
            "{} partitions asked for; a fetch names 1 to {PARTITIONS_MAX}",
            wire.partitions.len()
        )));
    }
    let is_follower = wire.replica_id.is_some_and(|id| id >= 0);
    let request = |wire| partition_request(wire, is_follower);
    let partitions = wire.partitions.into_iter().map(request).collect::<Result<_, _>>()?;
    Ok(FetchRequest { partitions, max_bytes: wire.max_bytes.unwrap_or(u64::MAX) })
}

/// An unknown number reads as the default; a caller from the future must hear it.
fn unknown(what: &str) -> Status {
    Status::invalid_argument(format!("unknown {what}; upgrade tierd"))
}

pub(super) fn isolation(wire: i32) -> Result<Isolation, Status> {
    match v1::IsolationLevel::try_from(wire) {
        Ok(v1::IsolationLevel::ReadUncommitted) => Ok(Isolation::ReadUncommitted),
        Ok(v1::IsolationLevel::ReadCommitted) => Ok(Isolation::ReadCommitted),
        Err(_) => Err(unknown("isolation level")),
    }
}

/// A topic's id; none where it is empty.
pub(super) fn topic_id(wire: &[u8]) -> Result<Option<[u8; 16]>, Status> {
    match wire {
        [] => Ok(None),
        // Kafka's word for "no id".
        [0, rest @ ..] if rest.len() == 15 && rest.iter().all(|byte| *byte == 0) => Ok(None),
        id => id.try_into().map(Some).map_err(|_| {
            Status::invalid_argument(format!("a topic id of {} bytes; it has 16", id.len()))
        }),
    }
}

/// A leader epoch to compare with; none where it is -1.
pub(super) fn epoch(wire: Option<i32>) -> Option<i32> {
    wire.filter(|epoch| *epoch >= 0)
}

fn partition_request(
    wire: v1::PartitionRequest,
    is_follower: bool,
) -> Result<PartitionRequest, Status> {
    let overlaps = match v1::Overlaps::try_from(wire.overlaps) {
        Ok(v1::Overlaps::Served) => Overlaps::Served,
        Ok(v1::Overlaps::All) => Overlaps::All,
        Err(_) => return Err(unknown("overlaps")),
    };
    Ok(PartitionRequest {
        tp: topic_partition(&wire.topic, wire.partition)?,
        incarnation: wire.incarnation,
        offset: wire.fetch_offset,
        max_bytes: wire.max_bytes.unwrap_or(u64::MAX),
        min_one_batch: wire.min_one_batch,
        upper_bound: wire.upper_bound,
        isolation: isolation(wire.isolation_level)?,
        overlaps,
        selection: wire.selection.map(super::search::selection),
        caller: Caller {
            topic_id: topic_id(&wire.topic_id)?,
            leader_epoch: epoch(wire.current_leader_epoch),
            offset_epoch: epoch(wire.fetch_offset_epoch),
            is_follower,
        },
    })
}

/// The partitions to follow; all of them where it is empty.
pub(super) fn watched(wire: v1::WatchArchivedRequest) -> Result<BTreeSet<TopicPartition>, Status> {
    if wire.partitions.len() > PARTITIONS_MAX {
        return Err(Status::invalid_argument(format!(
            "{} partitions named, at most {PARTITIONS_MAX}; name none to follow all",
            wire.partitions.len()
        )));
    }
    let parse = |named: v1::TopicPartition| match named.incarnation {
        None => topic_partition(&named.topic, named.partition),
        Some(_) => Err(Status::invalid_argument(
            "an incarnation cannot be followed: the newest is told; leave it out",
        )),
    };
    wire.partitions.into_iter().map(parse).collect()
}

pub(super) fn watermark((tp, mark): &(TopicPartition, Watermark)) -> v1::Watermark {
    v1::Watermark {
        topic: tp.topic().to_string(),
        partition: tp.partition(),
        incarnation: mark.incarnation,
        generation: mark.generation,
        archived_through: mark.archived_through,
        releasable_through: mark.releasable_through,
    }
}

pub(super) fn header(header: PartitionHeader) -> v1::PartitionHeader {
    v1::PartitionHeader {
        topic: header.tp.topic().to_string(),
        partition: header.tp.partition(),
        bounds: header.state.map(bounds),
    }
}

pub(super) fn bounds(state: PartitionState) -> v1::Bounds {
    v1::Bounds {
        incarnation: state.incarnation,
        generation: state.generation,
        log_start: state.log_start,
        archived_through: state.archived_through,
        last_stable_offset: state.last_stable_offset,
    }
}

pub(super) fn range(range: OffsetRange) -> v1::OffsetRange {
    v1::OffsetRange { first: range.base(), last: range.last() }
}

fn gap(gap: Gap) -> v1::Gap {
    let kind = match gap.kind {
        GapKind::BeforeFirst => v1::GapKind::BeforeFirst,
        GapKind::Missing => v1::GapKind::Missing,
        GapKind::Damaged => v1::GapKind::Damaged,
    };
    v1::Gap { range: Some(range(gap.range)), kind: kind.into() }
}

pub(super) fn partition_status(status: fetch::Status) -> v1::Status {
    match status {
        fetch::Status::Ok => v1::Status::Ok,
        fetch::Status::BelowLogStart => v1::Status::BelowLogStart,
        fetch::Status::NotArchivedYet => v1::Status::NotArchivedYet,
        fetch::Status::UnknownTopicOrPartition => v1::Status::UnknownTopicOrPartition,
        fetch::Status::NotReported => v1::Status::NotReported,
        fetch::Status::FencedLeaderEpoch => v1::Status::FencedLeaderEpoch,
        fetch::Status::UnknownLeaderEpoch => v1::Status::UnknownLeaderEpoch,
        fetch::Status::UnknownTopicId => v1::Status::UnknownTopicId,
        fetch::Status::InconsistentTopicId => v1::Status::InconsistentTopicId,
        fetch::Status::OutsideLineage => v1::Status::OutsideLineage,
        fetch::Status::OffsetMovedToTieredStorage => v1::Status::OffsetMovedToTieredStorage,
        fetch::Status::AboveHighWatermark => v1::Status::AboveHighWatermark,
        fetch::Status::InvalidRequest => v1::Status::InvalidRequest,
        fetch::Status::Unavailable | fetch::Status::Exhausted => v1::Status::Unavailable,
        fetch::Status::DataLoss => v1::Status::DataLoss,
        fetch::Status::Internal => v1::Status::Internal,
    }
}

fn end_reason(end: EndReason) -> (v1::EndReason, Option<v1::Gap>) {
    match end {
        EndReason::EndOfArchive => (v1::EndReason::EndOfArchive, None),
        EndReason::Limit => (v1::EndReason::Limit, None),
        EndReason::UpperBound => (v1::EndReason::UpperBound, None),
        EndReason::Gap(found) => (v1::EndReason::Gap, Some(gap(found))),
        EndReason::OffsetsGoBack => (v1::EndReason::OffsetsGoBack, None),
        EndReason::Failed => (v1::EndReason::Unspecified, None),
    }
}

pub(super) fn trailer(trailer: PartitionTrailer) -> v1::PartitionTrailer {
    let (end_reason, gap) = end_reason(trailer.end);
    let status = partition_status(trailer.status);
    v1::PartitionTrailer {
        status: status.into(),
        message: trailer.message,
        retry_after_ms: (status == v1::Status::Unavailable).then_some(RETRY_AFTER_MS),
        object: trailer.object.unwrap_or_default(),
        bounds: trailer.refused_by.map(bounds),
        next_offset: trailer.next_offset,
        bytes: trailer.bytes,
        batches: u32::try_from(trailer.batches).unwrap_or(u32::MAX),
        end_reason: end_reason.into(),
        gap,
        aborted: trailer.aborted.map(aborted),
    }
}

pub(super) fn aborted(found: Aborted) -> v1::AbortedTransactions {
    let mut transactions = found.transactions;
    transactions.sort_by_key(|aborted| (aborted.first_offset, aborted.last_offset));
    v1::AbortedTransactions {
        transactions: transactions
            .into_iter()
            .map(|aborted| v1::AbortedTransaction {
                producer_id: aborted.producer_id,
                first_offset: aborted.first_offset,
                last_offset: aborted.last_offset,
            })
            .collect(),
        searched_to: found.searched_to,
        complete: found.complete,
    }
}

/// Which gaps one answer lists, and for how many there is room.
#[derive(Debug)]
pub(super) struct GapPage {
    from: i64,
    room: usize,
}

impl GapPage {
    pub(super) fn new(from: Option<i64>) -> Self {
        Self { from: from.unwrap_or(0), room: GAPS_PER_ANSWER_MAX }
    }

    /// The gaps to list of one partition, and whether more follow.
    fn take(&mut self, gaps: &[Gap]) -> (Vec<v1::Gap>, bool) {
        let first = gaps.partition_point(|gap| gap.range.last() < self.from);
        let rest = &gaps[first..];
        let count = rest.len().min(GAPS_MAX).min(self.room);
        self.room -= count;
        (rest[..count].iter().copied().map(gap).collect(), count < rest.len())
    }
}

pub(super) fn description(
    tp: &TopicPartition,
    described: Result<Option<Description>, FetchError>,
    page: &mut GapPage,
) -> v1::PartitionDescription {
    let named = v1::PartitionDescription {
        topic: tp.topic().to_string(),
        partition: tp.partition(),
        ..v1::PartitionDescription::default()
    };
    let described = match described {
        Ok(Some(described)) => described,
        Ok(None) => {
            return v1::PartitionDescription {
                status: v1::Status::UnknownTopicOrPartition.into(),
                message: format!("nothing of {tp} is archived"),
                ..named
            };
        }
        Err(error) => {
            return v1::PartitionDescription {
                status: partition_status(error.kind().into()).into(),
                message: error.to_string(),
                ..named
            };
        }
    };
    let (gaps, more_gaps) = page.take(&described.gaps);
    v1::PartitionDescription {
        status: v1::Status::Ok.into(),
        bounds: Some(bounds(described.state)),
        gaps,
        more_gaps,
        archives: described.archives,
        bytes: described.bytes,
        log_bytes: described.log_bytes,
        batches: described.batches,
        records: described.records,
        overlaps: described.overlaps,
        min_timestamp: described.min_timestamp.unwrap_or(-1),
        max_timestamp: described.max_timestamp.unwrap_or(-1),
        ..named
    }
}

/// A backlog and its age in milliseconds.
pub(super) fn backlog((backlog, age_ms): (Backlog, i64)) -> v1::Backlog {
    v1::Backlog {
        offsets: backlog.offsets,
        bytes: backlog.bytes,
        age_ms,
        stall: backlog.stall.map_or("", Stall::as_str).to_owned(),
        quarantined: backlog.quarantined,
    }
}

pub(super) fn archive(
    tp: &TopicPartition,
    state: &PartitionState,
    entry: &ArchiveEntry,
) -> v1::ListArchivesResponse {
    let summary = &entry.summary;
    let index_level = match summary.index_level {
        IndexLevel::None => v1::IndexLevel::None,
        IndexLevel::Keys => v1::IndexLevel::Keys,
        IndexLevel::Full(_) => v1::IndexLevel::Full,
    };
    v1::ListArchivesResponse {
        topic: tp.topic().to_string(),
        partition: tp.partition(),
        incarnation: state.incarnation,
        generation: state.generation,
        object: entry.key().to_string(),
        length: summary.length,
        digest: blake3::Hash::from_bytes(summary.digest).to_hex().to_string(),
        built_for: entry.built_for,
        range: Some(range(summary.range)),
        tiles: summary.tiles,
        batches: summary.batches,
        records: summary.records,
        log_bytes: summary.log_bytes,
        overlaps: summary.overlaps,
        bad_crcs: summary.bad_crcs,
        transactions: summary.transactions,
        min_timestamp: time(summary, summary.min_timestamp),
        max_timestamp: time(summary, summary.max_timestamp),
        min_leader_epoch: summary.leader_epochs.0,
        max_leader_epoch: summary.leader_epochs.1,
        index_level: index_level.into(),
    }
}

/// A timestamp on the wire: -1 where there is none or it is not known.
fn time(summary: &ArchiveSummary, ms: i64) -> i64 {
    if summary.records == 0 || ms == UNKNOWN_TIMESTAMP { -1 } else { ms }
}

pub(super) fn explanation(tp: &TopicPartition, explained: Explanation) -> v1::PartitionExplanation {
    let (end_reason, gap) = end_reason(explained.end);
    let mut message = v1::PartitionExplanation {
        topic: tp.topic().to_string(),
        partition: tp.partition(),
        status: partition_status(explained.status).into(),
        message: explained.message,
        bounds: explained.state.map(bounds),
        end_reason: end_reason.into(),
        gap,
        ..v1::PartitionExplanation::default()
    };
    for archive in explained.archives {
        for read in archive.reads {
            let length = read.place.end - read.place.start;
            if !read.cached {
                message.store_bytes += length;
                message.store_requests += 1;
            }
            message.reads.push(v1::ExplainedRead {
                object: archive.object.clone(),
                offset: read.place.start,
                length,
                purpose: match read.purpose {
                    Purpose::Toc => v1::ReadPurpose::Toc,
                    Purpose::Data => v1::ReadPurpose::Data,
                }
                .into(),
                cached: read.cached,
            });
        }
        message.archives.push(v1::ExplainedArchive {
            object: archive.object,
            range: Some(range(archive.range)),
            chunks: archive.chunks,
            raw_bytes: archive.raw_bytes,
        });
    }
    message
}
