//! Owns taking the broker's report: its messages, and the answer to each partition.

use tierd_proto::v1::{self, ReportPartitionStateRequest, ReportPartitionStateResponse};
use tonic::Status;

use super::{answers, convert};
use crate::error::Classify;
use crate::fetch::{self, PARTITIONS_MAX, Refusal};
use crate::indexer::LogStartError;
use crate::record::TopicPartition;
use crate::reports::{Lineage, Report, ReportError, Reports, Role};

/// Leader epochs of one partition: a leader changes some times a day.
const LINEAGE_MAX: usize = 10_000;

/// Takes `wire` into `reports`. What is wrong with one partition stops no other.
pub(super) fn take(
    reports: &Reports,
    wire: ReportPartitionStateRequest,
) -> Result<ReportPartitionStateResponse, Status> {
    if wire.partitions.len() > PARTITIONS_MAX {
        return Err(Status::invalid_argument(format!(
            "{} partitions in one report; at most {PARTITIONS_MAX}, in as many calls as it takes",
            wire.partitions.len()
        )));
    }
    // All or nothing where a message makes no sense at all.
    let parsed: Vec<_> = wire.partitions.into_iter().map(parse).collect::<Result<_, _>>()?;
    if let Some(at_ms) = wire.broker_started_at_ms {
        if at_ms < 0 {
            return Err(Status::invalid_argument(format!("a broker that started at {at_ms} ms")));
        }
        reports.broker_started(at_ms);
    }
    let answer = |(tp, report): (TopicPartition, Report)| {
        let outcome = match reports.report(&tp, report) {
            Ok(()) => answers::well(None),
            Err(error) => answers::refused(None, refusal(&error)),
        };
        let (topic, partition) = (tp.topic().to_string(), tp.partition());
        v1::ReportAnswer { topic, partition, outcome: Some(outcome) }
    };
    Ok(ReportPartitionStateResponse { partitions: parsed.into_iter().map(answer).collect() })
}

fn refusal(error: &ReportError) -> Refusal {
    let status = match error {
        ReportError::Fenced { .. } => fetch::Status::FencedLeaderEpoch,
        ReportError::Invalid { .. } => fetch::Status::InvalidRequest,
        ReportError::Full { .. } => fetch::Status::Exhausted,
    };
    Refusal { status, message: error.to_string(), object: None }
}

/// Why a log start was not moved, on the wire.
pub(super) fn unmoved(error: &LogStartError) -> Refusal {
    let status = match error {
        LogStartError::AboveHighWatermark { .. } => fetch::Status::AboveHighWatermark,
        LogStartError::NotReported { .. } => fetch::Status::NotReported,
        LogStartError::Invalid { .. } => fetch::Status::InvalidRequest,
        LogStartError::OtherTopic { .. } => fetch::Status::InconsistentTopicId,
        LogStartError::Catalog(_) | LogStartError::Outrun => error.kind().into(),
    };
    Refusal { status, message: error.to_string(), object: None }
}

fn parse(wire: v1::PartitionReport) -> Result<(TopicPartition, Report), Status> {
    let role = match v1::Role::try_from(wire.role) {
        Ok(v1::Role::Unspecified) => Role::Unknown,
        Ok(v1::Role::Leader) => Role::Leader,
        Ok(v1::Role::Follower) => Role::Follower,
        Err(_) => return Err(Status::invalid_argument("unknown role; upgrade tierd")),
    };
    if wire.lineage.len() > LINEAGE_MAX {
        return Err(Status::invalid_argument(format!(
            "{} leader epochs; at most {LINEAGE_MAX}",
            wire.lineage.len()
        )));
    }
    let tp = convert::topic_partition(&wire.topic, wire.partition)?;
    let report = Report {
        topic_id: convert::topic_id(&wire.topic_id)?,
        role,
        leader_epoch: convert::epoch(wire.leader_epoch),
        lineage: Lineage::new(
            wire.lineage.iter().map(|of| (of.leader_epoch, of.start_offset)).collect(),
        ),
        high_watermark: wire.high_watermark,
        last_stable_offset: wire.last_stable_offset,
        log_start: wire.log_start_offset,
        local_log_start: wire.local_log_start_offset,
        log_end: wire.log_end_offset,
    };
    Ok((tp, report))
}
