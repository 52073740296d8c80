//! Owns the footer: 512 bytes at a constant distance from the end of the object,
//! for readers that have no manifest.
//!
//! ```text
//!  0            8         10         11     12       16       20     24       32       40       56      496
//!  | "TIERDFTR" | version | encoding | zero | length | length | zero | place  | length | BLAKE3 | zeros | BLAKE3
//!  |            | u16     | u8       | u8   | packed | raw    | u32  | u64    | of the | -128   |       | -128 of
//!  |            |         |  `------- of the table of contents ------------' | object | of it  |       | 0..496
//!
//!  little-endian; behind it lie 1024 zeros that end the tar stream and 8 bytes of gzip trailer
//! ```

use std::ops::Range;

use bytes::{Buf, BufMut};

use super::FORMAT_VERSION;
use super::chunk::{Encoding, digest128};
use super::error::{ArchiveError, check_version, cut_short};
use super::layout::{GZIP_TRAILER_BYTES, TAR_END_BYTES};
use super::toc::TocPlace;

/// Bytes of the footer: one tar block, so no padding follows.
pub const FOOTER_BYTES: usize = 512;
/// From the first byte of the footer to the end of the object.
pub const FOOTER_DISTANCE: u64 = (FOOTER_BYTES + TAR_END_BYTES + GZIP_TRAILER_BYTES) as u64;

const PART: &str = "the footer";
const MAGIC: &[u8; 8] = b"TIERDFTR";
/// Bytes that the footer's own digest covers.
const DIGESTED: usize = FOOTER_BYTES - 16;

/// What the footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the table of contents lies.
    pub toc: TocPlace,
    /// Length of the whole object, in bytes.
    pub object_length: u64,
}

impl Footer {
    /// The bytes to read from an object of `object_length` bytes, or `None` when
    /// it is too short to be an archive.
    #[must_use]
    pub fn range(object_length: u64) -> Option<Range<u64>> {
        let start = object_length.checked_sub(FOOTER_DISTANCE)?;
        Some(start..start + FOOTER_BYTES as u64)
    }

