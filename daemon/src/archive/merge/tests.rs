use proptest::prelude::*;
use tantivy::collector::DocSetCollector;
use tantivy::query::AllQuery;
use tantivy::{DocAddress, Index};

use super::*;
use crate::archive::fixture::{control, data, transactional};
use crate::archive::{
    ArchiveOptions, ArchiveWriter, IndexLevel, KeyFilter, WalRank, batches_in, verify_file,
};
use crate::record::{CanonicalRecord, TopicName, TopicPartition};

fn identity() -> ArchiveIdentity {
    let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 3).unwrap();
    ArchiveIdentity { tp, incarnation: 1 }
}

/// An archive of `batches` from `start` on, over what lies `beneath`.
fn build(
    scratch: &Path,
    start: i64,
    batches: &[CanonicalRecord],
    beneath: &[CanonicalRecord],
    level: IndexLevel,
) -> BuiltArchive {
    let options = ArchiveOptions { index_level: level, ..ArchiveOptions::default() };
    let mut writer = ArchiveWriter::create(scratch, identity(), start, options).unwrap();
    for batch in batches {
        let position = batch.range().base() as u64;
        writer.push(batch, WalRank { segment: 1, position }).unwrap();
    }
    for batch in beneath {
        writer.push_overlap(batch, WalRank { segment: 0, position: 7 }).unwrap();
    }
    writer.finish().unwrap()
}

fn input(built: &BuiltArchive) -> MergeInput {
    let file = Arc::new(File::open(&built.path).unwrap());
    MergeInput::within(file, &built.path, 0, built.summary.clone()).unwrap()
}

/// All that a log of an archive holds.
fn log(input: &MergeInput, file: Option<&TocFile>) -> Vec<u8> {
    file.map_or_else(Vec::new, |file| input.whole(file).unwrap())
}

/// The filter of an archive's keys.
fn keys(input: &MergeInput) -> Option<KeyFilter> {
    let file = input.toc.keys()?;
    Some(KeyFilter::decode(input.whole(file).unwrap().into()).unwrap())
}

/// Every document of an archive's index, in its order: offset, and its number.
fn documents(built: &BuiltArchive, folder: &Path) -> (Vec<i64>, usize) {
    let input = input(built);
    for file in built.toc.index_files() {
        let name = file.name.strip_prefix("index/").unwrap();
        std::fs::write(folder.join(name), input.whole(file).unwrap()).unwrap();
    }
    let searcher = Index::open_in_dir(folder).unwrap().reader().unwrap().searcher();
    let mut found: Vec<DocAddress> =
        searcher.search(&AllQuery, &DocSetCollector).unwrap().into_iter().collect();
    // Segments are opened in the order they are listed.
    found.sort_unstable();
    let offsets = found.iter().map(|address| {
        let segment = searcher.segment_reader(address.segment_ord);
        segment.fast_fields().i64("offset").unwrap().first(address.doc_id).unwrap()
    });
    (offsets.collect(), searcher.segment_readers().len())
}

