//! Owns the notes on batches that wait in scratch until `.tierd/batches` can be
//! written: which chain batches need a rank is known only at the end.
//!
//! ```text
//!  | base i64 | last i64 | len u32 | crc32c u32 | segment u64 | position u64 |   40 bytes a batch
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};

use super::WalRank;
use super::batches::{BatchListEncoder, BatchRef};
use super::error::{ArchiveError, cut_short};

const NOTE_BYTES: usize = 40;
/// Pieces in which the finished list is handed on: the size of a chunk.
const PIECE_BYTES: usize = 256 << 10;
/// Longest entry of the list: five numbers of ten bytes and a CRC.
const ENTRY_BYTES_MAX: usize = 54;

/// Notes on the chain's batches, then on the overlaps.
#[derive(Debug)]
pub(super) struct Spool {
    file: BufWriter<File>,
    path: PathBuf,
    chain: u32,
    overlaps: u32,
    overlap_bases: HashSet<i64>,
}

impl Spool {
    /// Begins in the new file `path`.
    pub(super) fn create(path: &Path) -> Result<Self, ArchiveError> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(ArchiveError::io("create", path))?;
        Ok(Self {
            file: BufWriter::new(file),
            path: path.to_owned(),
            chain: 0,
            overlaps: 0,
            overlap_bases: HashSet::new(),
        })
    }

    /// Notes a batch of the chain. All of them come before the overlaps.
    pub(super) fn chain(&mut self, batch: &BatchRef, rank: WalRank) -> Result<(), ArchiveError> {
        self.chain += 1;
        self.note(batch, rank)
    }

    /// Notes an overlap batch.
    pub(super) fn overlap(&mut self, batch: &BatchRef, rank: WalRank) -> Result<(), ArchiveError> {
        self.overlaps += 1;
        self.overlap_bases.insert(batch.base);
        self.note(batch, rank)
    }

    fn note(&mut self, batch: &BatchRef, rank: WalRank) -> Result<(), ArchiveError> {
        let mut note = Vec::with_capacity(NOTE_BYTES);
        note.put_i64_le(batch.base);
        note.put_i64_le(batch.last);
        note.put_u32_le(batch.len);
        note.put_u32_le(batch.crc32c);
        note.put_u64_le(rank.segment);
        note.put_u64_le(rank.position);
        self.file.write_all(&note).map_err(ArchiveError::io("write", &self.path))
    }

    /// Gives the file `.tierd/batches` to `emit`, in pieces of 256 KiB.
    pub(super) fn finish(
        self,
        mut emit: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let Self { file, path, chain, overlaps, overlap_bases } = self;
        let mut file = file
            .into_inner()
            .map_err(|error| ArchiveError::io("write", &path)(error.into_error()))?;
        file.rewind().map_err(ArchiveError::io("read", &path))?;
        let mut notes = BufReader::with_capacity(PIECE_BYTES, file);
        let mut out = Vec::with_capacity(PIECE_BYTES + ENTRY_BYTES_MAX);
        let mut encoder = BatchListEncoder::begin(chain, overlaps, &mut out);
        for number in 0..u64::from(chain) + u64::from(overlaps) {
            let is_overlap = number >= u64::from(chain);
            if number == u64::from(chain) {
                encoder.begin_overlaps();
            }
            let mut note = [0; NOTE_BYTES];
            notes.read_exact(&mut note).map_err(ArchiveError::io("read", &path))?;
            let (mut batch, rank) = decode(&note)?;
            batch.rank = (is_overlap || overlap_bases.contains(&batch.base)).then_some(rank);
            encoder.put(&batch, &mut out);
            if out.len() >= PIECE_BYTES {
                emit(&out[..PIECE_BYTES])?;
                out.drain(..PIECE_BYTES);
            }
        }
        if out.is_empty() { Ok(()) } else { emit(&out) }
    }
}

fn decode(mut note: &[u8]) -> Result<(BatchRef, WalRank), ArchiveError> {
    let cut = cut_short("the notes on batches");
    let batch = BatchRef {
        base: note.try_get_i64_le().map_err(&cut)?,
        last: note.try_get_i64_le().map_err(&cut)?,
        len: note.try_get_u32_le().map_err(&cut)?,
        crc32c: note.try_get_u32_le().map_err(&cut)?,
        rank: None,
    };
    let segment = note.try_get_u64_le().map_err(&cut)?;
    Ok((batch, WalRank { segment, position: note.try_get_u64_le().map_err(&cut)? }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::archive::BatchList;

    fn batch(base: i64) -> BatchRef {
        BatchRef { base, last: base + 9, len: 100 + base as u32, crc32c: 5, rank: None }
    }

    fn rank(position: u64) -> WalRank {
        WalRank { segment: 3, position }
    }

    #[test]
    fn ranks_stand_where_bases_are_shared_and_at_overlaps() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(&folder.path().join("notes")).unwrap();
        for n in 0..3 {
            spool.chain(&batch(n * 10), rank(n as u64)).unwrap();
        }
        spool.overlap(&batch(10), rank(90)).unwrap();
        spool.overlap(&batch(7), rank(91)).unwrap();
        let mut bytes = Vec::new();
        spool
            .finish(|piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        let list = BatchList::decode(Bytes::from(bytes)).unwrap();
        let ranks: Vec<_> = list.chain().map(|batch| batch.rank).collect();
        assert_eq!(ranks, [None, Some(rank(1)), None]);
        let overlaps: Vec<_> = list.overlaps().map(|batch| (batch.base, batch.rank)).collect();
        assert_eq!(overlaps, [(10, Some(rank(90))), (7, Some(rank(91)))]);
    }

    #[test]
    fn a_long_list_comes_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(&folder.path().join("notes")).unwrap();
        let count = 60_000;
        for n in 0..count {
            spool.chain(&batch(n * 10), rank(0)).unwrap();
        }
        let mut pieces = Vec::new();
        spool
            .finish(|piece| {
                pieces.push(piece.to_vec());
                Ok(())
            })
            .unwrap();
        assert!(pieces.len() > 1 && pieces[0].len() == PIECE_BYTES);
        let list = BatchList::decode(Bytes::from(pieces.concat())).unwrap();
        assert!(list.chain().eq((0..count).map(|n| batch(n * 10))));
    }
}
