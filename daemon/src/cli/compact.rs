//! `tierd compact`: shows, and with `--confirm` carries out, what compaction has
//! to do; `tierd compact status` sums it up.

mod status;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{Change, Outcome, output};
use crate::catalog::Snapshot;
use crate::compact::merge::{self, MergeJob, Merged};
use crate::compact::{Compactor, Policy, Retained, Strategy};
use crate::config::{Config, TopicPolicy};
use crate::daemon::Rooms;
use crate::record::{TopicName, TopicPartition};
use crate::task::Pace;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct CompactArgs {
    #[command(subcommand)]
    status: Option<StatusCommand>,
    /// Do what is to do now, once
    #[arg(long, required = true)]
    once: bool,
    /// Only this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only this partition of it
    #[arg(long, requires = "topic")]
    partition: Option<i32>,
    /// What to do; hybrid is every limit that is set [default: hybrid,merge]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    strategy: Vec<StrategyArg>,
    /// Records older than this need not be kept, instead of what the settings say
    #[arg(long, value_name = "TIME")]
    retention_time: Option<String>,
    /// Bytes of archives that each partition keeps, as 100GiB
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<String>,
    /// Offsets that each partition keeps before its end
    #[arg(long, value_name = "COUNT")]
    retention_offsets: Option<u64>,
    /// Bytes of log, unpacked, to merge small neighbours into, as 512MiB
    #[arg(long, value_name = "BYTES")]
    merge_target: Option<String>,
    /// Scratch; may be wiped [default: below the user's cache folder]
    #[arg(long, value_name = "DIR", env = "TIERD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Subcommand)]
enum StatusCommand {
    /// Show what each partition has and what is to do
    Status(status::StatusArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StrategyArg {
    /// Age of records
    Time,
    /// Bytes of archives
    Size,
    /// Offsets before the end
    Offset,
    /// Every limit that is set
    Hybrid,
    /// Neighbours become one
    Merge,
}

impl StrategyArg {
    fn strategy(self) -> Strategy {
        match self {
            Self::Time => Strategy::Time,
            Self::Size => Strategy::Size,
            Self::Offset => Strategy::Offset,
            Self::Hybrid => Strategy::Hybrid,
            Self::Merge => Strategy::Merge,
        }
    }
}

impl CompactArgs {
    /// Lays the flags over the settings: limits given here hold for every topic
    /// looked at.
    fn over(&self, mut config: Config) -> Config {
        let given = TopicPolicy {
            topics: "*".to_owned(),
            retention_time: self.retention_time.clone(),
            retention_bytes: self.retention_bytes.clone(),
            retention_offsets: self.retention_offsets,
            old_incarnations: None,
            merge_target: self.merge_target.clone(),
        };
        let any = given.retention_time.is_some()
            || given.retention_bytes.is_some()
            || given.retention_offsets.is_some()
            || given.merge_target.is_some();
        if any {
            config.compaction.topics = vec![given];
        }
        config.data_dir = self.data_dir.clone().or(config.data_dir);
        config
    }

    fn strategies(&self) -> Vec<Strategy> {
        if self.strategy.is_empty() {
            return vec![Strategy::Hybrid, Strategy::Merge];
        }
        self.strategy.iter().map(|one| one.strategy()).collect()
    }
}

pub(super) async fn compact(
    mut args: CompactArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    if let Some(StatusCommand::Status(wanted)) = args.status.take() {
        return status::status(wanted, &config, json).await;
    }
    let config = args.over(config);
    config.compaction.check()?;
    let strategies = args.strategies();
    let rooms = args.change.rooms(&config)?;
    let compactor = rooms.compactor();
    let now_ms = compactor.now_ms().await?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let confirm = args.change.confirm;
    let wanted = super::wanted(&rooms, topic.as_ref(), args.partition).await?;
    let mut table = output::Table::new(HEADS);
    let mut merges = Merges { table: output::Table::new(MERGE_HEADS), json, cost: Cost::default() };
    for (tp, incarnation) in wanted {
        let policy = config.compaction.policy(tp.topic())?.only(&strategies);
        let done = retain(&compactor, &rooms, &tp, incarnation, policy, now_ms, confirm).await?;
        let planned = done.as_ref().filter(|_| !confirm).map(|done| done.log_start);
        if let Some(done) = done {
            show(&done, json, &mut table)?;
        }
        let Some(target) = policy.merge_target else { continue };
        let Some(base) = rooms.catalog.load(&tp, Some(incarnation)).await? else { continue };
        if confirm {
            let data = config.data_dir()?;
            merge_all(&compactor, base, target, &data, &mut merges).await?;
        } else {
            // As if retention had been committed.
            let from = planned.unwrap_or(base.log_start());
            let mut entries = base.entries().await?;
            entries.retain(|entry| entry.summary.range.base() >= from);
            for job in merge::plan(&base, &entries, target, &HashSet::new()) {
                merges.show(&base, &job)?;
            }
        }
    }
    if !json && !merges.table.is_empty() {
        merges.conclude()?;
        if table.is_empty() {
            return output::say(verdict(confirm)).map(|()| Outcome::Well);
        }
    }
    conclude(&table, json, confirm)
}

const MERGE_HEADS: &[&str] =
    &["topic", ">partition", ">life", ">first", ">last", ">archives merged", ">size"];

/// What merging reads and writes.
#[derive(Default)]
struct Cost {
    jobs: u64,
    inputs: u64,
    bytes: u64,
    reads: u64,
    writes: u64,
}

/// The merges shown so far.
struct Merges {
    table: output::Table,
    json: bool,
    cost: Cost,
}

impl Merges {
    fn show(&mut self, base: &Snapshot, job: &MergeJob) -> anyhow::Result<()> {
        let Some(range) = job.range() else { return Ok(()) };
        let (first, last) = (range.base(), range.last());
        let cost = job.requests();
        self.cost.jobs += 1;
        self.cost.inputs += job.inputs.len() as u64;
        self.cost.bytes += job.bytes();
        self.cost.reads += cost.reads;
        self.cost.writes += cost.writes;
        if self.json {
            return output::json_line(&json!({
                "topic": base.tp().topic().as_str(), "partition": base.tp().partition(),
                "incarnation": base.incarnation(), "first": first, "last": last,
                "merge": job.inputs.iter().map(|one| one.key().to_string()).collect::<Vec<_>>(),
                "bytes": job.bytes(), "reads": cost.reads, "writes": cost.writes,
            }));
        }
        self.table.row(vec![
            base.tp().topic().to_string(),
            base.tp().partition().to_string(),
            base.incarnation().to_string(),
            first.to_string(),
            last.to_string(),
            job.inputs.len().to_string(),
            output::bytes(job.bytes()),
        ]);
        Ok(())
    }

    fn conclude(&self) -> anyhow::Result<()> {
        let Cost { jobs, inputs, bytes, reads, writes } = self.cost;
        self.table.print()?;
        output::say(&format!(
            "{inputs} archives become {jobs}: {} read with about {reads} requests and written \
             with about {writes}; both are stored until gc frees the old ones\n",
            output::bytes(bytes)
        ))
    }
}

/// Carries out one merge after the other until none is left.
async fn merge_all(
    compactor: &Compactor,
    mut base: Arc<Snapshot>,
    target: u64,
    data: &Path,
    merges: &mut Merges,
) -> anyhow::Result<()> {
    let mut borders = HashSet::new();
    loop {
        let entries = base.entries().await?;
        let Some(job) = merge::plan(&base, &entries, target, &borders).into_iter().next() else {
            return Ok(());
        };
        std::fs::create_dir_all(data)?;
        let scratch = tempfile::Builder::new().prefix("compact-").tempdir_in(data)?;
        let pace = Pace::unlimited();
        let merged = compactor.merge(Arc::clone(&base), &job, scratch.path(), &pace).await?;
        base = match merged {
            Merged::Committed(newest, _) => {
                merges.show(&base, &job)?;
                newest
            }
            Merged::Overtaken(newest) => newest,
            Merged::Refused(left, why) => {
                tracing::warn!(partition = %base.tp(), "archives stay apart: {why}");
                borders.insert(left);
                base
            }
        };
    }
}

async fn retain(
    compactor: &Compactor,
    rooms: &Rooms,
    tp: &TopicPartition,
    incarnation: u32,
    policy: Policy,
    now_ms: i64,
    confirm: bool,
) -> anyhow::Result<Option<Retained>> {
    let Some(base) = rooms.catalog.load(tp, Some(incarnation)).await? else { return Ok(None) };
    let plan = |base| compactor.plan_retention(base, policy, now_ms);
    let planned = plan(base).await?;
    Ok(match planned.is_needed() {
        true if confirm => Some(compactor.retain(planned, plan).await?),
        true => Some(planned),
        false => None,
    })
}

pub(super) const HEADS: &[&str] =
    &["topic", ">partition", ">life", ">log start", ">becomes", "by", ">archives dropped", ">size"];

pub(super) fn show(done: &Retained, json: bool, table: &mut output::Table) -> anyhow::Result<()> {
    let base: &Arc<Snapshot> = &done.base;
    if json {
        return output::json_line(&json!({
            "topic": base.tp().topic().as_str(), "partition": base.tp().partition(),
            "incarnation": base.incarnation(), "log_start": base.log_start(),
            "becomes": done.log_start, "by": done.limit.as_str(),
            "archives": done.drop.len(), "bytes": done.bytes(),
            "drop": done.drop.iter().map(|entry| entry.key().to_string()).collect::<Vec<_>>(),
        }));
    }
    table.row(vec![
        base.tp().topic().to_string(),
        base.tp().partition().to_string(),
        base.incarnation().to_string(),
        base.log_start().to_string(),
        done.log_start.to_string(),
        done.limit.as_str().to_owned(),
        done.drop.len().to_string(),
        output::bytes(done.bytes()),
    ]);
    Ok(())
}

pub(super) fn conclude(
    table: &output::Table,
    json: bool,
    confirmed: bool,
) -> anyhow::Result<Outcome> {
    if json {
        return Ok(Outcome::Well);
    }
    if table.is_empty() {
        output::say("nothing to do\n")?;
        return Ok(Outcome::Well);
    }
    table.print()?;
    output::say(verdict(confirmed))?;
    Ok(Outcome::Well)
}

fn verdict(confirmed: bool) -> &'static str {
    match confirmed {
        true => "committed; tierd gc frees the space once its grace time has passed\n",
        false => "nothing was changed; add --confirm to commit this\n",
    }
}
