//! Archives for these tests, and the plain way to take one apart.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use bytes::Bytes;
use tierd::archive::{
    ArchiveError, ArchiveIdentity, ArchiveOptions, ArchiveWriter, BuiltArchive, IndexLevel, WalRank,
};
use tierd::record::{CanonicalRecord, TopicName, TopicPartition};
pub(super) use tierd_tests::hostile::verify;

use super::bytes::{Batch, LOG_APPEND_TIME, Record, SNAPPY};

/// What goes into an archive.
#[derive(Default)]
pub(super) struct Input {
    pub(super) start: i64,
    pub(super) chain: Vec<CanonicalRecord>,
    pub(super) overlaps: Vec<CanonicalRecord>,
    pub(super) options: ArchiveOptions,
}

impl Input {
    /// A chain of batches without gaps from the first one's base on.
    pub(super) fn chain(chain: Vec<CanonicalRecord>) -> Self {
        Self { start: chain[0].range().base(), chain, ..Self::default() }
    }

    /// The same input at index level `none`.
    pub(super) fn without_index(mut self) -> Self {
        self.options.index_level = IndexLevel::None;
        self
    }

    pub(super) fn build(&self) -> BuiltArchive {
        self.try_build().unwrap()
    }

    pub(super) fn try_build(&self) -> Result<BuiltArchive, ArchiveError> {
        let scratch = std::env::temp_dir();
        let mut writer = ArchiveWriter::create(&scratch, identity(), self.start, self.options)?;
        let mut position = 0;
        for batch in &self.chain {
            writer.push(batch, WalRank { segment: 1, position })?;
            position += 1000;
        }
        for batch in &self.overlaps {
            writer.push_overlap(batch, WalRank { segment: 0, position })?;
            position += 1000;
        }
        writer.finish()
    }
}

pub(super) fn identity() -> ArchiveIdentity {
    let tp = TopicPartition::new(TopicName::new("clicks.日本_1").unwrap(), 3).unwrap();
    ArchiveIdentity { tp, incarnation: 2 }
}

/// One of everything: what the golden archive holds.
pub(super) fn one_of_everything() -> Input {
    let keys = Batch {
        records: vec![
            Record { delta: 0, ..Record::default() },
            Record { delta: 1, key: Some(vec![]), value: Some(vec![]), ..Record::default() },
            Record { delta: 2, key: Some(vec![b'k'; 2000]), ..Record::default() },
            Record {
                delta: 3,
                key: Some(vec![0xff, 0x00]),
                headers: vec![(b"h".to_vec(), None), (b"h".to_vec(), Some(b"1".to_vec()))],
                ..Record::default()
            },
        ],
        ..Batch::of(110, 0)
    };
    Input {
        start: 100,
        chain: vec![
            // Begins below the archive's first offset.
            Batch::of(98, 12).record(),
            keys.record(),
            Batch { leader_epoch: 1, ..Batch::transactional(114, 3, 42) }.record(),
            Batch { leader_epoch: 1, ..Batch::marker(117, 41, 1) }.record(),
            Batch { leader_epoch: 1, ..Batch::marker(118, 42, 0) }.record(),
            Batch { leader_epoch: 3, attributes: LOG_APPEND_TIME, ..Batch::of(119, 2) }.record(),
            Batch { leader_epoch: 3, attributes: SNAPPY, ..Batch::of(121, 5) }.record(),
            // The end of the batch was compacted away, and what follows it too.
            Batch { leader_epoch: 3, last_delta: Some(9), ..Batch::of(126, 3) }.record(),
            Batch { leader_epoch: 3, ..Batch::of(140, 2) }.damaged(),
            Batch { leader_epoch: 3, ..Batch::of(142, 2) }.garbage(),
            Batch { leader_epoch: 3, ..Batch::transactional(144, 1, 43) }.record(),
            Batch { leader_epoch: 3, ..Batch::of(145, 1500) }.record(),
        ],
        overlaps: vec![
            Batch::of(97, 4).record(),
            Batch { leader_epoch: 2, ..Batch::of(121, 3) }.record(),
            Batch::of(122, 1).damaged(),
        ],
        options: ArchiveOptions::default(),
    }
}

/// Reads a whole archive the plain way: names and contents, in order.
pub(super) fn untar(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        entries.push((name, bytes));
    }
    entries
}

/// The same by name.
pub(super) fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    untar(archive).into_iter().collect()
}

/// The wire bytes of batches, one after the other.
pub(super) fn concat(batches: &[CanonicalRecord]) -> Vec<u8> {
    batches.iter().flat_map(|batch| batch.wire().unwrap().to_vec()).collect()
}

/// The bytes of an archive.
pub(super) fn bytes(built: &BuiltArchive) -> Bytes {
    Bytes::from(fs::read(&built.path).unwrap())
}
