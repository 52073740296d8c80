use proptest::prelude::*;

use super::*;
use crate::catalog::page::Page;
use crate::catalog::testing::{assert_golden, beside, cluster, entry, gap, partition};
use crate::catalog::{ArchiveEntry, Gap, GapKind};
use crate::record::OffsetRange;

/// A reference to a leaf that tiles `base..=last`.
fn leaf(built_for: u64, base: i64, last: i64) -> PageRef {
    let items = Items { entries: vec![entry(built_for, base, last)], gaps: vec![] };
    Page::Leaf(items).make(&partition(), built_for).unwrap().at
}

fn open(count: i64) -> Vec<OpenTransaction> {
    (0..count).map(|n| OpenTransaction { producer_id: 4_000 + n, first_offset: n }).collect()
}

fn manifest(number: u64, log_start: i64, pages: Vec<PageRef>, recent: Items) -> Manifest {
    let mut manifest = Manifest {
        of: partition(),
        number,
        nonce: [7; 16],
        writer_epoch: 1,
        writer: WriterId::new("kafka-0.kafka").unwrap(),
        committed_at_ms: 1_700_000_000_123,
        predecessor: if number == 1 { [0; 32] } else { [5; 32] },
        topic_id: None,
        log_start,
        archived_through: 0,
        open: Open::Inline(Vec::new()),
        ends_block: false,
        recent,
        pages,
    };
    manifest.archived_through = manifest.tiled_to().unwrap();
    manifest
}

fn sample() -> Manifest {
    let recent = Items {
        entries: vec![entry(3, 20, 29), beside(4, 22, 25), entry(5, 35, 99)],
        gaps: vec![
            Gap { range: OffsetRange::new(30, 31).unwrap(), kind: GapKind::Damaged },
            gap(32, 34),
        ],
    };
    Manifest {
        topic_id: Some([0x1D; 16]),
        open: Open::Inline(open(2)),
        writer_epoch: 3,
        ..manifest(6, 4, vec![leaf(1, 0, 9), leaf(2, 10, 19)], recent)
    }
}

#[test]
fn the_first_manifest_of_a_released_format_stays_readable() {
    let manifest = sample();
    let bytes = manifest.encode().unwrap();
    assert_golden("manifest-v1", &bytes);
    assert_eq!(Manifest::decode(&bytes, &cluster()).unwrap(), manifest);

    let empty = manifest_empty();
    let bytes = empty.encode().unwrap();
    assert_golden("manifest-v1-empty", &bytes);
    assert_eq!(Manifest::decode(&bytes, &cluster()).unwrap(), empty);
}

fn manifest_empty() -> Manifest {
    manifest(1, 0, Vec::new(), Items::default())
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let bytes = sample().encode().unwrap();
    for cut in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..cut], &cluster()).is_err(), "cut at {cut}");
    }
    for flip in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.to_vec();
            bytes[flip] ^= 1 << bit;
            assert!(Manifest::decode(&bytes, &cluster()).is_err(), "bit {bit} of byte {flip}");
        }
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Manifest::decode(&longer, &cluster()).is_err());
}

/// Bytes with a right digest that no tierd would write.
fn forged(change: impl FnOnce(&mut Manifest)) -> FormatError {
    let mut manifest = sample();
    change(&mut manifest);
    Manifest::decode(&manifest.encode().unwrap(), &cluster()).unwrap_err()
}

#[test]
fn a_manifest_whose_parts_contradict_each_other_is_refused() {
    for (what, error) in [
        ("the number", forged(|m| m.number = 0)),
        ("the predecessor", forged(|m| m.predecessor = [0; 32])),
        ("the writer's epoch", forged(|m| m.writer_epoch = 0)),
        ("the writer's epoch", forged(|m| m.writer_epoch = 7)),
        ("the log start", forged(|m| m.log_start = -1)),
        ("archived through", forged(|m| m.archived_through += 1)),
        ("the entries", forged(|m| m.recent.gaps.truncate(1))),
        ("the entries", forged(|m| m.recent.entries.swap(0, 2))),
        ("the entries", forged(|m| m.recent.entries.push(entry(6, 99, 100)))),
        ("archived through", forged(|m| m.log_start = 100 + 1)),
        ("the gaps", forged(|m| m.recent.gaps.swap(0, 1))),
        ("the references", forged(|m| m.pages.swap(0, 1))),
        ("an entry", forged(|m| m.recent.entries[2].built_for = 7)),
        ("an entry", forged(|m| m.pages[1].built_for = 7)),
        ("a reference to a page", forged(|m| m.pages[1].built_for = 0)),
        ("a reference to a page", forged(|m| m.pages[1].tiled.1 = 21)),
        ("a reference to a page", forged(|m| m.pages[1].tiled = (10, 10))),
        ("a reference to a page", forged(|m| m.pages[1].length = 1 << 15)),
        ("a reference to a page", forged(|m| m.pages[1].height = 9)),
        ("the references", forged(|m| m.pages[1].height = 1)),
    ] {
        assert!(
            matches!(error, FormatError::Invalid { what: named, .. } if named == what),
            "{what}: {error}"
        );
    }
}

#[test]
fn a_future_version_is_refused_by_name() {
    let mut bytes = sample().encode().unwrap().to_vec();
    bytes[8] = 2;
    let error = Manifest::decode(&bytes, &cluster()).unwrap_err();
    assert_eq!(error, FormatError::Future { found: 2, known: 1 });
    assert!(error.to_string().contains("version is 2"));
}

