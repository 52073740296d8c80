//! Owns the payload of a frame: one Kafka batch, three times over. This walks its
//! fields to learn where they lie; nothing is decoded and nothing is kept.
//!
//! Source: `CanonicalRecord` of Chronik Stream in bincode 1.3, fixed-width
//! little-endian. `opt` is one byte, 0 or 1, then the value; `bytes`, text and
//! lists are a u64 count, then the elements.
//!
//! ```text
//!   1 base offset          i64   0        8 compression      u32 enum 0-4   28
//!   2 leader epoch         i32   8        9 timestamp type   u32 enum 0-1   32
//!   3 producer id          i64  12       10 base timestamp   i64            36
//!   4 producer epoch       i16  20       11 max timestamp    i64            44
//!   5 base sequence        i32  22       12 entries          list           52
//!   6 is transactional    bool  26       13 records section  opt bytes
//!   7 is control          bool  27       14 legacy messages  opt bytes
//!                                        15 whole batch      opt bytes
//!  entry:  offset i64 | timestamp i64 | key opt bytes | value opt bytes
//!          | headers, list of (name text, value opt bytes) | attributes i8
//!
//!  v2.2.0 on           13: the section alone   14 or 15: what the producer sent
//!  v1.3.46 to v2.1.0   13: the whole batch, or no tag at all; no 14, no 15
//! ```

use std::io::{Read, Seek};
use std::ops::Range;

use bytes::Buf;

use super::super::window::Window;
use super::{Fault, Stop};
use crate::record::batch::BATCH_LENGTH_PREFIX_BYTES;

/// Bytes of fields 1 to 11.
pub(super) const HEAD_BYTES: usize = 52;
/// Offset, timestamp, two tags, header count, attributes: the least entry.
const ENTRY_BYTES_MIN: u64 = 27;
/// Name length, value tag: the least header.
const HEADER_BYTES_MIN: u64 = 9;
/// Where in a batch its magic byte lies.
const MAGIC_AT: usize = 16;

/// Fields 1 to 11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) base_offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i16,
    pub(super) base_sequence: i32,
    pub(super) transactional: bool,
    pub(super) control: bool,
    pub(super) compression: u32,
    pub(super) timestamp_type: u32,
    pub(super) base_timestamp: i64,
    pub(super) max_timestamp: i64,
}

impl Head {
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Fault> {
        let head = Self {
            base_offset: bytes.try_get_i64_le()?,
            leader_epoch: bytes.try_get_i32_le()?,
            producer_id: bytes.try_get_i64_le()?,
            producer_epoch: bytes.try_get_i16_le()?,
            base_sequence: bytes.try_get_i32_le()?,
            transactional: flag("is transactional", bytes.try_get_u8()?)?,
            control: flag("is control", bytes.try_get_u8()?)?,
            compression: bytes.try_get_u32_le()?,
            timestamp_type: bytes.try_get_u32_le()?,
            base_timestamp: bytes.try_get_i64_le()?,
            max_timestamp: bytes.try_get_i64_le()?,
        };
        for (field, value, most) in
            [("compression", head.compression, 4), ("timestamp type", head.timestamp_type, 1)]
        {
            if value > most {
                return Err(Fault::Payload { field, why: format!("is {value}, at most {most}") });
            }
        }
        Ok(head)
    }
}

/// A bool or the tag of an option: anything but 0 and 1 is damage.
pub(super) fn flag(field: &'static str, byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Fault::Payload { field, why: format!("has the tag {other}, not 0 or 1") }),
    }
}

/// Where in the file the fields of a payload lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) head: Head,
    /// Field 12: how many entries, and their bytes without the count.
    pub(super) entries: u64,
    pub(super) entries_at: Range<u64>,
    /// Field 13.
    pub(super) section: Option<Range<u64>>,
    /// Field 14.
    pub(super) legacy: Option<Range<u64>>,
    /// Field 15.
    pub(super) batch: Option<Range<u64>>,
    /// Bytes after the last field.
    pub(super) trailing: u64,
}

impl Payload {
    /// Walks the payload that lies at `at`.
    pub(super) fn walk<R: Read + Seek>(
        window: &mut Window<R>,
        at: Range<u64>,
    ) -> Result<Self, Stop> {
        let mut walk = Walk { window, pos: at.start, end: at.end };
        let head = Head::decode(walk.take("header fields", HEAD_BYTES)?)?;
        let entries = walk.count("entries", ENTRY_BYTES_MIN)?;
        let entries_from = walk.pos;
        for _ in 0..entries {
            walk.entry()?;
        }
        let entries_at = entries_from..walk.pos;
        let (mut section, mut legacy, mut batch) = (None, None, None);
        if !walk.is_done() {
            section = walk.option("field 13")?;
        }
        // Both or neither: no writer stops between them.
        if !walk.is_done() {
            legacy = walk.option("field 14")?;
            batch = walk.option("field 15")?;
        }
        let trailing = walk.end - walk.pos;
        Ok(Self { head, entries, entries_at, section, legacy, batch, trailing })
    }

