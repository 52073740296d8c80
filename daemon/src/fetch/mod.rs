//! Owns answering a fetch: Kafka batches of a partition from an offset on.
//!
//! Does not own: gRPC, where archives lie (`catalog`), how they are read (`read`).
//!
//! Rules (`docs/fetch.md`, after Kafka's KIP-405 and its follow-ups):
//! - The first batch is the first whose **last** offset is at or above the offset
//!   asked for. Batches are whole and verbatim, never trimmed or renumbered.
//! - A hole is a declared gap and is told; an archive that cannot be read is an
//!   error. Neither is ever skipped.
//! - Everything said of one partition comes from one manifest.
//!
//! Reading order: [`types`] what is asked and answered, `partition` one partition
//! step by step, `aborted` the transactions of an answer, `overlaps` the batches
//! beneath the served log, `selected` what a selection leaves of it, `explain` what a fetch would do. Beside the fetch:
//! `offsets` and `times` find offsets by time, `lineage` where leader epochs end,
//! `replica` and `producers` make the state that a follower takes over.

pub mod types;

mod aborted;
mod answered;
mod caller;
mod describe;
mod explain;
mod lineage;
mod offsets;
mod overlaps;
mod partition;
mod producers;
mod progress;
mod replica;
mod selected;
mod served;
mod times;

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::catalog::{ArchiveEntry, Catalog, CatalogError, Snapshot, Snapshots};
use crate::error::{Classify, ErrorKind};
use crate::read::{ArchiveReader, ReadError, ReadStats};
use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::reports::Reports;
use crate::store::StoreError;

pub use answered::{Answered, Refusal};
pub use caller::Caller;
pub use describe::Description;
pub use lineage::EpochEnd;
pub use offsets::{FoundOffset, OffsetQuery};
pub use producers::ProducerState;
pub use replica::ReplicaState;
pub use types::*;

/// Events of one answer that wait for the consumer: with windows of 4 MiB this
/// bounds what a slow consumer holds.
pub const EVENTS_QUEUED_MAX: usize = 8;

/// Partitions asked about at a time: a topic may have thousands, each some requests.
const DESCRIBED_AT_ONCE: usize = 16;

/// Reloads of a manifest because an archive it names is gone (compacted away
/// meanwhile): more than a few means that objects are missing, not moving.
const RELOADS_MAX: u32 = 2;

/// Why a fetch stopped.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The catalog could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// An archive could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An archive and its manifest contradict each other.
    #[error("archive {object}: {why}; run `tierd verify --deep` on the partition")]
    Contradiction {
        /// Name of the object.
        object: String,
        /// What does not fit.
        why: String,
    },
    /// More batches reach into each other than are sorted at once.
    #[error(
        "more than {max} batches reach into each other from offset {from} on; ask for the served log"
    )]
    TooManyOverlaps {
        /// First offset of theirs.
        from: i64,
        /// The most.
        max: usize,
    },
    /// Nobody listens any more.
    #[error("the reader went away")]
    Cancelled,
}

impl FetchError {
    /// The object that failed its check, where it was one.
    #[must_use]
    pub fn object(&self) -> Option<String> {
        match self {
            Self::Contradiction { object, .. }
            | Self::Read(
                ReadError::Archive { object, .. }
                | ReadError::Store(StoreError::NotFound { path: object, .. }),
            ) => Some(object.clone()),
            Self::Catalog(source) => source.object().map(str::to_owned),
            _ => None,
        }
    }
}

impl FetchError {
    /// The step that failed; none when nobody listens.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Self::Catalog(_) => Some(Stage::Catalog),
            Self::Read(ReadError::Store(_)) => Some(Stage::Store),
            Self::Read(ReadError::Archive { .. } | ReadError::Worker { .. }) => Some(Stage::Verify),
            Self::Contradiction { .. } | Self::TooManyOverlaps { .. } => Some(Stage::Walk),
            Self::Cancelled => None,
        }
    }
}

