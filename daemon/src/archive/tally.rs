//! Owns the counting: what batch headers say of an archive as a whole.
//!
//! Writer and verifier count with it, the one while packing, the other from the
//! bytes it reads back.

use super::summary::UNKNOWN_TIMESTAMP;
use crate::record::{BatchHeader, OffsetRange};

/// The least and greatest timestamp of a batch's records, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) min: i64,
    pub(super) max: i64,
}

impl Times {
    /// What a header alone tells. Only log-append time tells the least: the base
    /// timestamp is that of the first record, or a delete horizon.
    pub(super) fn of_header(header: &BatchHeader) -> Self {
        let max = header.max_timestamp;
        let min = if header.is_log_append_time() { max } else { UNKNOWN_TIMESTAMP };
        Self { min, max }
    }

    /// The least and greatest of both.
    pub(super) fn and(self, other: Option<Self>) -> Self {
        let Self { min, max } = other.unwrap_or(self);
        Self { min: min.min(self.min), max: max.max(self.max) }
    }
}

/// Counts of one log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) batches: u32,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// What the batches seen so far add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// The next offset that a batch of the chain is served from.
    next: i64,
    /// Base of the first batch of the chain.
    first_base: Option<i64>,
    pub(super) chain: Counts,
    pub(super) overlaps: Counts,
    pub(super) bad_crcs: u32,
    times: Option<Times>,
    overlap_times: Option<Times>,
    leader_epochs: Option<(i32, i32)>,
    epochs: Vec<(i32, i64)>,
    /// From the least base to the greatest last offset of all batches.
    hull: Option<OffsetRange>,
}

impl Tally {
    /// Begins at the first offset the archive is for.
    pub(super) fn from(start: i64) -> Self {
        Self { next: start, ..Self::default() }
    }

    /// The first offset of the chain that no batch seen so far has.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    /// The base of the chain's first batch, which names the log; 0 without a chain.
    pub(super) fn first_base(&self) -> i64 {
        self.first_base.unwrap_or(0)
    }

    /// Counts the next batch of the chain.
    pub(super) fn chain(&mut self, header: &BatchHeader, bad_crc: bool, times: Times) {
        let served_from = self.next.max(header.base_offset);
        let epoch = header.partition_leader_epoch;
        if epoch >= 0 && self.epochs.last().is_none_or(|(last, _)| *last < epoch) {
            self.epochs.push((epoch, served_from));
        }
        self.first_base.get_or_insert(header.base_offset);
        count(&mut self.chain, header);
        self.times = Some(times.and(self.times));
        self.both(header, bad_crc);
        self.next = header.last_offset() + 1;
    }

    /// Counts an overlap batch.
    pub(super) fn overlap(&mut self, header: &BatchHeader, bad_crc: bool) {
        count(&mut self.overlaps, header);
        self.overlap_times = Some(Times::of_header(header).and(self.overlap_times));
        self.both(header, bad_crc);
    }

    fn both(&mut self, header: &BatchHeader, bad_crc: bool) {
        self.bad_crcs += u32::from(bad_crc);
        let epoch = header.partition_leader_epoch;
        if epoch >= 0 {
            let (least, greatest) = self.leader_epochs.unwrap_or((epoch, epoch));
            self.leader_epochs = Some((least.min(epoch), greatest.max(epoch)));
        }
        let range = header.range();
        let hull = self.hull.unwrap_or(range);
        self.hull = OffsetRange::new(hull.base().min(range.base()), hull.last().max(range.last()));
    }

    /// Least and greatest timestamp of the chain; of the overlaps without a chain.
    pub(super) fn times(&self) -> Times {
        let times = if self.chain.batches > 0 { self.times } else { self.overlap_times };
        // -1 is Kafka's word for no timestamp.
        times.unwrap_or(Times { min: -1, max: -1 })
    }

    /// Least and greatest known leader epoch, -1 where none is known.
    pub(super) fn leader_epochs(&self) -> (i32, i32) {
        self.leader_epochs.unwrap_or((-1, -1))
    }

    /// Leader epochs of the chain with the first offset of each, ascending.
    pub(super) fn epochs(&self) -> &[(i32, i64)] {
        &self.epochs
    }

    /// From the least base to the greatest last offset of all batches.
    pub(super) fn hull(&self) -> Option<OffsetRange> {
        self.hull
    }
}

fn count(counts: &mut Counts, header: &BatchHeader) {
    counts.batches += 1;
    counts.records += u64::try_from(header.record_count).unwrap_or(0);
    counts.bytes += header.wire_len() as u64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::fixture::header;

    #[test]
    fn an_epoch_is_noted_where_it_first_rises() {
        let mut tally = Tally::from(5);
        for (base, last, epoch) in [(3, 9, 2), (10, 11, 2), (12, 12, -1), (13, 13, 1), (12, 20, 4)]
        {
            let header = BatchHeader { partition_leader_epoch: epoch, ..header(base, last) };
            tally.chain(&header, false, Times::of_header(&header));
        }
        assert_eq!(tally.epochs(), [(2, 5), (4, 14)]);
        assert_eq!(tally.leader_epochs(), (1, 4));
        assert_eq!(tally.next(), 21);
        assert_eq!(tally.hull(), OffsetRange::new(3, 20));
    }

    #[test]
    fn without_a_chain_the_overlaps_give_the_times() {
        let mut tally = Tally::from(0);
        assert_eq!(tally.times(), Times { min: -1, max: -1 });
        let late = BatchHeader { max_timestamp: 90, attributes: 8, ..header(0, 0) };
        tally.overlap(&late, true);
        assert_eq!(tally.times(), Times { min: 90, max: 90 });
        tally.overlap(&BatchHeader { attributes: 0, ..late }, false);
        assert_eq!(tally.times(), Times { min: UNKNOWN_TIMESTAMP, max: 90 });
        tally.chain(&header(0, 0), false, Times { min: 3, max: 4 });
        assert_eq!(tally.times(), Times { min: 3, max: 4 });
        assert_eq!((tally.bad_crcs, tally.overlaps.batches, tally.chain.batches), (1, 2, 1));
    }
}
