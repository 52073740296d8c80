//! Owns turning hits into what was asked for, and sending it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};

use super::Sink;
use super::context::Context;
use super::error::SearchError;
use super::merge::{Merge, Ranked};
use super::scan::{batches_of, chunk_of};
use super::types::{Deliver, NoteKind, SearchEnd, SearchEvent};
use crate::catalog::ArchiveEntry;
use crate::record::{BatchError, CanonicalRecord, CanonicalRecordEntry};

/// Hits whose records are read together: the first few alone, so that they come
/// soon, then more and more.
const RUN_FIRST: usize = 4;
const RUN_MAX: usize = 64;
/// Chunks of logs read at once for one answer.
const CHUNKS_AT_ONCE: usize = 8;

/// Sends hits until there are no more, the limit is reached or the time is over.
/// Returns how many.
pub(super) async fn send(
    context: &Arc<Context>,
    merge: &mut Merge,
    sink: &Sink,
    time_limit: Option<Duration>,
) -> Result<(u64, SearchEnd), SearchError> {
    let mut sender = Sender { context, merge, sink, hits: 0 };
    let work = async {
        match context.request.deliver {
            Deliver::Refs => sender.refs().await,
            Deliver::Records => sender.records().await,
            Deliver::Batches => sender.batches().await,
        }
    };
    let end = match time_limit {
        None => work.await?,
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(end) => end?,
            Err(_) => SearchEnd::TimeLimit,
        },
    };
    sender.notes().await?;
    Ok((sender.hits, end))
}

struct Sender<'a> {
    context: &'a Arc<Context>,
    merge: &'a mut Merge,
    sink: &'a Sink,
    hits: u64,
}

impl Sender<'_> {
    fn left(&self) -> u64 {
        u64::from(self.context.request.limit) - self.hits
    }

    async fn event(&mut self, event: SearchEvent) -> Result<(), SearchError> {
        self.sink.send(event).await.map_err(|_| SearchError::Cancelled)
    }

    async fn notes(&mut self) -> Result<(), SearchError> {
        for note in self.context.take_notes() {
            self.event(SearchEvent::Note(note)).await?;
        }
        Ok(())
    }

    /// Sends a hit. Only what was sent is behind the next page.
    async fn hit(
        &mut self,
        ranked: Ranked,
        record: Option<Box<CanonicalRecordEntry>>,
    ) -> Result<(), SearchError> {
        self.event(SearchEvent::Hit(ranked.hit.clone(), record)).await?;
        self.merge.told(&ranked);
        self.hits += 1;
        Ok(())
    }

    async fn refs(&mut self) -> Result<SearchEnd, SearchError> {
        while self.left() > 0 {
            let next = self.merge.next().await?;
            self.notes().await?;
            let Some(ranked) = next else { return Ok(SearchEnd::Exhausted) };
            self.hit(ranked, None).await?;
        }
        Ok(SearchEnd::Limit)
    }

    async fn records(&mut self) -> Result<SearchEnd, SearchError> {
        let mut most = RUN_FIRST;
        loop {
            let run = self.run(most).await?;
            self.notes().await?;
            if run.is_empty() {
                return Ok(if self.left() == 0 { SearchEnd::Limit } else { SearchEnd::Exhausted });
            }
            let mut records = HashMap::new();
            let units = units(self.context, &run).await?;
            let reads: Vec<_> =
                units.into_iter().map(|unit| records_of(self.context, unit)).collect();
            let mut reads = stream::iter(reads).buffer_unordered(CHUNKS_AT_ONCE);
            while let Some(read) = reads.next().await {
                records.extend(read);
            }
            drop(reads);
            self.notes().await?;
            for ranked in run {
                let record = records.remove(&(ranked.lane, ranked.hit.offset));
                self.hit(ranked, record.map(Box::new)).await?;
            }
            most = (most * 2).min(RUN_MAX);
        }
    }

    /// The next hits: one that is waited for, and those that are there with it.
    async fn run(&mut self, most: usize) -> Result<Vec<Ranked>, SearchError> {
        let most = most.min(usize::try_from(self.left()).unwrap_or(most));
        let mut run = Vec::new();
        while run.len() < most {
            let next = match run.is_empty() {
                true => self.merge.next().await?,
                // Giving up the wait loses nothing: what came stays in its lane.
                false => match self.merge.next().now_or_never() {
                    Some(next) => next?,
                    None => break,
                },
            };
            let Some(next) = next else { break };
            run.push(next);
        }
        Ok(run)
    }

    async fn batches(&mut self) -> Result<SearchEnd, SearchError> {
        let mut page = Vec::new();
        let mut end = SearchEnd::Limit;
        while (page.len() as u64) < self.left() {
            let Some(next) = self.merge.next().await? else {
                end = SearchEnd::Exhausted;
                break;
            };
            page.push(next);
        }
        self.notes().await?;
        let ranks: HashMap<(usize, i64), usize> =
            page.iter().enumerate().map(|(rank, at)| ((at.lane, at.hit.offset), rank)).collect();
        let units = units(self.context, &page).await?;
        let begins: Vec<usize> = units.iter().map(|unit| unit.first).collect();
        let reads: Vec<_> = units.into_iter().map(|unit| rebuilt(self.context, unit)).collect();
        let mut reads = stream::iter(reads).buffered(CHUNKS_AT_ONCE);
        // By the rank of the first hit: batches of one chunk may stand apart.
        let mut waiting = BTreeMap::new();
        for unit in 0..begins.len() {
            let Some((lane, batches)) = reads.next().await else { break };
            for (batch, offsets) in batches {
                let rank = |offset: &i64| ranks.get(&(lane, *offset)).copied();
                let mut held: Vec<usize> = offsets.iter().filter_map(rank).collect();
                held.sort_unstable();
                if let Some(&first) = held.first() {
                    waiting.insert(first, (batch, held));
                }
            }
            let until = begins.get(unit + 1).copied().unwrap_or(usize::MAX);
            let later = waiting.split_off(&until);
            for (first, (batch, held)) in std::mem::replace(&mut waiting, later) {
                self.event(SearchEvent::Batch(page[first].hit.clone(), batch)).await?;
                held.iter().for_each(|&rank| self.merge.told(&page[rank]));
                self.hits += held.len() as u64;
            }
            self.notes().await?;
        }
        Ok(end)
    }
}