#[test]
fn a_future_summary_is_refused_by_name() {
    let mut bytes = sample().encode().unwrap().to_vec();
    let summary = 10 + bytes.windows(8).rposition(|w| w == 5u64.to_le_bytes()).unwrap();
    assert_eq!(bytes[summary], 1);
    bytes[summary] = 9;
    let body = bytes.len() - codec::TRAILER_BYTES;
    let digest = codec::digest(&bytes[..body]);
    bytes[body..].copy_from_slice(&digest);
    let error = Manifest::decode(&bytes, &cluster()).unwrap_err();
    assert!(matches!(error, FormatError::Future { found: 9, .. }), "{error}");
}

#[test]
fn the_fullest_manifest_with_the_longest_names_fits() {
    let mut of = partition();
    let long = "日".repeat(83);
    of.tp = TopicPartition::new(TopicName::new(&long).unwrap(), i32::MAX).unwrap();
    let refs = ROOT_REFS_MAX as i64;
    let entries = INLINE_ENTRIES_MAX as i64;
    let gaps = INLINE_GAPS_MAX as i64;
    let pages = (0..refs).map(|n| leaf(1, n, n)).collect();
    let recent = Items {
        entries: (0..entries).map(|n| entry(1, refs + n, refs + n)).collect(),
        gaps: (0..gaps).map(|n| gap(refs + entries + n, refs + entries + n)).collect(),
    };
    let manifest = Manifest {
        of,
        writer: WriterId::new(&"x".repeat(249)).unwrap(),
        topic_id: Some([1; 16]),
        open: Open::Inline(open(INLINE_OPEN_MAX as i64)),
        ..manifest(9, 0, pages, recent)
    };
    let bytes = manifest.encode().unwrap();
    assert!(bytes.len() <= MANIFEST_BYTES_MAX, "{} bytes", bytes.len());
    assert!(Manifest::decode(&bytes, &cluster()).unwrap().recent.entries.len() == 128);
}

/// Tiles of random lengths, some of them gaps, some in pages, with archives that
/// tile nothing beside them.
fn any_manifest() -> impl Strategy<Value = Manifest> {
    let tiles = prop::collection::vec((1..1000i64, 0..4u8, any::<bool>()), 0..40);
    let ids = (any::<Option<[u8; 16]>>(), any::<[u8; 16]>());
    let head = (0..1i64 << 40, 1..1_000_000u64, any::<bool>(), ids);
    let open = prop_oneof![
        prop::collection::vec((any::<i64>(), any::<i64>()), 0..20).prop_map(|open| {
            let open = open.into_iter();
            Open::Inline(
                open.map(|(producer_id, first_offset)| OpenTransaction {
                    producer_id,
                    first_offset,
                })
                .collect(),
            )
        }),
        (0..1u32 << 20, any::<[u8; 16]>()).prop_map(|(count, digest)| Open::Side(SideRef {
            built_for: 1,
            count,
            digest
        })),
    ];
    (tiles, head, open, 0..8usize).prop_map(|(tiles, head, open, in_pages)| {
        let (start, number, ends_block, (topic_id, nonce)) = head;
        let (mut next, mut pages, mut recent) = (start, Vec::new(), Items::default());
        for (at, (len, kind, late)) in tiles.into_iter().enumerate() {
            let (base, last) = (next, next + len - 1);
            next += len;
            if at < in_pages {
                pages.push(leaf(1, base, last));
                continue;
            }
            match kind {
                0 => recent.gaps.push(gap(base, last)),
                _ => recent.entries.push(entry(1, base, last)),
            }
            if late {
                recent.entries.push(beside(1, base, last));
            }
        }
        recent
            .entries
            .sort_by(|a, b| crate::catalog::entry::order(a).cmp(&crate::catalog::entry::order(b)));
        Manifest { topic_id, nonce, open, ends_block, ..manifest(number, start, pages, recent) }
    })
}

proptest! {
    #[test]
    fn a_manifest_comes_back_as_it_was(manifest in any_manifest()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(Manifest::decode(&bytes, &cluster()).unwrap(), manifest);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..600),
        like in any::<bool>(),
    ) {
        if like {
            // A right beginning and a right digest, and chaos between.
            let mut whole = codec::begin(MAGIC, 1);
            whole.append(&mut bytes);
            bytes = codec::seal(whole).0.to_vec();
        }
        let _ = Manifest::decode(&bytes, &cluster());
    }

    #[test]
    fn a_changed_field_never_makes_the_decoder_panic(at in 10..2_000usize, with in any::<[u8; 4]>()) {
        let bytes = sample().encode().unwrap();
        let mut body = bytes[..bytes.len() - codec::TRAILER_BYTES].to_vec();
        let at = 10 + at % (body.len() - 14);
        body[at..at + 4].copy_from_slice(&with);
        let _ = Manifest::decode(&codec::seal(body).0, &cluster());
    }
}

#[test]
fn entries_know_their_objects() {
    let one: ArchiveEntry = entry(5, 35, 99);
    let name = one.key().to_string();
    assert!(name.contains("/archive/00000000000000000005-00000000000000000035-"), "{name}");
    let moved = one.rebased(6).key().to_string();
    assert_eq!(moved.replace("archive/00000000000000000006", "archive/00000000000000000005"), name);
}
