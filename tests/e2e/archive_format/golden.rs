//! The stored archives of version 1: readable for ever, and the newest built again
//! byte for byte by every tierd that writes version 1. `v1` is from before archives
//! had a key filter, `v1b` has one.
//!
//! A change of Tantivy or of the deflate library may change the bytes that are
//! built. Then, and only then, the stored archive gets a successor (`v1c`), the
//! old one stays and is still read: `cargo test -p tierd-tests --test e2e
//! write_the_golden_archive -- --ignored` writes it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tierd::archive::{ArchiveSummary, Encoding, Toc, TocPlace, Verified, batches_in};

use super::build::{bytes, concat, files, one_of_everything, verify};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/archive").join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encoding(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Stored => "stored",
        Encoding::Deflate => "deflate",
    }
}

fn place(place: &TocPlace) -> Value {
    json!({
        "offset": place.offset,
        "length": place.length,
        "raw": place.raw,
        "encoding": encoding(place.encoding),
        "digest": hex(&place.digest),
    })
}

fn toc(toc: &Toc) -> Value {
    let file = |file: &tierd::archive::TocFile| {
        json!({
            "name": file.name,
            "raw_len": file.raw_len,
            "chunks": [file.chunks.start, file.chunks.end],
        })
    };
    let chunk = |chunk: &tierd::archive::Chunk| {
        json!({
            "place": chunk.place,
            "packed": chunk.packed,
            "raw": chunk.raw,
            "crc32": format!("{:08x}", chunk.crc32),
            "encoding": encoding(chunk.encoding),
            "first": chunk.first,
            "last": chunk.last,
            "max_timestamp": chunk.max_timestamp,
            "digest": hex(&chunk.digest),
        })
    };
    let ended = |one: &tierd::archive::EndedTransaction| {
        json!([one.producer_id, one.first_offset, one.marker, one.aborted])
    };
    let open = |one: &tierd::archive::OpenTransaction| json!([one.producer_id, one.first_offset]);
    json!({
        "files": toc.files.iter().map(file).collect::<Vec<_>>(),
        "chunks": toc.chunks.iter().map(chunk).collect::<Vec<_>>(),
        "epochs": toc.epochs,
        "ended": toc.ended.iter().map(ended).collect::<Vec<_>>(),
        "open": toc.open.iter().map(open).collect::<Vec<_>>(),
    })
}

fn summary(summary: &ArchiveSummary) -> Value {
    let mut encoded = Vec::new();
    summary.encode(&mut encoded);
    json!({
        "base": summary.range.base(),
        "last": summary.range.last(),
        "tiles": summary.tiles,
        "batches": summary.batches,
        "records": summary.records,
        "log_bytes": summary.log_bytes,
        "overlaps": summary.overlaps,
        "overlap_bytes": summary.overlap_bytes,
        "bad_crcs": summary.bad_crcs,
        "unindexed": summary.unindexed,
        "min_timestamp": summary.min_timestamp,
        "max_timestamp": summary.max_timestamp,
        "leader_epochs": [summary.leader_epochs.0, summary.leader_epochs.1],
        "index_level": format!("{:?}", summary.index_level),
        "index_bytes": summary.index_bytes,
        "transactions": summary.transactions,
        "length": summary.length,
        "digest": hex(&summary.digest),
        "toc": place(&summary.toc),
        "encoded": hex(&encoded),
    })
}

fn described(verified: &Verified) -> String {
    let value = json!({
        "topic": verified.identity.tp.topic().as_str(),
        "partition": verified.identity.tp.partition(),
        "incarnation": verified.identity.incarnation,
        "summary": summary(&verified.summary),
        "toc": toc(&verified.toc),
    });
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

/// Table: F26 I4 | archives of every version
#[test]
fn the_golden_archives_are_still_read() {
    for name in ["v1", "v1b"] {
        still_read(name);
    }
}

fn still_read(name: &str) {
    let archive = fs::read(fixture(&format!("{name}.tar.gz"))).unwrap();
    let verified = verify(&archive).unwrap();
    let known = fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    assert_eq!(described(&verified), known);
    let log = verified.toc.log().unwrap();
    let mut back = Vec::new();
    for chunk in verified.toc.chunks_of(log) {
        let packed = archive[chunk.place as usize..chunk.end() as usize].to_vec();
        for batch in batches_in(chunk.unpack(packed.into()).unwrap()) {
            back.push(batch.unwrap());
        }
    }
    assert!(concat(&back) == concat(&one_of_everything().chain));
    assert!(files(&archive).contains_key("metadata.json"));
}

#[test]
fn the_golden_archive_is_built_again_byte_for_byte() {
    let built = bytes(&one_of_everything().build());
    assert!(built == fs::read(fixture("v1b.tar.gz")).unwrap(), "the archive built today differs");
}

#[test]
#[ignore = "writes the stored archive; for a new version of the format only"]
fn write_the_golden_archive() {
    let built = bytes(&one_of_everything().build());
    fs::create_dir_all(fixture("")).unwrap();
    fs::write(fixture("v1b.tar.gz"), &built).unwrap();
    fs::write(fixture("v1b.json"), described(&verify(&built).unwrap())).unwrap();
}
