//! Queries over values against brute force, and what becomes of values and queries
//! that no index can hold or answer.

use std::sync::Arc;

use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tierd::archive::IndexLevel;
use tierd::record::{BatchHeader, CanonicalRecord, CanonicalRecordEntry, Selection, TopicName};
use tierd::search::{NoteKind, Order, Scope, SearchError, SearchRequest};
use tierd_tests::world::{self, BEGAN_MS, Known, Size, World};

use crate::search::{Answer, ask};

async fn world_of(level: &str, archives: usize, records: usize) -> World {
    let partitions = vec![("orders", 0, archives)];
    let size = Size { partitions, records, one_without_index_in: 1 };
    World::indexed(Arc::new(InMemory::new()), 6, &size, level.parse().unwrap()).await
}

pub fn asking(query: &str) -> SearchRequest {
    let topic = Some(TopicName::new("orders").unwrap());
    let scope = Scope { topic, partition: Some(0), incarnation: None };
    let query = Some(query.to_owned());
    SearchRequest { scope, query, limit: HITS as u32, ..SearchRequest::default() }
}

async fn answer(world: &World, query: &str) -> Answer {
    ask(&world.searcher(), asking(query)).await.unwrap()
}

pub fn offsets(answer: &Answer) -> Vec<i64> {
    answer.hits.iter().map(|hit| hit.2).collect()
}

/// The words of a text: runs of letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// What there is to know of a value, found out once for all queries.
pub struct Facts<'a> {
    producer_id: i64,
    text: Option<&'a str>,
    words: Vec<String>,
    json: Value,
    /// The words of its field `note`.
    note: Vec<String>,
}

impl<'a> Facts<'a> {
    pub fn of(known: &'a Known) -> Self {
        let text = known.entry.value.as_deref().and_then(|value| std::str::from_utf8(value).ok());
        let json: Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let producer_id = known.batch.header().producer_id;
        let note = words(json["note"].as_str().unwrap_or_default());
        Self { producer_id, text, words: text.map_or_else(Vec::new, words), json, note }
    }

    fn amount(&self) -> Option<i64> {
        self.json["amount"].as_i64()
    }

    fn notes(&self, word: &str) -> bool {
        self.note.iter().any(|one| one == word)
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|one| one == word)
    }
}

