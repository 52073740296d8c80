//! Owns the two ways to drive an indexer: once over everything, and for as long as
//! the process lives.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::{LiveIndexer, Look, Progress};
use crate::health::{self, Health};
use crate::indexer::partition::blocking;
use crate::indexer::report::{PartitionReport, RunReport};
use crate::indexer::{IndexError, PARTITIONS_AT_ONCE};
use crate::record::TopicPartition;
use crate::task::{Leave, Ticker};

/// How often the WAL is listed when nothing wakes: with it, a segment is looked at
/// this long after it has settled at the latest.
pub const RESCAN: Duration = Duration::from_secs(2);
/// How long archives under way may take once the process is told to stop. Beyond it
/// they are given up: nothing is lost, the next start builds them again.
const FINISH_MAX: Duration = Duration::from_secs(10);
/// How long the loop may take from one look at the WAL to the next: a listing takes
/// seconds for ten thousand partitions.
const LOOK_SILENT_MAX: Duration = Duration::from_secs(300);
/// How long steps may be under way and none of them scan a segment, pack a batch or
/// send a request. Whatever they wait for gives up long before: a request to the
/// store within minutes.
const STEPS_SILENT_MAX: Duration = Duration::from_secs(1800);
/// Times a partition is looked at again in one run because its files changed.
const CHANGES_MAX: u32 = 5;

/// What tells that archiving gets on: its looks and its steps.
#[derive(Debug)]
pub struct Watched {
    looks: health::Progress,
    steps: health::Progress,
}

impl Watched {
    /// Has `health` watch the loop from now on.
    #[must_use]
    pub fn by(health: &Health) -> Self {
        Self {
            looks: health.watch("looking at the WAL", LOOK_SILENT_MAX),
            steps: health.watch("archiving", STEPS_SILENT_MAX),
        }
    }

    fn ends(self) {
        self.looks.ends();
        self.steps.ends();
    }
}

impl LiveIndexer {
    /// Lists the WAL, on a thread where that may take long.
    ///
    /// # Errors
    /// When the WAL directory itself cannot be listed.
    pub async fn look_aside(self: &Arc<Self>) -> Result<Look, IndexError> {
        let indexer = Arc::clone(self);
        blocking(move || indexer.look()).await
    }

    /// Whether some segment is not ready only because it has not been watched for
    /// the settle time yet.
    pub fn would_settle(&self) -> bool {
        let (broker, mut rules) = (self.broker(), self.options.rules);
        rules.settle = Duration::ZERO;
        let now = |rules| {
            let partitions = self.partitions();
            let standing = partitions.values().flat_map(|partition| {
                partition.standing(broker, rules, &*self.clock).map(|segment| segment.ready)
            });
            standing.filter(|ready| *ready).count()
        };
        now(&rules) > now(&self.options.rules)
    }

    /// Archives everything that is ready now. What goes wrong with one partition
    /// stands in its report and stops no other.
    ///
    /// # Errors
    /// When the WAL directory itself cannot be listed.
    pub async fn run_once(
        self: &Arc<Self>,
        mut done: impl FnMut(&PartitionReport) + Send,
    ) -> Result<RunReport, IndexError> {
        let look = self.look_aside().await?;
        let mut report = RunReport::new(look.findings);
        let steps: Vec<_> = look.all.into_iter().map(|tp| self.step_until_quiet(tp)).collect();
        let mut reports = futures::stream::iter(steps).buffer_unordered(PARTITIONS_AT_ONCE);
        while let Some(partition) = reports.next().await {
            done(&partition);
            report.add(partition);
        }
        report.sort();
        Ok(report)
    }

    /// A step, and another where files changed meanwhile.
    async fn step_until_quiet(self: &Arc<Self>, tp: TopicPartition) -> PartitionReport {
        let (mut report, mut progress) = self.step(&tp).await;
        for _ in 0..CHANGES_MAX {
            if progress != Progress::Changed {
                break;
            }
            if let Err(error) = self.look_aside().await {
                report.error = Some(error);
                break;
            }
            (report, progress) = self.step(&tp).await;
        }
        report
    }

    /// Archives what becomes ready until `stop` is cancelled; then no further step
    /// begins, and those under way have a little time to end. `watched` hears of
    /// every look, failed ones too, and of steps as long as they get on.
    pub async fn run(
        self: Arc<Self>,
        mut ticker: Ticker,
        watched: Watched,
        stop: CancellationToken,
    ) {
        let mut pulse = self.indexer.pulse();
        let mut steps = FuturesUnordered::new();
        let mut under_way = HashSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = steps.next(), if !steps.is_empty() => {
                    let (report, progress): (PartitionReport, Progress) = ended;
                    under_way.remove(&report.tp);
                    tell(&report, progress);
                    watched.steps.touch();
                }
                () = ticker.tick() => {
                    let before = std::mem::replace(&mut pulse, self.indexer.pulse());
                    if steps.is_empty() || pulse != before {
                        watched.steps.touch();
                    }
                    let looked = self.look_aside().await;
                    watched.looks.touch();
                    for tp in told(looked).due {
                        if !under_way.insert(tp.clone()) {
                            continue;
                        }
                        let indexer = Arc::clone(&self);
                        steps.push(async move { indexer.step(&tp).await });
                    }
                }
            }
        }
        watched.ends();
        self.permits.close();
        let rest = async { while steps.next().await.is_some() {} };
        if tokio::time::timeout(FINISH_MAX, rest).await.is_err() {
            tracing::info!("archives under way are given up, the next start builds them again");
        }
        self.abandon();
    }
}

/// What a look found, once the log says what it could not.
fn told(looked: Result<Look, IndexError>) -> Look {
    match &looked {
        Ok(look) => look.findings.iter().for_each(|line| tracing::debug!("{line}")),
        Err(error) => tracing::warn!(%error, "the WAL cannot be listed, trying again"),
    }
    looked.unwrap_or_default()
}

/// Logs what a step came to.
fn tell(report: &PartitionReport, progress: Progress) {
    let partition = &report.tp;
    for finding in &report.findings {
        if finding.damage {
            tracing::warn!(%partition, "{}", finding.line);
        } else {
            tracing::info!(%partition, "{}", finding.line);
        }
    }
    match (progress, &report.error) {
        (Progress::Failed(Leave::Briefly(time)), Some(error)) => {
            tracing::warn!(%partition, %error, ?time, "could not be archived, trying again");
        }
        (Progress::Failed(Leave::Quarantined(time)), Some(error)) => {
            tracing::error!(%partition, %error, ?time, "could not be archived and is left alone");
        }
        (Progress::Waiting(hole), _) => {
            tracing::info!(%partition, %hole, "offsets are missing, what lies behind them waits");
        }
        (Progress::Standby, _) => {
            tracing::info!(%partition, "another writer committed last and has the first turn");
        }
        _ => {}
    }
}
