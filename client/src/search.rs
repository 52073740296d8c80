//! Owns a search: what is asked for, and its answer piece by piece, in plain types.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tierd_proto::v1;
use tierd_proto::v1::search_response::Piece;
use tonic::Streaming;

use crate::client::Inner;
use crate::convert;
use crate::error::ArchiveError;
use crate::retry::Deadline;
use crate::types::{Bounds, OffsetRange};

/// What to search for, and where. The default is every record of every topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchArgs {
    /// One topic, or all.
    pub topic: Option<String>,
    /// One partition of the topic, or all.
    pub partition: Option<i32>,
    /// Which life of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
    /// For what.
    pub selection: Selection,
    /// And for what in values, in Tantivy's language.
    pub query: Option<String>,
    /// Which hits come first.
    pub order: SearchOrder,
    /// Most hits, 1 to 10,000; `None` for the daemon's choice, 1,000.
    pub limit: Option<u32>,
    /// [`SearchEnd::next_page`] of the answer before.
    pub page: Option<String>,
    /// What to send of hits.
    pub delivery: SearchDelivery,
    /// Answer with what was found by then.
    pub time_limit: Option<Duration>,
    /// Longest wait for the next piece; `None` for the client's deadline.
    pub patience: Option<Duration>,
}

/// Which records are wanted: those that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Exactly this key.
    pub key: Option<Bytes>,
    /// A key that begins with these bytes.
    pub key_prefix: Option<Bytes>,
    /// Each of these headers.
    pub headers: Vec<HeaderCondition>,
    /// Milliseconds, from here on.
    pub from_ms: Option<i64>,
    /// Milliseconds, before.
    pub until_ms: Option<i64>,
    /// Offsets, from here on.
    pub from_offset: Option<i64>,
    /// Offsets, below.
    pub until_offset: Option<i64>,
    /// The producer's id.
    pub producer_id: Option<i64>,
}

/// A header that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderCondition {
    /// Its name.
    pub name: Bytes,
    /// Its value; `None` for any, null too.
    pub value: Option<Bytes>,
}

/// Which hits come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchOrder {
    /// Greatest offset, newest timestamp.
    #[default]
    Newest,
    /// Least offset, oldest timestamp.
    Oldest,
}

/// What to send of hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchDelivery {
    /// Where they are.
    #[default]
    Refs,
    /// The records too.
    Records,
    /// Record batches with the hits and nothing else.
    Batches,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SearchItem {
    /// A record that was found.
    Hit(SearchHit),
    /// A batch of hits.
    Batch {
        /// The topic's name.
        topic: String,
        /// The partition.
        partition: i32,
        /// The whole batch.
        batch: Bytes,
    },
    /// Something that the answer lacks, or that its reader should know.
    Note(SearchNote),
    /// The answer is whole.
    End(SearchEnd),
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchHit {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its time as a consumer sees it, in milliseconds.
    pub timestamp: i64,
    /// The archive that holds it, by its name in the object store.
    pub object: String,
    /// The record, where it was asked for and could be read.
    pub record: Option<Record>,
}

/// A record's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Key; null and empty differ.
    pub key: Option<Bytes>,
    /// Value; null and empty differ.
    pub value: Option<Bytes>,
    /// Names and values of headers, in order.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
    /// Bytes of all three that were left out because they are more than 1 MiB.
    pub omitted_bytes: u64,
}

/// Something that an answer lacks, or that its reader should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchNote {
    /// What sort of thing.
    pub kind: NoteKind,
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offsets it is about; `None` for all.
    pub range: Option<OffsetRange>,
    /// The archive it is about; empty for none.
    pub object: String,
    /// For people.
    pub message: String,
}

