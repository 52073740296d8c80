//! Changes to an archive that its digests do not show: what a forger can do who
//! knows the format, as opposed to a disk that rots.

use std::io::Write;

use bytes::Bytes;
use flate2::write::DeflateEncoder;
use flate2::{Compression, Decompress, FlushDecompress};
use tierd::archive::{Encoding, FOOTER_BYTES, FOOTER_DISTANCE, Footer, Toc, TocPlace, digest128};

/// Header of the gzip member, in front of the first deflate block.
const GZIP_HEADER: usize = 10;
/// CRC-32 and length behind the last.
const GZIP_TRAILER: usize = 8;
/// Longest payload of a stored deflate block.
const STORED_MAX: usize = 0xffff;
/// Bytes of tar that are looked at for the CRC-32 of a forged object.
const TAR_BYTES_MAX: usize = 64 << 20;

/// A chunk inflates to less than 2 to this power: more makes the forger slow, and
/// shows no more.
const ZEROS_BITS: u8 = 23;

/// A change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Bytes of the object in front of its table.
    Object(usize, Vec<u8>),
    /// Bytes of the table before it is packed.
    Table(usize, Vec<u8>),
    /// What a chunk inflates to is so many zeros.
    Zeros(usize, u32),
}

impl Change {
    /// Reads changes: kind, place, length and bytes of each.
    pub(super) fn all(mut bytes: &[u8]) -> Vec<Self> {
        let mut changes = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
            let [kind, a, b, c, len] = *head;
            let at = u32::from_le_bytes([a, b, c, 0]) as usize;
            let len = usize::from(len).min(rest.len());
            let (new, rest) = rest.split_at(len);
            bytes = rest;
            changes.push(match kind % 3 {
                0 => Self::Object(at, new.to_vec()),
                1 => Self::Table(at, new.to_vec()),
                _ => Self::Zeros(at & 0xff, 1 << (b % ZEROS_BITS)),
            });
        }
        changes
    }

    /// As [`Self::all`] reads it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let change = |kind: u8, at: usize, new: &[u8]| {
            let [a, b, c, _] = (at as u32).to_le_bytes();
            [&[kind, a, b, c, new.len() as u8], new].concat()
        };
        match self {
            Self::Object(at, new) => change(0, *at, new),
            Self::Table(at, new) => change(1, *at, new),
            Self::Zeros(chunk, zeros) => change(2, chunk | (zeros.ilog2() as usize) << 8, &[]),
        }
    }
}

/// Stored blocks that hold `raw`.
pub(super) fn stored(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 8);
    for block in raw.chunks(STORED_MAX) {
        let len = block.len() as u16;
        out.push(0);
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    out
}

/// The table of an archive that is whole.
pub(super) fn table(archive: &[u8]) -> (Footer, Toc) {
    let length = archive.len() as u64;
    let range = Footer::range(length).expect("an archive");
    let footer = Footer::decode(&archive[range.start as usize..range.end as usize], length);
    let footer = footer.expect("its footer");
    let place = footer.toc.range();
    let toc = Toc::decode(&archive[place.start as usize..place.end as usize], &footer.toc);
    (footer, toc.expect("its table"))
}

/// `archive` with `changes`, and every digest, checksum and length around them as a
/// writer would have made them for these bytes.
pub(super) fn forge(archive: &[u8], changes: &[Change]) -> Vec<u8> {
    let (footer, mut toc) = table(archive);
    let mut object = archive[..footer.toc.offset as usize].to_vec();
    for change in changes {
        match change {
            Change::Object(at, new) => overwrite(&mut object, *at, new),
            Change::Zeros(number, zeros) => bomb(&mut object, &mut toc, *number, *zeros),
            Change::Table(..) => {}
        }
    }
    for chunk in &mut toc.chunks {
        let range = chunk.place as usize..chunk.end() as usize;
        let Some(packed) = object.get(range) else { continue };
        chunk.digest = digest128(packed);
        if let Some(raw) = unpack(chunk.encoding, packed, chunk.raw as usize) {
            chunk.crc32 = crc32fast::hash(&raw);
        }
    }
    let mut raw = toc.encode();
    for change in changes {
        if let Change::Table(at, new) = change {
            overwrite(&mut raw, *at, new);
        }
    }
    let packed = stored(&raw);
    let place = TocPlace {
        offset: object.len() as u64,
        length: packed.len() as u32,
        raw: raw.len() as u32,
        encoding: Encoding::Stored,
        digest: digest128(&packed),
    };
    let footer_at = archive.len() - FOOTER_DISTANCE as usize;
    let between = &archive[footer.toc.range().end as usize..footer_at];
    object.extend(&packed);
    object.extend(between);
    let behind = &archive[footer_at + FOOTER_BYTES..];
    let object_length = (object.len() + FOOTER_BYTES + behind.len()) as u64;
    object.extend(Footer { toc: place, object_length }.encode());
    object.extend(behind);
    seal_gzip(&mut object);
    object
}

fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) {
    let Some(len) = bytes.len().checked_sub(1) else { return };
    let at = at % (len + 1);
    let new = &new[..new.len().min(bytes.len() - at)];
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Makes chunk `number` inflate to `zeros` bytes, whatever its entry says.
fn bomb(object: &mut Vec<u8>, toc: &mut Toc, number: usize, zeros: u32) {
    let count = toc.chunks.len().max(1);
    let Some(chunk) = toc.chunks.get_mut(number % count) else { return };
    let range = chunk.place as usize..chunk.end() as usize;
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
    deflate.write_all(&vec![0; zeros as usize]).expect("into memory");
    deflate.flush().expect("into memory");
    let packed = deflate.get_ref().clone();
    let (place, grown) = (chunk.place, packed.len() as i64 - i64::from(chunk.packed));
    chunk.packed = packed.len() as u32;
    chunk.encoding = Encoding::Deflate;
    if range.end <= object.len() {
        object.splice(range, packed);
        for later in toc.chunks.iter_mut().filter(|later| later.place > place) {
            later.place = later.place.saturating_add_signed(grown);
        }
    }
}

fn unpack(encoding: Encoding, packed: &[u8], raw: usize) -> Option<Bytes> {
    match encoding {
        Encoding::Stored if packed.len() == stored_len(raw) => {
            let blocks = packed.chunks(STORED_MAX + 5);
            Some(blocks.flat_map(|block| block.get(5..).unwrap_or_default().to_vec()).collect())
        }
        Encoding::Stored => None,
        Encoding::Deflate => inflate(packed, raw).map(Into::into),
    }
}

fn stored_len(raw: usize) -> usize {
    raw + raw.div_ceil(STORED_MAX) * 5
}

/// Inflates raw deflate to at most `most` bytes.
fn inflate(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(most.min(TAR_BYTES_MAX));
    Decompress::new(false).decompress_vec(packed, &mut out, FlushDecompress::Sync).ok()?;
    Some(out)
}

/// Puts the right trailer behind the gzip member, where it can be inflated.
fn seal_gzip(object: &mut [u8]) {
    let Some(end) = object.len().checked_sub(GZIP_TRAILER).filter(|end| *end > GZIP_HEADER) else {
        return;
    };
    let Some(tar) = inflate(&object[GZIP_HEADER..end], object.len() * 4 + STORED_MAX) else {
        return;
    };
    object[end..end + 4].copy_from_slice(&crc32fast::hash(&tar).to_le_bytes());
    object[end + 4..].copy_from_slice(&(tar.len() as u32).to_le_bytes());
}
