//! Searches against brute force: the same records, in the same order, page by page.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::records::{Record, RecordBatchDecoder};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::read::{ReadStats, ReadTotals};
use tierd::record::{CanonicalRecord, HeaderCondition, Selection, TopicName};
use tierd::search::{
    Deliver, Order, Scope, SearchEnd, SearchError, SearchEvent, SearchRequest, SearchSummary,
    Searcher,
};
use tierd_tests::world::{self, BEGAN_MS, Known, Log, Size, World};

/// One answer, whole.
#[derive(Debug, Default)]
pub struct Answer {
    /// Topic, partition, offset, timestamp of each hit.
    pub hits: Vec<(String, i32, i64, i64)>,
    pub records: Vec<tierd::record::CanonicalRecordEntry>,
    pub batches: Vec<CanonicalRecord>,
    pub notes: Vec<tierd::search::Note>,
    pub summary: SearchSummary,
}

pub async fn ask(searcher: &Searcher, request: SearchRequest) -> Result<Answer, SearchError> {
    let (sink, mut events) = tokio::sync::mpsc::channel(4);
    let stats = Arc::new(ReadStats::default());
    let collect = async {
        let mut answer = Answer::default();
        while let Some(event) = events.recv().await {
            match event {
                SearchEvent::Hit(hit, record) => {
                    let topic = hit.tp.topic().to_string();
                    answer.hits.push((topic, hit.tp.partition(), hit.offset, hit.timestamp));
                    answer.records.extend(record.map(|record| *record));
                }
                SearchEvent::Batch(_, batch) => answer.batches.push(batch),
                SearchEvent::Note(note) => answer.notes.push(note),
            }
        }
        answer
    };
    let search = async {
        let summary = searcher.search(request, &sink, &stats).await;
        drop(sink);
        summary
    };
    let (summary, answer) = tokio::join!(search, collect);
    Ok(Answer { summary: summary?, ..answer })
}

/// The records of `logs` that `request` asks for, in its order.
fn by_brute_force<'a>(logs: &'a [Log], request: &SearchRequest) -> Vec<&'a Known> {
    let Scope { topic, partition, .. } = &request.scope;
    let in_scope = |log: &&Log| {
        topic.as_ref().is_none_or(|topic| log.tp.topic() == topic)
            && partition.is_none_or(|partition| log.tp.partition() == partition)
    };
    let mut lanes: Vec<Vec<&Known>> = logs
        .iter()
        .filter(in_scope)
        .map(|log| log.records.iter().filter(|known| wanted(&request.selection, known)).collect())
        .collect();
    let oldest = request.order == Order::Oldest;
    if oldest {
        lanes.iter_mut().for_each(|lane| lane.reverse());
    }
    // The next of each lane is its last.
    let mut all = Vec::new();
    while let Some(next) =
        (0..lanes.len()).filter(|&lane| !lanes[lane].is_empty()).min_by_key(|&l| {
            let time = lanes[l].last().unwrap().timestamp;
            if oldest { time } else { -time }
        })
    {
        all.extend(lanes[next].pop());
    }
    all
}

/// Condition by condition, said once more.
fn wanted(selection: &Selection, known: &Known) -> bool {
    let Known { entry, timestamp, batch, .. } = known;
    let Selection { key, key_prefix, headers, from_ms, until_ms, .. } = selection;
    let has = |condition: &HeaderCondition| {
        entry.headers.iter().any(|header| {
            header.name == condition.name
                && (condition.value.is_none() || condition.value == header.value)
        })
    };
    (key.is_none() || *key == entry.key)
        && key_prefix.as_ref().is_none_or(|p| entry.key.as_ref().is_some_and(|k| k.starts_with(p)))
        && headers.iter().all(has)
        && *timestamp >= from_ms.unwrap_or(i64::MIN)
        && *timestamp < until_ms.unwrap_or(i64::MAX)
        && entry.offset >= selection.from_offset.unwrap_or(0)
        && entry.offset < selection.until_offset.unwrap_or(i64::MAX)
        && selection.producer_id.is_none_or(|id| id == batch.header().producer_id)
}

