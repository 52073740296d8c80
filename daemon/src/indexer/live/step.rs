//! Owns one step of one partition: which life of its topic it is in, what of it is
//! ready, archiving that, and how it ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::release::LookedAt;
use super::work::{Partition, Signature, Work, key, left_over, signature};
use super::{LiveIndexer, Progress, UNREADABLE_PAUSE};
use crate::catalog::{Ledger, Snapshot};
use crate::error::Classify;
use crate::indexer::IndexError;
use crate::indexer::holes::{Present, Scene};
use crate::indexer::lives::{Life, Local};
use crate::indexer::partition::{Done, Pending, Ready, archive, blocking};
use crate::indexer::plan::Frame;
use crate::indexer::report::{Finding, PartitionReport};
use crate::indexer::scan::{Scanned, Source};
use crate::metrics::{Stage, Stall};
use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::wal::classify::Broker;
use crate::wal::{SegmentFile, WalError};

/// Pause before a partition is looked at again whose files changed under a step.
const CHANGED_PAUSE: Duration = Duration::from_secs(1);
/// Times a step finds out anew which life its topic is in because segments came or
/// went meanwhile. Then it gives way to the next look.
const SETTLES_MAX: u32 = 3;

/// What a step begins with.
struct Begun {
    life: Life,
    broker: Broker,
    ready: Vec<SegmentFile>,
}

/// What was known when a step planned.
struct Planned {
    /// What may be archived.
    sources: Vec<Source>,
    /// Offsets that damaged parts of the WAL may have held.
    suspect: Vec<OffsetRange>,
    scene: Scene,
    /// `None` where some of it has to be looked at again.
    signature: Option<Signature>,
    /// Whether a segment is not the one that the life was found out by.
    refilled: bool,
}

impl LiveIndexer {
    /// Archives what is ready in one partition, as the last [`Self::look`] saw it.
    /// At most [`PARTITIONS_AT_ONCE`](crate::indexer::PARTITIONS_AT_ONCE) steps work at a time, the others queue.
    pub async fn step(&self, tp: &TopicPartition) -> (PartitionReport, Progress) {
        let mut report = PartitionReport::new(tp.clone());
        let Ok(_permit) = self.permits.acquire().await else { return (report, Progress::Idle) };
        let Some(mut work) = self.take(tp) else { return (report, Progress::Idle) };
        let counted = self.metrics().step_begins();
        let outcome = match self.begin(tp).await {
            Ok(begun) => {
                report.segments = begun.ready.len();
                self.advance(tp, begun, &mut work, &mut report).await
            }
            Err(error) => Err(error),
        };
        let progress = self.end(tp, work, outcome, &mut report);
        counted.ends(progress.as_str());
        (report, progress)
    }

    fn take(&self, tp: &TopicPartition) -> Option<Work> {
        self.partitions().get_mut(tp)?.work.take()
    }

    /// Finds out which life of its topic the partition is in, and what of it is
    /// ready, both by the same listing.
    async fn begin(&self, tp: &TopicPartition) -> Result<Begun, IndexError> {
        for _ in 0..SETTLES_MAX {
            let locals = self.locals(tp.topic());
            let life = self.lives.settle(&self.indexer, tp, &locals).await?;
            let broker = self.broker();
            if let Some(mut ready) = self.ready(tp, broker, &locals) {
                ready.retain(|file| !life.left.contains(&file.id));
                return Ok(Begun { life, broker, ready });
            }
        }
        Err(IndexError::Unsettled)
    }

    /// The partitions of a topic as they were listed last.
    fn locals(&self, topic: &TopicName) -> Vec<Local> {
        let partitions = self.partitions();
        let of_topic = partitions.iter().filter(|(tp, _)| tp.topic() == topic);
        let local = |(tp, partition): (&TopicPartition, &Partition)| {
            let seen = || partition.seen.segments();
            let segments = seen().map(|seen| (seen.file.clone(), seen.life)).collect();
            let emptied = seen().filter(|seen| seen.emptied).map(|seen| seen.file.id).collect();
            let topic_id = self.topic_id(tp);
            Local { tp: tp.clone(), segments, topic_id, emptied }
        };
        of_topic.map(local).collect()
    }

