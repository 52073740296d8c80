//! Owns one partition's way from scan to commit, and doing it again when another
//! writer committed first.

use std::sync::Arc;

use super::build::{Built, Cursor, Site, build, build_latecomers};
use super::committed::{hold_back, mark_truncated};
use super::plan::{Archived, Frame, Plan, Run, plan};
use super::proof::look_up;
use super::report::PartitionReport;
use super::scan::{Segments, Source, drop_copies, frames_of};
use super::transactions::open_after;
use super::{IndexError, Indexer, RACES_MAX};
use crate::archive::{ArchiveIdentity, BuiltArchive};
use crate::catalog::{ArchiveEntry, CatalogError, Edit, Gap, Snapshot};
use crate::metrics::Stage;
use crate::record::{OffsetRange, TopicPartition};
use crate::reports::Lineage;

/// Whether the plan was carried out or is out of date.
enum Outcome {
    Done,
    Outrun,
}

/// Segments of a partition that may be archived.
pub(super) struct Ready {
    pub(super) tp: TopicPartition,
    /// The life of the topic that they belong to.
    pub(super) incarnation: u32,
    /// How far the broker was told that it may delete.
    pub(super) told: i64,
    pub(super) sources: Arc<Vec<Source>>,
    /// Offsets that damaged parts of the WAL may have held.
    pub(super) suspect: Vec<OffsetRange>,
    /// First offset that must not be archived yet, where the broker says so.
    pub(super) stable_end: Option<i64>,
    /// The leader epochs of the log, as far as the broker says.
    pub(super) lineage: Lineage,
    /// The topic's id, where the broker gave one.
    pub(super) topic_id: Option<[u8; 16]>,
}

/// How far a partition came.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The newest manifest, `None` where nothing is committed.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// The hole that has to be waited for, with something behind it.
    pub(super) hole: Option<OffsetRange>,
    /// Whether something waits until the broker has committed it.
    pub(super) held_back: bool,
    /// Whether there is more, which another writer is given the time to commit.
    pub(super) stands_by: bool,
}

/// What there is to archive.
pub(super) struct Pending<'a> {
    /// Holes in it, ascending.
    pub(super) gaps: &'a [Gap],
    /// The first batch; `None` when there is nothing to archive.
    pub(super) oldest: Option<&'a Frame>,
    pub(super) newest: Option<&'a Snapshot>,
}

