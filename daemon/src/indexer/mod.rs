//! Owns the way from closed segments to committed archives.
//!
//! Does not own: what a WAL looks like (`wal`), the archive's bytes (`archive`),
//! what is committed (`catalog`). It drives them:
//!
//! ```text
//!  list -> observe -> which life of the topic -> classify -> scan what is ready
//!      -> drop what is committed -> plan (pure) -> cut at the first hole to wait for
//!      -> for each stretch: build in scratch, verify -> upload under its name
//!                           -> commit manifest n+1
//!      -> prove every batch by the newest manifest -> what may be deleted (pure)
//!      -> remember it -> tell it
//! ```
//!
//! What decides is what the WAL and the catalog hold, the writer's ledger included: killed at any point, the next
//! run sees the same WAL and the same manifest and goes on. What a [`LiveIndexer`]
//! remembers between steps saves work and measures waiting, nothing more. An
//! uploaded archive without its manifest is litter for `gc`, not data.

mod build;
mod committed;
mod holes;
mod live;
pub mod lives;
mod log_start;
mod partition;
pub mod plan;
mod proof;
pub mod release;
mod report;
mod scan;
mod scratch;
mod standby;
mod transactions;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::archive::{ArchiveError, ArchiveOptions, IndexRules};
use crate::catalog::{Catalog, CatalogError, Watermarks};
use crate::error::{Classify, ErrorKind, io_kind};
use crate::metrics::Metrics;
use crate::read::{ArchiveReader, ReadError};
use crate::record::TopicName;
use crate::store::{Op, Store, StoreError};
use crate::wal::{WalError, WalFormat};

use self::scratch::Scratch;

pub use holes::GAP_TIMEOUT_DEFAULT;
pub use live::{LiveIndexer, LiveOptions, Look, Progress, RESCAN, Watched};
pub use log_start::{LogStart, LogStartError, LogStarts};
pub use report::{Finding, PartitionReport, RunReport};
pub use standby::STANDBY_WAIT;

/// Partitions archived at once. One needs about 120 MiB and one core while it
/// packs; more would only share the same cores.
pub const PARTITIONS_AT_ONCE: usize = 2;
/// Times one partition is planned anew because another writer committed first.
const RACES_MAX: u32 = 8;

/// Why a partition could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The WAL could not be read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The archive could not be built.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The archive could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A committed archive could not be read back.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The scratch folder cannot be used.
    #[error("scratch folder {path}: {source}; choose another with --data-dir")]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Other writers were faster, again and again.
    #[error(
        "another writer committed first {RACES_MAX} times in a row; it is archiving this partition, look again later"
    )]
    Outrun,
    /// Segments came and went while it was found out which life of the topic they
    /// belong to.
    #[error("segments of the topic come and go; looking again")]
    Unsettled,
    /// The daemon is shutting down.
    #[error("given up because the daemon stops; the next start does it again")]
    Stopped,
    /// A worker thread died, which is a defect.
    #[error("a worker did not finish: {0}")]
    Worker(String),
}

impl IndexError {
    /// Whether the WAL is not what was listed any more: listing again is all it takes.
    fn is_change(&self) -> bool {
        match self {
            Self::Wal(source) => source.is_change(),
            Self::Unsettled => true,
            _ => false,
        }
    }
}

impl Classify for IndexError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Wal(source) => source.kind(),
            Self::Archive(source) => source.kind(),
            Self::Store(source) => source.kind(),
            Self::Catalog(source) => source.kind(),
            Self::Read(source) => source.kind(),
            Self::Scratch { source, .. } => io_kind(source),
            Self::Outrun | Self::Unsettled | Self::Stopped => ErrorKind::Retry,
            Self::Worker(_) => ErrorKind::Internal,
        }
    }
}

/// Takes segments that are ready to committed archives: what the work needs.
#[derive(Debug)]
pub struct Indexer {
    format: WalFormat,
    catalog: Arc<Catalog>,
    store: Store,
    reader: ArchiveReader,
    scratch_at: PathBuf,
    scratch: OnceCell<Scratch>,
    options: ArchiveOptions,
    rules: IndexRules,
    watermarks: Watermarks,
    /// Set once the store has shown that it honours create-only writes.
    probed: OnceCell<()>,
    abandoned: CancellationToken,
    metrics: Metrics,
    pulse: Pulse,
}

/// Moves as long as work gets on: with each segment scanned and each batch packed.
#[derive(Clone, Debug, Default)]
struct Pulse(Arc<AtomicU64>);

impl Pulse {
    fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Indexer {
    /// An indexer that builds archives in `scratch`, a folder of its own, and counts
    /// in `metrics`.
    #[must_use]
    pub fn new(
        format: WalFormat,
        catalog: Arc<Catalog>,
        store: Store,
        reader: ArchiveReader,
        scratch: PathBuf,
        options: ArchiveOptions,
        metrics: Metrics,
    ) -> Self {
        metrics.expect_of_steps(&Progress::WORDS);
        Self {
            format,
            catalog,
            store,
            reader,
            scratch_at: scratch,
            scratch: OnceCell::new(),
            options,
            rules: IndexRules::default(),
            watermarks: Watermarks::new(),
            probed: OnceCell::new(),
            abandoned: CancellationToken::new(),
            metrics,
            pulse: Pulse::default(),
        }
    }

    /// A number that moves as long as steps get on. An upload moves it with every
    /// part, so only what truly stands still leaves it.
    fn pulse(&self) -> u64 {
        let requests = self.store.requests();
        let sent = [Op::Put, Op::PutPart, Op::Create].map(|op| requests.of(op).requests);
        self.pulse.0.load(Ordering::Relaxed) + sent.iter().sum::<u64>()
    }

    /// The same, with an index level of their own for the topics that `rules` fit.
    #[must_use]
    pub fn indexing(self, rules: IndexRules) -> Self {
        Self { rules, ..self }
    }

    /// The options of an archive of `topic`.
    fn options_of(&self, topic: &TopicName) -> ArchiveOptions {
        let level = self.rules.level_of(topic).unwrap_or(self.options.index_level);
        ArchiveOptions { index_level: level, ..self.options }
    }

    /// The scratch folder, made and emptied when first asked for.
    async fn scratch(&self) -> Result<&Scratch, IndexError> {
        let open = || async {
            let path = self.scratch_at.clone();
            let opened = tokio::task::spawn_blocking(move || {
                Scratch::open(&path).map_err(|source| IndexError::Scratch { path, source })
            });
            opened.await.map_err(|died| IndexError::Worker(died.to_string()))?
        };
        self.scratch.get_or_try_init(open).await
    }

    /// The same indexer, which tells `watermarks` how far it has come.
    #[must_use]
    pub fn telling(self, watermarks: Watermarks) -> Self {
        Self { watermarks, ..self }
    }

    /// Sees, once, whether the store can be trusted; before the first write.
    async fn probe(&self) -> Result<(), IndexError> {
        self.probed.get_or_try_init(|| self.catalog.probe()).await?;
        Ok(())
    }

    /// Gives up every archive that is being built, soon. For the end of the process.
    pub fn abandon(&self) {
        self.abandoned.cancel();
    }
}
