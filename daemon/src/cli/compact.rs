//! `tierd compact`: shows, and with `--confirm` carries out, what compaction has
//! to do.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Change, Outcome, output};
use crate::catalog::Snapshot;
use crate::compact::{Compactor, Policy, Retained, Strategy};
use crate::config::{Config, TopicPolicy};
use crate::daemon::Rooms;
use crate::record::{TopicName, TopicPartition};

#[derive(Debug, Args)]
pub(super) struct CompactArgs {
    /// Do what is to do now, once
    #[arg(long, required = true)]
    once: bool,
    /// Only this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only this partition of it
    #[arg(long, requires = "topic")]
    partition: Option<i32>,
    /// What to do; hybrid is every limit that is set [default: hybrid]
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
    #[command(flatten)]
    change: Change,
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
}

impl StrategyArg {
    fn strategy(self) -> Strategy {
        match self {
            Self::Time => Strategy::Time,
            Self::Size => Strategy::Size,
            Self::Offset => Strategy::Offset,
            Self::Hybrid => Strategy::Hybrid,
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
        };
        let any = given.retention_time.is_some()
            || given.retention_bytes.is_some()
            || given.retention_offsets.is_some();
        if any {
            config.compaction.topics = vec![given];
        }
        config
    }

    fn strategies(&self) -> Vec<Strategy> {
        if self.strategy.is_empty() {
            return vec![Strategy::Hybrid];
        }
        self.strategy.iter().map(|one| one.strategy()).collect()
    }
}

pub(super) async fn compact(
    args: CompactArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let config = args.over(config);
    config.compaction.check()?;
    let strategies = args.strategies();
    let rooms = args.change.rooms(&config)?;
    let compactor = rooms.compactor();
    let now_ms = compactor.now_ms().await?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let mut table = output::Table::new(HEADS);
    for (tp, incarnation) in super::wanted(&rooms, topic.as_ref(), args.partition).await? {
        let policy = config.compaction.policy(tp.topic())?.only(&strategies);
        let done =
            retain(&compactor, &rooms, &tp, incarnation, policy, now_ms, args.change.confirm)
                .await?;
        if let Some(done) = done {
            show(&done, json, &mut table)?;
        }
    }
    conclude(&table, json, args.change.confirm)
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
    output::say(match confirmed {
        true => "committed; tierd gc frees the space once its grace time has passed\n",
        false => "nothing was changed; add --confirm to commit this\n",
    })?;
    Ok(Outcome::Well)
}
