//! Owns a manifest: the root that says which archives and gaps a partition has,
//! at most 32 KiB, immutable, under a number of its own.
//!
//! ```text
//!   0   8  "TIERDMAN"
//!   8   2  version, 1
//!  10   8  number, from 1
//!  18   4  incarnation
//!  22   4  partition
//!  26   1  length of the topic, t
//!  27   t  topic
//!      16  nonce, new for every attempt to commit
//!       8  writer's epoch: rises when another process commits than before
//!       1  length of the writer's id, w
//!       w  writer's id
//!       8  time of commit, ms since 1970, for people
//!      32  BLAKE3 of the manifest before; zeros for number 1, and for the first of a
//!          block where the partition began anew in it (`remains`)
//!       1  flags: 1 the broker gave a topic id, 2 it ends its block (`newest`)
//!      16  topic id, else zeros
//!       8  log start
//!       8  archived through: end of what is tiled from the log start
//!       1  open transactions: 0 they follow, 1 they are a side object
//!          0:  2  number of transactions
//!             16  each: producer id, first offset
//!          1:  8  manifest the side object was made for
//!              4  number of transactions
//!             16  digest of the side object, its last 16 bytes
//!       2  number of entries, at most 128
//!       .  entries
//!       2  number of gaps
//!       .  gaps
//!       2  number of references to pages
//!       .  references, one height, to everything before the entries
//!      16  BLAKE3-128 of the rest
//! ```
//!
//! The nonce keeps two writers from making equal bytes: who reads back what he
//! meant to create knows that it is his.

use bytes::{BufMut, Bytes};

use crate::archive::OpenTransaction;
use crate::record::{TopicName, TopicPartition};
use crate::store::{ClusterName, PartitionKey, WriterId};

use super::codec::{self, FormatError, Reader};
use super::entry::Items;
use super::newest::{BLOCK, block_of};
use super::page::{PageRef, Totals, put_identity};
use super::side::SideRef;
use super::tiling::{self, Broken};

/// Largest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 32 << 10;

/// Most entries beside the pages.
pub const INLINE_ENTRIES_MAX: usize = 128;

/// Most gaps beside the pages.
pub const INLINE_GAPS_MAX: usize = 64;

/// Most open transactions in the manifest itself.
pub const INLINE_OPEN_MAX: usize = 128;

/// Most references to pages.
pub const ROOT_REFS_MAX: usize = 32;

/// Version of manifests written here.
pub const MANIFEST_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"TIERDMAN";
const OPEN_BYTES: usize = 16;
/// Flags.
const HAS_TOPIC_ID: u8 = 1;
const ENDS_BLOCK: u8 = 2;

/// Transactions open at the end of what is archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Open {
    /// All of them.
    Inline(Vec<OpenTransaction>),
    /// Where they are.
    Side(SideRef),
}

/// A manifest. See the module for what the fields mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The partition. Its cluster is not in the bytes.
    pub of: PartitionKey,
    /// Number, from 1.
    pub number: u64,
    /// New for every attempt to commit.
    pub nonce: [u8; 16],
    /// Rises when another process commits than before.
    pub writer_epoch: u64,
    /// Who committed.
    pub writer: WriterId,
    /// When, in milliseconds since 1970, by the writer's clock.
    pub committed_at_ms: i64,
    /// BLAKE3 of the manifest before, zeros for the first and where the partition
    /// began anew.
    pub predecessor: [u8; 32],
    /// The broker's id of the topic, once it gave one.
    pub topic_id: Option<[u8; 16]>,
    /// First offset of the log.
    pub log_start: i64,
    /// First offset that is in no archive and no declared gap.
    pub archived_through: i64,
    /// Transactions open at `archived_through`.
    pub open: Open,
    /// Whether it is the last of its block, before all its numbers are taken.
    pub ends_block: bool,
    /// The newest entries and gaps.
    pub recent: Items,
    /// Where all older ones are.
    pub pages: Vec<PageRef>,
}

