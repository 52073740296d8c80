//! `tierd inspect`: what is inside an archive or a manifest.

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::{Outcome, ls, output};
use crate::archive::{Encoding, Footer, KeyFilter, Toc, TocFile};
use crate::catalog::{ClusterName, MANIFEST_BYTES_MAX, Manifest, Open};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::store::{ObjectKey, Store};

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Name of the object, as `tierd ls TOPIC PARTITION` prints it
    object: String,
    /// List every chunk of an archive
    #[arg(long)]
    chunks: bool,
}

pub(super) async fn inspect(
    args: InspectArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let rooms = Rooms::open(&config)?;
    let key = ObjectKey::decode(&args.object).context(
        "give the name of an archive or a manifest, as `tierd ls TOPIC PARTITION` prints it",
    )?;
    match key {
        ObjectKey::Archive { .. } => archive(&rooms.store, &key, args.chunks, json).await?,
        ObjectKey::Manifest { .. } => manifest(&rooms.store, &key, &config.cluster()?).await?,
        _ => anyhow::bail!("{} is neither an archive nor a manifest", args.object),
    }
    Ok(Outcome::Well)
}

async fn manifest(store: &Store, key: &ObjectKey, cluster: &ClusterName) -> anyhow::Result<()> {
    let bytes = store.get(key, MANIFEST_BYTES_MAX as u64).await?;
    let manifest = Manifest::decode(&bytes, cluster).with_context(|| key.to_string())?;
    let (open, open_in) = match &manifest.open {
        Open::Inline(open) => (open.clone(), None),
        Open::Side(side) => (Vec::new(), Some(side.key(&manifest.of).to_string())),
    };
    let value = json!({
        "object": key.to_string(),
        "number": manifest.number,
        "topic": manifest.of.tp.topic().as_str(),
        "partition": manifest.of.tp.partition(),
        "incarnation": manifest.of.incarnation,
        "writer": manifest.writer.as_str(),
        "writer_epoch": manifest.writer_epoch,
        "committed_at": output::time(Some(manifest.committed_at_ms)),
        "ends_block": manifest.ends_block,
        "predecessor": blake3::Hash::from_bytes(manifest.predecessor).to_hex().as_str(),
        "log_start": manifest.log_start,
        "archived_through": manifest.archived_through,
        "open_transactions": open.iter().map(|open| json!({
            "producer_id": open.producer_id, "first_offset": open.first_offset,
        })).collect::<Vec<_>>(),
        "open_transactions_in": open_in,
        "pages": manifest.pages.iter().map(|page| json!({
            "object": page.key(&manifest.of).to_string(), "first": page.reach.base(),
            "last": page.reach.last(), "archives": page.totals.entries, "gaps": page.totals.gaps,
        })).collect::<Vec<_>>(),
        "archives": manifest.recent.entries.iter().map(ls::archive).collect::<Vec<_>>(),
        "gaps": manifest.recent.gaps.iter().map(|gap| json!({
            "first": gap.range.base(), "last": gap.range.last(), "kind": gap.kind.to_string(),
        })).collect::<Vec<_>>(),
    });
    output::say(&(serde_json::to_string_pretty(&value)? + "\n"))
}

async fn archive(store: &Store, key: &ObjectKey, chunks: bool, json: bool) -> anyhow::Result<()> {
    let length =
        store.head(key).await?.with_context(|| format!("{key} is not in the store {store}"))?;
    let place = Footer::range(length)
        .with_context(|| format!("{key} has {length} bytes, too few for an archive"))?;
    let footer = Footer::decode(&store.get_range(key, place).await?, length)?;
    let toc = Toc::decode(&store.get_range(key, footer.toc.range()).await?, &footer.toc)?;
    let keys = distinct_keys(store, key, &toc).await?;
    if json {
        return output::json_line(&as_json(key, length, &toc, keys, chunks));
    }
    output::say(&format!(
        "{key}\n{}, contents at byte {}\n\n",
        output::bytes(length),
        footer.toc.offset
    ))?;
    let mut table =
        output::Table::new(&["file", ">raw", ">packed", ">chunks", ">stored", ">deflated"]);
    for file in &toc.files {
        let (packed, stored, deflated) = packing(&toc, file);
        table.row(vec![
            file.name.clone(),
            output::bytes(file.raw_len),
            output::bytes(packed),
            file.chunks.len().to_string(),
            stored.to_string(),
            deflated.to_string(),
        ]);
    }
    table.print()?;
    if let Some(keys) = keys {
        output::say(&format!("\nabout {keys} distinct keys\n"))?;
    }
    if !toc.epochs.is_empty() {
        let epochs: Vec<String> =
            toc.epochs.iter().map(|(epoch, from)| format!("{epoch} from {from}")).collect();
        output::say(&format!("\nleader epochs: {}\n", epochs.join(", ")))?;
    }
    for ended in &toc.ended {
        let how = if ended.aborted { "aborted" } else { "committed" };
        let from = ended.first_offset.map_or_else(|| "before".to_owned(), |from| from.to_string());
        output::say(&format!(
            "{how}: producer {}, from {from}, marker at {}\n",
            ended.producer_id, ended.marker
        ))?;
    }
    for open in &toc.open {
        output::say(&format!("open: producer {}, from {}\n", open.producer_id, open.first_offset))?;
    }
    if chunks {
        output::say("\n")?;
        chunk_table(&toc).print()?;
    }
    Ok(())
}

