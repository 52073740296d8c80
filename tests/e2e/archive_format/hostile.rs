//! Archives that are not what they say: damaged, cut, forged.

use tierd::archive::{ArchiveError, Footer, Metadata, Toc, TocPlace, digest128};
use tierd::error::{Classify, ErrorKind};

use super::build::{Input, bytes, files, one_of_everything, verify};
use super::bytes::Batch;

fn small() -> Vec<u8> {
    let chain = vec![Batch::of(0, 2).record(), Batch::of(2, 3).record()];
    bytes(&Input::chain(chain).build()).to_vec()
}

#[test]
fn every_flipped_byte_is_found() {
    let archive = small();
    verify(&archive).unwrap();
    let mut bad = archive.clone();
    for at in 0..archive.len() {
        for flip in [0x01, 0x80, 0xff] {
            bad[at] ^= flip;
            assert!(verify(&bad).is_err(), "byte {at} of {} changed by {flip:02x}", bad.len());
            bad[at] ^= flip;
        }
    }
}

/// Table: F9 F25 I6 | every byte of an archive
#[test]
fn every_flip_in_an_archive_with_everything_is_found() {
    let archive = bytes(&one_of_everything().build()).to_vec();
    let mut bad = archive.clone();
    for at in (0..archive.len()).step_by(13) {
        bad[at] ^= 0x10;
        let error = verify(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}");
        bad[at] ^= 0x10;
    }
}

/// Table: F8 F25 I6 | the end of an archive
#[test]
fn every_cut_and_every_byte_more_is_found() {
    let archive = small();
    for end in (0..archive.len()).step_by(7) {
        assert!(verify(&archive[..end]).is_err(), "cut at {end}");
    }
    for more in [0, 0x1f, 0xff] {
        let mut longer = archive.clone();
        longer.push(more);
        assert!(verify(&longer).is_err());
    }
    let twice = [archive.clone(), archive].concat();
    assert!(verify(&twice).is_err(), "a second gzip member");
}

#[test]
fn a_damaged_chunk_is_named_by_its_place() {
    let archive = one_of_everything().build();
    let chunk = archive.toc.chunks_of(archive.toc.log().unwrap())[0];
    let mut bad = bytes(&archive).to_vec();
    bad[chunk.place as usize + 100] ^= 4;
    let error = verify(&bad).unwrap_err().to_string();
    assert!(error.contains(&format!("the chunk at {}", chunk.place)), "{error}");
}

/// An archive whose tar stream is that of `archive` changed by `edit`, stored
/// plainly, with footer and table where they were.
fn retarred(archive: &[u8], edit: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut gunzip = flate2::read::GzDecoder::new(archive);
    std::io::Read::read_to_end(&mut gunzip, &mut tar).unwrap();
    edit(&mut tar);
    let mut out = archive[..10].to_vec();
    let blocks: Vec<_> = tar.chunks(0xffff).collect();
    for (number, block) in blocks.iter().enumerate() {
        let len = block.len() as u16;
        out.push(u8::from(number + 1 == blocks.len()));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&crc32fast::hash(&tar).to_le_bytes());
    out.extend_from_slice(&(tar.len() as u32).to_le_bytes());
    out
}

#[test]
fn the_same_files_packed_by_someone_else_are_not_the_archive() {
    let archive = small();
    // A valid .tar.gz with the same content, but not at the places the table tells.
    assert!(verify(&retarred(&archive, |_| {})).is_err());
}

