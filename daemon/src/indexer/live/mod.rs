//! Owns archiving beside a broker that writes: which partitions have something to
//! do now, one step of one partition, and leaving alone what fails.
//!
//! ```text
//!  look:  list the WAL -> observe -> which partitions are due     every RESCAN, or woken
//!  step:  classify -> scan what is ready -> plan, cut, archive    one partition
//! ```
//!
//! The directory listing is the truth; a step trusts nothing older than the last one
//! and ends with [`Progress::Changed`] where the broker was faster. A partition in
//! which nothing changed costs its listing. Nothing here waits: time is the clock's,
//! and the loop that calls is in [`run`](LiveIndexer::run).

mod backlog;
mod reclaim;
mod release;
mod run;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use self::backlog::Standstill;
use super::holes::{Holes, Present, Scene, SegmentKey};
use super::lives::{Life, Lives, Local};
use super::partition::{Done, Pending, Ready, archive, blocking};
use super::plan::Frame;
use super::report::{Finding, PartitionReport};
use super::scan::{Memory, Scanned, Source};
use super::standby::Standby;
use super::{IndexError, Indexer, PARTITIONS_AT_ONCE};
use crate::catalog::{Ledger, Snapshot};
use crate::clock::Clock;
use crate::error::Classify;
use crate::metrics::{Metrics, Stage, Stall};
use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::reports::{Lineage, Reports, Role};
use crate::task::{Backoff, Jitter, Leave};
use crate::wal::classify::{Broker, Class, Facts, Rules};
use crate::wal::{BrokerStart, Observations, Observed, SegmentFile, WalDir, WalError};

pub use run::{RESCAN, Watched};

/// Pause before a partition is looked at again whose files changed under a step.
const CHANGED_PAUSE: Duration = Duration::from_secs(1);
/// How long a segment that cannot be read or deleted is left alone.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(60);
/// Segments of an earlier life that are told by their numbers.
const LEFT_TOLD_MAX: usize = 5;
/// Times a step finds out anew which life its topic is in because segments came or
/// went meanwhile. Then it gives way to the next look.
const SETTLES_MAX: u32 = 3;

/// What may be archived when.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Where the broker's start is to be learned.
    pub broker: BrokerStart,
    /// When a segment is closed, and when its frames may be taken.
    pub rules: Rules,
    /// How long a hole is waited for at most.
    pub gap_timeout: Duration,
    /// How long another writer who committed last is given for what is to archive.
    pub standby_wait: Duration,
    /// Whether segments that may go are deleted.
    pub reclaim: bool,
}

/// Archives what the broker's WAL holds, while the broker writes or after it.
pub struct LiveIndexer {
    indexer: Indexer,
    wal: WalDir,
    options: LiveOptions,
    clock: Arc<dyn Clock>,
    jitter: Jitter,
    reports: Arc<Reports>,
    partitions: Mutex<BTreeMap<TopicPartition, Partition>>,
    lives: Lives,
    /// Numbers the contents that segments have had, over all partitions.
    file_lives: Arc<AtomicU64>,
    permits: Semaphore,
}

impl std::fmt::Debug for LiveIndexer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveIndexer").field("wal", &self.wal).finish_non_exhaustive()
    }
}

/// What a look at the directory came to.
#[derive(Debug, Default)]
pub struct Look {
    /// Partitions in which something may be archived now, ascending.
    pub due: Vec<TopicPartition>,
    /// All partitions, ascending.
    pub all: Vec<TopicPartition>,
    /// What could not be listed.
    pub findings: Vec<String>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything that is ready is committed.
    Done,
    /// These offsets are missing and may still come; what lies behind them waits.
    Waiting(OffsetRange),
    /// There is more, and another writer who committed last has the first turn.
    Standby,
    /// There is more than one step takes.
    More,
    /// The broker changed files meanwhile: look again.
    Changed,
    /// It failed, and is left alone for so long.
    Failed(Leave),
    /// The partition is gone, has a step under way, or the process stops.
    Idle,
}

impl Progress {
    /// Every word of [`Self::as_str`].
    pub const WORDS: [&str; 7] =
        ["done", "waiting", "standby", "more", "changed", "failed", "idle"];

    /// One word, as metrics use it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Waiting(_) => "waiting",
            Self::Standby => "standby",
            Self::More => "more",
            Self::Changed => "changed",
            Self::Failed(_) => "failed",
            Self::Idle => "idle",
        }
    }
}

/// One partition between steps.
#[derive(Debug)]
struct Partition {
    seen: Observations,
    /// Away while a step has it.
    work: Option<Work>,
}

