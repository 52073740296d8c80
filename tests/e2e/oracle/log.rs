//! A log that answers by brute force: offset by offset, with nothing clever, so
//! that it is plain to see that its answers are right.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What a batch has to do with transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Data { producer: i64 },
    Marker { producer: i64, aborts: bool },
}

/// A record as a consumer gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) offset: i64,
    pub(super) time: i64,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
}

/// A batch of the WAL, in WAL order.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) base: i64,
    pub(super) last: i64,
    pub(super) wire: Bytes,
    pub(super) kind: Kind,
    pub(super) epoch: i32,
    pub(super) records: Vec<Told>,
    /// Whether a run has archived it.
    pub(super) committed: bool,
}

/// What became of a batch's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It belongs to none, or to one that was committed.
    Visible,
    /// The marker at this offset aborts it.
    Aborted { producer: i64, marker: i64 },
    /// No marker follows.
    Open,
}

/// Limits of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// First offset not to be served, and what an answer that ends there says.
    pub(super) bound: i64,
    pub(super) says: &'static str,
    pub(super) max_bytes: u64,
    pub(super) min_one_batch: bool,
}

/// An answer: batches by their number in the WAL, each with the first and last offset
/// it is served at; where to go on, and why it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) batches: Vec<(usize, i64, i64)>,
    pub(super) next: i64,
    pub(super) why: &'static str,
}

/// What the archive should hold, offset by offset.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) wal: Vec<Written>,
    /// Which batch serves an offset.
    served: BTreeMap<i64, usize>,
    pub(super) gaps: BTreeSet<i64>,
    pub(super) through: i64,
}

impl Log {
    /// The end of what was ever written.
    pub(super) fn end(&self) -> i64 {
        self.wal.iter().map(|batch| batch.last + 1).max().unwrap_or(0)
    }

    /// Appends a batch to the WAL. The same bytes exist once: a copy makes the batch
    /// as new as itself, unless it is committed.
    pub(super) fn write(&mut self, batch: Written) {
        let Some(at) = self.wal.iter().position(|known| known.wire == batch.wire) else {
            self.wal.push(batch);
            return;
        };
        if self.wal[at].committed {
            return;
        }
        let moved = self.wal.remove(at);
        self.wal.push(moved);
        for index in self.served.values_mut() {
            assert_ne!(*index, at, "a served batch is committed and does not move");
            *index -= usize::from(*index > at);
        }
    }

    /// The rule of the served log: at each offset that nothing serves yet, the newest
    /// batch not committed before, and on behind it.
    pub(super) fn archive(&mut self) {
        let end = self.end().max(self.through);
        let fresh: Vec<usize> =
            (0..self.wal.len()).filter(|&index| !self.wal[index].committed).collect();
        let mut next = 0;
        while next < end {
            if self.served.contains_key(&next) {
                next += 1;
                continue;
            }
            let holds =
                |index: &&usize| self.wal[**index].base <= next && next <= self.wal[**index].last;
            let Some(&newest) = fresh.iter().filter(holds).max() else {
                self.gaps.insert(next);
                next += 1;
                continue;
            };
            // As far as it reaches, or to what is committed already.
            while next <= self.wal[newest].last && !self.served.contains_key(&next) {
                self.served.insert(next, newest);
                self.gaps.remove(&next);
                next += 1;
            }
        }
        self.through = end;
        for batch in &mut self.wal {
            batch.committed = true;
        }
    }

    fn kind(&self, offset: i64) -> Option<Kind> {
        self.served.get(&offset).map(|&index| self.wal[index].kind)
    }

    fn is_marker_of(&self, offset: i64, of: i64) -> bool {
        matches!(self.kind(offset), Some(Kind::Marker { producer, .. }) if producer == of)
    }

    /// What became of the transaction of what is served at `offset`: the next marker
    /// of its producer tells.
    pub(super) fn fate(&self, offset: i64) -> Fate {
        let Some(Kind::Data { producer: of }) = self.kind(offset) else { return Fate::Visible };
        for later in offset..self.through {
            if let Some(Kind::Marker { producer, aborts }) = self.kind(later)
                && producer == of
            {
                let aborted = Fate::Aborted { producer, marker: later };
                return if aborts { aborted } else { Fate::Visible };
            }
        }
        Fate::Open
    }

    /// The first offset of the transaction that the marker of `producer` at `marker`
    /// ends, `None` where it has no records.
    pub(super) fn first_of(&self, producer: i64, marker: i64) -> Option<i64> {
        let mut first = None;
        for earlier in (0..marker).rev() {
            if self.is_marker_of(earlier, producer) {
                break;
            }
            if self.kind(earlier) == Some(Kind::Data { producer }) {
                first = Some(earlier);
            }
        }
        first
    }

    /// The first offset whose transaction is open.
    pub(super) fn last_stable_offset(&self) -> i64 {
        let mut open = (0..self.through).filter(|&offset| self.fate(offset) == Fate::Open);
        open.next().unwrap_or(self.through)
    }

