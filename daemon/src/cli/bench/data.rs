//! Owns the data of benchmarks: one partition of JSON records of about 1 KB with
//! keys, the same for the same numbers, packed into archives of one size.
//!
//! ```text
//!  offset     archive * records_each + n           one record a second
//!  key        customer-{n * groups + archive % groups}
//!  groups     one for every ARCHIVES_A_KEY archives, so that a key is in that many
//!             archives at most, once in each, and these lie scattered
//! ```

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::archive::{ArchiveIdentity, ArchiveOptions, ArchiveWriter, BuiltArchive, Room, WalRank};
use crate::record::{
    BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header, TopicName, TopicPartition,
};

/// Records of one batch: with records of 1 KB, a batch as producers send it.
const BATCH_RECORDS: i64 = 32;
/// Bytes of a value, about.
const VALUE_BYTES: usize = 900;
/// Bytes of a record beside its value, about.
const RECORD_REST_BYTES: usize = 45;
/// Archives that hold any one key, at most.
const ARCHIVES_A_KEY: u64 = 10;
/// Milliseconds between two records.
pub(super) const RECORD_MS: i64 = 1_000;
/// When the first record was written: 2026-01-01 UTC.
const BEGIN_MS: i64 = 1_767_225_600_000;
/// Digits to cut values from: so many that deflate, which looks back 32 KiB, seldom
/// meets the same twice. They halve, which is what JSON does without its names.
const POOL_BYTES: usize = 1 << 20;
/// What the digits and the values are drawn by.
const SEED: u64 = 1;
const TOPIC: &str = "bench";
const CITIES: [&str; 8] = ["Berlin", "Lagos", "Lima", "Osaka", "Oslo", "Perth", "Quito", "Toronto"];

/// One partition's worth of data.
#[derive(Clone, Debug)]
pub(super) struct Data {
    pub(super) tp: TopicPartition,
    /// How many archives.
    pub(super) archives: u64,
    /// Bytes of batches in each, about.
    pub(super) archive_bytes: u64,
    /// Digits that values are cut from.
    pool: Arc<str>,
}

impl Data {
    /// `archives` of `archive_bytes` each.
    ///
    /// # Errors
    /// When one of them is zero.
    pub(super) fn new(archives: u64, archive_bytes: u64) -> anyhow::Result<Self> {
        anyhow::ensure!(archives > 0 && archive_bytes > 0, "no archives, or nothing in them");
        let tp = TopicPartition::new(TopicName::new(TOPIC)?, 0)?;
        let mut rng = StdRng::seed_from_u64(SEED);
        let digits = (0..POOL_BYTES).filter_map(|_| char::from_digit(rng.random_range(0..16), 16));
        Ok(Self { tp, archives, archive_bytes, pool: digits.collect::<String>().into() })
    }

    /// Records of one archive.
    pub(super) fn records_each(&self) -> i64 {
        let batch = BATCH_RECORDS as u64 * (VALUE_BYTES + RECORD_REST_BYTES) as u64;
        (self.archive_bytes.div_ceil(batch) * BATCH_RECORDS as u64) as i64
    }

    /// Records of all archives.
    pub(super) fn records(&self) -> i64 {
        self.records_each() * self.archives as i64
    }

    /// When the record at `offset` was written.
    pub(super) fn time(&self, offset: i64) -> i64 {
        BEGIN_MS + offset * RECORD_MS
    }

    /// The archive that holds `offset`.
    pub(super) fn archive_of(&self, offset: i64) -> i64 {
        offset / self.records_each()
    }

    fn groups(&self) -> i64 {
        self.archives.div_ceil(ARCHIVES_A_KEY) as i64
    }

    /// The key at `offset`.
    pub(super) fn key(&self, offset: i64) -> String {
        let (archive, within) = (self.archive_of(offset), offset % self.records_each());
        let groups = self.groups();
        format!("customer-{:09}", within * groups + archive % groups)
    }

    /// Every offset with the key at `offset`, ascending.
    pub(super) fn same_key(&self, offset: i64) -> impl Iterator<Item = i64> + use<> {
        let (each, groups) = (self.records_each(), self.groups());
        let first = self.archive_of(offset) % groups;
        let holding = (first..self.archives as i64).step_by(groups as usize);
        holding.map(move |archive| archive * each + offset % each)
    }

