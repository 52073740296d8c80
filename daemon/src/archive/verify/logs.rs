//! Owns the walk over a log while it streams by: batch after batch, without
//! holding one, counted and compared with what the table says of each chunk.

use crate::archive::ArchiveError;
use crate::archive::batches::BatchRef;
use crate::archive::chunk::Chunk;
use crate::archive::tally::{Tally, Times};
use crate::record::BatchHeader;
use crate::record::batch::{BATCH_CRC_START, BATCH_HEADER_BYTES};

/// A digest over the facts of a list of batches, to compare two lists without
/// holding either.
#[derive(Debug, Default)]
pub(super) struct ListDigest {
    hasher: blake3::Hasher,
    count: u32,
}

impl ListDigest {
    pub(super) fn add(&mut self, batch: &BatchRef) {
        self.count += 1;
        self.hasher.update(&batch.base.to_le_bytes());
        self.hasher.update(&batch.last.to_le_bytes());
        self.hasher.update(&batch.len.to_le_bytes());
        self.hasher.update(&batch.crc32c.to_le_bytes());
    }

    pub(super) fn of(batches: impl Iterator<Item = BatchRef>) -> Self {
        let mut digest = Self::default();
        batches.for_each(|batch| digest.add(&batch));
        digest
    }
}

impl PartialEq for ListDigest {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.hasher.finalize() == other.hasher.finalize()
    }
}

/// Which of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    Chain,
    Overlaps,
}

/// Takes the bytes of one log.
#[derive(Debug)]
pub(super) struct LogWalk<'a> {
    log: Log,
    tally: &'a mut Tally,
    digest: &'a mut ListDigest,
    /// The bytes of a header that is not whole yet.
    header: Vec<u8>,
    body: Option<Body>,
    chunk: Option<(i64, i64, i64)>,
}

/// A batch whose header is known and whose end is not reached.
#[derive(Debug)]
struct Body {
    header: BatchHeader,
    left: usize,
    crc_of_all: u32,
    crc_of_covered: u32,
}

impl<'a> LogWalk<'a> {
    pub(super) fn new(log: Log, tally: &'a mut Tally, digest: &'a mut ListDigest) -> Self {
        Self { log, tally, digest, header: Vec::new(), body: None, chunk: None }
    }

    /// Takes the next bytes.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        while !bytes.is_empty() {
            let Some(body) = &mut self.body else {
                let len = (BATCH_HEADER_BYTES - self.header.len()).min(bytes.len());
                self.header.extend_from_slice(&bytes[..len]);
                bytes = &bytes[len..];
                if self.header.len() == BATCH_HEADER_BYTES {
                    self.begin()?;
                }
                continue;
            };
            let (now, later) = bytes.split_at(body.left.min(bytes.len()));
            body.crc_of_all = crc32c::crc32c_append(body.crc_of_all, now);
            body.crc_of_covered = crc32c::crc32c_append(body.crc_of_covered, now);
            body.left -= now.len();
            bytes = later;
            self.end_if_whole()?;
        }
        Ok(())
    }

    /// Compares what was seen since the last call with the chunk's entry.
    pub(super) fn end_chunk(&mut self, chunk: &Chunk) -> Result<(), ArchiveError> {
        let wrong = |why: &str| {
            Err(ArchiveError::corrupt(format!("the log chunk at {}", chunk.place), why))
        };
        if self.body.is_some() || !self.header.is_empty() {
            return wrong("it ends inside a batch");
        }
        let Some((first, last, max_timestamp)) = self.chunk.take() else {
            return wrong("it holds no batch");
        };
        if (first, last) != (chunk.first, chunk.last) {
            return wrong("its offsets are not those the table says");
        }
        // Records may be later than their header admits; the table knows them.
        if max_timestamp > chunk.max_timestamp {
            return wrong("it holds later batches than the table says");
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), ArchiveError> {
        let header = BatchHeader::decode(&self.header)
            .map_err(|error| ArchiveError::corrupt("a batch of a log", error.to_string()))?;
        self.body = Some(Body {
            header,
            left: header.wire_len() - BATCH_HEADER_BYTES,
            crc_of_all: crc32c::crc32c(&self.header),
            crc_of_covered: crc32c::crc32c(&self.header[BATCH_CRC_START..]),
        });
        self.header.clear();
        self.end_if_whole()
    }

    fn end_if_whole(&mut self) -> Result<(), ArchiveError> {
        let Some(Body { header, crc_of_all, crc_of_covered, .. }) =
            self.body.take_if(|body| body.left == 0)
        else {
            return Ok(());
        };
        let bad_crc = crc_of_covered != header.crc;
        match self.log {
            Log::Chain if header.last_offset() < self.tally.next() => {
                return Err(ArchiveError::corrupt("the log", "its chain does not ascend"));
            }
            Log::Chain => self.tally.chain(&header, bad_crc, Times::of_header(&header)),
            Log::Overlaps => self.tally.overlap(&header, bad_crc),
        }
        self.digest.add(&BatchRef {
            base: header.base_offset,
            last: header.last_offset(),
            len: header.wire_len() as u32,
            crc32c: crc_of_all,
            rank: None,
        });
        let (base, last) = (header.base_offset, header.last_offset());
        let (first, greatest, timestamp) = self.chunk.unwrap_or((base, last, header.max_timestamp));
        self.chunk =
            Some((first.min(base), greatest.max(last), timestamp.max(header.max_timestamp)));
        Ok(())
    }
}
