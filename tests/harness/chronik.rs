//! The harness's own writer of Chronik WALs: frames as the broker makes them, and
//! as older brokers made them, and broken in every way a disk holds them.
//!
//! It shares no code with the reader it tests but the record types. It is checked
//! against frames that a real broker wrote: see `e2e/wal_fixtures.rs`.

mod writer;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes};
use tierd::record::{BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header};

pub use writer::{
    Place, Template, WalWriter, damage, noise_batch, sample_batch, transactional_batch,
};

/// What surrounds a payload: which versions of the broker write it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// v1.3.51 on: base, last and count after the payload.
    Trailer,
    /// v1.3.47 to v1.3.50: nothing after the payload.
    Bare,
    /// v1.3.33 to v1.3.46: nothing after the payload, and a length 13 too large.
    BareWrongLength,
}

impl Layout {
    /// The length field minus topic and payload.
    fn extra(self) -> u32 {
        match self {
            Self::Trailer => 30,
            Self::Bare => 10,
            Self::BareWrongLength => 23,
        }
    }
}

/// What the checksum of a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCrc {
    /// v2.4.0 on: the frame as it lies.
    AsItLies,
    /// Before: the frame with length zero.
    LengthZero,
}

/// Where a payload keeps the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// v2.2.0 on: the section in field 13, the whole batch in field 15.
    All,
    /// v1.3.46 to v2.1.0: the whole batch in field 13, then nothing.
    WholeIn13,
    /// The same versions, where field 13 was none: nothing after the entries.
    EntriesOnly,
}

/// How a version of the broker writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Around the payload.
    pub layout: Layout,
    /// Over the frame.
    pub crc: FrameCrc,
    /// In the payload.
    pub fields: Fields,
}

impl Style {
    /// v2.4.0 on.
    pub const CURRENT: Self =
        Self { layout: Layout::Trailer, crc: FrameCrc::AsItLies, fields: Fields::All };
}

/// A frame taken to pieces. `encode(decode(x)) == x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameParts {
    /// As in the frame.
    pub topic: String,
    /// As in the frame.
    pub partition: i32,
    /// Field 1; differs from the trailer's for legacy producers.
    pub base_offset: i64,
    /// Fields 2 to 11, in a batch's header; its lengths and counts are not used.
    pub header: BatchHeader,
    /// Field 12.
    pub entries: Vec<CanonicalRecordEntry>,
    /// Fields 13, 14 and 15; fewer when the payload ends earlier.
    pub options: Vec<Option<Bytes>>,
    /// Base, last, count; written only by [`Layout::Trailer`].
    pub trailer: (i64, i64, i32),
    /// Around the payload.
    pub layout: Layout,
    /// Over the frame.
    pub crc: FrameCrc,
}

/// Where in an encoded frame the numbers lie that follow the base offset.
#[derive(Clone, Debug, Default)]
struct OffsetPlaces {
    /// Little-endian.
    entries: Vec<usize>,
    /// Big-endian: the batch of field 15.
    batch: Option<usize>,
}

impl FrameParts {
    /// What a broker of `style` writes for a batch as it stands on the wire.
    ///
    /// # Errors
    /// When `wire` is no batch that decodes.
    pub fn of_batch(topic: &str, partition: i32, wire: &Bytes, style: Style) -> Result<Self> {
        let record = CanonicalRecord::from_wire(wire.clone())?;
        let header = *record.header();
        let entries = record.decode()?;
        let count = i32::try_from(entries.len())?;
        let options = match style.fields {
            Fields::All => vec![Some(wire.slice(61..)), None, Some(wire.clone())],
            Fields::WholeIn13 => vec![Some(wire.clone())],
            Fields::EntriesOnly => vec![],
        };
        Ok(Self {
            topic: topic.to_owned(),
            partition,
            base_offset: header.base_offset,
            header,
            trailer: (header.base_offset, header.base_offset + i64::from(count) - 1, count),
            entries,
            options,
            layout: style.layout,
            crc: style.crc,
        })
    }

