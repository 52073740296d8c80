//! Owns what a record is picked by: key, headers, time, offset, producer.
//!
//! A [`Selection`] judges records as they are in a batch, without an index: it is
//! the truth that an index must agree with. It knows nothing of where batches come
//! from.

use bytes::Bytes;

use super::entries::HeaderRef;
use super::{BatchError, BatchHeader, CanonicalRecord, CanonicalRecordEntry, EntryRef};

/// Most conditions on headers in one selection: each costs a look at every header.
pub const HEADER_CONDITIONS_MAX: usize = 16;

/// Which records are wanted: those that meet every condition. The default wants all.
///
/// A control record is never selected: it is no record of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Exactly this key. A null key is no key and never equals one.
    pub key: Option<Bytes>,
    /// A key that begins with these bytes.
    pub key_prefix: Option<Bytes>,
    /// Each of these headers is there. Of equal names any one counts.
    pub headers: Vec<HeaderCondition>,
    /// Milliseconds, at or after.
    pub from_ms: Option<i64>,
    /// Milliseconds, before.
    pub until_ms: Option<i64>,
    /// Offset, at or above.
    pub from_offset: Option<i64>,
    /// Offset, below.
    pub until_offset: Option<i64>,
    /// The producer of the batch.
    pub producer_id: Option<i64>,
}

/// A header that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderCondition {
    /// Its name.
    pub name: Bytes,
    /// Its value; without one any value counts, null too.
    pub value: Option<Bytes>,
}

impl HeaderCondition {
    fn admits(&self, (name, value): HeaderRef<'_>) -> bool {
        let wanted = self.value.as_deref();
        *self.name == *name && (wanted.is_none() || wanted == value)
    }
}

/// Why a selection makes no sense or has no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelection {
    /// More conditions on headers than are looked at.
    #[error("{0} conditions on headers, at most {HEADER_CONDITIONS_MAX}")]
    Headers(usize),
    /// Nothing can lie in it.
    #[error("a range of times or offsets that ends where or before it begins")]
    EmptyRange,
}

impl Selection {
    /// Refuses what makes no sense or has no bound.
    ///
    /// # Errors
    /// [`InvalidSelection`] says what.
    pub fn check(&self) -> Result<(), InvalidSelection> {
        if self.headers.len() > HEADER_CONDITIONS_MAX {
            return Err(InvalidSelection::Headers(self.headers.len()));
        }
        let empty = |from: Option<i64>, until: Option<i64>| {
            from.zip(until).is_some_and(|(from, until)| from >= until)
        };
        if empty(self.from_ms, self.until_ms) || empty(self.from_offset, self.until_offset) {
            return Err(InvalidSelection::EmptyRange);
        }
        Ok(())
    }

    /// Whether records of `header`'s batch may be wanted, by the header alone.
    #[must_use]
    pub fn may_hold(&self, header: &BatchHeader) -> bool {
        let range = header.range();
        let appended = header.is_log_append_time();
        !header.is_control()
            && self.producer_id.is_none_or(|wanted| wanted == header.producer_id)
            && self.from_offset.is_none_or(|from| from <= range.last())
            && self.until_offset.is_none_or(|until| range.base() < until)
            && (!appended || self.admits_time(header.max_timestamp))
    }

    /// Whether a record of `batch` is wanted.
    #[must_use]
    pub fn admits(&self, batch: &CanonicalRecord, entry: &EntryRef<'_>) -> bool {
        let timestamp = batch.effective_timestamp(entry.timestamp);
        self.may_hold(batch.header())
            && self.admits_facts(entry.offset, timestamp, entry.key, entry.headers())
    }

    fn admits_entry(&self, batch: &CanonicalRecord, entry: &CanonicalRecordEntry) -> bool {
        let headers = entry.headers.iter();
        let headers = headers.map(|header| (&header.name[..], header.value.as_deref()));
        let timestamp = batch.timestamp(entry);
        self.admits_facts(entry.offset, timestamp, entry.key.as_deref(), headers)
    }

    /// The batch with the wanted records from the offset `from` on, at their
    /// offsets; `None` when it holds none.
    ///
    /// # Errors
    /// When the batch does not decode.
    pub fn of_batch(
        &self,
        batch: &CanonicalRecord,
        from: i64,
    ) -> Result<Option<CanonicalRecord>, BatchError> {
        if !self.may_hold(batch.header()) {
            return Ok(None);
        }
        batch.keep(|entry| entry.offset >= from && self.admits_entry(batch, entry))
    }

