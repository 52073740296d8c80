//! Owns what a broker remembers of its producers, derived from the headers of a log's
//! batches as Kafka's `ProducerStateManager` does: the last sequence of each, and the
//! transaction it has open. Pure.

use std::collections::BTreeMap;

use crate::record::CanonicalRecord;

/// What a broker remembers of one producer: a row of Kafka's producer snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// The producer.
    pub producer_id: i64,
    /// Its epoch; -1 where nothing of it but its open transaction is known.
    pub producer_epoch: i16,
    /// Sequence of its last record; -1 where it wrote none in this epoch.
    pub last_sequence: i32,
    /// Offset of its last record; -1 as above.
    pub last_offset: i64,
    /// Last offset minus base offset of its last batch.
    pub offset_delta: i32,
    /// Greatest timestamp of its last batch or marker, in milliseconds.
    pub timestamp: i64,
    /// Epoch of the coordinator that wrote its last marker; -1 where there is none.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction.
    pub open_since: Option<i64>,
}

impl ProducerState {
    fn new(producer_id: i64) -> Self {
        Self {
            producer_id,
            producer_epoch: -1,
            last_sequence: -1,
            last_offset: -1,
            offset_delta: 0,
            timestamp: -1,
            coordinator_epoch: -1,
            open_since: None,
        }
    }
}

/// The producers of a log up to some offset.
#[derive(Debug, Default)]
pub(super) struct Producers(BTreeMap<i64, ProducerState>);

impl Producers {
    /// Takes a transaction that was open before the first batch.
    pub(super) fn open(&mut self, producer_id: i64, first_offset: i64) {
        self.of(producer_id).open_since = Some(first_offset);
    }

    /// Takes the next batch of the log, which is served from `first` on.
    pub(super) fn take(&mut self, batch: &CanonicalRecord, first: i64) {
        let header = batch.header();
        if header.producer_id < 0 {
            return;
        }
        let state = self.of(header.producer_id);
        if state.producer_epoch != header.producer_epoch {
            // A new epoch begins its sequences anew.
            (state.last_sequence, state.last_offset, state.offset_delta) = (-1, -1, 0);
            state.producer_epoch = header.producer_epoch;
        }
        state.timestamp = header.max_timestamp;
        if header.is_control() {
            state.open_since = None;
            if let Some(epoch) = coordinator_epoch(batch) {
                state.coordinator_epoch = epoch;
            }
            return;
        }
        if header.base_sequence >= 0 {
            state.last_sequence = after(header.base_sequence, header.last_offset_delta);
        }
        state.last_offset = header.last_offset();
        state.offset_delta = header.last_offset_delta;
        if header.is_transactional() && state.open_since.is_none() {
            state.open_since = Some(first);
        }
    }

    /// All of them by id, without those that are silent since before `horizon_ms` and
    /// have nothing open: a broker has forgotten them.
    pub(super) fn since(self, horizon_ms: i64) -> Vec<ProducerState> {
        let all = self.0.into_values();
        all.filter(|state| state.open_since.is_some() || state.timestamp >= horizon_ms).collect()
    }

    fn of(&mut self, producer_id: i64) -> &mut ProducerState {
        self.0.entry(producer_id).or_insert_with(|| ProducerState::new(producer_id))
    }
}

/// The sequence `delta` records after `base`: from the greatest they go on at 0.
fn after(base: i32, delta: i32) -> i32 {
    let sequence = i64::from(base) + i64::from(delta);
    (sequence % (i64::from(i32::MAX) + 1)) as i32
}

/// The epoch in the value of a marker.
///
/// ```text
///  value of an end-transaction marker: | version i16 BE | coordinator epoch i32 BE |
/// ```
fn coordinator_epoch(batch: &CanonicalRecord) -> Option<i32> {
    let mut entries = batch.entries().ok()?;
    let value = entries.next_ref()?.ok()?.value?;
    let epoch: [u8; 4] = value.get(2..6)?.try_into().ok()?;
    Some(i32::from_be_bytes(epoch))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{BatchHeader, CanonicalRecordEntry};

    const TRANSACTIONAL: i16 = 0x10;
    const CONTROL: i16 = 0x20;

    struct Made {
        base: i64,
        count: i32,
        epoch: i16,
        sequence: i32,
        attributes: i16,
    }

    fn batch(made: &Made) -> CanonicalRecord {
        let control = made.attributes & CONTROL != 0;
        let entry = |delta: i64| CanonicalRecordEntry {
            offset: made.base + delta,
            timestamp: 1_000 + made.base,
            attributes: 0,
            key: control.then(|| Bytes::from_static(&[0, 0, 0, 1])),
            value: control.then(|| Bytes::from_static(&[0, 0, 0, 0, 0, 9])),
            headers: Vec::new(),
        };
        let header = BatchHeader {
            base_offset: made.base,
            batch_length: 0,
            partition_leader_epoch: 0,
            crc: 0,
            attributes: made.attributes,
            last_offset_delta: made.count - 1,
            base_timestamp: 1_000 + made.base,
            max_timestamp: 1_000 + made.base,
            producer_id: 7,
            producer_epoch: made.epoch,
            base_sequence: made.sequence,
            record_count: 0,
        };
        let entries = (0..i64::from(made.count)).map(entry).collect();
        CanonicalRecord::from_entries(header, entries).unwrap()
    }

    fn after_all(all: &[Made]) -> ProducerState {
        let mut producers = Producers::default();
        all.iter().for_each(|made| producers.take(&batch(made), made.base));
        producers.since(0)[0]
    }

    fn data(base: i64, count: i32, epoch: i16, sequence: i32) -> Made {
        Made { base, count, epoch, sequence, attributes: TRANSACTIONAL }
    }

    fn marker(base: i64, epoch: i16) -> Made {
        let attributes = TRANSACTIONAL | CONTROL;
        Made { base, count: 1, epoch, sequence: -1, attributes }
    }

    #[test]
    fn the_last_batch_and_the_open_transaction_are_remembered() {
        let state = after_all(&[data(0, 5, 1, 0), data(5, 3, 1, 5)]);
        assert_eq!((state.last_sequence, state.last_offset, state.offset_delta), (7, 7, 2));
        assert_eq!((state.open_since, state.coordinator_epoch), (Some(0), -1));
    }

    #[test]
    fn a_marker_ends_the_transaction_and_tells_its_coordinator() {
        let state = after_all(&[data(0, 5, 1, 0), marker(5, 1)]);
        assert_eq!((state.open_since, state.coordinator_epoch), (None, 9));
        assert_eq!((state.last_sequence, state.last_offset, state.timestamp), (4, 4, 1_005));
        // A marker of a later epoch fences the producer: its sequences begin anew.
        let fenced = after_all(&[data(0, 5, 1, 0), marker(5, 2)]);
        assert_eq!((fenced.producer_epoch, fenced.last_sequence), (2, -1));
    }

    #[test]
    fn sequences_go_on_at_0_behind_the_greatest() {
        assert_eq!(after_all(&[data(0, 3, 0, i32::MAX - 1)]).last_sequence, 0);
        assert_eq!(after_all(&[data(0, 2, 0, i32::MAX - 1)]).last_sequence, i32::MAX);
    }

    #[test]
    fn who_is_silent_for_long_is_forgotten_unless_something_is_open() {
        let silent = |attributes| {
            let mut producers = Producers::default();
            producers.take(&batch(&Made { attributes, ..data(0, 1, 0, 0) }), 0);
            producers.since(2_000).len()
        };
        assert_eq!((silent(0), silent(TRANSACTIONAL)), (0, 1));
    }
}
