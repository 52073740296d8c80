//! `tierd ls`: topics, partitions, archives.

use clap::Args;
use serde_json::json;

use super::{Outcome, output};
use crate::catalog::ArchiveEntry;
use crate::config::Config;
use crate::daemon::Rooms;
use crate::fetch::Description;
use crate::record::{TopicName, TopicPartition};

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only this topic
    topic: Option<String>,
    /// The archives of this partition
    partition: Option<i32>,
    /// Only this life of a topic that was deleted and made again, counted from 0
    /// [default: all; for the archives of a partition the newest]
    #[arg(long, value_name = "N")]
    incarnation: Option<u32>,
    /// Whose ledger says how far the broker may delete its WAL [default: host name]
    #[arg(long, value_name = "ID", env = "TIERD_WRITER_ID")]
    writer_id: Option<String>,
}

pub(super) async fn ls(args: LsArgs, mut config: Config, json: bool) -> anyhow::Result<Outcome> {
    config.writer_id = args.writer_id.or(config.writer_id);
    let rooms = Rooms::open(&config)?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    match (topic, args.partition) {
        (Some(topic), Some(partition)) => {
            let tp = TopicPartition::new(topic, partition)?;
            archives(&rooms, &tp, args.incarnation, json).await
        }
        (topic, _) => partitions(&rooms, topic.as_ref(), args.incarnation, json).await,
    }
}

async fn partitions(
    rooms: &Rooms,
    topic: Option<&TopicName>,
    incarnation: Option<u32>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let mut table = output::Table::new(&[
        "topic",
        ">partition",
        ">life",
        ">log start",
        ">archived through",
        ">releasable",
        ">archives",
        ">batches",
        ">records",
        ">size",
        ">gaps",
        ">overlaps",
        "newest record",
    ]);
    let all = rooms.fetcher.all_lives().await?.into_iter();
    let wanted = all
        .filter(|(tp, _)| topic.is_none_or(|topic| topic == tp.topic()))
        .filter(|(_, life)| incarnation.is_none_or(|wanted| wanted == *life))
        .map(|(tp, life)| (tp, Some(life)))
        .collect();
    let mut listed = 0;
    for (tp, found) in rooms.fetcher.describe_all(wanted).await {
        let Some(found) = found? else { continue };
        let releasable = releasable(rooms, &tp, &found).await?;
        listed += 1;
        if json {
            output::json_line(&description(&tp, &found, releasable))?;
            continue;
        }
        table.row(vec![
            tp.topic().to_string(),
            tp.partition().to_string(),
            found.state.incarnation.to_string(),
            found.state.log_start.to_string(),
            found.state.archived_through.to_string(),
            releasable.map_or_else(|| "-".to_owned(), |through| through.to_string()),
            found.archives.to_string(),
            found.batches.to_string(),
            found.records.to_string(),
            output::bytes(found.bytes),
            found.gaps.len().to_string(),
            found.overlaps.to_string(),
            output::time(found.max_timestamp),
        ]);
    }
    if listed == 0 {
        let what =
            topic.map_or_else(|| "nothing".to_owned(), |topic| format!("nothing of topic {topic}"));
        anyhow::bail!("{what} is archived in this store and cluster; see --store and --cluster");
    }
    if !json {
        table.print()?;
    }
    Ok(Outcome::Well)
}

/// How far the writer's broker may delete, as its ledger has it; `None` where it
/// remembers nothing of this life.
async fn releasable(
    rooms: &Rooms,
    tp: &TopicPartition,
    found: &Description,
) -> anyhow::Result<Option<i64>> {
    let ledger = rooms.catalog.ledger(tp).await?;
    let ledger = ledger.filter(|ledger| ledger.incarnation() == found.state.incarnation);
    Ok(ledger.map(|ledger| ledger.releasable_through().min(found.state.archived_through)))
}

fn description(
    tp: &TopicPartition,
    found: &Description,
    releasable: Option<i64>,
) -> serde_json::Value {
    json!({
        "topic": tp.topic().as_str(),
        "partition": tp.partition(),
        "incarnation": found.state.incarnation,
        "generation": found.state.generation,
        "log_start": found.state.log_start,
        "archived_through": found.state.archived_through,
        "releasable_through": releasable,
        "last_stable_offset": found.state.last_stable_offset,
        "archives": found.archives,
        "batches": found.batches,
        "records": found.records,
        "bytes": found.bytes,
        "log_bytes": found.log_bytes,
        "overlaps": found.overlaps,
        "gaps": found.gaps.iter().map(|gap| json!({
            "first": gap.range.base(), "last": gap.range.last(), "kind": gap.kind.to_string(),
        })).collect::<Vec<_>>(),
        "min_timestamp": found.min_timestamp,
        "max_timestamp": found.max_timestamp,
    })
}

async fn archives(
    rooms: &Rooms,
    tp: &TopicPartition,
    incarnation: Option<u32>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let Some((_, entries)) = rooms.fetcher.archives(tp, incarnation).await? else {
        anyhow::bail!(
            "nothing of {tp} is archived in this store and cluster; see --store and --cluster"
        );
    };
    let mut table = output::Table::new(&[
        ">first",
        ">last",
        ">batches",
        ">records",
        ">overlaps",
        ">size",
        ">raw",
        "newest record",
        "archive",
    ]);
    for entry in &entries {
        if json {
            output::json_line(&archive(entry))?;
            continue;
        }
        let summary = &entry.summary;
        table.row(vec![
            summary.range.base().to_string(),
            summary.range.last().to_string(),
            summary.batches.to_string(),
            summary.records.to_string(),
            summary.overlaps.to_string(),
            output::bytes(summary.length),
            output::bytes(summary.log_bytes),
            output::time((summary.records > 0).then_some(summary.max_timestamp)),
            entry.key().to_string(),
        ]);
    }
    if !json {
        table.print()?;
    }
    Ok(Outcome::Well)
}

/// What a manifest says of an archive.
pub(super) fn archive(entry: &ArchiveEntry) -> serde_json::Value {
    let summary = &entry.summary;
    json!({
        "object": entry.key().to_string(),
        "first": summary.range.base(),
        "last": summary.range.last(),
        "tiles": summary.tiles,
        "built_for": entry.built_for,
        "batches": summary.batches,
        "records": summary.records,
        "overlaps": summary.overlaps,
        "bad_crcs": summary.bad_crcs,
        "transactions": summary.transactions,
        "log_bytes": summary.log_bytes,
        "length": summary.length,
        "digest": blake3::Hash::from_bytes(summary.digest).to_hex().as_str(),
        "toc": { "offset": summary.toc.offset, "length": summary.toc.length },
        "index_level": summary.index_level,
        "min_timestamp": (summary.records > 0).then_some(summary.min_timestamp),
        "max_timestamp": (summary.records > 0).then_some(summary.max_timestamp),
        "leader_epochs": summary.leader_epochs,
    })
}
