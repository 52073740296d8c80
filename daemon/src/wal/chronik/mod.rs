//! Owns the judgement over one frame of a Chronik segment: what lies at this
//! position? `frame` knows the bytes around a payload, `payload` those inside,
//! `rebuild` makes a batch where the producer sent none that we can serve.
//!
//! Does not own where to look next: see `scan`.

pub(super) mod frame;
mod payload;
mod rebuild;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Seek};
use std::ops::Range;

use bytes::{Buf, Bytes};

use self::frame::{
    CRC_AT, CrcKind, FRAME_BYTES_MAX, Layout, PREAMBLE_BYTES, Preamble, TOPIC_START, Trailer,
    V1_CRC_AT, V1Header, begins_frame, crc_kind,
};
use self::payload::{Payload, Source};
use super::FrameFlags;
use super::window::Window;
use crate::record::batch::{BATCH_CRC_START, BATCH_HEADER_BYTES};
use crate::record::{BatchError, BatchHeader, TopicPartition};

/// What is wrong with the bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("no frame begins here")]
    NoFrame,
    #[error("a frame with big-endian fields begins here; no known broker writes such")]
    BigEndian,
    #[error("frame version {0} is unknown; 1 and 2 are understood")]
    Version(u8),
    #[error("frame flags are {0:#04x}; every known broker writes 0")]
    Flags(u8),
    #[error("frame is cut short at its {field}")]
    CutShort { field: &'static str },
    #[error(
        "frame lengths disagree: {length} in all with {topic_len} of topic and {payload_len} of \
         payload"
    )]
    Lengths { length: u32, topic_len: u16, payload_len: u32 },
    #[error("frame of {bytes} bytes is outside what any broker writes")]
    TooLarge { bytes: u64 },
    #[error("frame of {bytes} bytes is cut off by the end of the file after {left}")]
    CutOff { bytes: u64, left: u64 },
    #[error("frame checksum is {stored:08x} and its bytes give another")]
    Crc { stored: u32 },
    #[error("frame is of topic {topic:?} partition {partition}, the folder is another's")]
    Foreign { topic: String, partition: i32 },
    #[error("payload {field} {why}")]
    Payload { field: &'static str, why: String },
    #[error("frame has base offset {frame}, its batch {batch}")]
    Base { frame: i64, batch: i64 },
    #[error("frame trailer says offsets {0:?}, which do not agree")]
    Trailer((i64, i64, i32)),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl From<bytes::TryGetError> for Fault {
    fn from(_: bytes::TryGetError) -> Self {
        Self::CutShort { field: "header" }
    }
}

/// Why the look at a frame ended early.
#[derive(Debug)]
pub(super) enum Stop {
    Io(io::Error),
    Fault(Fault),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<F: Into<Fault>> From<F> for Stop {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

/// What lies at a position of a segment. `end` is where the next frame begins.
#[derive(Debug)]
pub(super) enum Verdict {
    /// A batch.
    Good(GoodFrame),
    /// A good frame of a request without records.
    Empty { end: u64 },
    /// A good frame of version 1.
    V1 { end: u64 },
    /// A frame whose first and last byte are known and that is not to be used.
    /// Nothing inside it is looked at, so that a value which holds a frame never
    /// passes for one. `verified`: its checksum is right.
    Refused { end: u64, fault: Fault, verified: bool },
    /// The beginning of a frame of this partition, cut off by the end of the file.
    Torn { fault: Fault },
    /// Not a frame: where the next one begins must be searched.
    Broken { fault: Fault },
}

impl Verdict {
    /// Whether a frame with a right checksum lies here.
    pub(super) fn is_verified(&self) -> bool {
        matches!(
            self,
            Self::Good(_)
                | Self::Empty { .. }
                | Self::V1 { .. }
                | Self::Refused { verified: true, .. }
        )
    }
}

/// A verified frame that holds a batch.
#[derive(Debug)]
pub(super) struct GoodFrame {
    pub(super) end: u64,
    pub(super) header: BatchHeader,
    pub(super) wire: Wire,
    pub(super) flags: FrameFlags,
}

/// The bytes of the batch.
#[derive(Debug)]
pub(super) enum Wire {
    /// In the file, verbatim.
    At(Range<u64>),
    /// Made just now.
    Rebuilt(Bytes),
}

/// Judges the frames of one partition's segment, one position at a time.
#[derive(Debug)]
pub(super) struct Judge<'t> {
    tp: &'t TopicPartition,
    /// What the checksum of the frame before was of.
    likely: CrcKind,
}

impl<'t> Judge<'t> {
    pub(super) fn new(tp: &'t TopicPartition) -> Self {
        Self { tp, likely: CrcKind::default() }
    }

    /// Says what lies at `pos`, which is before the end of the file.
    ///
    /// # Errors
    /// Only of the file itself; whatever its bytes are is a verdict.
    pub(super) fn at<R: Read + Seek>(
        &mut self,
        window: &mut Window<R>,
        pos: u64,
    ) -> io::Result<Verdict> {
        match self.judge(window, pos) {
            Ok(verdict) => Ok(verdict),
            Err(Stop::Fault(fault)) => Ok(Verdict::Broken { fault }),
            Err(Stop::Io(error)) => Err(error),
        }
    }

    /// Whether the bytes at `pos` name this partition and their lengths agree: the
    /// cheap half of [`Self::at`]. Says how long the frame would be.
    pub(super) fn claims<R: Read + Seek>(
        &self,
        window: &mut Window<R>,
        pos: u64,
    ) -> io::Result<Option<u64>> {
        let bytes = window.peek(pos, PREAMBLE_BYTES + self.tp.topic().as_str().len())?;
        Ok(Preamble::decode(bytes)
            .ok()
            .filter(|preamble| preamble.names(self.tp))
            .map(|preamble| preamble.frame_len()))
    }

    fn judge<R: Read + Seek>(&mut self, window: &mut Window<R>, pos: u64) -> Result<Verdict, Stop> {
        let start = window.peek(pos, TOPIC_START)?;
        if V1Header::begins(start) {
            return self.judge_v1(window, pos);
        }
        let topic_len = match start {
            [.., low, high] if start.len() == TOPIC_START => u16::from_le_bytes([*low, *high]),
            _ => 0,
        };
        let bytes = window.peek(pos, PREAMBLE_BYTES + usize::from(topic_len))?;
        let preamble = match Preamble::decode(bytes) {
            Ok(preamble) => preamble,
            Err(fault @ Fault::CutShort { .. }) if begins_frame(bytes, self.tp) => {
                return Ok(Verdict::Torn { fault });
            }
            Err(fault) => return Err(fault.into()),
        };
        let foreign = preamble.foreign(self.tp);
        let ours = foreign.is_none();
        let (crc, layout) = (preamble.crc, preamble.layout);
        let (payload_from, bytes) = (pos + preamble.payload_at(), preamble.frame_len());
        let payload_at = payload_from..payload_from + u64::from(preamble.payload_len);
        if bytes > FRAME_BYTES_MAX {
            return Err(Fault::TooLarge { bytes }.into());
        }
        let left = window.len() - pos;
        if bytes > left {
            let fault = Fault::CutOff { bytes, left };
            return Ok(if ours { Verdict::Torn { fault } } else { Verdict::Broken { fault } });
        }
        let end = pos + bytes;
        let kind = crc_kind(window, pos..end, pos + CRC_AT, crc, self.likely)?;
        let Some(kind) = kind else {
            let fault = Fault::Crc { stored: crc };
            let whole = ours && is_whole(window, &payload_at, layout)?;
            return Ok(if whole {
                Verdict::Refused { end, fault, verified: false }
            } else {
                Verdict::Broken { fault }
            });
        };
        self.likely = kind;
        if let Some(fault) = foreign {
            return Ok(Verdict::Refused { end, fault, verified: true });
        }
        match open(window, payload_at, layout, end) {
            Ok(Some(mut good)) => {
                if kind == CrcKind::LengthZero {
                    good.flags.insert(FrameFlags::OLD_FRAME_CRC);
                }
                Ok(Verdict::Good(good))
            }
            Ok(None) => Ok(Verdict::Empty { end }),
            Err(Stop::Fault(fault)) => Ok(Verdict::Refused { end, fault, verified: true }),
            Err(Stop::Io(error)) => Err(error.into()),
        }
    }

    fn judge_v1<R: Read + Seek>(
        &mut self,
        window: &mut Window<R>,
        pos: u64,
    ) -> Result<Verdict, Stop> {
        let header = V1Header::decode(window.peek(pos, V1_CRC_AT as usize + 4)?)?;
        let left = window.len() - pos;
        if header.frame_len > left {
            return Ok(Verdict::Torn { fault: Fault::CutOff { bytes: header.frame_len, left } });
        }
        let end = pos + header.frame_len;
        let kind = crc_kind(window, pos..end, pos + V1_CRC_AT, header.crc, self.likely)?;
        self.likely = kind.ok_or(Fault::Crc { stored: header.crc })?;
        Ok(Verdict::V1 { end })
    }
}

/// Whether a frame with a wrong checksum is nevertheless one frame from end to end:
/// its lengths agree with each other (the caller saw to it), and at the end that
/// they tell stand sound offsets with the base that the payload begins with. A frame
/// torn in the middle of a file, with others where its end should be, does not pass.
fn is_whole<R: Read + Seek>(
    window: &mut Window<R>,
    payload_at: &Range<u64>,
    layout: Layout,
) -> Result<bool, Stop> {
    let Some(trailer) = trailer_of(window, payload_at, layout)? else { return Ok(false) };
    let base = window.peek(payload_at.start, 8)?.try_get_i64_le().map_err(Fault::from)?;
    Ok(trailer.is_sound() && trailer.base == base)
}

fn trailer_of<R: Read + Seek>(
    window: &mut Window<R>,
    payload_at: &Range<u64>,
    layout: Layout,
) -> Result<Option<Trailer>, Stop> {
    Ok(match layout {
        Layout::Trailer => {
            Some(Trailer::decode(window.peek(payload_at.end, frame::TRAILER_BYTES)?)?)
        }
        Layout::Bare => None,
    })
}

/// Finds the batch in the payload of a frame whose checksum is right.
fn open<R: Read + Seek>(
    window: &mut Window<R>,
    payload_at: Range<u64>,
    layout: Layout,
    end: u64,
) -> Result<Option<GoodFrame>, Stop> {
    let trailer = trailer_of(window, &payload_at, layout)?;
    if let Some(trailer) = trailer {
        if !trailer.is_sound() {
            return Err(Fault::Trailer((trailer.base, trailer.last, trailer.count)).into());
        }
        if trailer.count == 0 {
            return Ok(None);
        }
    }
    let payload = Payload::walk(window, payload_at)?;
    let mut flags = FrameFlags::default();
    if payload.trailing > 0 {
        flags.insert(FrameFlags::TRAILING_BYTES);
    }
    let rebuilt = match payload.source(window)? {
        Source::Nothing => return Ok(None),
        Source::Wire(at) => {
            let header = BatchHeader::decode(window.peek(at.start, wire_peek(&at))?)?;
            if header.wire_len() as u64 != at.end - at.start {
                let why = format!(
                    "holds {} bytes, the batch says {}",
                    at.end - at.start,
                    header.wire_len()
                );
                return Err(Fault::Payload { field: "batch", why }.into());
            }
            let frame = trailer.map_or(payload.head.base_offset, |trailer| trailer.base);
            if header.base_offset != frame {
                return Err(Fault::Base { frame, batch: header.base_offset }.into());
            }
            return Ok(Some(GoodFrame { end, header, wire: Wire::At(at), flags }));
        }
        Source::Legacy(at) => rebuild::from_legacy(window, at, &payload, trailer)?,
        Source::Entries => rebuild::from_entries(window, &payload, trailer, false)?,
    };
    flags.insert(FrameFlags::REBUILT);
    let (header, wire) = (*rebuilt.header(), rebuilt.to_kafka_batch().map_err(Fault::from)?);
    Ok(Some(GoodFrame { end, header, wire: Wire::Rebuilt(wire), flags }))
}

/// How much of a batch to look at for its header: never beyond its field.
fn wire_peek(at: &Range<u64>) -> usize {
    usize::try_from(at.end - at.start).unwrap_or(usize::MAX).min(BATCH_HEADER_BYTES)
}

/// The checksums of a batch's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireSum {
    /// CRC-32C of all of them.
    pub(super) whole: u32,
    /// CRC-32C of what the batch's own checksum covers.
    pub(super) body: u32,
}

/// Checksums the batch that lies at `at`.
pub(super) fn wire_sum<R: Read + Seek>(
    window: &mut Window<R>,
    at: Range<u64>,
) -> io::Result<WireSum> {
    let body_from = at.start + BATCH_CRC_START as u64;
    let mut sum = WireSum { whole: 0, body: 0 };
    window
        .stream(at.start..body_from, |piece| sum.whole = crc32c::crc32c_append(sum.whole, piece))?;
    window.stream(body_from..at.end, |piece| {
        sum.whole = crc32c::crc32c_append(sum.whole, piece);
        sum.body = crc32c::crc32c_append(sum.body, piece);
    })?;
    Ok(sum)
}
