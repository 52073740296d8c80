//! Owns the same border for what a broker asks beside the fetch.

use tierd_proto::v1;

use super::{Details, Place, aborted, bounds, isolation, status, topic_id};
use crate::broker::{
    BrokerReport, EpochArgs, EpochEnd, FoundOffset, OffsetArgs, PartitionAnswer, PartitionReport,
    ProducerState, ReplicaState, Role,
};
use crate::error::ArchiveError;
use crate::types::{AbortedTransactions, OffsetRange, TopicPartition};

/// The outcome of one partition, and `answer` where it is well.
fn answered<T>(
    topic: String,
    partition: i32,
    outcome: Option<&v1::Outcome>,
    offset: Option<i64>,
    answer: impl FnOnce() -> T,
) -> PartitionAnswer<T> {
    let Some(outcome) = outcome else {
        let result = Err(ArchiveError::protocol("an answer without its outcome"));
        return PartitionAnswer { topic, partition, bounds: None, result };
    };
    let bounds = outcome.bounds.as_ref().map(bounds);
    let place = Place { topic: &topic, partition, offset, bounds };
    let details = Details {
        message: &outcome.message,
        object: &outcome.object,
        retry_after_ms: outcome.retry_after_ms,
    };
    let result = status(outcome.status, place, details).map(|()| answer());
    PartitionAnswer { topic, partition, bounds, result }
}

pub(crate) fn offset_query(args: &OffsetArgs) -> v1::OffsetQuery {
    v1::OffsetQuery {
        topic: args.topic.clone(),
        partition: args.partition,
        incarnation: args.incarnation,
        timestamp: args.spec.timestamp(),
        starting_offset: args.starting_offset,
        upper_bound: args.upper_bound,
        current_leader_epoch: args.current_leader_epoch,
        isolation_level: isolation(args.isolation).into(),
    }
}

pub(crate) fn offset_answer(of: v1::OffsetAnswer) -> PartitionAnswer<Option<FoundOffset>> {
    let found = of.found.map(|found| FoundOffset {
        offset: found.offset,
        timestamp: found.timestamp,
        leader_epoch: found.leader_epoch,
    });
    answered(of.topic, of.partition, of.outcome.as_ref(), None, || found)
}

pub(crate) fn epoch_query(args: &EpochArgs) -> v1::EpochQuery {
    v1::EpochQuery {
        topic: args.topic.clone(),
        partition: args.partition,
        incarnation: args.incarnation,
        leader_epoch: args.leader_epoch,
        current_leader_epoch: args.current_leader_epoch,
    }
}

pub(crate) fn epoch_answer(of: v1::EpochAnswer) -> PartitionAnswer<Option<EpochEnd>> {
    let (leader_epoch, end_offset) = (of.leader_epoch, of.end_offset);
    let found = (leader_epoch >= 0).then_some(EpochEnd { leader_epoch, end_offset });
    answered(of.topic, of.partition, of.outcome.as_ref(), None, || found)
}

pub(crate) fn aborted_query(
    tp: &TopicPartition,
    range: OffsetRange,
) -> v1::ListAbortedTransactionsRequest {
    v1::ListAbortedTransactionsRequest {
        topic: tp.topic.clone(),
        partition: tp.partition,
        incarnation: tp.incarnation,
        range: Some(v1::OffsetRange { first: range.first, last: range.last }),
    }
}

pub(crate) fn aborted_answer(
    tp: &TopicPartition,
    range: OffsetRange,
    of: v1::ListAbortedTransactionsResponse,
) -> Result<AbortedTransactions, ArchiveError> {
    let (topic, offset) = (tp.topic.clone(), Some(range.first));
    let found = of.aborted.as_ref().map(aborted);
    let answer = answered(topic, tp.partition, of.outcome.as_ref(), offset, || found);
    answer.result?.ok_or_else(|| ArchiveError::protocol("an answer without its list"))
}

pub(crate) fn report(of: &BrokerReport) -> v1::ReportPartitionStateRequest {
    v1::ReportPartitionStateRequest {
        broker_started_at_ms: of.started_at_ms,
        partitions: of.partitions.iter().map(partition_report).collect(),
    }
}

fn partition_report(of: &PartitionReport) -> v1::PartitionReport {
    let role = match of.role {
        None => v1::Role::Unspecified,
        Some(Role::Leader) => v1::Role::Leader,
        Some(Role::Follower) => v1::Role::Follower,
    };
    let epoch =
        |&(leader_epoch, start_offset): &(i32, i64)| v1::EpochStart { leader_epoch, start_offset };
    v1::PartitionReport {
        topic: of.topic.clone(),
        partition: of.partition,
        topic_id: topic_id(of.topic_id),
        role: role.into(),
        leader_epoch: of.leader_epoch,
        lineage: of.lineage.iter().map(epoch).collect(),
        high_watermark: of.high_watermark,
        last_stable_offset: of.last_stable_offset,
        log_start_offset: of.log_start,
        local_log_start_offset: of.local_log_start,
        log_end_offset: of.log_end,
    }
}

pub(crate) fn report_answer(of: v1::ReportAnswer) -> PartitionAnswer<()> {
    answered(of.topic, of.partition, of.outcome.as_ref(), None, || ())
}

/// Where a log start is, or why it was not moved.
pub(crate) fn log_start(
    tp: &TopicPartition,
    outcome: Option<&v1::Outcome>,
    log_start: i64,
) -> Result<i64, ArchiveError> {
    answered(tp.topic.clone(), tp.partition, outcome, None, || log_start).result
}

pub(crate) fn replica_state(
    tp: &TopicPartition,
    offset: Option<i64>,
    of: v1::GetReplicaStateResponse,
) -> Result<ReplicaState, ArchiveError> {
    let producer = |of: v1::ProducerState| ProducerState {
        producer_id: of.producer_id,
        producer_epoch: of.producer_epoch,
        last_sequence: of.last_sequence,
        last_offset: of.last_offset,
        offset_delta: of.offset_delta,
        timestamp: of.timestamp,
        coordinator_epoch: of.coordinator_epoch,
        current_txn_first_offset: of.current_txn_first_offset,
    };
    let state = ReplicaState {
        offset: of.offset,
        leader_epochs: of.leader_epochs.iter().map(|e| (e.leader_epoch, e.start_offset)).collect(),
        producers: of.producers.into_iter().map(producer).collect(),
        producers_complete: of.producers_complete,
    };
    answered(tp.topic.clone(), tp.partition, of.outcome.as_ref(), offset, || state).result
}