const KINDS: [&str; 8] =
    ["key", "key-prefix", "header", "header-name", "time", "offset", "producer", "several"];

/// A random selection of one kind, of what there is.
fn selection(rng: &mut StdRng, kind: &str, logs: &[Log]) -> Selection {
    let log = &logs[rng.random_range(0..logs.len())];
    let known = &log.records[rng.random_range(0..log.records.len())];
    let header = known.entry.headers.first().cloned();
    let header = |value: bool| {
        let name = header.as_ref().map_or(Bytes::from_static(b"none"), |h| h.name.clone());
        let value = header.as_ref().and_then(|h| h.value.clone()).filter(|_| value);
        vec![HeaderCondition { name, value }]
    };
    let key = known.entry.key.clone().unwrap_or_else(|| Bytes::from(world::customer(rng)));
    let all = Selection::default();
    match kind {
        "key" => Selection { key: Some(key), ..all },
        "key-prefix" => {
            let most = if key.len() > 1_000 { key.len() } else { key.len().min(6) };
            let least = most.saturating_sub(4);
            Selection { key_prefix: Some(key.slice(..rng.random_range(least..=most))), ..all }
        }
        "header" => Selection { headers: header(true), ..all },
        "header-name" => Selection { headers: header(false), ..all },
        "time" => {
            let from = known.timestamp - rng.random_range(0..3_000);
            let until = from + rng.random_range(1..20_000);
            Selection { from_ms: Some(from), until_ms: Some(until), ..all }
        }
        "offset" => {
            let from = known.entry.offset;
            let until = from + rng.random_range(1..500);
            Selection { from_offset: Some(from), until_offset: Some(until), ..all }
        }
        "producer" => Selection { producer_id: Some(rng.random_range(0..13)), ..all },
        _ => {
            let time = selection(rng, "time", logs);
            let kind = KINDS[rng.random_range(0..4)];
            let mut both = selection(rng, kind, logs);
            both.until_ms = time.until_ms;
            if rng.random_bool(0.5) {
                both.producer_id = Some(rng.random_range(0..13));
            }
            both
        }
    }
}

fn scope(rng: &mut StdRng, logs: &[Log]) -> Scope {
    let log = &logs[rng.random_range(0..logs.len())];
    let topic = Some(log.tp.topic().clone());
    match rng.random_range(0..3) {
        0 => Scope::default(),
        1 => Scope { topic, ..Scope::default() },
        _ => Scope { topic, partition: Some(log.tp.partition()), ..Scope::default() },
    }
}

fn facts(known: &Known) -> (String, i32, i64, i64) {
    let tp = &known.tp;
    (tp.topic().to_string(), tp.partition(), known.entry.offset, known.timestamp)
}

/// Asks `count` random searches of each kind, page by page, in every delivery.
pub async fn compare(
    world: &World,
    searcher: &Searcher,
    seed: u64,
    count: usize,
) -> (usize, usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut searches, mut hits) = (0, 0);
    for kind in KINDS {
        for number in 0..count {
            let request = SearchRequest {
                scope: scope(&mut rng, &world.logs),
                selection: selection(&mut rng, kind, &world.logs),
                order: if rng.random_bool(0.5) { Order::Newest } else { Order::Oldest },
                limit: rng.random_range(1..400),
                deliver: Deliver::Refs,
                query: None,
                page: None,
                time_limit: None,
            };
            let expected = by_brute_force(&world.logs, &request);
            hits += check_pages(searcher, &request, &expected, number).await;
            searches += 1;
        }
    }
    (searches, hits)
}

