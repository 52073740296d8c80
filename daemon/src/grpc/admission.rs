//! Owns how much memory the fetches of this process may hold together. One that
//! does not fit is refused early, with the time to come back, instead of waiting in
//! a queue until its caller has given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::fetch::FetchRequest;

const MIB: u64 = 1 << 20;
/// Memory of all fetches together, in MiB: 1 GiB is 29 readers that are slow and
/// read without a limit, or some 340 broker fetches of 1 MiB.
const FETCHES_MIB: usize = 1 << 10;
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
    room: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(FETCHES_MIB)) }
    }
}

impl Admission {
    /// Room for `request`, given back when dropped. `metadata` is the call's.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when there is none in time.
    pub(super) async fn admit(
        &self,
        request: &FetchRequest,
        metadata: &MetadataMap,
    ) -> Result<OwnedSemaphorePermit, Status> {
        let room = Arc::clone(&self.room).acquire_many_owned(cost(request));
        match tokio::time::timeout(wait(metadata), room).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(full()),
        }
    }
}

/// What `request` may hold, in MiB.
fn cost(request: &FetchRequest) -> u32 {
    let partitions = request.partitions.iter().map(|partition| partition.max_bytes);
    let asked = partitions.fold(0, u64::saturating_add).min(request.max_bytes);
    let mib = asked.div_ceil(MIB).saturating_add(FETCH_MIB_BESIDE).min(FETCH_MIB_MAX);
    mib as u32
}

fn full() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(PUSHBACK, MetadataValue::from(RETRY_AFTER_MS));
    Status::with_metadata(
        Code::ResourceExhausted,
        format!(
            "the fetches under way take {FETCHES_MIB} MiB, the most of this daemon; ask again \
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

    fn request(max_bytes: u64) -> FetchRequest {
        FetchRequest { partitions: Vec::new(), max_bytes }
    }

    #[test]
    fn a_fetch_costs_what_it_asks_for_up_to_what_it_can_hold() {
        use crate::fetch::{Caller, Isolation, Overlaps, PartitionRequest};
        use crate::record::{TopicName, TopicPartition};
        let partition = |max_bytes| PartitionRequest {
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
        };
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

    #[tokio::test]
    async fn what_does_not_fit_is_refused_with_the_time_to_come_back() {
        let admission = Admission { room: Arc::new(Semaphore::new(5)) };
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
