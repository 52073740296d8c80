//! Owns how fresh a manifest must be to answer from, and what is answered when the
//! store does not say which is the newest.
//!
//! Manifests are immutable, so an old one is never wrong, only behind. A reader asks
//! for the next number at most once per [`FRESH_FOR`] and partition, and who asks
//! while an answer is under way waits for the same one. Where the store is silent:
//!
//! | what is asked | answer |
//! |---|---|
//! | offsets below the end of the manifest that is known | from that manifest, after [`KNOWN_WAIT_MAX`] at most |
//! | offsets from its end on | an error to try again, after [`END_WAIT_MAX`] at most: "not archived yet" may be wrong, and an empty answer would pass for the end of the log |
//! | a partition of which no manifest is known | the same error, when the store's own limits end the request |
//!
//! So consumers of what is in memory go on through an outage, and the store gets no
//! more than one question per partition at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use quick_cache::sync::Cache;
use tokio::time::timeout;
use tracing::Instrument;

use super::{Catalog, CatalogError, Snapshot};
use crate::clock::Clock;
use crate::error::{Classify, ErrorKind};
use crate::record::{TopicName, TopicPartition};
use crate::task::Backoff;

/// How long a manifest is taken for the newest: bounds how late a commit of
/// another process is seen, and costs one small request per partition and time.
pub const FRESH_FOR: Duration = Duration::from_secs(2);
/// The same for a reader at the end of what is known, who waits for growth: many
/// consumers that poll there must not become as many requests to the store.
const FRESH_AT_END_FOR: Duration = Duration::from_millis(100);
/// How long an answer from a known manifest waits to hear of a newer one: many times
/// what a store in good health takes.
const KNOWN_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long who asks for offsets at the end waits: less than Kafka clients do for a
/// whole request (`request.timeout.ms`, 30 s).
const END_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest time that a partition is not asked for after a failure.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// Partitions whose manifests are kept: at most 32 KiB each.
const PARTITIONS_KEPT: usize = 4_096;

type Key = (TopicPartition, Option<u32>);
type Newest = Result<Option<Arc<Snapshot>>, Arc<CatalogError>>;

/// A question to the store that is under way.
#[derive(Clone, Debug)]
struct Flight {
    began: Duration,
    answer: Shared<BoxFuture<'static, Newest>>,
}

/// What is known of one partition.
#[derive(Debug, Default)]
struct Seat {
    /// The newest manifest seen, and when it was asked for.
    known: Option<(Arc<Snapshot>, Duration)>,
    flight: Option<Flight>,
    backoff: Backoff,
    /// The last failure, and until when it stands for the answer.
    failed: Option<(Arc<CatalogError>, Duration)>,
}

/// Newest manifests, by partition. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshots {
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    seats: Arc<Cache<Key, Arc<Mutex<Seat>>>>,
}