impl Manifest {
    /// Encodes the manifest.
    ///
    /// # Errors
    /// When it would be larger than [`MANIFEST_BYTES_MAX`], which the tree does
    /// not let happen.
    pub(super) fn encode(&self) -> Result<Bytes, FormatError> {
        let mut out = codec::begin(MAGIC, MANIFEST_VERSION);
        out.put_u64_le(self.number);
        put_identity(&mut out, &self.of);
        out.put_slice(&self.nonce);
        out.put_u64_le(self.writer_epoch);
        codec::put_text(&mut out, self.writer.as_str());
        out.put_i64_le(self.committed_at_ms);
        out.put_slice(&self.predecessor);
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let has_id = flag(self.topic_id.is_some(), HAS_TOPIC_ID);
        out.put_u8(has_id | flag(self.ends_block, ENDS_BLOCK));
        out.put_slice(&self.topic_id.unwrap_or_default());
        out.put_i64_le(self.log_start);
        out.put_i64_le(self.archived_through);
        match &self.open {
            Open::Inline(open) => {
                out.put_u8(0);
                out.put_u16_le(open.len() as u16);
                for transaction in open {
                    out.put_i64_le(transaction.producer_id);
                    out.put_i64_le(transaction.first_offset);
                }
            }
            Open::Side(side) => {
                out.put_u8(1);
                side.encode(&mut out);
            }
        }
        self.recent.encode(&mut out);
        PageRef::encode_all(&self.pages, &mut out);
        let (bytes, _) = codec::seal(out);
        if bytes.len() > MANIFEST_BYTES_MAX {
            let why = format!("{} bytes, at most {MANIFEST_BYTES_MAX}", bytes.len());
            return Err(FormatError::invalid("the manifest", why));
        }
        Ok(bytes)
    }