    /// Whether records with timestamps from `least` to `greatest` may be wanted.
    #[must_use]
    pub fn may_hold_times(&self, least: i64, greatest: i64) -> bool {
        self.from_ms.is_none_or(|from| from <= greatest)
            && self.until_ms.is_none_or(|until| least < until)
    }

    /// Whether a time is wanted.
    #[must_use]
    pub fn admits_time(&self, ms: i64) -> bool {
        self.from_ms.is_none_or(|from| from <= ms) && self.until_ms.is_none_or(|until| ms < until)
    }

    fn admits_facts<'a>(
        &self,
        offset: i64,
        timestamp: i64,
        key: Option<&[u8]>,
        headers: impl Iterator<Item = HeaderRef<'a>> + Clone,
    ) -> bool {
        self.from_offset.is_none_or(|from| from <= offset)
            && self.until_offset.is_none_or(|until| offset < until)
            && self.admits_time(timestamp)
            && self.key.as_ref().is_none_or(|wanted| key == Some(wanted))
            && self
                .key_prefix
                .as_ref()
                .is_none_or(|prefix| key.is_some_and(|key| key.starts_with(prefix)))
            && self.headers.iter().all(|wanted| headers.clone().any(|header| wanted.admits(header)))
    }
}

impl CanonicalRecord {
    /// The batch with the entries that `wanted` names, at their offsets: as it is
    /// where that is all of them, `None` where it is none. Everything else of the
    /// batch stays: range, producer, epoch, sequence, attributes, codec.
    ///
    /// # Errors
    /// When the batch does not decode, or its entries cannot be encoded again.
    pub fn keep(
        &self,
        mut wanted: impl FnMut(&CanonicalRecordEntry) -> bool,
    ) -> Result<Option<Self>, BatchError> {
        let mut entries = self.decode()?;
        let all = entries.len();
        entries.retain(|entry| wanted(entry));
        match entries.len() {
            0 => Ok(None),
            kept if kept == all => Ok(Some(self.clone())),
            _ => Self::from_entries(*self.header(), entries).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Header;

    fn header() -> BatchHeader {
        BatchHeader {
            base_offset: 10,
            batch_length: 0,
            partition_leader_epoch: 3,
            crc: 0,
            attributes: 0x10,
            last_offset_delta: 9,
            base_timestamp: 1_000,
            max_timestamp: 1_009,
            producer_id: 7,
            producer_epoch: 1,
            base_sequence: 40,
            record_count: 0,
        }
    }

    fn entry(offset: i64) -> CanonicalRecordEntry {
        let header = |name: &'static str, value: Option<&'static str>| Header {
            name: Bytes::from(name),
            value: value.map(Bytes::from),
        };
        let key = match offset {
            11 => None,
            12 => Some(Bytes::new()),
            _ => Some(Bytes::from(format!("key-{offset}"))),
        };
        CanonicalRecordEntry {
            offset,
            timestamp: 990 + offset,
            attributes: 0,
            key,
            value: (offset != 13).then(|| Bytes::from("v")),
            headers: vec![header("h", None), header("h", Some("x")), header("only", None)],
        }
    }

    fn batch() -> CanonicalRecord {
        let made = CanonicalRecord::from_entries(header(), (10..=16).map(entry).collect()).unwrap();
        CanonicalRecord::from_wire(made.to_kafka_batch().unwrap()).unwrap()
    }

    /// The offsets that `selection` picks, by both of its ways, which must agree.
    fn picked(selection: &Selection) -> Vec<i64> {
        let batch = batch();
        let kept = selection.of_batch(&batch, 0).unwrap();
        let kept: Vec<i64> = kept.map_or(Vec::new(), |kept| {
            kept.decode().unwrap().iter().map(|entry| entry.offset).collect()
        });
        let mut entries = batch.entries().unwrap();
        let mut lent = Vec::new();
        while let Some(entry) = entries.next_ref() {
            let entry = entry.unwrap();
            if selection.admits(&batch, &entry) {
                lent.push(entry.offset);
            }
        }
        assert_eq!(kept, lent);
        kept
    }

    fn of_header(name: &'static str, value: Option<&'static str>) -> Selection {
        let value = value.map(Bytes::from);
        let headers = vec![HeaderCondition { name: Bytes::from(name), value }];
        Selection { headers, ..Selection::default() }
    }

    #[test]
    fn each_condition_picks_what_it_says() {
        let key = |key: &'static str| Some(Bytes::from(key));
        let all = || Selection::default();
        assert_eq!(picked(&all()), Vec::from_iter(10..=16));
        assert_eq!(picked(&Selection { key: key("key-14"), ..all() }), [14]);
        assert_eq!(picked(&Selection { key: key(""), ..all() }), [12]);
        assert_eq!(picked(&Selection { key_prefix: key(""), ..all() }), [10, 12, 13, 14, 15, 16]);
        assert_eq!(picked(&Selection { key_prefix: key("key-1"), ..all() }), [10, 13, 14, 15, 16]);
        let times = Selection { from_ms: Some(1_001), until_ms: Some(1_003), ..all() };
        assert_eq!(picked(&times), [11, 12]);
        let offsets = Selection { from_offset: Some(12), until_offset: Some(14), ..all() };
        assert_eq!(picked(&offsets), [12, 13]);
        assert_eq!(picked(&Selection { producer_id: Some(8), ..all() }), [0; 0]);
        assert_eq!(picked(&Selection { producer_id: Some(7), ..all() }).len(), 7);
    }

    #[test]
    fn of_equal_header_names_any_counts_and_null_is_no_value() {
        assert_eq!(picked(&of_header("h", Some("x"))).len(), 7);
        assert_eq!(picked(&of_header("h", Some(""))).len(), 0);
        assert_eq!(picked(&of_header("only", None)).len(), 7);
        assert_eq!(picked(&of_header("none", None)).len(), 0);
    }

    #[test]
    fn a_rebuilt_batch_keeps_its_header_and_a_whole_one_its_bytes() {
        let batch = batch();
        let kept = batch.keep(|entry| entry.offset == 12).unwrap().unwrap();
        let wanted = BatchHeader { record_count: 1, batch_length: 0, crc: 0, ..*batch.header() };
        assert_eq!(BatchHeader { batch_length: 0, crc: 0, ..*kept.header() }, wanted);
        kept.verify_crc().unwrap();
        let wire = CanonicalRecord::from_wire(kept.to_kafka_batch().unwrap()).unwrap();
        wire.verify_crc().unwrap();
        assert_eq!(wire.decode().unwrap(), [entry(12)]);
        let whole = batch.keep(|_| true).unwrap().unwrap();
        assert_eq!(whole.wire(), batch.wire());
        assert!(batch.keep(|_| false).unwrap().is_none());
    }

    #[test]
    fn a_control_record_is_never_selected() {
        let header = BatchHeader { attributes: 0x30, last_offset_delta: 0, ..header() };
        let marker = CanonicalRecord::from_entries(header, vec![entry(10)]).unwrap();
        assert!(Selection::default().of_batch(&marker, 0).unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let all = Selection::default;
        assert_eq!(all().check(), Ok(()));
        let at = |from, until| Selection { from_ms: Some(from), until_ms: Some(until), ..all() };
        assert_eq!(at(5, 6).check(), Ok(()));
        assert_eq!(at(5, 5).check(), Err(InvalidSelection::EmptyRange));
        let offsets = Selection { from_offset: Some(6), until_offset: Some(5), ..all() };
        assert_eq!(offsets.check(), Err(InvalidSelection::EmptyRange));
        let header = HeaderCondition { name: Bytes::new(), value: None };
        let headers = |count| Selection { headers: vec![header.clone(); count], ..all() };
        assert_eq!(headers(16).check(), Ok(()));
        assert_eq!(headers(17).check(), Err(InvalidSelection::Headers(17)));
    }

    #[test]
    fn archives_and_chunks_are_ruled_out_by_their_times_alone_where_they_end() {
        let at = |from_ms, until_ms| Selection { from_ms, until_ms, ..Selection::default() };
        assert!(at(None, None).may_hold_times(5, 7));
        assert!(at(Some(7), None).may_hold_times(5, 7) && !at(Some(8), None).may_hold_times(5, 7));
        assert!(at(None, Some(6)).may_hold_times(5, 7) && !at(None, Some(5)).may_hold_times(5, 7));
    }

    #[test]
    fn log_append_time_is_the_time_of_every_record() {
        let header = BatchHeader { attributes: 8, max_timestamp: 5, ..header() };
        let batch = CanonicalRecord::from_entries(header, vec![entry(10)]).unwrap();
        let at = |from_ms| Selection { from_ms: Some(from_ms), ..Selection::default() };
        assert!(at(5).of_batch(&batch, 0).unwrap().is_some());
        assert!(at(6).of_batch(&batch, 0).unwrap().is_none());
    }
}
