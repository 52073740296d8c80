//! Owns pass 1: the walk over a segment from its first byte to its last.
//!
//! ```text
//!  good frame -------> next frame begins at its end
//!  refused frame ----> damage, next begins at its end: its lengths are beyond doubt
//!  broken -----------> search forward, byte by byte, for the start of a version 2
//!                      frame that names this partition, fits, and whose checksum is
//!                      right; the range up to it is damage
//!  nothing found ----> what the end of the file cuts off is torn; else damage
//! ```
//!
//! The checksum is what makes the search safe: payloads may hold the magic. Only a
//! producer that sends whole frames of its own partition as values could pass one
//! off, and only where the frame around it lost its lengths: see
//! [`Verdict::Refused`].
//!
//! The search is linear: a place is checksummed only where name and lengths fit,
//! and what that may cost in vain is bounded by [`RESYNC_WORK_FACTOR`].

use std::fs::File;
use std::io::{self, Read, Seek};

use super::chronik::frame::V2_START;
use super::chronik::{Fault, GoodFrame, Judge, Verdict, Wire, WireSum, wire_sum};
use super::window::Window;
use super::{Damage, FrameFlags, FrameRef, SegmentFile, SegmentScan, WalError, WalFormat};
use crate::record::TopicPartition;
use crate::record::batch::BATCH_CRC_START;

/// How often the whole file may be checksummed in vain while searching. Honest
/// files need less than one; a hostile one ends as damage instead of holding the
/// daemon up.
const RESYNC_WORK_FACTOR: u64 = 16;
/// Work allowed whatever the size of the file, in bytes.
const RESYNC_WORK_MIN: u64 = 64 << 20;
/// Most ranges of damage listed for a segment. Beyond it the last range grows:
/// memory must not follow what a hostile file holds.
const DAMAGE_MAX: usize = 1024;

/// Scans one segment: checks every frame and says where the good ones are. Holds a
/// buffer of fixed size and the list it returns, whatever the size of the file.
///
/// # Errors
/// When the file cannot be read, or became shorter meanwhile. Whatever its bytes
/// are is no error.
pub fn scan(
    format: WalFormat,
    tp: &TopicPartition,
    file: &SegmentFile,
) -> Result<SegmentScan, WalError> {
    let (handle, len) = open(file)?;
    let mut window = Window::new(handle, len);
    match format {
        WalFormat::Chronik => scan_chronik(tp, &mut window),
    }
    .map_err(|error| WalError::read(&file.path, error))
}

/// The first frame of a segment that holds a batch and verifies, `None` where
/// there is none: with the segment's number it tells one file from another that
/// took its name. Reads no further than that frame, as a rule.
///
/// # Errors
/// As [`scan`].
pub fn first_frame(
    format: WalFormat,
    tp: &TopicPartition,
    file: &SegmentFile,
) -> Result<Option<FrameRef>, WalError> {
    let (handle, len) = open(file)?;
    let mut window = Window::new(handle, len);
    match format {
        WalFormat::Chronik => scan_until(tp, &mut window, |found| !found.frames.is_empty()),
    }
    .map(|found| found.frames.first().copied())
    .map_err(|error| WalError::read(&file.path, error))
}

/// Opens a segment and says how long it is now.
pub(super) fn open(file: &SegmentFile) -> Result<(File, u64), WalError> {
    let handle = File::open(&file.path).map_err(|error| WalError::io("open", &file.path, error))?;
    let metadata = handle.metadata().map_err(|error| WalError::io("read", &file.path, error))?;
    Ok((handle, metadata.len()))
}

pub(super) fn scan_chronik<R: Read + Seek>(
    tp: &TopicPartition,
    window: &mut Window<R>,
) -> io::Result<SegmentScan> {
    scan_until(tp, window, |_| false)
}

/// Scans on for as long as what is found is not `enough`.
fn scan_until<R: Read + Seek>(
    tp: &TopicPartition,
    window: &mut Window<R>,
    enough: impl Fn(&SegmentScan) -> bool,
) -> io::Result<SegmentScan> {
    let work = window.len().saturating_mul(RESYNC_WORK_FACTOR).max(RESYNC_WORK_MIN);
    let result = SegmentScan { len: window.len(), ..SegmentScan::default() };
    let mut scanner = Scanner { judge: Judge::new(tp), window, result, open: None, work };
    let mut pos = 0;
    while pos < scanner.window.len() && !enough(&scanner.result) {
        pos = scanner.step(pos)?;
    }
    Ok(scanner.result)
}

/// What the search for the next frame came to.
enum Search {
    Found(u64),
    Nothing,
    /// [`RESYNC_WORK_FACTOR`] is used up.
    GivenUp,
}

