//! The commit protocol and what is found afterwards, on a store without faults.
//! Races and faults are in the whole-system tests.

use bytes::Bytes;
use proptest::prelude::*;

use super::testing::{ARCHIVE_BYTES, beside, catalog, entry, gap, land, partition, range};
use super::*;
use crate::archive::OpenTransaction;
use crate::error::{Classify, ErrorKind};
use crate::record::OffsetRange;
use crate::store::Op;

/// One writer and the state it knows.
struct Writer {
    store: Store,
    catalog: Arc<Catalog>,
    base: Option<Arc<Snapshot>>,
}

impl Writer {
    fn new() -> Self {
        let store = Store::open("memory:").unwrap();
        Self { catalog: catalog(&store, "one", 1), store, base: None }
    }

    fn next(&self) -> u64 {
        self.base.as_deref().map_or(0, Snapshot::number) + 1
    }

    async fn commit(&mut self, edit: Edit) -> Result<Arc<Snapshot>, CatalogError> {
        let of = partition();
        let base = self.base.clone();
        let committed = self.catalog.commit(&of.tp, of.incarnation, base, edit).await?;
        self.base = Some(Arc::clone(committed.snapshot()));
        Ok(Arc::clone(committed.snapshot()))
    }

    /// Uploads and commits tiles of the given borders.
    async fn archive(&mut self, tiles: &[(i64, i64)]) -> Result<Arc<Snapshot>, CatalogError> {
        let number = self.next();
        let add: Vec<_> = tiles.iter().map(|(base, last)| entry(number, *base, *last)).collect();
        land(&self.store, &add).await;
        self.commit(Edit { add, ..Edit::default() }).await
    }

    async fn refused(&mut self, edit: Edit) -> CatalogError {
        land(&self.store, &edit.add).await;
        let before = (self.next(), self.loaded().await.map(|found| found.number()));
        let error = self.commit(edit).await.unwrap_err();
        let after = (self.next(), self.loaded().await.map(|found| found.number()));
        assert_eq!(before, after, "{error}");
        error
    }

    async fn loaded(&self) -> Option<Arc<Snapshot>> {
        self.catalog.load(&partition().tp, None).await.unwrap()
    }
}

fn ranges(entries: &[ArchiveEntry]) -> Vec<(i64, i64)> {
    entries.iter().map(|e| (e.summary.range.base(), e.summary.range.last())).collect()
}

