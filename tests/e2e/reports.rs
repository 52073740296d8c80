//! What the broker reports: nothing above its committed end is archived, its start
//! closes segments, and callers of another leader, lineage or topic are refused.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tierd::archive::ArchiveOptions;
use tierd::clock::{Clock, SystemClock};
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{
    Caller, FetchEvent, FetchRequest, Isolation, OffsetQuery, PartitionRequest, PartitionTrailer,
    Status,
};
use tierd::indexer::{
    Indexer, LiveIndexer, LogStart, LogStartError, LogStarts, PartitionReport as StepReport,
};
use tierd::read::ReadStats;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::reports::{Lineage, Report};
use tierd::store::Store;
use tierd::wal::{WalDir, WalFormat};
use tierd_client::{
    ArchiveClient, ArchiveError, BrokerReport, FetchArgs, OffsetArgs, OffsetRange, OffsetSpec,
    PartitionReport, Role,
};
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::fixture;
use tierd_tests::process::Tierd;
use tierd_tests::reads::all_from;

use crate::TIERD;

/// When the segments were last written, in seconds since 1970.
const WRITTEN: u64 = 1_700_000_000;
/// When the broker started again, in milliseconds.
const STARTED: i64 = (WRITTEN as i64 + 100) * 1000;
const ID: [u8; 16] = [7; 16];

/// A batch of leader epoch `epoch`, which lies outside of the batch's checksum.
fn batch(base: i64, last: i64, epoch: i32) -> Bytes {
    let count = (last - base + 1) as i32;
    let mut wire = sample_batch(base, count, 20 + epoch as usize, Codec::None).unwrap().to_vec();
    wire[12..16].copy_from_slice(&epoch.to_be_bytes());
    wire.into()
}

/// A broker's WAL, the rooms beside it and the indexer.
struct Beside {
    folder: tempfile::TempDir,
    rooms: Rooms,
    live: Arc<LiveIndexer>,
    tp: TopicPartition,
}

