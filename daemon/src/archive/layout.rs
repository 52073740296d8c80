//! Owns the bytes around the payloads: gzip header and trailer, stored deflate
//! blocks, tar headers and padding. Pure functions, no file.
//!
//! ```text
//! gzip header, 10 bytes:    1f 8b | 08 deflate | 00 no flags | 00000000 no time | 00 | ff no OS
//! stored block, 5 + n:      00 (01: the last one) | n u16 LE | !n u16 LE | n bytes
//! gzip trailer, 8 bytes:    CRC-32 u32 LE | raw length mod 2^32 u32 LE, both over the tar stream
//!
//! tar header, 512 bytes, ustar; numbers are octal text:
//!   0 name[100] | 100 mode "0000644" | 108 uid "0000000" | 116 gid "0000000" | 124 size[12]
//!   136 mtime "00000000000" | 148 checksum[8] | 156 type '0' | 157 link name[100] zeros
//!   257 "ustar\0" "00" | 265 user[32], group[32] zeros | 329 "0000000" "0000000" | 345 zeros
//! ```
//!
//! A stored block that follows a full flush or another stored block begins on a
//! byte boundary, so its first byte is 00 or 01 and nothing else.

use bytes::Bytes;

use super::error::ArchiveError;

/// The gzip header: no name, time or operating system, so equal input gives equal bytes.
pub(super) const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// Bytes of the gzip trailer.
pub(super) const GZIP_TRAILER_BYTES: usize = 8;
/// Bytes of a tar header, and what payloads are padded to.
pub(super) const TAR_BLOCK: usize = 512;
/// Two empty blocks end a tar stream.
pub(super) const TAR_END_BYTES: usize = 2 * TAR_BLOCK;
/// Bytes in front of the payload of a stored block.
pub(super) const STORED_HEADER_BYTES: usize = 5;
/// Longest payload of a stored block: its length is a u16.
pub(super) const STORED_PAYLOAD_MAX: usize = 0xffff;
/// Longest name the plain name field holds, one byte kept for its end.
pub(super) const TAR_NAME_MAX: usize = 99;

/// The header of a stored block of `len` bytes.
pub(super) fn stored_header(len: u16, last: bool) -> [u8; STORED_HEADER_BYTES] {
    let [a, b] = len.to_le_bytes();
    [u8::from(last), a, b, !a, !b]
}

/// Bytes that `raw` bytes take in stored blocks.
pub(super) const fn stored_len(raw: usize) -> usize {
    raw + raw.div_ceil(STORED_PAYLOAD_MAX) * STORED_HEADER_BYTES
}

/// Cuts `raw` into stored blocks and gives their bytes to `emit`, in order.
///
/// # Errors
/// Those of `emit`.
pub(super) fn store<E>(raw: &[u8], mut emit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    for block in raw.chunks(STORED_PAYLOAD_MAX) {
        emit(&stored_header(block.len() as u16, false))?;
        emit(block)?;
    }
    Ok(())
}

/// Takes the payload out of stored blocks that together hold `raw` bytes. A
/// single block is a slice of the input, not a copy.
///
/// # Errors
/// When the bytes are anything but whole stored blocks of `raw` bytes, none of
/// them the last of the stream.
pub(super) fn unstore(packed: &Bytes, raw: usize) -> Result<Bytes, ArchiveError> {
    let wrong = |why: &str| ArchiveError::corrupt("stored chunk", why);
    if packed.len() != stored_len(raw) {
        return Err(wrong("its length does not fit its payload"));
    }
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < packed.len() {
        let header = packed.get(at..at + STORED_HEADER_BYTES).ok_or_else(|| wrong("cut short"))?;
        let len = usize::from(u16::from_le_bytes([header[1], header[2]]));
        if header != stored_header(len as u16, false) || len == 0 {
            return Err(wrong("a block header is not one"));
        }
        at += STORED_HEADER_BYTES;
        if at + len > packed.len() {
            return Err(wrong("a block is longer than the chunk"));
        }
        blocks.push(packed.slice(at..at + len));
        at += len;
    }
    if let [only] = blocks.as_slice() {
        return Ok(only.clone());
    }
    Ok(Bytes::from(blocks.concat()))
}

