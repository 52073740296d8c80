//! Owns a view of a file through one buffer of fixed size, so that a frame of any
//! size costs the same memory.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;

/// Bytes held of a file. Large enough that a usual frame is read once, small
/// enough that a jump back to an out-of-order frame is cheap.
pub(super) const WINDOW_BYTES: usize = 256 << 10;

/// A file of which up to [`WINDOW_BYTES`] are in memory.
///
/// Invariant: `buf[..filled]` are the bytes of the file from `start` on.
pub(super) struct Window<R> {
    file: R,
    /// Bytes of the file that are looked at; what is appended later is not.
    len: u64,
    buf: Vec<u8>,
    start: u64,
    filled: usize,
}

impl<R: Read + Seek> Window<R> {
    /// The first `len` bytes of `file`.
    pub(super) fn new(file: R, len: u64) -> Self {
        Self { file, len, buf: vec![0; WINDOW_BYTES], start: 0, filled: 0 }
    }

    /// Bytes of the file that are looked at.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Looks at `len` bytes from now on: the file has grown.
    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// The file itself.
    pub(super) fn file(&self) -> &R {
        &self.file
    }

    /// `n` bytes (at most [`WINDOW_BYTES`]) from `pos`, fewer only where the file ends.
    pub(super) fn peek(&mut self, pos: u64, n: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.len.saturating_sub(pos)).unwrap_or(usize::MAX);
        let want = n.min(WINDOW_BYTES).min(left);
        let at = self.hold(pos, want)?;
        Ok(&self.buf[at..at + want])
    }

    /// What is in memory from `range.start`, up to `range.end`: at least one byte
    /// of a range that is not empty.
    fn run(&mut self, range: Range<u64>) -> io::Result<&[u8]> {
        let at = self.hold(range.start, usize::from(range.start < range.end))?;
        let most = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let end = self.filled.min(at.saturating_add(most));
        Ok(&self.buf[at..end])
    }

    /// Hands the bytes of `range` to `each`, piece by piece.
    pub(super) fn stream(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut pos = range.start;
        while pos < range.end {
            let piece = self.run(pos..range.end)?;
            pos += piece.len() as u64;
            each(piece);
        }
        Ok(())
    }

    /// The bytes of `range`, on the heap: the caller bounds it.
    pub(super) fn copy(&mut self, range: Range<u64>) -> io::Result<Bytes> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(len);
        self.stream(range, |piece| bytes.extend_from_slice(piece))?;
        Ok(Bytes::from(bytes))
    }

    /// Where in `range` the first `pattern` begins. The pattern lies wholly inside.
    pub(super) fn find(&mut self, range: Range<u64>, pattern: &[u8]) -> io::Result<Option<u64>> {
        let (Some(first), mut pos) = (pattern.first().copied(), range.start) else {
            return Ok(None);
        };
        while pos + pattern.len() as u64 <= range.end {
            let Some(skip) = self.run(pos..range.end)?.iter().position(|byte| *byte == first)
            else {
                pos = self.start + self.filled as u64;
                continue;
            };
            pos += skip as u64;
            if pos + pattern.len() as u64 <= range.end && self.peek(pos, pattern.len())? == pattern
            {
                return Ok(Some(pos));
            }
            pos += 1;
        }
        Ok(None)
    }

    /// Brings `want` bytes from `pos` into memory and says where in the buffer.
    fn hold(&mut self, pos: u64, want: usize) -> io::Result<usize> {
        let held = usize::try_from(pos.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        if held <= self.filled && self.filled - held >= want {
            return Ok(held);
        }
        // What is still of use moves to the front; a jump drops everything.
        if held < self.filled {
            self.buf.copy_within(held..self.filled, 0);
            self.filled -= held;
        } else {
            self.filled = 0;
        }
        self.start = pos;
        self.file.seek(SeekFrom::Start(pos + self.filled as u64))?;
        let left = usize::try_from(self.len.saturating_sub(pos)).unwrap_or(usize::MAX);
        let full = WINDOW_BYTES.min(left);
        while self.filled < full {
            match self.file.read(&mut self.buf[self.filled..full]) {
                Ok(0) if self.filled < want => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => break,
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.filled < want {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn file(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    fn window(bytes: &[u8]) -> Window<Cursor<&[u8]>> {
        Window::new(Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn a_window_shows_the_same_bytes_wherever_it_is_moved() {
        let bytes = file(3 * WINDOW_BYTES + 77);
        let mut window = window(&bytes);
        let ends = bytes.len();
        for (pos, n) in [(0, 9), (WINDOW_BYTES - 3, 10), (5, 1), (ends - 4, 4), (ends - 4, 99)] {
            let want = &bytes[pos..(pos + n).min(ends)];
            assert_eq!(window.peek(pos as u64, n).unwrap(), want, "{n} bytes at {pos}");
        }
        assert!(window.peek(ends as u64, 5).unwrap().is_empty());
        assert!(window.peek(u64::MAX, 5).unwrap().is_empty());
        let mut seen = Vec::new();
        window.stream(7..ends as u64 - 1, |piece| seen.extend_from_slice(piece)).unwrap();
        assert_eq!(seen, bytes[7..ends - 1]);
    }

    #[test]
    fn a_pattern_is_found_across_the_edge_of_the_buffer_and_only_inside_the_range() {
        let mut bytes = vec![0; 2 * WINDOW_BYTES];
        let at = WINDOW_BYTES - 2;
        bytes[at..at + 4].copy_from_slice(&[1, 2, 1, 3]);
        let (mut window, end) = (window(&bytes), bytes.len() as u64);
        let at = at as u64;
        assert_eq!(window.find(0..end, &[1, 3]).unwrap(), Some(at + 2));
        assert_eq!(window.find(0..end, &[1, 2, 1, 3]).unwrap(), Some(at));
        assert_eq!(window.find(at + 1..end, &[1, 2]).unwrap(), None);
        assert_eq!(window.find(0..at + 3, &[1, 3]).unwrap(), None);
        assert_eq!(window.find(end..end, &[0]).unwrap(), None);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_early_end_and_not_zeros() {
        let bytes = file(100);
        let mut window = Window::new(Cursor::new(&bytes[..60]), 100);
        assert_eq!(window.peek(0, 60).unwrap(), &bytes[..60]);
        assert_eq!(window.peek(50, 20).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