/// Table: F25 I6 I12 | headers of tar
#[test]
fn tar_headers_that_are_not_tierds_are_refused() {
    use tierd::archive::Chunk;
    let archive = small();
    let length = archive.len() as u64;
    let range = Footer::range(length).unwrap();
    let footer =
        Footer::decode(&archive[range.start as usize..range.end as usize], length).unwrap();
    let place = footer.toc.range();
    let toc = Toc::decode(&archive[place.start as usize..place.end as usize], &footer.toc).unwrap();
    let log: &Chunk = &toc.chunks_of(toc.log().unwrap())[0];
    // The log's tar header lies in the stored block in front of its first chunk.
    let header = log.place as usize - 512;
    let forge = |what: &str, edit: &dyn Fn(&mut [u8])| {
        let mut bad = archive.clone();
        edit(&mut bad[header..header + 512]);
        let sum: u32 = bad[header..header + 512]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        bad[header + 148..header + 154].copy_from_slice(format!("{sum:06o}").as_bytes());
        recompute_trailer(&mut bad);
        let error = verify(&bad).unwrap_err();
        assert!(matches!(error, ArchiveError::Corrupt { .. }), "{what}: {error}");
        assert!(error.to_string().contains("tar header"), "{what}: {error}");
    };
    forge("a path that leaves", &|header| header[..3].copy_from_slice(b"../"));
    forge("an absolute path", &|header| header[0] = b'/');
    forge("another name", &|header| header[10] = b'7');
    forge("a doubled name", &|header| {
        header[..100].fill(0);
        header[..13].copy_from_slice(b"metadata.json");
    });
    forge("a symbolic link", &|header| {
        header[156] = b'2';
        header[157..168].copy_from_slice(b"/etc/passwd");
    });
    forge("a hard link", &|header| header[156] = b'1');
    forge("a device", &|header| header[156] = b'3');
    forge("a folder", &|header| header[156] = b'5');
    forge("a PAX header", &|header| header[156] = b'x');
    forge("a GNU long name", &|header| header[156] = b'L');
    forge("a size that lies", &|header| header[134] ^= 1);
    forge("an executable", &|header| header[104..107].copy_from_slice(b"755"));
    forge("an owner", &|header| header[114] = b'1');
    forge("a time", &|header| header[146] = b'1');
}

/// Makes the gzip trailer right for what the archive now inflates to.
fn recompute_trailer(archive: &mut [u8]) {
    let mut tar = Vec::new();
    let body = archive[10..archive.len() - 8].to_vec();
    let mut inflate = flate2::read::DeflateDecoder::new(body.as_slice());
    std::io::Read::read_to_end(&mut inflate, &mut tar).unwrap();
    let at = archive.len() - 8;
    archive[at..at + 4].copy_from_slice(&crc32fast::hash(&tar).to_le_bytes());
}

/// Table: F26 I6 | versions in an archive
#[test]
fn a_later_version_is_refused_by_name_wherever_it_shows() {
    let expected =
        "archive format version 2 is newer than this tierd understands (1); upgrade tierd";
    let archive = small();
    let files = files(&archive);

    let text = String::from_utf8(files["metadata.json"].clone()).unwrap();
    let metadata = text.replacen("\"version\": 1", "\"version\": 2", 1);
    let error = Metadata::decode(metadata.as_bytes()).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let mut footer = files[".tierd/footer"].clone();
    footer[8] = 2;
    let digest = digest128(&footer[..496]);
    footer[496..].copy_from_slice(&digest);
    let error = Footer::decode(&footer, archive.len() as u64).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");

    let mut toc = files[".tierd/toc"].clone();
    toc[8] = 2;
    let mut packed = Vec::new();
    let len = toc.len() as u16;
    packed.push(0);
    packed.extend_from_slice(&len.to_le_bytes());
    packed.extend_from_slice(&(!len).to_le_bytes());
    packed.extend_from_slice(&toc);
    let place = TocPlace {
        offset: 1 << 30,
        length: packed.len() as u32,
        raw: toc.len() as u32,
        encoding: tierd::archive::Encoding::Stored,
        digest: digest128(&packed),
    };
    let error = Toc::decode(&packed, &place).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

/// Table: F25 F26 I6 | codes in an archive
#[test]
fn a_codec_that_nobody_knows_never_becomes_a_batch() {
    let mut wire = Batch::of(0, 1).wire().to_vec();
    wire[22] = 5;
    let crc = crc32c::crc32c(&wire[21..]);
    wire[17..21].copy_from_slice(&crc.to_be_bytes());
    let error = tierd::record::CanonicalRecord::from_wire(wire.into()).unwrap_err();
    assert!(error.to_string().contains("codec 5"), "{error}");
}

#[test]
fn a_batch_that_lies_about_its_codec_is_archived_verbatim_and_counted() {
    // Plain records that claim to be zstd: intact, but nothing decodes them.
    let plain = Batch::of(10, 3);
    let mut wire = plain.wire().to_vec();
    wire[22] = 4;
    let crc = crc32c::crc32c(&wire[21..]);
    wire[17..21].copy_from_slice(&crc.to_be_bytes());
    let lie = tierd::record::CanonicalRecord::from_wire(wire.clone().into()).unwrap();
    let built = Input::chain(vec![Batch::of(0, 10).record(), lie]).build();
    assert_eq!((built.summary.bad_crcs, built.summary.unindexed), (0, 1));
    assert!(files(&bytes(&built))["00000000000000000000.log"].ends_with(&wire));
}