impl Beside {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap(), Store::open("memory:").unwrap())
    }

    /// Another process beside the same broker, to which nothing is reported yet.
    fn restarted(self) -> Self {
        Self::on(self.folder, self.rooms.store)
    }

    fn on(folder: tempfile::TempDir, store: Store) -> Self {
        let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
        let rooms = Rooms::over(store, &config).unwrap();
        std::fs::create_dir_all(folder.path().join("wal")).unwrap();
        let indexer = Indexer::new(
            WalFormat::Chronik,
            Arc::clone(&rooms.catalog),
            rooms.store.clone(),
            rooms.reader.clone(),
            folder.path().join("scratch"),
            ArchiveOptions::default(),
            rooms.metrics.clone(),
        );
        let wal = WalDir::open(&folder.path().join("wal"), WalFormat::Chronik).unwrap();
        let options = Config::default().live(false).unwrap();
        let live = LiveIndexer::new(indexer, wal, options, SystemClock::new(), Arc::new(|| 1.0))
            .heeding(Arc::clone(&rooms.reports));
        Self { folder, rooms, live: Arc::new(live), tp: of(0) }
    }

    fn segment(&self, id: u64, batches: &[Bytes]) {
        self.segment_of(0, id, batches);
    }

    fn segment_of(&self, partition: i32, id: u64, batches: &[Bytes]) {
        let wal = self.folder.path().join("wal");
        let mut segment = WalWriter::create(&wal, "t", partition, id).unwrap();
        for batch in batches {
            segment.append(batch).unwrap();
        }
        written(&segment.finish().unwrap());
    }

    fn delete(&self, partition: i32, id: u64) {
        let path = format!("wal/t/{partition}/wal_{partition}_{id}.log");
        std::fs::remove_file(self.folder.path().join(path)).unwrap();
    }

    fn has_id(&self, partition: i32, id: u8) {
        let report = Report { topic_id: Some([id; 16]), ..Report::default() };
        self.rooms.reports.report(&of(partition), report).unwrap();
    }

    /// Archives what is due, for as long as something is; the last report of `tp`.
    async fn archive_all(&self) -> Option<StepReport> {
        let mut last = None;
        for _ in 0..4 {
            let look = self.live.look().unwrap();
            for tp in &look.due {
                let (report, _) = self.live.step(tp).await;
                assert!(report.error.is_none(), "{:?}", report.error);
                last = Some(report).filter(|_| *tp == self.tp).or(last);
            }
            if look.due.is_empty() {
                return last;
            }
        }
        panic!("partitions stay due");
    }

    /// How far the archive of one life goes, and the topic id in it.
    async fn life(&self, partition: i32, number: u32) -> Option<(i64, Option<[u8; 16]>)> {
        let newest = self.rooms.catalog.load(&of(partition), Some(number)).await.unwrap()?;
        Some((newest.archived_through(), newest.manifest().topic_id))
    }

    /// The topic ids that the lives began with.
    async fn lives(&self) -> Vec<Option<[u8; 16]>> {
        let lives = self.rooms.catalog.incarnations(self.tp.topic()).await.unwrap();
        lives.iter().map(|life| life.topic_id).collect()
    }

    fn report(&self, report: Report) {
        self.rooms.reports.report(&self.tp, report).unwrap();
    }

    fn high_watermark(&self, offset: i64) {
        self.report(Report { high_watermark: Some(offset), ..Report::default() });
    }

    /// Archives what is due; how far the archive goes then.
    async fn archive(&self) -> i64 {
        let look = self.live.look().unwrap();
        for tp in look.due {
            let (report, _) = self.live.step(&tp).await;
            assert!(report.error.is_none(), "{:?}", report.error);
        }
        let newest = self.rooms.catalog.load(&self.tp, None).await.unwrap();
        newest.map_or(0, |newest| newest.archived_through())
    }

    async fn fetch(&self, offset: i64, caller: Caller) -> (PartitionTrailer, Vec<u8>) {
        self.fetch_life(None, offset, caller).await
    }

    async fn fetch_life(
        &self,
        incarnation: Option<u32>,
        offset: i64,
        caller: Caller,
    ) -> (PartitionTrailer, Vec<u8>) {
        let partition = PartitionRequest { incarnation, caller, ..all_from(&self.tp, offset) };
        let request = FetchRequest { partitions: vec![partition], max_bytes: u64::MAX };
        let (sink, mut events) = tokio::sync::mpsc::channel(100);
        self.rooms.fetcher.fetch(request, &sink, &ReadStats::default()).await.unwrap();
        drop(sink);
        let mut wire = Vec::new();
        loop {
            match events.recv().await.unwrap() {
                FetchEvent::Header(_) => {}
                FetchEvent::Data(data) => wire.extend_from_slice(&data.wire),
                FetchEvent::Trailer(trailer) => return (trailer, wire),
            }
        }
    }

    async fn status(&self, offset: i64, caller: Caller) -> Status {
        self.fetch(offset, caller).await.0.status
    }
}

fn of(partition: i32) -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), partition).unwrap()
}

fn written(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(WRITTEN)).unwrap();
}

#[tokio::test]
async fn nothing_above_the_committed_end_is_archived() {
    let beside = Beside::new();
    beside.segment(0, &[batch(0, 9, 0), batch(10, 19, 0), batch(20, 29, 0)]);
    assert_eq!(beside.archive().await, 0, "nobody said that the segment is closed");
    beside.high_watermark(20);
    beside.rooms.reports.broker_started(STARTED);
    assert_eq!(beside.archive().await, 20);
    assert_eq!(beside.archive().await, 20);
    // A transaction that is open: what it may take back is not archived.
    let stable =
        Report { high_watermark: Some(30), last_stable_offset: Some(25), ..Report::default() };
    beside.report(stable);
    assert_eq!(beside.archive().await, 20);
    beside.report(Report { last_stable_offset: Some(30), ..Report::default() });
    assert_eq!(beside.archive().await, 30);
    assert!(beside.live.look().unwrap().due.is_empty(), "a settled partition costs no step");
}

