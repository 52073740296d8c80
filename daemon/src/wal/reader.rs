//! Owns pass 2: the batches of frames that pass 1 found.
//!
//! The broker may truncate a segment and fill it again between the passes, and
//! offsets are then issued anew. So a frame is judged again from its first byte,
//! and the batch handed out is checksummed as it lies in memory.

use std::fs::File;
use std::io;

use super::chronik::{GoodFrame, Judge, Verdict, Wire};
use super::window::Window;
use super::{FrameRef, SegmentFile, WalError, WalFormat, scan};
use crate::record::{CanonicalRecord, TopicPartition};

/// A segment that is held open, so that it can be read to its end though the
/// broker deletes it. Costs one file descriptor and no buffer.
#[derive(Debug)]
pub struct HeldSegment {
    handle: File,
    file: SegmentFile,
}

impl HeldSegment {
    /// Opens the segment.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(file: &SegmentFile) -> Result<Self, WalError> {
        let (handle, _) = scan::open(file)?;
        Ok(Self { handle, file: file.clone() })
    }

    /// A reader of it. Readers of one held segment share its place in the file:
    /// only one may be in use.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn reader(
        &self,
        format: WalFormat,
        tp: &TopicPartition,
    ) -> Result<SegmentReader, WalError> {
        let path = &self.file.path;
        let handle = self.handle.try_clone().map_err(|error| WalError::io("open", path, error))?;
        let metadata = handle.metadata().map_err(|error| WalError::io("read", path, error))?;
        let window = Window::new(handle, metadata.len());
        Ok(SegmentReader { format, tp: tp.clone(), file: self.file.clone(), window })
    }
}

/// Reads the batches of one segment, in any order.
///
/// Holds the file open, so that a segment which the broker deletes can be read to
/// its end, and one batch at a time.
pub struct SegmentReader {
    format: WalFormat,
    tp: TopicPartition,
    file: SegmentFile,
    window: Window<File>,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader").field("file", &self.file).finish_non_exhaustive()
    }
}

impl SegmentReader {
    /// Opens the segment.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(
        format: WalFormat,
        tp: &TopicPartition,
        file: &SegmentFile,
    ) -> Result<Self, WalError> {
        let (handle, len) = scan::open(file)?;
        let window = Window::new(handle, len);
        Ok(Self { format, tp: tp.clone(), file: file.clone(), window })
    }

    /// The batch of a frame that [`scan`](super::scan()) found in this segment.
    /// Neighbours in file order are cheapest.
    ///
    /// # Errors
    /// [`WalError::Changed`] when the frame is no longer the one that was scanned,
    /// [`WalError::Io`] when the file cannot be read.
    pub fn batch(&mut self, frame: &FrameRef) -> Result<CanonicalRecord, WalError> {
        self.reach(frame)?;
        let read = match self.format {
            WalFormat::Chronik => self.read_chronik(frame),
        };
        match read {
            Ok(Some(batch)) => Ok(batch),
            Ok(None) => Err(self.changed(format!(
                "at byte {} is no longer the frame of the batch at offset {}",
                frame.position, frame.base
            ))),
            Err(error) => Err(WalError::read(&self.file.path, error)),
        }
    }

    /// Makes sure that the file still reaches to the end of `frame`.
    fn reach(&mut self, frame: &FrameRef) -> Result<(), WalError> {
        let end = frame.position + u64::from(frame.frame_len);
        if end > self.window.len() {
            let metadata = self.window.file().metadata();
            let len = metadata.map_err(|error| WalError::read(&self.file.path, error))?.len();
            if end > len {
                return Err(self.changed(format!("it has {len} bytes, a frame ended at {end}")));
            }
            self.window.grow(len);
        }
        Ok(())
    }

    fn read_chronik(&mut self, frame: &FrameRef) -> io::Result<Option<CanonicalRecord>> {
        let verdict = Judge::new(&self.tp).at(&mut self.window, frame.position)?;
        let Verdict::Good(GoodFrame { end, wire, .. }) = verdict else { return Ok(None) };
        let wire = match wire {
            // Judged: it is at most BATCH_BYTES_MAX.
            Wire::At(at) => self.window.copy(at)?,
            Wire::Rebuilt(bytes) => bytes,
        };
        let same = end - frame.position == u64::from(frame.frame_len)
            && wire.len() as u64 == u64::from(frame.wire_len)
            && crc32c::crc32c(&wire) == frame.wire_crc32c;
        Ok(if same { CanonicalRecord::from_wire(wire).ok() } else { None })
    }

    fn changed(&self, what: String) -> WalError {
        WalError::Changed { path: self.file.path.clone(), what }
    }
}
