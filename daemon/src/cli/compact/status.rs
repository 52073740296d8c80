//! `tierd compact status`: what each partition has, and what is to do. Reads only.

use std::collections::HashSet;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::catalog::{Snapshot, Totals};
use crate::cli::{Outcome, output, wanted};
use crate::compact::{Policy, Todo};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::record::TopicName;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Only this topic
    topic: Option<String>,
    /// Only this partition of it
    #[arg(requires = "topic")]
    partition: Option<i32>,
}

const HEADS: &[&str] = &[
    "topic",
    ">partition",
    ">life",
    ">archives",
    ">size",
    "to merge",
    "log start",
    "to drop",
    "last commit",
];

/// What there is to do in all partitions.
#[derive(Default)]
struct Sums {
    partitions: u64,
    merges: u64,
    inputs: u64,
    merge_bytes: u64,
    drops: u64,
    drop_bytes: u64,
}

pub(super) async fn status(
    args: StatusArgs,
    config: &Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let rooms = Rooms::open(config)?;
    let compactor = rooms.compactor();
    // Nothing is written here, not even to ask the store for the time.
    let now_ms = rooms.clock.now_ms();
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let (mut table, mut sums) = (output::Table::new(HEADS), Sums::default());
    for (tp, incarnation) in wanted(&rooms, topic.as_ref(), args.partition).await? {
        let Some(base) = rooms.catalog.load(&tp, Some(incarnation)).await? else { continue };
        let policy = config.compaction.policy(tp.topic())?;
        let todo = compactor.todo(Arc::clone(&base), policy, now_ms, &HashSet::new()).await?;
        sums.add(&todo);
        if json {
            output::json_line(&line(&base, &todo, policy))?;
        } else {
            table.row(row(&base, &todo));
        }
    }
    if json {
        return Ok(Outcome::Well);
    }
    if table.is_empty() {
        output::say("nothing is archived in this store and cluster; see --store and --cluster\n")?;
        return Ok(Outcome::Well);
    }
    table.print()?;
    output::say(&sums.say())?;
    Ok(Outcome::Well)
}

impl Sums {
    fn add(&mut self, todo: &Todo) {
        self.partitions += 1;
        self.merges += todo.merges.len() as u64;
        self.inputs += todo.merge_inputs() as u64;
        self.merge_bytes += todo.merge_bytes();
        self.drops += todo.retained.drop.len() as u64;
        self.drop_bytes += todo.retained.bytes();
    }

    fn say(&self) -> String {
        let Self { partitions, merges, inputs, merge_bytes, drops, drop_bytes } = self;
        if *merges + *drops == 0 {
            return format!("{partitions} partitions, nothing to merge and nothing to drop\n");
        }
        format!(
            "to do in {partitions} partitions: {inputs} archives ({}) become {merges}, {drops} \
             ({}) are dropped\na running daemon does it by itself; tierd compact --once shows \
             each step, with --confirm it does them\n",
            output::bytes(*merge_bytes),
            output::bytes(*drop_bytes),
        )
    }
}

fn row(base: &Snapshot, todo: &Todo) -> Vec<String> {
    let Totals { entries, object_bytes, .. } = base.totals();
    let retained = &todo.retained;
    let dash = || "-".to_owned();
    let merge = match todo.merge_inputs() {
        0 => dash(),
        inputs => {
            let size = output::bytes(todo.merge_bytes());
            format!("{inputs} into {}, {size}", todo.merges.len())
        }
    };
    let log_start = match retained.log_start > base.log_start() {
        true => {
            let (becomes, by) = (retained.log_start, retained.limit.as_str());
            format!("{}, becomes {becomes} by {by}", base.log_start())
        }
        false => base.log_start().to_string(),
    };
    let drop = match retained.drop.len() {
        0 => dash(),
        count => format!("{count}, {}", output::bytes(retained.bytes())),
    };
    vec![
        base.tp().topic().to_string(),
        base.tp().partition().to_string(),
        base.incarnation().to_string(),
        entries.to_string(),
        output::bytes(object_bytes),
        merge,
        log_start,
        drop,
        format!("{} by {}", output::time(Some(base.manifest().committed_at_ms)), base.writer()),
    ]
}

fn line(base: &Snapshot, todo: &Todo, policy: Policy) -> serde_json::Value {
    let Totals { entries, object_bytes, .. } = base.totals();
    let retained = &todo.retained;
    json!({
        "topic": base.tp().topic().as_str(), "partition": base.tp().partition(),
        "incarnation": base.incarnation(), "manifest": base.number(),
        "archives": entries, "bytes": object_bytes,
        "merge": { "archives": todo.merge_inputs(), "into": todo.merges.len(),
                   "bytes": todo.merge_bytes(), "target": policy.merge_target },
        "log_start": base.log_start(), "becomes": retained.log_start,
        "by": retained.limit.as_str(),
        "drop": { "archives": retained.drop.len(), "bytes": retained.bytes() },
        "committed_at": base.manifest().committed_at_ms, "writer": base.writer().as_str(),
    })
}
