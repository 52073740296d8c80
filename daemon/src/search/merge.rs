//! Owns the order of hits of several partitions: each time the partition goes on
//! whose next hit is the newer, or the older.

use std::cmp::Reverse;
use std::sync::Arc;

use futures::{StreamExt, stream};

use super::context::Context;
use super::error::SearchError;
use super::partition::{Hits, Partition, hits};
use super::token::Place;
use super::types::{Hit, NoteKind, Order};

/// Partitions waited for at once.
const PARTITIONS_AT_ONCE: usize = 16;

/// The partitions of a search, and how far each has come.
pub(super) struct Merge {
    context: Arc<Context>,
    lanes: Vec<Lane>,
}

struct Lane {
    place: Place,
    hits: Hits,
    head: Option<Hit>,
    ended: bool,
    /// Hits handed out and not told yet.
    waiting: usize,
}

/// A hit and the number of its partition in the search.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    pub(super) lane: usize,
    pub(super) hit: Hit,
}

impl Lane {
    async fn advance(&mut self, context: &Context) -> Result<(), SearchError> {
        match self.hits.next().await {
            Some(Ok(hit)) => self.head = Some(hit),
            Some(Err(SearchError::Cancelled)) => return Err(SearchError::Cancelled),
            Some(Err(error)) => {
                context.note_partition(
                    NoteKind::Unreadable,
                    &self.place.tp,
                    None,
                    error.to_string(),
                );
                self.ended = true;
            }
            None => self.ended = true,
        }
        Ok(())
    }
}

impl Merge {
    /// Begins with `partitions`, by topic and partition.
    pub(super) fn new(context: &Arc<Context>, partitions: Vec<(Place, Partition)>) -> Self {
        let lane = |(place, partition): (Place, Partition)| Lane {
            place,
            ended: partition.bounds.is_none(),
            hits: hits(Arc::clone(context), partition),
            head: None,
            waiting: 0,
        };
        let lanes = partitions.into_iter().map(lane).collect();
        Self { context: Arc::clone(context), lanes }
    }

    /// The next hit. Giving up the wait for it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Ranked>, SearchError> {
        let context = &*self.context;
        let waiting = self.lanes.iter_mut().filter(|lane| lane.head.is_none() && !lane.ended);
        let waiting: Vec<_> = waiting.map(|lane| lane.advance(context)).collect();
        let mut advanced = stream::iter(waiting).buffer_unordered(PARTITIONS_AT_ONCE);
        while let Some(step) = advanced.next().await {
            step?;
        }
        drop(advanced);
        let order = context.request.order;
        let heads = self.lanes.iter().enumerate();
        let heads = heads.filter_map(|(index, lane)| Some((index, lane.head.as_ref()?.timestamp)));
        // Of equal ones the first counts, and lanes are sorted.
        let first = match order {
            Order::Newest => heads.min_by_key(|&(_, time)| Reverse(time)),
            Order::Oldest => heads.min_by_key(|&(_, time)| time),
        };
        let Some((index, _)) = first else { return Ok(None) };
        let lane = &mut self.lanes[index];
        lane.waiting += 1;
        Ok(lane.head.take().map(|hit| Ranked { lane: index, hit }))
    }

    /// Takes note that a hit was sent: the next page begins behind it.
    pub(super) fn told(&mut self, ranked: &Ranked) {
        let lane = &mut self.lanes[ranked.lane];
        lane.waiting -= 1;
        lane.place.next = match self.context.request.order {
            Order::Newest => ranked.hit.offset - 1,
            Order::Oldest => ranked.hit.offset + 1,
        };
    }

    /// Where the partitions stand that have not ended.
    pub(super) fn places(&self) -> Vec<Place> {
        let left = |lane: &&Lane| !lane.ended || lane.head.is_some() || lane.waiting > 0;
        self.lanes.iter().filter(left).map(|lane| lane.place.clone()).collect()
    }
}
