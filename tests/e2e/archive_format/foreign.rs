//! Readers that know nothing of tierd.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use kafka_protocol::records::RecordBatchDecoder;
use tantivy::collector::DocSetCollector;
use tantivy::query::TermQuery;
use tantivy::schema::IndexRecordOption;
use tantivy::{Index, Term};
use tokio::io::AsyncReadExt;

use super::build::{Input, bytes, concat, files, one_of_everything, untar};
use super::bytes::Batch;

/// Every kind of archive, by name.
fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let chain = |count: i64| (0..count).map(|n| Batch::of(n * 100, 100).record()).collect();
    let huge = vec![Batch::of(0, 3).record(), Batch::huge(3, 2 << 20).record()];
    let overlaps = vec![Batch::of(5, 5).record()];
    let inputs = [
        ("one of everything", one_of_everything()),
        ("many chunks", Input::chain(chain(400))),
        ("no index", Input::chain(chain(2)).without_index()),
        ("a huge batch", Input::chain(huge)),
        ("overlaps alone", Input { overlaps, ..Input::default() }),
    ];
    inputs.into_iter().map(|(name, input)| (name, bytes(&input.build()).to_vec())).collect()
}

#[tokio::test]
async fn async_compression_reads_the_whole_file_by_default() {
    for (name, archive) in archives() {
        let mut tar = Vec::new();
        let mut gunzip = async_compression::tokio::bufread::GzipDecoder::new(archive.as_slice());
        gunzip.read_to_end(&mut tar).await.unwrap();
        let mut plain = Vec::new();
        std::io::Read::read_to_end(
            &mut flate2::read::GzDecoder::new(archive.as_slice()),
            &mut plain,
        )
        .unwrap();
        assert!(tar == plain, "{name}");
        assert_eq!(tar.len() % 512, 0);
    }
}

#[test]
fn the_tar_crate_unpacks_it() {
    for (name, archive) in archives() {
        let folder = tempfile::tempdir().unwrap();
        let gunzip = flate2::read::GzDecoder::new(archive.as_slice());
        tar::Archive::new(gunzip).unpack(folder.path()).unwrap();
        for (file, content) in untar(&archive) {
            assert!(fs::read(folder.path().join(&file)).unwrap() == content, "{name}: {file}");
        }
    }
}

#[test]
fn kafka_protocol_decodes_the_unpacked_log() {
    let chain: Vec<_> = (0..50).map(|n| Batch::of(n * 100, 100).record()).collect();
    let archive = bytes(&Input::chain(chain.clone()).build());
    let log = files(&archive)["00000000000000000000.log"].clone();
    assert!(log == concat(&chain));
    let mut log = bytes::Bytes::from(log);
    let sets = RecordBatchDecoder::decode_all(&mut log).unwrap();
    let records: Vec<_> = sets.into_iter().flat_map(|set| set.records).collect();
    assert_eq!(records.len(), 5000);
    for (offset, record) in records.iter().enumerate() {
        assert_eq!(record.offset, offset as i64);
        assert_eq!(record.key.as_deref(), Some(format!("key-{offset}").as_bytes()));
    }
}

#[test]
fn stock_tantivy_opens_the_unpacked_index_and_finds_a_key() {
    let archive = bytes(&one_of_everything().build());
    let folder = tempfile::tempdir().unwrap();
    let gunzip = flate2::read::GzDecoder::new(archive.as_ref());
    tar::Archive::new(gunzip).unpack(folder.path()).unwrap();
    let index = Index::open_in_dir(folder.path().join("index")).unwrap();
    assert!(index.validate_checksum().unwrap().is_empty());
    let searcher = index.reader().unwrap().searcher();
    // 1536 records, less two markers, two that do not decode, two below the start.
    assert_eq!(searcher.num_docs(), 1536 - 2 - 2 - 2);
    let key = index.schema().get_field("key").unwrap();
    let find = |term: &[u8]| -> Vec<i64> {
        let query = TermQuery::new(Term::from_field_bytes(key, term), IndexRecordOption::Basic);
        let mut offsets: Vec<_> = searcher
            .search(&query, &DocSetCollector)
            .unwrap()
            .into_iter()
            .map(|found| {
                let segment = searcher.segment_reader(found.segment_ord);
                segment.fast_fields().i64("offset").unwrap().first(found.doc_id).unwrap()
            })
            .collect();
        offsets.sort_unstable();
        offsets
    };
    assert_eq!(find(b"key-1234"), [1234]);
    assert_eq!(find(b"key-98"), [0; 0], "below the first offset");
    assert_eq!(find(b"key-142"), [0; 0], "in a batch that does not decode");
    assert_eq!(find(b"key-121"), [121], "of the chain only");
    assert_eq!(find(b""), [111]);
    assert_eq!(find(&tierd::archive::key_term(&[b'k'; 2000])), [112]);
}

/// Runs a foreign program over an archive; without the program says so.
fn run(program: &str, args: &[&str], folder: &Path) -> bool {
    let mut version = Command::new(program);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if !version.status().is_ok_and(|status| status.success()) {
        println!("skipped: {program} is not installed here");
        return false;
    }
    let output = Command::new(program).args(args).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}");
    assert_eq!(text, "", "{program} {args:?} complains");
    true
}

fn compare(name: &str, archive: &[u8], folder: &Path) {
    for (file, content) in untar(archive) {
        assert!(fs::read(folder.join(&file)).unwrap() == content, "{name}: {file}");
    }
}

#[test]
fn gzip_and_tar_read_it() {
    for (name, archive) in archives() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.tar.gz"), &archive).unwrap();
        run("gzip", &["-t", "a.tar.gz"], folder.path());
        if run("tar", &["xzf", "a.tar.gz"], folder.path()) {
            compare(name, &archive, folder.path());
        }
    }
}

#[test]
fn python_reads_it_seekable_and_as_a_stream() {
    let program = "import sys, tarfile\n\
                   with tarfile.open('a.tar.gz', sys.argv[1]) as tar:\n\
                   \x20   for entry in tar:\n\
                   \x20       assert entry.isreg(), entry\n\
                   \x20       folder = entry.name.rpartition('/')[0]\n\
                   \x20       import os\n\
                   \x20       os.makedirs(folder or '.', exist_ok=True)\n\
                   \x20       open(entry.name, 'wb').write(tar.extractfile(entry).read())\n";
    for (name, archive) in archives() {
        for mode in ["r:gz", "r|gz"] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("a.tar.gz"), &archive).unwrap();
            if run("python3", &["-c", program, mode], folder.path()) {
                compare(name, &archive, folder.path());
            }
        }
    }
}