#[tokio::test]
async fn the_lag_counts_to_the_log_end_that_the_broker_reports() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    beside.segment(0, &[batch(0, 9, 0)]);
    beside.report(Report { high_watermark: Some(10), log_end: Some(25), ..Report::default() });
    assert_eq!(beside.archive().await, 10);
    beside.live.look().unwrap();
    let text = beside.rooms.metrics.page().unwrap();
    assert!(text.contains("\ntierd_archive_lag_offsets 15\n"), "{text}");
    let beyond = Report { high_watermark: Some(30), log_end: Some(29), ..Report::default() };
    let refused = beside.rooms.reports.report(&beside.tp, beyond).unwrap_err();
    assert!(refused.to_string().contains("high watermark 30 lies above log end 29"), "{refused}");
}

/// Table: F28 I3 I4 | a leader change that truncates the log
#[tokio::test]
async fn a_truncated_suffix_is_never_served() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    beside.high_watermark(10);
    // The leader of epoch 0 wrote up to 29 and was deposed before that was committed.
    beside.segment(0, &[batch(0, 9, 0), batch(10, 29, 0)]);
    assert_eq!(beside.archive().await, 10);
    let (kept, late) = (batch(10, 14, 1), batch(15, 34, 1));
    beside.segment(1, std::slice::from_ref(&kept));
    beside.high_watermark(15);
    // From 15 on only the truncated batch is there yet.
    assert_eq!(beside.archive().await, 10);
    beside.segment(2, std::slice::from_ref(&late));
    beside.high_watermark(35);
    assert_eq!(beside.archive().await, 35);
    let (trailer, wire) = beside.fetch(0, Caller::default()).await;
    assert_eq!(trailer.status, Status::Ok, "{}", trailer.message);
    assert_eq!(wire, [batch(0, 9, 0), kept, late].concat());
}

/// Table: F28 I6 | a leader change that truncates what is archived
#[tokio::test]
async fn a_truncated_suffix_below_the_committed_end_is_told_by_the_lineage() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    let (old, lost) = (batch(0, 9, 0), batch(10, 19, 0));
    beside.segment(0, &[old.clone(), lost.clone()]);
    let (kept, late) = (batch(10, 14, 1), batch(15, 34, 1));
    beside.segment(1, std::slice::from_ref(&kept));
    // All of it is committed, and the last batch lies in a segment that may grow: of 15
    // only the truncated batch is to be had.
    let lineage = Lineage::new(vec![(0, 0), (1, 10)]);
    beside.report(Report { high_watermark: Some(35), lineage, ..Report::default() });
    assert_eq!(beside.archive().await, 15);
    beside.segment(2, std::slice::from_ref(&late));
    let found = beside.archive_all().await.unwrap();
    assert_eq!((found.archived_through, found.releasable_through), (35, 35));
    assert_eq!(found.releasable, [0, 1, 2], "what was truncated is kept beneath");
    let (trailer, wire) = beside.fetch(0, Caller::default()).await;
    assert_eq!(trailer.status, Status::Ok, "{}", trailer.message);
    assert_eq!(wire, [old, kept, late].concat());
}

