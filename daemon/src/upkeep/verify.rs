//! Owns checking one partition against its manifests and objects.
//!
//! Two depths. The shallow one asks whether everything a manifest references is
//! there, has the length it says, and whose table of contents has the digest it
//! says. The deep one reads every object whole, with other decoders than the read
//! path's, and compares every byte with every digest.

use futures::TryStreamExt;

use super::whole::read_whole;
use crate::archive::ArchiveSummary;
use crate::catalog::{ArchiveEntry, Catalog, CatalogError, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::read::{ArchiveReader, ReadError, ReadStats};
use crate::record::{OffsetRange, TopicPartition};
use crate::store::{ObjectKey, PartitionKey, Store, StoreError, keys};

/// Why a check could not be carried out; not what it found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A worker thread died, which is a defect.
    #[error("{0}")]
    Worker(String),
}

impl Classify for VerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(source) => source.kind(),
            Self::Catalog(source) => source.kind(),
            Self::Worker(_) => ErrorKind::Internal,
        }
    }
}

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is as it was archived.
    Ok,
    /// It is not in the store.
    Lost,
    /// Its bytes are not those that were archived.
    Corrupt,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Lost => "LOST",
            Self::Corrupt => "CORRUPT",
        })
    }
}

/// Something that is not well.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Lost or corrupt.
    pub health: Health,
    /// Name of the object.
    pub object: String,
    /// The offsets that cannot be read because of it.
    pub range: Option<OffsetRange>,
    /// What exactly is wrong.
    pub why: String,
}

/// What a check of one partition found.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// Manifest that was checked.
    pub generation: u64,
    /// Archives checked.
    pub archives: u64,
    /// Bytes read and compared.
    pub bytes: u64,
    /// Batches whose own CRC-32C was wrong already in the WAL: kept, no problem.
    pub bad_crcs: u64,
    /// Batches beneath the served log.
    pub overlaps: u64,
    /// What is not well.
    pub problems: Vec<Problem>,
}

/// Checks one partition. What is wrong is collected, never the end of the check.
///
/// # Errors
/// When the store cannot be asked, as opposed to answering badly.
pub async fn verify_partition(
    store: &Store,
    catalog: &Catalog,
    reader: &ArchiveReader,
    tp: &TopicPartition,
    incarnation: u32,
    deep: bool,
) -> Result<Check, VerifyError> {
    let mut check = Check::default();
    // Listed before it is loaded: what is committed between the two is no finding.
    let listed = newest_listed(store, catalog, tp, incarnation).await?;
    let loaded = match catalog.load(tp, Some(incarnation)).await {
        Ok(loaded) => loaded,
        Err(error) => return lost_catalog(check, tp, error),
    };
    let found = loaded.as_deref().map_or(0, Snapshot::number);
    if found < listed {
        let why = format!(
            "manifest {} is gone: {listed} are listed, and those behind it are not found without it",
            found + 1
        );
        let object = format!("manifests of {tp}");
        check.problems.push(Problem { health: Health::Lost, object, range: None, why });
    }
    let Some(snapshot) = loaded else { return Ok(check) };
    check.generation = snapshot.number();
    match catalog.incarnations(tp.topic()).await {
        Ok(lives) if lives.iter().any(|life| life.number == incarnation) => {}
        Ok(_) => {
            let why = format!("the store does not have incarnation {incarnation}");
            let object = format!("incarnations of {}", tp.topic());
            check.problems.push(Problem { health: Health::Lost, object, range: None, why });
        }
        Err(error) => check = lost_catalog(check, tp, error)?,
    }
    if let Err(error) = catalog.verify_history(&snapshot).await {
        check = lost_catalog(check, tp, error)?;
    }
    let entries = match snapshot.entries().await {
        Ok(entries) => entries,
        Err(error) => return lost_catalog(check, tp, error),
    };
    for entry in &entries {
        check.archives += 1;
        check.bad_crcs += u64::from(entry.summary.bad_crcs);
        check.overlaps += u64::from(entry.summary.overlaps);
        if let Some(problem) = check_archive(store, reader, entry, deep, &mut check.bytes).await? {
            check.problems.push(problem);
        }
    }
    Ok(check)
}

/// The greatest number of a manifest that a listing shows, 0 where it shows none. A
/// listing may miss some, so only what it shows says anything.
async fn newest_listed(
    store: &Store,
    catalog: &Catalog,
    tp: &TopicPartition,
    incarnation: u32,
) -> Result<u64, StoreError> {
    let of = PartitionKey { cluster: catalog.cluster().clone(), tp: tp.clone(), incarnation };
    let mut listed = Box::pin(store.list(&keys::manifest_folder(&of)));
    let mut newest = 0;
    while let Some(object) = listed.try_next().await? {
        if let Ok(ObjectKey::Manifest { number, .. }) = ObjectKey::decode(&object.name) {
            newest = newest.max(number);
        }
    }
    Ok(newest)
}

/// A catalog that is damaged is a finding; one that cannot be asked is an error.
fn lost_catalog(
    mut check: Check,
    tp: &TopicPartition,
    error: CatalogError,
) -> Result<Check, VerifyError> {
    let health = match error.kind() {
        ErrorKind::Corrupt => Health::Corrupt,
        ErrorKind::NotFound => Health::Lost,
        _ => return Err(error.into()),
    };
    let object = format!("manifests of {tp}");
    check.problems.push(Problem { health, object, range: None, why: error.to_string() });
    Ok(check)
}

async fn check_archive(
    store: &Store,
    reader: &ArchiveReader,
    entry: &ArchiveEntry,
    deep: bool,
    bytes: &mut u64,
) -> Result<Option<Problem>, VerifyError> {
    let key = entry.key();
    let problem = |health, why: String| {
        Some(Problem { health, object: key.to_string(), range: Some(entry.summary.range), why })
    };
    match store.head(&key).await? {
        None => return Ok(problem(Health::Lost, "the store does not have it".to_owned())),
        Some(length) if length != entry.summary.length => {
            let why = format!("it has {length} bytes, its manifest says {}", entry.summary.length);
            return Ok(problem(Health::Corrupt, why));
        }
        Some(_) => {}
    }
    let checked = if deep {
        *bytes += entry.summary.length;
        let (length, place) = (entry.summary.length, entry.summary.toc);
        read_whole(store, &key, length, place).await.map(|verified| verified.summary)
    } else {
        *bytes += u64::from(entry.summary.toc.length);
        reader.toc(entry, &ReadStats::default()).await.map(|_| entry.summary.clone())
    };
    match checked {
        Ok(found) if agrees(&found, &entry.summary) => Ok(None),
        Ok(_) => {
            let why = "it says other things of itself than its manifest".to_owned();
            Ok(problem(Health::Corrupt, why))
        }
        Err(ReadError::Store(error)) if error.kind() == ErrorKind::NotFound => {
            Ok(problem(Health::Lost, error.to_string()))
        }
        Err(ReadError::Store(error)) => Err(error.into()),
        Err(ReadError::Archive { source, .. }) => Ok(problem(Health::Corrupt, source.to_string())),
        Err(error @ ReadError::Worker { .. }) => Err(VerifyError::Worker(error.to_string())),
    }
}

/// Whether an archive is what its manifest says. One that fills a gap may hold
/// more offsets than it tiles.
fn agrees(found: &ArchiveSummary, said: &ArchiveSummary) -> bool {
    let covers = found.range.base() <= said.range.base() && said.range.last() <= found.range.last();
    covers && ArchiveSummary { range: said.range, ..found.clone() } == *said
}
