//! Owns searching through a daemon or straight from the store: one face for both.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierd_client as client;
use tokio::sync::mpsc;

use super::{output, picking};
use crate::read::ReadStats;
use crate::record::CanonicalRecordEntry;
use crate::search::{
    Deliver, EVENTS_QUEUED_MAX, Order, SearchEnd, SearchError, SearchEvent, SearchRequest,
    SearchSummary, Searcher,
};

/// Longest wait for the next piece of a daemon's answer: a search over a cold store
/// may read gigabytes before its first hit.
const PATIENCE: Duration = Duration::from_secs(600);

/// A piece of an answer.
#[derive(Debug)]
pub(super) enum Found {
    /// A record that was found.
    Hit(FoundHit),
    /// A batch of hits.
    Batch(Bytes),
    /// Something that the answer lacks, or that its reader should know.
    Note { place: String, kind: &'static str, message: String },
    /// The answer is whole.
    End(FoundEnd),
}

/// A record that was found.
#[derive(Debug)]
pub(super) struct FoundHit {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) timestamp: i64,
    pub(super) object: String,
    pub(super) record: Option<FoundRecord>,
}

/// Its content.
#[derive(Debug)]
pub(super) struct FoundRecord {
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Vec<(Bytes, Option<Bytes>)>,
    pub(super) omitted_bytes: u64,
}

/// How an answer ended.
#[derive(Debug)]
pub(super) struct FoundEnd {
    pub(super) hits: u64,
    pub(super) stopped_by_limit: bool,
    pub(super) complete: bool,
    pub(super) next_page: Option<String>,
    /// Lines for people: what was searched.
    pub(super) explained: String,
}

/// Where to search.
pub(super) enum Finding {
    Store(Searcher),
    Daemon(client::ArchiveClient),
}

impl Finding {
    pub(super) fn store(searcher: Searcher) -> Self {
        Self::Store(searcher)
    }

    pub(super) fn daemon(client: client::ArchiveClient) -> Self {
        Self::Daemon(client)
    }

    pub(super) async fn search(&self, request: SearchRequest) -> anyhow::Result<Answer> {
        Ok(match self {
            Self::Store(searcher) => Answer::Store(StoreAnswer::start(searcher, request)),
            Self::Daemon(client) => Answer::Daemon(Box::new(client.search(args(request)).await?)),
        })
    }
}

/// An answer as it comes.
pub(super) enum Answer {
    Store(StoreAnswer),
    Daemon(Box<client::SearchStream>),
}

impl Answer {
    pub(super) async fn next(&mut self) -> anyhow::Result<Found> {
        match self {
            Self::Store(answer) => answer.next().await,
            Self::Daemon(stream) => loop {
                let item = stream.next().await.transpose()?;
                let defect = "the daemon's answer ended without an end, which is a defect of tierd";
                if let Some(found) = of_daemon(item.ok_or_else(|| anyhow::anyhow!(defect))?) {
                    return Ok(found);
                }
            },
        }
    }
}

/// An answer straight from the store.
pub(super) struct StoreAnswer {
    events: mpsc::Receiver<SearchEvent>,
    ended: Option<tokio::task::JoinHandle<Result<SearchSummary, SearchError>>>,
    stats: Arc<ReadStats>,
}

