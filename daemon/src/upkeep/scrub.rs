//! Owns the scrub: reading every committed archive whole, round after round, slowly, to
//! find what a disk or a bucket lost before somebody needs it.
//!
//! A round goes through all partitions; each archive is read with other decoders than
//! the read path's and compared with every digest. What is lost or damaged goes to the
//! [`Quarantine`], and leaves it when it is found well again, which is looked for more
//! often than a round comes. A partition whose catalog cannot be read is told in the log
//! and passed by: reading it tells its clients the same.
//!
//! [`Scrub::step`] does the next piece of work; [`Scrub::run`] drives it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::verify::{Checked, Depth, VerifyError, check_archive};
use crate::catalog::{ArchiveEntry, Catalog};
use crate::clock::Clock;
use crate::error::{Classify, ErrorKind};
use crate::metrics::Metrics;
use crate::read::{ArchiveReader, Quarantine};
use crate::record::TopicPartition;
use crate::store::Store;
use crate::task::{Backoff, Pace};

/// Bytes read a second where nothing is said: 340 GB a day, an eighth of what a small
/// instance gets from S3.
pub const SCRUB_RATE_DEFAULT: NonZeroU64 = NonZeroU64::new(4 << 20).unwrap();
/// From the beginning of a round to the next where nothing is said.
pub const SCRUB_EVERY_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);
/// From the start of the process to the first round: a restart has other things to do,
/// and daemons that restart in a loop must not read the bucket again and again.
const FIRST_AFTER: Duration = Duration::from_secs(10 * 60);
/// How often what is in quarantine is looked at again.
const RECHECK_EVERY: Duration = Duration::from_secs(10 * 60);

/// Spreads times that lie close together (2^64 by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// How fast and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes read a second.
    pub bytes_per_second: NonZeroU64,
    /// From the beginning of a round to the next; `None` for no rounds: then only what
    /// reads found damaged is looked at again.
    pub every: Option<Duration>,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrubStep {
    /// It found the partitions of a new round, or the archives of one.
    Listed,
    /// It looked at an archive.
    Checked(Checked),
    /// It ended a round.
    Ended,
    /// Nothing is due for this long.
    Rests(Duration),
}

/// One round.
#[derive(Debug)]
struct Round {
    partitions: VecDeque<(TopicPartition, u32)>,
    entries: VecDeque<ArchiveEntry>,
}

/// Scrubs one store.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    catalog: Arc<Catalog>,
    reader: ArchiveReader,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    every: Option<Duration>,
    depth: Depth,
    round: Option<Round>,
    /// When the next round begins, if one does.
    due_at: Option<Duration>,
    /// What of the quarantine is to be looked at, and when it is taken up again.
    rechecks: VecDeque<ArchiveEntry>,
    recheck_at: Duration,
}

impl Scrub {
    /// A scrub whose first round is due in ten minutes, or `every` where that is less.
    #[must_use]
    pub fn new(
        store: Store,
        catalog: Arc<Catalog>,
        reader: ArchiveReader,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
        options: ScrubOptions,
    ) -> Self {
        let pace = Arc::new(Pace::of(options.bytes_per_second.get()));
        let now = clock.monotonic();
        Self {
            store,
            catalog,
            reader,
            metrics,
            every: options.every,
            depth: Depth::Deep(pace),
            round: None,
            due_at: options.every.map(|every| now + every.min(FIRST_AFTER)),
            rechecks: VecDeque::new(),
            recheck_at: now + recheck_every(options.every),
            clock,
        }
    }

