//! Owns the page token: where an answer ended, to be given back by who wants more.
//!
//! ```text
//!  0            1       2          10      12
//!  | version, 1 | order | of what  | count | partitions ..              little-endian,
//!  | u8         | u8    | 8 bytes  | u16   |                             as base64url
//!
//!  partition: | topic length u8 | topic | partition i32 | incarnation u32 | generation u64
//!             | archived through i64 | next i64 |
//! ```
//!
//! *of what* is a digest of the search, so that a token is not taken for the page of
//! another. *next* is the first offset not told yet, in the order of the search;
//! partitions that are searched to their end are left out.
//!
//! A token pins each partition to the manifest that the first page was answered
//! from. Where that is gone meanwhile the search goes on by offset over the newest
//! one, up to the same *archived through*: archives move, records do not.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf, BufMut};

use super::error::SearchError;
use super::types::{Order, SearchRequest};
use crate::record::{TopicName, TopicPartition};

const VERSION: u8 = 1;
/// Most partitions of one search that has pages; a token of so many is 100 KiB.
pub(super) const PARTITIONS_MAX: usize = 2_000;
/// Longest token that is read.
const TOKEN_BYTES_MAX: usize = 512 << 10;

/// Where one partition of a search stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tp: TopicPartition,
    pub(super) incarnation: u32,
    pub(super) generation: u64,
    pub(super) archived_through: i64,
    pub(super) next: i64,
}

/// What tells one search from another, the page aside.
fn digest(request: &SearchRequest) -> [u8; 8] {
    let SearchRequest { scope, selection, query, order, .. } = request;
    let hash = blake3::hash(format!("{scope:?}{selection:?}{query:?}{order:?}").as_bytes());
    let mut digest = [0; 8];
    digest.copy_from_slice(&hash.as_bytes()[..8]);
    digest
}

pub(super) fn encode(request: &SearchRequest, places: &[Place]) -> String {
    let mut out = Vec::new();
    out.put_u8(VERSION);
    out.put_u8(match request.order {
        Order::Newest => 0,
        Order::Oldest => 1,
    });
    out.put_slice(&digest(request));
    out.put_u16_le(places.len() as u16);
    for place in places {
        let topic = place.tp.topic().as_str();
        out.put_u8(topic.len() as u8);
        out.put_slice(topic.as_bytes());
        out.put_i32_le(place.tp.partition());
        out.put_u32_le(place.incarnation);
        out.put_u64_le(place.generation);
        out.put_i64_le(place.archived_through);
        out.put_i64_le(place.next);
    }
    URL_SAFE_NO_PAD.encode(out)
}

pub(super) fn decode(request: &SearchRequest, token: &str) -> Result<Vec<Place>, SearchError> {
    let refuse = |why: &str| {
        let why = format!("the page token {why}; begin again without one");
        Err(SearchError::Invalid(why))
    };
    if token.len() > TOKEN_BYTES_MAX {
        return refuse("is longer than any this daemon made");
    }
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else { return refuse("is not base64url") };
    if bytes.first().is_some_and(|version| *version != VERSION) {
        return refuse("was made by another version of tierd");
    }
    match read(&bytes) {
        Some((digest_told, _)) if digest_told != digest(request) => {
            refuse("belongs to another search")
        }
        Some((_, places)) => Ok(places),
        None => refuse("is damaged"),
    }
}

fn read(mut bytes: &[u8]) -> Option<([u8; 8], Vec<Place>)> {
    bytes.try_get_u8().ok()?;
    let order = bytes.try_get_u8().ok()?;
    let mut digest = [0; 8];
    bytes.try_copy_to_slice(&mut digest).ok()?;
    let count = usize::from(bytes.try_get_u16_le().ok()?);
    if order > 1 || count > PARTITIONS_MAX {
        return None;
    }
    let places = (0..count).map(|_| place(&mut bytes)).collect::<Option<_>>()?;
    bytes.is_empty().then_some((digest, places))
}

fn place(bytes: &mut &[u8]) -> Option<Place> {
    let len = usize::from(bytes.try_get_u8().ok()?);
    let (topic, rest) = bytes.split_at_checked(len)?;
    let topic = TopicName::new(std::str::from_utf8(topic).ok()?).ok()?;
    *bytes = rest;
    let tp = TopicPartition::new(topic, bytes.try_get_i32_le().ok()?).ok()?;
    Some(Place {
        tp,
        incarnation: bytes.try_get_u32_le().ok()?,
        generation: bytes.try_get_u64_le().ok()?,
        archived_through: bytes.try_get_i64_le().ok()?,
        next: bytes.try_get_i64_le().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Selection;

    fn places() -> Vec<Place> {
        let place = |topic: &str, partition| Place {
            tp: TopicPartition::new(TopicName::new(topic).unwrap(), partition).unwrap(),
            incarnation: 1,
            generation: 77,
            archived_through: 1 << 40,
            next: 9,
        };
        vec![place("orders", 0), place(&"日".repeat(83), 7)]
    }

    #[test]
    fn a_token_leads_back_to_where_the_answer_ended() {
        let request = SearchRequest::default();
        let token = encode(&request, &places());
        assert_eq!(decode(&request, &token).unwrap(), places());
        let more = SearchRequest { limit: 5, page: Some(token.clone()), ..request };
        assert_eq!(decode(&more, &token).unwrap(), places(), "the limit may change");
    }

    #[test]
    fn tokens_that_are_not_of_this_search_are_refused_with_the_reason() {
        let request = SearchRequest::default();
        let token = encode(&request, &places());
        let refused = |request: &SearchRequest, token: &str, why: &str| {
            let error = decode(request, token).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        let other = Selection { producer_id: Some(1), ..Selection::default() };
        refused(&SearchRequest { selection: other, ..request.clone() }, &token, "another search");
        let older = SearchRequest { order: Order::Oldest, ..request.clone() };
        refused(&older, &token, "another search");
        refused(&request, "!", "base64url");
        refused(&request, "", "damaged");
        refused(&request, &token[..token.len() - 4], "damaged");
        refused(&request, &format!("{token}AAAA"), "damaged");
        refused(&request, &URL_SAFE_NO_PAD.encode([2, 0]), "another version");
        refused(&request, &"A".repeat(TOKEN_BYTES_MAX + 1), "longer");
    }

    proptest! {
        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            prop_assert!(decode(&SearchRequest::default(), &URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }
    }
}
