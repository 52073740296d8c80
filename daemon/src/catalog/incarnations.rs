//! Owns the lives of a topic's name: create-only objects, numbered densely from
//! 0, never deleted before the topic is.
//!
//! ```text
//!  0   8  "TIERDINC"
//!  8   2  version, 1
//! 10   4  number
//! 14   1  length of the topic, n
//! 15   n  topic
//!      1  1 where the broker gave a topic id, else 0
//!     16  topic id, else zeros
//!     16  nonce, so that no two writers make equal bytes
//!      8  time of creation, ms since 1970, for people
//!      1  length of the writer's id, w
//!      w  writer's id
//!     16  BLAKE3-128 of the rest
//! ```

use bytes::{BufMut, Bytes};

use crate::error::{Classify, ErrorKind};
use crate::record::TopicName;
use crate::store::{ClusterName, ObjectKey, Store, WriterId};

use super::arbiter;
use super::codec::{self, FormatError, Reader};
use super::error::CatalogError;
use super::newest::prefix_len;

/// Largest object of an incarnation, in bytes.
const INCARNATION_BYTES_MAX: u64 = 1 << 10;

const MAGIC: [u8; 8] = *b"TIERDINC";
const VERSION: u16 = 1;

/// One life of a topic's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// Its number, from 0.
    pub number: u32,
    /// The topic.
    pub topic: TopicName,
    /// The broker's id of the topic, where it gave one.
    pub topic_id: Option<[u8; 16]>,
    /// Unique to the attempt that created it.
    pub nonce: [u8; 16],
    /// When it was created, in milliseconds since 1970, by the writer's clock.
    pub created_at_ms: i64,
    /// Who created it.
    pub writer: WriterId,
}

impl Incarnation {
    fn encode(&self) -> Bytes {
        let mut out = codec::begin(MAGIC, VERSION);
        out.put_u32_le(self.number);
        codec::put_text(&mut out, self.topic.as_str());
        out.put_u8(self.topic_id.is_some().into());
        out.put_slice(&self.topic_id.unwrap_or_default());
        out.put_slice(&self.nonce);
        out.put_i64_le(self.created_at_ms);
        codec::put_text(&mut out, self.writer.as_str());
        codec::seal(out).0
    }

    fn decode(bytes: &[u8], topic: &TopicName, number: u32) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, "TIERDINC", VERSION)?;
        let found = reader.u32("the number")?;
        let name = reader.text("the topic")?;
        if found != number || name != topic.as_str() {
            let why =
                format!("it is number {found} of {:?}", name.chars().take(64).collect::<String>());
            return Err(FormatError::invalid("the topic", why));
        }
        let topic_id = match reader.u8("the topic id")? {
            0 if reader.array::<16>("the topic id")? == [0; 16] => None,
            1 => Some(reader.array("the topic id")?),
            _ => return Err(FormatError::invalid("the topic id", "neither absent nor present")),
        };
        let nonce = reader.array("the nonce")?;
        let created_at_ms = reader.i64("the time of creation")?;
        let writer = WriterId::new(reader.text("the writer")?)
            .map_err(|error| FormatError::invalid("the writer", error.to_string()))?;
        reader.finish()?;
        Ok(Self { number, topic: topic.clone(), topic_id, nonce, created_at_ms, writer })
    }
}

/// The number of the newest incarnation of `topic`, `None` where it never lived.
pub(super) async fn newest(
    store: &Store,
    cluster: &ClusterName,
    topic: &TopicName,
) -> Result<Option<u32>, CatalogError> {
    let end = prefix_len(0, |number| async move {
        let Ok(number) = u32::try_from(number) else { return Ok(false) };
        let key = ObjectKey::Incarnation { cluster: cluster.clone(), topic: topic.clone(), number };
        Ok(store.head(&key).await?.is_some())
    })
    .await?;
    Ok(end.checked_sub(1).and_then(|number| u32::try_from(number).ok()))
}

/// Reads incarnation `number` of `topic`, `None` where there is none.
pub(super) async fn read(
    store: &Store,
    cluster: &ClusterName,
    topic: &TopicName,
    number: u32,
) -> Result<Option<Incarnation>, CatalogError> {
    let key = ObjectKey::Incarnation { cluster: cluster.clone(), topic: topic.clone(), number };
    let bytes = match store.get(&key, INCARNATION_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = Incarnation::decode(&bytes, topic, number);
    found.map(Some).map_err(|error| CatalogError::format(&key, error))
}

/// Creates `incarnation` if its number is free and returns who has the number:
/// equal to `incarnation` where we do.
pub(super) async fn create(
    store: &Store,
    cluster: &ClusterName,
    incarnation: Incarnation,
) -> Result<Incarnation, CatalogError> {
    let (topic, number) = (&incarnation.topic, incarnation.number);
    let key = ObjectKey::Incarnation { cluster: cluster.clone(), topic: topic.clone(), number };
    let bytes = incarnation.encode();
    let found = arbiter::create(store, &key, &bytes, INCARNATION_BYTES_MAX).await?;
    Incarnation::decode(&found, topic, number).map_err(|error| CatalogError::format(&key, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::testing::{assert_golden, cluster, partition};

    fn incarnation(number: u32, nonce: u8) -> Incarnation {
        Incarnation {
            number,
            topic: partition().tp.topic().clone(),
            topic_id: (nonce > 7).then_some([nonce; 16]),
            nonce: [nonce; 16],
            created_at_ms: 1_700_000_000_000,
            writer: WriterId::new("host").unwrap(),
        }
    }

    #[test]
    fn an_incarnation_comes_back_and_no_other_bytes_are_one() {
        let topic = partition().tp.topic().clone();
        for one in [incarnation(0, 1), incarnation(3, 9)] {
            let bytes = one.encode();
            assert_golden(&format!("incarnation-v1-{}", one.number), &bytes);
            assert_eq!(Incarnation::decode(&bytes, &topic, one.number).unwrap(), one);
            assert!(Incarnation::decode(&bytes, &topic, one.number + 1).is_err());
            assert!(Incarnation::decode(&bytes, &TopicName::new("x").unwrap(), 0).is_err());
            for cut in 0..bytes.len() {
                assert!(Incarnation::decode(&bytes[..cut], &topic, one.number).is_err());
            }
            for flip in 0..bytes.len() {
                let mut bytes = bytes.to_vec();
                bytes[flip] ^= 0x10;
                assert!(Incarnation::decode(&bytes, &topic, one.number).is_err(), "{flip}");
            }
        }
    }

    #[tokio::test]
    async fn the_first_to_create_a_number_has_it() {
        let store = Store::open("memory:").unwrap();
        let topic = partition().tp.topic().clone();
        assert_eq!(newest(&store, &cluster(), &topic).await.unwrap(), None);
        let first = create(&store, &cluster(), incarnation(0, 1)).await.unwrap();
        assert_eq!(first, incarnation(0, 1));
        let second = create(&store, &cluster(), incarnation(0, 2)).await.unwrap();
        assert_eq!(second, incarnation(0, 1));
        for number in 1..=5 {
            create(&store, &cluster(), incarnation(number, 3)).await.unwrap();
            assert_eq!(newest(&store, &cluster(), &topic).await.unwrap(), Some(number));
        }
        assert_eq!(read(&store, &cluster(), &topic, 6).await.unwrap(), None);
    }
}
