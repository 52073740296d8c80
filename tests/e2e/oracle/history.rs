//! What a broker may have written into its WAL, at random: batches of all codecs, in
//! and out of order, with holes, overlaps and copies, with producers whose transactions
//! run over segments and archives, and markers that come late, twice or never.

use std::path::Path;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use tierd_tests::batches::{Maker, Plan, PlannedRecord};
use tierd_tests::chronik::WalWriter;

use super::log::{Kind, Log, Told, Written};

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// Producers with transactions: few, so that they meet themselves again.
const PRODUCERS: std::ops::Range<i64> = 70..74;
/// A producer that is idempotent without transactions.
const IDEMPOTENT: i64 = 60;

/// A broker that goes on from segment to segment.
#[derive(Debug, Default)]
pub(super) struct Broker {
    segments: u64,
    leader_epoch: i32,
    sequence: i32,
    /// How many of ten batches have to do with transactions.
    transactional: u32,
    /// Whether it writes in the order of offsets.
    is_orderly: bool,
    /// Whether the topic is not the first of its name.
    is_anew: bool,
}

impl Broker {
    pub(super) fn new(random: &mut StdRng) -> Self {
        let is_orderly = random.random_bool(0.3);
        Self { transactional: random.random_range(0..9), is_orderly, ..Self::default() }
    }

    /// Deletes the topic and makes one of the same name.
    pub(super) fn make_anew(&mut self, wal: &Path) {
        std::fs::remove_dir_all(wal.join("t")).unwrap();
        (self.segments, self.leader_epoch, self.is_anew) = (0, 0, true);
    }

    /// Deletes some of the segments that may be deleted, oldest first.
    pub(super) fn delete(&mut self, wal: &Path, releasable: &[u64], random: &mut StdRng) {
        if random.random_bool(0.7) || releasable.is_empty() {
            return;
        }
        for id in &releasable[..random.random_range(0..releasable.len())] {
            std::fs::remove_file(wal.join(format!("t/0/wal_0_{id}.log"))).unwrap();
        }
    }

    /// Writes one more segment.
    pub(super) fn write_segment(&mut self, log: &mut Log, wal: &Path, random: &mut StdRng) {
        let mut segment = WalWriter::create(wal, "t", 0, self.segments).unwrap();
        self.segments += 1;
        let mut end = log.end();
        for _ in 0..random.random_range(1..14) {
            let batch = match random.random_range(0..14) {
                0 if !log.wal.is_empty() => log.wal.choose(random).unwrap().clone(),
                _ => {
                    // A topic made anew begins where the old one has other bytes.
                    let at_end = self.is_orderly || (self.is_anew && log.wal.is_empty());
                    let base = if at_end { end } else { base(log, end, random) };
                    self.batch(base, random)
                }
            };
            segment.append(&batch.wire).unwrap();
            end = end.max(batch.last + 1);
            log.write(batch);
        }
        segment.finish().unwrap();
    }

    fn batch(&mut self, base: i64, random: &mut StdRng) -> Written {
        if random.random_range(0..12) == 0 {
            self.leader_epoch += 1;
        }
        let kind = match random.random_range(0..10) {
            n if n >= self.transactional => Kind::Plain,
            n => {
                let producer = random.random_range(PRODUCERS);
                let aborts = random.random_bool(0.5);
                if n % 3 == 2 { Kind::Marker { producer, aborts } } else { Kind::Data { producer } }
            }
        };
        let now = 1_700_000_000_000 + base * 10 + random.random_range(-40..40);
        let mut plan = Plan {
            base_offset: base,
            // Old brokers knew of none.
            leader_epoch: if random.random_bool(0.1) { -1 } else { self.leader_epoch },
            attributes: random.random_range(0..=4),
            last_offset_delta: 0,
            base_timestamp: now,
            max_timestamp: now,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            records: Vec::new(),
        };
        match kind {
            Kind::Plain if random.random_bool(0.5) => {}
            Kind::Plain => self.produced(&mut plan, IDEMPOTENT),
            Kind::Data { producer } => {
                self.produced(&mut plan, producer);
                plan.attributes |= TRANSACTIONAL;
            }
            Kind::Marker { producer, .. } => {
                plan.attributes = TRANSACTIONAL | CONTROL;
                (plan.producer_id, plan.producer_epoch) = (producer, 1);
            }
        }
        let mut maker = Maker::Guide;
        if let Kind::Marker { aborts, .. } = kind {
            // The coordinator's epoch in the value makes no two markers equal.
            let epoch = random.next_u32().to_be_bytes();
            plan.records = vec![PlannedRecord {
                delta: 0,
                timestamp: now,
                attributes: 0,
                key: Some(Bytes::copy_from_slice(&[0, 0, 0, u8::from(!aborts)])),
                value: Some(Bytes::from([&[0, 0], &epoch[..]].concat())),
                headers: Vec::new(),
            }];
        } else {
            maker = fill(&mut plan, random);
        }
        let records = plan.records.iter().map(|record| Told {
            offset: base + i64::from(record.delta),
            time: record.timestamp,
            key: record.key.clone(),
            value: record.value.clone(),
        });
        Written {
            base,
            last: base + i64::from(plan.last_offset_delta),
            wire: plan.wire(maker),
            kind,
            epoch: plan.leader_epoch,
            records: records.collect(),
            committed: false,
        }
    }

    fn produced(&mut self, plan: &mut Plan, producer: i64) {
        (plan.producer_id, plan.producer_epoch) = (producer, 1);
        plan.base_sequence = self.sequence;
        self.sequence += 10;
    }
}

/// Where the next batch begins: mostly at the end.
fn base(log: &Log, end: i64, random: &mut StdRng) -> i64 {
    let gaps: Vec<i64> = log.gaps.iter().copied().collect();
    match random.random_range(0..14) {
        0 | 1 => end + random.random_range(1..7),
        2 | 3 => (end - random.random_range(0..12)).max(0),
        4 | 5 if !gaps.is_empty() => {
            (gaps.choose(random).unwrap() - random.random_range(0..3)).max(0)
        }
        _ => end,
    }
}

/// Gives `plan` records, some of which compaction took away; says who may write it.
fn fill(plan: &mut Plan, random: &mut StdRng) -> Maker {
    let compacted = random.random_bool(0.3);
    let mut delta = if compacted { random.random_range(0..3) } else { 0 };
    // The WAL has no batch without records: its frame says that nothing was written.
    for number in 0..random.random_range(1..6) {
        let mut noise = vec![0; random.random_range(1..60)];
        random.fill(&mut noise[..]);
        plan.records.push(PlannedRecord {
            delta,
            timestamp: plan.base_timestamp + random.random_range(-300..300),
            attributes: 0,
            key: random.random_bool(0.7).then(|| Bytes::from(format!("k{number}"))),
            value: Some(Bytes::from(noise)),
            headers: Vec::new(),
        });
        delta += 1 + if compacted { random.random_range(0..2) } else { 0 };
    }
    plan.last_offset_delta = delta - 1 + if compacted { random.random_range(0..3) } else { 0 };
    let latest = plan.records.iter().map(|record| record.timestamp).max();
    plan.max_timestamp = latest.unwrap_or(plan.base_timestamp);
    if compacted || random.random_bool(0.5) {
        return Maker::Guide;
    }
    // The other encoder writes the least timestamp in front.
    let least = plan.records.iter().map(|record| record.timestamp).min();
    plan.base_timestamp = least.unwrap_or(plan.base_timestamp);
    Maker::KafkaProtocol
}
