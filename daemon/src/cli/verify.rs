//! `tierd verify`: checks that everything archived can be read.

use clap::Args;
use serde_json::json;

use super::{Outcome, output};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::record::{TopicName, TopicPartition};
use crate::upkeep::{Check, Checked, Health, verify_partition};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Only this topic
    topic: Option<String>,
    /// Only this partition of it
    #[arg(requires = "topic")]
    partition: Option<i32>,
    /// Read every object whole and compare every byte with its digests
    #[arg(long)]
    deep: bool,
    /// Also list the archives that are OK; --json always does
    #[arg(long)]
    all: bool,
}

const HEADS: &[&str] =
    &["topic", ">partition", "health", ">manifest", ">archives", ">read", ">overlaps", ">bad crcs"];

pub(super) async fn verify(
    args: VerifyArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let rooms = Rooms::open(&config)?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let wanted = super::wanted(&rooms, topic.as_ref(), args.partition).await?;
    if wanted.is_empty() {
        anyhow::bail!(
            "nothing to verify: no such partition in this store and cluster; see `tierd ls`"
        );
    }
    let mut table = output::Table::new(HEADS);
    let mut objects = output::Table::new(&["health", "offsets", "object", "why"]);
    let mut problems = Vec::new();
    let bar = indicatif::ProgressBar::new(wanted.len() as u64).with_message("partitions");
    for (tp, incarnation) in wanted {
        let (store, catalog, reader) = (&rooms.store, &rooms.catalog, &rooms.reader);
        let now = rooms.clock.now_ms();
        let check =
            verify_partition(store, catalog, reader, &tp, incarnation, args.deep, now).await?;
        bar.inc(1);
        if json {
            output::json_line(&shown(&tp, incarnation, &check))?;
        }
        table.row(row(&tp, &check));
        for object in &check.objects {
            if args.all || object.health > Health::Overlap {
                objects.row(object_row(object));
            }
        }
        problems.extend(check.problems().cloned());
    }
    bar.finish_and_clear();
    if !json {
        table.print()?;
        if !objects.is_empty() {
            output::say("\n")?;
            objects.print()?;
        }
    }
    for problem in &problems {
        let range = problem.range.map(|range| format!(", offsets {range}")).unwrap_or_default();
        eprintln!("tierd: {} {}{range}: {}", problem.health, problem.object, problem.why);
    }
    Ok(if problems.is_empty() { Outcome::Well } else { Outcome::CheckFailed })
}

fn row(tp: &TopicPartition, check: &Check) -> Vec<String> {
    vec![
        tp.topic().to_string(),
        tp.partition().to_string(),
        check.worst().to_string(),
        check.generation.to_string(),
        check.archives.to_string(),
        output::bytes(check.bytes),
        check.overlaps.to_string(),
        check.bad_crcs.to_string(),
    ]
}

fn object_row(object: &Checked) -> Vec<String> {
    let range = object.range.map_or_else(|| "-".to_owned(), |range| range.to_string());
    vec![object.health.to_string(), range, object.object.clone(), object.why.clone()]
}

fn shown(tp: &TopicPartition, incarnation: u32, check: &Check) -> serde_json::Value {
    let object = |object: &Checked| {
        json!({
            "health": object.health.as_str(), "object": object.object, "length": object.length,
            "first": object.range.map(|r| r.base()), "last": object.range.map(|r| r.last()),
            "why": object.why,
        })
    };
    let counts: serde_json::Map<_, _> = Health::ALL
        .into_iter()
        .map(|health| (health.as_str().to_lowercase(), check.count(health).into()))
        .collect();
    json!({
        "topic": tp.topic().as_str(), "partition": tp.partition(), "incarnation": incarnation,
        "health": check.worst().as_str(), "generation": check.generation,
        "archives": check.archives, "bytes": check.bytes,
        "overlaps": check.overlaps, "bad_crcs": check.bad_crcs, "counts": counts,
        "objects": check.objects.iter().map(object).collect::<Vec<_>>(),
        "problems": check.problems().map(object).collect::<Vec<_>>(),
    })
}
