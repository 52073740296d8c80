//! Owns the frame around a payload: where its fields lie, and its checksum.
//!
//! Source: Chronik Stream v1.0 to v2.10.4. Integers are little-endian. A segment
//! is frames one after the other: no file header, no padding, no mark at the end.
//!
//! ```text
//!  version 2                                    T = topic bytes, D = payload bytes
//!  0       2     3     4        8      12   14      14+T       18+T   22+T     22+T+D
//!  | 7e ca | ver | fl. | length | crc  | T  | topic | partition| D    | payload | base, last, count |
//!  |       | u8=2| u8=0| u32    | u32  | u16| UTF-8 | i32      | u32  |         | i64   i64   i32   |
//!                                                                             '-- trailer, 20 B --'
//!  length - T - D tells the layout:
//!     30  v1.3.51 on   with trailer, length is what follows byte 12
//!     10  v1.3.47-50   without trailer, length is what follows byte 12
//!     23  v1.3.33-46   without trailer, length is 13 too large
//!
//!  version 1, only recognised             length = the whole frame
//!  0       2     3     4        8        16          24    28
//!  | 7e ca | ver | fl. | length | offset | timestamp | crc | key, value, headers
//!  |       | u8=1| u8=0| u32    | i64    | i64       | u32 |
//! ```
//!
//! `crc` is CRC-32 (IEEE) over the frame without its own four bytes. Brokers from
//! v2.4.0 hash the frame as it lies; before, they hashed it with `length` zero.
//! Both are accepted; anything else is damage. The broker itself does not look.

use std::io::{self, Read, Seek};

use bytes::Buf;

use super::super::window::Window;
use super::Fault;
use crate::record::TopicPartition;

/// How every frame begins: 0xca7e, little-endian.
pub(super) const MAGIC: [u8; 2] = [0x7e, 0xca];
/// How a version 2 frame begins.
pub(in crate::wal) const V2_START: [u8; 4] = [0x7e, 0xca, 2, 0];
/// Bytes up to and with the topic's length.
pub(super) const TOPIC_START: usize = 14;
/// Bytes of a version 2 frame before its payload, without the topic.
pub(super) const PREAMBLE_BYTES: usize = 22;
/// Base offset, last offset, record count.
pub(super) const TRAILER_BYTES: usize = 20;
/// Bytes of a version 1 frame before its key.
const V1_HEADER_BYTES: usize = 28;
/// The least version 1 frame: header, empty key and value, no headers.
const V1_BYTES_MIN: u64 = 40;
/// Largest frame accepted. A request of 10 MB, the broker's limit, may inflate to
/// much; nothing of it is held in memory, so this only refuses absurd lengths.
pub(super) const FRAME_BYTES_MAX: u64 = 2 << 30;

/// Which frames carry their offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// From v1.3.51 on.
    Trailer,
    /// Before: offsets are in the payload only.
    Bare,
}

/// What stands before the payload of a version 2 frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble<'a> {
    pub(super) crc: u32,
    pub(super) topic: &'a [u8],
    pub(super) partition: i32,
    pub(super) payload_len: u32,
    pub(super) layout: Layout,
}

impl<'a> Preamble<'a> {
    /// Reads it from the start of `bytes`, which may go on.
    pub(super) fn decode(mut bytes: &'a [u8]) -> Result<Self, Fault> {
        let start = [bytes.try_get_u8()?, bytes.try_get_u8()?];
        if start == [MAGIC[1], MAGIC[0]] {
            return Err(Fault::BigEndian);
        }
        if start != MAGIC {
            return Err(Fault::NoFrame);
        }
        let version = bytes.try_get_u8()?;
        if version != V2_START[2] {
            return Err(Fault::Version(version));
        }
        let flags = bytes.try_get_u8()?;
        if flags != V2_START[3] {
            return Err(Fault::Flags(flags));
        }
        let length = bytes.try_get_u32_le()?;
        let crc = bytes.try_get_u32_le()?;
        let topic_len = bytes.try_get_u16_le()?;
        let (topic, mut bytes) =
            bytes.split_at_checked(topic_len.into()).ok_or(Fault::CutShort { field: "topic" })?;
        let partition = bytes.try_get_i32_le()?;
        let payload_len = bytes.try_get_u32_le()?;
        let rest = i64::from(length) - i64::from(topic_len) - i64::from(payload_len);
        let layout = match rest {
            30 => Layout::Trailer,
            10 | 23 => Layout::Bare,
            _ => return Err(Fault::Lengths { length, topic_len, payload_len }),
        };
        Ok(Self { crc, topic, partition, payload_len, layout })
    }

    /// Whether it names this partition.
    pub(super) fn names(&self, tp: &TopicPartition) -> bool {
        self.topic == tp.topic().as_str().as_bytes() && self.partition == tp.partition()
    }

