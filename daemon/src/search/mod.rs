//! Owns finding records: by key, header, producer, time and offset, over a
//! partition, a topic or everything, in order, page by page.
//!
//! ```text
//!  request --> partitions, each pinned to one manifest
//!                 | archives by offset and time, out of the manifest alone
//!                 v
//!              in parallel, under a budget of memory:
//!                 index in place (`files`, `index`)  or  record by record (`scan`)
//!                 | offsets, in order                 compared where terms are too long
//!                 v
//!              `merge` by time --> limit --> references, records or batches
//! ```
//!
//! What is found is exact: the same that looking at every served record would find
//! ([`Selection`](crate::record::Selection) is that look). What could not be looked
//! at is told in [`Note`]s as it shows, and the [`SearchSummary`] says whether there
//! was any. Not searched: control records, batches beneath the served log, what is
//! not archived yet (the summary tells where that begins). Aborted transactions are
//! found like others.
//!
//! Does not own: what an index holds (`archive`), how bytes are read (`read`).

mod context;
mod error;
mod files;
mod index;
mod merge;
mod partition;
mod query;
mod scan;
mod send;
mod token;
mod types;

use std::collections::HashMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::context::{Context, Memory, Tally};
use self::merge::Merge;
use self::partition::Partition;
use self::token::{PARTITIONS_MAX, Place};
use crate::catalog::{Snapshot, Snapshots};
use crate::read::{ArchiveReader, ReadStats};
use crate::record::{OffsetRange, TopicName, TopicPartition};

pub use error::SearchError;
pub use types::{
    ArchiveCounts, Deliver, Hit, LIMIT_DEFAULT, LIMIT_MAX, Note, NoteKind, Order,
    PartitionSearched, Scope, SearchEnd, SearchEvent, SearchRequest, SearchSummary,
};

/// Events of one answer that wait for the consumer.
pub const EVENTS_QUEUED_MAX: usize = 64;
/// Manifests asked for at a time.
const MANIFESTS_AT_ONCE: usize = 16;

/// Where the events of an answer go.
pub type Sink = mpsc::Sender<SearchEvent>;

/// Answers searches. Cheap to clone; clones share their budget of memory.
#[derive(Clone, Debug)]
pub struct Searcher {
    snapshots: Arc<Snapshots>,
    reader: ArchiveReader,
    memory: Memory,
}

impl Searcher {
    /// A searcher over what `snapshots` say and `reader` reads.
    #[must_use]
    pub fn new(snapshots: Arc<Snapshots>, reader: ArchiveReader) -> Self {
        Self { snapshots, reader, memory: Memory::new() }
    }

    /// Sends what `request` asks for into `sink`, in order, as it is found.
    ///
    /// # Errors
    /// When the search makes no sense, when nothing of its scope is archived, or when
    /// the receiver is gone. What cannot be read is a note, not an error.
    pub async fn search(
        &self,
        request: SearchRequest,
        sink: &Sink,
        stats: &Arc<ReadStats>,
    ) -> Result<SearchSummary, SearchError> {
        check(&request)?;
        let asked = request.query.as_deref().map(query::understand).transpose()?;
        let cancelled = CancellationToken::new();
        // Workers see it when this future ends or is dropped.
        let _given_up = cancelled.clone().drop_guard();
        let time_limit = request.time_limit;
        let context = Arc::new(Context {
            request,
            asked,
            snapshots: Arc::clone(&self.snapshots),
            reader: self.reader.clone(),
            stats: Arc::clone(stats),
            cancelled,
            memory: self.memory.clone(),
            tally: std::sync::Mutex::new(Tally::default()),
        });
        let partitions = self.partitions(&context).await?;
        let searched = partitions.iter().map(|(_, partition)| searched(&partition.snapshot));
        let searched = searched.collect();
        let mut merge = Merge::new(&context, partitions);
        let sending = send::send(&context, &mut merge, sink, time_limit);
        let (hits, end) = sending.await?;
        let left = merge.places();
        let next_page = (end != SearchEnd::Exhausted && !left.is_empty())
            .then(|| token::encode(&context.request, &left));
        Ok(SearchSummary {
            hits,
            end,
            complete: !context.lacks(),
            next_page,
            partitions: searched,
            archives: context.counts(),
        })
    }