    /// Decodes a manifest of any partition of `cluster`, and checks that what it
    /// says fits together: order, tiling, numbers.
    ///
    /// # Errors
    /// When the bytes are not a manifest that could have been committed.
    pub fn decode(bytes: &[u8], cluster: &ClusterName) -> Result<Self, FormatError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            let why = format!("{} bytes, at most {MANIFEST_BYTES_MAX}", bytes.len());
            return Err(FormatError::invalid("the manifest", why));
        }
        let mut reader = Reader::open(bytes, MAGIC, "TIERDMAN", MANIFEST_VERSION)?;
        let number = reader.u64("the number")?;
        let of = identity(&mut reader, cluster)?;
        let nonce = reader.array("the nonce")?;
        let writer_epoch = reader.u64("the writer's epoch")?;
        let writer = WriterId::new(reader.text("the writer")?)
            .map_err(|error| FormatError::invalid("the writer", error.to_string()))?;
        let committed_at_ms = reader.i64("the time of commit")?;
        let predecessor = reader.array("the predecessor")?;
        let flags = reader.u8("the flags")?;
        if flags & !(HAS_TOPIC_ID | ENDS_BLOCK) != 0 {
            return Err(FormatError::invalid("the flags", format!("{flags:#x}")));
        }
        let ends_block = flags & ENDS_BLOCK != 0;
        let id: [u8; 16] = reader.array("the topic id")?;
        let topic_id = match (flags & HAS_TOPIC_ID, id) {
            (0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) => None,
            (HAS_TOPIC_ID, id) => Some(id),
            _ => return Err(FormatError::invalid("the topic id", "neither absent nor present")),
        };
        let log_start = reader.i64("the log start")?;
        let archived_through = reader.i64("archived through")?;
        let open = match reader.u8("the open transactions")? {
            0 => {
                let count = reader.count(INLINE_OPEN_MAX, OPEN_BYTES, "the open transactions")?;
                Open::Inline(
                    (0..count).map(|_| transaction(&mut reader)).collect::<Result<_, _>>()?,
                )
            }
            1 => Open::Side(SideRef::decode(&mut reader)?),
            other => {
                return Err(FormatError::invalid("the open transactions", format!("kind {other}")));
            }
        };
        let recent = Items::decode(&mut reader, &of, INLINE_ENTRIES_MAX, INLINE_GAPS_MAX)?;
        let pages = PageRef::decode_all(&mut reader, ROOT_REFS_MAX)?;
        reader.finish()?;
        let manifest = Self {
            of,
            number,
            nonce,
            writer_epoch,
            writer,
            committed_at_ms,
            predecessor,
            topic_id,
            log_start,
            archived_through,
            open,
            ends_block,
            recent,
            pages,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The number of the manifest that follows.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        if self.ends_block { (block_of(self.number) + 1) * BLOCK } else { self.number + 1 }
    }

    /// Sums over everything it lists.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals::of_items(&self.recent).plus(Totals::of_refs(&self.pages))
    }

    /// The end of what is tiled, or how the tiling is broken. Trusts the pages
    /// for what lies below them; each was checked when it was made.
    pub(super) fn tiled_to(&self) -> Result<i64, Broken> {
        let mut tiles: Vec<_> = self.pages.iter().filter_map(PageRef::tile).collect();
        tiles.extend(self.recent.tiles());
        tiling::end(&tiles, self.log_start)
    }

    fn check(&self) -> Result<(), FormatError> {
        let refuse = |what, why: &str| Err(FormatError::invalid(what, why));
        if self.number == 0 {
            return refuse("the number", "manifests are numbered from 1");
        }
        let begins = self.predecessor == [0; 32];
        if (self.number == 1) != begins && !(begins && self.number.is_multiple_of(BLOCK)) {
            return refuse("the predecessor", "only the first manifest has none");
        }
        if self.writer_epoch == 0 || self.writer_epoch > self.number {
            return refuse(
                "the writer's epoch",
                "it begins at 1 and rises at most with the number",
            );
        }
        if self.log_start < 0 {
            return refuse("the log start", "offsets begin at 0");
        }
        let made_for = self.recent.entries.iter().map(|entry| entry.built_for);
        let mut made_for = made_for.chain(self.pages.iter().map(|page| page.built_for));
        if made_for.any(|number| number > self.number) {
            return refuse("an entry", "it was made for a later manifest");
        }
        if let Open::Side(side) = &self.open
            && side.built_for > self.number
        {
            return refuse("the open transactions", "they were made for a later manifest");
        }
        match self.tiled_to() {
            Ok(end) if end == self.archived_through => Ok(()),
            Ok(end) => Err(FormatError::invalid(
                "archived through",
                format!("it says {}, what it lists ends at {end}", self.archived_through),
            )),
            Err(Broken::Overlap(a, b)) => {
                Err(FormatError::invalid("the entries", format!("{a} and {b} overlap")))
            }
            Err(Broken::Hole(hole)) => {
                Err(FormatError::invalid("the entries", format!("{hole} is in none of them")))
            }
        }
    }
}

/// Whose manifest it is.
fn identity(reader: &mut Reader<'_>, cluster: &ClusterName) -> Result<PartitionKey, FormatError> {
    let incarnation = reader.u32("the incarnation")?;
    let partition = reader.u32("the partition")?;
    let topic = TopicName::new(reader.text("the topic")?)
        .map_err(|error| FormatError::invalid("the topic", error.to_string()))?;
    let tp = i32::try_from(partition)
        .ok()
        .and_then(|partition| TopicPartition::new(topic, partition).ok())
        .ok_or_else(|| FormatError::invalid("the partition", format!("{partition}")))?;
    Ok(PartitionKey { cluster: cluster.clone(), tp, incarnation })
}

pub(super) fn transaction(reader: &mut Reader<'_>) -> Result<OpenTransaction, FormatError> {
    Ok(OpenTransaction {
        producer_id: reader.i64("an open transaction")?,
        first_offset: reader.i64("an open transaction")?,
    })
}

#[cfg(test)]
mod tests;