#[tokio::test]
async fn callers_of_another_leader_lineage_or_topic_are_refused() {
    let beside = Beside::new();
    beside.segment(0, &[batch(0, 9, 2), batch(10, 19, 4)]);
    beside.rooms.reports.broker_started(STARTED);
    let told = Report { topic_id: Some(ID), leader_epoch: Some(5), ..Report::default() };
    beside.report(told.clone());
    assert_eq!(beside.archive().await, 20);
    let newest = beside.rooms.catalog.load(&beside.tp, None).await.unwrap().unwrap();
    assert_eq!(newest.manifest().topic_id, Some(ID), "a topic id is adopted");

    let nobody = Caller::default();
    let epoch = |epoch| Caller { leader_epoch: Some(epoch), ..nobody };
    assert_eq!(beside.status(0, epoch(4)).await, Status::FencedLeaderEpoch);
    assert_eq!(beside.status(0, epoch(5)).await, Status::Ok);
    assert_eq!(beside.status(0, epoch(6)).await, Status::UnknownLeaderEpoch);

    let of = |epoch| Caller { offset_epoch: Some(epoch), ..nobody };
    assert_eq!(beside.status(12, of(4)).await, Status::Ok);
    assert_eq!(beside.status(12, of(2)).await, Status::OutsideLineage);
    assert_eq!(beside.status(3, of(4)).await, Status::OutsideLineage);

    let id = |id: u8| Caller { topic_id: Some([id; 16]), ..nobody };
    assert_eq!(beside.status(0, id(7)).await, Status::Ok);
    assert_eq!(beside.status(0, id(8)).await, Status::InconsistentTopicId);

    let follower = Caller { is_follower: true, ..nobody };
    assert_eq!(beside.status(0, follower).await, Status::OffsetMovedToTieredStorage);
    assert_eq!(beside.status(20, follower).await, Status::NotArchivedYet);

    // By the reported lineage, where the caller says nothing.
    beside.report(Report { lineage: Lineage::new(vec![(2, 0), (3, 10)]), ..Report::default() });
    assert_eq!(beside.status(12, nobody).await, Status::OutsideLineage);
    assert_eq!(beside.status(3, nobody).await, Status::Ok);

    // The log start is the broker's.
    beside.report(Report { log_start: Some(5), ..Report::default() });
    let (refused, _) = beside.fetch(4, nobody).await;
    assert_eq!(refused.status, Status::BelowLogStart);
    assert_eq!(refused.refused_by.unwrap().log_start, 5);

    // A topic made anew has nothing of the old one's.
    beside.report(Report { topic_id: Some([9; 16]), ..Report::default() });
    assert_eq!(beside.status(7, nobody).await, Status::UnknownTopicOrPartition);
    assert_eq!(beside.status(7, id(9)).await, Status::UnknownTopicOrPartition);
    assert_eq!(beside.status(7, id(7)).await, Status::InconsistentTopicId);
}

#[tokio::test]
async fn another_topic_id_begins_a_life_of_which_old_segments_are_no_part() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    let old = [batch(0, 9, 0), batch(10, 19, 0)];
    beside.segment(0, &old);
    beside.segment(1, &[batch(20, 29, 0)]);
    beside.has_id(0, 1);
    beside.high_watermark(20);
    let before = beside.archive_all().await.unwrap();
    assert_eq!((before.archived_through, before.releasable_through), (20, 20));
    assert_eq!(before.releasable, [0]);

    // Made anew: what is left of the old one is all there is.
    beside.has_id(0, 2);
    let found = beside.archive_all().await.unwrap();
    assert_eq!((found.incarnation, found.releasable_through), (1, 0));
    assert!(found.releasable.is_empty() && found.findings[0].line.contains("2 segments are left"));
    assert_eq!(beside.lives().await, [Some([1; 16]), Some([2; 16])]);
    assert_eq!(beside.life(0, 1).await, None);

    // Its own first segment, whose number lies behind the old ones'.
    let new = batch(0, 4, 3);
    beside.segment(2, std::slice::from_ref(&new));
    let found = beside.archive_all().await.unwrap();
    assert_eq!((found.archived_through, found.releasable_through), (5, 0));
    assert!(found.releasable.is_empty(), "{:?}", found.releasable);

    // A restart, and nothing is reported yet.
    let beside = beside.restarted();
    beside.rooms.reports.broker_started(STARTED);
    let late = batch(5, 9, 3);
    beside.segment(3, std::slice::from_ref(&late));
    let found = beside.archive_all().await.unwrap();
    assert_eq!((found.incarnation, found.archived_through), (1, 10));
    assert_eq!(found.releasable_through, 0);
    assert_eq!(beside.life(0, 0).await, Some((20, Some([1; 16]))));
    assert_eq!(beside.life(0, 1).await, Some((10, Some([2; 16]))));
    beside.has_id(0, 2);
    beside.archive_all().await;

    // One number comes again, the other goes.
    let again = batch(10, 14, 3);
    beside.segment(0, std::slice::from_ref(&again));
    beside.delete(0, 1);
    let found = beside.archive_all().await.unwrap();
    assert_eq!((found.archived_through, found.releasable_through), (15, 15));
    assert_eq!(found.releasable, [0, 2, 3]);

    let (trailer, wire) = beside.fetch(0, Caller::default()).await;
    assert_eq!(trailer.status, Status::Ok, "{}", trailer.message);
    assert_eq!(wire, [new, late, again].concat());
    let (trailer, wire) = beside.fetch_life(Some(0), 0, Caller::default()).await;
    assert_eq!(trailer.status, Status::Ok, "{}", trailer.message);
    assert_eq!(wire, old.concat());
    assert!(beside.live.look().unwrap().due.is_empty(), "a settled partition costs no step");
}