    /// The partitions to search, by topic and partition, each pinned to a manifest.
    async fn partitions(
        &self,
        context: &Arc<Context>,
    ) -> Result<Vec<(Place, Partition)>, SearchError> {
        if let Some(page) = &context.request.page {
            let places = token::decode(&context.request, page)?;
            let pinned = places.into_iter().map(|place| self.pinned(context, place));
            let pinned: Vec<_> = pinned.collect();
            return stream::iter(pinned).buffered(MANIFESTS_AT_ONCE).try_collect().await;
        }
        let scope = &context.request.scope;
        let named = match (&scope.topic, scope.partition) {
            (Some(topic), Some(partition)) => {
                let tp = TopicPartition::new(topic.clone(), partition)
                    .map_err(|error| SearchError::Invalid(error.to_string()))?;
                vec![(tp, scope.incarnation)]
            }
            (topic, _) => {
                let all = self.snapshots.partitions(topic.as_ref()).await?;
                lives(all, scope.incarnation)
            }
        };
        if named.len() > PARTITIONS_MAX {
            return Err(SearchError::Invalid(format!(
                "{} partitions to search; name a topic, at most {PARTITIONS_MAX} are searched at once",
                named.len()
            )));
        }
        let found = named.into_iter().map(|(tp, incarnation)| async move {
            Ok::<_, SearchError>(self.snapshots.get(&tp, incarnation).await?)
        });
        let found: Vec<_> = found.collect();
        let found: Vec<Option<Arc<Snapshot>>> =
            stream::iter(found).buffered(MANIFESTS_AT_ONCE).try_collect().await?;
        let found: Vec<_> = found.into_iter().flatten().map(|at| first(context, at)).collect();
        match (found.is_empty(), &scope.topic, scope.partition) {
            (true, Some(topic), Some(partition)) => {
                Err(SearchError::Unknown(format!("{topic}-{partition}")))
            }
            (true, Some(topic), None) => Err(SearchError::Unknown(format!("topic {topic}"))),
            _ => Ok(found),
        }
    }

    /// The partition of `place`, as it was when the first page was answered.
    async fn pinned(
        &self,
        context: &Context,
        place: Place,
    ) -> Result<(Place, Partition), SearchError> {
        let Place { tp, incarnation, generation, .. } = &place;
        let snapshot = match self.snapshots.at(tp, *incarnation, *generation).await? {
            Some(snapshot) => snapshot,
            None => {
                let newest = self.snapshots.refresh(tp, Some(*incarnation)).await?;
                let newest = newest.ok_or_else(|| SearchError::Unknown(tp.to_string()))?;
                let message = format!(
                    "manifest {generation} is gone; the search goes on by offset over {}",
                    newest.number()
                );
                context.note_partition(NoteKind::GenerationGone, tp, None, message);
                newest
            }
        };
        let bounds = bounds(context, &snapshot, &place);
        Ok((place, Partition { snapshot, bounds }))
    }
}

/// Of all partitions in all lives of their topics those of life `wanted`, or of the
/// newest of each topic.
fn lives(
    all: Vec<(TopicPartition, u32)>,
    wanted: Option<u32>,
) -> Vec<(TopicPartition, Option<u32>)> {
    let mut newest: HashMap<TopicName, u32> = HashMap::new();
    for (tp, life) in &all {
        let known = newest.entry(tp.topic().clone()).or_default();
        *known = (*known).max(*life);
    }
    let of = |tp: &TopicPartition| wanted.or_else(|| newest.get(tp.topic()).copied());
    let found = all.into_iter().filter(|(tp, life)| of(tp) == Some(*life));
    found.map(|(tp, life)| (tp, Some(life))).collect()
}

/// Refuses what makes no sense or has no bound.
fn check(request: &SearchRequest) -> Result<(), SearchError> {
    let refuse = |why: String| Err(SearchError::Invalid(why));
    let SearchRequest { scope, selection, limit, .. } = request;
    if scope.topic.is_none() && (scope.partition.is_some() || scope.incarnation.is_some()) {
        return refuse("a partition or incarnation needs its topic".to_owned());
    }
    if *limit == 0 || *limit > LIMIT_MAX {
        return refuse(format!("a limit of {limit} hits; give 1 to {LIMIT_MAX} and ask for pages"));
    }
    selection.check().map_err(|error| SearchError::Invalid(error.to_string()))
}

fn first(context: &Context, snapshot: Arc<Snapshot>) -> (Place, Partition) {
    let place = Place {
        tp: snapshot.tp().clone(),
        incarnation: snapshot.incarnation(),
        generation: snapshot.number(),
        archived_through: snapshot.archived_through(),
        next: match context.request.order {
            Order::Newest => snapshot.archived_through() - 1,
            Order::Oldest => snapshot.log_start(),
        },
    };
    let bounds = bounds(context, &snapshot, &place);
    (place, Partition { snapshot, bounds })
}

/// The offsets that are left to search.
fn bounds(context: &Context, snapshot: &Snapshot, place: &Place) -> Option<OffsetRange> {
    let SearchRequest { selection, order, .. } = &context.request;
    let mut base = snapshot.log_start().max(selection.from_offset.unwrap_or(0));
    let through = snapshot.archived_through().min(place.archived_through);
    let mut last = through.min(selection.until_offset.unwrap_or(i64::MAX)) - 1;
    match order {
        Order::Newest => last = last.min(place.next),
        Order::Oldest => base = base.max(place.next),
    }
    OffsetRange::new(base, last)
}

fn searched(snapshot: &Snapshot) -> PartitionSearched {
    PartitionSearched {
        tp: snapshot.tp().clone(),
        incarnation: snapshot.incarnation(),
        generation: snapshot.number(),
        log_start: snapshot.log_start(),
        archived_through: snapshot.archived_through(),
        last_stable_offset: snapshot.last_stable_offset(),
    }
}
