//! Owns the same border for what a broker asks beside the fetch.

use tierd_proto::v1;

use super::{Details, Place, bounds, isolation, status};
use crate::broker::{EpochArgs, EpochEnd, FoundOffset, OffsetArgs, PartitionAnswer};
use crate::error::ArchiveError;

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
    }
}

pub(crate) fn epoch_answer(of: v1::EpochAnswer) -> PartitionAnswer<Option<EpochEnd>> {
    let (leader_epoch, end_offset) = (of.leader_epoch, of.end_offset);
    let found = (leader_epoch >= 0).then_some(EpochEnd { leader_epoch, end_offset });
    answered(of.topic, of.partition, of.outcome.as_ref(), None, || found)
}