/// What is remembered of a partition's steps.
#[derive(Debug)]
struct Work {
    /// The life of the topic that all of it is about.
    incarnation: u32,
    memory: Memory,
    holes: Holes,
    backoff: Backoff,
    /// What the directory showed when a step last left nothing to do.
    settled_on: Option<Signature>,
    /// When there may be something to do though nothing changes.
    wake_at: Option<Duration>,
    /// When it may be tried again after a failure.
    not_before: Duration,
    /// The manifest that another writer committed last, and since when it is known.
    other: Option<(u64, Duration)>,
    /// The committed end that something waits for to move.
    held_at: Option<i64>,
    /// The topic's id that the last step went by.
    topic_id: Option<[u8; 16]>,
    /// Segments of an earlier life, by number: no part of this one.
    left: HashSet<u64>,
    standby: Standby,
    /// Whether the last step left the turn to another writer.
    stands_by: bool,
    /// How the last step left it.
    standstill: Standstill,
}

impl Work {
    fn new(options: &LiveOptions, incarnation: u32) -> Self {
        Self {
            incarnation,
            memory: Memory::default(),
            holes: Holes::new(options.gap_timeout),
            backoff: Backoff::default(),
            settled_on: None,
            wake_at: None,
            not_before: Duration::ZERO,
            other: None,
            held_at: None,
            topic_id: None,
            left: HashSet::new(),
            standby: Standby::new(options.standby_wait),
            stands_by: false,
            standstill: Standstill::default(),
        }
    }

    /// Sees to it that the partition is due at `at`.
    fn wake(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// Since when the writer of `newest` is silent, where it is not `writer`.
    fn other_silent_since(
        &mut self,
        newest: Option<&Snapshot>,
        writer: &crate::catalog::WriterId,
        now: Duration,
    ) -> Option<Duration> {
        let other = newest.filter(|newest| newest.writer() != writer).map(Snapshot::number);
        self.other = other.map(|number| match self.other {
            Some((known, since)) if known == number => (number, since),
            _ => (number, now),
        });
        self.other.map(|(_, since)| since)
    }
}

/// All that a step depends on of the directory. Of a segment that is not ready only
/// that it is there: it may grow all the time.
type Signature = Vec<(SegmentKey, Option<(Class, u64, i64)>)>;

/// A segment as it stands now.
struct Standing<'a> {
    seen: &'a Observed,
    class: Class,
    /// Whether its frames may be archived.
    ready: bool,
}

impl Partition {
    fn standing(
        &self,
        broker: Broker,
        rules: &Rules,
        clock: &dyn Clock,
    ) -> impl Iterator<Item = Standing<'_>> {
        let classes = self.seen.classes(broker, rules, clock);
        let ready = |facts: &Facts, class: Class| class.is_final() || rules.is_idle(facts);
        self.seen
            .segments()
            .zip(classes.into_iter().map(move |(facts, class)| (ready(&facts, class), class)))
            .map(|(seen, (ready, class))| Standing { seen, class, ready })
    }
}

fn key(seen: &Observed) -> SegmentKey {
    (seen.file.id, seen.life)
}

fn signature<'a>(standing: impl Iterator<Item = Standing<'a>>) -> Signature {
    standing
        .map(|segment| {
            let file = &segment.seen.file;
            let state = (segment.class, file.len, file.modified_ms);
            (key(segment.seen), segment.ready.then_some(state))
        })
        .collect()
}