impl Classify for FetchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Catalog(source) => source.kind(),
            Self::Read(source) => source.kind(),
            Self::Contradiction { .. } => ErrorKind::Corrupt,
            Self::TooManyOverlaps { .. } => ErrorKind::Exhausted,
            Self::Cancelled => ErrorKind::Retry,
        }
    }
}

/// Where the events of an answer go.
pub type Sink = mpsc::Sender<FetchEvent>;

/// Answers fetches. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    snapshots: Arc<Snapshots>,
    reader: ArchiveReader,
    reports: Arc<Reports>,
}

impl Fetcher {
    /// A fetcher over what `snapshots` say and `reader` reads.
    #[must_use]
    pub fn new(snapshots: Arc<Snapshots>, reader: ArchiveReader) -> Self {
        Self { snapshots, reader, reports: Arc::default() }
    }

    /// The same, heeding what the broker reports.
    #[must_use]
    pub fn heeding(self, reports: Arc<Reports>) -> Self {
        Self { reports, ..self }
    }

    /// What it reads from.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        self.snapshots.catalog()
    }

    /// Looks for the newest manifest of a partition now, for the answers that follow,
    /// and says where it stands.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn renew(&self, tp: &TopicPartition) -> Result<Option<PartitionState>, FetchError> {
        let newest = self.snapshots.refresh(tp, None).await?;
        Ok(newest.as_deref().map(state_of))
    }

    /// Where the broker's reports are kept.
    #[must_use]
    pub fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Answers `request` into `sink`, partition by partition. What goes wrong with
    /// one partition stands in its trailer and does not stop the others.
    ///
    /// # Errors
    /// Only [`FetchError::Cancelled`], when the receiver is gone.
    pub async fn fetch(
        &self,
        request: FetchRequest,
        sink: &Sink,
        stats: &ReadStats,
    ) -> Result<(), FetchError> {
        let mut budget = request.max_bytes;
        let mut answered = false;
        for mut partition in request.partitions {
            partition.max_bytes = partition.max_bytes.min(budget);
            // KAFKA-19795: only the first partition that yields data may go over.
            partition.min_one_batch &= !answered;
            let (tp, offset) = (&partition.tp, partition.offset);
            let span = tracing::debug_span!("partition", %tp, offset);
            let sent = partition::answer(self, partition, sink, stats).instrument(span).await?;
            answered |= sent > 0;
            budget = budget.saturating_sub(sent);
        }
        Ok(())
    }

    /// What fetching `request` would do, partition by partition. What cannot be read
    /// for one stands in its explanation.
    pub async fn explain(&self, request: &FetchRequest) -> Vec<Explanation> {
        let mut budget = request.max_bytes;
        let mut explanations = Vec::with_capacity(request.partitions.len());
        for partition in &request.partitions {
            let mut partition = partition.clone();
            partition.max_bytes = partition.max_bytes.min(budget);
            let explanation = match explain::explain(self, &partition).await {
                Ok(explanation) => explanation,
                Err(error) => Explanation::failed(&error),
            };
            let raw: u64 = explanation.archives.iter().map(|archive| archive.raw_bytes).sum();
            budget = budget.saturating_sub(raw.min(partition.max_bytes));
            explanations.push(explanation);
        }
        explanations
    }

    /// The newest manifest of a partition that this process has seen lately.
    /// `None` when nothing of it is archived.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn snapshot(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, FetchError> {
        let found = self.snapshots.get(tp, incarnation).await?;
        Ok(self.of_this_life(tp, incarnation, found))
    }

    /// A newer manifest than `snapshot`, where `error` says that an object is gone:
    /// compaction replaced it, and a newer manifest tells by what. `None` where it is
    /// lost, or something else is wrong.
    async fn replaced(&self, snapshot: &Snapshot, error: &FetchError) -> Option<Arc<Snapshot>> {
        if error.kind() != ErrorKind::NotFound {
            return None;
        }
        let newest = self.snapshots.refresh(snapshot.tp(), Some(snapshot.incarnation())).await;
        newest.ok().flatten().filter(|newest| newest.number() > snapshot.number())
    }

    /// Nothing, where the newest life that is archived is over by the broker's word.
    fn of_this_life(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
        found: Option<Arc<Snapshot>>,
    ) -> Option<Arc<Snapshot>> {
        let report = self.reports.of(tp);
        found.filter(|found| incarnation.is_some() || caller::is_alive(found, report.as_ref()))
    }

    /// The archives of a partition, ascending by offset, and where it stands.
    /// `None` when nothing of it is archived.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn archives(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<(PartitionState, Vec<ArchiveEntry>)>, FetchError> {
        let Some(snapshot) = self.snapshot(tp, incarnation).await? else { return Ok(None) };
        Ok(Some((state_of(&snapshot), snapshot.entries().await?)))
    }

    /// What is archived of a partition. `None` when nothing is.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn describe(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Description>, FetchError> {
        let Some(snapshot) = self.snapshot(tp, incarnation).await? else { return Ok(None) };
        let gaps = snapshot.gaps().await?;
        Ok(Some(Description::of(&snapshot, gaps)))
    }

    /// As [`Self::describe`], of many partitions, in their order.
    pub async fn describe_all(
        &self,
        partitions: Vec<(TopicPartition, Option<u32>)>,
    ) -> Vec<(TopicPartition, Result<Option<Description>, FetchError>)> {
        let describe = |(tp, incarnation): (TopicPartition, Option<u32>)| async move {
            let described = self.describe(&tp, incarnation).await;
            (tp, described)
        };
        let all: Vec<_> = partitions.into_iter().map(describe).collect();
        futures::stream::iter(all).buffered(DESCRIBED_AT_ONCE).collect().await
    }

    /// The offset that each query means, in their order; `None` where the archive
    /// has none.
    pub async fn offsets(&self, queries: &[OffsetQuery]) -> Vec<Answered<Option<FoundOffset>>> {
        let all: Vec<_> = queries.iter().map(|query| offsets::find(self, query)).collect();
        futures::stream::iter(all).buffered(DESCRIBED_AT_ONCE).collect().await
    }

    /// Where a leader epoch of a partition ends within the archive, told to a caller
    /// that takes `current` for the current one.
    pub async fn epoch_end(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
        current: Option<i32>,
        leader_epoch: i32,
    ) -> Answered<EpochEnd> {
        lineage::end_of(self, tp, incarnation, current, leader_epoch).await
    }

    /// The aborted transactions that touch `range` of a partition.
    pub async fn aborted(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
        range: OffsetRange,
    ) -> Answered<Aborted> {
        aborted::list(self, tp, incarnation, range).await
    }

    /// What a follower takes over of a partition below `offset`; below the end of the
    /// archive without one.
    pub async fn replica_state(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
        offset: Option<i64>,
    ) -> Answered<ReplicaState> {
        replica::state(self, tp, incarnation, offset).await
    }

    /// Every partition with an archive in the newest life of its topic that has
    /// one, ascending.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn partitions(&self) -> Result<Vec<(TopicPartition, u32)>, FetchError> {
        let mut all = self.all_lives().await?;
        let mut newest: HashMap<TopicName, u32> = HashMap::new();
        for (tp, incarnation) in &all {
            let known = newest.entry(tp.topic().clone()).or_default();
            *known = (*known).max(*incarnation);
        }
        all.retain(|(tp, incarnation)| newest.get(tp.topic()) == Some(incarnation));
        Ok(all)
    }

    /// Every partition with an archive in every life of its topic, ascending.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn all_lives(&self) -> Result<Vec<(TopicPartition, u32)>, FetchError> {
        Ok(self.snapshots.partitions(None).await?)
    }
}

/// Where the partition of `snapshot` stands.
#[must_use]
pub fn state_of(snapshot: &Snapshot) -> PartitionState {
    PartitionState {
        incarnation: snapshot.incarnation(),
        generation: snapshot.number(),
        log_start: snapshot.log_start(),
        archived_through: snapshot.archived_through(),
        last_stable_offset: snapshot.last_stable_offset(),
    }
}
