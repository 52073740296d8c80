//! Owns how much memory the fetches of this process may hold together. One that
//! does not fit is refused early, with the time to come back, instead of waiting in
//! a queue until its caller has given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::FETCHES_BYTES_MAX;
use crate::fetch::FetchRequest;

const MIB: u64 = 1 << 20;
/// Most memory of one fetch, in MiB: two windows of 16 MiB inflated, and what waits
/// to be sent.
const FETCH_MIB_MAX: u64 = 35;
/// What one fetch holds beside what it was asked for, in MiB: chunks at both ends
/// and frames under way.
const FETCH_MIB_BESIDE: u64 = 2;
/// How long a fetch waits for room at most: what is under way ends in milliseconds
/// or stays for long.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// A fetch waits for at most this part of its own deadline.
const WAIT_PART: u32 = 4;
/// When a refused caller may come back, in milliseconds.
const RETRY_AFTER_MS: u64 = 500;
/// gRPC's name for that (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Room for fetches. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    /// One permit for each MiB.
    room: Arc<Semaphore>,
    freed: Arc<Notify>,
    mib: u32,
}

/// Room that a fetch has, given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    /// Only until it is dropped.
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.freed.notify_waiters();
    }
}

impl Admission {
    /// Room for `bytes`, and for the largest fetch.
    pub(super) fn new(bytes: u64) -> Self {
        let mib = (bytes.min(FETCHES_BYTES_MAX) / MIB).max(FETCH_MIB_MAX) as u32;
        Self { room: Arc::new(Semaphore::new(mib as usize)), freed: Arc::default(), mib }
    }

    /// Room for `request`; `metadata` is the call's. Whoever finds room takes it: were
    /// it kept for the one who waits longest, a few that read without a limit would
    /// keep all others waiting.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when there is none in time.
    pub(super) async fn admit(
        &self,
        request: &FetchRequest,
        metadata: &MetadataMap,
    ) -> Result<Room, Status> {
        let cost = cost(request);
        let room = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                // Before the look: what is given back behind it is heard.
                freed.as_mut().enable();
                if let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(cost) {
                    return Room { permit: Some(permit), freed: Arc::clone(&self.freed) };
                }
                freed.await;
            }
        };
        let room = tokio::time::timeout(wait(metadata), room).await;
        room.map_err(|_| full(self.mib))
    }
}

/// What `request` may hold, in MiB.
fn cost(request: &FetchRequest) -> u32 {
    let partitions = request.partitions.iter().map(|partition| partition.max_bytes);
    let asked = partitions.fold(0, u64::saturating_add).min(request.max_bytes);
    let mib = asked.div_ceil(MIB).saturating_add(FETCH_MIB_BESIDE).min(FETCH_MIB_MAX);
    mib as u32
}

fn full(mib: u32) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(PUSHBACK, MetadataValue::from(RETRY_AFTER_MS));
    Status::with_metadata(
        Code::ResourceExhausted,
        format!(
            "the fetches under way take {mib} MiB, the most of this daemon; ask again \
             in {RETRY_AFTER_MS} ms, or for fewer bytes"
        ),
        metadata,
    )
}

/// How long the call may wait.
fn wait(metadata: &MetadataMap) -> Duration {
    timeout(metadata).map_or(WAIT_MAX, |left| WAIT_MAX.min(left / WAIT_PART))
}

/// What is left to the caller, by gRPC's header: digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u32 = digits.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    unit.checked_mul(amount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::{Caller, Isolation, Overlaps, PartitionRequest};
    use crate::record::{TopicName, TopicPartition};

    fn partition(max_bytes: u64) -> PartitionRequest {
        PartitionRequest {
            tp: TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap(),
            incarnation: None,
            offset: 0,
            max_bytes,
            min_one_batch: true,
            upper_bound: None,
            isolation: Isolation::ReadUncommitted,
            overlaps: Overlaps::Served,
            selection: None,
            caller: Caller::default(),
        }
    }

    fn request(max_bytes: u64) -> FetchRequest {
        FetchRequest { partitions: vec![partition(max_bytes)], max_bytes: u64::MAX }
    }

    #[test]
    fn a_fetch_costs_what_it_asks_for_up_to_what_it_can_hold() {
        let costs = |parts: &[u64], max_bytes| {
            let partitions = parts.iter().map(|&part| partition(part)).collect();
            cost(&FetchRequest { partitions, max_bytes })
        };
        assert_eq!(costs(&[MIB], u64::MAX), 3);
        assert_eq!(costs(&[1, 1], u64::MAX), 3);
        assert_eq!(costs(&[MIB, 3 * MIB], u64::MAX), 6);
        assert_eq!(costs(&[u64::MAX, u64::MAX], 5 * MIB), 7);
        assert_eq!(costs(&[u64::MAX], u64::MAX), FETCH_MIB_MAX as u32);
    }

    fn admission(mib: u32) -> Admission {
        Admission { room: Arc::new(Semaphore::new(mib as usize)), ..Admission::new(0) }
    }

    #[test]
    fn there_is_room_for_what_was_given_and_for_the_largest_fetch() {
        let room = |bytes| Admission::new(bytes).room.available_permits() as u64;
        assert_eq!(room(u64::MAX), FETCHES_BYTES_MAX / MIB);
        assert_eq!(room(128 * MIB), 128);
        assert_eq!(room(0), FETCH_MIB_MAX);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_with_the_time_to_come_back() {
        let admission = admission(5);
        let metadata = MetadataMap::new();
        let first = admission.admit(&request(0), &metadata).await.unwrap();
        let second = admission.admit(&request(0), &metadata).await.unwrap();
        let refused = admission.admit(&request(0), &metadata).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.metadata().get(PUSHBACK).unwrap().to_str().unwrap(), "500");
        drop(first);
        let third = admission.admit(&request(0), &metadata).await;
        assert!(third.is_ok());
        drop((second, third));
    }

    #[tokio::test]
    async fn a_large_fetch_that_waits_keeps_no_small_one_waiting() {
        let admission = admission(FETCH_MIB_MAX as u32);
        let metadata = MetadataMap::new();
        let small = admission.admit(&request(0), &metadata).await.unwrap();
        let large = request(u64::MAX);
        let mut waits = std::pin::pin!(admission.admit(&large, &metadata));
        assert!(futures::poll!(&mut waits).is_pending());
        let other = admission.admit(&request(0), &metadata).await.unwrap();
        drop(small);
        assert!(futures::poll!(&mut waits).is_pending());
        drop(other);
        assert!(waits.await.is_ok(), "it heard of the room");
    }

    #[test]
    fn nobody_waits_for_a_large_part_of_its_deadline() {
        let waits = |header: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", MetadataValue::from_static(header));
            wait(&metadata)
        };
        assert_eq!(waits("40m"), Duration::from_millis(10));
        assert_eq!(waits("8000u"), Duration::from_millis(2));
        for long in ["1H", "10S", "what", "", "99999999H"] {
            assert_eq!(waits(long), WAIT_MAX, "{long}");
        }
        assert_eq!(wait(&MetadataMap::new()), WAIT_MAX);
    }
}