/// `hits` by the chunk that holds them, in the order of their first hits.
async fn units(context: &Context, hits: &[Ranked]) -> Result<Vec<Unit>, SearchError> {
    let mut units: Vec<Unit> = Vec::new();
    let mut at: HashMap<([u8; 32], usize), usize> = HashMap::new();
    for (rank, Ranked { lane, hit }) in hits.iter().enumerate() {
        let archive = &hit.archive;
        let toc = context.reader.toc(archive, &context.stats).await?;
        let chunk = chunk_of(&toc, hit.offset).unwrap_or(usize::MAX);
        let index = *at.entry((archive.summary.digest, chunk)).or_insert(units.len());
        if index == units.len() {
            let (lane, archive) = (*lane, Arc::clone(archive));
            units.push(Unit { first: rank, lane, archive, offsets: Vec::new() });
        }
        units[index].offsets.push(hit.offset);
    }
    units.iter_mut().for_each(|unit| unit.offsets.sort_unstable());
    Ok(units)
}

/// Hits of one chunk.
#[derive(Debug)]
struct Unit {
    /// Rank of the first of them.
    first: usize,
    lane: usize,
    archive: Arc<ArchiveEntry>,
    /// Ascending.
    offsets: Vec<i64>,
}

type Records = Vec<((usize, i64), CanonicalRecordEntry)>;

/// The records of `unit`; none, and a note, where they cannot be read.
async fn records_of(context: &Context, unit: Unit) -> Records {
    let lane = unit.lane;
    let work = move |batch: CanonicalRecord, offsets: Vec<i64>| {
        let offsets: HashSet<i64> = offsets.into_iter().collect();
        let entries = batch.decode()?.into_iter();
        let wanted = entries.filter(|entry| offsets.contains(&entry.offset));
        Ok(wanted.map(|entry| ((lane, entry.offset), entry)).collect())
    };
    of_batches(context, &unit, work).await
}

type Batches = Vec<(CanonicalRecord, Vec<i64>)>;

/// The batches of `unit` with nothing but its hits; none, and a note, where they
/// cannot be read.
async fn rebuilt(context: &Context, unit: Unit) -> (usize, Batches) {
    let work = |batch: CanonicalRecord, offsets: Vec<i64>| {
        let wanted: HashSet<i64> = offsets.iter().copied().collect();
        let batch = batch.keep(|entry| wanted.contains(&entry.offset))?;
        Ok(batch.into_iter().map(|batch| (batch, offsets.clone())).collect())
    };
    (unit.lane, of_batches(context, &unit, work).await)
}

/// What `work` makes of the batches that hold the hits of `unit`.
async fn of_batches<T: Send + 'static>(
    context: &Context,
    unit: &Unit,
    work: impl Fn(CanonicalRecord, Vec<i64>) -> Result<Vec<T>, BatchError> + Send + 'static,
) -> Vec<T> {
    let archive = &unit.archive;
    let read = async {
        let batches = batches_of(context, archive, &unit.offsets).await?;
        // Decoding takes milliseconds: not on the threads that serve.
        let all = move || {
            let made = batches.into_iter().map(|(batch, offsets)| work(batch, offsets));
            made.collect::<Result<Vec<_>, _>>()
        };
        let made = tokio::task::spawn_blocking(all).await;
        let made = made.map_err(|died| context.died(archive, &died))?;
        made.map_err(|error| SearchError::Contradiction {
            object: archive.key().to_string(),
            why: format!("a batch that was searched does not decode: {error}"),
        })
    };
    match read.await {
        Ok(made) => made.into_iter().flatten().collect(),
        Err(error) => {
            let message = format!("records that were found cannot be read: {error}");
            context.note_archive(NoteKind::Unreadable, archive, message);
            Vec::new()
        }
    }
}