/// Distinct keys by the archive's key filter, about; `None` where it has none.
async fn distinct_keys(store: &Store, key: &ObjectKey, toc: &Toc) -> anyhow::Result<Option<u64>> {
    let Some(file) = toc.keys() else { return Ok(None) };
    let mut raw = Vec::new();
    for chunk in toc.chunks_of(file) {
        let packed = store.get_range(key, chunk.place..chunk.end()).await?;
        raw.extend_from_slice(&chunk.unpack(packed)?);
    }
    Ok(Some(KeyFilter::decode(raw.into())?.keys()))
}

/// Packed bytes of a file, and how many of its chunks are stored and deflated.
fn packing(toc: &Toc, file: &TocFile) -> (u64, usize, usize) {
    let chunks = toc.chunks_of(file);
    let packed = chunks.iter().map(|chunk| u64::from(chunk.packed)).sum();
    let stored = chunks.iter().filter(|chunk| chunk.encoding == Encoding::Stored).count();
    (packed, stored, chunks.len() - stored)
}

fn encoding(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Stored => "stored",
        Encoding::Deflate => "deflate",
    }
}

fn chunk_table(toc: &Toc) -> output::Table {
    let mut table = output::Table::new(&[
        "file",
        ">at byte",
        ">packed",
        ">raw",
        "encoding",
        ">first",
        ">last",
        "newest record",
    ]);
    for file in &toc.files {
        for chunk in toc.chunks_of(file) {
            table.row(vec![
                file.name.clone(),
                chunk.place.to_string(),
                chunk.packed.to_string(),
                chunk.raw.to_string(),
                encoding(chunk.encoding).to_owned(),
                chunk.first.to_string(),
                chunk.last.to_string(),
                output::time(Some(chunk.max_timestamp)),
            ]);
        }
    }
    table
}

fn as_json(key: &ObjectKey, length: u64, toc: &Toc, keys: Option<u64>, chunks: bool) -> Value {
    let files: Vec<Value> = toc
        .files
        .iter()
        .map(|file| {
            let (packed, stored, deflated) = packing(toc, file);
            let mut value = json!({
                "name": file.name, "raw_bytes": file.raw_len, "packed_bytes": packed,
                "chunks_stored": stored, "chunks_deflated": deflated,
            });
            if chunks {
                let all = toc.chunks_of(file).iter().map(|chunk| {
                    json!({
                        "place": chunk.place, "packed": chunk.packed, "raw": chunk.raw,
                        "encoding": encoding(chunk.encoding), "first": chunk.first,
                        "last": chunk.last, "max_timestamp": chunk.max_timestamp,
                    })
                });
                value["chunks"] = all.collect();
            }
            value
        })
        .collect();
    json!({
        "object": key.to_string(),
        "length": length,
        "files": files,
        "distinct_keys": keys,
        "epochs": toc.epochs,
        "ended": toc.ended.iter().map(|ended| json!({
            "producer_id": ended.producer_id, "first_offset": ended.first_offset,
            "marker": ended.marker, "aborted": ended.aborted,
        })).collect::<Vec<_>>(),
        "open": toc.open.iter().map(|open| json!({
            "producer_id": open.producer_id, "first_offset": open.first_offset,
        })).collect::<Vec<_>>(),
    })
}
