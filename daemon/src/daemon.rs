//! Owns putting the rooms together: which store, catalog, reader and servers a
//! command runs on, and the order in which they stop.

use std::fmt;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::archive::ArchiveOptions;
use crate::catalog::{Catalog, Snapshots, Watermarks};
use crate::clock::{Clock, SystemClock};
use crate::compact::{Background, Compactor};
use crate::config::{Config, LogFormat, memory_limit};
use crate::fetch::{self, Fetcher};
use crate::grpc;
use crate::health::Health;
use crate::http::{self, Site};
use crate::indexer::{Indexer, LiveIndexer, LiveOptions, RESCAN, Watched};
use crate::listen::Bound;
use crate::metrics::{Metrics, StoreCount};
use crate::read::{ArchiveReader, ReadOptions};
use crate::record::TopicName;
use crate::reports::Reports;
use crate::search::Searcher;
use crate::store::{Op, Store};
use crate::task::{Jitter, Pace, TaskError, TaskSet, Ticker};
use crate::upkeep::{Scrub, ScrubOptions};
use crate::wal::{WalDir, Watch};

/// Fetches may hold this part of the memory that there is: caches, archiving and merging
/// take the rest.
const FETCHES_PART: u64 = 4;
/// The writer's id of a command that commits nothing.
const READER_ID: &str = "reader";

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
    /// What the broker reports.
    pub reports: Arc<Reports>,
    /// Answers to searches.
    pub searcher: Searcher,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How far the indexer of these rooms has come.
    pub watermarks: Watermarks,
    /// What is counted; the store's requests are already.
    pub metrics: Metrics,
    /// What probes are told.
    pub health: Health,
    /// How a daemon looks for damage.
    pub scrub: ScrubOptions,
}

impl Rooms {
    /// Opens the store that `config` names, for reading: it must be there.
    ///
    /// # Errors
    /// When the store's URL or the cluster's name is wrong, or the store is not there.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let mut config = config.clone();
        // Who only reads needs no name, and a host may have one that is none.
        config.writer_id.get_or_insert_with(|| READER_ID.to_owned());
        Self::over(Store::open(config.store()?)?, &config)
    }

    /// Opens the store that `config` names, for an operator who changes what is
    /// there: it must be there.
    ///
    /// # Errors
    /// As [`Self::open`], and when no writer's id can be named.
    pub fn open_to_change(config: &Config) -> anyhow::Result<Self> {
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
        let store = store.with_jitter(jitter());
        let catalog = Arc::new(Catalog::new(
            store.clone(),
            config.cluster()?,
            config.writer_id()?,
            Arc::clone(&clock),
            Box::new(nonce),
        ));
        let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
        let metrics = Metrics::new(Arc::clone(&clock))?;
        let counted = store.clone();
        metrics.count_store_by(move || store_counts(&counted));
        let quarantine = reader.quarantine().clone();
        metrics.count_quarantined_by(move || quarantine.count());
        let statuses = fetch::Status::ALL.map(fetch::Status::as_str);
        metrics.expect_of_fetches(&statuses, &fetch::Stage::ALL.map(fetch::Stage::as_str));
        let health = Health::new(Arc::clone(&clock));
        let reports = Arc::new(Reports::default());
        let snapshots = Arc::new(Snapshots::new(Arc::clone(&catalog), Arc::clone(&clock)));
        let fetcher = Fetcher::new(Arc::clone(&snapshots), reader.clone());
        let fetcher = fetcher.heeding(Arc::clone(&reports));
        let searcher = Searcher::new(snapshots, reader.clone());
        let watermarks = Watermarks::new();
        Ok(Self {
            store,
            catalog,
            reader,
            fetcher,
            searcher,
            reports,
            watermarks,
            clock,
            metrics,
            health,
            scrub: config.scrub.options()?,
        })
    }

    /// A compactor over these rooms.
    #[must_use]
    pub fn compactor(&self) -> Compactor {
        let (catalog, clock) = (Arc::clone(&self.catalog), Arc::clone(&self.clock));
        Compactor::new(catalog, self.store.clone(), clock, Box::new(nonce))
    }

    /// The compaction of a running daemon over these rooms and how often it looks,
    /// where the settings want one.
    ///
    /// # Errors
    /// When a setting is wrong or the data folder cannot be used.
    pub fn compaction(
        &self,
        config: &Config,
        data: &DataDir,
    ) -> anyhow::Result<Option<(Background, Duration)>> {
        let wanted = config.compaction.clone();
        wanted.check()?;
        if wanted.enabled == Some(false) {
            return Ok(None);
        }
        let (grace, every) = (wanted.grace()?, wanted.every()?);
        let pace = Pace::of(wanted.bytes_per_second()?);
        // Checked above: what cannot be read keeps everything.
        let policies = Box::new(move |topic: &TopicName| wanted.policy(topic).unwrap_or_default());
        let (compactor, scratch) = (self.compactor(), data.compaction()?);
        let metrics = self.metrics.clone();
        Ok(Some((Background::new(compactor, policies, grace, scratch, pace, metrics), every)))
    }

    /// An indexer over these rooms that reads `wal`, with its scratch below the data
    /// folder, which it needs for itself.
    ///
    /// # Errors
    /// When no data folder can be named or made, or another process uses it.
    pub fn indexer(
        &self,
        config: &Config,
        wal: WalDir,
        options: LiveOptions,
    ) -> anyhow::Result<(Arc<LiveIndexer>, DataDir)> {
        let data = DataDir::claim(config.data_dir()?)?;
        let indexer = Indexer::new(
            wal.format(),
            Arc::clone(&self.catalog),
            self.store.clone(),
            self.reader.clone(),
            data.scratch(),
            ArchiveOptions::default(),
            self.metrics.clone(),
        )
        .telling(self.watermarks.clone())
        .indexing(config.index());
        let clock = Arc::clone(&self.clock);
        let live = LiveIndexer::new(indexer, wal, options, clock, jitter())
            .heeding(Arc::clone(&self.reports));
        Ok((Arc::new(live), data))
    }
}