    /// The segments that are ready, while those of the topic are still `locals`.
    fn ready(
        &self,
        tp: &TopicPartition,
        broker: Broker,
        locals: &[Local],
    ) -> Option<Vec<SegmentFile>> {
        let partitions = self.partitions();
        for local in locals {
            let now = partitions.get(&local.tp)?.seen.segments().map(key);
            if !local.keys().eq(now) {
                return None;
            }
        }
        let standing = partitions.get(tp)?.standing(broker, &self.options.rules, &*self.clock);
        let ready = standing.filter(|segment| segment.ready);
        Some(ready.map(|segment| segment.seen.file.clone()).collect())
    }

    async fn advance(
        &self,
        tp: &TopicPartition,
        begun: Begun,
        work: &mut Work,
        report: &mut PartitionReport,
    ) -> Result<Progress, IndexError> {
        let Begun { mut life, broker, ready } = begun;
        report.incarnation = life.incarnation();
        report.releasable_through = life.ledger.releasable_through();
        report.findings.append(&mut life.findings);
        if work.incarnation != life.incarnation() {
            *work = Work::new(&self.options, life.incarnation());
        }
        (work.settled_on, work.wake_at, work.held_at) = (None, None, None);
        work.stands_by = false;
        (work.topic_id, work.left) = (life.topic_id, std::mem::take(&mut life.left));
        if !work.left.is_empty() {
            report.findings.push(left_over(work));
        }
        let mut memory = std::mem::take(&mut work.memory);
        let (format, of) = (self.indexer.format, tp.clone());
        let (pulse, timed) = (self.indexer.pulse.clone(), self.metrics().stage_begins(Stage::Scan));
        let (memory, scanned) = blocking(move || {
            let scanned = memory.scan(format, &of, &ready, &pulse);
            Ok((memory, scanned))
        })
        .await?;
        drop(timed);
        work.memory = memory;
        let mut scanned = scanned?;
        report.findings.append(&mut scanned.findings);
        let (left_out, unreadable) = (scanned.left_out, !scanned.unreadable.is_empty());

        let Planned { sources, suspect, mut scene, signature, refilled } =
            self.plan(tp, broker, work, scanned);
        if refilled {
            return Err(IndexError::Unsettled);
        }
        // Before the first commit: a life of which nothing is recorded cannot end.
        // Where segments of the life before are left, its ledger is what tells them.
        let alone = work.left.is_empty();
        if alone && (life.ledger.record(&life.present) || life.moved) {
            self.put_ledger(tp, &life.ledger).await?;
        }
        let sources = Arc::new(sources);
        let stable_end = self.stable_end(tp, broker);
        if work.topic_id != self.topic_id(tp) {
            return Err(IndexError::Unsettled);
        }
        let ready = Ready {
            tp: tp.clone(),
            incarnation: life.incarnation(),
            told: life.ledger.releasable_through(),
            sources: Arc::clone(&sources),
            suspect,
            stable_end,
            lineage: self.lineage(tp),
            topic_id: work.topic_id,
        };
        let Done { snapshot, hole, held_back, stands_by } = {
            let (stopped, writer) = (broker == Broker::Stopped, self.indexer.catalog.writer());
            let mut declarable = |&Pending { gaps, oldest, newest }: &Pending<'_>| {
                work.standstill.through = Some(newest.map_or(0, Snapshot::archived_through));
                if let Some(partition) = self.partitions().get(tp) {
                    self.tell(tp, partition, Some(work), broker);
                }
                if stopped {
                    return Some(gaps.len());
                }
                scene.other_silent_since = work.other_silent_since(newest, writer, scene.now);
                let others = scene.other_silent_since.is_some() && !self.leads(tp);
                let turn = work.standby.turn(others, oldest.map(Frame::identity), scene.now);
                if turn > scene.now {
                    work.wake_at = Some(turn);
                    return None;
                }
                work.holes.sight(gaps, &scene);
                let declarable = work.holes.declarable(&scene);
                work.wake_at = work.holes.wake_at(&scene);
                Some(declarable)
            };
            archive(&self.indexer, ready, &mut declarable, report).await?
        };
        let looked_at = LookedAt { scene: &scene, sources: &sources };
        let doubted =
            alone && self.release(tp, work, snapshot.as_ref(), looked_at, life, report).await?;
        if unreadable {
            work.wake(self.clock.monotonic() + UNREADABLE_PAUSE);
        }
        work.held_at = stable_end.filter(|_| held_back);
        work.stands_by = stands_by;
        report.waits_for = hole;
        if left_out || doubted {
            return Ok(Progress::More);
        }
        work.settled_on = signature;
        Ok(match hole {
            _ if stands_by => Progress::Standby,
            Some(hole) => Progress::Waiting(hole),
            None => Progress::Done,
        })
    }

    /// Remembers `ledger` here and in the store.
    pub(super) async fn put_ledger(
        &self,
        tp: &TopicPartition,
        ledger: &Ledger,
    ) -> Result<(), IndexError> {
        self.indexer.probe().await?;
        // First here: what is recorded too early only makes a new life less likely.
        self.lives.remember(tp, ledger).await;
        let put = self.indexer.catalog.put_ledger(tp, ledger).await;
        if put.is_err() {
            // What the store has, nobody knows now: it is read again.
            self.lives.doubt(tp).await;
        }
        Ok(put?)
    }

    /// Tells the observer what was scanned, and chooses what is ready by all that is
    /// known now.
    fn plan(&self, tp: &TopicPartition, broker: Broker, work: &Work, scanned: Scanned) -> Planned {
        let Scanned { mut sources, gists, unreadable, .. } = scanned;
        let mut suspect = work.memory.suspect();
        if !unreadable.is_empty() {
            // It may have held anything.
            suspect.extend(OffsetRange::new(0, i64::MAX - 1));
        }
        let mut scene =
            Scene { now: self.clock.monotonic(), segments: Vec::new(), other_silent_since: None };
        let mut partitions = self.partitions();
        let Some(partition) = partitions.get_mut(tp) else {
            // Gone meanwhile; what is held can still be archived.
            return Planned { sources, suspect, scene, signature: None, refilled: false };
        };
        let mut refilled = false;
        for (file, gist) in gists {
            if let Some(change) = partition.seen.scanned(&file, gist) {
                tracing::warn!(partition = %tp, "{change}");
                refilled = true;
            }
        }
        let rules = &self.options.rules;
        let (mut may, mut all_known) = (HashSet::new(), true);
        for segment in partition.standing(broker, rules, &*self.clock) {
            let file = &segment.seen.file;
            if work.left.contains(&file.id) {
                continue;
            }
            let known = work.memory.knows(file);
            scene.segments.push(Present {
                key: key(segment.seen),
                is_final: segment.class.is_final() && known,
            });
            if segment.ready {
                all_known &= known || unreadable.contains(&file.id);
                may.insert(file);
            }
        }
        // The end of a segment may have shown that it is not what it seemed.
        sources.retain(|source| may.contains(&source.file));
        drop(may);
        let seen = signature(partition.standing(broker, rules, &*self.clock));
        let signature = all_known.then_some(seen);
        Planned { sources, suspect, scene, signature, refilled }
    }

    fn end(
        &self,
        tp: &TopicPartition,
        mut work: Work,
        outcome: Result<Progress, IndexError>,
        report: &mut PartitionReport,
    ) -> Progress {
        let now = self.clock.monotonic();
        work.standstill.through =
            work.standstill.through.map(|through| through.max(report.archived_through));
        let progress = match outcome {
            Ok(progress) => {
                work.backoff.succeeded();
                work.standstill.stalled(match progress {
                    Progress::Waiting(_) => Some(Stall::Hole),
                    Progress::Standby => Some(Stall::Standby),
                    _ => work.held_at.map(|_| Stall::Held),
                });
                progress
            }
            Err(error) if error.is_change() => {
                if let IndexError::Wal(WalError::Changed { path, .. }) = &error {
                    // It may show no other sign of it than its bytes.
                    work.memory.forget_at(path);
                }
                report.findings.push(Finding { line: error.to_string(), damage: false });
                work.not_before = now + CHANGED_PAUSE;
                Progress::Changed
            }
            Err(error) => {
                let leave = work.backoff.failed(error.kind(), (self.jitter)());
                work.standstill.failed(&error, leave);
                work.not_before = now + leave.time();
                report.error = Some(error);
                Progress::Failed(leave)
            }
        };
        let mut partitions = self.partitions();
        if let Some(partition) = partitions.get_mut(tp) {
            let listed = partition.seen.segments().map(|segment| segment.file.id).collect();
            work.memory.trim(&listed);
            self.tell(tp, partition, Some(&work), self.broker());
            partition.work = Some(work);
        }
        progress
    }
}
