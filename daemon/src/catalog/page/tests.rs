use proptest::prelude::*;

use super::*;
use crate::catalog::testing::{assert_golden, beside, entry, gap, partition, range};

fn leaf_page() -> Page {
    Page::Leaf(Items {
        entries: vec![entry(2, 10, 19), beside(2, 12, 40), entry(3, 25, 30)],
        gaps: vec![gap(20, 24)],
    })
}

fn inner_page() -> Page {
    let gaps_only = Page::Leaf(Items { entries: vec![], gaps: vec![gap(0, 9)] });
    let nothing_tiles = Page::Leaf(Items { entries: vec![beside(2, 11, 12)], gaps: vec![] });
    let refs = [gaps_only, leaf_page(), nothing_tiles];
    Page::Inner(refs.into_iter().map(|page| page.make(&partition(), 3).unwrap().at).collect())
}

#[test]
fn a_reference_tells_what_is_below_it() {
    let leaf = leaf_page().make(&partition(), 3).unwrap().at;
    assert_eq!((leaf.height, leaf.built_for), (0, 3));
    assert_eq!(leaf.reach, range(10, 40));
    assert_eq!(leaf.tiled, (10, 31));
    assert_eq!(leaf.times, (1_100, 1_405));
    assert_eq!(leaf.totals.entries, 3);
    assert_eq!(leaf.totals.gaps, 1);
    assert_eq!(leaf.totals.records, 16);
    assert_eq!(leaf.totals.overlaps, 1);
    let inner = inner_page().make(&partition(), 3).unwrap().at;
    assert_eq!(inner.height, 1);
    assert_eq!(inner.reach, range(0, 40));
    assert_eq!(inner.tiled, (0, 31));
    assert_eq!(inner.totals.entries, 4);
    assert_eq!(inner.totals.gaps, 2);
}

#[test]
fn the_first_pages_of_a_released_format_stay_readable() {
    for (name, page) in [("page-v1-leaf", leaf_page()), ("page-v1-inner", inner_page())] {
        let made = page.clone().make(&partition(), 3).unwrap();
        assert_golden(name, &made.bytes);
        assert_eq!(Page::decode(&made.bytes, &partition(), &made.at).unwrap(), page);
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    for page in [leaf_page(), inner_page()] {
        let made = page.make(&partition(), 3).unwrap();
        for cut in 0..made.bytes.len() {
            assert!(Page::decode(&made.bytes[..cut], &partition(), &made.at).is_err());
        }
        for flip in 0..made.bytes.len() {
            for bit in 0..8 {
                let mut bytes = made.bytes.to_vec();
                bytes[flip] ^= 1 << bit;
                assert!(Page::decode(&bytes, &partition(), &made.at).is_err(), "byte {flip}");
            }
        }
    }
}

#[test]
fn a_page_in_the_place_of_another_is_refused() {
    let made = leaf_page().make(&partition(), 3).unwrap();
    let refuse = |at: &PageRef, of: &PartitionKey| {
        assert!(Page::decode(&made.bytes, of, at).is_err(), "{at:?} {of}");
    };
    refuse(&inner_page().make(&partition(), 3).unwrap().at, &partition());
    refuse(&leaf_page().make(&partition(), 4).unwrap().at, &partition());
    refuse(&made.at, &PartitionKey { incarnation: 1, ..partition() });
    let tp = TopicPartition::new(TopicName::new("other").unwrap(), 3).unwrap();
    refuse(&made.at, &PartitionKey { tp, ..partition() });
    for change in [
        |at: &mut PageRef| at.reach = range(10, 41),
        |at: &mut PageRef| at.tiled = (10, 30),
        |at: &mut PageRef| at.times.0 += 1,
        |at: &mut PageRef| at.totals.records += 1,
        |at: &mut PageRef| at.height = 1,
        |at: &mut PageRef| at.built_for = 2,
        |at: &mut PageRef| at.length += 1,
    ] {
        let mut at = made.at.clone();
        change(&mut at);
        refuse(&at, &partition());
    }
}

#[test]
fn a_page_of_nothing_is_not_made() {
    assert!(Page::Leaf(Items::default()).make(&partition(), 1).is_none());
    assert!(Page::Inner(Vec::new()).make(&partition(), 1).is_none());
}

#[test]
fn a_reference_has_the_bytes_the_drawing_says() {
    let mut out = Vec::new();
    leaf_page().make(&partition(), 3).unwrap().at.encode(&mut out);
    assert_eq!(out.len(), REF_BYTES);
}

proptest! {
    #[test]
    fn a_leaf_comes_back_as_it_was(
        tiles in prop::collection::vec((1..1000i64, any::<bool>(), any::<bool>()), 1..80),
        start in 0..i64::MAX / 32,
    ) {
        let (mut next, mut items) = (start, Items::default());
        for (len, hole, late) in tiles {
            let (base, last) = (next, next + len - 1);
            next += len;
            if hole { items.gaps.push(gap(base, last)) } else { items.entries.push(entry(1, base, last)) }
            if late { items.entries.push(beside(1, base, last)) }
        }
        let page = Page::Leaf(items);
        let made = page.clone().make(&partition(), 7).unwrap();
        prop_assume!(made.bytes.len() <= PAGE_BYTES_MAX);
        prop_assert_eq!(Page::decode(&made.bytes, &partition(), &made.at).unwrap(), page);
    }

    #[test]
    fn a_changed_field_never_makes_the_decoder_panic(at in any::<usize>(), with in any::<[u8; 4]>(), inner in any::<bool>()) {
        let page = if inner { inner_page() } else { leaf_page() };
        let made = page.make(&partition(), 3).unwrap();
        let mut body = made.bytes[..made.bytes.len() - codec::TRAILER_BYTES].to_vec();
        let at = 10 + at % (body.len() - 14);
        body[at..at + 4].copy_from_slice(&with);
        let (bytes, digest) = codec::seal(body);
        let _ = Page::decode(&bytes, &partition(), &PageRef { digest, ..made.at });
    }
}