    /// Writes the 512 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.put_slice(MAGIC);
        bytes.put_u16_le(FORMAT_VERSION);
        bytes.put_u8(self.toc.encoding.code());
        bytes.put_u8(0);
        bytes.put_u32_le(self.toc.length);
        bytes.put_u32_le(self.toc.raw);
        bytes.put_u32_le(0);
        bytes.put_u64_le(self.toc.offset);
        bytes.put_u64_le(self.object_length);
        bytes.put_slice(&self.toc.digest);
        bytes.resize(DIGESTED, 0);
        let mut footer = [0; FOOTER_BYTES];
        footer[..DIGESTED].copy_from_slice(&bytes);
        footer[DIGESTED..].copy_from_slice(&digest128(&bytes));
        footer
    }

    /// Reads the footer of an object of `object_length` bytes.
    ///
    /// # Errors
    /// Names what is wrong, or which later version wrote it.
    pub fn decode(bytes: &[u8], object_length: u64) -> Result<Self, ArchiveError> {
        let wrong = |why: &str| Err(ArchiveError::corrupt(PART, why));
        let cut = cut_short(PART);
        let Some((mut fields, digest)) = bytes.split_at_checked(DIGESTED) else {
            return wrong("cut short");
        };
        let mut magic = [0; 8];
        fields.try_copy_to_slice(&mut magic).map_err(&cut)?;
        if &magic != MAGIC {
            return wrong("it does not begin with TIERDFTR: not an archive of tierd, or cut short");
        }
        if digest128(&bytes[..DIGESTED]) != digest {
            return wrong("its BLAKE3 digest differs");
        }
        check_version(PART, fields.try_get_u16_le().map_err(&cut)?)?;
        let encoding = Encoding::from_code(PART, fields.try_get_u8().map_err(&cut)?)?;
        let zero = fields.try_get_u8().map_err(&cut)?;
        let length = fields.try_get_u32_le().map_err(&cut)?;
        let raw = fields.try_get_u32_le().map_err(&cut)?;
        let zeros = fields.try_get_u32_le().map_err(&cut)?;
        let offset = fields.try_get_u64_le().map_err(&cut)?;
        let stated_length = fields.try_get_u64_le().map_err(&cut)?;
        let mut digest = [0; 16];
        fields.try_copy_to_slice(&mut digest).map_err(&cut)?;
        if zero != 0 || zeros != 0 || fields.iter().any(|byte| *byte != 0) {
            return wrong("reserved bytes are not zero");
        }
        if stated_length != object_length {
            return Err(ArchiveError::corrupt(
                PART,
                format!(
                    "the object has {object_length} bytes, it was written with {stated_length}"
                ),
            ));
        }
        let toc = TocPlace { offset, length, raw, encoding, digest };
        toc.check(PART, object_length.saturating_sub(FOOTER_DISTANCE))?;
        Ok(Self { toc, object_length })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::archive::chunk::Digest128;

    fn any_footer() -> impl Strategy<Value = Footer> {
        (1u32..1 << 20, 1u32..1 << 20, 0u64..1 << 40, any::<bool>(), any::<Digest128>()).prop_map(
            |(length, more, offset, stored, digest)| Footer {
                toc: TocPlace {
                    offset,
                    length,
                    raw: length + more,
                    encoding: if stored { Encoding::Stored } else { Encoding::Deflate },
                    digest,
                },
                object_length: offset + u64::from(length) + FOOTER_DISTANCE + 5,
            },
        )
    }

    proptest! {
        #[test]
        fn a_footer_survives_encoding_and_decoding(footer in any_footer()) {
            let bytes = footer.encode();
            prop_assert_eq!(Footer::decode(&bytes, footer.object_length).unwrap(), footer);
            prop_assert!(Footer::decode(&bytes, footer.object_length + 1).is_err());
        }

        #[test]
        fn every_cut_and_every_flip_is_refused(footer in any_footer(), at in 0..FOOTER_BYTES, bit in 0u8..8) {
            let mut bytes = footer.encode();
            prop_assert!(Footer::decode(&bytes[..at], footer.object_length).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(Footer::decode(&bytes, footer.object_length).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), len in any::<u64>()) {
            let _ = Footer::decode(&bytes, len);
        }
    }

    /// A footer with fields changed by `edit` and a digest that fits them.
    fn forged(edit: impl FnOnce(&mut [u8])) -> [u8; FOOTER_BYTES] {
        let toc = TocPlace {
            offset: 3000,
            length: 10,
            raw: 10,
            encoding: Encoding::Deflate,
            digest: [7; 16],
        };
        let mut bytes = Footer { toc, object_length: 10_000 }.encode();
        edit(&mut bytes[..DIGESTED]);
        let digest = digest128(&bytes[..DIGESTED]);
        bytes[DIGESTED..].copy_from_slice(&digest);
        bytes
    }

    #[test]
    fn a_future_version_is_refused_by_name() {
        let error = Footer::decode(&forged(|bytes| bytes[8] = 2), 10_000).unwrap_err().to_string();
        assert!(
            error.contains(
                "archive format version 2 is newer than this tierd understands (1); upgrade tierd"
            ),
            "{error}"
        );
    }

    #[test]
    fn lying_places_are_refused_though_the_digest_fits() {
        Footer::decode(&forged(|_| {}), 10_000).unwrap();
        let lies: [fn(&mut [u8]); 7] = [
            |bytes| bytes[12..16].copy_from_slice(&0u32.to_le_bytes()),
            |bytes| bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes()),
            |bytes| bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes()),
            |bytes| bytes[20] = 1,
            |bytes| bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes()),
            |bytes| bytes[24..32].copy_from_slice(&9_995u64.to_le_bytes()),
            |bytes| bytes[100] = 1,
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            assert!(Footer::decode(&forged(lie), 10_000).is_err(), "lie {number}");
        }
    }

    #[test]
    fn an_object_too_short_for_a_footer_has_none() {
        assert_eq!(Footer::range(FOOTER_DISTANCE - 1), None);
        assert_eq!(Footer::range(FOOTER_DISTANCE), Some(0..512));
    }
}