#[tokio::test]
async fn the_first_topic_id_is_adopted_and_the_same_again_changes_nothing() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    beside.segment(0, &[batch(0, 9, 0)]);
    beside.archive_all().await;
    assert_eq!(beside.life(0, 0).await, Some((10, None)));
    beside.has_id(0, 1);
    beside.archive_all().await;
    beside.segment(1, &[batch(10, 19, 0)]);
    beside.archive_all().await;
    assert_eq!(beside.life(0, 0).await, Some((20, Some([1; 16]))));
    beside.has_id(0, 1);
    assert!(beside.live.look().unwrap().due.is_empty());

    // The life began without an id; its manifest tells it.
    let beside = beside.restarted();
    beside.rooms.reports.broker_started(STARTED);
    beside.has_id(0, 1);
    assert_eq!(beside.archive_all().await.unwrap().incarnation, 0);
    assert_eq!(beside.lives().await, [None]);
    beside.has_id(0, 2);
    assert_eq!(beside.archive_all().await.unwrap().incarnation, 1);
    assert_eq!(beside.lives().await, [None, Some([2; 16])]);
}

#[tokio::test]
async fn a_topic_made_anew_before_anything_was_committed_is_another_life() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    beside.segment(0, &[batch(0, 9, 0)]);
    beside.has_id(0, 1);
    beside.high_watermark(0);
    assert_eq!(beside.archive_all().await.unwrap().archived_through, 0);
    beside.has_id(0, 2);
    beside.segment(1, &[batch(0, 4, 3)]);
    assert_eq!(beside.archive_all().await.unwrap().incarnation, 1);
    assert_eq!(beside.lives().await, [Some([1; 16]), Some([2; 16])]);
    assert_eq!(beside.life(0, 0).await, None);
    assert_eq!(beside.life(0, 1).await, Some((5, Some([2; 16]))));
}

#[tokio::test]
async fn partitions_of_a_topic_agree_on_the_life_of_an_id_each_when_it_is_told() {
    let beside = Beside::new();
    beside.rooms.reports.broker_started(STARTED);
    for partition in 0..2 {
        beside.segment_of(partition, 0, &[batch(0, 9, 0)]);
        beside.has_id(partition, 1);
    }
    beside.archive_all().await;
    beside.has_id(0, 2);
    beside.segment_of(0, 1, &[batch(0, 4, 3)]);
    // Of the other one the old id is still told: what it has is the old topic's.
    beside.segment_of(1, 1, &[batch(10, 19, 0)]);
    beside.archive_all().await;
    assert_eq!(beside.life(0, 1).await, Some((5, Some([2; 16]))));
    assert_eq!(beside.life(1, 0).await, Some((20, Some([1; 16]))));
    assert_eq!(beside.life(1, 1).await, None);

    beside.has_id(1, 2);
    beside.segment_of(1, 2, &[batch(0, 6, 3)]);
    beside.archive_all().await;
    assert_eq!(beside.life(1, 1).await, Some((7, Some([2; 16]))));
    assert_eq!(beside.life(1, 0).await, Some((20, Some([1; 16]))));
    assert_eq!(beside.life(0, 0).await, Some((10, Some([1; 16]))));
    assert_eq!(beside.lives().await, [Some([1; 16]), Some([2; 16])]);
}

