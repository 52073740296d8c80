//! Owns making a magic-2 batch for a frame that holds none: a legacy message set,
//! or, in frames before v2.2.0, an uncompressed batch kept as entries only.
//!
//! The same frame gives the same bytes, always: pass 1 checksums what pass 2 hands
//! out, and two writers must agree.

use std::io::{Read, Seek};
use std::ops::Range;

use bytes::{Buf, Bytes};

use super::super::window::Window;
use super::frame::Trailer;
use super::payload::{Head, Payload, flag};
use super::{Fault, Stop};
use crate::record::{
    BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header, decode_message_set,
};

/// Most bytes of a payload that are brought into memory to rebuild its batch. Only
/// frames without magic-2 bytes come here; a request of those brokers was at most
/// 10 MB, to which each small record adds some 40 bytes.
const REBUILD_BYTES_MAX: u64 = 64 << 20;

/// The batch of a legacy message set. Where the set does not decode, or not to the
/// records that the broker numbered, the broker's own decoding counts.
pub(super) fn from_legacy<R: Read + Seek>(
    window: &mut Window<R>,
    at: Range<u64>,
    payload: &Payload,
    trailer: Option<Trailer>,
) -> Result<CanonicalRecord, Stop> {
    let base = trailer.map_or(payload.head.base_offset, |trailer| trailer.base);
    let set = load(window, at)?;
    let record = decode_message_set(&set, base).and_then(|set| set.into_record());
    match record {
        Ok(record) if trailer.is_none_or(|trailer| trailer.last == record.range().last()) => {
            Ok(record)
        }
        _ => from_entries(window, payload, trailer, true),
    }
}

/// The batch of the decoded entries. `renumber`: their offsets mean nothing.
pub(super) fn from_entries<R: Read + Seek>(
    window: &mut Window<R>,
    payload: &Payload,
    trailer: Option<Trailer>,
    renumber: bool,
) -> Result<CanonicalRecord, Stop> {
    let head = &payload.head;
    let base = trailer.map_or(head.base_offset, |trailer| trailer.base);
    let mut entries = decode(load(window, payload.entries_at.clone())?, payload.entries)?;
    // The broker takes a legacy offset 0 for "none yet" and then counts on from the
    // next message: where the bases differ, only the frame's is right.
    if renumber || head.base_offset != base {
        for (entry, offset) in entries.iter_mut().zip(base..) {
            entry.offset = offset;
        }
    }
    let last = entries.last().map_or(base, |entry| entry.offset);
    let last = trailer.map_or(last, |trailer| last.max(trailer.last));
    let header = header(head, base, last)?;
    Ok(CanonicalRecord::from_entries(header, entries).map_err(Fault::from)?)
}

fn header(head: &Head, base: i64, last: i64) -> Result<BatchHeader, Fault> {
    let delta = last.checked_sub(base).and_then(|delta| i32::try_from(delta).ok());
    let Some(last_offset_delta) = delta else {
        let why = format!("go from {base} to {last}, too far for one batch");
        return Err(Fault::Payload { field: "entry offsets", why });
    };
    // Head::decode bounds both numbers to their bits.
    let attributes = head.compression as i16
        | (head.timestamp_type as i16) << 3
        | i16::from(head.transactional) << 4
        | i16::from(head.control) << 5;
    Ok(BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: head.leader_epoch,
        crc: 0,
        attributes,
        last_offset_delta,
        base_timestamp: head.base_timestamp,
        max_timestamp: head.max_timestamp,
        producer_id: head.producer_id,
        producer_epoch: head.producer_epoch,
        base_sequence: head.base_sequence,
        record_count: 0,
    })
}

fn load<R: Read + Seek>(window: &mut Window<R>, at: Range<u64>) -> Result<Bytes, Stop> {
    let len = at.end - at.start;
    if len > REBUILD_BYTES_MAX {
        let why = format!("takes {len} bytes, more than the {REBUILD_BYTES_MAX} rebuilt at most");
        return Err(Fault::Payload { field: "without a batch", why }.into());
    }
    Ok(window.copy(at)?)
}

fn decode(mut bytes: Bytes, count: u64) -> Result<Vec<CanonicalRecordEntry>, Fault> {
    let mut entries = Vec::new();
    for _ in 0..count {
        let (offset, timestamp) = (bytes.try_get_i64_le()?, bytes.try_get_i64_le()?);
        let (key, value) = (option(&mut bytes)?, option(&mut bytes)?);
        let mut headers = Vec::new();
        for _ in 0..bytes.try_get_u64_le()? {
            headers.push(Header { name: take(&mut bytes)?, value: option(&mut bytes)? });
        }
        let attributes = bytes.try_get_i8()?;
        entries.push(CanonicalRecordEntry { offset, timestamp, attributes, key, value, headers });
    }
    Ok(entries)
}

fn option(bytes: &mut Bytes) -> Result<Option<Bytes>, Fault> {
    let tag = bytes.try_get_u8()?;
    if flag("entry", tag)? { take(bytes).map(Some) } else { Ok(None) }
}

/// A length and as many bytes: a slice of `bytes`.
fn take(bytes: &mut Bytes) -> Result<Bytes, Fault> {
    let len = bytes.try_get_u64_le()?;
    match usize::try_from(len) {
        Ok(len) if len <= bytes.len() => Ok(bytes.split_to(len)),
        _ => Err(Fault::CutShort { field: "entry" }),
    }
}