impl StoreAnswer {
    fn start(searcher: &Searcher, request: SearchRequest) -> Self {
        let (sink, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let stats = Arc::new(ReadStats::default());
        let (searcher, counted) = (searcher.clone(), Arc::clone(&stats));
        let ended = tokio::spawn(async move { searcher.search(request, &sink, &counted).await });
        Self { events, ended: Some(ended), stats }
    }

    async fn next(&mut self) -> anyhow::Result<Found> {
        if let Some(event) = self.events.recv().await {
            return of_store(event);
        }
        let Some(ended) = self.ended.take() else {
            anyhow::bail!("the search was asked for more than its end, which is a defect of tierd")
        };
        let summary = ended.await??;
        let cost = self.stats.totals();
        let mut explained = explain(
            summary.partitions.iter().map(|one| (one.tp.to_string(), one.archived_through)),
            [
                summary.archives.in_range,
                summary.archives.pruned_by_time,
                summary.archives.pruned_by_key,
                summary.archives.searched,
                summary.archives.scanned,
                summary.archives.unreadable,
                summary.archives.not_searchable,
            ],
        );
        explained += &format!(
            "{} requests for tables of contents ({}), {} for indexes and batches ({})\n",
            cost.toc_requests,
            output::bytes(cost.toc_bytes),
            cost.chunk_requests,
            output::bytes(cost.chunk_bytes)
        );
        Ok(Found::End(FoundEnd {
            hits: summary.hits,
            stopped_by_limit: summary.end == SearchEnd::Limit,
            complete: summary.complete,
            next_page: summary.next_page,
            explained,
        }))
    }
}

fn explain(partitions: impl Iterator<Item = (String, i64)>, archives: [u64; 7]) -> String {
    let [in_range, pruned_by_time, pruned_by_key, searched, scanned, unreadable, not_searchable] =
        archives;
    let mut text = String::new();
    for (tp, archived_through) in partitions {
        text +=
            &format!("{tp}: searched below offset {archived_through}, the rest is not archived\n");
    }
    text + &format!(
        "{in_range} archives in range: {pruned_by_time} ruled out by their times, \
         {pruned_by_key} by their keys, {searched} searched by index, {scanned} read whole, {unreadable} unreadable, \
         {not_searchable} without an index for the query\n"
    )
}

fn of_store(event: SearchEvent) -> anyhow::Result<Found> {
    let record = |entry: CanonicalRecordEntry| FoundRecord {
        key: entry.key,
        value: entry.value,
        headers: entry.headers.into_iter().map(|header| (header.name, header.value)).collect(),
        omitted_bytes: 0,
    };
    Ok(match event {
        SearchEvent::Hit(hit, found) => Found::Hit(FoundHit {
            topic: hit.tp.topic().to_string(),
            partition: hit.tp.partition(),
            offset: hit.offset,
            timestamp: hit.timestamp,
            object: hit.archive.key().to_string(),
            record: found.map(|found| record(*found)),
        }),
        SearchEvent::Batch(_, batch) => Found::Batch(batch.to_kafka_batch()?),
        SearchEvent::Note(note) => Found::Note {
            place: place(&note.tp.to_string(), note.range.map(|range| range.to_string())),
            kind: note.kind.as_str(),
            message: note.message,
        },
    })
}

fn place(tp: &str, range: Option<String>) -> String {
    range.map_or_else(|| tp.to_owned(), |range| format!("{tp}, offsets {range}"))
}

fn of_daemon(item: client::SearchItem) -> Option<Found> {
    Some(match item {
        client::SearchItem::Hit(hit) => {
            let record = |found: client::Record| FoundRecord {
                key: found.key,
                value: found.value,
                headers: found.headers,
                omitted_bytes: found.omitted_bytes,
            };
            Found::Hit(FoundHit {
                topic: hit.topic,
                partition: hit.partition,
                offset: hit.offset,
                timestamp: hit.timestamp,
                object: hit.object,
                record: hit.record.map(record),
            })
        }
        client::SearchItem::Batch { batch, .. } => Found::Batch(batch),
        client::SearchItem::Note(note) => {
            let range = note.range.map(|range| format!("{}..{}", range.first, range.last));
            Found::Note {
                place: place(&format!("{}-{}", note.topic, note.partition), range),
                kind: match note.kind {
                    client::NoteKind::Unreadable => "unreadable",
                    client::NoteKind::Undecodable => "undecodable",
                    client::NoteKind::NotSearchable => "not-searchable",
                    client::NoteKind::Unindexed => "unindexed",
                    client::NoteKind::Gap => "gap",
                    client::NoteKind::GenerationGone => "generation-gone",
                    _ => "note",
                },
                message: note.message,
            }
        }
        client::SearchItem::End(end) => {
            let tp = |one: &client::SearchedPartition| format!("{}-{}", one.topic, one.partition);
            let partitions =
                end.partitions.iter().map(|one| (tp(one), one.bounds.archived_through));
            let archives = end.archives;
            Found::End(FoundEnd {
                hits: end.hits,
                stopped_by_limit: end.reason == client::SearchEndReason::Limit,
                complete: end.complete,
                explained: explain(
                    partitions,
                    [
                        archives.in_range,
                        archives.pruned_by_time,
                        archives.pruned_by_key,
                        archives.searched,
                        archives.scanned,
                        archives.unreadable,
                        archives.not_searchable,
                    ],
                ),
                next_page: end.next_page,
            })
        }
        // A piece that is younger than this command line.
        _ => return None,
    })
}

fn args(request: SearchRequest) -> client::SearchArgs {
    client::SearchArgs {
        topic: request.scope.topic.map(|topic| topic.to_string()),
        partition: request.scope.partition,
        incarnation: request.scope.incarnation,
        selection: picking::for_client(request.selection),
        query: request.query,
        order: match request.order {
            Order::Newest => client::SearchOrder::Newest,
            Order::Oldest => client::SearchOrder::Oldest,
        },
        limit: Some(request.limit),
        page: request.page,
        delivery: match request.deliver {
            Deliver::Refs => client::SearchDelivery::Refs,
            Deliver::Records => client::SearchDelivery::Records,
            Deliver::Batches => client::SearchDelivery::Batches,
        },
        time_limit: request.time_limit,
        patience: Some(PATIENCE),
    }
}
