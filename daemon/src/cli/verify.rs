//! `tierd verify`: checks that everything archived can be read.

use clap::Args;
use serde_json::json;

use super::{Outcome, output};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::record::TopicName;
use crate::upkeep::{Check, Health, verify_partition};

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
}

pub(super) async fn verify(
    args: VerifyArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let rooms = Rooms::open(&config)?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let wanted: Vec<_> = rooms
        .catalog
        .partitions()
        .await?
        .into_iter()
        .filter(|(tp, _)| topic.as_ref().is_none_or(|topic| topic == tp.topic()))
        .filter(|(tp, _)| args.partition.is_none_or(|partition| partition == tp.partition()))
        .collect();
    if wanted.is_empty() {
        anyhow::bail!(
            "nothing to verify: no such partition in this store and cluster; see `tierd ls`"
        );
    }
    let mut table = output::Table::new(&[
        "topic",
        ">partition",
        "health",
        ">manifest",
        ">archives",
        ">read",
        ">overlaps",
        ">bad crcs",
    ]);
    let bar = indicatif::ProgressBar::new(wanted.len() as u64).with_message("partitions");
    let mut problems = Vec::new();
    for (tp, incarnation) in wanted {
        let check = verify_partition(
            &rooms.store,
            &rooms.catalog,
            &rooms.reader,
            &tp,
            incarnation,
            args.deep,
        )
        .await?;
        bar.inc(1);
        let health = worst(&check);
        if json {
            output::json_line(&json!({
                "topic": tp.topic().as_str(), "partition": tp.partition(),
                "health": health.to_string(), "generation": check.generation,
                "archives": check.archives, "bytes": check.bytes,
                "overlaps": check.overlaps, "bad_crcs": check.bad_crcs,
                "problems": check.problems.iter().map(|problem| json!({
                    "health": problem.health.to_string(), "object": problem.object,
                    "first": problem.range.map(|r| r.base()), "last": problem.range.map(|r| r.last()),
                    "why": problem.why,
                })).collect::<Vec<_>>(),
            }))?;
        }
        table.row(vec![
            tp.topic().to_string(),
            tp.partition().to_string(),
            health.to_string(),
            check.generation.to_string(),
            check.archives.to_string(),
            output::bytes(check.bytes),
            check.overlaps.to_string(),
            check.bad_crcs.to_string(),
        ]);
        problems.extend(check.problems);
    }
    bar.finish_and_clear();
    if !json {
        table.print()?;
    }
    for problem in &problems {
        let range = problem.range.map(|range| format!(", offsets {range}")).unwrap_or_default();
        eprintln!("tierd: {} {}{range}: {}", problem.health, problem.object, problem.why);
    }
    Ok(if problems.is_empty() { Outcome::Well } else { Outcome::CheckFailed })
}

fn worst(check: &Check) -> Health {
    let has = |health| check.problems.iter().any(|problem| problem.health == health);
    if has(Health::Lost) {
        Health::Lost
    } else if has(Health::Corrupt) {
        Health::Corrupt
    } else {
        Health::Ok
    }
}
