//! One partition's read through the three phases, by the rules of
//! `tierd-client`'s README.

use bytes::{Bytes, BytesMut};
use tierd_client::{AbortedTransactions, ArchiveError, End, FetchArgs, Isolation};

use super::local::{Aborted, Batch, Limits, Partition, run_from};
use super::{Core, Counts, GapPolicy, lock};

pub(super) const OFFSET_OUT_OF_RANGE: i16 = 1;
pub(super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const KAFKA_STORAGE_ERROR: i16 = 56;

/// What a consumer asks of one partition.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) committed: bool,
    pub(super) max_bytes: usize,
    /// Send the first batch even if it is larger than `max_bytes`.
    pub(super) min_one_batch: bool,
}

/// What it gets.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) error: i16,
    pub(super) high_watermark: i64,
    pub(super) last_stable_offset: i64,
    pub(super) records: Bytes,
    /// Producer and first offset; with read_committed always, else never.
    pub(super) aborted: Option<Vec<(i64, i64)>>,
}

/// Whole batches, and the aborted transactions among them if they were asked for.
type Found = (Bytes, Option<Vec<Aborted>>);

impl Core {
    /// Answers from the first phase that holds the offset.
    pub(super) async fn read(&self, ask: &Ask<'_>) -> Answer {
        let key = (ask.topic.to_owned(), ask.partition);
        let Some(held) = lock(&self.partitions).get(&key).cloned() else {
            return Answer { error: UNKNOWN_TOPIC_OR_PARTITION, ..Answer::default() };
        };
        let bounds = Answer {
            high_watermark: held.high_watermark,
            last_stable_offset: held.last_stable_offset,
            ..Answer::default()
        };
        match self.phases(&held, ask).await {
            Ok((records, aborted)) => {
                let aborted =
                    aborted.map(|all| all.iter().map(|a| (a.producer_id, a.first)).collect());
                Answer { records, aborted, ..bounds }
            }
            Err(error) => {
                self.count(ask, |counts| *counts.errors.entry(error).or_default() += 1);
                Answer { error, ..bounds }
            }
        }
    }

    async fn phases(&self, held: &Partition, ask: &Ask<'_>) -> Result<Found, i16> {
        let mut ask = ask.clone();
        let bound = if ask.committed { held.last_stable_offset } else { held.high_watermark };
        // The log starts at 0: nothing of it was deleted, whatever files are.
        if ask.offset < 0 || ask.offset > held.high_watermark {
            return Err(OFFSET_OUT_OF_RANGE);
        }
        let limits = Limits { bound, max_bytes: ask.max_bytes, min_one_batch: ask.min_one_batch };
        while ask.offset < bound {
            if let Some(run) = run_from(&held.buffer, ask.offset, limits) {
                self.count(&ask, |counts| counts.buffer += u64::from(!run.is_empty()));
                return Ok(local(held, &run, ask.committed));
            }
            // A WAL that cannot be read is a miss of this phase, not an error of the
            // fetch; so is one whose first batch starts above the offset.
            let wal = held.wal().unwrap_or_default();
            if let Some(run) = run_from(&wal, ask.offset, limits) {
                self.count(&ask, |counts| counts.wal += u64::from(!run.is_empty()));
                return Ok(local(held, &run, ask.committed));
            }
            self.count(&ask, |counts| counts.fallbacks += 1);
            match self.archived(held, &ask, bound).await {
                Ok(Some(found)) => {
                    self.count(&ask, |counts| counts.archive += u64::from(!found.0.is_empty()));
                    return Ok(found);
                }
                Ok(None) => ask.offset = behind_a_hole(&wal, ask.offset)?,
                Err(ArchiveError::Gap(gap)) if self.gap_policy == GapPolicy::GoOn => {
                    self.count(&ask, |counts| counts.gaps.push(gap));
                    ask.offset = gap.range.last + 1;
                }
                Err(error) => return Err(error.kafka_error_code()),
            }
        }
        Ok((Bytes::new(), ask.committed.then(Vec::new)))
    }

    /// Phase 3: the drop-in where it is enough, the whole answer for transactions and
    /// where no batch is excused from the limit.
    async fn archived(
        &self,
        held: &Partition,
        ask: &Ask<'_>,
        bound: i64,
    ) -> Result<Option<Found>, ArchiveError> {
        if !ask.committed && ask.min_one_batch {
            let max_bytes = i32::try_from(ask.max_bytes).unwrap_or(i32::MAX);
            let (topic, offset) = (ask.topic, ask.offset);
            let found = self.phase3.fetch(topic, ask.partition, offset, bound, max_bytes).await?;
            return Ok(found.map(|batches| (batches.into(), None)));
        }
        let committed = Isolation::ReadCommitted;
        let args = FetchArgs {
            upper_bound: Some(bound),
            max_bytes: Some(ask.max_bytes as u64),
            min_one_batch: ask.min_one_batch,
            isolation: if ask.committed { committed } else { Isolation::ReadUncommitted },
            ..FetchArgs::new(ask.topic, ask.partition, ask.offset)
        };
        match self.archive.fetch(args).await {
            // It is there and does not fit.
            Ok(outcome) if outcome.is_hit() || outcome.end == End::Limit => {
                let listed = outcome.aborted.as_ref();
                let aborted = listed.map(|listed| completed(held, listed, outcome.next_offset));
                Ok(Some((outcome.batches, aborted)))
            }
            Ok(_) => Ok(None),
            Err(error) if error.is_miss() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn count(&self, ask: &Ask<'_>, change: impl FnOnce(&mut Counts)) {
        let key = (ask.topic.to_owned(), ask.partition);
        change(lock(&self.counts).entry(key).or_default());
    }
}

fn local(held: &Partition, run: &[Batch], committed: bool) -> Found {
    let mut records = BytesMut::new();
    for batch in run {
        records.extend_from_slice(&batch.wire);
    }
    let among = |a: &&Aborted| run.iter().any(|b| a.last >= b.base && a.first <= b.last);
    let aborted = committed.then(|| held.aborted.iter().filter(among).copied().collect());
    (records.freeze(), aborted)
}

/// The archive's list; where its search reached the archive's end, the local index
/// tells the rest.
fn completed(held: &Partition, listed: &AbortedTransactions, next_offset: i64) -> Vec<Aborted> {
    let archived = listed.transactions.iter().map(|a| Aborted {
        producer_id: a.producer_id,
        first: a.first_offset,
        last: a.last_offset,
    });
    let mut aborted: Vec<Aborted> = archived.collect();
    if !listed.complete {
        let rest = |a: &&Aborted| a.last >= listed.searched_to && a.first < next_offset;
        aborted.extend(held.aborted.iter().filter(rest));
    }
    aborted.sort_by_key(|a| a.first);
    aborted
}

/// Nobody has `offset`. Inside the local log that is a hole, and the log goes on
/// behind it. Below the local log it is a batch that someone lost: never "no data".
fn behind_a_hole(wal: &[Batch], offset: i64) -> Result<i64, i16> {
    let starts_below = wal.iter().any(|batch| batch.last < offset);
    let next = wal.iter().map(|batch| batch.base).filter(|base| *base > offset).min();
    match next {
        Some(next) if starts_below => Ok(next),
        _ => Err(KAFKA_STORAGE_ERROR),
    }
}
