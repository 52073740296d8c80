//! Owns what becomes of archives once they are committed: which are made one or get
//! another index, which go because they are too old or too many, and which objects of
//! the store are garbage.
//!
//! Does not own: what is committed and how (`catalog`), the bytes of an archive
//! (`archive`), who reads. Nothing here is needed to read.
//!
//! ```text
//!  manifest + policy + time --> plan (pure) --> one commit --> gc, a grace time later
//!                                log start,      what is       frees the space
//!                                merges          listed
//! ```
//!
//! # What may be deleted, and when
//!
//! Three steps, each visible before the next: a *policy* (retention, a call of the
//! broker, a command of the operator) moves the log start in a manifest and takes
//! whole archives out of it; readers of an older manifest go on for the *grace*
//! time; then *gc* deletes what no manifest of that time needs. Nothing but gc
//! deletes an object, and gc decides by what manifests say and by the store's own
//! clock alone.
//!
//! # Crash story
//!
//! A plan is carried out by one commit, so it happened or did not; who is killed
//! before plans the same again. Deletions are repeatable in any order.

mod background;
pub mod gc;
pub mod merge;
mod policy;
pub mod reindex;
mod replace;
mod retain;
pub mod retention;
mod todo;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::archive::ArchiveError;
use crate::catalog::{Catalog, CatalogError, Committed, Edit, Snapshot};
use crate::clock::Clock;
use crate::error::{Classify, ErrorKind, io_kind};
use crate::record::TopicPartition;
use crate::store::{Store, StoreError};

pub use background::{BYTES_PER_SECOND_DEFAULT, Background, EVERY_DEFAULT, Left, Policies};
pub use policy::{Policy, Strategy};
pub use replace::{FETCHES, JobRequests};
pub use retain::Retained;
pub use todo::Todo;

/// Times one partition is planned anew because another writer committed first.
const RACES_MAX: u32 = 8;
/// How long who committed last must rest before another daemon does instead what either
/// could: two would do the same work, of which one half is thrown away.
const OTHERS_REST: Duration = Duration::from_secs(3600);

/// Why a partition could not be compacted or collected.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// An archive could not be read or built.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The scratch folder cannot be used.
    #[error("scratch folder {}: {source}; choose another with --data-dir", path.display())]
    Scratch {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// An archive is not what its manifest says.
    #[error("{object} is not what was archived and stays as it is; run tierd verify --deep")]
    Damaged {
        /// The archive.
        object: String,
    },
    /// A worker thread died, which is a defect.
    #[error("a worker did not finish: {0}")]
    Worker(String),
    /// Other writers were faster, again and again.
    #[error(
        "another writer committed first {RACES_MAX} times in a row; nothing was changed, try again later"
    )]
    Outrun,
    /// What gc was about to delete is referenced after all, which is a defect.
    #[error(
        "{object} was taken for garbage and is referenced by manifest {number}; nothing was deleted, please report this"
    )]
    Referenced {
        /// The object.
        object: String,
        /// The manifest that references it.
        number: u64,
    },
}

impl Classify for CompactError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(source) => source.kind(),
            Self::Catalog(source) => source.kind(),
            Self::Archive(source) => source.kind(),
            Self::Scratch { source, .. } => io_kind(source),
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Outrun => ErrorKind::Retry,
            Self::Worker(_) | Self::Referenced { .. } => ErrorKind::Internal,
        }
    }
}

/// Where nonces of probes come from: sixteen bytes that no other call returns.
pub type NonceSource = Box<dyn Fn() -> [u8; 16] + Send + Sync>;

/// Carries out what is planned, in one store.
pub struct Compactor {
    catalog: Arc<Catalog>,
    store: Store,
    clock: Arc<dyn Clock>,
    nonce: NonceSource,
    /// Set once the store has shown that it honours create-only writes.
    probed: OnceCell<()>,
}

impl std::fmt::Debug for Compactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compactor").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Compactor {
    /// A compactor that commits through `catalog`, whose store is `store`.
    #[must_use]
    pub fn new(
        catalog: Arc<Catalog>,
        store: Store,
        clock: Arc<dyn Clock>,
        nonce: NonceSource,
    ) -> Self {
        Self { catalog, store, clock, nonce, probed: OnceCell::new() }
    }

    /// Whether work that any daemon could do in the partition of `newest` is ours: of
    /// several, who committed last does it, and another only where that one rests.
    fn is_ours(&self, newest: &Snapshot, now_ms: i64) -> bool {
        let rests = now_ms.saturating_sub(newest.manifest().committed_at_ms);
        newest.writer() == self.catalog.writer() || rests > OTHERS_REST.as_millis() as i64
    }

    /// Commits `edit`, after the store has shown once that commits can be trusted.
    async fn commit(&self, base: Arc<Snapshot>, edit: Edit) -> Result<Committed, CatalogError> {
        let (tp, incarnation) = (base.tp().clone(), base.incarnation());
        self.commit_to(&tp, incarnation, Some(base), edit).await
    }

    async fn commit_to(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        base: Option<Arc<Snapshot>>,
        edit: Edit,
    ) -> Result<Committed, CatalogError> {
        self.probed.get_or_try_init(|| self.catalog.probe()).await?;
        self.catalog.commit(tp, incarnation, base, edit).await
    }

    /// The time by the store's clock, in milliseconds.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn store_now_ms(&self) -> Result<i64, CompactError> {
        let (cluster, writer) = (self.catalog.cluster(), self.catalog.writer());
        Ok(self.store.now_ms(cluster, writer, (self.nonce)()).await?)
    }

    /// The time that ages are measured by: the earlier of the store's clock and
    /// this host's, so that one that runs ahead lets nothing go early.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn now_ms(&self) -> Result<i64, CompactError> {
        Ok(self.store_now_ms().await?.min(self.clock.now_ms()))
    }
}
