//! Owns `metadata.json`: what an archive is, for people who unpacked it.
//!
//! It is 2048 bytes, always: JSON, spaces, a line feed. So the archive can be
//! written front to back and this page filled in at the end. tierd itself reads
//! it only to verify an archive and to rebuild a lost catalog.

use serde::{Deserialize, Serialize};

use super::error::{ArchiveError, check_version};
use super::summary::{ArchiveSummary, UNKNOWN_TIMESTAMP};
use super::{ArchiveIdentity, FORMAT_VERSION, IndexLevel};
use crate::record::{OffsetRange, TopicName, TopicPartition};

/// Bytes of the file. The longest topic name and the largest numbers take half.
pub(super) const METADATA_BYTES: usize = 2048;

const PART: &str = "metadata.json";
const FORMAT: &str = "tierd archive";

/// What `metadata.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    format: String,
    version: u16,
    /// Topic.
    pub topic: TopicText,
    /// Partition.
    pub partition: i32,
    /// Incarnation of the topic, counted from 0.
    pub incarnation: u32,
    /// First offset tiled, or least base offset.
    pub base_offset: i64,
    /// Last offset.
    pub last_offset: i64,
    /// Whether the archive has a `.log`.
    pub tiles: bool,
    /// Batches in `.log`.
    pub batches: u32,
    /// Records in `.log`.
    pub records: u64,
    /// Bytes of `.log`.
    pub log_bytes: u64,
    /// Batches in `.overlap.log`.
    pub overlap_batches: u32,
    /// Bytes of `.overlap.log`.
    pub overlap_bytes: u64,
    /// Batches whose own CRC-32C is wrong.
    pub bad_crc_batches: u32,
    /// Batches that could not be decoded and so are not in the index.
    pub unindexed_batches: u32,
    /// Least timestamp in milliseconds, if known.
    pub min_timestamp_ms: Option<i64>,
    /// Greatest timestamp in milliseconds.
    pub max_timestamp_ms: i64,
    /// Least known leader epoch, or -1.
    pub min_leader_epoch: i32,
    /// Greatest known leader epoch, or -1.
    pub max_leader_epoch: i32,
    /// Entries of the lists of transactions in the table of contents.
    pub transactions: u32,
    /// What can be searched for.
    pub index_level: IndexLevel,
    /// Bytes of the search index.
    pub index_bytes: u64,
}

/// A topic's name, checked when read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicText(pub TopicName);

impl TryFrom<String> for TopicText {
    type Error = crate::record::name::TopicNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        TopicName::new(&text).map(Self)
    }
}

impl From<TopicText> for String {
    fn from(topic: TopicText) -> Self {
        topic.0.as_str().to_owned()
    }
}

/// The two fields that every version has.
#[derive(Deserialize)]
struct Preface {
    format: String,
    version: u16,
}

impl Metadata {
    /// What is known of an archive before it is packed. Length, digest and place
    /// of the table are the summary's alone: they depend on this page.
    pub(super) fn of(identity: &ArchiveIdentity, summary: &ArchiveSummary) -> Self {
        let known = summary.min_timestamp != UNKNOWN_TIMESTAMP;
        Self {
            format: FORMAT.to_owned(),
            version: FORMAT_VERSION,
            topic: TopicText(identity.tp.topic().clone()),
            partition: identity.tp.partition(),
            incarnation: identity.incarnation,
            base_offset: summary.range.base(),
            last_offset: summary.range.last(),
            tiles: summary.tiles,
            batches: summary.batches,
            records: summary.records,
            log_bytes: summary.log_bytes,
            overlap_batches: summary.overlaps,
            overlap_bytes: summary.overlap_bytes,
            bad_crc_batches: summary.bad_crcs,
            unindexed_batches: summary.unindexed,
            min_timestamp_ms: known.then_some(summary.min_timestamp),
            max_timestamp_ms: summary.max_timestamp,
            min_leader_epoch: summary.leader_epochs.0,
            max_leader_epoch: summary.leader_epochs.1,
            transactions: summary.transactions,
            index_level: summary.index_level,
            index_bytes: summary.index_bytes,
        }
    }

    /// Whose archive it is.
    ///
    /// # Errors
    /// When the partition is below zero.
    pub fn identity(&self) -> Result<ArchiveIdentity, ArchiveError> {
        let tp = TopicPartition::new(self.topic.0.clone(), self.partition)
            .map_err(|error| ArchiveError::corrupt(PART, error.to_string()))?;
        Ok(ArchiveIdentity { tp, incarnation: self.incarnation })
    }

