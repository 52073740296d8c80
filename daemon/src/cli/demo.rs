//! `tierd demo`: the whole loop on a real WAL, in a temporary directory.

mod picture;

use std::path::Path;

use anyhow::Context;
use clap::Args;
use tierd_client::{ArchiveClient, FetchArgs, StreamItem};
use tokio_util::sync::CancellationToken;

use super::{Outcome, demo_wal, output, records, run};
use crate::archive::batches_in;
use crate::config::{self, Config};
use crate::daemon::{self, Listeners, Rooms};
use crate::indexer::RunReport;
use crate::record::OffsetRange;
use crate::wal::{WalDir, WalFormat};

/// Records shown of one topic.
const RECORDS_SHOWN: usize = 3;
/// The topic of which records are shown.
const TOPIC_SHOWN: &str = "orders";

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Exit after the loop instead of serving on
    #[arg(long)]
    once: bool,
    /// Where to serve gRPC [default: 127.0.0.1:9095, with --once any free port]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where to serve probes and metrics [default: 127.0.0.1:9096, with --once any free port]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
}

pub(super) async fn demo(args: DemoArgs, _config: Config) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir().context("the demo needs a temporary folder")?;
    let config = settings(folder.path(), &args);
    let wal_dir = folder.path().join("wal");
    output::say(
        "1. A broker's WAL, three runs, the last one killed, is archived, segment by segment:\n\n",
    )?;
    let rooms = Rooms::open_for_writing(&config)?;
    let report = archive(&rooms, &config, &wal_dir).await?;
    run::print(&report)?;

    let listeners = Listeners::bind(&config).await?;
    let address = listeners.grpc.first().map(ToString::to_string).context("nowhere to listen")?;
    let http = listeners.http.to_string();
    let stop = CancellationToken::new();
    let server = {
        let (rooms, stop) = (rooms.clone(), stop.clone());
        let marks = Some(rooms.watermarks.clone());
        tokio::spawn(async move { daemon::serve(&rooms, marks, listeners, stop).await })
    };
    output::say(&format!(
        "\n2. Fetched back over gRPC from {address}, every CRC-32C checked:\n\n"
    ))?;
    let read = read_back(&rooms, &address).await?;
    read.table.print()?;
    output::say(&format!(
        "\n3. The first records of {TOPIC_SHOWN}, partition 0:\n\n{}",
        read.shown
    ))?;

    picture::compact(&rooms, (TOPIC_SHOWN, 0)).await?;
    let again = read_back(&rooms, &address).await?;
    let same = again.digest == read.digest;
    output::say(match same {
        true => "Fetched again: every batch is the same, byte for byte.\n",
        false => "Fetched again: THE BATCHES DIFFER.\n",
    })?;
    let whole = read.whole && again.whole && same;

    if !args.once {
        output::say(&farewell(&address, &http, config.store()?))?;
        daemon::Signals::listen()?.next().await;
    }
    stop.cancel();
    server.await.context("the server did not end")??;
    Ok(if whole && !report.failed() { Outcome::Well } else { Outcome::CheckFailed })
}

fn settings(folder: &Path, args: &DemoArgs) -> Config {
    let any = |given: &Option<String>, usual: &str| {
        let usual = if args.once { "127.0.0.1:0" } else { usual };
        given.clone().unwrap_or_else(|| usual.to_owned())
    };
    Config {
        store: Some(format!("file://{}", folder.join("store").display())),
        data_dir: Some(folder.join("data")),
        writer_id: Some("demo".to_owned()),
        listen: Some(vec![any(&args.listen, config::LISTEN_DEFAULT)]),
        http: Some(any(&args.http, config::HTTP_DEFAULT)),
        ..Config::default()
    }
}

