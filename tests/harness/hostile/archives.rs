//! Bytes as an archive, whole or in parts.

use std::sync::OnceLock;

use bytes::Bytes;
use tierd::archive::{
    ArchiveError, ArchiveOptions, ArchiveSummary, BatchList, Encoding, Footer, IndexLevel,
    KeyFilter, Metadata, Toc, TocPlace, Verified, batches_in, digest128, verify_stream,
};
use tierd::record::{CanonicalRecord, Codec};

use super::mend::{Change, forge, stored, table};
use crate::chronik::sample_batch;
use crate::world::{build, tp};

/// Verifies bytes as a download is verified: footer, table, then the stream.
///
/// # Errors
/// What is wrong.
pub fn verify(bytes: &[u8]) -> Result<Verified, ArchiveError> {
    let length = bytes.len() as u64;
    let cut = |range: std::ops::Range<u64>| &bytes[range.start as usize..range.end as usize];
    let footer = Footer::decode(Footer::range(length).map_or(&[], cut), length)?;
    verify_stream(bytes, length, cut(footer.toc.range()), &footer.toc)
}

/// The first byte chooses the part: table, footer, list of batches, key filter,
/// metadata, summary.
pub fn toc_footer(bytes: &[u8]) {
    let Some((part, bytes)) = bytes.split_first() else { return };
    match part % 6 {
        0 => toc(bytes),
        1 => footer(bytes),
        2 => batch_list(bytes),
        3 => key_filter(bytes),
        4 => metadata(bytes),
        _ => summary(bytes),
    }
}

fn toc(raw: &[u8]) {
    let packed = stored(raw);
    let place = TocPlace {
        offset: 1 << 40,
        length: packed.len() as u32,
        raw: raw.len() as u32,
        encoding: Encoding::Stored,
        digest: digest128(&packed),
    };
    let Ok(toc) = Toc::decode(&packed, &place) else { return };
    let mut end = 0;
    for file in &toc.files {
        let chunks = toc.chunks_of(file);
        let bytes: u64 = chunks.iter().map(|chunk| u64::from(chunk.raw)).sum();
        assert_eq!(bytes, file.raw_len, "chunks make up {}", file.name);
        for chunk in chunks {
            assert!(end <= chunk.place && chunk.end() <= place.offset, "chunks lie apart");
            end = chunk.end();
        }
    }
    let again = stored(&toc.encode());
    let raw = toc.encode().len() as u32;
    let place = TocPlace { length: again.len() as u32, raw, digest: digest128(&again), ..place };
    assert_eq!(Toc::decode(&again, &place).expect("what tierd encodes"), toc);
}

fn footer(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.resize(tierd::archive::FOOTER_BYTES, 0);
    let digested = bytes.len() - 16;
    let digest = digest128(&bytes[..digested]);
    bytes[digested..].copy_from_slice(&digest);
    let said = u64::from_le_bytes(*bytes[32..].first_chunk().expect("eight bytes"));
    let Ok(footer) = Footer::decode(&bytes, said) else { return };
    assert!(footer.toc.range().end <= said, "the table lies in the object");
    assert_eq!(footer.encode()[..], bytes, "a footer says all of its bytes");
}

fn batch_list(bytes: &[u8]) {
    let Ok(list) = BatchList::decode(Bytes::copy_from_slice(bytes)) else { return };
    assert_eq!(list.chain().count(), list.chain_len() as usize);
    assert_eq!(list.overlaps().count(), list.overlaps_len() as usize);
    let lasts: Vec<i64> = list.chain().map(|batch| batch.last).collect();
    assert!(lasts.is_sorted());
}

fn key_filter(bytes: &[u8]) {
    let Ok(filter) = KeyFilter::decode(Bytes::copy_from_slice(bytes)) else { return };
    for key in [&b""[..], b"key-1", bytes] {
        let _ = filter.may_hold(key);
    }
}

fn metadata(bytes: &[u8]) {
    let Ok(metadata) = Metadata::decode(bytes) else { return };
    let _ = (metadata.identity().is_ok(), metadata.range().is_ok());
    let Ok(encoded) = metadata.encode() else { return };
    let again = Metadata::decode(&encoded).expect("what tierd encodes");
    assert_eq!(again.encode().expect("once more"), encoded);
}

fn summary(bytes: &[u8]) {
    let mut rest = bytes;
    let Ok(summary) = ArchiveSummary::decode(&mut rest) else { return };
    let mut encoded = Vec::new();
    summary.encode(&mut encoded);
    assert_eq!(encoded, bytes[..bytes.len() - rest.len()], "a summary says all of its bytes");
}