/// What a person should know of segments that are of an earlier life.
fn left_over(work: &Work) -> Finding {
    let mut ids: Vec<u64> = work.left.iter().copied().collect();
    ids.sort_unstable();
    ids.truncate(LEFT_TOLD_MAX);
    let line = format!(
        "{} segments are left of the topic that had this name before, as {ids:?}: they are not archived, and nothing is releasable until the broker has deleted them",
        work.left.len()
    );
    Finding { line, damage: false }
}

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
    /// Archives from `wal`. `jitter` spreads waits.
    #[must_use]
    pub fn new(
        indexer: Indexer,
        wal: WalDir,
        options: LiveOptions,
        clock: Arc<dyn Clock>,
        jitter: Jitter,
    ) -> Self {
        let (permits, partitions) = (Semaphore::new(PARTITIONS_AT_ONCE), Mutex::default());
        let (reports, lives) = (Arc::default(), Lives::default());
        Self {
            indexer,
            wal,
            options,
            clock,
            jitter,
            reports,
            partitions,
            lives,
            file_lives: Arc::default(),
            permits,
        }
    }

    /// The same, heeding what the broker reports.
    #[must_use]
    pub fn heeding(self, reports: Arc<Reports>) -> Self {
        Self { reports, ..self }
    }

    /// The WAL it archives.
    #[must_use]
    pub fn wal(&self) -> &WalDir {
        &self.wal
    }

    /// Gives up every archive that is being built, soon. For the end of the process.
    pub fn abandon(&self) {
        self.indexer.abandon();
    }

    /// Lists the WAL and says which partitions are due. Blocking.
    ///
    /// # Errors
    /// When the WAL directory itself cannot be listed.
    pub fn look(&self) -> Result<Look, IndexError> {
        let listing = self.wal.partitions()?;
        let (broker, now) = (self.broker(), self.clock.monotonic());
        let mut partitions = self.partitions();
        let listed: HashSet<&TopicPartition> =
            listing.partitions.iter().map(|dir| &dir.tp).collect();
        partitions.retain(|tp, partition| {
            let there = listed.contains(tp);
            if !there {
                tracing::info!(partition = %tp, "no segment is left of the partition");
                self.metrics().forget(tp);
                partition.seen = Observations::counted_by(&self.file_lives);
            }
            // A step under way has handles of its own and gives its work back here.
            there || partition.work.is_none()
        });
        let topics: HashSet<&TopicName> = listed.iter().map(|tp| tp.topic()).collect();
        self.lives.retain(|topic| topics.contains(topic));
        let mut look = Look { findings: listing.findings, ..Look::default() };
        for dir in listing.partitions {
            let partition = partitions.entry(dir.tp.clone()).or_insert_with(|| Partition {
                seen: Observations::counted_by(&self.file_lives),
                work: Some(Work::new(&self.options, 0)),
            });
            for change in partition.seen.observe(&dir.segments, &*self.clock) {
                tracing::warn!(partition = %dir.tp, "{change}");
            }
            if self.is_due(&dir.tp, partition, broker, now) {
                look.due.push(dir.tp.clone());
            }
            self.tell(&dir.tp, partition, partition.work.as_ref(), broker);
            look.all.push(dir.tp);
        }
        Ok(look)
    }

    fn is_due(
        &self,
        tp: &TopicPartition,
        partition: &Partition,
        broker: Broker,
        now: Duration,
    ) -> bool {
        let Some(work) = &partition.work else { return false };
        if now < work.not_before {
            return false;
        }
        let seen = signature(partition.standing(broker, &self.options.rules, &*self.clock));
        let any_ready = seen.iter().any(|(_, ready)| ready.is_some());
        let freed = work.held_at.is_some() && work.held_at != self.stable_end(tp, broker);
        let leads = work.stands_by && self.leads(tp);
        let renamed = work.topic_id != self.topic_id(tp);
        let woken = freed || leads || renamed || work.wake_at.is_some_and(|at| at <= now);
        any_ready && (woken || work.settled_on.as_ref() != Some(&seen))
    }

    /// Tells where a partition stands; `work` is away while a step has it.
    fn tell(
        &self,
        tp: &TopicPartition,
        partition: &Partition,
        work: Option<&Work>,
        broker: Broker,
    ) {
        let Some(work) = work else { return };
        let standing = partition.standing(broker, &self.options.rules, &*self.clock);
        let log_end = self.reports.of(tp).and_then(|report| report.log_end);
        self.metrics().stands(tp, partition.backlog(standing, work, log_end));
    }

    /// Archives what is ready in one partition, as the last [`Self::look`] saw it.
    /// At most [`PARTITIONS_AT_ONCE`] steps work at a time, the others queue.
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

    /// The topic's id, where the broker reported one for `tp`.
    fn topic_id(&self, tp: &TopicPartition) -> Option<[u8; 16]> {
        self.reports.of(tp).and_then(|report| report.topic_id)
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
        let doubted =
            alone && self.release(tp, work, snapshot.as_ref(), &sources, life, report).await?;
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
    async fn put_ledger(&self, tp: &TopicPartition, ledger: &Ledger) -> Result<(), IndexError> {
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

    fn metrics(&self) -> &Metrics {
        &self.indexer.metrics
    }

    fn broker(&self) -> Broker {
        let now_ms = self.clock.now_ms();
        match self.options.broker.broker(now_ms) {
            // A start in the future would close what is being written.
            Broker::Running { since_ms } => {
                let reported = self.reports.broker_started_ms().filter(|at| *at <= now_ms);
                Broker::Running { since_ms: since_ms.max(reported) }
            }
            stopped => stopped,
        }
    }

    /// First offset of `tp` that must not be archived yet. A broker that is stopped
    /// truncates nothing any more.
    fn stable_end(&self, tp: &TopicPartition, broker: Broker) -> Option<i64> {
        let report = self.reports.of(tp).filter(|_| broker != Broker::Stopped);
        report.and_then(|report| report.stable_end())
    }

    /// The leader epochs of `tp`, as far as the broker says.
    fn lineage(&self, tp: &TopicPartition) -> Lineage {
        self.reports.of(tp).map(|report| report.lineage).unwrap_or_default()
    }

    /// Whether the broker said last that it leads.
    fn leads(&self, tp: &TopicPartition) -> bool {
        self.reports.of(tp).is_some_and(|report| report.role == Role::Leader)
    }

    fn partitions(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
