//! Owns checking one partition against its manifests and objects.
//!
//! Two depths. The shallow one asks whether everything a manifest references is
//! there, has the length it says, and whose table of contents has the digest it
//! says. The deep one reads every object whole, with other decoders than the read
//! path's, and compares every byte with every digest.

use std::sync::Arc;

use futures::TryStreamExt;

use super::whole::read_whole;
use crate::archive::ArchiveSummary;
use crate::catalog::{ArchiveEntry, Catalog, CatalogError, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::read::{ArchiveReader, ReadError, ReadStats};
use crate::record::{OffsetRange, TopicPartition};
use crate::store::{Listed, ObjectKey, PartitionKey, Store, StoreError};
use crate::task::Pace;

/// How long something may lie in the store before its commit is overdue: many times what
/// building, uploading and committing an archive of 2 GiB takes.
const DELAYED_AFTER_MS: i64 = 60 * 60 * 1000;

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

/// How an object is, from best to worst. The words are those that `wal-g wal-verify`
/// made known, as far as they fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// All is as it was archived.
    Ok,
    /// All is as it was archived, and some of its batches lie beneath others at the same
    /// offsets: kept, and given to who asks for all.
    Overlap,
    /// It is on its way: in the store, or a part of it, and not yet committed.
    Uploading,
    /// As before, for longer than a commit takes: its writer was stopped, killed or
    /// beaten. Whoever archives next makes it anew; `tierd gc` deletes it.
    Delayed,
    /// It is committed and not in the store.
    Lost,
    /// It is committed and its bytes are not those that were archived.
    Corrupt,
}

impl Health {
    /// Every word, from best to worst.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Overlap, Self::Uploading, Self::Delayed, Self::Lost, Self::Corrupt];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Overlap => "OVERLAP",
            Self::Uploading => "UPLOADING",
            Self::Delayed => "DELAYED",
            Self::Lost => "LOST",
            Self::Corrupt => "CORRUPT",
        }
    }

    /// Whether something archived cannot be read.
    #[must_use]
    pub const fn is_problem(self) -> bool {
        matches!(self, Self::Lost | Self::Corrupt)
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One object that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// How it is.
    pub health: Health,
    /// Name of the object, or of a sort of objects of the catalog.
    pub object: String,
    /// The offsets that it holds, where it holds any.
    pub range: Option<OffsetRange>,
    /// Its length in bytes, where it is an object that is there.
    pub length: Option<u64>,
    /// What exactly is wrong; empty where nothing is.
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
    /// Every archive, ascending by offset, what is on its way, and what of the catalog
    /// is not well.
    pub objects: Vec<Checked>,
}

impl Check {
    /// What is lost or corrupt.
    pub fn problems(&self) -> impl Iterator<Item = &Checked> {
        self.objects.iter().filter(|object| object.health.is_problem())
    }

    /// The worst there is.
    #[must_use]
    pub fn worst(&self) -> Health {
        self.objects.iter().map(|object| object.health).max().unwrap_or(Health::Ok)
    }

    /// Objects of this health.
    #[must_use]
    pub fn count(&self, health: Health) -> usize {
        self.objects.iter().filter(|object| object.health == health).count()
    }

    fn of_catalog(&mut self, health: Health, object: String, why: String) {
        self.objects.push(Checked { health, object, range: None, length: None, why });
    }
}

/// How closely archives are looked at.
#[derive(Clone, Debug)]
pub(super) enum Depth {
    /// That it is there, with its length and table of contents.
    Shallow,
    /// Every byte.
    Deep(Arc<Pace>),
}

