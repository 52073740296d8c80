//! Owns what all objects of the catalog share: little-endian fields, a magic, a
//! version, and a digest at the end.
//!
//! ```text
//!  0   8  magic
//!  8   2  version
//! 10   n  body
//!     16  BLAKE3-128 of everything before
//! ```
//!
//! A decoder consumes exactly its bytes, allocates no more than they can hold,
//! and names what it refuses. The version is read before the digest, so that a
//! future format is refused by name whatever it does with its end.

use bytes::{Buf, BufMut, Bytes};

use crate::record::OffsetRange;

/// Bytes before the body.
pub(super) const HEADER_BYTES: usize = 10;

/// Bytes of the digest at the end.
pub(super) const TRAILER_BYTES: usize = 16;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They end too early.
    #[error("it ends inside {0}")]
    Truncated(&'static str),
    /// They do not begin like such an object.
    #[error("it does not begin with {0}")]
    Magic(&'static str),
    /// They were written by a later tierd.
    #[error(
        "its format version is {found}, this tierd reads versions up to {known}; upgrade tierd"
    )]
    Future {
        /// The version of the bytes.
        found: u16,
        /// The latest version known here.
        known: u16,
    },
    /// They changed since they were written.
    #[error("its digest does not match its bytes")]
    Digest,
    /// A field cannot have the value it has.
    #[error("{what} is wrong: {why}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The rule that is broken.
        why: String,
    },
    /// Bytes follow the last field.
    #[error("{0} bytes follow its last field")]
    Surplus(usize),
}

impl FormatError {
    pub(super) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}

/// BLAKE3 cut to 16 bytes.
pub(super) fn digest(bytes: &[u8]) -> [u8; TRAILER_BYTES] {
    let mut half = [0; TRAILER_BYTES];
    half.copy_from_slice(&blake3::hash(bytes).as_bytes()[..TRAILER_BYTES]);
    half
}

/// Begins an object.
pub(super) fn begin(magic: [u8; 8], version: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    bytes.put_slice(&magic);
    bytes.put_u16_le(version);
    bytes
}

/// Ends an object with its digest, which is returned too.
pub(super) fn seal(mut bytes: Vec<u8>) -> (Bytes, [u8; TRAILER_BYTES]) {
    let digest = digest(&bytes);
    bytes.put_slice(&digest);
    (bytes.into(), digest)
}

/// Writes a name of at most 249 bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= 249, "names are checked where they are made");
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

/// Reads fields, each named for the error.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

macro_rules! fields {
    ($($name:ident: $type:ty = $get:ident;)*) => {
        $(pub(super) fn $name(&mut self, what: &'static str) -> Result<$type, FormatError> {
            self.rest.$get().map_err(|_| FormatError::Truncated(what))
        })*
    };
}

impl<'a> Reader<'a> {
    /// Checks magic, version and digest, and stands at the body.
    pub(super) fn open(
        bytes: &'a [u8],
        magic: [u8; 8],
        name: &'static str,
        version: u16,
    ) -> Result<Self, FormatError> {
        let mut reader = Self { rest: bytes };
        if reader.array("the magic")? != magic {
            return Err(FormatError::Magic(name));
        }
        let found = reader.u16("the version")?;
        if found > version {
            return Err(FormatError::Future { found, known: version });
        }
        if found == 0 {
            return Err(FormatError::invalid("the version", "versions begin at 1"));
        }
        let Some(split) = bytes.len().checked_sub(TRAILER_BYTES).filter(|at| *at >= HEADER_BYTES)
        else {
            return Err(FormatError::Truncated("the digest"));
        };
        let (body, trailer) = bytes.split_at(split);
        if digest(body) != trailer {
            return Err(FormatError::Digest);
        }
        Ok(Self { rest: body.get(HEADER_BYTES..).unwrap_or_default() })
    }

    fields! {
        u8: u8 = try_get_u8;
        u16: u16 = try_get_u16_le;
        u32: u32 = try_get_u32_le;
        u64: u64 = try_get_u64_le;
        i64: i64 = try_get_i64_le;
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        self.rest.try_copy_to_slice(&mut array).map_err(|_| FormatError::Truncated(what))?;
        Ok(array)
    }

    pub(super) fn bytes(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(FormatError::Truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, FormatError> {
        let len = usize::from(self.u8(what)?);
        std::str::from_utf8(self.bytes(len, what)?)
            .map_err(|_| FormatError::invalid(what, "it is not UTF-8"))
    }

    pub(super) fn range(&mut self, what: &'static str) -> Result<OffsetRange, FormatError> {
        let (base, last) = (self.i64(what)?, self.i64(what)?);
        OffsetRange::new(base, last)
            .ok_or_else(|| FormatError::invalid(what, format!("{base}..{last} is no range")))
    }

    /// A count of items of at least `least` bytes each: more than the rest can
    /// hold, or than `max`, is refused before anything is allocated.
    pub(super) fn count(
        &mut self,
        max: usize,
        least: usize,
        what: &'static str,
    ) -> Result<usize, FormatError> {
        let count = self.u16(what)? as usize;
        if count > max {
            return Err(FormatError::invalid(what, format!("{count} of them, at most {max}")));
        }
        if count * least > self.rest.len() {
            return Err(FormatError::Truncated(what));
        }
        Ok(count)
    }

    /// That nothing is left.
    pub(super) fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FormatError::Surplus(self.rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"TIERDXYZ";

    fn sealed(version: u16) -> Bytes {
        let mut bytes = begin(MAGIC, version);
        put_text(&mut bytes, "日本");
        bytes.put_u16_le(3);
        seal(bytes).0
    }

    #[test]
    fn fields_come_back_and_nothing_may_be_left() {
        let bytes = sealed(1);
        let mut reader = Reader::open(&bytes, MAGIC, "TIERDXYZ", 1).unwrap();
        assert_eq!(reader.text("name").unwrap(), "日本");
        assert_eq!(reader.u16("number").unwrap(), 3);
        assert_eq!(reader.u8("more").unwrap_err(), FormatError::Truncated("more"));
        reader.finish().unwrap();
        let reader = Reader::open(&bytes, MAGIC, "TIERDXYZ", 1).unwrap();
        assert_eq!(reader.finish().unwrap_err(), FormatError::Surplus(9));
    }

    #[test]
    fn a_future_version_is_refused_by_name_before_its_digest_is_read() {
        let mut bytes = sealed(2).to_vec();
        bytes.pop();
        let error = Reader::open(&bytes, MAGIC, "TIERDXYZ", 1).err().unwrap();
        assert_eq!(error, FormatError::Future { found: 2, known: 1 });
        assert!(error.to_string().contains("upgrade tierd"));
        assert!(Reader::open(&sealed(0), MAGIC, "TIERDXYZ", 1).is_err());
    }

    #[test]
    fn a_count_that_cannot_be_true_is_refused_before_allocating() {
        let bytes = [0xFF, 0xFF, 1, 2, 3];
        let mut reader = Reader { rest: &bytes };
        assert!(matches!(reader.count(10, 1, "items"), Err(FormatError::Invalid { .. })));
        let mut reader = Reader { rest: &bytes };
        assert_eq!(reader.count(70_000, 1, "items"), Err(FormatError::Truncated("items")));
    }
}