/// A small archive with everything in it, and its batches.
struct Whole {
    object: Vec<u8>,
    log: Vec<u8>,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let codecs = [Codec::None, Codec::Lz4, Codec::Gzip];
        let wires: Vec<Bytes> = (0..3)
            .map(|n| sample_batch(10 * n, 10, 40, codecs[n as usize]).expect("a batch"))
            .collect();
        let batches = wires.iter().map(|wire| CanonicalRecord::from_wire(wire.clone()));
        let batches: Vec<_> = batches.collect::<Result<_, _>>().expect("batches");
        let folder = tempfile::tempdir().expect("a folder");
        let identity = tierd::archive::ArchiveIdentity { tp: tp("t", 0), incarnation: 0 };
        let options = ArchiveOptions { index_level: IndexLevel::Keys, ..Default::default() };
        let built = build(folder.path(), &identity, 0, &batches, options);
        Whole { object: std::fs::read(&built.path).expect("its file"), log: wires.concat() }
    })
}

/// The object that an input stands for: the first byte chooses the bytes as they
/// are, or changes to a good archive, forged so that every digest fits.
#[must_use]
pub fn object_of(input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((mode, changes)) if mode % 2 == 1 => forge(&whole().object, &Change::all(changes)),
        Some((_, object)) => object.to_vec(),
        None => Vec::new(),
    }
}

/// Verifies an object. What is found good must be so to every other reader.
pub fn tar_entries(input: &[u8]) {
    let object = object_of(input);
    let Ok(verified) = verify(&object) else { return };
    let mut log = Vec::new();
    if let Some(file) = verified.toc.log() {
        for chunk in verified.toc.chunks_of(file) {
            let packed = &object[chunk.place as usize..chunk.end() as usize];
            let raw = chunk.unpack(Bytes::copy_from_slice(packed)).expect("a verified chunk");
            batches_in(raw.clone()).for_each(|batch| drop(batch.expect("a verified batch")));
            log.extend_from_slice(&raw);
        }
    }
    assert!(object != whole().object || log == whole().log, "an archive holds its batches");
}

pub(super) fn table_seeds() -> Vec<Vec<u8>> {
    let object = &whole().object;
    let (footer, toc) = table(object);
    let seed = |part: u8, bytes: &[u8]| [&[part], bytes].concat();
    let file = |name: &str| -> Vec<u8> {
        let file = toc.file(name).expect("a file of an archive");
        let chunks = toc.chunks_of(file).iter().map(|chunk| {
            let packed = &object[chunk.place as usize..chunk.end() as usize];
            chunk.unpack(Bytes::copy_from_slice(packed)).expect("a chunk")
        });
        chunks.collect::<Vec<_>>().concat()
    };
    let verified = verify(object).expect("an archive");
    let mut summary = Vec::new();
    verified.summary.encode(&mut summary);
    vec![
        seed(0, &toc.encode()),
        seed(1, &footer.encode()),
        seed(2, &file(".tierd/batches")),
        seed(3, &file(".tierd/keys")),
        seed(4, &file("metadata.json")),
        seed(5, &summary),
    ]
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let object = &whole().object;
    let (_, toc) = table(object);
    let forged = |changes: &[Change]| {
        let changes: Vec<u8> = changes.iter().flat_map(Change::encode).collect();
        [&[1], &changes[..]].concat()
    };
    let log = toc.chunks_of(toc.log().expect("a log"))[0].place as usize;
    // The header of the log's tar entry lies in the stored block before its chunk.
    let header = log - 512;
    let table = toc.encode();
    let chunk = table.windows(8).position(|eight| eight == (log as u64).to_le_bytes());
    let chunk = chunk.expect("the log's chunk is in the table");
    vec![
        [&[0], &object[..]].concat(),
        forged(&[]),
        forged(&[Change::Object(header, b"../../etc/cron.d/x".to_vec())]),
        forged(&[Change::Object(header, b"/etc/passwd".to_vec())]),
        forged(&[Change::Object(header + 156, b"2/etc/passwd".to_vec())]),
        forged(&[Change::Object(header + 156, b"1metadata.json".to_vec())]),
        forged(&[Change::Object(header + 124, b"77777777777".to_vec())]),
        forged(&[Change::Object(header + 156, b"x".to_vec())]),
        forged(&[Change::Object(log + 60, vec![0xff; 8])]),
        // Its chunk lies over the one before; holds 4 GiB; is nowhere.
        forged(&[Change::Table(chunk, (log as u64 - 600).to_le_bytes().to_vec())]),
        forged(&[Change::Table(chunk + 12, vec![0xff; 4])]),
        forged(&[Change::Table(chunk, vec![0xff; 8])]),
        forged(&[Change::Zeros(0, 1 << 22)]),
        forged(&[Change::Zeros(1, 1 << 20)]),
    ]
}