/// The sorts of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoteKind {
    /// A sort that is younger than this client.
    Unknown,
    /// An archive or a partition could not be read: hits may be missing.
    Unreadable,
    /// Batches that do not decode: hits may be missing.
    Undecodable,
    /// An archive whose index cannot answer the query: hits may be missing.
    NotSearchable,
    /// Values too long for the index, where a query asks for values.
    Unindexed,
    /// A declared gap: no archive holds these offsets.
    Gap,
    /// The manifest of the page before is gone; the search went on by offset.
    GenerationGone,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchEnd {
    /// Hits sent.
    pub hits: u64,
    /// Why it ends.
    pub reason: SearchEndReason,
    /// Whether all that is archived and was asked for was looked at, up to here.
    pub complete: bool,
    /// What to ask the next page with; `None` when there is none.
    pub next_page: Option<String>,
    /// What was searched.
    pub partitions: Vec<SearchedPartition>,
    /// What became of the archives.
    pub archives: SearchedArchives,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SearchEndReason {
    /// A reason that is younger than this client.
    Unknown,
    /// There are no more hits.
    Exhausted,
    /// The limit was reached.
    Limit,
    /// The time was over.
    TimeLimit,
}

/// A partition that was searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchedPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// What of it was searched.
    pub bounds: Bounds,
}

/// What became of the archives with offsets that were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchedArchives {
    /// All of them.
    pub in_range: u64,
    /// Whose times are not those asked for.
    pub pruned_by_time: u64,
    /// That do not hold the key, by their key filter.
    pub pruned_by_key: u64,
    /// Searched through their index.
    pub searched: u64,
    /// Read whole.
    pub scanned: u64,
    /// That could not be read.
    pub unreadable: u64,
    /// Whose index cannot answer the query.
    pub not_searchable: u64,
}

pub(crate) fn request(args: SearchArgs) -> v1::SearchRequest {
    let order = match args.order {
        SearchOrder::Newest => v1::SearchOrder::Newest,
        SearchOrder::Oldest => v1::SearchOrder::Oldest,
    };
    let delivery = match args.delivery {
        SearchDelivery::Refs => v1::SearchDelivery::Refs,
        SearchDelivery::Records => v1::SearchDelivery::Records,
        SearchDelivery::Batches => v1::SearchDelivery::Batches,
    };
    let time_limit = args.time_limit.map(|limit| limit.as_millis());
    v1::SearchRequest {
        topic: args.topic.unwrap_or_default(),
        partition: args.partition,
        incarnation: args.incarnation,
        selection: Some(selection(args.selection)),
        query: args.query.unwrap_or_default(),
        order: order.into(),
        limit: args.limit,
        page: args.page.unwrap_or_default(),
        delivery: delivery.into(),
        time_limit_ms: time_limit.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
    }
}

pub(crate) fn selection(of: Selection) -> v1::Selection {
    let header = |of: HeaderCondition| v1::HeaderCondition { name: of.name, value: of.value };
    v1::Selection {
        key: of.key,
        key_prefix: of.key_prefix,
        headers: of.headers.into_iter().map(header).collect(),
        from_ms: of.from_ms,
        until_ms: of.until_ms,
        from_offset: of.from_offset,
        until_offset: of.until_offset,
        producer_id: of.producer_id,
    }
}

/// The answer to a search. Ends after [`SearchItem::End`] or an error.
pub struct SearchStream {
    inner: Arc<Inner>,
    first: Option<v1::SearchResponse>,
    messages: Streaming<v1::SearchResponse>,
    wait: Duration,
    /// Pieces of a batch that is not whole yet.
    pieces: BytesMut,
    ended: bool,
}

impl fmt::Debug for SearchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SearchStream")
    }
}

impl SearchStream {
    pub(crate) fn new(
        inner: Arc<Inner>,
        first: Option<v1::SearchResponse>,
        messages: Streaming<v1::SearchResponse>,
        wait: Duration,
    ) -> Self {
        Self { inner, first, messages, wait, pieces: BytesMut::new(), ended: false }
    }

    /// The next piece; `None` after the end.
    pub async fn next(&mut self) -> Option<Result<SearchItem, ArchiveError>> {
        if self.ended {
            return None;
        }
        let item = self.item().await;
        self.ended = !matches!(
            item,
            Ok(SearchItem::Hit(_) | SearchItem::Batch { .. } | SearchItem::Note(_))
        );
        Some(item)
    }