/// Asks for the first pages of `request` and compares them with what is expected.
async fn check_pages(
    searcher: &Searcher,
    request: &SearchRequest,
    expected: &[&Known],
    number: usize,
) -> usize {
    let mut told = 0;
    let mut page = None;
    for turn in 0..3 {
        let deliver = [Deliver::Refs, Deliver::Records, Deliver::Batches][(number + turn) % 3];
        let request = SearchRequest { deliver, page, ..request.clone() };
        let answer = ask(searcher, request.clone()).await.unwrap();
        let until = (told + request.limit as usize).min(expected.len());
        let due = &expected[told..until];
        assert_eq!(answer.summary.hits, due.len() as u64, "{request:?}");
        assert!(answer.summary.complete && answer.notes.is_empty(), "{:?}", answer.notes);
        match deliver {
            Deliver::Batches => check_batches(&answer.batches, due),
            _ => {
                let due_facts: Vec<_> = due.iter().map(|known| facts(known)).collect();
                assert_eq!(answer.hits, due_facts, "{request:?}");
            }
        }
        if deliver == Deliver::Records {
            let entries: Vec<_> = due.iter().map(|known| known.entry.clone()).collect();
            assert_eq!(answer.records, entries, "{request:?}");
        }
        told = until;
        page = answer.summary.next_page;
        match (answer.summary.end, &page) {
            (SearchEnd::Exhausted, None) => {
                assert_eq!(told, expected.len());
                break;
            }
            (SearchEnd::Limit, Some(_)) => {}
            // The limit was reached with the last hit.
            (SearchEnd::Limit, None) => break,
            other => panic!("{other:?} of {request:?}"),
        }
    }
    told
}

/// The records of a batch by a decoder that is not ours, which checks the sum.
fn foreign(mut wire: Bytes) -> Vec<Record> {
    RecordBatchDecoder::decode(&mut wire).unwrap().records
}