/// Zero bytes that follow a payload of `size` bytes.
pub(super) const fn padding(size: u64) -> usize {
    // The remainder is below 512.
    ((TAR_BLOCK as u64 - size % TAR_BLOCK as u64) % TAR_BLOCK as u64) as usize
}

/// The header of the tar entry `name` of `size` bytes.
///
/// `name` is at most [`TAR_NAME_MAX`] bytes and `size` below 8 GiB: names are
/// made in [`super::names`], and the largest file is a log of less than 2 GiB.
pub(super) fn tar_header(name: &str, size: u64) -> [u8; TAR_BLOCK] {
    debug_assert!(name.len() <= TAR_NAME_MAX && size < 8 << 30);
    let mut header = [0; TAR_BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644");
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(329, b"0000000");
    put(337, b"0000000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The gzip trailer.
pub(super) fn gzip_trailer(crc32: u32, raw_len: u64) -> [u8; GZIP_TRAILER_BYTES] {
    let mut trailer = [0; GZIP_TRAILER_BYTES];
    trailer[..4].copy_from_slice(&crc32.to_le_bytes());
    // RFC 1952 keeps the low 32 bits only.
    trailer[4..].copy_from_slice(&(raw_len as u32).to_le_bytes());
    trailer
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn stored(raw: &[u8]) -> Bytes {
        let mut out = Vec::new();
        let _: Result<(), Infallible> = store(raw, |piece| {
            out.extend_from_slice(piece);
            Ok(())
        });
        Bytes::from(out)
    }

    #[test]
    fn a_tar_header_is_the_one_the_tar_crate_writes() {
        for (name, size) in [("metadata.json", 2048), (".tierd/footer", 512), ("a.log", 1 << 31)] {
            let mut header = tar::Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(size);
            header.set_mtime(0);
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
            header.set_cksum();
            let ours = tar_header(name, size);
            assert_eq!(tar::Header::from_byte_slice(&ours).cksum().unwrap(), {
                let sum: u32 = ours.iter().map(|byte| u32::from(*byte)).sum();
                let field: u32 = ours[148..156].iter().map(|byte| u32::from(*byte)).sum();
                sum - field + 8 * 32
            });
            let read = tar::Header::from_byte_slice(&ours);
            assert_eq!(read.path().unwrap(), header.path().unwrap());
            assert_eq!(read.size().unwrap(), size);
            assert_eq!((read.uid().unwrap(), read.gid().unwrap()), (0, 0));
            assert_eq!((read.mode().unwrap(), read.mtime().unwrap()), (0o644, 0));
            assert!(read.as_ustar().is_some() && read.entry_type().is_file());
        }
    }

    #[test]
    fn payloads_are_padded_to_whole_blocks() {
        assert_eq!(padding(0), 0);
        assert_eq!(padding(1), 511);
        assert_eq!(padding(512), 0);
        assert_eq!(padding(513), 511);
    }

    #[test]
    fn one_stored_block_is_not_copied() {
        let packed = stored(b"payload");
        let raw = unstore(&packed, 7).unwrap();
        assert_eq!(raw.as_ptr(), packed[5..].as_ptr());
    }

    proptest! {
        #[test]
        fn stored_blocks_give_their_payload_back(len in 1usize..200_000, fill in any::<u8>()) {
            let raw = vec![fill; len];
            let packed = stored(&raw);
            prop_assert_eq!(packed.len(), stored_len(len));
            prop_assert_eq!(unstore(&packed, len).unwrap(), raw);
            prop_assert!(unstore(&packed, len + 1).is_err());
            prop_assert!(unstore(&packed.slice(..packed.len() - 1), len).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), raw in 0usize..80) {
            let _ = unstore(&Bytes::from(bytes), raw);
        }
    }
}
