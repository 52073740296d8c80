//! Owns deleting segments of the broker's, with `--reclaim`: which of those that may
//! go are deleted when, and proving each once more before it is.
//!
//! | rule | reason |
//! |---|---|
//! | it is releasable: closed, whole, every batch committed | what tierd promises anyone |
//! | it lies below the highest segment that begins with a good frame | a broker learns its next offset from that one, and counts on from the highest number; the partition is never left empty |
//! | beside a running broker, that one started [`BROKER_AGE_MIN`] ago | it lists every file when it starts and reads each once; one that is gone by then fails its rounds until it restarts |
//! | where no broker runs, it was last written [`QUIET_MIN`] ago | whoever says so may be wrong |
//! | its bytes are read again, and each batch looked up in the newest manifest | what was remembered may have rotted, or been dropped |
//! | its name still stands for the file that was read | anything else is not what was proven |
//!
//! A segment that fails the second proof is forgotten, read as new, and stays.

use std::time::Duration;

use super::work::Work;
use super::{LiveIndexer, UNREADABLE_PAUSE};
use crate::catalog::Committed;
use crate::indexer::IndexError;
use crate::indexer::partition::blocking;
use crate::indexer::plan::Frame;
use crate::indexer::proof::look_up;
use crate::indexer::release::Condition;
use crate::indexer::report::{Finding, PartitionReport};
use crate::indexer::scan::condition;
use crate::record::TopicPartition;
use crate::wal::classify::{Broker, Class};
use crate::wal::{SegmentFile, WalError, WalFormat, first_frame, remove, scan};

/// How long a broker has run before segments of earlier ones are deleted beside it.
/// It reads at most a hundred of them every 30 s: time for 3000, which are 375 GiB.
const BROKER_AGE_MIN: Duration = Duration::from_secs(15 * 60);
/// How long ago a segment was written last that is deleted where no broker runs.
const QUIET_MIN: Duration = Duration::from_secs(60);
/// Segments deleted in one step: each is read whole before, and others wait.
const PER_STEP_MAX: usize = 16;

/// Which segments of a partition are to be deleted.
#[derive(Debug)]
pub(super) struct Reclaimable {
    /// Those that are releasable, by number.
    pub(super) releasable: Vec<u64>,
    /// The highest that begins with a good frame.
    pub(super) anchor: u64,
}

/// How deleting one segment came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Deleted,
    /// It is not whole, or not committed, after all.
    Unproven,
    /// The segment that the broker would count on from is not there any more.
    NoAnchor,
}

/// When a segment last written at `modified_ms` may be deleted, in milliseconds since
/// 1970; `None` for never.
fn not_before_ms(broker: Broker, modified_ms: i64) -> Option<i64> {
    let after = |from: i64, wait: Duration| from.saturating_add(wait.as_millis() as i64);
    match broker {
        Broker::Stopped => Some(after(modified_ms, QUIET_MIN)),
        Broker::Running { since_ms } => since_ms.map(|since| after(since, BROKER_AGE_MIN)),
    }
}

