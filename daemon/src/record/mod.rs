//! Owns the canonical form of a Kafka record batch: [`CanonicalRecord`].
//!
//! Every batch on every read path passes through it. It keeps the wire bytes
//! where there are any and hands them out again untouched, because compressing
//! the same records twice gives other bytes and another CRC. Entries are decoded
//! only when somebody asks.
//!
//! Does not own: where batches come from or go to. No files, no network, no
//! async, no serde.

pub mod batch;
mod compression;
pub mod entries;
pub mod legacy;
mod lz4;
pub mod name;
mod select;
mod varint;

use std::sync::Arc;

use bytes::Bytes;

use batch::{BATCH_BYTES_MAX, BATCH_CRC_START, BATCH_HEADER_BYTES, BATCH_LENGTH_PREFIX_BYTES};

pub use batch::{BatchError, BatchHeader, Codec};
pub use entries::{Entries, EntryRef};
pub use legacy::{MessageSet, decode_message_set};
pub use name::{OffsetRange, TopicName, TopicPartition};
pub use select::{HEADER_CONDITIONS_MAX, HeaderCondition, InvalidSelection, Selection};

/// Largest records section decoded, in bytes after decompression. A compressed
/// batch must be able to carry what an uncompressed one may, which is
/// [`batch::BATCH_BYTES_MAX`]; twice that leaves room for producers that limit
/// the compressed size only. Beyond it a batch is a bomb: served, not decoded.
pub const DECODED_BATCH_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// Bytes of a control record's key that say what it marks.
const MARKER_KEY_BYTES: usize = 4;

/// One Kafka record batch in canonical form.
#[derive(Clone, Debug)]
pub struct CanonicalRecord {
    header: BatchHeader,
    body: Body,
}

/// Where the records of a batch are.
#[derive(Clone, Debug)]
enum Body {
    /// The whole batch as it was on the wire, header included.
    Wire(Bytes),
    /// Entries, and the batch that was made of them.
    Built { entries: Arc<[CanonicalRecordEntry]>, encoded: Bytes },
}

/// One record inside a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalRecordEntry {
    /// Absolute offset.
    pub offset: i64,
    /// Milliseconds as encoded: base timestamp plus delta. For log-append time
    /// the batch's max timestamp counts instead, see [`CanonicalRecord::timestamp`].
    pub timestamp: i64,
    /// Record attributes; unused by Kafka, kept.
    pub attributes: i8,
    /// Key; null and empty differ.
    pub key: Option<Bytes>,
    /// Value; null (a tombstone) and empty differ.
    pub value: Option<Bytes>,
    /// Headers in order, duplicates kept.
    pub headers: Vec<Header>,
}

/// One header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name: UTF-8 by the protocol, kept as bytes because nobody checks.
    pub name: Bytes,
    /// Value; null and empty differ.
    pub value: Option<Bytes>,
}

/// What a control batch marks in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// What it says.
    pub kind: MarkerKind,
    /// Whose transaction it ends.
    pub producer_id: i64,
}

/// The type of a control record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerKind {
    /// The transaction was aborted.
    Abort,
    /// The transaction was committed.
    Commit,
    /// A type that ends no transaction, by its number.
    Other(i16),
}

impl CanonicalRecord {
    /// Takes a whole batch as it was on the wire. Checks the header and the
    /// length, not the CRC: a producer's wrong CRC is data, see [`Self::verify_crc`].
    ///
    /// # Errors
    /// When the bytes are not exactly one magic-2 batch.
    pub fn from_wire(wire: Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::decode(&wire)?;
        if wire.len() != header.wire_len() {
            return Err(BatchError::Invalid {
                field: "batch_length",
                why: format!("says {} bytes, there are {}", header.wire_len(), wire.len()),
            });
        }
        Ok(Self { header, body: Body::Wire(wire) })
    }

