//! `tierd rebuild-manifest`: rebuilds catalogs that lost objects from the bucket alone.

use clap::Args;
use serde_json::json;

use super::{Change, Outcome, output};
use crate::config::Config;
use crate::record::{TopicName, TopicPartition};
use crate::upkeep::{Rebuild, Rebuilt};

#[derive(Debug, Args)]
pub(super) struct RebuildArgs {
    /// Only this topic
    topic: Option<String>,
    /// Only this partition of it
    #[arg(requires = "topic")]
    partition: Option<i32>,
    /// Rebuild also where the newest manifest can be read and nothing seems wrong, and take in archives that lie behind it
    #[arg(long)]
    even_if_readable: bool,
    #[command(flatten)]
    change: Change,
}

const HEADS: &[&str] = &[
    "topic",
    ">partition",
    ">life",
    "state",
    ">kept",
    ">taken in",
    ">left out",
    ">gaps",
    ">log start",
    ">through",
];

pub(super) async fn rebuild(
    args: RebuildArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let rooms = args.change.rooms(&config)?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let wanted = super::wanted(&rooms, topic.as_ref(), args.partition).await?;
    if wanted.is_empty() {
        anyhow::bail!("no such partition in this store and cluster; see `tierd ls`");
    }
    let (catalog, reader) = (std::sync::Arc::clone(&rooms.catalog), rooms.reader.clone());
    let mut rebuild = Rebuild::new(rooms.store.clone(), catalog, reader);
    let anyway = args.even_if_readable;
    let mut table = output::Table::new(HEADS);
    let bar = indicatif::ProgressBar::new(wanted.len() as u64).with_message("partitions");
    let mut needed = 0;
    for (tp, life) in wanted {
        let rebuilt = match args.change.confirm {
            true => rebuild.confirm(&tp, life, anyway).await?,
            false => rebuild.plan(&tp, life, anyway).await?,
        };
        bar.inc(1);
        needed += usize::from(rebuilt.is_needed() || anyway);
        if json {
            output::json_line(&shown(&tp, life, &rebuilt))?;
            continue;
        }
        table.row(row(&tp, life, &rebuilt, anyway));
        bar.suspend(|| tell(&tp, &rebuilt));
    }
    bar.finish_and_clear();
    if json {
        return Ok(Outcome::Well);
    }
    table.print()?;
    output::say(match (needed, args.change.confirm) {
        (0, _) => "nothing to rebuild\n",
        (_, true) => "rebuilt; `tierd verify` says what is still not well\n",
        (_, false) => "nothing was changed; add --confirm to rebuild\n",
    })?;
    Ok(Outcome::Well)
}

fn row(tp: &TopicPartition, life: u32, rebuilt: &Rebuilt, anyway: bool) -> Vec<String> {
    let state = match (rebuilt.committed, rebuilt.base) {
        (Some(number), _) => format!("rebuilt as manifest {number}"),
        (None, Some(number)) if rebuilt.is_needed() => {
            format!("damaged behind or in manifest {number}")
        }
        (None, Some(number)) if anyway => format!("manifest {number} can be read"),
        (None, Some(number)) => format!("manifest {number} can be read, left alone"),
        (None, None) if rebuilt.is_needed() => "no manifest can be read".to_owned(),
        (None, None) => "nothing was committed".to_owned(),
    };
    vec![
        tp.topic().to_string(),
        tp.partition().to_string(),
        life.to_string(),
        state,
        rebuilt.kept.to_string(),
        rebuilt.taken_in.len().to_string(),
        rebuilt.left_out.len().to_string(),
        rebuilt.gaps.len().to_string(),
        rebuilt.log_start.to_string(),
        rebuilt.archived_through.to_string(),
    ]
}

/// What a row has no room for, on stderr.
fn tell(tp: &TopicPartition, rebuilt: &Rebuilt) {
    for why in &rebuilt.damage {
        eprintln!("tierd: {tp}: {why}");
    }
    for gap in &rebuilt.gaps {
        eprintln!("tierd: {tp}: offsets {} are in no archive: a gap, {}", gap.range, gap.kind);
    }
    for one in &rebuilt.left_out {
        eprintln!("tierd: {tp}: left out {}, offsets {}: {}", one.object, one.range, one.why);
    }
    for what in &rebuilt.unknown {
        eprintln!("tierd: {tp}: not known: {what}");
    }
}

fn shown(tp: &TopicPartition, life: u32, rebuilt: &Rebuilt) -> serde_json::Value {
    let taken_in = rebuilt.taken_in.iter().map(|entry| entry.key().to_string());
    let left_out = rebuilt.left_out.iter().map(|one| {
        json!({
            "object": one.object, "first": one.range.base(), "last": one.range.last(),
            "why": one.why,
        })
    });
    let gaps = rebuilt.gaps.iter().map(|gap| {
        json!({
            "first": gap.range.base(), "last": gap.range.last(), "kind": gap.kind.as_str(),
        })
    });
    json!({
        "topic": tp.topic().as_str(), "partition": tp.partition(), "incarnation": life,
        "base": rebuilt.base, "damage": rebuilt.damage, "kept": rebuilt.kept,
        "taken_in": taken_in.collect::<Vec<_>>(), "left_out": left_out.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(), "log_start": rebuilt.log_start,
        "archived_through": rebuilt.archived_through, "unknown": rebuilt.unknown,
        "committed": rebuilt.committed,
    })
}