/// Each batch once, holding exactly its hits, everything else as it was; so says the
/// crate `kafka-protocol` too.
fn check_batches(batches: &[CanonicalRecord], due: &[&Known]) {
    let mut left: Vec<&Known> = due.to_vec();
    for batch in batches {
        let wire = batch.to_kafka_batch().unwrap();
        let batch = CanonicalRecord::from_wire(wire.clone()).unwrap();
        batch.verify_crc().unwrap();
        let first = left.first().expect("a batch without a hit");
        let of = Arc::clone(&first.batch);
        let (held, others): (Vec<&Known>, Vec<&Known>) =
            left.iter().partition(|known| Arc::ptr_eq(&known.batch, &of));
        let mut entries: Vec<_> = held.iter().map(|known| known.entry.clone()).collect();
        entries.sort_by_key(|entry| entry.offset);
        assert_eq!(batch.decode().unwrap(), entries);
        let mut records = foreign(of.to_kafka_batch().unwrap());
        records.retain(|record| entries.iter().any(|entry| entry.offset == record.offset));
        assert_eq!(foreign(wire), records);
        let blank = |batch: &CanonicalRecord| tierd::record::BatchHeader {
            batch_length: 0,
            crc: 0,
            record_count: 0,
            ..*batch.header()
        };
        assert_eq!(blank(&batch), blank(&of));
        left = others;
    }
    assert!(left.is_empty(), "hits in no batch: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_searches_equal_brute_force() {
    // The long mode: a million records in 208 archives, 1,000 searches of each kind.
    let long = std::env::var_os("TIERD_TEST_SEARCH").is_some();
    let (archives, records, count) = if long { (52, 4_900, 1_000) } else { (4, 300, 12) };
    let partitions = vec![
        ("clicks", 0, archives),
        ("orders", 0, archives),
        ("orders", 1, archives),
        ("日", 7, archives),
    ];
    let size = Size { partitions, records, one_without_index_in: if long { 26 } else { 3 } };
    let world = World::of(842, &size).await;
    let searcher = world.searcher();
    let all: usize = world.logs.iter().map(|log| log.records.len()).sum();
    let (searches, hits) = compare(&world, &searcher, 7, count).await;
    println!("{all} records in {} archives, {searches} searches, {hits} hits", archives * 4);
    assert!(!long || all >= 1_000_000, "{all} records");
    assert!(hits > searches, "searches that find nothing prove nothing");
}

fn in_orders(selection: Selection) -> SearchRequest {
    let topic = Some(TopicName::new("orders").unwrap());
    let scope = Scope { topic, partition: Some(0), incarnation: None };
    SearchRequest { scope, selection, limit: 100, ..SearchRequest::default() }
}

async fn small() -> World {
    let size = Size { partitions: vec![("orders", 0, 3)], records: 100, one_without_index_in: 1 };
    World::of(1, &size).await
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_what_to_do() {
    let world = small().await;
    let searcher = world.searcher();
    let refused = async |request: SearchRequest, with: &str| {
        let error = ask(&searcher, request).await.unwrap_err();
        assert!(matches!(error, SearchError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(with), "{error}");
    };
    let fine = in_orders(Selection::default());
    refused(SearchRequest { limit: 0, ..fine.clone() }, "1 to 10000").await;
    refused(SearchRequest { limit: 10_001, ..fine.clone() }, "1 to 10000").await;
    let scope = Scope { topic: None, partition: Some(1), incarnation: None };
    refused(SearchRequest { scope, ..fine.clone() }, "needs its topic").await;
    let header = HeaderCondition { name: Bytes::from("a"), value: None };
    let many = Selection { headers: vec![header; 17], ..Selection::default() };
    refused(in_orders(many), "at most 16").await;
    let inside_out = Selection { from_ms: Some(5), until_ms: Some(5), ..Selection::default() };
    refused(in_orders(inside_out), "ends where or before it begins").await;
    refused(SearchRequest { page: Some("x!".to_owned()), ..fine }, "base64url").await;
}

#[tokio::test]
async fn an_unknown_topic_is_told_apart_from_a_topic_without_hits() {
    let world = small().await;
    let searcher = world.searcher();
    let topic = Some(TopicName::new("nobody").unwrap());
    let scope = Scope { topic, ..Scope::default() };
    let unknown = SearchRequest { scope, ..in_orders(Selection::default()) };
    let error = ask(&searcher, unknown).await.unwrap_err();
    assert!(matches!(error, SearchError::Unknown(_)), "{error:?}");
    let nothing = Selection { key: Some(Bytes::from("nobody")), ..Selection::default() };
    let answer = ask(&searcher, in_orders(nothing)).await.unwrap();
    assert_eq!((answer.summary.hits, answer.summary.end), (0, SearchEnd::Exhausted));
    let searched = &answer.summary.partitions[0];
    assert!(searched.archived_through > 200, "what is not archived is not searched, and told");
}

#[tokio::test]
async fn an_archive_that_cannot_be_read_is_named_and_the_rest_is_found() {
    let world = small().await;
    let snapshot = world.catalog.load(&world::tp("orders", 0), None).await.unwrap().unwrap();
    let lost = &snapshot.entries().await.unwrap()[1];
    world.store.delete(&lost.key()).await.unwrap();
    let all = SearchRequest { limit: 10_000, ..in_orders(Selection::default()) };
    let answer = ask(&world.searcher(), all).await.unwrap();
    assert!(!answer.summary.complete);
    let [note] = answer.notes.as_slice() else { panic!("{:?}", answer.notes) };
    assert_eq!(note.object, Some(lost.key().to_string()));
    assert_eq!(note.range, Some(lost.summary.range));
    let range = lost.summary.range;
    let rest: Vec<i64> =
        world.logs[0].records.iter().rev().map(|known| known.entry.offset).collect();
    let rest = rest.into_iter().filter(|&offset| !range.contains(offset));
    let found: Vec<i64> = answer.hits.iter().map(|hit| hit.2).collect();
    assert_eq!(found, Vec::from_iter(rest));
}

#[tokio::test]
async fn a_time_range_opens_only_archives_that_overlap_it() {
    let world = small().await;
    let entries = world.catalog.load(&world::tp("orders", 0), None).await.unwrap().unwrap();
    let entries = entries.entries().await.unwrap();
    let last = entries.last().unwrap().summary.min_timestamp;
    let before = entries[0].summary.max_timestamp.max(entries[1].summary.max_timestamp);
    assert!(last < before + 2_000, "the times of neighbours lie close: {last} {before}");
    let selection = Selection { from_ms: Some(before + 1), ..Selection::default() };
    let answer = ask(&world.searcher(), in_orders(selection)).await.unwrap();
    let archives = answer.summary.archives;
    assert_eq!((archives.in_range, archives.pruned_by_time, archives.searched), (3, 2, 1));
}

#[tokio::test]
async fn a_time_limit_ends_with_a_page_to_go_on_from() {
    let world = small().await;
    let whole = ask(&world.searcher(), in_orders(Selection::default())).await.unwrap();
    let soon = Some(std::time::Duration::from_millis(20));
    let request = SearchRequest { time_limit: soon, ..in_orders(Selection::default()) };
    // Nobody takes the hits: the search waits until its time is over.
    let (sink, mut events) = tokio::sync::mpsc::channel(4);
    let stats = Arc::new(ReadStats::default());
    let summary = world.searcher().search(request, &sink, &stats).await.unwrap();
    drop(sink);
    assert_eq!((summary.end, summary.hits), (SearchEnd::TimeLimit, 4));
    let mut hits = Vec::new();
    while let Some(event) = events.recv().await {
        let SearchEvent::Hit(hit, None) = event else { panic!("{event:?}") };
        hits.push(hit.offset);
    }
    let rest = SearchRequest { page: summary.next_page, ..in_orders(Selection::default()) };
    let rest = ask(&world.searcher(), rest).await.unwrap();
    hits.extend(rest.hits.iter().map(|hit| hit.2));
    let whole: Vec<i64> = whole.hits.iter().map(|hit| hit.2).collect();
    assert_eq!(hits[..100], whole);
}

#[tokio::test]
async fn a_page_goes_on_by_offset_when_its_manifest_is_gone() {
    let world = small().await;
    let oldest =
        SearchRequest { order: Order::Oldest, limit: 10, ..in_orders(Selection::default()) };
    let first = ask(&world.searcher(), oldest.clone()).await.unwrap();
    // Another archive is committed, and the manifest of the page is collected.
    let tp = world::tp("orders", 0);
    let base = world.catalog.load(&tp, None).await.unwrap().unwrap();
    let pinned = base.number();
    let next = base.archived_through();
    let more = batch_at(next);
    let committed = world.commit(&tp, Some(base), &[more], tierd::archive::IndexLevel::Keys).await;
    let of = committed.of().clone();
    world.store.delete(&tierd::store::ObjectKey::Manifest { of, number: pinned }).await.unwrap();
    let page = SearchRequest { page: first.summary.next_page, limit: 10_000, ..oldest };
    let rest = ask(&world.searcher(), page).await.unwrap();
    assert_eq!(rest.notes[0].kind, tierd::search::NoteKind::GenerationGone);
    let found: Vec<i64> = [first.hits, rest.hits].concat().iter().map(|hit| hit.2).collect();
    let known: Vec<i64> = world.logs[0].records.iter().map(|known| known.entry.offset).collect();
    assert_eq!(found, known, "what came after the first page is not part of the answer");
}

fn batch_at(base: i64) -> CanonicalRecord {
    let header = tierd::record::BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: 0,
        crc: 0,
        attributes: 0,
        last_offset_delta: 0,
        base_timestamp: BEGAN_MS,
        max_timestamp: BEGAN_MS,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 1,
    };
    let entry = tierd::record::CanonicalRecordEntry {
        offset: base,
        timestamp: BEGAN_MS,
        attributes: 0,
        key: None,
        value: None,
        headers: Vec::new(),
    };
    CanonicalRecord::from_entries(header, vec![entry]).unwrap()
}

/// The lines of `tierd search`, as JSON.
fn lines(ended: &tierd_tests::process::Ended) -> Vec<serde_json::Value> {
    ended.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_fixtures_are_searched_from_the_store_and_through_a_daemon_alike() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = tierd_tests::process::Tierd::new(crate::TIERD, folder.path());
    let _ = tierd.archive(&tierd_tests::fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    let mut searched = 0;
    for ((topic, partition), _) in tierd_tests::fixture::batches() {
        let number = partition.to_string();
        let all = tierd.run(&["fetch", &topic, &number, "--offset", "0"]).ok();
        let all = lines(&all);
        let mut keys: Vec<&str> = all.iter().filter_map(|line| line["key"].as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys.into_iter().step_by(7).take(8) {
            let wanted: Vec<_> = all.iter().filter(|line| line["key"] == key).cloned().collect();
            let search = ["search", &topic, &number, "--key", key, "--order", "oldest"];
            let direct = tierd.run(&[&search[..], &["--limit", "0"]].concat()).ok();
            assert_eq!(lines(&direct), wanted, "{topic}-{partition} {key}");
            let through = [&search[..], &["--limit", "0", "--endpoint", &daemon.address]].concat();
            assert_eq!(lines(&tierd.run(&through).ok()), wanted, "{topic}-{partition} {key}");
            searched += 1;
        }
    }
    assert!(searched > 5, "{searched}");
}

#[test]
fn the_command_line_tells_refs_batches_pages_and_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = tierd_tests::process::Tierd::new(crate::TIERD, folder.path());
    let _ = tierd.archive(&tierd_tests::fixture::wal()).ok();
    let orders = ["search", "orders", "0"];
    let refs = tierd.run(&[&orders[..], &["--limit", "3", "--format", "refs"]].concat()).ok();
    assert!(refs.text().starts_with("TIME ") && refs.text().lines().count() == 4, "{refs:?}");
    assert!(refs.stderr.contains("there may be more"), "{refs:?}");
    let json = tierd.run(&[&orders[..], &["--limit", "3", "--format", "refs", "--json"]].concat());
    let json = lines(&json.ok());
    assert!(json.len() == 3 && json[0]["archive"].as_str().unwrap().ends_with(".tar.gz"));
    let token = refs.stderr.split("--page ").nth(1).unwrap().trim();
    let page = tierd.run(&[&orders[..], &["--limit", "3", "--json", "--page", token]].concat());
    let next = json[2]["offset"].as_i64().unwrap() - 1;
    assert_eq!(lines(&page.ok())[0]["offset"], next);
    let raw = tierd.run(&[&orders[..], &["--offsets", "5..8", "--format", "raw"]].concat()).ok();
    let batches = tierd::archive::batches_in(raw.stdout.into());
    let mut offsets = Vec::new();
    for batch in batches {
        let batch = batch.unwrap();
        batch.verify_crc().unwrap();
        offsets.extend(batch.decode().unwrap().iter().map(|entry| entry.offset));
    }
    offsets.sort_unstable();
    assert_eq!(offsets, [5, 6, 7]);
    let explained = tierd.run(&[&orders[..], &["--limit", "1", "--explain"]].concat()).ok();
    assert!(explained.stderr.contains("searched by index"), "{explained:?}");
    for (args, with) in [
        (&["--from", "soon"][..], "no time"),
        (&["--offsets", "7"][..], "100..200"),
        (&["--page", "x"][..], "page token"),
        (&["--key-base64", "!"][..], "--key-base64"),
    ] {
        let refused = tierd.run(&[&orders[..], args].concat());
        assert!(refused.code == 2 && refused.stderr.contains(with), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_for_a_key_opens_only_archives_that_may_hold_it() {
    let size = Size { partitions: vec![("orders", 0, 40)], records: 60, one_without_index_in: 1 };
    let world = World::of(3, &size).await;
    let searcher = world.searcher();
    let (mut opened, mut holding, mut ruled_out) = (0, 0, 0);
    for known in world.logs[0].records.iter().step_by(97) {
        let Some(key) = &known.entry.key else { continue };
        let selection = Selection { key: Some(key.clone()), ..Selection::default() };
        let request = SearchRequest { limit: 10_000, ..in_orders(selection) };
        let expected = by_brute_force(&world.logs, &request);
        let answer = ask(&searcher, request).await.unwrap();
        assert_eq!(answer.hits.len(), expected.len());
        let archives = answer.summary.archives;
        assert_eq!(archives.searched + archives.pruned_by_key, 40);
        opened += archives.searched;
        ruled_out += archives.pruned_by_key;
        let snapshot = world.catalog.load(&known.tp, None).await.unwrap().unwrap();
        for entry in snapshot.entries().await.unwrap() {
            let range = entry.summary.range;
            holding += u64::from(expected.iter().any(|one| range.contains(one.entry.offset)));
        }
    }
    assert!(opened >= holding && ruled_out > 400, "{opened} {holding} {ruled_out}");
    // One look-up in two hundred may be wrong.
    assert!(opened - holding <= 20, "{opened} opened, {holding} hold the key");
}

/// What a search read, and its answer.
async fn read_by(searcher: &Searcher, request: SearchRequest) -> (SearchSummary, ReadTotals) {
    let (sink, mut events) = tokio::sync::mpsc::channel(4);
    let stats = Arc::new(ReadStats::default());
    let drain = async { while events.recv().await.is_some() {} };
    let search = async {
        let summary = searcher.search(request, &sink, &stats).await;
        drop(sink);
        summary
    };
    let (summary, ()) = tokio::join!(search, drain);
    (summary.unwrap(), stats.totals())
}

#[tokio::test]
async fn a_key_that_filters_at_hand_rule_out_costs_no_request_and_none_is_missed_beside_a_prefix() {
    let size = Size { partitions: vec![("orders", 0, 12)], records: 60, one_without_index_in: 1 };
    let world = World::of(5, &size).await;
    let searcher = world.searcher();
    let nobody = Selection { key: Some(Bytes::from("nobody at all")), ..Selection::default() };
    let (cold, read) = read_by(&searcher, in_orders(nobody.clone())).await;
    assert_eq!(cold.archives.pruned_by_key + cold.archives.searched, 12);
    assert!(cold.archives.pruned_by_key >= 10 && read.toc_requests == 12, "{cold:?} {read:?}");
    let (warm, read) = read_by(&searcher, in_orders(nobody)).await;
    assert_eq!(warm.archives, cold.archives);
    assert_eq!((read.toc_requests, read.chunk_requests), (0, 0), "{read:?}");

    // The same key with a prefix of it, with one of another, and the prefix alone.
    let known = world.logs[0].records.iter().find_map(|known| known.entry.key.clone());
    let key = known.filter(|key| key.len() > 3).unwrap();
    for (key, prefix) in [
        (Some(key.clone()), key.slice(..3)),
        (Some(key.clone()), Bytes::from_static(b"zz")),
        (None, key.slice(..3)),
    ] {
        let selection = Selection { key, key_prefix: Some(prefix), ..Selection::default() };
        let request = SearchRequest { limit: 10_000, ..in_orders(selection) };
        let expected = by_brute_force(&world.logs, &request).len();
        let only_prefix = request.selection.key.is_none();
        let answer = ask(&searcher, request).await.unwrap();
        assert_eq!(answer.hits.len(), expected);
        assert!(!only_prefix || (expected > 0 && answer.summary.archives.pruned_by_key == 0));
    }
}

#[tokio::test]
async fn a_damaged_key_filter_hides_nothing() {
    let world = small().await;
    let snapshot = world.catalog.load(&world::tp("orders", 0), None).await.unwrap().unwrap();
    let entry = &snapshot.entries().await.unwrap()[1];
    let key = entry.key();
    let mut bytes = world.store.get(&key, 64 << 20).await.unwrap().to_vec();
    let place = entry.summary.toc.range();
    let toc = &bytes[place.start as usize..place.end as usize];
    let toc = tierd::archive::Toc::decode(toc, &entry.summary.toc).unwrap();
    let chunk = toc.chunks_of(toc.keys().unwrap())[0];
    bytes[chunk.place as usize + chunk.packed as usize - 1] ^= 1;
    world.store.delete(&key).await.unwrap();
    world.store.create(&key, bytes.into()).await.unwrap();
    let held =
        world.logs[0].records.iter().filter(|k| entry.summary.range.contains(k.entry.offset));
    let wanted = held.filter_map(|known| known.entry.key.clone()).next().unwrap();
    let request = in_orders(Selection { key: Some(wanted), ..Selection::default() });
    let expected: Vec<_> = by_brute_force(&world.logs, &request).into_iter().map(facts).collect();
    let answer = ask(&world.searcher(), request).await.unwrap();
    assert_eq!(answer.hits, expected);
    assert!(answer.summary.complete, "{:?}", answer.notes);
}