/// The data folder, claimed by this process as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Closing it is not enough where a process is being started: until it is, it has
        // the file too. Nothing to do where it fails: the end of the process unlocks it.
        let _ = self.lock.unlock();
    }
}

impl DataDir {
    /// Makes the folder and claims it.
    fn claim(path: PathBuf) -> anyhow::Result<Self> {
        let failed = || format!("cannot use the data folder {}", path.display());
        std::fs::create_dir_all(&path).with_context(failed)?;
        let lock = File::create(path.join("lock")).with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another tierd works in the data folder {}; give this one its own with --data-dir",
                path.display()
            ),
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        Ok(Self { path, lock })
    }

    fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    /// A folder for compaction, without what a killed process left in it.
    fn compaction(&self) -> anyhow::Result<PathBuf> {
        let path = self.path.join("compaction");
        let failed = || format!("cannot use the folder {}", path.display());
        if path.try_exists().with_context(failed)? {
            std::fs::remove_dir_all(&path).with_context(failed)?;
        }
        std::fs::create_dir_all(&path).with_context(failed)?;
        Ok(path)
    }
}

/// Spreads waits, so that many daemons do not act together.
fn jitter() -> Jitter {
    #[expect(clippy::disallowed_methods, reason = "assembly is where randomness comes from")]
    Arc::new(rand::random::<f64>)
}

/// Makes manifests of different writers differ.
#[expect(clippy::disallowed_methods, reason = "assembly is where randomness comes from")]
fn nonce() -> [u8; 16] {
    rand::random()
}

fn store_counts(store: &Store) -> Vec<StoreCount> {
    let requests = store.requests();
    let count = |op: Op| {
        let count = requests.of(op);
        let (requests, failures, bytes) = (count.requests, count.failures, count.bytes);
        StoreCount { op: op.as_str(), requests, failures, bytes }
    };
    Op::ALL.into_iter().map(count).collect()
}

/// Everything a daemon listens on.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC.
    pub grpc: Vec<Bound>,
    /// For probes and metrics.
    pub http: Bound,
}

impl Listeners {
    /// Binds every address that `config` names.
    ///
    /// # Errors
    /// When one is no address or is taken.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let http = config.http()?.bind().await?;
        let mut grpc = Vec::new();
        for address in config.listen()? {
            grpc.push(address.bind().await?);
        }
        Ok(Self { grpc, http })
    }
}

impl fmt::Display for Listeners {
    /// One line for each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for listener in &self.grpc {
            writeln!(f, "serving gRPC on {listener}")?;
        }
        writeln!(f, "serving probes and metrics on {}", self.http)
    }
}