struct Scanner<'a, R> {
    judge: Judge<'a>,
    window: &'a mut Window<R>,
    result: SegmentScan,
    /// The first damage that no good frame followed yet.
    open: Option<usize>,
    /// Bytes that may still be checksummed in vain.
    work: u64,
}

impl<R: Read + Seek> Scanner<'_, R> {
    /// Looks at `pos` and says where to look next.
    fn step(&mut self, pos: u64) -> io::Result<u64> {
        match self.judge.at(self.window, pos)? {
            Verdict::Good(frame) => self.good(pos, frame),
            Verdict::Empty { end } => {
                self.result.skipped.empty += 1;
                Ok(end)
            }
            Verdict::V1 { end } => {
                self.result.skipped.v1 += 1;
                Ok(end)
            }
            Verdict::Refused { end, fault, .. } => {
                self.damaged(pos, end, fault.to_string());
                Ok(end)
            }
            Verdict::Broken { fault } => self.resync(pos, &fault, false),
            Verdict::Torn { fault } => self.resync(pos, &fault, true),
        }
    }

    fn good(&mut self, pos: u64, frame: GoodFrame) -> io::Result<u64> {
        let GoodFrame { end, header, wire, mut flags } = frame;
        let sum = match wire {
            Wire::At(at) => wire_sum(self.window, at)?,
            Wire::Rebuilt(bytes) => WireSum {
                whole: crc32c::crc32c(&bytes),
                body: crc32c::crc32c(bytes.get(BATCH_CRC_START..).unwrap_or_default()),
            },
        };
        if sum.body != header.crc {
            flags.insert(FrameFlags::BATCH_CRC_BAD);
        }
        for damage in
            self.open.take().map(|from| &mut self.result.damaged[from..]).into_iter().flatten()
        {
            damage.before = Some(header.base_offset);
        }
        // Frames are at most FRAME_BYTES_MAX long, batches BATCH_BYTES_MAX, and
        // BatchHeader::decode refuses deltas below zero.
        self.result.frames.push(FrameRef {
            position: pos,
            base: header.base_offset,
            frame_len: (end - pos) as u32,
            last_delta: header.last_offset_delta as u32,
            wire_len: header.wire_len() as u32,
            wire_crc32c: sum.whole,
            leader_epoch: header.partition_leader_epoch,
            flags,
        });
        Ok(end)
    }

    fn damaged(&mut self, start: u64, end: u64, why: String) {
        let list = &mut self.result.damaged;
        if list.len() == DAMAGE_MAX
            && let Some(last) = list.last_mut()
        {
            last.end = end;
            last.before = None;
            last.why = format!("more than {DAMAGE_MAX} damaged ranges; here are the others");
            self.open.get_or_insert(DAMAGE_MAX - 1);
            return;
        }
        self.open.get_or_insert(list.len());
        let after = self.result.frames.last().map(FrameRef::last);
        list.push(Damage { start, end, why, after, before: None });
    }

    /// Finds where to go on after `pos`, where no good frame lies.
    fn resync(&mut self, pos: u64, fault: &Fault, torn: bool) -> io::Result<u64> {
        let end = self.window.len();
        match self.search(pos + 1)? {
            Search::Found(next) => {
                self.damaged(pos, next, fault.to_string());
                return Ok(next);
            }
            Search::GivenUp => {
                let why = format!("{fault}; too many false starts of frames follow to search on");
                self.damaged(pos, end, why);
                return Ok(end);
            }
            Search::Nothing => {}
        }
        // A frame that was written whole and is broken now was acknowledged: it is
        // damage, also at the end. Zeros are what a power loss leaves of a frame
        // that was not.
        if torn || self.is_zero(pos)? {
            self.result.torn_at = Some(pos);
        } else {
            self.damaged(pos, end, fault.to_string());
        }
        Ok(end)
    }

    /// The first verified frame of this partition at or after `from`.
    fn search(&mut self, mut from: u64) -> io::Result<Search> {
        let end = self.window.len();
        while let Some(at) = self.window.find(from..end, &V2_START)? {
            from = at + 1;
            let Some(claim) = self.judge.claims(self.window, at)? else { continue };
            if claim > end - at {
                continue;
            }
            if self.work < claim {
                return Ok(Search::GivenUp);
            }
            if self.judge.at(self.window, at)?.is_verified() {
                return Ok(Search::Found(at));
            }
            self.work -= claim;
        }
        Ok(Search::Nothing)
    }

    fn is_zero(&mut self, from: u64) -> io::Result<bool> {
        let mut zero = true;
        let end = self.window.len();
        self.window.stream(from..end, |piece| zero &= piece.iter().all(|byte| *byte == 0))?;
        Ok(zero)
    }
}
