//! The daemon that stays, told by its broker to move a log start and to delete a
//! partition once everything is archived.

use std::time::{Duration, Instant};

use tierd_client::{ArchiveClient, OffsetArgs, OffsetSpec, TopicPartition};
use tierd_tests::beside::PATIENCE;
use tierd_tests::bucket::{Bucket, Kill, Lived, Running};

use super::site::Site;
use super::works::TOPICS;
use crate::block_on;

/// Where the log of `orders`-0 begins at last.
pub(super) const LOG_START: i64 = 15;
/// End of every partition.
const END: i64 = 40;

/// Does it, or goes on with what a killed one left of it.
pub(super) fn work(bucket: &Bucket, site: &mut Site, kill: Option<Kill>, what: &str) -> Lived {
    let started = site.folder().join("broker-started");
    if !started.is_file() {
        // Longer than a tick of the clock that stamps files.
        std::thread::sleep(Duration::from_millis(25));
        std::fs::write(&started, "").unwrap();
    }
    let started = started.to_str().unwrap();
    let args = ["run", "--listen", "127.0.0.1:0", "--broker-started-at", started];
    let quick = ["--settle", "0s", "--gap-timeout", "1s"];
    let daemon = bucket.run(site.command(bucket, &[&args[..], &quick].concat()), kill).unwrap();
    if block_on(drive(&daemon, what)).is_some() {
        daemon.terminate();
    }
    let lived = daemon.wait().unwrap();
    let Lived { ended, killed, .. } = &lived;
    assert!(*killed || ended.code == 0, "{what}: {}\n{}", ended.text(), ended.stderr);
    lived
}

/// `None` when the daemon died before the end.
async fn drive(daemon: &Running<'_>, what: &str) -> Option<()> {
    let address = until(daemon, what, async || daemon.said("serving gRPC on ")).await?;
    let client = ArchiveClient::connect_lazy(&address).unwrap();
    for (topic, partition) in TOPICS {
        let archived = async || {
            let asked = OffsetArgs::new(topic, partition, OffsetSpec::EarliestPendingUpload);
            let told = client.list_offsets(&[asked]).await.ok()?.remove(0).result.ok()?;
            told.filter(|found| found.offset == END)
        };
        until(daemon, what, archived).await?;
    }
    let (first, second) = (TopicPartition::new("orders", 0), TopicPartition::new("orders", 1));
    let moved = async || client.advance_log_start(&first, None, LOG_START).await.ok();
    assert_eq!(until(daemon, what, moved).await?, LOG_START, "{what}");
    let deleted = async || client.delete_partition(&second, None).await.ok();
    assert_eq!(until(daemon, what, deleted).await?, END, "{what}");
    Some(())
}

/// Asks until there is an answer, for as long as the daemon lives.
async fn until<T>(daemon: &Running<'_>, what: &str, ask: impl AsyncFn() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    while daemon.lives() {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: it does not come to it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    None
}