#[tokio::test]
async fn a_log_start_moves_forward_only_and_to_what_is_committed() {
    let beside = Beside::new();
    beside.segment(0, &[batch(0, 9, 0), batch(10, 19, 0)]);
    beside.rooms.reports.broker_started(STARTED);
    assert_eq!(beside.archive().await, 20);
    let starts = LogStarts::new(Arc::clone(&beside.rooms.catalog));
    let to = async |to: LogStart, id: Option<[u8; 16]>| {
        let report = beside.rooms.reports.of(&beside.tp);
        let moved = starts.advance(&beside.tp, to, id, report.as_ref()).await;
        beside.rooms.fetcher.renew(&beside.tp).await.unwrap();
        moved
    };
    let generation =
        async || beside.rooms.catalog.load(&beside.tp, None).await.unwrap().unwrap().number();
    assert_eq!(to(LogStart::At(5), None).await.unwrap(), 5);
    let committed = generation().await;
    for again in [5, 3, 0] {
        assert_eq!(to(LogStart::At(again), None).await.unwrap(), 5);
    }
    assert_eq!(generation().await, committed, "what is there already costs no commit");
    assert_eq!(beside.status(4, Caller::default()).await, Status::BelowLogStart);
    assert_eq!(beside.status(5, Caller::default()).await, Status::Ok);

    // Nobody said how far the log goes.
    for unknown in [21, -1] {
        let error = to(LogStart::At(unknown), None).await.unwrap_err();
        assert!(matches!(error, LogStartError::NotReported { .. }), "{error}");
    }
    let error = to(LogStart::At(-2), None).await.unwrap_err();
    assert!(matches!(error, LogStartError::Invalid { .. }), "{error}");
    beside.high_watermark(30);
    let error = to(LogStart::At(31), None).await.unwrap_err();
    assert!(matches!(error, LogStartError::AboveHighWatermark { .. }), "{error}");

    // Deleted before it was archived.
    assert_eq!(to(LogStart::At(25), None).await.unwrap(), 25);
    let newest = beside.rooms.catalog.load(&beside.tp, None).await.unwrap().unwrap();
    assert_eq!((newest.log_start(), newest.archived_through()), (25, 25));
    assert_eq!(to(LogStart::At(-1), None).await.unwrap(), 30);
    beside.segment(1, &[batch(30, 39, 0)]);
    beside.high_watermark(40);
    assert_eq!(beside.archive().await, 40);
    beside.rooms.fetcher.renew(&beside.tp).await.unwrap();
    assert_eq!(beside.status(30, Caller::default()).await, Status::Ok);
}