/// Archives the WAL as it is written.
async fn archive(rooms: &Rooms, config: &Config, wal_dir: &Path) -> anyhow::Result<RunReport> {
    let mut sum: Option<RunReport> = None;
    for round in 0..demo_wal::ROUNDS {
        demo_wal::write(wal_dir, round)
            .with_context(|| format!("cannot write {}", wal_dir.display()))?;
        let wal = WalDir::open(wal_dir, WalFormat::Chronik)?;
        let mut report = run::archive_once(rooms, config, wal, config.live(true)?).await?;
        for before in sum.into_iter().flat_map(|sum| sum.partitions) {
            if let Some(now) = report.partitions.iter_mut().find(|now| now.tp == before.tp) {
                now.known -= before.batches + before.overlaps;
                now.batches += before.batches;
                now.overlaps += before.overlaps;
                now.archives += before.archives;
                now.bytes += before.bytes;
                now.gaps.extend(before.gaps);
            }
        }
        sum = Some(report);
    }
    let mut sum = sum.context("the demo has no WAL")?;
    for one in &mut sum.partitions {
        let Some(newest) = rooms.catalog.load(&one.tp, None).await? else { continue };
        let log = OffsetRange::new(0, newest.archived_through());
        let declared = newest.gaps_in(log.context("a log that ends before it begins")?).await?;
        // A later segment may have filled it.
        one.gaps.retain(|gap| declared.contains(gap));
    }
    Ok(sum)
}

/// What came back through the server.
struct ReadBack {
    /// Whether all of it did.
    whole: bool,
    table: output::Table,
    /// Some records, as JSON.
    shown: String,
    /// BLAKE3 of all batches.
    digest: blake3::Hash,
}

/// Reads every partition through the server.
async fn read_back(rooms: &Rooms, address: &str) -> anyhow::Result<ReadBack> {
    let client = ArchiveClient::connect_lazy(address)?;
    let mut table =
        output::Table::new(&["topic", ">partition", ">batches", ">records", ">bytes", "crc-32c"]);
    let mut shown = String::new();
    let mut whole = true;
    let mut digest = blake3::Hasher::new();
    for (tp, _) in rooms.fetcher.partitions().await? {
        let (mut batches, mut records, mut bytes, mut wrong, mut lines) = (0, 0, 0, 0, 0);
        let mut stream =
            client.fetch_stream(FetchArgs::new(tp.topic().as_str(), tp.partition(), 0));
        while let Some(StreamItem::Batches(set)) = stream.next().await.transpose()? {
            for batch in batches_in(set.batches) {
                let batch = batch?;
                digest.update(&batch.to_kafka_batch()?);
                batches += 1;
                records += i64::from(batch.header().record_count);
                bytes += batch.header().wire_len() as u64;
                wrong += u64::from(batch.verify_crc().is_err());
                if tp.topic().as_str() != TOPIC_SHOWN
                    || tp.partition() != 0
                    || lines >= RECORDS_SHOWN
                {
                    continue;
                }
                records::lines(TOPIC_SHOWN, 0, &batch, 0, |line| {
                    lines += 1;
                    if lines <= RECORDS_SHOWN {
                        shown += &serde_json::to_string(line)?;
                        shown.push('\n');
                    }
                    Ok(())
                })?;
            }
        }
        let crc = if wrong == 0 { "all right".to_owned() } else { format!("{wrong} wrong") };
        whole &= wrong == 0 && batches > 0;
        table.row(vec![
            tp.topic().to_string(),
            tp.partition().to_string(),
            batches.to_string(),
            records.to_string(),
            bytes.to_string(),
            crc,
        ]);
    }
    Ok(ReadBack { whole, table, shown, digest: digest.finalize() })
}

fn farewell(address: &str, http: &str, store: &str) -> String {
    let fetch = r#"{"partitions":[{"topic":"orders","partition":0,"fetch_offset":0,"max_bytes":2000,"min_one_batch":true}]}"#;
    format!(
        "\nServing on {address} until Ctrl-C. Try, in another terminal:\n\n  \
         grpcurl -plaintext {address} list\n  \
         grpcurl -plaintext {address} tierd.v1.Archive/DescribeArchive\n  \
         grpcurl -plaintext -d '{fetch}' {address} tierd.v1.Archive/FetchArchived\n  \
         tierd fetch orders 0 --offset 100 --endpoint {address} | head -n 3\n  \
         tierd search orders --key c-00433 --endpoint {address}\n  \
         tierd ls --store {store}\n  \
         curl http://{http}/metrics\n"
    )
}