#[tokio::test]
async fn what_is_committed_is_what_another_process_loads() {
    let mut writer = Writer::new();
    assert!(writer.loaded().await.is_none());
    let first = writer.archive(&[(0, 9), (10, 19)]).await.unwrap();
    assert_eq!((first.number(), first.archived_through(), first.log_start()), (1, 20, 0));
    let second = writer.archive(&[(20, 29)]).await.unwrap();
    assert_eq!((second.number(), second.archived_through()), (2, 30));
    assert_eq!(second.manifest().predecessor, first.digest());

    let other = catalog(&writer.store, "two", 2);
    let loaded = other.load(&partition().tp, Some(0)).await.unwrap().unwrap();
    assert_eq!(loaded.manifest(), second.manifest());
    assert_eq!(loaded.digest(), second.digest());
    assert_eq!(ranges(&loaded.entries().await.unwrap()), [(0, 9), (10, 19), (20, 29)]);
    assert_eq!(other.partitions().await.unwrap(), [(partition().tp, 0)]);
    assert!(other.load(&partition().tp, Some(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_reader_follows_and_pays_two_requests_while_nothing_changes() {
    let mut writer = Writer::new();
    let first = writer.archive(&[(0, 9)]).await.unwrap();
    let before = writer.store.requests();
    assert!(Arc::ptr_eq(&writer.catalog.newer(&first).await.unwrap(), &first));
    assert_eq!(writer.store.requests().since(&before).total(), 2);
    for n in 1..20 {
        let last = writer.archive(&[(n * 10, n * 10 + 9)]).await.unwrap();
        assert_eq!(writer.catalog.newer(&first).await.unwrap().number(), last.number());
    }
}

/// Table: F11 I6 | the chain of manifests
#[tokio::test]
async fn a_manifest_that_does_not_follow_on_the_known_one_is_refused() {
    let mut writer = Writer::new();
    let first = writer.archive(&[(0, 9)]).await.unwrap();
    let second = writer.archive(&[(10, 19)]).await.unwrap();
    let mut forged = second.manifest().clone();
    forged.predecessor = [1; 32];
    let key = manifest_key(&partition(), 2);
    writer.store.put(&key, forged.encode().unwrap()).await.unwrap();
    let error = writer.catalog.newer(&first).await.unwrap_err();
    assert!(matches!(error, CatalogError::Chain { .. }), "{error}");
    let loaded = writer.loaded().await.unwrap();
    let error = writer.catalog.verify_history(&loaded).await.unwrap_err();
    assert!(matches!(error, CatalogError::Chain { .. }), "{error}");
}

/// Table: F11 I6 | a manifest, in the place of another
#[tokio::test]
async fn a_manifest_under_the_name_of_another_is_refused() {
    let mut writer = Writer::new();
    let first = writer.archive(&[(0, 9)]).await.unwrap();
    let bytes = first.manifest().encode().unwrap();
    let other = PartitionKey { incarnation: 4, ..partition() };
    for key in [manifest_key(&partition(), 2), manifest_key(&other, 1)] {
        writer.store.put(&key, bytes.clone()).await.unwrap();
        let ObjectKey::Manifest { of, .. } = &key else { unreachable!() };
        let error = writer.catalog.load(&of.tp, Some(of.incarnation)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().starts_with(&key.to_string()), "{error}");
    }
}

/// Table: I3 | commits that leave holes or overlap
#[tokio::test]
async fn what_does_not_tile_is_refused() {
    let mut writer = Writer::new();
    writer.archive(&[(0, 9), (10, 19)]).await.unwrap();
    let number = writer.next();
    let add = |tiles: &[(i64, i64)]| Edit {
        add: tiles.iter().map(|(base, last)| entry(number, *base, *last)).collect(),
        ..Edit::default()
    };
    for tiles in [&[(19, 25)][..], &[(5, 7)], &[(0, 9)], &[(20, 25), (25, 26)]] {
        let error = writer.refused(add(tiles)).await;
        assert!(matches!(error, CatalogError::Overlap { .. }), "{tiles:?}: {error}");
    }
    for (tiles, hole) in [(&[(21, 25)][..], (20, 20)), (&[(20, 25), (30, 31)], (26, 29))] {
        let error = writer.refused(add(tiles)).await;
        let expected = range(hole.0, hole.1);
        assert!(matches!(error, CatalogError::Hole { range } if range == expected), "{error}");
    }
    let over = Edit { gaps: vec![gap(15, 25)], ..Edit::default() };
    assert!(matches!(writer.refused(over).await, CatalogError::Overlap { .. }));
    // Dropping without a replacement or a gap leaves a hole, at the end as well.
    for lost in [(0, 9), (10, 19)] {
        let edit = Edit { remove: vec![entry(1, lost.0, lost.1)], ..Edit::default() };
        let error = writer.refused(edit).await;
        let expected = range(lost.0, lost.1);
        assert!(matches!(error, CatalogError::Hole { range } if range == expected), "{error}");
    }
    let mut fresh = Writer::new();
    let error = fresh.refused(Edit { add: vec![entry(1, 5, 9)], ..Edit::default() }).await;
    assert!(matches!(error, CatalogError::Hole { range: hole } if hole == range(0, 4)));
}

/// Table: F5 F11 I1 I5 | archives between upload and commit
#[tokio::test]
async fn an_archive_that_is_not_there_whole_cannot_be_committed() {
    let mut writer = Writer::new();
    let one = entry(1, 0, 9);
    let edit = Edit { add: vec![one.clone()], ..Edit::default() };
    let error = writer.commit(edit.clone()).await.unwrap_err();
    assert!(matches!(error, CatalogError::Absent { .. }), "{error}");
    writer.store.put(&one.key(), Bytes::from_static(b"short")).await.unwrap();
    let error = writer.commit(edit.clone()).await.unwrap_err();
    assert!(
        matches!(error, CatalogError::Length { expected: ARCHIVE_BYTES, found: 5, .. }),
        "{error}"
    );
    assert!(writer.loaded().await.is_none());
    land(&writer.store, &[one]).await;
    writer.commit(edit).await.unwrap();
}

#[tokio::test]
async fn what_was_made_for_another_manifest_or_partition_is_refused() {
    let mut writer = Writer::new();
    writer.archive(&[(0, 9)]).await.unwrap();
    for built_for in [1, 3] {
        let edit = Edit { add: vec![entry(built_for, 10, 19)], ..Edit::default() };
        let error = writer.refused(edit).await;
        assert!(matches!(error, CatalogError::NotBuiltFor { number: 2, .. }), "{error}");
    }
    let twice = Edit { add: vec![entry(2, 10, 19), entry(2, 10, 19)], ..Edit::default() };
    assert!(matches!(writer.refused(twice).await, CatalogError::Twice { .. }));
    let unknown = Edit { remove: vec![entry(1, 0, 8)], ..Edit::default() };
    assert!(matches!(writer.refused(unknown).await, CatalogError::NotListed { .. }));
    let many = Edit { gaps: vec![gap(10, 10); EDIT_CHANGES_MAX + 1], ..Edit::default() };
    assert!(matches!(writer.refused(many).await, CatalogError::TooMany { .. }));

    let other = TopicPartition::new(TopicName::new("other").unwrap(), 0).unwrap();
    let edit = Edit { add: vec![entry(1, 0, 9)], ..Edit::default() };
    let error = writer.catalog.commit(&other, 0, None, edit).await.unwrap_err();
    assert!(matches!(error, CatalogError::OtherPartition { .. }), "{error}");
    let error =
        writer.catalog.commit(&other, 0, writer.base.clone(), Edit::default()).await.unwrap_err();
    assert!(matches!(error, CatalogError::OtherPartition { .. }), "{error}");
}

#[tokio::test]
async fn gaps_count_as_archived_and_a_latecomer_fills_them() {
    let mut writer = Writer::new();
    let number = writer.next();
    let add = vec![entry(number, 5, 9), entry(number, 30, 39)];
    land(&writer.store, &add).await;
    let first = Gap { range: range(0, 4), kind: GapKind::BeforeFirst };
    let edit = Edit { add, gaps: vec![first, gap(10, 29)], ..Edit::default() };
    let snapshot = writer.commit(edit).await.unwrap();
    assert_eq!(snapshot.archived_through(), 40);
    assert_eq!(snapshot.gaps().await.unwrap(), [first, gap(10, 29)]);
    assert_eq!(snapshot.gaps_in(range(12, 12)).await.unwrap(), [gap(10, 29)]);
    assert!(snapshot.gaps_in(range(30, 99)).await.unwrap().is_empty());

    let snapshot = writer.archive(&[(15, 19)]).await.unwrap();
    assert_eq!(snapshot.archived_through(), 40);
    assert_eq!(snapshot.gaps().await.unwrap(), [first, gap(10, 14), gap(20, 29)]);
    let snapshot = writer.archive(&[(10, 14), (20, 24)]).await.unwrap();
    assert_eq!(snapshot.gaps().await.unwrap(), [first, gap(25, 29)]);
    let snapshot = writer.archive(&[(25, 29), (40, 49)]).await.unwrap();
    assert_eq!(snapshot.gaps().await.unwrap(), [first]);
    assert_eq!(snapshot.archived_through(), 50);
    // Across a gap's border another archive is hit.
    let error = writer.archive(&[(3, 5)]).await.unwrap_err();
    assert!(matches!(error, CatalogError::Overlap { .. }), "{error}");
    // An archive that is lost may be given up for a gap.
    let edit = Edit { remove: vec![entry(2, 15, 19)], gaps: vec![gap(15, 19)], ..Edit::default() };
    let snapshot = writer.commit(edit).await.unwrap();
    assert_eq!(snapshot.gaps().await.unwrap(), [first, gap(15, 19)]);
}

#[tokio::test]
async fn what_tiles_nothing_lies_beside_and_is_found() {
    let mut writer = Writer::new();
    writer.archive(&[(0, 9), (10, 19)]).await.unwrap();
    let add = vec![beside(2, 5, 14)];
    land(&writer.store, &add).await;
    let snapshot = writer.commit(Edit { add, ..Edit::default() }).await.unwrap();
    assert_eq!(snapshot.archived_through(), 20);
    let found = snapshot.find_by_offset_range(range(12, 12)).await.unwrap();
    assert_eq!(ranges(&found), [(5, 14), (10, 19)]);
    assert_eq!(found.iter().map(|entry| entry.summary.tiles).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn the_log_start_moves_forward_and_lets_old_archives_go() {
    let mut writer = Writer::new();
    let edit = Edit { log_start: Some(100), ..Edit::default() };
    let snapshot = writer.commit(edit).await.unwrap();
    assert_eq!((snapshot.log_start(), snapshot.archived_through()), (100, 100));
    writer.archive(&[(100, 109), (110, 119), (120, 129)]).await.unwrap();
    let back = Edit { log_start: Some(99), ..Edit::default() };
    assert!(matches!(writer.refused(back).await, CatalogError::LogStart { from: 100, .. }));
    let beyond = Edit { log_start: Some(131), ..Edit::default() };
    assert!(matches!(writer.refused(beyond).await, CatalogError::Hole { .. }));
    let edit = Edit { log_start: Some(115), remove: vec![entry(2, 100, 109)], ..Edit::default() };
    let snapshot = writer.commit(edit).await.unwrap();
    assert_eq!((snapshot.log_start(), snapshot.archived_through()), (115, 130));
    assert_eq!(ranges(&snapshot.entries().await.unwrap()), [(110, 119), (120, 129)]);
    let needed = Edit { remove: vec![entry(2, 110, 119)], ..Edit::default() };
    assert!(matches!(writer.refused(needed).await, CatalogError::Hole { .. }));
    let all = vec![entry(2, 110, 119), entry(2, 120, 129)];
    let edit = Edit { log_start: Some(130), remove: all, ..Edit::default() };
    let snapshot = writer.commit(edit).await.unwrap();
    assert_eq!((snapshot.log_start(), snapshot.archived_through()), (130, 130));
    assert!(snapshot.entries().await.unwrap().is_empty());
}

#[tokio::test]
async fn open_transactions_come_back_however_many_they_are() {
    let mut writer = Writer::new();
    for count in [0, 1, 128, 129, 5_000, 3] {
        let open: Vec<_> = (0..count)
            .map(|n| OpenTransaction { producer_id: n, first_offset: 7 + n % 50 })
            .collect();
        let end = writer.base.as_deref().map_or(0, Snapshot::archived_through);
        let add = vec![entry(writer.next(), end, end + 9)];
        land(&writer.store, &add).await;
        let edit = Edit { add, open_transactions: Some(open.clone()), ..Edit::default() };
        let snapshot = writer.commit(edit).await.unwrap();
        assert_eq!(snapshot.open_transactions(), open);
        assert_eq!(writer.loaded().await.unwrap().open_transactions(), open);
        let stable = if count == 0 { snapshot.archived_through() } else { 7 };
        assert_eq!(snapshot.last_stable_offset(), stable);
        // A commit that says nothing of them keeps them, and the object they are in.
        let kept = writer.commit(Edit::default()).await.unwrap();
        assert_eq!(kept.open_transactions(), open);
        assert_eq!(kept.manifest().open, snapshot.manifest().open);
        writer.archive(&[(end + 10, end + 19)]).await.unwrap();
    }
}

#[tokio::test]
async fn a_topic_id_is_adopted_once_and_never_changed() {
    let mut writer = Writer::new();
    writer.archive(&[(0, 9)]).await.unwrap();
    let id = |byte| Edit { topic_id: Some([byte; 16]), ..Edit::default() };
    assert_eq!(writer.commit(id(1)).await.unwrap().manifest().topic_id, Some([1; 16]));
    let later = writer.archive(&[(10, 19)]).await.unwrap();
    assert_eq!(later.manifest().topic_id, Some([1; 16]));
    assert!(matches!(writer.refused(id(2)).await, CatalogError::TopicId { .. }));
}

#[tokio::test]
async fn a_later_incarnation_must_have_been_begun_and_is_the_one_loaded() {
    let mut writer = Writer::new();
    let of = partition();
    let topic = of.tp.topic();
    writer.archive(&[(0, 9)]).await.unwrap();
    let error = writer.catalog.commit(&of.tp, 1, None, Edit::default()).await.unwrap_err();
    assert!(matches!(error, CatalogError::NoIncarnation { number: 1, .. }), "{error}");
    assert!(writer.catalog.begin_incarnation(topic, 2, None).await.is_err());
    writer.catalog.begin_incarnation(topic, 1, Some([3; 16])).await.unwrap();
    assert!(writer.catalog.load(&of.tp, None).await.unwrap().is_none());
    writer.catalog.commit(&of.tp, 1, None, Edit::default()).await.unwrap();
    let loaded = writer.catalog.load(&of.tp, None).await.unwrap().unwrap();
    assert_eq!((loaded.incarnation(), loaded.archived_through()), (1, 0));
    let old = writer.catalog.load(&of.tp, Some(0)).await.unwrap().unwrap();
    assert_eq!(old.archived_through(), 10);
    let lives = writer.catalog.incarnations(topic).await.unwrap();
    assert_eq!(lives.iter().map(|life| life.topic_id).collect::<Vec<_>>(), [None, Some([3; 16])]);
    assert_eq!(writer.catalog.partitions().await.unwrap(), [(of.tp.clone(), 0), (of.tp, 1)]);
}

/// Table: F12 I8 | two processes that commit in turn
#[tokio::test]
async fn the_epoch_rises_when_another_process_commits() {
    let mut writer = Writer::new();
    writer.archive(&[(0, 9)]).await.unwrap();
    assert_eq!(writer.commit(Edit::default()).await.unwrap().manifest().writer_epoch, 1);
    // The same name again, after a restart; then another; then the first, still alive.
    let first = Arc::clone(&writer.catalog);
    for (name, epoch) in [("one", 2), ("two", 3), ("two", 4)] {
        writer.catalog = catalog(&writer.store, name, 9);
        assert_eq!(writer.commit(Edit::default()).await.unwrap().manifest().writer_epoch, epoch);
        assert_eq!(writer.commit(Edit::default()).await.unwrap().manifest().writer_epoch, epoch);
    }
    writer.catalog = first;
    assert_eq!(writer.commit(Edit::default()).await.unwrap().manifest().writer_epoch, 5);
}

#[tokio::test]
async fn the_second_of_two_writers_loses_and_is_told_the_newest() {
    let mut one = Writer::new();
    let base = one.archive(&[(0, 9)]).await.unwrap();
    let two = catalog(&one.store, "two", 2);
    one.archive(&[(10, 19)]).await.unwrap();
    one.archive(&[(20, 29)]).await.unwrap();
    let add = vec![entry(2, 10, 14)];
    land(&one.store, &add).await;
    let edit = Edit { add, ..Edit::default() };
    let error = two.commit(&partition().tp, 0, Some(base), edit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let CatalogError::Lost { newest } = error else { panic!("{error}") };
    assert_eq!((newest.number(), newest.archived_through()), (3, 30));
}

/// Table: F13 I8 I9 | a block that is closed beneath a commit
#[tokio::test]
async fn a_commit_into_a_closed_block_is_void_and_undone() {
    let mut writer = Writer::new();
    let base = writer.archive(&[(0, 9)]).await.unwrap();
    let sleeper = catalog(&writer.store, "sleeper", 2);
    // Others go on for two blocks; the first is closed and collected.
    for _ in 0..2 * BLOCK {
        writer.commit(Edit::default()).await.unwrap();
    }
    let newest = writer.archive(&[(10, 19)]).await.unwrap();
    let closed = ObjectKey::Closed { of: partition(), block: 0 };
    writer.store.put(&closed, Bytes::new()).await.unwrap();
    for number in 1..BLOCK {
        writer.store.delete(&manifest_key(&partition(), number)).await.unwrap();
    }

    let add = vec![entry(2, 10, 14)];
    land(&writer.store, &add).await;
    let edit = Edit { add, ..Edit::default() };
    let error =
        sleeper.commit(&partition().tp, 0, Some(Arc::clone(&base)), edit).await.unwrap_err();
    let CatalogError::Lost { newest: told } = error else { panic!("{error}") };
    assert_eq!(told.number(), newest.number());
    assert_eq!(writer.store.head(&manifest_key(&partition(), 2)).await.unwrap(), None);
    assert_eq!(sleeper.newer(&base).await.unwrap().number(), newest.number());
    assert_eq!(writer.loaded().await.unwrap().number(), newest.number());
    writer.catalog.verify_history(&newest).await.unwrap();
}

/// Table: F9 F11 I6 | pages of the catalog
#[tokio::test]
async fn a_damaged_or_lost_page_is_told_by_name() {
    let mut writer = Writer::new();
    for n in 0..200 {
        writer.archive(&[(n * 10, n * 10 + 9)]).await.unwrap();
    }
    let newest = writer.loaded().await.unwrap();
    writer.catalog.verify_history(&newest).await.unwrap();
    let page = newest.manifest().pages[0].key(&partition());
    let bytes = writer.store.get(&page, 1 << 20).await.unwrap();
    let mut damaged = bytes.to_vec();
    damaged[100] ^= 1;
    writer.store.put(&page, damaged.into()).await.unwrap();
    for expected in [ErrorKind::Corrupt, ErrorKind::NotFound] {
        let fresh = catalog(&writer.store, "fresh", 3);
        let loaded = fresh.load(&partition().tp, None).await.unwrap().unwrap();
        for error in [
            loaded.find_by_offset_range(range(0, 0)).await.unwrap_err(),
            fresh.verify_history(&loaded).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), expected, "{error}");
            assert!(error.to_string().starts_with(&page.to_string()), "{error}");
        }
        // Other offsets go on.
        let end = loaded.archived_through() - 1;
        assert_eq!(loaded.find_by_offset_range(range(end, end)).await.unwrap().len(), 1);
        writer.store.delete(&page).await.unwrap();
    }
}

/// What a search must find, by looking at everything.
fn brute(all: &[ArchiveEntry], wanted: impl Fn(&ArchiveEntry) -> bool) -> Vec<ArchiveEntry> {
    all.iter().filter(|entry| wanted(entry)).cloned().collect()
}

#[tokio::test]
async fn twenty_thousand_archives_cost_little_to_commit_and_to_search() {
    const COUNT: i64 = 20_000;
    let mut writer = Writer::new();
    let (mut most, mut total, mut requests) = (0, 0, 0);
    for n in 0..COUNT {
        let number = writer.next();
        let mut add = vec![entry(number, n * 10, n * 10 + 9)];
        if n % 50 == 7 {
            add.push(beside(number, n * 10 - 25, n * 10 + 3));
        }
        land(&writer.store, &add).await;
        let before = writer.store.requests();
        writer.commit(Edit { add, ..Edit::default() }).await.unwrap();
        let sent = writer.store.requests().since(&before);
        let bytes = sent.of(Op::Put).bytes + sent.of(Op::Create).bytes;
        most = most.max(bytes);
        total += bytes;
        requests = requests.max(sent.total());
    }
    println!(
        "{COUNT} commits wrote at most {most} bytes each, {} on average",
        total / COUNT as u64
    );
    assert!(most <= 64 << 10, "{most} bytes in one commit");
    assert!(requests <= 8, "{requests} requests in one commit");

    // A late archive in the middle rewrites its path and no more.
    let add = vec![beside(writer.next(), 77_777, 77_790)];
    land(&writer.store, &add).await;
    let before = writer.store.requests();
    writer.commit(Edit { add, ..Edit::default() }).await.unwrap();
    let sent = writer.store.requests().since(&before);
    let bytes = sent.of(Op::Put).bytes + sent.of(Op::Create).bytes;
    assert!(bytes <= 64 << 10, "{bytes} bytes");

    let fresh = catalog(&writer.store, "fresh", 3);
    let snapshot = fresh.load(&partition().tp, None).await.unwrap().unwrap();
    assert_eq!(snapshot.totals().entries, 20_401);
    let before = writer.store.requests();
    let found = snapshot.find_by_offset_range(range(50_000, 50_000)).await.unwrap();
    assert_eq!(ranges(&found), [(50_000, 50_009)]);
    assert!(writer.store.requests().since(&before).of(Op::Get).requests <= 3);
    let all = snapshot.entries().await.unwrap();
    assert_eq!(all.len(), 20_401);
    fresh.verify_history(&snapshot).await.unwrap();
}

#[tokio::test]
async fn pages_without_transactions_are_passed_by() {
    let mut writer = Writer::new();
    // Archives that begin at a multiple of three have nothing to do with any.
    let add: Vec<_> = (0..2_000).map(|n| entry(1, n * 3, n * 3 + 2)).collect();
    land(&writer.store, &add).await;
    writer.commit(Edit { add, ..Edit::default() }).await.unwrap();
    let add = vec![entry(2, 6_000, 6_000), entry(2, 6_001, 6_002)];
    land(&writer.store, &add).await;
    writer.commit(Edit { add, ..Edit::default() }).await.unwrap();

    let snapshot = catalog(&writer.store, "fresh", 3).load(&partition().tp, None).await.unwrap();
    let snapshot = snapshot.unwrap();
    let before = writer.store.requests();
    let found = snapshot.next_transactional(10).await.unwrap().unwrap();
    assert_eq!(found.summary.range, range(6_001, 6_002));
    assert!(snapshot.next_transactional(6_003).await.unwrap().is_none());
    assert_eq!(writer.store.requests().since(&before).total(), 0);
}

#[derive(Clone, Debug)]
struct Question {
    offsets: OffsetRange,
    times: (i64, i64),
}

fn any_question() -> impl Strategy<Value = Question> {
    (0..9_000i64, 0..900i64, -500..99_000i64, 0..9_000i64).prop_map(|(base, len, from, span)| {
        Question { offsets: range(base, base + len), times: (from, from + span) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn searches_find_what_looking_at_everything_finds(
        tiles in prop::collection::vec((1..40i64, 0..10u8), 1..400),
        questions in prop::collection::vec(any_question(), 20),
        step in 1..40usize,
    ) {
        let work = async {
            let mut writer = Writer::new();
            let (mut next, mut all, mut gaps) = (0, Vec::new(), Vec::new());
            for batch in tiles.chunks(step) {
                let number = writer.next();
                let mut edit = Edit::default();
                for (len, kind) in batch {
                    let (base, last) = (next, next + len - 1);
                    next += len;
                    match kind {
                        0 => edit.gaps.push(gap(base, last)),
                        1 => edit.add.extend([entry(number, base, last), beside(number, base / 2, last)]),
                        _ => edit.add.push(entry(number, base, last)),
                    }
                }
                land(&writer.store, &edit.add).await;
                all.extend(edit.add.clone());
                gaps.extend(edit.gaps.clone());
                writer.commit(edit).await.unwrap();
            }
            all.sort_by(|a, b| entry::order(a).cmp(&entry::order(b)));
            let fresh = catalog(&writer.store, "fresh", 3);
            let snapshot = fresh.load(&partition().tp, None).await.unwrap().unwrap();
            assert_eq!(snapshot.archived_through(), next);
            assert_eq!(snapshot.entries().await.unwrap(), all);
            assert_eq!(snapshot.gaps().await.unwrap(), gaps);
            for Question { offsets, times: (from, to) } in questions {
                assert_eq!(
                    snapshot.find_by_offset_range(offsets).await.unwrap(),
                    brute(&all, |entry| entry.summary.range.overlaps(offsets))
                );
                assert_eq!(
                    snapshot.find_by_time_range(from, to).await.unwrap(),
                    brute(&all, |e| e.summary.min_timestamp <= to && from <= e.summary.max_timestamp)
                );
                let within: Vec<_> =
                    gaps.iter().filter(|gap| gap.range.overlaps(offsets)).copied().collect();
                assert_eq!(snapshot.gaps_in(offsets).await.unwrap(), within);
                let next = brute(&all, |entry| {
                    let summary = &entry.summary;
                    summary.tiles && summary.transactions > 0 && summary.range.last() >= offsets.base()
                });
                assert_eq!(
                    snapshot.next_transactional(offsets.base()).await.unwrap().as_ref(),
                    next.first()
                );
            }
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }
}

#[tokio::test]
async fn the_catalog_can_be_used_from_many_tasks() {
    let writer = Writer::new();
    let other = Arc::clone(&writer.catalog);
    let task = tokio::spawn(async move {
        other.probe().await?;
        let of = partition();
        let committed = other.commit(&of.tp, 0, None, Edit::default()).await?;
        other.newer(committed.snapshot()).await?;
        committed.snapshot().entries().await?;
        other.verify_history(committed.snapshot()).await?;
        other.partitions().await
    });
    assert_eq!(task.await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn one_archive_is_found_as_by_looking_at_all() {
    let mut writer = Writer::new();
    let mut seed = 7_u64;
    let mut random = move |below: i64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as i64 % below
    };
    // Enough for pages below the root.
    for round in 0..40 {
        let number = writer.next();
        let mut add: Vec<_> = (0..10)
            .map(|n| entry(number, round * 100 + n * 10, round * 100 + n * 10 + 9))
            .collect();
        add.push(beside(number, round * 100 + 5, round * 100 + 55));
        for one in &mut add {
            one.summary.max_timestamp = 5_000 + random(40);
            one.summary.min_timestamp = 0;
        }
        land(&writer.store, &add).await;
        writer.commit(Edit { add, ..Edit::default() }).await.unwrap();
    }
    let snapshot = writer.loaded().await.unwrap();
    assert!(!snapshot.manifest().pages.is_empty());
    let mut all = snapshot.entries().await.unwrap();
    all.retain(|entry| entry.summary.tiles);
    for _ in 0..200 {
        let (offset, from_ms) = (random(4_100), 4_990 + random(60));
        let fits = |entry: &&ArchiveEntry| {
            entry.summary.range.last() >= offset && entry.summary.max_timestamp >= from_ms
        };
        let found = snapshot.next_archive(offset, from_ms).await.unwrap();
        assert_eq!(found.as_ref(), all.iter().find(fits), "{offset}, {from_ms}");
    }
    let within = range(333, 2_222);
    let mut ranked: Vec<_> =
        all.into_iter().filter(|entry| entry.summary.range.overlaps(within)).collect();
    ranked.sort_by_key(|entry| (-entry.summary.max_timestamp, entry.summary.range.base()));
    let mut after = None;
    for expected in &ranked {
        let found = snapshot.latest_archive(within, after).await.unwrap().unwrap();
        assert_eq!(found, *expected);
        after = Some(TimeRank::of(&found));
    }
    assert!(snapshot.latest_archive(within, after).await.unwrap().is_none());
}
