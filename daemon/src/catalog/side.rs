//! Owns the side object of open transactions, for the rare manifest that has
//! more of them than fit.
//!
//! ```text
//! side object                          reference to one
//!  0   8  "TIERDSID"                    0   8  manifest it was made for
//!  8   2  version, 1                    8   4  number of transactions
//! 10   1  kind: 1 open transactions    12  16  digest, its last 16 bytes
//! 11   8  manifest it was made for
//! 19   4  incarnation
//! 23   4  partition
//! 27   1  length of the topic, n
//! 28   n  topic
//!      4  number of transactions
//!     16  each: producer id, first offset
//!     16  BLAKE3-128 of the rest
//! ```

use bytes::{BufMut, Bytes};

use crate::archive::OpenTransaction;
use crate::store::{ObjectKey, PartitionKey, SideKind};

use super::codec::{self, FormatError, Reader};
use super::manifest::transaction;
use super::page::{check_identity, put_identity};

/// Most open transactions of a partition: 16 MiB of them. A broker holds as many
/// producers in memory, so it does not come near.
pub const OPEN_MAX: usize = 1 << 20;

/// Largest side object, in bytes.
pub(super) const SIDE_BYTES_MAX: usize = (OPEN_MAX + 32) * 16;

const MAGIC: [u8; 8] = *b"TIERDSID";
const VERSION: u16 = 1;
const KIND_OPEN: u8 = 1;

/// A reference to a side object of open transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideRef {
    /// The manifest it was made for.
    pub built_for: u64,
    /// Transactions in it.
    pub count: u32,
    /// Digest of the object.
    pub digest: [u8; 16],
}

impl SideRef {
    /// The name of the object.
    #[must_use]
    pub fn key(&self, of: &PartitionKey) -> ObjectKey {
        let (of, kind) = (of.clone(), SideKind::OpenTransactions);
        ObjectKey::Side { of, number: self.built_for, kind, digest: self.digest }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.built_for);
        out.put_u32_le(self.count);
        out.put_slice(&self.digest);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        const WHAT: &str = "the open transactions";
        let side = Self {
            built_for: reader.u64(WHAT)?,
            count: reader.u32(WHAT)?,
            digest: reader.array(WHAT)?,
        };
        if side.built_for == 0 || side.count as usize > OPEN_MAX {
            return Err(FormatError::invalid(WHAT, "no such side object can be"));
        }
        Ok(side)
    }
}

/// Encodes `open` for manifest `number`.
pub(super) fn make(of: &PartitionKey, number: u64, open: &[OpenTransaction]) -> (SideRef, Bytes) {
    let mut out = codec::begin(MAGIC, VERSION);
    out.put_u8(KIND_OPEN);
    out.put_u64_le(number);
    put_identity(&mut out, of);
    out.put_u32_le(open.len() as u32);
    for transaction in open {
        out.put_i64_le(transaction.producer_id);
        out.put_i64_le(transaction.first_offset);
    }
    let (bytes, digest) = codec::seal(out);
    (SideRef { built_for: number, count: open.len() as u32, digest }, bytes)
}

/// Decodes the object that `at` refers to.
pub(super) fn decode(
    bytes: &[u8],
    of: &PartitionKey,
    at: &SideRef,
) -> Result<Vec<OpenTransaction>, FormatError> {
    let mut reader = Reader::open(bytes, MAGIC, "TIERDSID", VERSION)?;
    if bytes[bytes.len() - codec::TRAILER_BYTES..] != at.digest {
        return Err(FormatError::Digest);
    }
    let kind = reader.u8("the kind")?;
    if kind != KIND_OPEN {
        return Err(FormatError::invalid("the kind", format!("{kind}")));
    }
    let number = reader.u64("the manifest's number")?;
    check_identity(&mut reader, of)?;
    let count = reader.u32("the transactions")?;
    if (number, count) != (at.built_for, at.count) {
        return Err(FormatError::invalid("the object", "its reference describes another one"));
    }
    let open = (0..count).map(|_| transaction(&mut reader)).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::testing::{assert_golden, partition};

    fn open(count: i64) -> Vec<OpenTransaction> {
        (0..count).map(|n| OpenTransaction { producer_id: n * 7, first_offset: n }).collect()
    }

    #[test]
    fn open_transactions_come_back_and_nothing_else_is_taken_for_them() {
        let of = partition();
        let (at, bytes) = make(&of, 5, &open(500));
        assert_eq!(decode(&bytes, &of, &at).unwrap(), open(500));
        assert_golden("side-v1-open-transactions", &make(&of, 5, &open(3)).1);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], &of, &at).is_err(), "cut at {cut}");
        }
        for flip in 0..bytes.len() {
            let mut bytes = bytes.to_vec();
            bytes[flip] ^= 1;
            assert!(decode(&bytes, &of, &at).is_err(), "flipped byte {flip}");
        }
        let (other, _) = make(&of, 5, &open(499));
        assert!(decode(&bytes, &of, &other).is_err());
        let other = PartitionKey { incarnation: 9, ..of };
        assert!(decode(&bytes, &other, &at).is_err());
    }
}
