//! Owns the mapping between the wire and `fetch` of the calls beside the fetch:
//! what a broker asks next.

use tierd_proto::v1;
use tonic::Status;

use super::convert::{self, bounds, partition_status, topic_partition};
use crate::fetch::{
    Aborted, Answered, EpochEnd, FoundOffset, OffsetQuery, PARTITIONS_MAX, PartitionState,
    ProducerState, Refusal, ReplicaState,
};
use crate::record::{OffsetRange, TopicPartition};

/// Refuses requests of no partition or of too many.
fn counted<T>(partitions: Vec<T>) -> Result<Vec<T>, Status> {
    if partitions.is_empty() || partitions.len() > PARTITIONS_MAX {
        return Err(Status::invalid_argument(format!(
            "{} partitions asked for; a request names 1 to {PARTITIONS_MAX}",
            partitions.len()
        )));
    }
    Ok(partitions)
}

/// The outcome beside an answer, and the answer where there is one.
fn outcome<T>(answered: Answered<T>) -> (v1::Outcome, Option<T>) {
    let state = answered.state;
    match answered.result {
        Ok(answer) => (well(state), Some(answer)),
        Err(refusal) => (refused(state, refusal), None),
    }
}

pub(super) fn well(state: Option<PartitionState>) -> v1::Outcome {
    v1::Outcome {
        status: v1::Status::Ok.into(),
        bounds: state.map(bounds),
        ..v1::Outcome::default()
    }
}

pub(super) fn refused(state: Option<PartitionState>, refusal: Refusal) -> v1::Outcome {
    let status = partition_status(refusal.status);
    v1::Outcome {
        status: status.into(),
        message: refusal.message,
        retry_after_ms: (status == v1::Status::Unavailable).then_some(convert::RETRY_AFTER_MS),
        object: refusal.object.unwrap_or_default(),
        bounds: state.map(bounds),
    }
}

pub(super) fn offset_queries(wire: v1::ListOffsetsRequest) -> Result<Vec<OffsetQuery>, Status> {
    let query = |wire: v1::OffsetQuery| {
        Ok(OffsetQuery {
            tp: topic_partition(&wire.topic, wire.partition)?,
            incarnation: wire.incarnation,
            timestamp: wire.timestamp,
            starting_offset: wire.starting_offset,
            upper_bound: wire.upper_bound,
            leader_epoch: convert::epoch(wire.current_leader_epoch),
            isolation: convert::isolation(wire.isolation_level)?,
        })
    };
    counted(wire.partitions)?.into_iter().map(query).collect()
}

pub(super) fn found_offset(
    query: &OffsetQuery,
    answered: Answered<Option<FoundOffset>>,
) -> v1::OffsetAnswer {
    let (outcome, found) = outcome(answered);
    let found = found.flatten().map(|found| v1::FoundOffset {
        offset: found.offset,
        timestamp: found.timestamp,
        leader_epoch: found.leader_epoch,
    });
    v1::OffsetAnswer {
        topic: query.tp.topic().to_string(),
        partition: query.tp.partition(),
        outcome: Some(outcome),
        found,
    }
}

/// Which leader epoch of a partition to find the end of.
pub(super) struct EpochQuery {
    pub(super) tp: TopicPartition,
    pub(super) incarnation: Option<u32>,
    pub(super) current: Option<i32>,
    pub(super) leader_epoch: i32,
}

pub(super) fn epoch_queries(
    wire: v1::OffsetForLeaderEpochRequest,
) -> Result<Vec<EpochQuery>, Status> {
    let query = |wire: v1::EpochQuery| {
        Ok(EpochQuery {
            tp: topic_partition(&wire.topic, wire.partition)?,
            incarnation: wire.incarnation,
            current: convert::epoch(wire.current_leader_epoch),
            leader_epoch: wire.leader_epoch,
        })
    };
    counted(wire.partitions)?.into_iter().map(query).collect()
}

pub(super) fn epoch_end(tp: &TopicPartition, answered: Answered<EpochEnd>) -> v1::EpochAnswer {
    let (outcome, found) = outcome(answered);
    let EpochEnd { leader_epoch, end_offset } = found.unwrap_or(EpochEnd::UNDEFINED);
    v1::EpochAnswer {
        topic: tp.topic().to_string(),
        partition: tp.partition(),
        outcome: Some(outcome),
        leader_epoch,
        end_offset,
    }
}

pub(super) fn aborted_query(
    wire: v1::ListAbortedTransactionsRequest,
) -> Result<(TopicPartition, Option<u32>, OffsetRange), Status> {
    let tp = topic_partition(&wire.topic, wire.partition)?;
    let range = wire.range.and_then(|range| OffsetRange::new(range.first, range.last));
    let range = range.ok_or_else(|| {
        Status::invalid_argument("the field `range` is missing or ends before it begins")
    })?;
    Ok((tp, wire.incarnation, range))
}

pub(super) fn aborted(answered: Answered<Aborted>) -> v1::ListAbortedTransactionsResponse {
    let (outcome, found) = outcome(answered);
    v1::ListAbortedTransactionsResponse {
        outcome: Some(outcome),
        aborted: found.map(convert::aborted),
    }
}

pub(super) fn replica_state(answered: Answered<ReplicaState>) -> v1::GetReplicaStateResponse {
    let (outcome, found) = outcome(answered);
    let outcome = Some(outcome);
    let Some(found) = found else {
        return v1::GetReplicaStateResponse { outcome, ..Default::default() };
    };
    let epoch = |(leader_epoch, start_offset)| v1::EpochStart { leader_epoch, start_offset };
    let producer = |of: ProducerState| v1::ProducerState {
        producer_id: of.producer_id,
        producer_epoch: of.producer_epoch.into(),
        last_sequence: of.last_sequence,
        last_offset: of.last_offset,
        offset_delta: of.offset_delta,
        timestamp: of.timestamp,
        coordinator_epoch: of.coordinator_epoch,
        current_txn_first_offset: of.open_since,
    };
    v1::GetReplicaStateResponse {
        outcome,
        offset: found.offset,
        leader_epochs: found.leader_epochs.into_iter().map(epoch).collect(),
        producers: found.producers.into_iter().map(producer).collect(),
        producers_complete: found.complete,
    }
}
