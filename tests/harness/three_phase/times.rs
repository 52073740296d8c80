//! ListOffsets: ends the broker knows by itself, records by time in the archive
//! first and then in what is local.

use tierd_client::{ArchiveError, FoundOffset, Isolation, OffsetArgs, OffsetSpec};

use super::local::{Batch, Partition};
use super::read::UNKNOWN_TOPIC_OR_PARTITION;
use super::{Core, lock};

const INVALID_REQUEST: i16 = 42;

/// Offset and timestamp of a record; -1 for none.
pub(super) type Found = (i64, i64);

impl Core {
    /// The offset that `timestamp` asks for, or a Kafka error.
    pub(super) async fn find(
        &self,
        topic: &str,
        partition: i32,
        timestamp: i64,
        committed: bool,
    ) -> Result<Found, i16> {
        let held = lock(&self.partitions).get(&(topic.to_owned(), partition)).cloned();
        let held = held.ok_or(UNKNOWN_TOPIC_OR_PARTITION)?;
        let bound = if committed { held.last_stable_offset } else { held.high_watermark };
        let spec = OffsetSpec::of_timestamp(timestamp).map_err(|_| INVALID_REQUEST)?;
        let wanted = match spec {
            OffsetSpec::Earliest => return Ok((0, -1)),
            OffsetSpec::Latest => return Ok((bound, -1)),
            OffsetSpec::At(wanted) => Some(wanted),
            OffsetSpec::MaxTimestamp => None,
            _ => return Err(INVALID_REQUEST),
        };
        let isolation =
            if committed { Isolation::ReadCommitted } else { Isolation::ReadUncommitted };
        let args = OffsetArgs {
            upper_bound: Some(bound),
            isolation,
            ..OffsetArgs::new(topic, partition, spec)
        };
        let (archived, through) = self.find_archived(args).await?;
        let local = records(&held, through, bound);
        let found = match wanted {
            Some(wanted) => archived.or(local.into_iter().find(|(_, time)| *time >= wanted)),
            // Of several the first, and the archive's come first.
            None => archived.into_iter().chain(local).reduce(|a, b| if b.1 > a.1 { b } else { a }),
        };
        Ok(found.unwrap_or((-1, -1)))
    }

    /// What the archive found, and the end of where it looked.
    async fn find_archived(&self, args: OffsetArgs) -> Result<(Option<Found>, i64), i16> {
        let code = |error: ArchiveError| error.kafka_error_code();
        let mut answers = self.archive.list_offsets(&[args]).await.map_err(code)?;
        let Some(answer) = answers.pop() else { return Ok((None, 0)) };
        let through = answer.bounds.map_or(0, |bounds| bounds.archived_through);
        match answer.result {
            Ok(found) => {
                let pair = |found: FoundOffset| (found.offset, found.timestamp);
                Ok((found.map(pair), through))
            }
            Err(error) if error.is_miss() => Ok((None, through)),
            Err(error) => Err(error.kafka_error_code()),
        }
    }
}

/// The local records from `start` on and below `bound`, ascending.
fn records(held: &Partition, start: i64, bound: i64) -> Vec<Found> {
    let wal = held.wal().unwrap_or_default();
    let batches = held.buffer.iter().chain(&wal);
    let within = |batch: &&Batch| batch.base >= start && batch.last < bound;
    let mut records: Vec<Found> =
        batches.filter(within).flat_map(|batch| batch.records.iter().copied()).collect();
    records.sort_unstable();
    records.dedup();
    records
}
