//! Owns the words of a search: what is asked for, what comes back.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::ArchiveEntry;
use crate::record::{
    CanonicalRecord, CanonicalRecordEntry, OffsetRange, Selection, TopicName, TopicPartition,
};

/// Most hits of one answer: who wants more asks for the next page.
pub const LIMIT_MAX: u32 = 10_000;
/// Hits of one answer where nothing is said.
pub const LIMIT_DEFAULT: u32 = 1_000;

/// Where to search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// One topic; `None` for all.
    pub topic: Option<TopicName>,
    /// One partition of it; `None` for all.
    pub partition: Option<i32>,
    /// Which life of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
}

/// Which hits come first. Within a partition that is by offset. Of several
/// partitions each time the one whose next hit has the newer (older) timestamp goes
/// on; of equal ones the first by topic and partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Greatest offset first.
    #[default]
    Newest,
    /// Least offset first.
    Oldest,
}

/// What to send of a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deliver {
    /// Where it is.
    #[default]
    Refs,
    /// The record too.
    Records,
    /// Each batch that holds hits, with nothing but them at their offsets; once in an
    /// answer, where its first hit stands.
    Batches,
}

/// A search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchRequest {
    /// Where.
    pub scope: Scope,
    /// For what.
    pub selection: Selection,
    /// And for what in values, in Tantivy's language: `value.city:Berlin`. Archives whose
    /// index does not know values cannot answer it, and are noted.
    pub query: Option<String>,
    /// Which first.
    pub order: Order,
    /// How many, at most [`LIMIT_MAX`].
    pub limit: u32,
    /// What to send.
    pub deliver: Deliver,
    /// Where an earlier answer to the same search ended.
    pub page: Option<String>,
    /// Answer with what was found by then.
    pub time_limit: Option<Duration>,
}

/// A record that was found.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Where.
    pub tp: TopicPartition,
    /// Which life of the topic.
    pub incarnation: u32,
    /// Its offset.
    pub offset: i64,
    /// Its time as a consumer sees it, in milliseconds.
    pub timestamp: i64,
    /// The archive that holds it.
    pub archive: Arc<ArchiveEntry>,
}

/// A piece of an answer, in order.
#[derive(Clone, Debug)]
pub enum SearchEvent {
    /// A hit; with [`Deliver::Records`] also its record.
    Hit(Hit, Option<Box<CanonicalRecordEntry>>),
    /// A batch of hits, and the first of them.
    Batch(Hit, CanonicalRecord),
    /// Something that the answer lacks, or that its reader should know.
    Note(Note),
}

/// What an answer lacks, or its reader should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What sort of thing.
    pub kind: NoteKind,
    /// Of which partition.
    pub tp: TopicPartition,
    /// Which offsets may lack hits.
    pub range: Option<OffsetRange>,
    /// The archive, where it is about one.
    pub object: Option<String>,
    /// For people.
    pub message: String,
}

/// The sorts of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoteKind {
    /// An archive or a partition could not be read.
    Unreadable,
    /// Batches that do not decode: nobody can search them.
    Undecodable,
    /// An archive whose index cannot answer the query.
    NotSearchable,
    /// Values too long to be indexed, where a query asks for values.
    Unindexed,
    /// A declared gap: no archive holds these offsets.
    Gap,
    /// The manifest that the page was pinned to is gone; the search went on by
    /// offset over the newest.
    GenerationGone,
}

impl NoteKind {
    /// Whether hits may be missing from the answer because of it.
    #[must_use]
    pub const fn is_lack(self) -> bool {
        match self {
            Self::Unreadable | Self::Undecodable | Self::NotSearchable | Self::Unindexed => true,
            // What was never archived is no lack of the search; both are told.
            Self::Gap | Self::GenerationGone => false,
        }
    }

    /// One word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Undecodable => "undecodable",
            Self::NotSearchable => "not-searchable",
            Self::Unindexed => "unindexed",
            Self::Gap => "gap",
            Self::GenerationGone => "generation-gone",
        }
    }
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchEnd {
    /// There are no more hits.
    #[default]
    Exhausted,
    /// The limit was reached.
    Limit,
    /// The time was over.
    TimeLimit,
}

/// What one partition's part of an answer is true of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionSearched {
    /// The partition.
    pub tp: TopicPartition,
    /// Which life of the topic.
    pub incarnation: u32,
    /// Number of the manifest.
    pub generation: u64,
    /// First offset of the log.
    pub log_start: i64,
    /// First offset that is not archived, and so was not searched.
    pub archived_through: i64,
    /// First offset of a transaction without an archived end, else `archived_through`.
    pub last_stable_offset: i64,
}

/// What became of the archives that hold offsets asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveCounts {
    /// All of them.
    pub in_range: u64,
    /// Whose times, by the manifest, are not those asked for.
    pub pruned_by_time: u64,
    /// That do not hold the key, by their key filter.
    pub pruned_by_key: u64,
    /// Searched through their index.
    pub searched: u64,
    /// Read whole, for they have no index.
    pub scanned: u64,
    /// That could not be read.
    pub unreadable: u64,
    /// Whose index cannot answer the query.
    pub not_searchable: u64,
}

/// The end of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchSummary {
    /// Hits sent.
    pub hits: u64,
    /// Why it ends.
    pub end: SearchEnd,
    /// Whether every archived record asked for was looked at, up to where the answer
    /// ends. No note that [is a lack](NoteKind::is_lack) was sent then.
    pub complete: bool,
    /// What to ask the next page by; `None` when there is none.
    pub next_page: Option<String>,
    /// What the answer is true of.
    pub partitions: Vec<PartitionSearched>,
    /// What became of the archives. Those that the answer did not come to are not
    /// counted.
    pub archives: ArchiveCounts,
}
