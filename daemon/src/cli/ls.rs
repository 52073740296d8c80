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
}

pub(super) async fn ls(args: LsArgs, config: Config, json: bool) -> anyhow::Result<Outcome> {
    let rooms = Rooms::open(&config)?;
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    match (topic, args.partition) {
        (Some(topic), Some(partition)) => {
            archives(&rooms, &TopicPartition::new(topic, partition)?, json).await
        }
        (topic, _) => partitions(&rooms, topic.as_ref(), json).await,
    }
}

async fn partitions(
    rooms: &Rooms,
    topic: Option<&TopicName>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let mut table = output::Table::new(&[
        "topic",
        ">partition",
        ">log start",
        ">archived through",
        ">archives",
        ">batches",
        ">records",
        ">size",
        ">gaps",
        ">overlaps",
        "newest record",
    ]);
    let all = rooms.fetcher.partitions().await?.into_iter();
    let wanted = all
        .filter(|(tp, _)| topic.is_none_or(|topic| topic == tp.topic()))
        .map(|(tp, incarnation)| (tp, Some(incarnation)))
        .collect();
    let mut listed = 0;
    for (tp, found) in rooms.fetcher.describe_all(wanted).await {
        let Some(found) = found? else { continue };
        listed += 1;
        if json {
            output::json_line(&description(&tp, &found))?;
            continue;
        }
        table.row(vec![
            tp.topic().to_string(),
            tp.partition().to_string(),
            found.state.log_start.to_string(),
            found.state.archived_through.to_string(),
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

fn description(tp: &TopicPartition, found: &Description) -> serde_json::Value {
    json!({
        "topic": tp.topic().as_str(),
        "partition": tp.partition(),
        "incarnation": found.state.incarnation,
        "generation": found.state.generation,
        "log_start": found.state.log_start,
        "archived_through": found.state.archived_through,
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

async fn archives(rooms: &Rooms, tp: &TopicPartition, json: bool) -> anyhow::Result<Outcome> {
    let Some((_, entries)) = rooms.fetcher.archives(tp, None).await? else {
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