#[tokio::test]
async fn a_deleted_partition_is_not_read_any_more() {
    let beside = Beside::new();
    let starts = LogStarts::new(Arc::clone(&beside.rooms.catalog));
    // Of what was never archived nothing is to be done.
    assert_eq!(starts.advance(&beside.tp, LogStart::End, None, None).await.unwrap(), 0);
    assert!(beside.rooms.catalog.load(&beside.tp, None).await.unwrap().is_none());

    beside.segment(0, &[batch(0, 9, 0), batch(10, 19, 0)]);
    beside.rooms.reports.broker_started(STARTED);
    beside.report(Report { topic_id: Some(ID), ..Report::default() });
    assert_eq!(beside.archive().await, 20);
    let other = starts.advance(&beside.tp, LogStart::End, Some([8; 16]), None).await.unwrap_err();
    assert!(matches!(other, LogStartError::OtherTopic { .. }), "{other}");
    for _ in 0..2 {
        assert_eq!(starts.advance(&beside.tp, LogStart::End, Some(ID), None).await.unwrap(), 20);
    }
    beside.rooms.fetcher.renew(&beside.tp).await.unwrap();
    for offset in 0..20 {
        assert_eq!(beside.status(offset, Caller::default()).await, Status::BelowLogStart);
    }
    assert_eq!(beside.status(20, Caller::default()).await, Status::NotArchivedYet);
    // The WAL still has it: it stays deleted.
    assert_eq!(beside.archive().await, 20);
    assert_eq!(beside.status(0, Caller::default()).await, Status::BelowLogStart);
}

#[tokio::test]
async fn the_ends_of_the_brokers_log_are_told_as_reported() {
    let beside = Beside::new();
    let query = |timestamp, isolation| OffsetQuery {
        tp: beside.tp.clone(),
        incarnation: None,
        timestamp,
        starting_offset: None,
        upper_bound: None,
        isolation,
        leader_epoch: Some(5),
    };
    let all = [
        query(-1, Isolation::ReadUncommitted),
        query(-1, Isolation::ReadCommitted),
        query(-4, Isolation::ReadUncommitted),
    ];
    let before = beside.rooms.fetcher.offsets(&all).await;
    assert!(before.iter().all(|answer| answer.result.is_err()));
    beside.report(Report {
        leader_epoch: Some(5),
        lineage: Lineage::new(vec![(1, 0), (5, 80)]),
        high_watermark: Some(100),
        last_stable_offset: Some(90),
        local_log_start: Some(40),
        ..Report::default()
    });
    let told = beside.rooms.fetcher.offsets(&all).await;
    let told: Vec<_> = told
        .into_iter()
        .map(|answer| answer.result.unwrap().unwrap())
        .map(|found| (found.offset, found.leader_epoch))
        .collect();
    assert_eq!(told, [(100, 5), (90, 5), (40, 1)]);
    let stale = OffsetQuery { leader_epoch: Some(4), ..all[0].clone() };
    let refused = beside.rooms.fetcher.offsets(&[stale]).await;
    assert_eq!(refused[0].result.as_ref().unwrap_err().status, Status::FencedLeaderEpoch);
}

