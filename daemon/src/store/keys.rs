//! Owns the name of every object: [`ObjectKey`], to text and back.
//!
//! ```text
//! {cluster}/{topic}/{incarnation:010}/{partition:010}/manifest/{number:020}
//! {cluster}/{topic}/{incarnation:010}/{partition:010}/archive/{number:020}-{base:020}-{last:020}-{digest}.tar.gz
//! {cluster}/{topic}/{incarnation:010}/{partition:010}/page/{number:020}-{base:020}-{last:020}-{digest}.page
//! {cluster}/{topic}/{incarnation:010}/{partition:010}/side/{number:020}-{kind}-{digest}
//! {cluster}/{topic}/{incarnation:010}/{partition:010}/closed/{block:020}
//! {cluster}/{topic}/incarnations/{number:010}
//! {cluster}/writers/{writer}/probe/{nonce}
//! {cluster}/writers/{writer}/ledger/{topic}/{partition:010}
//! ```
//!
//! `{digest}` and `{nonce}` are 32 lower-case hex digits. `{number}` of an
//! archive, page or side object is that of the manifest it was made for: only
//! that manifest may be the first to reference it.
//!
//! Topics stay UTF-8; `/`, `\`, `%` and control characters become `%XX`. A topic
//! called like a folder that lies beside the topics ([`RESERVED`]) has its first
//! byte written as `%XX`. A new folder beside the topics must hold a character
//! no topic name may have, such as `=`.
//!
//! A name decodes only when encoding the result gives the same name again, so
//! that no two names mean one object.

use std::fmt;

use crate::record::{OffsetRange, TopicName, TopicPartition};

use super::names::{ClusterName, WriterId};

/// Folders beside the topics of a cluster.
pub const RESERVED: [&str; 1] = [WRITERS];

const WRITERS: &str = "writers";
const INCARNATIONS: &str = "incarnations";
const MANIFEST: &str = "manifest";
const ARCHIVE: &str = "archive";
const PAGE: &str = "page";
const SIDE: &str = "side";
const CLOSED: &str = "closed";
const PROBE: &str = "probe";
const LEDGER: &str = "ledger";
const ARCHIVE_SUFFIX: &str = ".tar.gz";
const PAGE_SUFFIX: &str = ".page";

/// A partition's folder: which cluster, topic, incarnation and partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The cluster the topic belongs to.
    pub cluster: ClusterName,
    /// Topic and partition.
    pub tp: TopicPartition,
    /// Which life of the topic's name, from 0.
    pub incarnation: u32,
}

/// What a side object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SideKind {
    /// The transactions open at the end of a manifest, when too many for its root.
    OpenTransactions,
}

impl SideKind {
    /// The word that stands in the object's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenTransactions => "open-transactions",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::OpenTransactions].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// The name of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// Manifest `number` of a partition, dense from 1.
    Manifest {
        /// The partition.
        of: PartitionKey,
        /// The manifest's number.
        number: u64,
    },
    /// An archive.
    Archive {
        /// The partition.
        of: PartitionKey,
        /// The manifest it was made for.
        number: u64,
        /// The offsets it holds.
        range: OffsetRange,
        /// First half of the BLAKE3 of the object.
        digest: [u8; 16],
    },
    /// A page of the tree of older entries.
    Page {
        /// The partition.
        of: PartitionKey,
        /// The manifest it was made for.
        number: u64,
        /// The offsets its entries and gaps reach over.
        range: OffsetRange,
        /// BLAKE3-128 of the page.
        digest: [u8; 16],
    },
    /// A list too long for the manifest.
    Side {
        /// The partition.
        of: PartitionKey,
        /// The manifest it was made for.
        number: u64,
        /// What it holds.
        kind: SideKind,
        /// BLAKE3-128 of the object.
        digest: [u8; 16],
    },
    /// The mark that manifests `1024 * block ..` of a partition may be deleted.
    Closed {
        /// The partition.
        of: PartitionKey,
        /// Manifest number divided by 1024.
        block: u64,
    },
    /// Incarnation `number` of a topic, dense from 0.
    Incarnation {
        /// The cluster.
        cluster: ClusterName,
        /// The topic.
        topic: TopicName,
        /// Which life of the topic's name.
        number: u32,
    },
    /// What a writer creates and removes to see whether the store can be trusted.
    Probe {
        /// The cluster.
        cluster: ClusterName,
        /// The writer.
        writer: WriterId,
        /// Unique per probe.
        nonce: [u8; 16],
    },
    /// What a writer remembers of a partition beyond its local disk.
    Ledger {
        /// The cluster.
        cluster: ClusterName,
        /// The writer.
        writer: WriterId,
        /// Topic and partition, whichever life it is in.
        tp: TopicPartition,
    },
}