/// Says how many of the holes may be declared from the first on; `None` when another
/// writer has the first turn.
pub(super) type Declarable<'a> = &'a mut (dyn FnMut(&Pending<'_>) -> Option<usize> + Send);

/// Archives what is ready and not committed yet, up to the first hole that must not
/// be declared.
pub(super) async fn archive(
    indexer: &Indexer,
    ready: Ready,
    declarable: Declarable<'_>,
    report: &mut PartitionReport,
) -> Result<Done, IndexError> {
    let Ready { tp, incarnation, told, sources, suspect, stable_end, lineage, topic_id } = ready;
    for _ in 0..RACES_MAX {
        // After a race the frames are listed again: rare, and a second list of
        // millions of them would be in memory all the time.
        let found = frames(indexer, &tp, &sources, report).await?;
        let timed = indexer.metrics.stage_begins(Stage::Compare);
        let snapshot = indexer.catalog.load(&tp, Some(incarnation)).await?;
        let archived = archived(snapshot.as_deref()).await?;
        report.archived_through = archived.through;
        let (mut frames, known) =
            drop_committed(indexer, snapshot.as_deref(), &archived, found).await?;
        drop(timed);
        report.known = known;
        let held = hold_back(&mut frames, stable_end);
        let held_back = !held.is_empty();
        mark_truncated(&mut frames, &lineage);
        let mut plan = plan(&mut frames, &archived, &suspect);
        let pending = Pending {
            gaps: &plan.gaps,
            oldest: frames.first().filter(|_| !plan.is_empty()),
            newest: snapshot.as_deref(),
        };
        let Some(declared) = declarable(&pending) else {
            return Ok(Done { snapshot, hole: None, held_back, stands_by: true });
        };
        let hole = plan.gaps.get(declared).map(|gap| gap.range);
        plan.cut(declared);
        let site = Site {
            format: indexer.format,
            sources: Arc::clone(&sources),
            frames: Arc::new(frames),
            identity: ArchiveIdentity { tp: tp.clone(), incarnation },
            options: indexer.options_of(tp.topic()),
            scratch: indexer.scratch().await?.folder().to_owned(),
            abandoned: indexer.abandoned.clone(),
            pulse: indexer.pulse.clone(),
        };
        let mut carrier = Carrier { indexer, site, snapshot, told, topic_id, report };
        if let Outcome::Done = carrier.carry_out(plan).await? {
            let snapshot = carrier.snapshot;
            return Ok(Done { snapshot, hole, held_back, stands_by: false });
        }
    }
    Err(IndexError::Outrun)
}

/// The frames of `sources` without those that hold the same batch as another.
async fn frames(
    indexer: &Indexer,
    tp: &TopicPartition,
    sources: &Arc<Vec<Source>>,
    report: &mut PartitionReport,
) -> Result<Vec<Frame>, IndexError> {
    let (format, tp, sources) = (indexer.format, tp.clone(), Arc::clone(sources));
    let (frames, copies) = blocking(move || {
        let mut frames = frames_of(&sources);
        let mut readers = Segments::new(format, &tp, &sources);
        let copies = drop_copies(&mut frames, |frame| readers.bytes(frame));
        Ok((frames, copies))
    })
    .await?;
    report.found = frames.len() as u64 + copies;
    report.copies = copies;
    Ok(frames)
}

/// What the catalog says of the partition.
async fn archived(snapshot: Option<&Snapshot>) -> Result<Archived, IndexError> {
    let Some(snapshot) = snapshot else {
        return Ok(Archived { is_new: true, ..Archived::default() });
    };
    let (through, gaps) = (snapshot.archived_through(), snapshot.gaps().await?);
    Ok(Archived { through, gaps, is_new: false })
}

/// Takes out the frames that are committed; says how many there are. One that
/// reaches offsets which nobody serves stays and is marked: a run that was killed may
/// have needed it in two places and come to the first only.
async fn drop_committed(
    indexer: &Indexer,
    snapshot: Option<&Snapshot>,
    archived: &Archived,
    frames: Vec<Frame>,
) -> Result<(Vec<Frame>, u64), IndexError> {
    let Some(snapshot) = snapshot else { return Ok((frames, 0)) };
    let mut frames = look_up(&indexer.reader, snapshot, frames).await?.frames;
    let known = frames.iter().filter(|frame| frame.known).count() as u64;
    frames.retain(|frame| !frame.known || archived.lacks_some_of(frame));
    Ok((frames, known))
}

/// Carries out one plan, commit by commit.
struct Carrier<'a> {
    indexer: &'a Indexer,
    site: Site,
    snapshot: Option<Arc<Snapshot>>,
    topic_id: Option<[u8; 16]>,
    told: i64,
    report: &'a mut PartitionReport,
}

impl Carrier<'_> {
    async fn carry_out(&mut self, plan: Plan) -> Result<Outcome, IndexError> {
        let mut gaps = plan.gaps.into_iter().peekable();
        for run in plan.runs {
            let mut before: Vec<Gap> = Vec::new();
            while !run.fill
                && let Some(gap) = gaps.next_if(|gap| gap.range.last() < run.start)
            {
                before.push(gap);
            }
            if let Outcome::Outrun = self.archive_run(run, before).await? {
                return Ok(Outcome::Outrun);
            }
        }
        self.archive_latecomers(plan.latecomers).await
    }

    /// Archives one stretch, as one archive or as many as it takes. The gaps
    /// before it are declared by the same commit as its first archive.
    async fn archive_run(&mut self, run: Run, mut gaps: Vec<Gap>) -> Result<Outcome, IndexError> {
        let run = Arc::new(run);
        let mut cursor = Cursor::at(&run);
        while cursor.chain < run.chain.len() {
            let (site, job) = (self.site.clone(), Arc::clone(&run));
            let timed = self.indexer.metrics.stage_begins(Stage::Build);
            let Built { archive, next } = blocking(move || build(&site, &job, cursor)).await?;
            drop(timed);
            let (reader, end) = (&self.indexer.reader, archive.summary.range.end());
            let open = open_after(reader, self.snapshot.as_deref(), &archive.toc, end).await?;
            let edit = Edit {
                gaps: std::mem::take(&mut gaps),
                open_transactions: Some(open),
                ..Edit::default()
            };
            if let Outcome::Outrun = self.publish(archive, edit).await? {
                return Ok(Outcome::Outrun);
            }
            cursor = next;
        }
        // An archive that filled up left some beneath for one of their own.
        self.archive_latecomers(run.overlaps[cursor.overlaps..].to_vec()).await
    }

    async fn archive_latecomers(&mut self, late: Vec<u32>) -> Result<Outcome, IndexError> {
        let mut rest = late;
        while !rest.is_empty() {
            let (site, now) = (self.site.clone(), rest.clone());
            let timed = self.indexer.metrics.stage_begins(Stage::Build);
            let (archive, taken) = blocking(move || build_latecomers(&site, &now)).await?;
            drop(timed);
            if let Outcome::Outrun = self.publish(archive, Edit::default()).await? {
                return Ok(Outcome::Outrun);
            }
            rest.drain(..taken);
        }
        Ok(Outcome::Done)
    }

    /// Uploads `archive` under the name of the next manifest and commits it.
    async fn publish(&mut self, archive: BuiltArchive, edit: Edit) -> Result<Outcome, IndexError> {
        let indexer = self.indexer;
        indexer.probe().await?;
        let number = self.snapshot.as_deref().map_or(1, Snapshot::next_number);
        let identity = &self.site.identity;
        let entry =
            ArchiveEntry::new(indexer.catalog.cluster(), identity, number, archive.summary.clone());
        let timed = indexer.metrics.stage_begins(Stage::Upload);
        indexer.store.put_file(&entry.key(), &archive.path).await?;
        drop(timed);
        let timed = indexer.metrics.stage_begins(Stage::Commit);
        let gaps = edit.gaps.clone();
        // Told for the first time it is adopted. Another one would have begun a life of
        // its own; the catalog refuses it here.
        let edit = Edit { add: vec![entry], topic_id: self.topic_id, ..edit };
        let committed = indexer
            .catalog
            .commit(&identity.tp, identity.incarnation, self.snapshot.clone(), edit)
            .await;
        drop(timed);
        match committed {
            Ok(committed) => {
                indexer.watermarks.tell(&committed, self.told);
                self.snapshot = Some(Arc::clone(committed.snapshot()));
                self.count(&archive, gaps);
                Ok(Outcome::Done)
            }
            Err(CatalogError::Lost { .. }) => Ok(Outcome::Outrun),
            Err(error) => Err(error.into()),
        }
    }

    fn count(&mut self, archive: &BuiltArchive, gaps: Vec<Gap>) {
        let summary = &archive.summary;
        tracing::info!(
            partition = %self.site.identity.tp,
            range = %summary.range,
            batches = summary.batches,
            bytes = summary.length,
            "archive committed"
        );
        let through = self.snapshot.as_deref().map_or(0, Snapshot::archived_through);
        self.report.archived_through = through;
        self.indexer.metrics.committed(
            &self.site.identity.tp,
            through,
            u64::from(summary.batches) + u64::from(summary.overlaps),
            summary.log_bytes,
            summary.length,
        );
        self.report.archives += 1;
        if summary.tiles {
            self.report.ranges.push(summary.range);
        }
        self.report.batches += u64::from(summary.batches);
        self.report.overlaps += u64::from(summary.overlaps);
        self.report.bytes += summary.length;
        self.report.gaps.extend(gaps);
    }
}

/// Runs CPU and file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, IndexError> {
    tokio::task::spawn_blocking(work).await.map_err(|died| IndexError::Worker(died.to_string()))?
}