/// Checks one partition, at the time `now_ms`. What is wrong is collected, never the end
/// of the check.
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
    now_ms: i64,
) -> Result<Check, VerifyError> {
    let mut check = Check::default();
    // Listed before it is loaded: what is committed between the two is no finding.
    let of = PartitionKey { cluster: catalog.cluster().clone(), tp: tp.clone(), incarnation };
    let listed = list(store, &of).await?;
    let loaded = match catalog.load(tp, Some(incarnation)).await {
        Ok(loaded) => loaded,
        Err(error) => return lost_catalog(check, tp, error),
    };
    let found = loaded.as_deref().map_or(0, Snapshot::number);
    // A listing may miss some, so only what it shows says anything.
    let newest = listed.iter().filter_map(|(key, _)| manifest_number(key)).max().unwrap_or(0);
    if found < newest {
        let why = format!(
            "manifest {} is gone: {newest} are listed, and those behind it are not found without it",
            found + 1
        );
        check.of_catalog(Health::Lost, format!("manifests of {tp}"), why);
    }
    on_the_way(&mut check, listed, found, now_ms);
    for upload in store.unfinished(&of.to_string()).await?.unwrap_or_default() {
        let health = waiting(&upload, now_ms);
        let why = "its upload was begun and has not ended".to_owned();
        let (object, length) = (upload.name, Some(upload.length));
        check.objects.push(Checked { health, object, range: None, length, why });
    }
    let Some(snapshot) = loaded else { return Ok(check) };
    check.generation = snapshot.number();
    match catalog.incarnations(tp.topic()).await {
        Ok(lives) if lives.iter().any(|life| life.number == incarnation) => {}
        Ok(_) => {
            let why = format!("the store does not have incarnation {incarnation}");
            check.of_catalog(Health::Lost, format!("incarnations of {}", tp.topic()), why);
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
    let depth = if deep { Depth::Deep(Arc::new(Pace::unlimited())) } else { Depth::Shallow };
    for entry in &entries {
        check.archives += 1;
        check.bad_crcs += u64::from(entry.summary.bad_crcs);
        check.overlaps += u64::from(entry.summary.overlaps);
        let checked = check_archive(store, reader, entry, &depth, &mut check.bytes).await?;
        check.objects.push(checked);
    }
    Ok(check)
}

/// Every object of ours in the folder of `of`.
async fn list(store: &Store, of: &PartitionKey) -> Result<Vec<(ObjectKey, Listed)>, StoreError> {
    let found: Vec<Listed> = store.list(&of.to_string()).try_collect().await?;
    let ours = found.into_iter();
    Ok(ours.filter_map(|one| Some((ObjectKey::decode(&one.name).ok()?, one))).collect())
}

fn manifest_number(key: &ObjectKey) -> Option<u64> {
    if let ObjectKey::Manifest { number, .. } = key { Some(*number) } else { None }
}

/// Tells what was made for a manifest behind `newest`, which nobody has committed.
fn on_the_way(check: &mut Check, listed: Vec<(ObjectKey, Listed)>, newest: u64, now_ms: i64) {
    for (key, object) in listed {
        let (number, range) = match key {
            ObjectKey::Archive { number, range, .. } | ObjectKey::Page { number, range, .. } => {
                (number, Some(range))
            }
            ObjectKey::Side { number, .. } => (number, None),
            _ => continue,
        };
        if number > newest {
            let health = waiting(&object, now_ms);
            let why = format!("it waits for manifest {number}");
            let (object, length) = (object.name, Some(object.length));
            check.objects.push(Checked { health, object, range, length, why });
        }
    }
}

fn waiting(object: &Listed, now_ms: i64) -> Health {
    let age = now_ms.saturating_sub(object.modified_ms);
    if age > DELAYED_AFTER_MS { Health::Delayed } else { Health::Uploading }
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
    check.of_catalog(health, format!("manifests of {tp}"), error.to_string());
    Ok(check)
}

/// Looks at one archive; `bytes` grows by what is read of it.
///
/// # Errors
/// When the store cannot be asked, as opposed to answering badly.
pub(super) async fn check_archive(
    store: &Store,
    reader: &ArchiveReader,
    entry: &ArchiveEntry,
    depth: &Depth,
    bytes: &mut u64,
) -> Result<Checked, VerifyError> {
    let (key, summary) = (entry.key(), &entry.summary);
    let told = |health, length, why: String| {
        Ok(Checked { health, object: key.to_string(), range: Some(summary.range), length, why })
    };
    let length = match store.head(&key).await? {
        None => return told(Health::Lost, None, "the store does not have it".to_owned()),
        Some(length) if length != summary.length => {
            let why = format!("it has {length} bytes, its manifest says {}", summary.length);
            return told(Health::Corrupt, Some(length), why);
        }
        found => found,
    };
    let checked = match depth {
        Depth::Deep(pace) => {
            *bytes += summary.length;
            let verified = read_whole(store, &key, summary.length, summary.toc, pace).await;
            verified.map(|verified| verified.summary)
        }
        Depth::Shallow => {
            *bytes += u64::from(summary.toc.length);
            reader.toc(entry, &ReadStats::default()).await.map(|_| summary.clone())
        }
    };
    match checked {
        Ok(found) if !agrees(&found, summary) => {
            let why = "it says other things of itself than its manifest".to_owned();
            told(Health::Corrupt, length, why)
        }
        Ok(_) if summary.overlaps > 0 => {
            let why = format!("{} of its batches lie beneath others", summary.overlaps);
            told(Health::Overlap, length, why)
        }
        Ok(_) => told(Health::Ok, length, String::new()),
        Err(ReadError::Store(error)) if error.kind() == ErrorKind::NotFound => {
            told(Health::Lost, None, error.to_string())
        }
        Err(ReadError::Store(error)) => Err(error.into()),
        Err(ReadError::Archive { source, .. }) => told(Health::Corrupt, length, source.to_string()),
        Err(error @ ReadError::Worker { .. }) => Err(VerifyError::Worker(error.to_string())),
    }
}

/// Whether an archive is what its manifest says. One that fills a gap may hold
/// more offsets than it tiles.
fn agrees(found: &ArchiveSummary, said: &ArchiveSummary) -> bool {
    let covers = found.range.base() <= said.range.base() && said.range.last() <= found.range.last();
    covers && ArchiveSummary { range: said.range, ..found.clone() } == *said
}