    async fn item(&mut self) -> Result<SearchItem, ArchiveError> {
        loop {
            let message = match self.first.take() {
                Some(first) => Some(first),
                None => Deadline::after(self.wait)
                    .limit(self.messages.message())
                    .await?
                    .map_err(|status| self.inner.call_error(&status))?,
            };
            let Some(message) = message else {
                return Err(ArchiveError::Unavailable {
                    message: "the search broke off; ask again from the last page on".to_owned(),
                    retry_after: None,
                });
            };
            match message.piece {
                Some(Piece::Hit(found)) => return Ok(SearchItem::Hit(hit(found))),
                Some(Piece::Note(told)) => return note(told).map(SearchItem::Note),
                Some(Piece::End(last)) => return end(last).map(SearchItem::End),
                Some(Piece::Batch(part)) => {
                    let most = self.inner.options.batch_bytes_max;
                    if self.pieces.len() + part.batch.len() > most {
                        return Err(ArchiveError::protocol(format!(
                            "a batch of more than {most} bytes"
                        )));
                    }
                    self.pieces.extend_from_slice(&part.batch);
                    if !part.continued {
                        let batch = self.pieces.split().freeze();
                        let v1::SearchBatch { topic, partition, .. } = part;
                        return Ok(SearchItem::Batch { topic, partition, batch });
                    }
                }
                // A piece that is younger than this client.
                None => {}
            }
        }
    }
}

fn hit(of: v1::SearchHit) -> SearchHit {
    let record = |of: v1::Record| Record {
        key: of.key,
        value: of.value,
        headers: of.headers.into_iter().map(|header| (header.name, header.value)).collect(),
        omitted_bytes: of.omitted_bytes,
    };
    SearchHit {
        topic: of.topic,
        partition: of.partition,
        offset: of.offset,
        timestamp: of.timestamp,
        object: of.object,
        record: of.record.map(record),
    }
}

fn note(of: v1::SearchNote) -> Result<SearchNote, ArchiveError> {
    let kind = match of.kind() {
        v1::SearchNoteKind::Unspecified => NoteKind::Unknown,
        v1::SearchNoteKind::Unreadable => NoteKind::Unreadable,
        v1::SearchNoteKind::Undecodable => NoteKind::Undecodable,
        v1::SearchNoteKind::NotSearchable => NoteKind::NotSearchable,
        v1::SearchNoteKind::Unindexed => NoteKind::Unindexed,
        v1::SearchNoteKind::Gap => NoteKind::Gap,
        v1::SearchNoteKind::GenerationGone => NoteKind::GenerationGone,
    };
    Ok(SearchNote {
        kind,
        range: of.range.map(|range| convert::range(Some(range))).transpose()?,
        topic: of.topic,
        partition: of.partition,
        object: of.object,
        message: of.message,
    })
}

fn end(of: v1::SearchEnd) -> Result<SearchEnd, ArchiveError> {
    let reason = match of.reason() {
        v1::SearchEndReason::Unspecified => SearchEndReason::Unknown,
        v1::SearchEndReason::Exhausted => SearchEndReason::Exhausted,
        v1::SearchEndReason::Limit => SearchEndReason::Limit,
        v1::SearchEndReason::TimeLimit => SearchEndReason::TimeLimit,
    };
    let partition = |of: v1::SearchedPartition| {
        let told = of.bounds.as_ref();
        let told = told.ok_or_else(|| ArchiveError::protocol("a partition without bounds"))?;
        let bounds = convert::bounds(told);
        Ok(SearchedPartition { topic: of.topic, partition: of.partition, bounds })
    };
    let archives = of.archives.unwrap_or_default();
    Ok(SearchEnd {
        hits: of.hits,
        reason,
        complete: of.complete,
        next_page: (!of.next_page.is_empty()).then_some(of.next_page),
        partitions: of
            .partitions
            .into_iter()
            .map(partition)
            .collect::<Result<_, ArchiveError>>()?,
        archives: SearchedArchives {
            in_range: archives.in_range,
            pruned_by_time: archives.pruned_by_time,
            pruned_by_key: archives.pruned_by_key,
            searched: archives.searched,
            scanned: archives.scanned,
            unreadable: archives.unreadable,
            not_searchable: archives.not_searchable,
        },
    })
}
