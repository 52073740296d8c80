//! Owns what a store has to do with local files: sending one as an object, and
//! the directory of a `file://` store.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{MultipartUpload, PutMultipartOptions, PutPayload};
use tokio::task::JoinSet;

use super::answer::Answer;
use super::error::Attempt;
use super::{ATTEMPTS_MAX, Inner, ObjectKey, Op, Store, StoreError};

/// Size of one part in bytes. Stores want at least 5 MiB and at most 10,000
/// parts: this reaches 80 GB, and an archive has at most a few.
pub const PART_BYTES: u64 = 8 << 20;

/// Parts sent at a time. With [`PART_BYTES`] this bounds the memory of an upload
/// at 32 MiB, and fills a line of 1 Gbit/s at 200 ms a part.
pub const PARTS_IN_FLIGHT: usize = 4;

/// See [`Store::put_file`].
pub(super) async fn put_file(
    store: &Store,
    key: &ObjectKey,
    file: &FilePath,
) -> Result<u64, StoreError> {
    let source = |source| StoreError::Source { path: file.to_owned(), source };
    let path = file.to_owned();
    let (open, len) = blocking(move || {
        let open = File::open(path)?;
        let len = open.metadata()?.len();
        Ok((Arc::new(open), len))
    })
    .await
    .map_err(source)?;

    if len <= PART_BYTES {
        store.put(key, read(&open, 0, len).await.map_err(source)?).await?;
        return Ok(len);
    }
    let to = store.path(Op::Put, &key.to_string())?;
    let (objects, of) = (&store.inner.objects, &to);
    let mut upload = store
        .repeat(Op::Put, &to, || async move {
            let options = PutMultipartOptions::default();
            let options = options.with_retry_policy(Arc::new(PartPolicy(store.clone())));
            Ok(objects.put_multipart_opts(of, options).await?)
        })
        .await?;
    let mut parts = JoinSet::new();
    let sent = async {
        let mut at = 0;
        while at < len {
            if parts.len() >= PARTS_IN_FLIGHT {
                joined(parts.join_next().await)?;
            }
            let part = read(&open, at, PART_BYTES.min(len - at)).await.map_err(Sent::Source)?;
            at += part.len() as u64;
            send(store, &mut *upload, &mut parts, part);
        }
        while !parts.is_empty() {
            joined(parts.join_next().await)?;
        }
        let complete = async { Ok(upload.complete().await?) };
        store.within(store.inner.limits.complete, Op::Put, complete).await.map_err(Sent::Store)
    }
    .await;
    match sent {
        Ok(_) => Ok(len),
        Err(sent) => {
            parts.shutdown().await;
            // Whether this works does not matter: an unfinished upload is no
            // object, and stores are told to drop old ones by themselves.
            let _ = tokio::time::timeout(store.inner.limits.request, upload.abort()).await;
            Err(match sent {
                Sent::Source(error) => source(error),
                Sent::Store(attempt) => store.error(attempt, Op::PutPart, &to, 1),
            })
        }
    }
}

/// Repeats a part that a remote store refused or whose connection broke: one busy
/// moment must not cost the whole upload. All attempts at a part share its limit.
#[derive(Debug)]
struct PartPolicy(Store);

impl RetryPolicy for PartPolicy {
    fn retry<'a, 'b>(&'a self, failed: RetryContext) -> BoxFuture<'b, bool>
    where
        'a: 'b,
    {
        Box::pin(async move {
            let again = match failed.failure {
                RetryFailure::Status(status) => Answer::may_repeat(status.as_u16()),
                _ => true,
            };
            let attempts = u32::try_from(failed.attempt).unwrap_or(ATTEMPTS_MAX);
            if !again || attempts >= ATTEMPTS_MAX {
                return false;
            }
            let Inner { counters, .. } = &*self.0.inner;
            counters.failure(Op::PutPart);
            tokio::time::sleep(self.0.inner.wait(attempts)).await;
            counters.request(Op::PutPart);
            true
        })
    }
}

/// Why an upload stopped.
enum Sent {
    Source(std::io::Error),
    Store(Attempt),
}

fn send(
    store: &Store,
    upload: &mut dyn MultipartUpload,
    parts: &mut JoinSet<Result<(), Attempt>>,
    part: Bytes,
) {
    let (store, len) = (store.clone(), part.len() as u64);
    let request = upload.put_part(PutPayload::from_bytes(part));
    parts.spawn(async move {
        store.once(Op::PutPart, async { Ok(request.await?) }).await?;
        store.inner.counters.bytes(Op::PutPart, len);
        Ok(())
    });
}

fn joined(done: Option<Result<Result<(), Attempt>, tokio::task::JoinError>>) -> Result<(), Sent> {
    match done {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(attempt))) => Err(Sent::Store(attempt)),
        Some(Err(error)) => Err(Sent::Store(Attempt::Defect(Box::new(error)))),
    }
}

/// Reads exactly `len` bytes; the file is not supposed to change.
async fn read(file: &Arc<File>, at: u64, len: u64) -> std::io::Result<Bytes> {
    let file = Arc::clone(file);
    blocking(move || {
        let len = usize::try_from(len).map_err(std::io::Error::other)?;
        let mut part = vec![0; len];
        file.read_exact_at(&mut part, at)?;
        Ok(part.into())
    })
    .await
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

/// The directory of a store, with every write synced.
pub(super) fn open_directory(path: &FilePath) -> Result<LocalFileSystem, StoreError> {
    let refuse = |source| StoreError::Directory { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(refuse)?.is_dir() {
        return Err(refuse(std::io::ErrorKind::NotADirectory.into()));
    }
    match LocalFileSystem::new_with_prefix(path) {
        Ok(local) => Ok(local.with_fsync(true)),
        Err(error) => Err(refuse(std::io::Error::other(error))),
    }
}

/// Makes a directory and those above it, and syncs every folder that got an
/// entry by it.
pub(super) fn create_directory(path: &FilePath) -> Result<(), StoreError> {
    let refuse = |source| StoreError::Directory { path: path.to_owned(), source };
    let mut touched = Vec::new();
    for folder in path.ancestors() {
        if folder.try_exists().map_err(refuse)? {
            break;
        }
        touched.extend(folder.parent());
    }
    if touched.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(refuse)?;
    touched.into_iter().try_for_each(|folder| File::open(folder)?.sync_all()).map_err(refuse)
}

/// Syncs an object's file and the folders from it up to the store's own.
pub(super) async fn sync(local: LocalFileSystem, object: Path) -> Result<(), Attempt> {
    let file = local.path_to_filesystem(&object)?;
    let folders = object.parts_count();
    blocking(move || {
        file.ancestors().take(folders + 1).try_for_each(|entry| File::open(entry)?.sync_all())
    })
    .await
    .map_err(Attempt::from_io)
}