    /// What is wrong where it names another partition.
    pub(super) fn foreign(&self, tp: &TopicPartition) -> Option<Fault> {
        // The name may be anything up to 64 KiB; a line about it must not be.
        (!self.names(tp)).then(|| Fault::Foreign {
            topic: String::from_utf8_lossy(self.topic).chars().take(64).collect(),
            partition: self.partition,
        })
    }

    /// Bytes from the frame's start to its payload.
    pub(super) fn payload_at(&self) -> u64 {
        (PREAMBLE_BYTES + self.topic.len()) as u64
    }

    /// Bytes of the whole frame: what the fields add up to, not what `length` says.
    pub(super) fn frame_len(&self) -> u64 {
        let trailer = match self.layout {
            Layout::Trailer => TRAILER_BYTES as u64,
            Layout::Bare => 0,
        };
        self.payload_at() + u64::from(self.payload_len) + trailer
    }
}

/// Whether `bytes`, which the end of the file cuts off before the payload, are how
/// a frame of this partition begins.
pub(super) fn begins_frame(bytes: &[u8], tp: &TopicPartition) -> bool {
    let mut names = Vec::with_capacity(2 + tp.topic().as_str().len() + 4);
    names.extend_from_slice(&(tp.topic().as_str().len() as u16).to_le_bytes());
    names.extend_from_slice(tp.topic().as_str().as_bytes());
    names.extend_from_slice(&tp.partition().to_le_bytes());
    let agree = |have: &[u8], want: &[u8]| have.iter().zip(want).all(|(have, want)| have == want);
    agree(bytes, &V2_START) && agree(bytes.get(TOPIC_START - 2..).unwrap_or_default(), &names)
}

/// The offsets that the broker put behind a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) base: i64,
    pub(super) last: i64,
    pub(super) count: i32,
}

impl Trailer {
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Fault> {
        let (base, last) = (bytes.try_get_i64_le()?, bytes.try_get_i64_le()?);
        Ok(Self { base, last, count: bytes.try_get_i32_le()? })
    }

    /// Whether its three fields agree with each other.
    pub(super) fn is_sound(&self) -> bool {
        self.base >= 0
            && self.count >= 0
            && self.last.checked_sub(self.base) == Some(i64::from(self.count) - 1)
    }
}

/// What a frame's checksum is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CrcKind {
    /// The frame as it lies, v2.4.0 on.
    #[default]
    AsItLies,
    /// The frame with `length` zero, v1.3.51 to v2.3.0.
    LengthZero,
}

impl CrcKind {
    fn other(self) -> Self {
        match self {
            Self::AsItLies => Self::LengthZero,
            Self::LengthZero => Self::AsItLies,
        }
    }
}

/// Which kind of checksum `crc` is of the frame `[start, end)` whose four checksum
/// bytes lie at `crc_at`, or `None`. Tries `likely` first: a file has one writer.
pub(super) fn crc_kind<R: Read + Seek>(
    window: &mut Window<R>,
    frame: std::ops::Range<u64>,
    crc_at: u64,
    crc: u32,
    likely: CrcKind,
) -> io::Result<Option<CrcKind>> {
    for kind in [likely, likely.other()] {
        let mut hasher = crc32fast::Hasher::new();
        match kind {
            CrcKind::AsItLies => hasher.update(window.peek(frame.start, 8)?),
            CrcKind::LengthZero => {
                hasher.update(window.peek(frame.start, 4)?);
                hasher.update(&[0; 4]);
            }
        }
        window.stream(frame.start + 8..crc_at, |piece| hasher.update(piece))?;
        window.stream(crc_at + 4..frame.end, |piece| hasher.update(piece))?;
        if hasher.finalize() == crc {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Where in a version 2 frame the checksum lies.
pub(super) const CRC_AT: u64 = 8;
/// Where in a version 1 frame the checksum lies.
pub(super) const V1_CRC_AT: u64 = 24;

/// What stands at the front of a version 1 frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct V1Header {
    pub(super) frame_len: u64,
    pub(super) crc: u32,
}

impl V1Header {
    /// Whether `bytes` begin like a version 1 frame.
    pub(super) fn begins(bytes: &[u8]) -> bool {
        bytes.get(..4) == Some(&[MAGIC[0], MAGIC[1], 1, 0])
    }

    /// Reads it from the start of `bytes`, which may go on.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let Some(header) = bytes.get(..V1_HEADER_BYTES) else {
            return Err(Fault::CutShort { field: "version 1 header" });
        };
        let (mut length, mut crc) = (&header[4..8], &header[24..28]);
        let frame_len = u64::from(length.try_get_u32_le()?);
        if !(V1_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_len) {
            return Err(Fault::TooLarge { bytes: frame_len });
        }
        Ok(Self { frame_len, crc: crc.try_get_u32_le()? })
    }
}