/// A text that is not the name of an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of an object of tierd: {why}")]
pub struct KeyError {
    /// The text, shortened where it is long.
    pub name: String,
    /// The rule that is broken.
    pub why: &'static str,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{:010}/{:010}",
            self.cluster,
            Escaped(self.tp.topic()),
            self.incarnation,
            self.tp.partition()
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest { of, number } => write!(f, "{of}/{MANIFEST}/{number:020}"),
            Self::Archive { of, number, range, digest } => {
                let (base, last, hex) = (range.base(), range.last(), Hex(digest));
                write!(f, "{of}/{ARCHIVE}/{number:020}-{base:020}-{last:020}-{hex}{ARCHIVE_SUFFIX}")
            }
            Self::Page { of, number, range, digest } => {
                let (base, last, hex) = (range.base(), range.last(), Hex(digest));
                write!(f, "{of}/{PAGE}/{number:020}-{base:020}-{last:020}-{hex}{PAGE_SUFFIX}")
            }
            Self::Side { of, number, kind, digest } => {
                write!(f, "{of}/{SIDE}/{number:020}-{}-{}", kind.as_str(), Hex(digest))
            }
            Self::Closed { of, block } => write!(f, "{of}/{CLOSED}/{block:020}"),
            Self::Incarnation { cluster, topic, number } => {
                write!(f, "{}/{number:010}", incarnations_folder(cluster, topic))
            }
            Self::Probe { cluster, writer, nonce } => {
                write!(f, "{cluster}/{WRITERS}/{writer}/{PROBE}/{}", Hex(nonce))
            }
            Self::Ledger { cluster, writer, tp } => {
                let (topic, partition) = (Escaped(tp.topic()), tp.partition());
                write!(f, "{cluster}/{WRITERS}/{writer}/{LEDGER}/{topic}/{partition:010}")
            }
        }
    }
}

impl ObjectKey {
    /// Reads a name back, relative to the store's prefix.
    ///
    /// # Errors
    /// When no object of tierd is called so.
    pub fn decode(name: &str) -> Result<Self, KeyError> {
        let refuse = |why| KeyError { name: name.chars().take(400).collect(), why };
        let parts: Vec<&str> = name.splitn(7, '/').collect();
        let key = match parts.as_slice() {
            [cluster, WRITERS, writer, PROBE, nonce] => Some(Self::Probe {
                cluster: ClusterName::new(cluster).map_err(|_| refuse("bad cluster name"))?,
                writer: WriterId::new(writer).map_err(|_| refuse("bad writer id"))?,
                nonce: unhex(nonce).ok_or_else(|| refuse("bad nonce"))?,
            }),
            [cluster, WRITERS, writer, LEDGER, topic, partition] => Some(Self::Ledger {
                cluster: ClusterName::new(cluster).map_err(|_| refuse("bad cluster name"))?,
                writer: WriterId::new(writer).map_err(|_| refuse("bad writer id"))?,
                tp: topic_partition(topic, partition)
                    .ok_or_else(|| refuse("bad topic or partition"))?,
            }),
            [cluster, topic, INCARNATIONS, number] => Some(Self::Incarnation {
                cluster: ClusterName::new(cluster).map_err(|_| refuse("bad cluster name"))?,
                topic: decode_topic(topic).ok_or_else(|| refuse("bad topic name"))?,
                number: decimal(number, 10)
                    .and_then(|n| u32::try_from(n).ok())
                    .ok_or_else(|| refuse("bad incarnation"))?,
            }),
            [cluster, topic, incarnation, partition, folder, file] => {
                let of = PartitionKey {
                    cluster: ClusterName::new(cluster).map_err(|_| refuse("bad cluster name"))?,
                    tp: topic_partition(topic, partition)
                        .ok_or_else(|| refuse("bad topic or partition"))?,
                    incarnation: decode_incarnation(incarnation)
                        .ok_or_else(|| refuse("bad incarnation"))?,
                };
                Self::in_partition(of, folder, file)
            }
            _ => None,
        };
        match key {
            Some(key) if key.to_string() == name => Ok(key),
            Some(_) => Err(refuse("it is not in its only form")),
            None => Err(refuse("no folder or file is called so")),
        }
    }

