//! Owns moving a partition's log start because the broker said so: records deleted,
//! or the whole partition.
//!
//! A log start is committed by a manifest and never goes back. What lies below is
//! not read any more from that commit on; its archives stay listed until retention
//! takes them out, and their objects until they are garbage. A deleted partition is
//! one whose log start stands at its end: the next life of its topic, if there is
//! one, begins by itself.

use std::sync::Arc;

use tokio::sync::OnceCell;

use super::RACES_MAX;
use crate::catalog::{Catalog, CatalogError, Edit, Gap, GapKind, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::record::{OffsetRange, TopicPartition};
use crate::reports::Report;

/// Kafka's word for "up to the high watermark" in DeleteRecords.
const TO_HIGH_WATERMARK: i64 = -1;

/// Why a log start was not moved.
#[derive(Debug, thiserror::Error)]
pub enum LogStartError {
    /// Not committed records cannot be deleted.
    #[error("offset {to} of {tp} lies above the high watermark {high_watermark}")]
    AboveHighWatermark {
        /// The partition.
        tp: TopicPartition,
        /// The log start asked for.
        to: i64,
        /// The reported high watermark.
        high_watermark: i64,
    },
    /// How far the log goes is the broker's to know.
    #[error("the high watermark of {tp} was not reported, and {why}")]
    NotReported {
        /// The partition.
        tp: TopicPartition,
        /// What needs it.
        why: String,
    },
    /// No offset at all.
    #[error("log start {to} of {tp} makes no sense; give an offset, or -1 for the high watermark")]
    Invalid {
        /// The partition.
        tp: TopicPartition,
        /// The log start asked for.
        to: i64,
    },
    /// Another topic of the same name.
    #[error("the archived topic of {tp} has another id")]
    OtherTopic {
        /// The partition.
        tp: TopicPartition,
    },
    /// The manifest could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Others committed first, again and again.
    #[error("other writers committed first {RACES_MAX} times in a row; ask again")]
    Outrun,
}

impl Classify for LogStartError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Catalog(source) => source.kind(),
            Self::Outrun => ErrorKind::Retry,
            _ => ErrorKind::Invalid,
        }
    }
}

/// How far a log start is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// To this offset, or, with -1, to the reported high watermark.
    At(i64),
    /// To the end of what is archived: the partition is deleted.
    End,
}

/// Moves log starts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogStarts {
    catalog: Arc<Catalog>,
    /// Set once the store has shown that it honours create-only writes.
    probed: Arc<OnceCell<()>>,
}

impl LogStarts {
    /// Over `catalog`, in whose writer's name it commits.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, probed: Arc::default() }
    }

    /// Moves the log start of `tp`'s newest life and tells where it is then. Where it
    /// is there already, or beyond, nothing is committed: asked twice it does once.
    /// `topic_id` is compared where both sides know one.
    ///
    /// # Errors
    /// When it must not be moved there, or the catalog cannot be read or written.
    pub async fn advance(
        &self,
        tp: &TopicPartition,
        to: LogStart,
        topic_id: Option<[u8; 16]>,
        report: Option<&Report>,
    ) -> Result<i64, LogStartError> {
        for _ in 0..RACES_MAX {
            let newest = self.catalog.load(tp, None).await?;
            let edit = match step(tp, newest.as_deref(), to, topic_id, report)? {
                Step::There(log_start) => return Ok(log_start),
                Step::Commit(edit) => edit,
            };
            self.probed.get_or_try_init(|| self.catalog.probe()).await?;
            let incarnation = match newest.as_deref() {
                Some(newest) => newest.incarnation(),
                // Nothing of the partition is archived in the topic's newest life.
                None => {
                    let lives = self.catalog.incarnations(tp.topic()).await?;
                    lives.last().map_or(0, |newest| newest.number)
                }
            };
            match self.catalog.commit(tp, incarnation, newest, *edit).await {
                Ok(committed) => return Ok(committed.snapshot().log_start()),
                Err(CatalogError::Lost { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(LogStartError::Outrun)
    }
}

/// What is to be done.
enum Step {
    /// Nothing: the log start is here.
    There(i64),
    Commit(Box<Edit>),
}

/// What moving to `to` takes, given the newest manifest. Pure.
fn step(
    tp: &TopicPartition,
    newest: Option<&Snapshot>,
    to: LogStart,
    topic_id: Option<[u8; 16]>,
    report: Option<&Report>,
) -> Result<Step, LogStartError> {
    let known = newest.and_then(|newest| newest.manifest().topic_id);
    if let (Some(known), Some(asked)) = (known, topic_id)
        && known != asked
    {
        return Err(LogStartError::OtherTopic { tp: tp.clone() });
    }
    let start = newest.map_or(0, Snapshot::log_start);
    let through = newest.map_or(0, Snapshot::archived_through);
    let high_watermark = report.and_then(|report| report.high_watermark);
    let to = match to {
        LogStart::End => through.max(start),
        LogStart::At(to) => checked(tp, to, through, high_watermark)?,
    };
    if to <= start {
        return Ok(Step::There(start));
    }
    // What is deleted before it was archived never will be.
    let never = newest.and_then(|_| OffsetRange::new(through, to - 1));
    let gaps = never.map(|range| Gap { range, kind: GapKind::BeforeFirst });
    let gaps = gaps.into_iter().collect();
    Ok(Step::Commit(Box::new(Edit { log_start: Some(to), gaps, ..Edit::default() })))
}

/// The offset that `to` means, as Kafka's DeleteRecords takes it.
fn checked(
    tp: &TopicPartition,
    to: i64,
    through: i64,
    high_watermark: Option<i64>,
) -> Result<i64, LogStartError> {
    match (to, high_watermark) {
        (TO_HIGH_WATERMARK, Some(high_watermark)) => Ok(high_watermark),
        (TO_HIGH_WATERMARK, None) => {
            let why = "the log start was to be moved there".to_owned();
            Err(LogStartError::NotReported { tp: tp.clone(), why })
        }
        (..0, _) => Err(LogStartError::Invalid { tp: tp.clone(), to }),
        (_, Some(high_watermark)) if to > high_watermark => {
            Err(LogStartError::AboveHighWatermark { tp: tp.clone(), to, high_watermark })
        }
        (_, None) if to > through => {
            let why =
                format!("log start {to} lies above what is archived, which ends at {through}");
            Err(LogStartError::NotReported { tp: tp.clone(), why })
        }
        _ => Ok(to),
    }
}
