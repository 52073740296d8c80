use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;
use crate::archive::batches::{BatchListEncoder, BatchRef};
use crate::archive::fixture::data;
use crate::archive::pack::{Content as Known, Packer};
use crate::archive::sink::{ChunkOf, Sink};
use crate::archive::tally::Times;
use crate::archive::{ArchiveOptions, ArchiveWriter, Encoding, WalRank};
use crate::error::{Classify, ErrorKind};
use crate::record::{CanonicalRecord, OffsetRange, TopicName, TopicPartition};

fn identity() -> ArchiveIdentity {
    let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 0).unwrap();
    ArchiveIdentity { tp, incarnation: 0 }
}

/// Everything an archive says, before it is written: each part can be made to lie.
struct Parts {
    log: Vec<(Vec<u8>, ChunkOf)>,
    name: EntryName,
    list: Vec<BatchRef>,
    toc: Toc,
    summary: ArchiveSummary,
    more: Vec<(EntryName, Vec<u8>)>,
}

fn batches() -> Vec<CanonicalRecord> {
    vec![data(0, 10), data(10, 5)]
}

fn honest() -> Parts {
    let mut tally = Tally::from(0);
    let mut log = Vec::new();
    let mut list = Vec::new();
    for batch in batches() {
        let (header, wire) = (*batch.header(), batch.wire().unwrap().clone());
        tally.chain(&header, false, Times::of_header(&header));
        let (base, last) = (header.base_offset, header.last_offset());
        let of = ChunkOf { first: base, last, max_timestamp: header.max_timestamp };
        log.push((wire.to_vec(), of));
        let (len, crc32c) = (wire.len() as u32, crc32c::crc32c(&wire));
        list.push(BatchRef { base, last, len, crc32c, rank: None });
    }
    let summary = ArchiveSummary {
        range: OffsetRange::new(0, 14).unwrap(),
        tiles: true,
        batches: 2,
        records: 15,
        log_bytes: tally.chain.bytes,
        overlaps: 0,
        overlap_bytes: 0,
        bad_crcs: 0,
        unindexed: 0,
        min_timestamp: UNKNOWN_TIMESTAMP,
        max_timestamp: tally.times().max,
        leader_epochs: (0, 0),
        index_level: IndexLevel::None,
        index_bytes: 0,
        transactions: 0,
        length: 0,
        digest: [0; 32],
        toc: TocPlace { offset: 0, length: 0, raw: 0, encoding: Encoding::Stored, digest: [0; 16] },
    };
    let toc = Toc { epochs: vec![(0, 0)], ..Toc::default() };
    Parts { log, name: EntryName::Log(0), list, toc, summary, more: Vec::new() }
}

/// Writes the parts as they are, with every digest and CRC right.
fn write(parts: Parts) -> Result<Verified, ArchiveError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive.tar.gz");
    let mut packer = Packer::new(3);
    let mut sink = Sink::create(&path).unwrap();
    sink.begin().unwrap();
    for (bytes, of) in &parts.log {
        let packed = packer.pack(bytes, Known::Unknown);
        sink.chunk(&packed, bytes.len(), *of).unwrap();
    }
    sink.end(&parts.name).unwrap();
    for (name, bytes) in &parts.more {
        sink.begin().unwrap();
        sink.piece(&mut packer, bytes).unwrap();
        sink.end(name).unwrap();
    }
    let mut list = Vec::new();
    let mut encoder = BatchListEncoder::begin(parts.list.len() as u32, 0, &mut list);
    parts.list.iter().for_each(|batch| encoder.put(batch, &mut list));
    sink.begin().unwrap();
    sink.piece(&mut packer, &list).unwrap();
    sink.end(&EntryName::Batches).unwrap();
    let metadata = Metadata::of(&identity(), &parts.summary).encode().unwrap();
    sink.finish(&mut packer, &metadata, parts.toc).unwrap();
    verify_file(&path)
}

#[test]
fn honest_parts_verify() {
    let verified = write(honest()).unwrap();
    assert_eq!(verified.identity, identity());
    assert_eq!(verified.summary.batches, 2);
}