    /// What a fetch from `offset` on gives.
    pub(super) fn answer(&self, offset: i64, limits: Limits) -> Answer {
        let mut answer = Answer { batches: Vec::new(), next: offset, why: "" };
        let mut bytes = 0;
        loop {
            let next = answer.next;
            if next >= limits.bound {
                return Answer { why: limits.says, ..answer };
            }
            if self.gaps.contains(&next) {
                return Answer { why: "gap", ..answer };
            }
            let index = self.served[&next];
            let batch = &self.wal[index];
            if batch.last >= limits.bound {
                return Answer { why: limits.says, ..answer };
            }
            if batch.base < next && !answer.batches.is_empty() {
                return Answer { why: "back", ..answer };
            }
            bytes += batch.wire.len() as u64;
            if bytes > limits.max_bytes && !(limits.min_one_batch && answer.batches.is_empty()) {
                return Answer { why: "limit", ..answer };
            }
            let mut last = next;
            while last < batch.last && self.served.get(&(last + 1)) == Some(&index) {
                last += 1;
            }
            answer.batches.push((index, next.max(batch.base), last));
            answer.next = batch.last + 1;
            // It reaches over what was there before it.
            if last < batch.last && answer.next < limits.bound {
                return Answer { why: "back", ..answer };
            }
        }
    }

    /// The range of the batch with these bytes, for people.
    pub(super) fn find(&self, wire: &Bytes) -> (i64, i64, Kind) {
        let found = self.wal.iter().find(|batch| batch.wire == *wire);
        found.map(|batch| (batch.base, batch.last, batch.kind)).unwrap()
    }

    /// The bytes of an answer.
    pub(super) fn wire(&self, answer: &Answer) -> Vec<u8> {
        answer.batches.iter().flat_map(|(index, ..)| self.wal[*index].wire.clone()).collect()
    }

    /// The records that a read_committed consumer must see from 0 to `bound`, as it
    /// goes from batch to batch and over the gaps.
    pub(super) fn committed_records(&self, bound: i64) -> Vec<Told> {
        let mut records = Vec::new();
        let mut next = 0;
        while next < bound {
            if self.gaps.contains(&next) {
                next += 1;
                continue;
            }
            let batch = &self.wal[self.served[&next]];
            if batch.last >= bound {
                break;
            }
            let is_marker = matches!(batch.kind, Kind::Marker { .. });
            if !is_marker && self.fate(next) == Fate::Visible {
                records
                    .extend(batch.records.iter().filter(|record| record.offset >= next).cloned());
            }
            next = batch.last + 1;
        }
        records
    }

    /// The record at `offset` with its batch's leader epoch.
    fn record(&self, offset: i64) -> Option<(i64, i64, i32)> {
        let batch = &self.wal[*self.served.get(&offset)?];
        let found = batch.records.iter().find(|record| record.offset == offset)?;
        Some((offset, found.time, batch.epoch))
    }

    /// Offset, time and epoch of the first record from `from` on and below `bound` that
    /// is as late as `wanted`.
    pub(super) fn first_from(&self, from: i64, bound: i64, wanted: i64) -> Option<(i64, i64, i32)> {
        (from..bound).filter_map(|offset| self.record(offset)).find(|(_, time, _)| *time >= wanted)
    }

    /// The same of the latest record; of several the first.
    pub(super) fn greatest_time(&self, from: i64, bound: i64) -> Option<(i64, i64, i32)> {
        let records = (from..bound).filter_map(|offset| self.record(offset));
        records.min_by_key(|(offset, time, _)| (-time, *offset))
    }

    /// Known leader epochs, each with an offset that has it.
    fn epochs(&self) -> impl Iterator<Item = (i32, i64)> {
        let served = self.served.iter().map(|(offset, index)| (self.wal[*index].epoch, *offset));
        served.filter(|(epoch, _)| *epoch >= 0)
    }

    pub(super) fn epochs_ascend(&self) -> bool {
        self.epochs().is_sorted_by_key(|(epoch, _)| epoch)
    }

    pub(super) fn greatest_epoch(&self) -> i32 {
        self.epochs().map(|(epoch, _)| epoch).max().unwrap_or(-1)
    }

    /// Where `epoch` ends, as Kafka tells it: the greatest epoch not above it, and the
    /// first offset of the next one.
    pub(super) fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        let known: BTreeSet<i32> = self.epochs().map(|(epoch, _)| epoch).collect();
        let greatest = self.greatest_epoch();
        if epoch < 0 || epoch > greatest {
            return (-1, -1);
        }
        let floor = known.range(..=epoch).next_back().copied().unwrap_or(epoch);
        let next = self.epochs().find(|(later, _)| *later > epoch);
        (floor, next.map_or(self.through, |(_, offset)| offset))
    }
}