    /// What a v2.2.0 broker writes for a message set of magic 0 or 1, whose records
    /// it decoded to `entries`.
    ///
    /// # Errors
    /// When there are more entries than a frame can count.
    pub fn of_legacy(
        topic: &str,
        partition: i32,
        base: i64,
        set: &Bytes,
        entries: Vec<CanonicalRecordEntry>,
    ) -> Result<Self> {
        let times = entries.iter().map(|entry| entry.timestamp);
        let count = i32::try_from(entries.len())?;
        let header = BatchHeader {
            base_offset: base,
            batch_length: 0,
            partition_leader_epoch: -1,
            crc: 0,
            attributes: 0,
            last_offset_delta: (count - 1).max(0),
            base_timestamp: times.clone().min().unwrap_or(-1),
            max_timestamp: times.max().unwrap_or(-1),
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: count,
        };
        Ok(Self {
            topic: topic.to_owned(),
            partition,
            base_offset: base,
            header,
            entries,
            options: vec![None, Some(set.clone()), None],
            trailer: (base, base + i64::from(count) - 1, count),
            layout: Layout::Trailer,
            crc: FrameCrc::AsItLies,
        })
    }

    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.encode_noting().0
    }

    fn encode_noting(&self) -> (Vec<u8>, OffsetPlaces) {
        let mut places = OffsetPlaces::default();
        let mut out = vec![0x7e, 0xca, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        out.extend((self.topic.len() as u16).to_le_bytes());
        out.extend(self.topic.as_bytes());
        out.extend(self.partition.to_le_bytes());
        out.extend([0; 4]);
        let payload_at = out.len();
        self.payload(&mut out, &mut places);
        let payload_len = (out.len() - payload_at) as u32;
        out[payload_at - 4..payload_at].copy_from_slice(&payload_len.to_le_bytes());
        if self.layout == Layout::Trailer {
            out.extend(self.trailer.0.to_le_bytes());
            out.extend(self.trailer.1.to_le_bytes());
            out.extend(self.trailer.2.to_le_bytes());
        }
        let length = self.topic.len() as u32 + payload_len + self.layout.extra();
        out[4..8].copy_from_slice(&length.to_le_bytes());
        seal(&mut out, self.crc);
        (out, places)
    }

    fn payload(&self, out: &mut Vec<u8>, places: &mut OffsetPlaces) {
        let header = &self.header;
        out.extend(self.base_offset.to_le_bytes());
        out.extend(header.partition_leader_epoch.to_le_bytes());
        out.extend(header.producer_id.to_le_bytes());
        out.extend(header.producer_epoch.to_le_bytes());
        out.extend(header.base_sequence.to_le_bytes());
        out.push(u8::from(header.is_transactional()));
        out.push(u8::from(header.is_control()));
        out.extend(u32::from(header.attributes as u16 & 7).to_le_bytes());
        out.extend(u32::from(header.is_log_append_time()).to_le_bytes());
        out.extend(header.base_timestamp.to_le_bytes());
        out.extend(header.max_timestamp.to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            places.entries.push(out.len());
            out.extend(entry.offset.to_le_bytes());
            out.extend(entry.timestamp.to_le_bytes());
            put_option(out, entry.key.as_ref());
            put_option(out, entry.value.as_ref());
            out.extend((entry.headers.len() as u64).to_le_bytes());
            for header in &entry.headers {
                out.extend((header.name.len() as u64).to_le_bytes());
                out.extend(&header.name);
                put_option(out, header.value.as_ref());
            }
            out.push(entry.attributes as u8);
        }
        for (field, value) in self.options.iter().enumerate() {
            if field == 2 && value.is_some() {
                places.batch = Some(out.len() + 9);
            }
            put_option(out, value.as_ref());
        }
    }

    /// Takes the first frame of `bytes` to pieces and says how long it is.
    ///
    /// # Errors
    /// When it is not a whole version 2 frame with one of the two checksums.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut head = bytes;
        ensure!(head.try_get_u32_le()? == 0x0002_ca7e, "not a version 2 frame");
        let (length, crc) = (head.try_get_u32_le()?, head.try_get_u32_le()?);
        let topic_len = head.try_get_u16_le()?;
        let topic = take(&mut head, topic_len.into())?;
        let partition = head.try_get_i32_le()?;
        let payload_len = head.try_get_u32_le()?;
        let layout = match length - u32::from(topic_len) - payload_len {
            30 => Layout::Trailer,
            10 => Layout::Bare,
            23 => Layout::BareWrongLength,
            other => bail!("no known layout: {other}"),
        };
        let mut payload = Bytes::copy_from_slice(take(&mut head, payload_len as usize)?);
        let trailer = match layout {
            Layout::Trailer => {
                (head.try_get_i64_le()?, head.try_get_i64_le()?, head.try_get_i32_le()?)
            }
            _ => (0, 0, 0),
        };
        let frame = &bytes[..bytes.len() - head.len()];
        let crc = [FrameCrc::AsItLies, FrameCrc::LengthZero]
            .into_iter()
            .find(|kind| frame_crc(frame, *kind) == crc)
            .context("neither checksum is right")?;
        let (base_offset, header) = take_head(&mut payload)?;
        let mut entries = Vec::new();
        for _ in 0..payload.try_get_u64_le()? {
            entries.push(take_entry(&mut payload)?);
        }
        let mut options = Vec::new();
        while !payload.is_empty() {
            options.push(take_option(&mut payload)?);
        }
        let topic = String::from_utf8(topic.to_vec())?;
        let parts =
            Self { topic, partition, base_offset, header, entries, options, trailer, layout, crc };
        Ok((parts, frame.len()))
    }
}