    fn in_partition(of: PartitionKey, folder: &str, file: &str) -> Option<Self> {
        Some(match folder {
            MANIFEST => Self::Manifest { of, number: decimal(file, 20)? },
            CLOSED => Self::Closed { of, block: decimal(file, 20)? },
            ARCHIVE => {
                let (number, range, digest) = ranged(file.strip_suffix(ARCHIVE_SUFFIX)?)?;
                Self::Archive { of, number, range, digest }
            }
            PAGE => {
                let (number, range, digest) = ranged(file.strip_suffix(PAGE_SUFFIX)?)?;
                Self::Page { of, number, range, digest }
            }
            SIDE => {
                let (number, rest) = file.split_once('-')?;
                let (kind, digest) = rest.rsplit_once('-')?;
                let (number, kind) = (decimal(number, 20)?, SideKind::parse(kind)?);
                Self::Side { of, number, kind, digest: unhex(digest)? }
            }
            _ => return None,
        })
    }
}

/// The folder of a topic.
#[must_use]
pub fn topic_folder(cluster: &ClusterName, topic: &TopicName) -> String {
    format!("{cluster}/{}", Escaped(topic))
}

/// The folder of what writers keep for themselves.
#[must_use]
pub fn writers_folder(cluster: &ClusterName) -> String {
    format!("{cluster}/{WRITERS}")
}

/// The folder of a topic's numbered incarnations.
#[must_use]
pub fn incarnations_folder(cluster: &ClusterName, topic: &TopicName) -> String {
    format!("{}/{INCARNATIONS}", topic_folder(cluster, topic))
}

/// The folder that holds the partitions of one incarnation of a topic.
#[must_use]
pub fn incarnation_folder(cluster: &ClusterName, topic: &TopicName, incarnation: u32) -> String {
    format!("{}/{incarnation:010}", topic_folder(cluster, topic))
}

/// The folder of a partition's manifests.
#[must_use]
pub fn manifest_folder(of: &PartitionKey) -> String {
    format!("{of}/{MANIFEST}")
}

/// The topic a folder of a cluster is for; `None` for any other folder.
#[must_use]
pub fn decode_topic(folder: &str) -> Option<TopicName> {
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(folder).collect();
    let topic = TopicName::new(&String::from_utf8(bytes).ok()?).ok()?;
    (Escaped(&topic).to_string() == folder).then_some(topic)
}

/// The incarnation a folder of a topic is for; `None` for any other folder.
#[must_use]
pub fn decode_incarnation(folder: &str) -> Option<u32> {
    u32::try_from(decimal(folder, 10)?).ok()
}

/// The partition a folder of an incarnation is for; `None` for any other folder.
#[must_use]
pub fn decode_partition(folder: &str) -> Option<i32> {
    i32::try_from(decimal(folder, 10)?).ok()
}

fn topic_partition(topic: &str, partition: &str) -> Option<TopicPartition> {
    TopicPartition::new(decode_topic(topic)?, decode_partition(partition)?).ok()
}