#[tokio::test]
async fn a_broker_reports_through_the_client_and_is_archived() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    // Alone: nobody says when the broker started, and the segments are small.
    let daemon = tierd.live(&fixture::wal(), &[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let partition = |topic: &str, epoch| PartitionReport {
        topic: topic.to_owned(),
        topic_id: Some(ID),
        role: Some(Role::Leader),
        leader_epoch: Some(epoch),
        ..PartitionReport::default()
    };
    let report = BrokerReport {
        started_at_ms: Some(SystemClock::new().now_ms()),
        partitions: vec![partition("orders", 5)],
    };
    assert!(client.report(&report).await.unwrap()[0].result.is_ok());
    let chain = fixture::served(&fixture::batches()[&("orders".to_owned(), 0)]);
    let end = chain.last().unwrap().last + 1;
    for _ in 0..600 {
        let asked = OffsetArgs::new("orders", 0, OffsetSpec::EarliestPendingUpload);
        let told = client.list_offsets(&[asked]).await.unwrap().remove(0).result;
        if told.is_ok_and(|found| found.unwrap().offset == end) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let fetch = |args: FetchArgs| client.fetch(FetchArgs { max_bytes: Some(1), ..args });
    let orders = || FetchArgs::new("orders", 0, 0);
    assert!(fetch(orders()).await.unwrap().is_hit());
    let fenced = FetchArgs { current_leader_epoch: Some(4), ..orders() };
    assert_eq!(fetch(fenced).await.unwrap_err().kafka_error_code(), 74);
    let early = FetchArgs { current_leader_epoch: Some(6), ..orders() };
    assert_eq!(fetch(early).await.unwrap_err().kafka_error_code(), 75);
    let other = FetchArgs { topic_id: Some([8; 16]), ..orders() };
    assert_eq!(fetch(other).await.unwrap_err().kafka_error_code(), 103);
    let nobody = FetchArgs { topic_id: Some([8; 16]), ..FetchArgs::new("nope", 0, 0) };
    let error = fetch(nobody).await.unwrap_err();
    assert!(error.is_miss() && error.kafka_error_code() == 100, "{error}");
    let follower = FetchArgs { replica_id: Some(1), ..orders() };
    assert_eq!(fetch(follower).await.unwrap_err().kafka_error_code(), 109);

    let range = OffsetRange { first: 0, last: end - 1 };
    let of = tierd_client::TopicPartition::new("orders", 0);
    let aborted = client.list_aborted_transactions(&of, range).await.unwrap();
    assert!(aborted.complete && aborted.transactions.is_empty(), "{aborted:?}");
    let beyond = OffsetRange { first: end, last: end };
    let error = client.list_aborted_transactions(&of, beyond).await.unwrap_err();
    assert!(matches!(error, ArchiveError::NotArchivedYet { .. }), "{error}");

    let late = BrokerReport { partitions: vec![partition("orders", 4)], ..BrokerReport::default() };
    let answer = client.report(&late).await.unwrap().remove(0);
    assert_eq!(answer.result.unwrap_err().kafka_error_code(), 74);

    let state = client.replica_state(&of, None).await.unwrap();
    assert_eq!((state.offset, state.producers_complete), (end, true));
    assert_eq!(client.advance_log_start(&of, Some(ID), 50).await, Ok(50));
    let below = client.fetch(orders()).await.unwrap_err();
    assert!(matches!(below, ArchiveError::BelowLogStart { log_start: 50, .. }), "{below}");
    let error = client.replica_state(&of, Some(1)).await.unwrap_err();
    assert!(matches!(error, ArchiveError::BelowLogStart { .. }), "{error}");
    let error = client.advance_log_start(&of, None, end + 1).await.unwrap_err();
    assert!(matches!(error, ArchiveError::NotReported { .. }), "{error}");
    let error = client.delete_partition(&of, Some([8; 16])).await.unwrap_err();
    assert_eq!(error.kafka_error_code(), 103);
    for _ in 0..2 {
        assert_eq!(client.delete_partition(&of, Some(ID)).await, Ok(end));
    }
    let below = client.fetch(FetchArgs::new("orders", 0, end - 1)).await.unwrap_err();
    assert_eq!(below.kafka_error_code(), 1);
    drop(daemon);

    let reader = tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&reader.address).unwrap();
    let error = client.report(&report).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Invalid { .. }), "{error}");
    let error = client.delete_partition(&of, None).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Invalid { .. }), "{error}");
}

#[tokio::test]
async fn aborted_transactions_of_a_range_are_those_of_a_fetch() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let mut listed = 0;
    for (topic, partition) in fixture::batches().into_keys() {
        let args = FetchArgs {
            isolation: tierd_client::Isolation::ReadCommitted,
            ..FetchArgs::new(topic.as_str(), partition, 0)
        };
        let Ok(outcome) = client.fetch(args).await else { continue };
        let first = outcome.iter().next().unwrap().unwrap().base_offset;
        let range = OffsetRange { first, last: outcome.next_offset - 1 };
        let of = tierd_client::TopicPartition::new(topic.as_str(), partition);
        let found = client.list_aborted_transactions(&of, range).await.unwrap();
        listed += found.transactions.len();
        assert_eq!(Some(found), outcome.aborted, "{topic}-{partition}");
    }
    assert!(listed > 0, "no fixture has an aborted transaction");
}