fn frame_crc(frame: &[u8], kind: FrameCrc) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    match kind {
        FrameCrc::AsItLies => hasher.update(&frame[..8]),
        FrameCrc::LengthZero => {
            hasher.update(&frame[..4]);
            hasher.update(&[0; 4]);
        }
    }
    hasher.update(&frame[12..]);
    hasher.finalize()
}

/// Puts the right checksum into a frame.
pub fn seal(frame: &mut [u8], kind: FrameCrc) {
    let crc = frame_crc(frame, kind);
    frame[8..12].copy_from_slice(&crc.to_le_bytes());
}

fn put_option(out: &mut Vec<u8>, value: Option<&Bytes>) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        out.extend((value.len() as u64).to_le_bytes());
        out.extend(value);
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len).context("cut short")?;
    *bytes = rest;
    Ok(taken)
}

fn take_bytes(bytes: &mut Bytes) -> Result<Bytes> {
    let len = usize::try_from(bytes.try_get_u64_le()?)?;
    ensure!(len <= bytes.len(), "cut short");
    Ok(bytes.split_to(len))
}

fn take_option(bytes: &mut Bytes) -> Result<Option<Bytes>> {
    match bytes.try_get_u8()? {
        0 => Ok(None),
        1 => take_bytes(bytes).map(Some),
        other => bail!("option tag {other}"),
    }
}

fn take_head(bytes: &mut Bytes) -> Result<(i64, BatchHeader)> {
    let base_offset = bytes.try_get_i64_le()?;
    let partition_leader_epoch = bytes.try_get_i32_le()?;
    let producer_id = bytes.try_get_i64_le()?;
    let producer_epoch = bytes.try_get_i16_le()?;
    let base_sequence = bytes.try_get_i32_le()?;
    let transactional = i16::from(bytes.try_get_u8()?);
    let control = i16::from(bytes.try_get_u8()?);
    let codec = i16::try_from(bytes.try_get_u32_le()?)?;
    let append_time = i16::try_from(bytes.try_get_u32_le()?)?;
    let header = BatchHeader {
        base_offset,
        batch_length: 0,
        partition_leader_epoch,
        crc: 0,
        attributes: codec | append_time << 3 | transactional << 4 | control << 5,
        last_offset_delta: 0,
        base_timestamp: bytes.try_get_i64_le()?,
        max_timestamp: bytes.try_get_i64_le()?,
        producer_id,
        producer_epoch,
        base_sequence,
        record_count: 0,
    };
    Ok((base_offset, header))
}

fn take_entry(bytes: &mut Bytes) -> Result<CanonicalRecordEntry> {
    let (offset, timestamp) = (bytes.try_get_i64_le()?, bytes.try_get_i64_le()?);
    let (key, value) = (take_option(bytes)?, take_option(bytes)?);
    let mut headers = Vec::new();
    for _ in 0..bytes.try_get_u64_le()? {
        headers.push(Header { name: take_bytes(bytes)?, value: take_option(bytes)? });
    }
    let attributes = bytes.try_get_i8()?;
    Ok(CanonicalRecordEntry { offset, timestamp, attributes, key, value, headers })
}