/// What a query means, said without Tantivy.
pub type Wanted = Box<dyn Fn(&Facts<'_>) -> bool + Send>;

/// A random query over JSON, and what it means.
pub fn json_query(rng: &mut StdRng) -> (String, Wanted) {
    let word = world::WORDS[rng.random_range(0..world::WORDS.len())];
    let city = world::CITIES[rng.random_range(0..world::CITIES.len())];
    let other = world::CITIES[rng.random_range(0..world::CITIES.len())];
    let amount = rng.random_range(-60..510);
    let day = rng.random_range(1..32);
    match rng.random_range(0..13) {
        0 => (format!("value.city:\"{city}\""), Box::new(move |of| of.json["city"] == city)),
        1 => (
            format!("value.amount:>{amount}"),
            Box::new(move |of| of.amount().is_some_and(|n| n > amount)),
        ),
        2 => (
            format!("value.amount:[{amount} TO {}}}", amount + 40),
            Box::new(move |of| of.amount().is_some_and(|n| (amount..amount + 40).contains(&n))),
        ),
        3 => (format!("value.note:{}", word.to_uppercase()), Box::new(move |of| of.notes(word))),
        4 => (format!("NOT value.city:\"{city}\""), Box::new(move |of| of.json["city"] != city)),
        5 => (
            format!("value.city: IN [\"{city}\" \"{other}\"]"),
            Box::new(move |of| of.json["city"] == city || of.json["city"] == other),
        ),
        6 => (
            format!("value.price:[{amount} TO {}.5]", amount + 30),
            Box::new(move |of| {
                // As it is written: -9.5 is behind -9.
                let to: f64 = format!("{}.5", amount + 30).parse().unwrap();
                of.json["price"].as_f64().is_some_and(|n| f64::from(amount as i32) <= n && n <= to)
            }),
        ),
        7 => (
            format!("value.at:[2024-03-{day:02}T00:00:00Z TO 2024-03-{day:02}T11:30:00+00:00]"),
            Box::new(move |of| {
                let at = of.json["at"].as_str().unwrap_or_default();
                at.starts_with("2024-03-")
                    && at[8..10] == *format!("{day:02}")
                    && at[11..13] < *"12"
            }),
        ),
        8 => (
            format!("value.in.tags:{word}"),
            Box::new(move |of| {
                let tags = of.json["in"]["tags"].as_array();
                tags.is_some_and(|tags| tags.iter().any(|tag| tag == word))
            }),
        ),
        9 => ("value.at:*".to_owned(), Box::new(|of| of.json["at"].is_string())),
        10 => (
            format!("producer:3 AND (value.note:{word} OR value.amount:>={amount})"),
            Box::new(move |of| {
                of.producer_id == 3 && (of.notes(word) || of.amount().is_some_and(|n| n >= amount))
            }),
        ),
        11 => (
            format!("value.note:{word} OR NOT value.amount:>{amount}"),
            Box::new(move |of| of.notes(word) || of.amount().is_none_or(|n| n <= amount)),
        ),
        _ => (
            format!("value.note:{word} AND value.amount:<{amount} AND NOT value.city:Rom"),
            Box::new(move |of| {
                of.notes(word)
                    && of.amount().is_some_and(|n| n < amount)
                    && of.json["city"] != "Rom"
            }),
        ),
    }
}

/// A random query over text, and what it means.
fn text_query(rng: &mut StdRng) -> (String, Wanted) {
    let mut word = || world::WORDS[rng.random_range(0..world::WORDS.len())];
    let (one, other, third) = (word(), word(), word());
    match rng.random_range(0..6) {
        0 => (one.to_owned(), Box::new(move |of| of.has(one))),
        1 => (format!("{one} OR value:{other}"), Box::new(move |of| of.has(one) || of.has(other))),
        2 => (
            format!("value: IN [{one} {other}] AND NOT berlin"),
            Box::new(move |of| (of.has(one) || of.has(other)) && !of.has("berlin")),
        ),
        3 => (format!("-{one}"), Box::new(move |of| !of.has(one))),
        4 => (
            format!("\"{one} {other} {third}\""),
            Box::new(move |of| of.words.windows(3).any(|three| three == [one, other, third])),
        ),
        _ => (
            format!("\"{one} {other}\""),
            Box::new(move |of| of.words.windows(2).any(|two| two[0] == one && two[1] == other)),
        ),
    }
}

/// A random query over text cut at white space: up to four words, all of them.
fn spaced_query(rng: &mut StdRng) -> (String, Wanted) {
    let words = (0..rng.random_range(1..5)).map(|_| rng.random_range(0..world::WORDS.len()));
    let words: Vec<&str> = words.map(|at| world::WORDS[at]).collect();
    let query = words.iter().map(|word| format!("value:{word}")).collect::<Vec<_>>().join(" AND ");
    let has = move |of: &Facts<'_>| {
        let text = of.text.unwrap_or_default();
        words.iter().all(|word| text.split_whitespace().any(|one| one == *word))
    };
    (query, Box::new(has))
}

/// A random query over text that is not cut: a value there is, or the beginning of one.
fn whole_query(rng: &mut StdRng, records: &[Known]) -> (String, Wanted) {
    let known = &records[rng.random_range(0..records.len())];
    let text = Facts::of(known).text.filter(|text| text.len() > 1);
    let mut wanted = text.unwrap_or("nothing").to_owned();
    if rng.random_bool(0.3) {
        wanted.pop();
    }
    let quoted = wanted.replace('\\', "\\\\").replace('"', "\\\"");
    (format!("value:\"{quoted}\""), Box::new(move |of| of.text == Some(&wanted)))
}