    /// The records of archive `number`, batch by batch.
    pub(super) fn batches(
        &self,
        number: u64,
    ) -> impl Iterator<Item = anyhow::Result<CanonicalRecord>> + '_ {
        let first = number as i64 * self.records_each();
        let mut rng = StdRng::seed_from_u64(SEED ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (first..first + self.records_each())
            .step_by(BATCH_RECORDS as usize)
            .map(move |base| self.batch(&mut rng, base))
    }

    fn batch(&self, rng: &mut StdRng, base: i64) -> anyhow::Result<CanonicalRecord> {
        let entries = (base..base + BATCH_RECORDS).map(|offset| self.entry(rng, offset)).collect();
        let header = BatchHeader {
            base_offset: base,
            batch_length: 0,
            partition_leader_epoch: 0,
            crc: 0,
            attributes: 0,
            last_offset_delta: BATCH_RECORDS as i32 - 1,
            base_timestamp: self.time(base),
            max_timestamp: self.time(base + BATCH_RECORDS - 1),
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 0,
        };
        Ok(CanonicalRecord::from_entries(header, entries)?)
    }

    fn entry(&self, rng: &mut StdRng, offset: i64) -> CanonicalRecordEntry {
        let (city, amount) =
            (CITIES[rng.random_range(0..CITIES.len())], rng.random_range(1..100_000));
        let mut value = format!(r#"{{"order":{offset},"city":"{city}","amount":{amount},"note":""#);
        let rest = VALUE_BYTES - value.len();
        let from = rng.random_range(0..POOL_BYTES - rest);
        value += &self.pool[from..from + rest];
        value += r#""}"#;
        CanonicalRecordEntry {
            offset,
            timestamp: self.time(offset),
            attributes: 0,
            key: Some(Bytes::from(self.key(offset))),
            value: Some(Bytes::from(value)),
            headers: vec![Header { name: "city".into(), value: Some(city.into()) }],
        }
    }

    /// Packs archive `number` into a folder below `scratch`. Blocking.
    pub(super) fn pack(
        &self,
        number: u64,
        scratch: &Path,
        options: ArchiveOptions,
    ) -> anyhow::Result<BuiltArchive> {
        let start = number as i64 * self.records_each();
        let mut writer = ArchiveWriter::create(scratch, self.identity(), start, options)?;
        for batch in self.batches(number) {
            // Through the wire, as every batch of a WAL comes.
            let batch = CanonicalRecord::from_wire(batch?.to_kafka_batch()?)?;
            anyhow::ensure!(
                writer.push(&batch, WalRank::default())? == Room::Open,
                "archives of {} bytes are too large",
                self.archive_bytes
            );
        }
        Ok(writer.finish()?)
    }

    pub(super) fn identity(&self) -> ArchiveIdentity {
        ArchiveIdentity { tp: self.tp.clone(), incarnation: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn every_key_is_in_ten_archives_at_most_and_found_where_it_is_said_to_be() {
        for archives in [1, 9, 10, 16, 40] {
            let data = Data::new(archives, 64 << 10).unwrap();
            let mut found: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
            for offset in 0..data.records() {
                found.entry(data.key(offset)).or_default().insert(offset);
            }
            for offset in (0..data.records()).step_by(7) {
                let at: Vec<i64> = data.same_key(offset).collect();
                assert!(at.contains(&offset) && at.len() <= 10, "{archives}: {at:?}");
                assert_eq!(found[&data.key(offset)], BTreeSet::from_iter(at.iter().copied()));
                let within: BTreeSet<i64> = at.iter().map(|&at| data.archive_of(at)).collect();
                assert_eq!(within.len(), at.len(), "once in each");
            }
        }
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes_of_about_the_size_asked_for() {
        let data = Data::new(2, 1 << 20).unwrap();
        let wire = |number| -> Vec<Bytes> {
            data.batches(number).map(|batch| batch.unwrap().to_kafka_batch().unwrap()).collect()
        };
        assert_eq!(wire(1), wire(1));
        assert_ne!(wire(0), wire(1));
        let bytes: usize = wire(0).iter().map(Bytes::len).sum();
        assert!((1 << 20..(1 << 20) + (1 << 16)).contains(&bytes), "{bytes}");
    }
}
