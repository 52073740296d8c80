//! The broker's folders: events that are lost because nobody reads them, and a topic
//! that goes while it is read, in the WAL and in the archive.

use std::time::Duration;

use tierd_proto::v1::Status;
use tierd_proto::v1::archive_client::ArchiveClient;
use tierd_tests::beside::Beside;
use tierd_tests::reads::{Answer, connect, request};

use super::{
    broker_starts, expect_whole, live, noise, read, segment, stop, tens, until, until_whole,
};
use crate::{TIERD, block_on};

/// Events that the kernel keeps for a reader, where it does not say.
const EVENTS_MAX: usize = 16_384;
/// Topics whose folders go while they are archived, how many batches of 256 KiB each has
/// in three segments, and how long after the other they go.
const GONE: u64 = 6;
const GONE_BATCHES: i64 = 30;
const GONE_APART: Duration = Duration::from_millis(60);
/// Batches of 256 KiB of a topic that takes a while to read.
const BATCHES: i64 = 160;

/// Table: F17 I3 I13 | more events than the queue holds, while the process is stopped
#[test]
fn file_events_that_overflow_are_lost_and_no_segment_is() {
    let bench = Beside::new(TIERD).unwrap();
    let mut written = vec![segment(&bench, "busy-0", 0, &tens(5))];
    broker_starts(&bench);
    let daemon = live(&bench);
    until_whole(&daemon, "busy-0", &written[0]);

    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let most = most.map_or(EVENTS_MAX, |text| text.trim().parse().unwrap());
    daemon.signal("STOP");
    // Two events each, and none like the one before, which the kernel would join.
    let folder = bench.wal().join("busy-0/0");
    for number in 0..most / 2 + 1_000 {
        let file = folder.join(format!("{number}.tmp"));
        std::fs::write(&file, "").unwrap();
        std::fs::remove_file(&file).unwrap();
    }
    // These are behind the overflow, and a topic among them that nobody watches.
    for number in 1..8 {
        written.push(segment(&bench, &format!("busy-{number}"), 0, &tens(5)));
    }
    broker_starts(&bench);
    daemon.signal("CONT");
    for (number, written) in written.iter().enumerate() {
        until_whole(&daemon, &format!("busy-{number}"), written);
    }
    assert_eq!(daemon.get("/livez").unwrap().0, 200);
    stop(daemon);
}

/// Table: F15 I3 I6 I13 | the folders of topics go, one after the other, while their segments are
/// read | GONE
#[test]
fn a_topic_whose_wal_goes_while_it_is_archived_stops_no_other() {
    let bench = Beside::new(TIERD).unwrap();
    let mut written = Vec::new();
    for topic in (0..GONE).map(|number| format!("gone-{number}")) {
        let mut all = Vec::new();
        for (id, first) in (0..GONE_BATCHES).step_by(10).enumerate() {
            let batches: Vec<_> = (first..first + 10).map(noise).collect();
            all.extend(segment(&bench, &topic, id as u64, &batches));
        }
        written.push((topic, all));
    }
    broker_starts(&bench);
    let daemon = live(&bench);
    until("they are being archived", || daemon.metrics()["tierd_archive_in_flight_steps"] >= 1.0);
    for (topic, _) in &written {
        std::fs::remove_dir_all(bench.wal().join(topic)).unwrap();
        std::thread::sleep(GONE_APART);
    }
    let stays = segment(&bench, "stays", 0, &tens(5));
    broker_starts(&bench);
    until_whole(&daemon, "stays", &stays);
    until("nothing is under way", || {
        let now = daemon.metrics();
        now["tierd_archive_in_flight_steps"] == 0.0 && now["tierd_archive_lag_bytes"] == 0.0
    });
    let mut kept = Vec::new();
    for (topic, written) in &written {
        // Whole, because its files were open, or nothing, or what was read of it.
        let answer = read(&daemon, topic);
        assert!(written.starts_with(&answer.wire), "{topic}: these bytes nobody wrote");
        kept.push(answer.wire.len() * 100 / written.len());
    }
    println!("of {GONE} topics whose folder went these hundredths are archived: {kept:?}");
    assert_eq!(daemon.get("/livez").unwrap().0, 200);
    stop(daemon);
    let _ = bench.tierd.run(&["verify", "--deep"]).ok();
}

/// Table: F11 F23 I5 I6 | a topic is deleted and collected without grace under a reader
#[test]
fn a_topic_deleted_and_collected_while_it_is_read_ends_with_a_word_and_no_wrong_byte() {
    let bench = Beside::new(TIERD).unwrap();
    let batches: Vec<_> = (0..BATCHES).map(noise).collect();
    let gone = segment(&bench, "gone", 0, &batches);
    let stays = segment(&bench, "stays", 0, &tens(5));
    let _ = bench.tierd.archive(&bench.wal()).ok();
    let daemon = bench.tierd.serve(&[]);
    block_on(async {
        let mut client = ArchiveClient::new(connect(&daemon).await.unwrap());
        let mut stream = client.fetch_archived(request("gone", 0)).await.unwrap().into_inner();
        let mut answer = Answer::default();
        while answer.wire.is_empty() {
            answer.take(stream.message().await.unwrap().unwrap());
        }
        // The windows are narrow: the rest is not on its way yet.
        let _ = bench.tierd.run(&["delete", "gone", "--confirm"]).ok();
        let _ = bench.tierd.run(&["gc", "--grace", "0s", "--confirm"]).ok();
        answer.take_all(&mut stream).await.unwrap();
        assert!(answer.ended, "the answer has no end");
        let trailer = &answer.trailers[0];
        assert!(gone.starts_with(&answer.wire), "these bytes nobody wrote");
        assert!(answer.wire.len() < gone.len(), "all was sent before it was deleted");
        let said = (trailer.status(), &trailer.message);
        println!("{} of {} bytes, then {said:?}", answer.wire.len(), gone.len());
        // What came ends at a batch, and what did not come is not passed over.
        assert_eq!(answer.wire.len() % batches[0].len(), 0, "{said:?}");
        let sent = answer.wire.len() / batches[0].len();
        assert_eq!(trailer.next_offset, sent as i64, "{said:?}");
        assert_ne!(trailer.status(), Status::DataLoss, "{said:?}");
    });
    // At the latest when what was the newest manifest is no longer taken for it.
    until("what was deleted is gone", || {
        let after = read(&daemon, "gone");
        after.wire.is_empty() && after.trailers[0].status() == Status::BelowLogStart
    });
    expect_whole(&daemon, "stays", &stays);
    stop(daemon);
}