impl LiveIndexer {
    /// Deletes what may be deleted of a partition, by the commit that proves it. Says
    /// whether there is more to do.
    pub(super) async fn reclaim(
        &self,
        tp: &TopicPartition,
        work: &mut Work,
        committed: &Committed,
        what: Reclaimable,
        report: &mut PartitionReport,
    ) -> Result<bool, IndexError> {
        let (broker, now_ms) = (self.broker(), self.clock.now_ms());
        let mut left = PER_STEP_MAX;
        let present = self.present(tp);
        let anchor = present.iter().map(|(file, _)| file).find(|file| file.id == what.anchor);
        let Some(anchor) = anchor.cloned() else { return Ok(false) };
        for (file, class) in present {
            let may_go = class == Class::Closed && what.releasable.contains(&file.id);
            // An empty one frees nothing.
            if !may_go || file.id >= anchor.id || file.len == 0 {
                continue;
            }
            let Some(not_before) = not_before_ms(broker, file.modified_ms) else { continue };
            if let Ok(wait @ 1..) = u64::try_from(not_before.saturating_sub(now_ms)) {
                work.wake(self.clock.monotonic() + Duration::from_millis(wait));
                continue;
            }
            if left == 0 {
                return Ok(true);
            }
            if self.permits.is_closed() {
                break; // The process ends.
            }
            left -= 1;
            match self.reclaim_one(tp, &file, &anchor, committed).await {
                Ok(Attempt::Deleted) => {
                    report.reclaimed.push(file.id);
                    self.metrics().reclaimed(file.len);
                    work.memory.forget(file.id);
                    if let Some(partition) = self.partitions().get_mut(tp) {
                        partition.seen.forget(file.id);
                    }
                }
                Ok(Attempt::Unproven) => {
                    work.memory.forget(file.id);
                    return Ok(true);
                }
                Ok(Attempt::NoAnchor) => {
                    let line = format!(
                        "{}: does not begin with a good frame any more; --reclaim deletes \
                         nothing below it",
                        anchor.path.display()
                    );
                    report.findings.push(Finding { line, damage: true });
                    break;
                }
                Err(error) if error.is_change() => return Err(error),
                Err(IndexError::Wal(error)) => {
                    let line = format!(
                        "{error}; --reclaim has to read and delete below the WAL directory, the \
                         segment stays and is tried again in {} s",
                        UNREADABLE_PAUSE.as_secs()
                    );
                    report.findings.push(Finding { line, damage: false });
                    work.wake(self.clock.monotonic() + UNREADABLE_PAUSE);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Proves one segment again, from its bytes and by the newest manifest, and deletes
    /// it. It stays unless `anchor` still begins with a good frame.
    async fn reclaim_one(
        &self,
        tp: &TopicPartition,
        file: &SegmentFile,
        anchor: &SegmentFile,
        known: &Committed,
    ) -> Result<Attempt, IndexError> {
        let (format, of, again) = (self.indexer.format, tp.clone(), file.clone());
        let frames = blocking(move || Ok(frames_if_whole(format, &of, &again)?)).await?;
        let Some(frames) = frames else { return Ok(Attempt::Unproven) };
        let newest = self.indexer.catalog.confirm(known.snapshot()).await?;
        let found = look_up(&self.indexer.reader, newest.snapshot(), frames).await?;
        if found.frames.iter().any(|frame| !frame.known) {
            return Ok(Attempt::Unproven);
        }
        let (of, segment, anchor) = (tp.clone(), file.clone(), anchor.clone());
        blocking(move || {
            // The broker may have emptied it meanwhile, or it may have rotted unseen.
            if !begins_well(format, &of, &anchor)? {
                return Ok(Attempt::NoAnchor);
            }
            delete(&of, &segment, &newest)?;
            Ok(Attempt::Deleted)
        })
        .await
    }
}

/// Deletes a segment all of whose batches `proof` holds.
fn delete(tp: &TopicPartition, file: &SegmentFile, proof: &Committed) -> Result<(), WalError> {
    remove(file)?;
    tracing::info!(
        partition = %tp,
        segment = file.id,
        bytes = file.len,
        manifest = proof.snapshot().number(),
        "segment deleted, every batch in it is archived"
    );
    Ok(())
}

/// Whether a segment's first bytes are a good frame.
fn begins_well(
    format: WalFormat,
    tp: &TopicPartition,
    file: &SegmentFile,
) -> Result<bool, WalError> {
    Ok(first_frame(format, tp, file)?.is_some_and(|first| first.position == 0))
}

/// The frames of a segment, read again; `None` where it is not whole.
fn frames_if_whole(
    format: WalFormat,
    tp: &TopicPartition,
    file: &SegmentFile,
) -> Result<Option<Vec<Frame>>, WalError> {
    let found = scan(format, tp, file)?;
    if found.len != file.len || condition(&found) != Condition::Whole {
        return Ok(None);
    }
    Ok(Some(
        found
            .frames
            .into_iter()
            .map(|at| Frame { segment: 0, at, known: false, truncated: false })
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_given_time_to_read_its_old_files_and_silence_must_be_seen() {
        let running = |since_ms| Broker::Running { since_ms };
        assert_eq!(not_before_ms(running(Some(1_000)), 7), Some(901_000));
        assert_eq!(not_before_ms(running(None), 7), None, "nothing is closed for certain");
        assert_eq!(not_before_ms(Broker::Stopped, 7), Some(60_007));
    }
}
