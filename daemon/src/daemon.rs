//! Owns putting the rooms together: which store, catalog, reader and servers a
//! command runs on, and the order in which they stop.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::archive::ArchiveOptions;
use crate::catalog::Catalog;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, LogFormat};
use crate::fetch::Fetcher;
use crate::grpc::{self, Bound};
use crate::indexer::Indexer;
use crate::read::{ArchiveReader, ReadOptions};
use crate::store::Store;
use crate::wal::WalFormat;

/// The rooms that every command over an archive needs.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// Object storage.
    pub store: Store,
    /// What is committed.
    pub catalog: Arc<Catalog>,
    /// Ranged reads.
    pub reader: ArchiveReader,
    /// Answers to fetches.
    pub fetcher: Fetcher,
}

impl Rooms {
    /// Opens the store that `config` names, for reading: it must be there.
    ///
    /// # Errors
    /// When the store's URL or the cluster's name is wrong, or the store is not there.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        Self::over(Store::open(config.store()?)?, config)
    }

    /// Opens the store that `config` names, for writing: a folder is made.
    ///
    /// # Errors
    /// As [`Self::open`], and when the folder cannot be made.
    pub fn open_for_writing(config: &Config) -> anyhow::Result<Self> {
        Self::over(Store::open_or_create(config.store()?)?, config)
    }

    /// The rooms over a store at hand.
    ///
    /// # Errors
    /// When the cluster's name or the writer's id is wrong.
    pub fn over(store: Store, config: &Config) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = SystemClock::new();
        let catalog = Arc::new(Catalog::new(
            store.clone(),
            config.cluster()?,
            config.writer_id()?,
            Arc::clone(&clock),
            Box::new(nonce),
        ));
        let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
        let fetcher = Fetcher::new(Arc::clone(&catalog), reader.clone(), clock);
        Ok(Self { store, catalog, reader, fetcher })
    }

    /// An indexer over these rooms, with its scratch below the data folder.
    ///
    /// # Errors
    /// When no data folder can be named.
    pub fn indexer(&self, config: &Config, format: WalFormat) -> anyhow::Result<Indexer> {
        Ok(Indexer::new(
            format,
            Arc::clone(&self.catalog),
            self.store.clone(),
            self.reader.clone(),
            config.data_dir()?.join("scratch"),
            ArchiveOptions::default(),
        ))
    }
}

/// Makes manifests of different writers differ.
#[expect(clippy::disallowed_methods, reason = "assembly is where randomness comes from")]
fn nonce() -> [u8; 16] {
    rand::random()
}

/// Binds every address that `config` names.
///
/// # Errors
/// When one is no address or is taken.
pub async fn bind(config: &Config) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for address in config.listen()? {
        bound.push(address.bind().await?);
    }
    Ok(bound)
}

/// Serves until SIGTERM or SIGINT; a second one ends without draining.
///
/// # Errors
/// When a listener fails.
pub async fn serve_until_signal(fetcher: Fetcher, bound: Vec<Bound>) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let server = grpc::serve(fetcher, bound, stop.clone());
    let mut server = std::pin::pin!(server);
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = wait_for_signal() => stop.cancel(),
    }
    tokio::select! {
        ended = server => Ok(ended?),
        () = wait_for_signal() => Ok(()),
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Starts logging to stderr.
///
/// # Errors
/// When the filter is none.
pub fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = config.log.as_deref().unwrap_or("warn");
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("--log {filter:?} is no filter; try info or tierd=debug"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format.unwrap_or_default() {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