/// A log of plain batches and transactions of a few producers.
fn any_log() -> impl Strategy<Value = Vec<CanonicalRecord>> {
    prop::collection::vec((0u8..6, 1i64..40, 1i64..4), 2..60).prop_map(|steps| {
        let mut next = 100;
        steps
            .into_iter()
            .map(|(kind, count, producer)| {
                let batch = match kind {
                    0 => control(next, producer, 0),
                    1 => control(next, producer, 1),
                    2 | 3 => transactional(next, count, producer),
                    _ => data(next, count),
                };
                next = batch.range().end();
                batch
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_merged_archive_is_the_one_that_had_been_built_from_all(
        batches in any_log(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..25),
        indexed in any::<bool>(),
    ) {
        let level = if indexed { IndexLevel::Keys } else { IndexLevel::None };
        let scratch = tempfile::tempdir().unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(batches.len())).collect();
        cuts.extend([0, batches.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let parts: Vec<BuiltArchive> = cuts
            .windows(2)
            .map(|cut| {
                let part = &batches[cut[0]..cut[1]];
                build(scratch.path(), part[0].range().base(), part, &[], level)
            })
            .collect();
        let inputs: Vec<MergeInput> = parts.iter().map(input).collect();
        let merged = merge_archives(scratch.path(), &identity(), &inputs).unwrap();
        let whole = build(scratch.path(), 100, &batches, &[], level);

        let (ours, theirs) = (input(&merged), input(&whole));
        prop_assert_eq!(log(&ours, ours.toc.log()), log(&theirs, theirs.toc.log()));
        let lists = (ours.batches().unwrap(), theirs.batches().unwrap());
        prop_assert!(lists.0.chain().eq(lists.1.chain()));
        prop_assert_eq!(&merged.toc.epochs, &whole.toc.epochs);
        prop_assert_eq!(&merged.toc.ended, &whole.toc.ended);
        prop_assert_eq!(&merged.toc.open, &whole.toc.open);
        let same = |summary: &ArchiveSummary| ArchiveSummary {
            length: 0, digest: [0; 32], index_bytes: 0, toc: whole.summary.toc, ..summary.clone()
        };
        prop_assert_eq!(same(&merged.summary), same(&whole.summary));
        // Foreign decoders agree.
        let verified = verify_file(&merged.path).unwrap();
        prop_assert_eq!(&verified.summary, &merged.summary);
        prop_assert_eq!(&verified.toc, &merged.toc);
        for chunk in ours.log_chunks() {
            let raw = chunk.unpack(ours.packed(chunk).unwrap()).unwrap();
            for batch in batches_in(raw) {
                prop_assert!(batch.is_ok(), "a chunk holds whole batches");
            }
        }
        if indexed {
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (found, segments) = documents(&merged, one.path());
            prop_assert_eq!(found, documents(&whole, two.path()).0);
            prop_assert!(segments <= 16);
            let (merged, whole) = (keys(&ours).unwrap(), keys(&theirs).unwrap());
            prop_assert_eq!(merged.keys(), whole.keys());
            let entries = batches.iter().filter(|one| !one.header().is_control());
            for entry in entries.flat_map(|batch| batch.decode().unwrap()) {
                prop_assert!(merged.may_hold(&entry.key.unwrap()));
            }
        }
        let again = merge_archives(scratch.path(), &identity(), &inputs).unwrap();
        prop_assert_eq!(again.summary.digest, merged.summary.digest, "equal inputs, equal bytes");
    }
}

#[test]
fn every_flip_in_a_merged_archive_is_found_without_inflating_it() {
    let scratch = tempfile::tempdir().unwrap();
    let one = build(scratch.path(), 0, &[data(0, 900)], &[], IndexLevel::Keys);
    let two = build(scratch.path(), 900, &[data(900, 3)], &[], IndexLevel::Keys);
    let inputs = [input(&one), input(&two)];
    let merged = merge_archives(scratch.path(), &identity(), &inputs).unwrap();
    let chunks = inputs.iter().flat_map(|input| &input.toc.chunks);
    let carried: HashSet<Chunk> = chunks.map(|chunk| Chunk { place: 0, ..*chunk }).collect();
    let was_carried = |chunk: &&Chunk| carried.contains(&Chunk { place: 0, ..**chunk });
    assert!(merged.toc.chunks.iter().filter(was_carried).count() > 6);
    let bytes = std::fs::read(&merged.path).unwrap();
    let path = scratch.path().join("flipped");
    let verify = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        verify_merged(&path, &identity(), &merged.summary, &carried)
    };
    let (digest, toc) = verify(&bytes).unwrap();
    assert_eq!((digest, &toc), (merged.summary.digest, &merged.toc));
    let mut bytes = bytes;
    for at in (0..bytes.len()).step_by(if bytes.len() > 100_000 { 3 } else { 1 }) {
        bytes[at] ^= 1 << (at % 8);
        assert!(verify(&bytes).is_err(), "a flip at {at} of {} was not found", bytes.len());
        bytes[at] ^= 1 << (at % 8);
    }
    assert!(verify(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn more_than_sixteen_segments_become_fewer_and_find_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let part = |n: i64| build(scratch.path(), n * 10, &[data(n * 10, 10)], &[], IndexLevel::Keys);
    let parts: Vec<_> = (0..40).map(part).collect();
    let merged =
        merge_archives(scratch.path(), &identity(), &parts.iter().map(input).collect::<Vec<_>>())
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (found, segments) = documents(&merged, folder.path());
    assert_eq!(found, (0..400).collect::<Vec<_>>());
    assert!(segments > 1 && segments <= 16, "{segments}");
}

#[test]
fn large_chunks_are_carried_as_they_lie_and_small_ones_joined() {
    let scratch = tempfile::tempdir().unwrap();
    let large: Vec<_> = (0..12).map(|n| data(n * 3000, 3000)).collect();
    let one = build(scratch.path(), 0, &large, &[], IndexLevel::None);
    let small: Vec<_> = (0..30).map(|n| data(36_000 + n * 10, 10)).collect();
    let small: Vec<_> = small
        .iter()
        .map(|batch| {
            let start = batch.range().base();
            build(scratch.path(), start, std::slice::from_ref(batch), &[], IndexLevel::None)
        })
        .collect();
    let inputs: Vec<_> = std::iter::once(&one).chain(&small).map(input).collect();
    let merged = merge_archives(scratch.path(), &identity(), &inputs).unwrap();
    let carried = inputs[0].log_chunks();
    let found = input(&merged);
    let (front, back) = found.log_chunks().split_at(carried.len() - 1);
    for (was, is) in carried.iter().zip(front) {
        assert_eq!(Chunk { place: is.place, ..*was }, *is);
    }
    assert!(back.len() <= 2, "thirty small chunks are one: {}", back.len());
}

#[test]
fn what_lies_beneath_comes_along_and_keeps_its_rank() {
    let scratch = tempfile::tempdir().unwrap();
    let one = build(scratch.path(), 0, &[data(0, 10)], &[data(0, 5)], IndexLevel::Keys);
    let two = build(scratch.path(), 10, &[data(10, 10)], &[], IndexLevel::Keys);
    let three = build(scratch.path(), 20, &[data(20, 10)], &[data(20, 3)], IndexLevel::Keys);
    let inputs: Vec<_> = [&one, &two, &three].into_iter().map(input).collect();
    let merged = merge_archives(scratch.path(), &identity(), &inputs).unwrap();
    assert_eq!((merged.summary.overlaps, merged.summary.batches), (2, 3));
    let list = input(&merged).batches().unwrap();
    assert_eq!(list.overlaps().map(|batch| batch.base).collect::<Vec<_>>(), [0, 20]);
    assert!(list.overlaps().all(|batch| batch.rank == Some(WalRank { segment: 0, position: 7 })));
    assert!(list.chain().map(|batch| batch.rank.is_some()).eq([true, false, true]));
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let one = build(scratch.path(), 0, &[data(0, 10)], &[], IndexLevel::Keys);
    let far = build(scratch.path(), 11, &[data(11, 10)], &[], IndexLevel::Keys);
    let bare = build(scratch.path(), 10, &[data(10, 10)], &[], IndexLevel::None);
    let next = build(scratch.path(), 10, &[data(10, 10)], &[], IndexLevel::Keys);
    let beneath = build(scratch.path(), 10, &[data(10, 5)], &[data(0, 3)], IndexLevel::Keys);
    let pair = |a: &BuiltArchive, b: &BuiltArchive| {
        merge_archives(scratch.path(), &identity(), &[input(a), input(b)])
    };
    assert!(pair(&one, &next).is_ok());
    for other in [&far, &bare, &beneath] {
        assert!(matches!(pair(&one, other), Err(ArchiveError::Unmergeable { .. })));
    }
    // A fill that serves less than it holds.
    let mut clipped = input(&one);
    clipped.summary.range = OffsetRange::new(0, 7).unwrap();
    let rest = build(scratch.path(), 8, &[data(8, 10)], &[], IndexLevel::Keys);
    assert!(clipped.refuses(&input(&rest)).is_some());
    // Offsets far apart: together more than the format can span.
    let wide = i64::from(i32::MAX) - 5;
    let last = build(scratch.path(), 10, &[data(wide, 10)], &[], IndexLevel::Keys);
    assert!(matches!(pair(&one, &last), Err(ArchiveError::Unmergeable { .. })));
    assert!(merge_archives(scratch.path(), &identity(), &[]).is_err());
}