/// A kind of query, and what makes one with what it must find.
type Kind = (&'static str, fn(&mut StdRng, &[Known]) -> (String, Wanted));

/// Most hits that are asked for of one query.
const HITS: usize = 10_000;

/// The first offsets that each query is to find, all of them in one look at the records.
fn by_brute_force(records: &[Known], queries: &[(String, Wanted, Order)]) -> Vec<Vec<i64>> {
    let mut found = vec![std::collections::VecDeque::new(); queries.len()];
    for known in records {
        let facts = Facts::of(known);
        for ((_, means, order), found) in queries.iter().zip(&mut found) {
            if (found.len() < HITS || *order == Order::Newest) && means(&facts) {
                found.push_back(known.entry.offset);
                if found.len() > HITS {
                    found.pop_front();
                }
            }
        }
    }
    let in_order = |(found, query): (std::collections::VecDeque<i64>, &(_, _, Order))| {
        let found = found.into_iter();
        if query.2 == Order::Oldest { found.collect() } else { found.rev().collect() }
    };
    found.into_iter().zip(queries).map(in_order).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_over_values_equal_brute_force() {
    // The long mode: a million records in 208 archives, 1,000 queries of each level.
    let long = std::env::var_os("TIERD_TEST_SEARCH").is_some();
    let (archives, records, count) = if long { (208, 4_900, 1_000) } else { (3, 400, 60) };
    let kinds: [Kind; 4] = [
        ("full:json", |rng, _| json_query(rng)),
        ("full:text", |rng, _| text_query(rng)),
        ("full:text:whitespace", |rng, _| spaced_query(rng)),
        ("full:text:raw", whole_query),
    ];
    for (level, query) in kinds {
        let world = world_of(level, archives, records).await;
        let (searcher, known) = (world.searcher(), &world.logs[0].records);
        let mut rng = StdRng::seed_from_u64(11);
        let queries = (0..count).map(|_| {
            let (text, means) = query(&mut rng, known);
            let order = if rng.random_bool(0.5) { Order::Oldest } else { Order::Newest };
            (text, means, order)
        });
        let queries: Vec<_> = queries.collect();
        let wanted = by_brute_force(known, &queries);
        for ((text, _, order), wanted) in queries.iter().zip(&wanted) {
            let request = SearchRequest { order: *order, ..asking(text) };
            let answer = ask(&searcher, request).await.unwrap();
            assert!(answer.notes.is_empty() && answer.summary.complete, "{:?}", answer.notes);
            assert_eq!(offsets(&answer), *wanted, "{level} {text}");
        }
        let (all, hits) = (known.len(), wanted.iter().map(Vec::len).sum::<usize>());
        println!("{level}: {all} records in {archives} archives, {count} queries, {hits} hits");
        assert!(!long || all >= 1_000_000, "{all} records");
        assert!(hits > count / 3, "{level}: {hits}");
    }
}

#[tokio::test]
async fn a_query_and_conditions_hold_together_and_a_page_goes_on_for_its_query_only() {
    let world = world_of("full:json", 3, 300).await;
    let searcher = world.searcher();
    let prefix = bytes::Bytes::from_static(b"c-000");
    let selection = Selection { key_prefix: Some(prefix.clone()), ..Selection::default() };
    let all = SearchRequest { selection, ..asking("value.amount:>100") };
    let whole = ask(&searcher, all.clone()).await.unwrap();
    let wanted = |known: &&Known| {
        known.entry.key.as_ref().is_some_and(|key| key.starts_with(&prefix))
            && Facts::of(known).amount().is_some_and(|amount| amount > 100)
    };
    let wanted = world.logs[0].records.iter().rev().filter(wanted);
    let wanted: Vec<i64> = wanted.map(|known| known.entry.offset).collect();
    assert!(wanted.len() > 4);
    assert_eq!(offsets(&whole), wanted);
    let first = ask(&searcher, SearchRequest { limit: 2, ..all.clone() }).await.unwrap();
    let page = first.summary.next_page.clone();
    let rest = ask(&searcher, SearchRequest { page: page.clone(), ..all.clone() }).await.unwrap();
    assert_eq!([offsets(&first), offsets(&rest)].concat(), wanted);
    let other = SearchRequest { page, query: Some("value.amount:>101".to_owned()), ..all };
    let error = ask(&searcher, other).await.unwrap_err();
    assert!(matches!(error, SearchError::Invalid(_)), "{error:?}");
}

#[tokio::test]
async fn an_archive_that_cannot_answer_a_query_is_named() {
    let world = world_of("keys", 3, 100).await;
    let tp = world::tp("orders", 0);
    let base = world.catalog.load(&tp, None).await.unwrap().unwrap();
    let next = base.archived_through();
    let level: IndexLevel = "full:json".parse().unwrap();
    let more = of_values(next, &[r#"{"city":"Berlin"}"#.as_bytes()]);
    world.commit(&tp, Some(base), &[more], level).await;
    let answered = answer(&world, "value.city:Berlin").await;
    assert_eq!(offsets(&answered), [next]);
    assert!(!answered.summary.complete);
    let archives = answered.summary.archives;
    assert_eq!((archives.not_searchable, archives.searched), (3, 1));
    assert_eq!(answered.notes.len(), 3);
    for note in &answered.notes {
        assert_eq!(note.kind, NoteKind::NotSearchable);
        assert!(note.object.is_some() && note.message.contains("level keys"), "{note:?}");
    }
    // What every index knows can be asked for in the same language.
    let answered = answer(&world, "producer:3 AND offset:[0 TO 200]").await;
    let wanted =
        |known: &&Known| known.batch.header().producer_id == 3 && known.entry.offset <= 200;
    let wanted = world.logs[0].records.iter().rev().filter(wanted);
    let wanted: Vec<i64> = wanted.map(|known| known.entry.offset).collect();
    assert_eq!(offsets(&answered), wanted);
    assert!(answered.summary.complete);
}

/// A batch of records with these values.
pub fn of_values(base: i64, values: &[&[u8]]) -> CanonicalRecord {
    let header = BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: 0,
        crc: 0,
        attributes: 0,
        last_offset_delta: values.len() as i32 - 1,
        base_timestamp: BEGAN_MS,
        max_timestamp: BEGAN_MS,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 0,
    };
    let entry = |(number, value): (usize, &&[u8])| CanonicalRecordEntry {
        offset: base + number as i64,
        timestamp: BEGAN_MS,
        attributes: 0,
        key: None,
        value: Some(value.to_vec().into()),
        headers: Vec::new(),
    };
    let made =
        CanonicalRecord::from_entries(header, values.iter().enumerate().map(entry).collect());
    let wire = made.unwrap().to_kafka_batch().unwrap();
    CanonicalRecord::from_wire(wire).unwrap()
}

/// A world of one archive with these values, from offset 0 on.
async fn holding(level: &str, values: &[&[u8]]) -> World {
    let world = world_of(level, 0, 0).await;
    let batch = of_values(0, values);
    world.commit(&world::tp("orders", 0), None, &[batch], level.parse().unwrap()).await;
    world
}

#[tokio::test]
async fn json_that_nobody_would_write_is_indexed_as_far_as_it_can_be_and_the_rest_is_told() {
    let nested = |depth: usize, inner: &str| {
        format!("{}{inner}{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
    };
    let digest = "0123456789abcdef".repeat(4);
    let values = [
        format!(r#"{{"{}":1,"ok":"long name"}}"#, "n".repeat(100_000)),
        nested(100, "7"),
        nested(200, "7"),
        r#"{"ok":1e999}"#.to_owned(),
        format!(r#"{{"ok":"{}"}}"#, "x".repeat(2 << 20)),
        format!(r#"{{"ok":"{} end"}}"#, "y".repeat(70_000)),
        format!(r#"{{"ok":"{digest}"}}"#),
        r#"{"ok":[1,"two",[3.5,null],{"x":true}],"":{"":5},"a.b":6,"\u0000":8}"#.to_owned(),
        r#"{"ok":18446744073709551615,"ok":"twice"}"#.to_owned(),
        "[1,2]".to_owned(),
        "17".to_owned(),
        "{not json".to_owned(),
        String::new(),
        format!(
            "{{{}}}",
            (0..5_000).map(|n| format!("\"f{n}\":{n}")).collect::<Vec<_>>().join(",")
        ),
    ];
    let values: Vec<&[u8]> = values.iter().map(String::as_bytes).collect();
    let world = holding("full:json", &values).await;
    let deep = format!("value{}:7", ".a".repeat(100));
    for (query, wanted) in [
        ("value.ok:long", vec![0]),
        (deep.as_str(), vec![1]),
        ("value.ok:end", vec![5]),
        (&format!("value.ok:{digest}"), vec![6]),
        ("value.ok:two", vec![7]),
        ("value.ok:>3", vec![7]),
        ("value.ok.x:true", vec![7]),
        ("value.a.b:6", vec![7]),
        ("value.ok:twice", vec![8]),
        ("value.f4999:4999", vec![13]),
    ] {
        let answered = answer(&world, query).await;
        assert_eq!(offsets(&answered), wanted, "{query}");
        // Too deep, a number too large, a value too long.
        let [note] = answered.notes.as_slice() else { panic!("{:?}", answered.notes) };
        assert_eq!(note.kind, NoteKind::Unindexed);
        assert!(note.message.starts_with("3 of its values"), "{note:?}");
        assert!(!answered.summary.complete);
    }
    let answered = answer(&world, "offset:>=0").await;
    assert!(answered.summary.complete && answered.hits.len() == 14, "no question about values");
}

#[tokio::test]
async fn a_range_holds_an_item_of_a_list_whatever_its_bounds_are_written_as() {
    let values: [&[u8]; 5] =
        [br#"{"n":[0,5]}"#, br#"{"n":[2]}"#, br#"{"n":2.5}"#, br#"{"n":1}"#, br#"{"n":-1.5}"#];
    let world = holding("full:json", &values).await;
    for (range, wanted) in [
        ("[1 TO 2.5]", vec![1, 2, 3]),
        ("{1 TO 2.5}", vec![1]),
        ("{1 TO 2.5]", vec![1, 2]),
        ("[0.5 TO 2]", vec![1, 3]),
        ("[0.5 TO 2}", vec![3]),
        ("[1.5 TO 2.0]", vec![1]),
        ("[1 TO 2.0]", vec![1, 3]),
        ("[1.5 TO 5}", vec![1, 2]),
        ("[-1.5 TO 0]", vec![0, 4]),
        ("{-1.5 TO 0}", vec![]),
        ("[-2 TO -0.5]", vec![4]),
        ("[0 TO 0.5]", vec![0]),
    ] {
        let mut found = offsets(&answer(&world, &format!("value.n:{range}")).await);
        found.reverse();
        assert_eq!(found, wanted, "{range}");
    }
}

#[tokio::test]
async fn words_of_any_script_and_length_are_found_in_text() {
    let long = "w".repeat(1_024);
    let longer = "w".repeat(1_025);
    let values = ["Straße 日本 été", &format!("a {long} b"), &format!("c {longer} d"), "e\u{0}f"];
    let mut values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
    values.push(b"\xff\xfe not utf-8");
    let world = holding("full:text", &values).await;
    for (query, wanted) in [
        ("STRASSE OR straße", vec![0]),
        ("日本", vec![0]),
        ("ÉTÉ", vec![0]),
        (&format!("value:{long}"), vec![1]),
        ("\"c d\"~1", vec![2]),
        ("e AND f", vec![3]),
        ("utf", vec![]),
    ] {
        assert_eq!(offsets(&answer(&world, query).await), wanted, "{query}");
    }
    let error = ask(&world.searcher(), asking(&longer)).await.unwrap_err();
    assert!(error.to_string().contains("1024"), "{error}");
}

#[tokio::test]
async fn what_only_a_column_can_refuse_is_told_and_nothing_panics() {
    let world = holding("full:json", &[br#"{"flag":true,"n":1,"s":"x"}"#]).await;
    for (query, told) in [
        ("value.flag:[false TO true]", true),
        ("value.n:[1 TO zzz]", false),
        ("value.n:[2024-03-01T00:00:00Z TO zzz]", false),
        ("value.n:[-5 TO 18446744073709551615]", false),
        ("value.s:[1 TO 2.5]", false),
        ("value.nobody:[1 TO 2]", false),
    ] {
        let answered = answer(&world, query).await;
        let kinds: Vec<NoteKind> = answered.notes.iter().map(|note| note.kind).collect();
        let expected = if told { vec![NoteKind::NotSearchable] } else { vec![] };
        assert_eq!(kinds, expected, "{query}");
    }
}

#[test]
fn topics_get_their_level_by_pattern_and_are_searched_by_value() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = tierd_tests::process::Tierd::new(crate::TIERD, folder.path());
    let wal = tierd_tests::fixture::wal();
    let wal = wal.to_str().unwrap();
    let run = ["run", "--once", "--offline", "--wal-dir", wal];
    let _ = tierd.run(&[&run[..], &["--index", "orders=full:text,*=keys"]].concat()).ok();
    let refused = tierd.run(&[&run[..], &["--index", "orders=all"]].concat());
    assert!(refused.code == 2 && refused.stderr.contains("full:json"), "{refused:?}");
    let all = tierd.run(&["fetch", "orders", "0", "--offset", "0"]).ok();
    let all: Vec<Value> =
        all.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut by_word: std::collections::BTreeMap<String, Vec<Value>> = Default::default();
    for line in &all {
        let mut of = line["value"].as_str().map(words).unwrap_or_default();
        of.sort();
        of.dedup();
        for word in of {
            by_word.entry(word).or_default().push(line.clone());
        }
    }
    let daemon = tierd.serve(&[]);
    let mut searched = 0;
    for (word, wanted) in by_word.iter().filter(|(word, _)| word.len() > 3).step_by(97).take(5) {
        let query = format!("value:\"{word}\"");
        let search =
            ["search", "orders", "0", "--query", &query, "--order", "oldest", "--limit", "0"];
        let through = [&search[..], &["--endpoint", &daemon.address]].concat();
        for found in [tierd.run(&search).ok(), tierd.run(&through).ok()] {
            let found: Vec<Value> =
                found.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(found, *wanted, "{word}");
        }
        searched += 1;
    }
    assert!(searched > 2, "{} words", by_word.len());
    let refused = tierd.run(&["search", "orders", "--query", "/x/", "--endpoint", &daemon.address]);
    assert!(refused.code == 2 && refused.stderr.contains("regular expression"), "{refused:?}");
}