#[test]
fn every_lie_is_found_though_every_digest_fits() {
    let refuse = |what: &str, lie: &dyn Fn(&mut Parts)| {
        let mut parts = honest();
        lie(&mut parts);
        let error = write(parts).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    };
    refuse("a log that is no batches", &|parts| parts.log[1].0.fill(7));
    refuse("a chunk that ends inside a batch", &|parts| parts.log[1].0.truncate(100));
    refuse("a chunk that ends inside a header", &|parts| parts.log[1].0.truncate(20));
    refuse("a batch cut over two chunks", &|parts| {
        let tail = parts.log[0].0.split_off(80);
        let of = parts.log[0].1;
        parts.log.insert(1, (tail, ChunkOf { first: 9, last: 9, ..of }));
        parts.log[0].1.last = 8;
    });
    refuse("an offset below the chunk's first", &|parts| parts.log[1].1.first = 11);
    refuse("an offset above the chunk's last", &|parts| parts.log[1].1.last = 99);
    refuse("a later batch than the chunk says", &|parts| parts.log[1].1.max_timestamp = 0);
    refuse("a name that is not the first offset", &|parts| parts.name = EntryName::Log(1));
    refuse("a list without a batch", &|parts| drop(parts.list.split_off(1)));
    refuse("a list with another CRC", &|parts| parts.list[0].crc32c ^= 1);
    refuse("a list with another length", &|parts| parts.list[0].len += 1);
    refuse("a rank where none belongs", &|parts| parts.list[0].rank = Some(WalRank::default()));
    refuse("epochs that are not there", &|parts| parts.toc.epochs.push((5, 9)));
    refuse("epochs left out", &|parts| parts.toc.epochs.clear());
    refuse("another count of batches", &|parts| parts.summary.batches = 3);
    refuse("another count of records", &|parts| parts.summary.records = 14);
    refuse("another count of bad CRCs", &|parts| parts.summary.bad_crcs = 1);
    refuse("another count of transactions", &|parts| parts.summary.transactions = 1);
    refuse("a shorter range", &|parts| parts.summary.range = OffsetRange::new(0, 13).unwrap());
    refuse("an earlier greatest time", &|parts| parts.summary.max_timestamp = 0);
    refuse("other epochs", &|parts| parts.summary.leader_epochs = (0, 1));
    refuse("an index that is missing", &|parts| parts.summary.index_level = IndexLevel::Keys);
    refuse("an index of no level", &|parts| {
        parts.more.push((EntryName::Index("meta.json".to_owned()), b"{}".to_vec()));
        parts.summary.index_bytes = 2;
    });
    refuse("an overlap log that nobody lists", &|parts| {
        let batch = data(3, 2);
        parts.more.push((EntryName::OverlapLog(0), batch.wire().unwrap().to_vec()));
    });
}

#[test]
fn a_stored_padding_that_is_not_zero_is_the_only_freedom_left_and_the_crc_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = ArchiveOptions { index_level: IndexLevel::None, ..ArchiveOptions::default() };
    let mut writer = ArchiveWriter::create(folder.path(), identity(), 0, options).unwrap();
    writer.push(&data(0, 3), WalRank::default()).unwrap();
    let built = writer.finish().unwrap();
    let mut bytes = std::fs::read(&built.path).unwrap();
    let log = built.toc.chunks_of(built.toc.log().unwrap())[0];
    // The first byte of padding behind the log, in the glue that follows it.
    bytes[log.end() as usize + 5] = 1;
    let path = folder.path().join("changed");
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(verify_file(&path).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// Yields some bytes, then fails as a network does.
struct Failing(Vec<u8>, usize);

impl AsyncRead for Failing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self(bytes, at) = &mut *self;
        let len = (bytes.len() - *at).min(room.remaining()).min(1000);
        if len == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "reset")));
        }
        room.put_slice(&bytes[*at..*at + len]);
        *at += len;
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_stream_that_fails_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer =
        ArchiveWriter::create(folder.path(), identity(), 0, ArchiveOptions::default()).unwrap();
    writer.push(&data(0, 300), WalRank::default()).unwrap();
    let built = writer.finish().unwrap();
    let bytes = std::fs::read(&built.path).unwrap();
    let place = built.summary.toc;
    let packed = &bytes[place.range().start as usize..place.range().end as usize];
    for cut in [0, 9, 4000, bytes.len() - 1] {
        let stream = Failing(bytes[..cut].to_vec(), 0);
        let error = verify_stream(stream, bytes.len() as u64, packed, &place).unwrap_err();
        assert!(matches!(error, ArchiveError::Stream { .. }), "{cut}: {error}");
        assert_eq!(error.kind(), ErrorKind::Retry);
    }
}