    /// The offsets of the archive.
    ///
    /// # Errors
    /// When they are not a range.
    pub fn range(&self) -> Result<OffsetRange, ArchiveError> {
        OffsetRange::new(self.base_offset, self.last_offset)
            .ok_or_else(|| ArchiveError::corrupt(PART, "its offsets are not a range"))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Never for a topic that [`TopicName`] lets through.
    pub fn encode(&self) -> Result<[u8; METADATA_BYTES], ArchiveError> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| ArchiveError::corrupt(PART, error.to_string()))?;
        let mut bytes = [b' '; METADATA_BYTES];
        let Some(room) = bytes.get_mut(..json.len()).filter(|_| json.len() < METADATA_BYTES) else {
            return Err(ArchiveError::corrupt(PART, "it is longer than its place"));
        };
        room.copy_from_slice(&json);
        bytes[METADATA_BYTES - 1] = b'\n';
        Ok(bytes)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Names what is wrong, or which later version wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let wrong = |error: serde_json::Error| ArchiveError::corrupt(PART, error.to_string());
        if bytes.len() != METADATA_BYTES {
            return Err(ArchiveError::corrupt(PART, "it is not 2048 bytes long"));
        }
        let preface: Preface = serde_json::from_slice(bytes).map_err(wrong)?;
        if preface.format != FORMAT {
            return Err(ArchiveError::corrupt(PART, "its format is not \"tierd archive\""));
        }
        check_version(PART, preface.version)?;
        let metadata: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        metadata.identity()?;
        metadata.range()?;
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::chunk::Encoding;
    use crate::archive::toc::TocPlace;

    fn metadata(topic: &str, number: i64) -> Metadata {
        let tp = TopicPartition::new(TopicName::new(topic).unwrap(), i32::MAX).unwrap();
        let big = number as u64;
        let summary = ArchiveSummary {
            range: OffsetRange::new(number - 2, number - 1).unwrap(),
            tiles: true,
            batches: u32::MAX,
            records: big,
            log_bytes: big,
            overlaps: u32::MAX,
            overlap_bytes: big,
            bad_crcs: u32::MAX,
            unindexed: u32::MAX,
            min_timestamp: number,
            max_timestamp: i64::MIN + 1,
            leader_epochs: (-1, i32::MAX),
            index_level: IndexLevel::Keys,
            index_bytes: big,
            transactions: u32::MAX,
            length: big,
            digest: [0; 32],
            toc: TocPlace {
                offset: 0,
                length: 1,
                raw: 1,
                encoding: Encoding::Stored,
                digest: [0; 16],
            },
        };
        Metadata::of(&ArchiveIdentity { tp, incarnation: u32::MAX }, &summary)
    }

    #[test]
    fn the_longest_metadata_fits_and_comes_back() {
        // 249 bytes of a topic's name and the largest numbers everywhere.
        let metadata = metadata(&"日".repeat(83), i64::MAX);
        let bytes = metadata.encode().unwrap();
        assert_eq!(Metadata::decode(&bytes).unwrap(), metadata);
        assert!(bytes.ends_with(b" \n"));
        let json = bytes.iter().rposition(|byte| *byte == b'}').unwrap();
        assert!(json < METADATA_BYTES / 2, "{json} bytes leave no room to grow");
    }

    #[test]
    fn a_future_version_is_refused_by_name_whatever_else_it_says() {
        let mut bytes = [b' '; METADATA_BYTES];
        let json = br#"{"format": "tierd archive", "version": 2, "new": {}}"#;
        bytes[..json.len()].copy_from_slice(json);
        let error = Metadata::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("archive format version 2 is newer"), "{error}");
    }

    #[test]
    fn what_is_not_metadata_is_refused() {
        let good = metadata("orders", 9).encode().unwrap();
        let text = String::from_utf8(good.to_vec()).unwrap();
        for (from, to) in [
            ("tierd archive", "other archive"),
            ("\"orders\"", "\"../etc\""),
            ("2147483647,", "-147483647,"),
            ("\"base_offset\": 7", "\"base_offset\": 9"),
            ("\"batches\"", "\"botches\""),
            ("\"keys\"", "\"kays\""),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from}");
            assert!(Metadata::decode(bad.as_bytes()).is_err(), "{to}");
        }
        for end in [0, 1, 100, METADATA_BYTES - 1] {
            assert!(Metadata::decode(&good[..end]).is_err());
        }
    }
}
