//! Owns the integers of a record: zigzag varints, and the byte strings that
//! they measure.
//!
//! Source: Protocol Buffers, "Base 128 Varints" and "Signed Integers".
//!
//! ```text
//!  value   0  -1   1  -2 …   ->  zigzag  0   1   2   3 …
//!  zigzag, 7 bits a byte, least first; bit 7 = another byte follows
//!  varint: 32 bits, at most 5 bytes | varlong: 64 bits, at most 10
//! ```
//!
//! A value that takes more bytes than it needs is read; one that overflows is not.

use super::batch::BatchError;
use super::entries::HeaderRef;

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    #[inline]
    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, BatchError> {
        let Some((byte, rest)) = self.0.split_first() else {
            return Err(BatchError::Truncated { field });
        };
        self.0 = rest;
        Ok(*byte)
    }

    #[inline]
    pub(super) fn slice(
        &mut self,
        length: i32,
        field: &'static str,
    ) -> Result<&'a [u8], BatchError> {
        let Ok(length) = usize::try_from(length) else {
            return Err(invalid(field, length.to_string()));
        };
        let Some((slice, rest)) = self.0.split_at_checked(length) else {
            return Err(BatchError::Truncated { field });
        };
        self.0 = rest;
        Ok(slice)
    }

    #[inline]
    pub(super) fn nullable(&mut self, field: &'static str) -> Result<Option<&'a [u8]>, BatchError> {
        match self.varint(field)? {
            -1 => Ok(None),
            length => self.slice(length, field).map(Some),
        }
    }

    #[inline]
    pub(super) fn header(&mut self) -> Result<HeaderRef<'a>, BatchError> {
        let length = self.varint("header name length")?;
        let name = self.slice(length, "header name length")?;
        Ok((name, self.nullable("header value length")?))
    }

    #[inline]
    pub(super) fn varint(&mut self, field: &'static str) -> Result<i32, BatchError> {
        let raw = self.unsigned(field)?;
        let Ok(raw) = u32::try_from(raw) else {
            return Err(invalid(field, "varint is beyond 32 bits".to_owned()));
        };
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    #[inline]
    pub(super) fn varlong(&mut self, field: &'static str) -> Result<i64, BatchError> {
        let raw = self.unsigned(field)?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    // Most varints of a record take one byte: no loop, no error to carry.
    #[inline]
    fn unsigned(&mut self, field: &'static str) -> Result<u64, BatchError> {
        match self.0.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.0 = rest;
                Ok(u64::from(byte))
            }
            _ => self.longer(field),
        }
    }

    fn longer(&mut self, field: &'static str) -> Result<u64, BatchError> {
        let mut sum = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            sum |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(sum);
            }
        }
        Err(invalid(field, "varint is beyond 64 bits".to_owned()))
    }
}

fn invalid(field: &'static str, why: String) -> BatchError {
    BatchError::Invalid { field, why }
}

pub(super) fn len_i64(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Bytes of `value` as a varint; the same for a varlong of the same value.
pub(super) fn varint_len(value: i64) -> usize {
    // 7 bits a byte; zero still takes one.
    (64 - (zigzag(value) | 1).leading_zeros()).div_ceil(7) as usize
}

pub(super) fn put(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

pub(super) fn put_len(out: &mut Vec<u8>, len: usize) {
    put(out, len_i64(len));
}

pub(super) fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put(out, -1),
        Some(bytes) => {
            put_len(out, bytes.len());
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_at_the_borders_take_the_bytes_they_take_elsewhere() {
        let bytes = |value| {
            let mut out = Vec::new();
            put(&mut out, value);
            out
        };
        assert_eq!(bytes(0), [0]);
        assert_eq!(bytes(-1), [1]);
        assert_eq!(bytes(63), [0x7e]);
        assert_eq!(bytes(64), [0x80, 0x01]);
        assert_eq!(bytes(i64::from(i32::MAX)), [0xfe, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(bytes(i64::MIN), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    }

    #[test]
    fn a_value_that_overflows_or_never_ends_is_refused() {
        assert!(Input(&[0x80, 0x80, 0x80, 0x80, 0x10]).varint("x").is_err());
        assert!(Input(&[0xff; 11]).varlong("x").is_err());
        let tenth = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02];
        assert!(Input(&tenth).varlong("x").is_err());
        assert_eq!(Input(&[0x80]).varint("x"), Err(BatchError::Truncated { field: "x" }));
        assert_eq!(Input(&[0x82, 0x80, 0x00]).varint("x"), Ok(1));
    }

    proptest! {
        #[test]
        fn a_varint_is_as_long_as_announced_and_reads_back(value: i64) {
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(Input(&out).varlong("x").unwrap(), value);
            let narrow = i32::try_from(value);
            prop_assert_eq!(Input(&out).varint("x").ok(), narrow.ok());
        }

        #[test]
        fn a_narrow_varint_reads_back(value: i32) {
            let mut out = Vec::new();
            put(&mut out, i64::from(value));
            prop_assert_eq!(Input(&out).varint("x").unwrap(), value);
            prop_assert_eq!(out.len(), varint_len(i64::from(value)));
        }
    }
}
