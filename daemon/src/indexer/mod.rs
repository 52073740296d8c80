//! Owns the way from closed segments to committed archives.
//!
//! Does not own: what a WAL looks like (`wal`), the archive's bytes (`archive`),
//! what is committed (`catalog`). It drives them:
//!
//! ```text
//!  scan segments -> drop what is committed -> plan (pure) -> for each stretch:
//!      build in scratch, verify -> upload under its name -> commit manifest n+1
//! ```
//!
//! Nothing is remembered between steps but what the catalog holds: killed at any
//! point, the next run sees the same WAL and the same manifest and goes on. An
//! uploaded archive without its manifest is litter for `gc`, not data.

mod build;
mod partition;
pub mod plan;
mod report;
mod scan;
mod scratch;

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::OnceCell;

use crate::archive::{ArchiveError, ArchiveOptions};
use crate::catalog::{Catalog, CatalogError};
use crate::error::{Classify, ErrorKind, io_kind};
use crate::read::{ArchiveReader, ReadError};
use crate::store::{Store, StoreError};
use crate::wal::{PartitionDir, WalDir, WalError, WalFormat};

use self::scratch::Scratch;

pub use report::{Finding, PartitionReport, RunReport};

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
    /// A worker thread died, which is a defect.
    #[error("a worker did not finish: {0}")]
    Worker(String),
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
            Self::Outrun => ErrorKind::Retry,
            Self::Worker(_) => ErrorKind::Internal,
        }
    }
}

/// Archives what the broker's WAL holds.
#[derive(Debug)]
pub struct Indexer {
    format: WalFormat,
    catalog: Arc<Catalog>,
    store: Store,
    reader: ArchiveReader,
    scratch_at: PathBuf,
    scratch: OnceCell<Scratch>,
    options: ArchiveOptions,
    /// Set once the store has shown that it honours create-only writes.
    probed: OnceCell<()>,
}

impl Indexer {
    /// An indexer that builds archives in `scratch`, a folder of its own.
    #[must_use]
    pub fn new(
        format: WalFormat,
        catalog: Arc<Catalog>,
        store: Store,
        reader: ArchiveReader,
        scratch: PathBuf,
        options: ArchiveOptions,
    ) -> Self {
        Self {
            format,
            catalog,
            store,
            reader,
            scratch_at: scratch,
            scratch: OnceCell::new(),
            options,
            probed: OnceCell::new(),
        }
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

    /// Archives everything in `wal` that can be archived while no broker runs:
    /// every segment is closed, every hole is final. What goes wrong with one
    /// partition stands in its report and stops no other.
    ///
    /// # Errors
    /// When the WAL directory itself cannot be read.
    pub async fn run_offline(
        &self,
        wal: &WalDir,
        mut done: impl FnMut(&PartitionReport),
    ) -> Result<RunReport, IndexError> {
        let listing = wal.partitions()?;
        let mut report = RunReport::new(listing.findings);
        let mut reports = futures::stream::iter(listing.partitions)
            .map(|dir| self.archive_closed(dir))
            .buffer_unordered(PARTITIONS_AT_ONCE);
        while let Some(partition) = reports.next().await {
            done(&partition);
            report.add(partition);
        }
        report.sort();
        Ok(report)
    }

    async fn archive_closed(&self, dir: PartitionDir) -> PartitionReport {
        let mut report = PartitionReport::new(dir.tp.clone());
        if let Err(error) = partition::archive(self, &dir, &mut report).await {
            report.error = Some(error);
        }
        report
    }
}