/// Serves gRPC, probes and metrics until `stop` is cancelled. Then, in this order:
/// `/readyz` fails, gRPC's health turns, streams drain, gRPC ends, HTTP ends.
/// `watermarks` are those of the indexer in this process, where there is one.
///
/// # Errors
/// When a listener fails.
pub async fn serve(
    rooms: &Rooms,
    watermarks: Option<Watermarks>,
    listeners: Listeners,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (health, metrics) = (rooms.health.clone(), rooms.metrics.clone());
    let site = Site { health: health.clone(), metrics: metrics.clone() };
    // Dropped with this future, HTTP ends too: a second signal waits for nobody.
    let (grpc_stop, http_stop) = (CancellationToken::new(), CancellationToken::new());
    let _last = http_stop.clone().drop_guard();
    let (fetcher, searcher) = (rooms.fetcher.clone(), rooms.searcher.clone());
    let stop_grpc = grpc_stop.clone();
    let room = memory_limit().map_or(grpc::FETCHES_BYTES_MAX, |all| all / FETCHES_PART);
    let server =
        grpc::serve(fetcher, searcher, watermarks, metrics, room, listeners.grpc, stop_grpc);
    let mut server = std::pin::pin!(server);
    // All addresses are bound: a caller that connects now is answered.
    health.serves();
    let site = tokio::spawn(http::serve(listeners.http, site, http_stop.clone()));
    let ended = tokio::select! {
        ended = &mut server => ended,
        () = stop.cancelled() => {
            health.drains();
            grpc_stop.cancel();
            server.await
        }
    };
    http_stop.cancel();
    site.await.context("the HTTP server did not end")?;
    Ok(ended?)
}

/// Serves until SIGTERM or SIGINT; a second one ends without draining.
///
/// # Errors
/// When a listener fails.
pub async fn serve_until_signal(rooms: &Rooms, listeners: Listeners) -> anyhow::Result<()> {
    let mut tasks = TaskSet::default();
    spawn_servers(&mut tasks, rooms, None, listeners);
    spawn_scrub(&mut tasks, rooms);
    run_to_the_end(tasks).await
}

/// Serves and archives until SIGTERM or SIGINT. Then health turns, streams drain, and
/// the archives under way end or are given up; a second signal waits for neither.
///
/// # Errors
/// When a listener fails.
pub async fn archive_until_signal(
    rooms: &Rooms,
    listeners: Listeners,
    indexer: Arc<LiveIndexer>,
    compaction: Option<(Background, Duration)>,
) -> anyhow::Result<()> {
    rooms.reports.open();
    let wake = Arc::new(Notify::new());
    let woken = Arc::clone(&wake);
    let _watch = Watch::start(indexer.wal().root(), move || woken.notify_one());
    let mut tasks = TaskSet::default();
    spawn_servers(&mut tasks, rooms, Some(rooms.watermarks.clone()), listeners);
    let ticker = Ticker::new(RESCAN, jitter(), wake);
    let (archiving, watched) = (Arc::clone(&indexer), Watched::by(&rooms.health));
    tasks.spawn("archiving", |stop| async move {
        archiving.run(ticker, watched, stop).await;
        Ok(())
    });
    if let Some((background, every)) = compaction {
        let ticker = Ticker::new(every, jitter(), Arc::new(Notify::new()));
        tasks.spawn("compacting", |stop| async move {
            background.run(ticker, stop).await;
            Ok(())
        });
    }
    spawn_scrub(&mut tasks, rooms);
    let ended = run_to_the_end(tasks).await;
    indexer.abandon();
    ended
}

fn spawn_servers(
    tasks: &mut TaskSet,
    rooms: &Rooms,
    watermarks: Option<Watermarks>,
    listeners: Listeners,
) {
    let rooms = rooms.clone();
    tasks.spawn("serving", |stop| async move {
        serve(&rooms, watermarks, listeners, stop).await.map_err(Into::into)
    });
}

fn spawn_scrub(tasks: &mut TaskSet, rooms: &Rooms) {
    let (catalog, clock) = (Arc::clone(&rooms.catalog), Arc::clone(&rooms.clock));
    let (store, reader, metrics) =
        (rooms.store.clone(), rooms.reader.clone(), rooms.metrics.clone());
    let scrub = Scrub::new(store, catalog, reader, metrics, clock, rooms.scrub);
    tasks.spawn("scrubbing", |stop| async move {
        scrub.run(stop).await;
        Ok(())
    });
}

async fn run_to_the_end(tasks: TaskSet) -> anyhow::Result<()> {
    let signals = Arc::new(Mutex::new(Signals::listen()?));
    let next = || {
        let signals = Arc::clone(&signals);
        async move { signals.lock().await.next().await }.boxed()
    };
    match tasks.run(next).await {
        Err(skipped @ TaskError::Skipped { .. }) => {
            tracing::warn!("{skipped}");
            Ok(())
        }
        ended => Ok(ended?),
    }
}

/// SIGTERM and SIGINT, from when it is made: none is missed between two waits.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
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
    // A step of a read is a span; it says how long it took when it ends.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::CLOSE);
    match config.log_format.unwrap_or_default() {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