    /// Makes a batch of `entries`. `header` is the truth for every field but
    /// batch length, CRC and record count, which follow from the entries; the
    /// codec is kept. The same arguments give the same bytes.
    ///
    /// # Errors
    /// When the header is not valid, when an entry lies outside its range or not
    /// after the entry before it, or when the batch grows beyond
    /// [`batch::BATCH_BYTES_MAX`] (its section, before compression, beyond
    /// [`DECODED_BATCH_BYTES_MAX`]).
    pub fn from_entries(
        mut header: BatchHeader,
        entries: Vec<CanonicalRecordEntry>,
    ) -> Result<Self, BatchError> {
        header.batch_length = (BATCH_HEADER_BYTES - BATCH_LENGTH_PREFIX_BYTES) as i32;
        header.record_count = i32::try_from(entries.len()).map_err(|_| BatchError::Invalid {
            field: "record_count",
            why: entries.len().to_string(),
        })?;
        header.check()?;

        let base_offset = header.base_offset;
        let mut section = Vec::new();
        entries::encode(&header, &entries, DECODED_BATCH_BYTES_MAX, &mut section)?;
        let mut encoded = vec![0; BATCH_HEADER_BYTES];
        let codec = header.codec();
        compression::compress(codec, &section, &mut encoded).map_err(|why| {
            compression::Refusal::broken(why).of_batch(base_offset, codec, BATCH_BYTES_MAX)
        })?;
        if encoded.len() > BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge { base_offset, limit: BATCH_BYTES_MAX });
        }
        // Below BATCH_BYTES_MAX it fits.
        header.batch_length = (encoded.len() - BATCH_LENGTH_PREFIX_BYTES) as i32;
        header.encode(&mut &mut encoded[..]);
        header.crc = crc32c::crc32c(&encoded[BATCH_CRC_START..]);
        header.encode(&mut &mut encoded[..]);
        let entries = Arc::from(entries);
        Ok(Self { header, body: Body::Built { entries, encoded: Bytes::from(encoded) } })
    }

    /// The header, field by field.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The offsets the batch takes.
    #[must_use]
    pub fn range(&self) -> OffsetRange {
        self.header.range()
    }

    /// The whole batch as it was on the wire; `None` for one that was made
    /// [from entries](Self::from_entries).
    #[must_use]
    pub fn wire(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Wire(wire) => Some(wire),
            Body::Built { .. } => None,
        }
    }

    /// Compares the header's CRC-32C with the bytes. A mismatch inside an intact
    /// WAL frame was sent by the producer: such a batch is kept and flagged.
    ///
    /// # Errors
    /// [`BatchError::Crc`]; never for a batch made from entries.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let Body::Wire(wire) = &self.body else { return Ok(()) };
        let BatchHeader { base_offset, crc: stored, .. } = self.header;
        // from_wire made sure of the header's bytes.
        let computed = crc32c::crc32c(wire.get(BATCH_CRC_START..).unwrap_or_default());
        if computed == stored {
            Ok(())
        } else {
            Err(BatchError::Crc { base_offset, stored, computed })
        }
    }

    /// The batch as a Kafka client reads it: the wire bytes where there are any,
    /// else the bytes made from the entries. A cheap clone.
    ///
    /// # Errors
    /// None today: what cannot be encoded is refused by [`Self::from_entries`].
    pub fn to_kafka_batch(&self) -> Result<Bytes, BatchError> {
        Ok(match &self.body {
            Body::Wire(bytes) | Body::Built { encoded: bytes, .. } => bytes.clone(),
        })
    }

    /// The entries, decompressed once, decoded as they are asked for. Entries of
    /// an uncompressed batch are slices of its wire bytes.
    ///
    /// # Errors
    /// When the section does not decompress, or to more than
    /// [`DECODED_BATCH_BYTES_MAX`]. Damaged records show while iterating.
    pub fn entries(&self) -> Result<Entries, BatchError> {
        self.entries_within(DECODED_BATCH_BYTES_MAX)
    }

    /// As [`Self::entries`], decompressing to at most `limit` bytes, for callers
    /// with a budget of their own.
    ///
    /// # Errors
    /// As [`Self::entries`]; [`BatchError::TooLarge`] beyond `limit`.
    pub fn entries_within(&self, limit: usize) -> Result<Entries, BatchError> {
        match &self.body {
            Body::Built { entries, .. } => Ok(Entries::of_list(Arc::clone(entries))),
            Body::Wire(wire) => {
                let codec = self.header.codec();
                let section =
                    compression::decompress(codec, &wire.slice(BATCH_HEADER_BYTES..), limit)
                        .map_err(|refusal| {
                            refusal.of_batch(self.header.base_offset, codec, limit)
                        })?;
                Ok(Entries::of_section(&self.header, section))
            }
        }
    }

    /// All entries. Takes up to sixteen times the memory of the decompressed
    /// section when records are tiny: prefer [`Self::entries`] on large batches.
    ///
    /// # Errors
    /// As [`Self::entries`], and for the first damaged record.
    pub fn decode(&self) -> Result<Vec<CanonicalRecordEntry>, BatchError> {
        // try_collect by hand: collect into Result forgets the size hint.
        let entries = self.entries()?;
        let mut decoded = Vec::with_capacity(entries.size_hint().0);
        for entry in entries {
            decoded.push(entry?);
        }
        Ok(decoded)
    }

    /// The timestamp a consumer sees, in milliseconds: the batch's max timestamp
    /// for log-append time, else the entry's own.
    #[must_use]
    pub fn timestamp(&self, entry: &CanonicalRecordEntry) -> i64 {
        self.effective_timestamp(entry.timestamp)
    }

    /// As [`Self::timestamp`], for an entry's timestamp as encoded.
    #[must_use]
    pub fn effective_timestamp(&self, encoded: i64) -> i64 {
        if self.header.is_log_append_time() { self.header.max_timestamp } else { encoded }
    }

    /// What a control batch marks; `None` for a batch of data, and for a control
    /// batch that compaction emptied.
    ///
    /// ```text
    ///  key of a control record: | version | type: 0 abort, 1 commit | …
    ///                           | i16 BE  | i16 BE                  |
    /// ```
    ///
    /// # Errors
    /// When the first record cannot be decoded or its key is not that of a
    /// control record.
    pub fn marker(&self) -> Result<Option<Marker>, BatchError> {
        if !self.header.is_control() {
            return Ok(None);
        }
        let mut entries = self.entries()?;
        let Some(entry) = entries.next_ref() else { return Ok(None) };
        let key = entry?.key.unwrap_or_default();
        let Some([v0, v1, t0, t1]) = key.first_chunk::<MARKER_KEY_BYTES>() else {
            return Err(BatchError::Truncated { field: "control record key" });
        };
        let version = i16::from_be_bytes([*v0, *v1]);
        if version < 0 {
            return Err(BatchError::Invalid {
                field: "control record key",
                why: format!("version {version}"),
            });
        }
        let kind = match i16::from_be_bytes([*t0, *t1]) {
            0 => MarkerKind::Abort,
            1 => MarkerKind::Commit,
            other => MarkerKind::Other(other),
        };
        Ok(Some(Marker { kind, producer_id: self.header.producer_id }))
    }
}

#[cfg(test)]
mod tests;