impl Snapshots {
    /// Nothing seen yet of what `catalog` has.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, clock: Arc<dyn Clock>) -> Self {
        Self { catalog, clock, seats: Arc::new(Cache::new(PARTITIONS_KEPT)) }
    }

    /// What they are read from.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// A manifest that was the newest at most [`FRESH_FOR`] ago; while the store is
    /// silent, the newest that is known.
    ///
    /// # Errors
    /// When the catalog cannot be read and nothing is known.
    pub async fn get(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let key = (tp.clone(), incarnation);
        let seat = self.seat(&key);
        let known = lock(&seat).known.clone();
        let Some((known, at)) = known else {
            return Ok(self.ask(&key, &seat)?.answer.await?);
        };
        if self.since(at) < FRESH_FOR {
            return Ok(Some(known));
        }
        let Ok(flight) = self.ask(&key, &seat) else { return Ok(Some(known)) };
        match timeout(self.left(&flight, KNOWN_WAIT_MAX), flight.answer).await {
            Ok(Err(error)) if !passes(&error) => Err(error.into()),
            Ok(Ok(newest)) => Ok(newest),
            Ok(Err(_)) | Err(_) => Ok(Some(known)),
        }
    }

    /// The newest manifest, for a reader at the end of what is known.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub async fn grown(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let known = lock(&self.seat(&(tp.clone(), incarnation))).known.clone();
        match known {
            Some((known, at)) if self.since(at) < FRESH_AT_END_FOR => Ok(Some(known)),
            _ => self.refresh(tp, incarnation).await,
        }
    }

    /// The newest manifest, asked for now.
    ///
    /// # Errors
    /// [`CatalogError::Silent`] where the store does not say in time.
    pub async fn refresh(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let key = (tp.clone(), incarnation);
        let seat = self.seat(&key);
        let flight = self.ask(&key, &seat)?;
        match timeout(self.left(&flight, END_WAIT_MAX), flight.answer).await {
            Ok(newest) => Ok(newest?),
            Err(_) => {
                Err(CatalogError::Silent { of: tp.to_string(), waited: self.since(flight.began) })
            }
        }
    }

    fn seat(&self, key: &Key) -> Arc<Mutex<Seat>> {
        let made = self
            .seats
            .get_or_insert_with(key, || Ok::<_, std::convert::Infallible>(Arc::default()));
        match made {
            Ok(seat) => seat,
            Err(never) => match never {},
        }
    }

    /// The question that is under way, asked now if there is none. It goes on though
    /// nobody waits for it any more.
    ///
    /// # Errors
    /// The last failure, as long as it stands for the answer.
    fn ask(&self, key: &Key, seat: &Arc<Mutex<Seat>>) -> Result<Flight, Arc<CatalogError>> {
        let mut locked = lock(seat);
        if let Some(flight) = &locked.flight {
            return Ok(flight.clone());
        }
        let began = self.clock.monotonic();
        if let Some((error, until)) = &locked.failed
            && began < *until
        {
            return Err(Arc::clone(error));
        }
        let (this, of, asked) = (self.clone(), key.clone(), Arc::clone(seat));
        let task = async move { this.answer(&of, &asked, began).await }.in_current_span();
        let (task, of) = (tokio::spawn(task), key.0.to_string());
        let died = |why: tokio::task::JoinError| {
            Err(Arc::new(CatalogError::Defect { of, why: why.to_string() }))
        };
        let answer = async { task.await.unwrap_or_else(died) }.boxed().shared();
        let flight = Flight { began, answer };
        locked.flight = Some(flight.clone());
        Ok(flight)
    }

    async fn answer(&self, key: &Key, seat: &Mutex<Seat>, began: Duration) -> Newest {
        let known = lock(seat).known.as_ref().map(|(known, _)| Arc::clone(known));
        let newest = self.newest(key, known).await.map_err(Arc::new);
        let mut seat = lock(seat);
        seat.flight = None;
        match &newest {
            Ok(newest) => {
                seat.backoff.succeeded();
                seat.failed = None;
                seat.known = newest.as_ref().map(|newest| (Arc::clone(newest), began));
            }
            Err(error) if passes(error) => {
                let quiet = seat.backoff.failed(ErrorKind::Retry, 1.0).time().min(QUIET_MAX);
                seat.failed = Some((Arc::clone(error), self.clock.monotonic() + quiet));
            }
            Err(_) => {}
        }
        newest
    }

    async fn newest(
        &self,
        (tp, incarnation): &Key,
        known: Option<Arc<Snapshot>>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        match known {
            Some(known) if incarnation.is_some() || !self.catalog.is_outlived(&known).await? => {
                Ok(Some(self.catalog.newer(&known).await?))
            }
            _ => self.catalog.load(tp, *incarnation).await,
        }
    }

    fn since(&self, at: Duration) -> Duration {
        self.clock.monotonic().saturating_sub(at)
    }

    /// What is left of `most` since `flight` began: an outage is waited for once.
    fn left(&self, flight: &Flight, most: Duration) -> Duration {
        most.saturating_sub(self.since(flight.began))
    }

    /// Manifest `number` of a partition: one small request where it is not the one
    /// that is known. `None` where it was collected.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn at(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        number: u64,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let seen = |of| {
            let seat = self.seats.get(&(tp.clone(), of))?;
            lock(&seat).known.as_ref().map(|(known, _)| Arc::clone(known))
        };
        match seen(Some(incarnation)).or_else(|| seen(None)) {
            Some(snapshot)
                if snapshot.incarnation() == incarnation && snapshot.number() == number =>
            {
                Ok(Some(snapshot))
            }
            _ => self.catalog.generation(tp, incarnation, number).await,
        }
    }

    /// Every partition, or those of `topic`, in every life of its topic, ascending.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn partitions(
        &self,
        topic: Option<&TopicName>,
    ) -> Result<Vec<(TopicPartition, u32)>, CatalogError> {
        match topic {
            Some(topic) => self.catalog.partitions_of(topic.clone()).await,
            None => self.catalog.partitions().await,
        }
    }
}

/// Whether the store may say otherwise later, without anything being wrong with what
/// is archived: it is silent, busy, or refuses us.
fn passes(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Store(_))
        && matches!(error.kind(), ErrorKind::Retry | ErrorKind::Exhausted | ErrorKind::Invalid)
}

fn lock(seat: &Mutex<Seat>) -> MutexGuard<'_, Seat> {
    seat.lock().unwrap_or_else(PoisonError::into_inner)
}
