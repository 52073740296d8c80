//! `tierd dump-wal`: the frames of WAL segments, as they lie.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::run::WalFormatArg;
use super::{Outcome, output};
use crate::wal::{FrameRef, SegmentReader, SegmentScan, WalDir, scan};

#[derive(Debug, Args)]
pub(super) struct DumpWalArgs {
    /// Segments: …/TOPIC/PARTITION/wal_PARTITION_ID.log
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How the broker writes its WAL
    #[arg(long, value_name = "FORMAT", default_value = "chronik")]
    wal_format: WalFormatArg,
}

pub(super) fn dump_wal(args: DumpWalArgs, json: bool) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Well;
    for file in &args.files {
        if dump(file, args.wal_format, json)? == Outcome::CheckFailed {
            outcome = Outcome::CheckFailed;
        }
    }
    Ok(outcome)
}

fn dump(path: &Path, format: WalFormatArg, as_json: bool) -> anyhow::Result<Outcome> {
    let (tp, segment) = WalDir::segment(path, format.format())?;
    let found = scan(format.format(), &tp, &segment)?;
    let mut reader = SegmentReader::open(format.format(), &tp, &segment)?;
    let mut table = output::Table::new(&[
        ">byte",
        ">frame",
        ">base",
        ">last",
        ">records",
        ">batch",
        "codec",
        "flags",
        ">producer",
        ">sequence",
        "newest record",
    ]);
    for frame in &found.frames {
        let batch = reader.batch(frame)?;
        let header = batch.header();
        let flags = flags(frame, header);
        if as_json {
            output::json_line(&json!({
                "file": path, "position": frame.position, "frame_bytes": frame.frame_len,
                "base_offset": header.base_offset, "last_offset": header.last_offset(),
                "records": header.record_count, "batch_bytes": frame.wire_len,
                "codec": header.codec().to_string(), "attributes": header.attributes,
                "producer_id": header.producer_id, "base_sequence": header.base_sequence,
                "max_timestamp": header.max_timestamp, "flags": flags,
            }))?;
            continue;
        }
        table.row(vec![
            frame.position.to_string(),
            frame.frame_len.to_string(),
            header.base_offset.to_string(),
            header.last_offset().to_string(),
            header.record_count.to_string(),
            frame.wire_len.to_string(),
            header.codec().to_string(),
            if flags.is_empty() { "-".to_owned() } else { flags.join(",") },
            header.producer_id.to_string(),
            header.base_sequence.to_string(),
            output::time(Some(header.max_timestamp)),
        ]);
    }
    if !as_json {
        output::say(&format!(
            "{}: {tp}, segment {}, {}\n",
            path.display(),
            segment.id,
            output::bytes(found.len)
        ))?;
        table.print().context("cannot print")?;
    }
    complain(path, &found);
    Ok(if found.damaged.is_empty() { Outcome::Well } else { Outcome::CheckFailed })
}

fn flags(frame: &FrameRef, header: &crate::record::BatchHeader) -> Vec<&'static str> {
    [
        (header.is_transactional(), "transactional"),
        (header.is_control(), "control"),
        (header.is_log_append_time(), "log-append-time"),
        (frame.flags.batch_crc_bad(), "bad-crc"),
        (frame.flags.rebuilt(), "rebuilt"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect()
}

fn complain(path: &Path, found: &SegmentScan) {
    let path = path.display();
    for damage in &found.damaged {
        eprintln!(
            "tierd: {path}: bytes {}..{} are damaged: {}",
            damage.start, damage.end, damage.why
        );
    }
    if let Some(at) = found.torn_at {
        eprintln!("tierd: {path}: ends in a torn frame at byte {at}");
    }
    for line in found.skipped.lines() {
        eprintln!("tierd: {path}: {line}");
    }
}
