//! Owns the check of an object's bytes as they lie: the digest of the whole, the
//! digest of every chunk, and that what lies between chunks is stored blocks and
//! nothing else.
//!
//! Inflating alone would not notice everything: the five idle bits in front of a
//! stored block and most of the gzip header may change without changing a file.

use std::ops::Range;

use crate::archive::ArchiveError;
use crate::archive::chunk::{Digest128, truncate};
use crate::archive::layout::{GZIP_HEADER, GZIP_TRAILER_BYTES, STORED_HEADER_BYTES};
use crate::archive::toc::{Toc, TocPlace};

/// Sees all bytes of an object go by, in order, in pieces of any length.
#[derive(Debug)]
pub(super) struct Envelope {
    /// The places of chunks and table, ascending, and their digests.
    pieces: Vec<(Range<u64>, Digest128)>,
    next_piece: usize,
    piece: blake3::Hasher,
    glue: Glue,
    whole: blake3::Hasher,
    position: u64,
    /// Where the gzip trailer begins.
    end: u64,
    failure: Option<ArchiveError>,
}

/// Where in a stored block the bytes between chunks are.
#[derive(Debug, Default)]
struct Glue {
    header: Vec<u8>,
    left: u16,
    ended: bool,
}

impl Envelope {
    /// The object of `length` bytes that `toc`, which lies at `place`, tells of.
    pub(super) fn new(toc: &Toc, place: &TocPlace, length: u64) -> Self {
        let mut pieces: Vec<_> =
            toc.chunks.iter().map(|chunk| (chunk.place..chunk.end(), chunk.digest)).collect();
        pieces.push((place.range(), place.digest));
        Self {
            pieces,
            next_piece: 0,
            piece: blake3::Hasher::new(),
            glue: Glue::default(),
            whole: blake3::Hasher::new(),
            position: 0,
            end: length.saturating_sub(GZIP_TRAILER_BYTES as u64),
            failure: None,
        }
    }

    /// Takes the next bytes. After the first failure it only counts.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() && self.failure.is_none() {
            let until = self.until();
            let len = until.saturating_sub(self.position).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(len);
            if let Err(failure) = self.take(now) {
                self.failure = Some(failure);
            }
            self.position += len as u64;
            bytes = later;
            if len == 0 {
                self.failure = Some(self.wrong("bytes follow its end"));
            }
        }
    }

    /// The digest of the whole object, or the first thing that was wrong with it.
    pub(super) fn finish(self) -> Result<[u8; 32], ArchiveError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.position != self.end + GZIP_TRAILER_BYTES as u64 {
            return Err(self.wrong("it ends too early"));
        }
        if !self.glue.ended {
            return Err(self.wrong("its deflate stream has no last block"));
        }
        Ok(self.whole.finalize().into())
    }

    /// Where the region ends that the next byte belongs to.
    fn until(&self) -> u64 {
        let header = GZIP_HEADER.len() as u64;
        if self.position < header {
            return header;
        }
        match self.pieces.get(self.next_piece) {
            Some((place, _)) if place.contains(&self.position) => place.end,
            Some((place, _)) => place.start,
            None if self.position < self.end => self.end,
            None => self.end + GZIP_TRAILER_BYTES as u64,
        }
    }

    /// Takes bytes of one region.
    fn take(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        if self.position < GZIP_HEADER.len() as u64 {
            let at = self.position as usize;
            let same = GZIP_HEADER.get(at..at + bytes.len()) == Some(bytes);
            return if same { Ok(()) } else { Err(self.wrong("the gzip header is not tierd's")) };
        }
        match self.pieces.get(self.next_piece) {
            Some((place, digest)) if place.contains(&self.position) => {
                if !self.glue.is_whole() {
                    return Err(self.wrong("a stored block reaches into a chunk"));
                }
                self.piece.update(bytes);
                if self.position + bytes.len() as u64 == place.end {
                    if truncate(&self.piece.finalize()) != *digest {
                        let part = format!("the chunk at {}", place.start);
                        return Err(ArchiveError::corrupt(part, "its BLAKE3 digest differs"));
                    }
                    self.piece.reset();
                    self.next_piece += 1;
                }
                Ok(())
            }
            // Gunzip checks the trailer itself.
            None if self.position >= self.end => match self.glue.is_whole() {
                true => Ok(()),
                false => Err(self.wrong("a stored block reaches into the gzip trailer")),
            },
            _ => self.glue.see(bytes).map_err(|why| self.wrong(why)),
        }
    }

    fn wrong(&self, why: &str) -> ArchiveError {
        ArchiveError::corrupt(format!("byte {}", self.position), why)
    }
}

impl Glue {
    fn is_whole(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }

    fn see(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let len = usize::from(self.left).min(bytes.len());
                self.left -= len as u16;
                bytes = &bytes[len..];
                continue;
            }
            if self.ended {
                return Err("something follows the last block");
            }
            self.header.push(*first);
            bytes = rest;
            if let [kind, a, b, not_a, not_b] = self.header[..] {
                if kind > 1 || a != !not_a || b != !not_b {
                    return Err("what lies between chunks is not a stored block");
                }
                self.ended = kind == 1;
                self.left = u16::from_le_bytes([a, b]);
                self.header.clear();
            }
        }
        debug_assert!(self.header.len() < STORED_HEADER_BYTES);
        Ok(())
    }
}
