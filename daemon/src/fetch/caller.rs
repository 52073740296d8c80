//! Owns whether a caller may be answered: that it means the same topic, that it and
//! the broker who reports agree on the leader, that the archive lies in its lineage.

use super::lineage;
use super::types::{PartitionRequest, Status};
use super::{FetchError, Fetcher};
use crate::catalog::Snapshot;
use crate::read::ReadStats;
use crate::record::TopicPartition;
use crate::reports::Report;

/// What a caller knows of the partition it asks for. Nothing is checked of what is
/// absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The topic's id.
    pub topic_id: Option<[u8; 16]>,
    /// The leader epoch it takes for the current one.
    pub leader_epoch: Option<i32>,
    /// The leader epoch of the offset asked for, in the caller's lineage.
    pub offset_epoch: Option<i32>,
    /// Whether it is a replica that follows.
    pub is_follower: bool,
}

/// A status and what people are told.
pub(super) type Refused = (Status, String);

/// Whether `snapshot`, the newest of its name, is of the life that the broker
/// reports: a topic that was made anew has nothing of the old one's.
pub(super) fn is_alive(snapshot: &Snapshot, report: Option<&Report>) -> bool {
    let reported = report.and_then(|report| report.topic_id);
    let archived = snapshot.manifest().topic_id;
    reported.is_none() || archived.is_none() || reported == archived
}

/// Refuses a caller whose topic id is not that of the topic of this name.
pub(super) fn topic_id(
    request: &PartitionRequest,
    snapshot: Option<&Snapshot>,
    report: Option<&Report>,
) -> Option<Refused> {
    let asked = request.caller.topic_id?;
    let tp = &request.tp;
    let archived = snapshot.and_then(|snapshot| snapshot.manifest().topic_id);
    let reported = report.and_then(|report| report.topic_id);
    // An older life is asked for by its number, and the report is about the newest.
    let known = archived.or(reported.filter(|_| request.incarnation.is_none()));
    match known {
        Some(known) if known != asked => Some((
            Status::InconsistentTopicId,
            format!("the topic of {tp} has another id than the one asked for"),
        )),
        None if snapshot.is_none() => {
            let message = format!("no topic with the id asked for is known by the name of {tp}");
            Some((Status::UnknownTopicId, message))
        }
        _ => None,
    }
}

/// Refuses a caller whose leader epoch is not the reported one.
pub(super) fn leader_epoch(
    tp: &TopicPartition,
    asked: Option<i32>,
    report: Option<&Report>,
) -> Option<Refused> {
    let (asked, known) = (asked?, report?.leader_epoch?);
    if asked < known {
        let message = format!("leader epoch {asked} of {tp} is over; the current one is {known}");
        return Some((Status::FencedLeaderEpoch, message));
    }
    if asked > known {
        let message =
            format!("leader epoch {asked} of {tp} is not known yet; the broker reported {known}");
        return Some((Status::UnknownLeaderEpoch, message));
    }
    None
}

/// Refuses an offset that the archive holds from another lineage than the caller's.
/// Where either side does not know the epoch of the offset, nothing is refused.
pub(super) async fn offset_epoch(
    fetcher: &Fetcher,
    request: &PartitionRequest,
    snapshot: &Snapshot,
    report: Option<&Report>,
    stats: &ReadStats,
) -> Result<Option<Refused>, FetchError> {
    let by_report = || report.and_then(|report| report.lineage.epoch_at(request.offset));
    let Some(asked) = request.caller.offset_epoch.or_else(by_report) else { return Ok(None) };
    let archived = lineage::epoch_at(fetcher, snapshot, request.offset, stats).await?;
    Ok(archived.filter(|archived| *archived != asked).map(|archived| {
        let message = format!(
            "offset {} of {} is archived of leader epoch {archived}, not {asked}: it was truncated",
            request.offset, request.tp
        );
        (Status::OutsideLineage, message)
    }))
}