/// A topic as the name of a folder.
struct Escaped<'a>(&'a TopicName);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.as_str();
        let reserved = RESERVED.contains(&name);
        for (at, c) in name.char_indices() {
            if matches!(c, '/' | '\\' | '%') || c.is_control() || (reserved && at == 0) {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    write!(f, "%{byte:02X}")?;
                }
            } else {
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

/// Bytes as lower-case hex digits.
struct Hex<'a>(&'a [u8; 16]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Thirty-two hex digits. The caller's comparison with the only form refuses
/// upper case.
fn unhex(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// Exactly `width` decimal digits.
fn decimal(text: &str, width: usize) -> Option<u64> {
    if text.len() != width || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `{number:020}-{base:020}-{last:020}-{digest}`.
fn ranged(text: &str) -> Option<(u64, OffsetRange, [u8; 16])> {
    let mut fields = text.splitn(4, '-');
    let number = decimal(fields.next()?, 20)?;
    let base = i64::try_from(decimal(fields.next()?, 20)?).ok()?;
    let last = i64::try_from(decimal(fields.next()?, 20)?).ok()?;
    Some((number, OffsetRange::new(base, last)?, unhex(fields.next()?)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(topic: &str) -> PartitionKey {
        PartitionKey {
            cluster: ClusterName::new("default").unwrap(),
            tp: TopicPartition::new(TopicName::new(topic).unwrap(), 3).unwrap(),
            incarnation: 7,
        }
    }

    #[test]
    fn names_are_what_the_drawing_says() {
        let of = partition("clicks.日本_1");
        let range = OffsetRange::new(5, 99).unwrap();
        let digest = [0xAB; 16];
        let folder = "default/clicks.日本_1/0000000007/0000000003";
        let hex = "abababababababababababababababab";
        for (key, name) in [
            (
                ObjectKey::Manifest { of: of.clone(), number: 12 },
                format!("{folder}/manifest/00000000000000000012"),
            ),
            (
                ObjectKey::Archive { of: of.clone(), number: 12, range, digest },
                format!(
                    "{folder}/archive/00000000000000000012-00000000000000000005-00000000000000000099-{hex}.tar.gz"
                ),
            ),
            (
                ObjectKey::Page { of: of.clone(), number: 12, range, digest },
                format!(
                    "{folder}/page/00000000000000000012-00000000000000000005-00000000000000000099-{hex}.page"
                ),
            ),
            (
                ObjectKey::Side {
                    of: of.clone(),
                    number: 12,
                    kind: SideKind::OpenTransactions,
                    digest,
                },
                format!("{folder}/side/00000000000000000012-open-transactions-{hex}"),
            ),
            (
                ObjectKey::Closed { of: of.clone(), block: 1 },
                format!("{folder}/closed/00000000000000000001"),
            ),
            (
                ObjectKey::Incarnation {
                    cluster: of.cluster.clone(),
                    topic: of.tp.topic().clone(),
                    number: 7,
                },
                "default/clicks.日本_1/incarnations/0000000007".to_owned(),
            ),
            (
                ObjectKey::Probe {
                    cluster: of.cluster.clone(),
                    writer: WriterId::new("host-1").unwrap(),
                    nonce: digest,
                },
                format!("default/writers/host-1/probe/{hex}"),
            ),
            (
                ObjectKey::Ledger {
                    cluster: of.cluster.clone(),
                    writer: WriterId::new("host-1").unwrap(),
                    tp: of.tp.clone(),
                },
                "default/writers/host-1/ledger/clicks.日本_1/0000000003".to_owned(),
            ),
        ] {
            assert_eq!(key.to_string(), name);
            assert_eq!(ObjectKey::decode(&name).unwrap(), key);
        }
    }

    #[test]
    fn a_topic_called_like_a_folder_beside_it_gets_a_folder_of_its_own() {
        let of = partition("writers");
        let key = ObjectKey::Incarnation {
            cluster: of.cluster.clone(),
            topic: of.tp.topic().clone(),
            number: 0,
        };
        assert_eq!(key.to_string(), "default/%77riters/incarnations/0000000000");
        assert_eq!(ObjectKey::decode(&key.to_string()).unwrap(), key);
        assert_eq!(decode_topic("writers"), None);
        assert_eq!(decode_topic("%77riters"), Some(TopicName::new("writers").unwrap()));
    }

    #[test]
    fn a_name_in_another_form_is_refused() {
        let hex = "ab".repeat(16);
        let folder = "default/orders/0000000000/0000000000";
        for bad in [
            "".to_owned(),
            "default".to_owned(),
            format!("{folder}/manifest/12"),
            format!("{folder}/manifest/0000000000000000012x"),
            format!("{folder}/manifest/99999999999999999999"),
            format!("{folder}/manifest/00000000000000000001/x"),
            format!("{folder}/other/00000000000000000001"),
            "default/orders/0000000000/9999999999/manifest/00000000000000000001".to_owned(),
            "default/%6Frders/0000000000/0000000000/manifest/00000000000000000001".to_owned(),
            "default/../0000000000/0000000000/manifest/00000000000000000001".to_owned(),
            format!(
                "{folder}/archive/00000000000000000001-00000000000000000005-00000000000000000004-{hex}.tar.gz"
            ),
            format!(
                "{folder}/archive/00000000000000000001-00000000000000000005-00000000000000000009-{}.tar.gz",
                hex.to_uppercase()
            ),
            format!(
                "{folder}/archive/00000000000000000001-00000000000000000005-00000000000000000009-{hex}.page"
            ),
            format!("{folder}/side/00000000000000000001-something-{hex}"),
            format!("default/writers/host/probe/{hex}0"),
            "default/writers/host/ledger/orders/3".to_owned(),
            "default/writers/host/ledger/writers/0000000003".to_owned(),
            "default/writers/host/ledger/orders/0000000003/x".to_owned(),
            "default/orders/incarnations/4294967296".to_owned(),
        ] {
            assert!(ObjectKey::decode(&bad).is_err(), "{bad}");
        }
    }

    fn any_partition() -> impl Strategy<Value = PartitionKey> {
        ("[a-z0-9._-]{3,12}", r"[\w\-][\w.\-]{1,30}", 0..=i32::MAX, any::<u32>()).prop_filter_map(
            "names",
            |(cluster, topic, partition, incarnation)| {
                Some(PartitionKey {
                    cluster: ClusterName::new(&cluster).ok()?,
                    tp: TopicPartition::new(TopicName::new(&topic).ok()?, partition).ok()?,
                    incarnation,
                })
            },
        )
    }

    fn any_key() -> impl Strategy<Value = ObjectKey> {
        let ranges = (0..i64::MAX, 0..i64::MAX)
            .prop_filter_map("range", |(a, b)| OffsetRange::new(a.min(b), a.max(b)));
        (any_partition(), 0..8u8, any::<u64>(), ranges, any::<[u8; 16]>()).prop_map(
            |(of, kind, number, range, digest)| match kind {
                0 => ObjectKey::Manifest { of, number },
                1 => ObjectKey::Archive { of, number, range, digest },
                2 => ObjectKey::Page { of, number, range, digest },
                3 => ObjectKey::Side { of, number, kind: SideKind::OpenTransactions, digest },
                4 => ObjectKey::Closed { of, block: number },
                5 => ObjectKey::Incarnation {
                    cluster: of.cluster,
                    topic: of.tp.topic().clone(),
                    number: of.incarnation,
                },
                6 => ObjectKey::Ledger {
                    writer: WriterId::new(of.cluster.as_str()).unwrap(),
                    cluster: of.cluster,
                    tp: of.tp,
                },
                _ => ObjectKey::Probe {
                    writer: WriterId::new(of.cluster.as_str()).unwrap(),
                    cluster: of.cluster,
                    nonce: digest,
                },
            },
        )
    }

    proptest! {
        #[test]
        fn every_name_reads_back_as_itself(key in any_key()) {
            let name = key.to_string();
            prop_assert_eq!(ObjectKey::decode(&name).unwrap(), key);
        }

        #[test]
        fn two_keys_never_share_a_name(a in any_key(), b in any_key()) {
            prop_assert_eq!(a == b, a.to_string() == b.to_string());
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in ".{0,200}") {
            let _ = ObjectKey::decode(&text);
        }
    }
}