    /// Steps until `stop`. What fails is tried again, later and later.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let step = tokio::select! {
                () = stop.cancelled() => return,
                step = self.step() => step,
            };
            let rest = match step {
                Ok(ScrubStep::Rests(time)) => time,
                Ok(_) => {
                    backoff.succeeded();
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "the scrub goes on later");
                    backoff.failed(error.kind(), 1.0).time()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(rest) => {}
            }
        }
    }

    /// Does what is due next.
    ///
    /// # Errors
    /// When the store cannot be asked; the same step is done again then.
    pub async fn step(&mut self) -> Result<ScrubStep, VerifyError> {
        let now = self.clock.monotonic();
        if self.rechecks.is_empty() && now >= self.recheck_at {
            self.recheck_at = now + recheck_every(self.every);
            self.rechecks = self.quarantine().entries().into();
        }
        if let Some(entry) = self.rechecks.front().cloned() {
            let checked = self.check(&entry).await?;
            self.rechecks.pop_front();
            return Ok(ScrubStep::Checked(checked));
        }
        let Some(round) = &self.round else {
            if self.due_at.is_none_or(|due_at| now < due_at) {
                let next = self.due_at.map_or(self.recheck_at, |due| due.min(self.recheck_at));
                return Ok(ScrubStep::Rests(next.saturating_sub(now)));
            }
            let partitions = self.begun_anywhere(self.catalog.partitions().await?, 40);
            self.due_at = self.every.map(|every| now + every);
            self.round = Some(Round { partitions, entries: VecDeque::new() });
            return Ok(ScrubStep::Listed);
        };
        if let Some(entry) = round.entries.front().cloned() {
            let checked = self.check(&entry).await?;
            self.round.as_mut().map(|round| round.entries.pop_front());
            return Ok(ScrubStep::Checked(checked));
        }
        let Some((tp, life)) = round.partitions.front().cloned() else {
            self.round = None;
            self.metrics.scrubbed_all();
            return Ok(ScrubStep::Ended);
        };
        let entries = self.entries(&tp, life).await?.unwrap_or_default();
        let entries = self.begun_anywhere(entries, 16);
        if let Some(round) = &mut self.round {
            round.entries = entries;
            round.partitions.pop_front();
        }
        Ok(ScrubStep::Listed)
    }

    /// `items` from one of them on, another one at another time: who is restarted more
    /// often than a round takes comes to all of them all the same. Who asks at the same
    /// time asks for other bits, from `shift` on.
    fn begun_anywhere<T>(&self, items: Vec<T>, shift: u32) -> VecDeque<T> {
        let mut items = VecDeque::from(items);
        let now = self.clock.now_ms().unsigned_abs();
        let anywhere = now.wrapping_mul(SPREAD) >> shift;
        if !items.is_empty() {
            items.rotate_left(anywhere as usize % items.len());
        }
        items
    }

    fn quarantine(&self) -> &Quarantine {
        self.reader.quarantine()
    }

    /// The archives of a partition; `None` where its catalog is damaged.
    async fn entries(
        &self,
        tp: &TopicPartition,
        life: u32,
    ) -> Result<Option<Vec<ArchiveEntry>>, VerifyError> {
        let listed = async {
            match self.catalog.load(tp, Some(life)).await? {
                Some(snapshot) => snapshot.entries().await,
                None => Ok(Vec::new()),
            }
        };
        match listed.await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                tracing::error!(%tp, %error, "a catalog cannot be scrubbed");
                Ok(None)
            }
            other => Ok(Some(other?)),
        }
    }

    /// Looks at one archive, and puts it into quarantine or takes it out.
    async fn check(&self, entry: &ArchiveEntry) -> Result<Checked, VerifyError> {
        let mut bytes = 0;
        let (store, reader) = (&self.store, &self.reader);
        let checked = check_archive(store, reader, entry, &self.depth, &mut bytes).await?;
        // Dropped and collected since it was listed, it is nobody's loss.
        let is_lost = checked.health.is_problem() && self.is_needed(entry).await?;
        match is_lost {
            true => self.quarantine().put(entry, &checked.why),
            false => self.quarantine().lift(entry),
        }
        self.metrics.scrubbed(bytes, is_lost);
        Ok(checked)
    }

    async fn is_needed(&self, entry: &ArchiveEntry) -> Result<bool, VerifyError> {
        let listed = self.entries(&entry.of().tp, entry.of().incarnation).await?;
        // A catalog that cannot be read says nothing of it.
        Ok(listed.is_none_or(|listed| listed.contains(entry)))
    }
}

/// How often the quarantine is gone through, where a round comes so often.
fn recheck_every(every: Option<Duration>) -> Duration {
    every.map_or(RECHECK_EVERY, |every| every.min(RECHECK_EVERY))
}