    /// Where the batch lies as it was on the wire, or the next best thing.
    pub(super) fn source<R: Read + Seek>(&self, window: &mut Window<R>) -> Result<Source, Stop> {
        if let Some(at) = &self.batch {
            return Ok(if at.is_empty() { Source::Nothing } else { Source::Wire(at.clone()) });
        }
        if let Some(at) = &self.section
            && is_whole_batch(window, at)?
        {
            return Ok(Source::Wire(at.clone()));
        }
        if let Some(at) = &self.legacy
            && !at.is_empty()
        {
            return Ok(Source::Legacy(at.clone()));
        }
        Ok(if self.entries == 0 { Source::Nothing } else { Source::Entries })
    }
}

/// Which field of a payload the batch is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Field 15, or 13 where it holds a whole batch: verbatim.
    Wire(Range<u64>),
    /// Field 14: decoded, renumbered, encoded.
    Legacy(Range<u64>),
    /// Field 12: encoded.
    Entries,
    /// The broker found no record in the request.
    Nothing,
}

/// Whether field 13 holds a whole batch: magic 2, and the length is its own.
fn is_whole_batch<R: Read + Seek>(window: &mut Window<R>, at: &Range<u64>) -> Result<bool, Stop> {
    let start = window.peek(at.start, MAGIC_AT + 1)?;
    let Some(mut length) = start.get(8..BATCH_LENGTH_PREFIX_BYTES) else { return Ok(false) };
    let length = i64::from(length.try_get_i32().unwrap_or(-1));
    let len = at.end - at.start;
    Ok(len > MAGIC_AT as u64
        && start.get(MAGIC_AT) == Some(&2)
        && u64::try_from(length + BATCH_LENGTH_PREFIX_BYTES as i64) == Ok(len))
}

/// A position in a payload that never passes its end.
struct Walk<'w, R> {
    window: &'w mut Window<R>,
    pos: u64,
    end: u64,
}

impl<R: Read + Seek> Walk<'_, R> {
    fn is_done(&self) -> bool {
        self.pos == self.end
    }

    fn advance(&mut self, field: &'static str, bytes: u64) -> Result<u64, Fault> {
        if bytes > self.end - self.pos {
            let (left, pos) = (self.end - self.pos, self.pos);
            let why = format!("needs {bytes} bytes at byte {pos}, the payload has {left} left");
            return Err(Fault::Payload { field, why });
        }
        self.pos += bytes;
        Ok(self.pos - bytes)
    }

    /// The next few bytes; `n` is small.
    fn take(&mut self, field: &'static str, n: usize) -> Result<&[u8], Stop> {
        let at = self.advance(field, n as u64)?;
        Ok(self.window.peek(at, n)?)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, Stop> {
        Ok(self.take(field, 8)?.try_get_u64_le().map_err(Fault::from)?)
    }

    /// A count of elements of at least `least` bytes, believed only where they fit.
    fn count(&mut self, field: &'static str, least: u64) -> Result<u64, Stop> {
        let count = self.u64(field)?;
        if count > (self.end - self.pos) / least {
            let why = format!("says {count} elements, more than the payload can hold");
            return Err(Fault::Payload { field, why }.into());
        }
        Ok(count)
    }

    /// A length and as many bytes, which are passed over.
    fn bytes(&mut self, field: &'static str) -> Result<Range<u64>, Stop> {
        let len = self.u64(field)?;
        let start = self.advance(field, len)?;
        Ok(start..self.pos)
    }

    fn option(&mut self, field: &'static str) -> Result<Option<Range<u64>>, Stop> {
        let tag = self.take(field, 1)?.first().copied().unwrap_or_default();
        if flag(field, tag)? { self.bytes(field).map(Some) } else { Ok(None) }
    }

    fn entry(&mut self) -> Result<(), Stop> {
        self.advance("entry", 16)?;
        self.option("entry key")?;
        self.option("entry value")?;
        for _ in 0..self.count("entry headers", HEADER_BYTES_MIN)? {
            self.bytes("header name")?;
            self.option("header value")?;
        }
        self.advance("entry attributes", 1)?;
        Ok(())
    }
}
