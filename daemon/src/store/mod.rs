//! Owns the store of objects in our verbs: create, put, get, head, list, delete.
//!
//! Owns the names of objects ([`keys`]), how a store is named ([`url`]) and set up
//! ([`remote`]), time limits, repetition, durability of local files, and the count of requests.
//! Does not own what objects hold. The only room that knows `object_store`.
//!
//! **Create is the only arbiter between writers.** [`Store::create`] is sent
//! once and never repeated here: after a failed or timed-out create nobody knows
//! whether it landed, and [`Create::Exists`] does not say whose object is there.
//! The caller reads back and compares. All other requests change nothing when
//! repeated and are, a bounded number of times.
//!
//! **Durability.** A put on a local directory returns once the file, its folder
//! and every folder made for it are synced; see [`Store::settle`] for the case
//! where that failed half-way.
//!
//! **Lengths.** A short answer is never handed on: the caller gets exactly what
//! was asked for, or an error.

mod answer;
mod counters;
mod error;
pub mod keys;
mod model;
pub mod names;
pub mod remote;
mod s3_uploads;
mod unfinished;
mod upload;
pub mod url;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    GetOptions, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
};
use tracing::Instrument;

use crate::task::Jitter;

use self::counters::Counters;
use self::error::Attempt;
use self::model::ModelStore;
use self::remote::connect;
use self::s3_uploads::S3Uploads;
use self::upload::{create_directory, open_directory, put_file, sync};

pub use self::counters::{Count, Op, Requests};
pub use self::error::StoreError;
pub use self::keys::{ObjectKey, PartitionKey, SideKind};
pub use self::model::Model;
pub use self::names::{ClusterName, NameError, WriterId};
pub use self::remote::Environment;
pub use self::upload::{PART_BYTES, PARTS_IN_FLIGHT};
pub use self::url::{Bucket, Provider, StoreUrl};

/// Longest wait for one attempt. A part of 8 MiB takes this long at 140 KB/s,
/// below which archiving is hopeless.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for a copy, and for the end of an upload in parts: the store moves
/// a whole archive then, and 2 GiB at 10 MB/s are still welcome.
pub const COMPLETE_TIMEOUT: Duration = Duration::from_secs(240);

/// Attempts at a request that may be repeated: what a busy store refuses once
/// passes, and one that is down gets no storm. Clients below repeat nothing.
pub const ATTEMPTS_MAX: u32 = 3;

/// Wait before the second attempt; doubled before each further one. Jitter takes up
/// to half of it away.
pub const BACKOFF: Duration = Duration::from_millis(100);

/// Creates of a probe: one answer that says nothing does not condemn a store.
const PROBES: u32 = 2;
/// Largest body of a probe, in bytes.
const PROBE_BYTES_MAX: u64 = 64;

/// What came of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// The object is there now, and ours.
    Done,
    /// An object of this name was there. It may still be ours, by an earlier
    /// attempt that seemed to fail: read it and compare.
    Exists,
}

/// An object as a listing tells of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name, relative to the store's prefix.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// When it was last written, in milliseconds since 1970, by the store's clock.
    pub modified_ms: i64,
}

/// A store of objects. Cheap to clone; clones share counters.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<dyn ObjectStore>,
    below: Below,
    /// Empty, or ends in a slash.
    prefix: String,
    /// For messages.
    name: String,
    counters: Counters,
    limits: Limits,
    jitter: Jitter,
}

/// What is below, where it can do more than every store.
#[derive(Clone)]
enum Below {
    /// Nothing more.
    Any,
    /// A directory.
    Directory(LocalFileSystem),
    /// A bucket of S3.
    S3(Arc<S3Uploads>),
}

/// How long to wait, for what.
#[derive(Clone, Copy)]
struct Limits {
    request: Duration,
    complete: Duration,
    backoff: Duration,
}

impl Inner {
    /// How long to wait after `attempts` that failed: many daemons that a store
    /// refused together must not come back together.
    fn wait(&self, attempts: u32) -> Duration {
        let whole = self.limits.backoff * (1 << (attempts - 1));
        whole.mul_f64(0.5 + (self.jitter)().clamp(0.0, 1.0) / 2.0)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.name)
    }
}

impl Store {
    /// Opens the store that `url` names; a directory must exist. Each `memory:`
    /// is a store of its own. A remote store is set up by the environment of this
    /// process, see [`remote`], and not spoken to yet.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Directory`] or [`StoreError::Settings`].
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_in(url, &Environment::of_process())
    }

    /// As [`Store::open`], with a remote store set up by `environment`.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Directory`] or [`StoreError::Settings`].
    pub fn open_in(url: &str, environment: &Environment) -> Result<Self, StoreError> {
        match StoreUrl::parse(url)? {
            StoreUrl::Memory => {
                Ok(Self::build(Arc::new(InMemory::new()), Below::Any, "", "memory:"))
            }
            StoreUrl::Local(path) => {
                let local = open_directory(&path)?;
                Ok(Self::build(Arc::new(local.clone()), Below::Directory(local), "", url))
            }
            StoreUrl::Remote(bucket) => {
                let (objects, below) = connect(&bucket, environment)?;
                Ok(Self::build(objects, below, &bucket.prefix, &bucket.to_string()))
            }
        }
    }

    /// As [`Store::open`], for those who will write: makes a missing directory,
    /// durably. Buckets are never made: their rules are the operator's.
    ///
    /// # Errors
    /// [`StoreError::Url`], [`StoreError::Directory`] or [`StoreError::Settings`].
    pub fn open_or_create(url: &str) -> Result<Self, StoreError> {
        if let StoreUrl::Local(path) = StoreUrl::parse(url)? {
            create_directory(&path)?;
        }
        Self::open(url)
    }

    /// A store over any implementation, with every name below `prefix`.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let name = format!("{objects}/{}", prefix.trim_matches('/'));
        Self::build(objects, Below::Any, prefix, &name)
    }

    fn build(objects: Arc<dyn ObjectStore>, below: Below, prefix: &str, name: &str) -> Self {
        let mut prefix = prefix.trim_matches('/').to_owned();
        if !prefix.is_empty() {
            prefix.push('/');
        }
        let (name, counters) = (name.to_owned(), Counters::default());
        let limits =
            Limits { request: REQUEST_TIMEOUT, complete: COMPLETE_TIMEOUT, backoff: BACKOFF };
        let jitter: Jitter = Arc::new(|| 1.0);
        Self { inner: Arc::new(Inner { objects, below, prefix, name, counters, limits, jitter }) }
    }

    /// The same store with waits spread by `jitter`, and with counters of its own.
    /// Without it they are as long as they may be.
    #[must_use]
    pub fn with_jitter(self, jitter: Jitter) -> Self {
        let limits = self.inner.limits;
        self.with(limits, jitter)
    }

    /// The same store with another wait before the second attempt and with
    /// counters of its own.
    #[must_use]
    pub fn with_backoff(self, backoff: Duration) -> Self {
        let limits = Limits { backoff, ..self.inner.limits };
        self.with_limits(limits)
    }

    /// The same store with another longest wait for any attempt and with counters
    /// of its own.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        let limits = Limits { request: timeout, complete: timeout, ..self.inner.limits };
        self.with_limits(limits)
    }

    /// The same objects at the pace of `model`, with counters of their own. What is
    /// written is not synced.
    #[must_use]
    pub fn paced(&self, model: Model) -> Self {
        let Inner { objects, prefix, name, limits, jitter, .. } = &*self.inner;
        let below = Arc::clone(objects);
        let paced = Self::build(Arc::new(ModelStore { below, model }), Below::Any, prefix, name);
        paced.with(*limits, Arc::clone(jitter))
    }

    fn with_limits(self, limits: Limits) -> Self {
        let jitter = Arc::clone(&self.inner.jitter);
        self.with(limits, jitter)
    }

    fn with(self, limits: Limits, jitter: Jitter) -> Self {
        let Inner { objects, below, prefix, name, .. } = &*self.inner;
        let (objects, below) = (Arc::clone(objects), below.clone());
        let (prefix, name, counters) = (prefix.clone(), name.clone(), Counters::default());
        Self { inner: Arc::new(Inner { objects, below, prefix, name, counters, limits, jitter }) }
    }

    /// How many requests were sent so far, by sort.
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.inner.counters.read()
    }

    /// Writes an object, over whatever is there. For names that carry the digest
    /// of what they hold.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.path(Op::Put, &key.to_string())?;
        let (objects, to, len) = (&self.inner.objects, &path, bytes.len() as u64);
        self.repeat(Op::Put, &path, || {
            let payload = PutPayload::from_bytes(bytes.clone());
            async move {
                objects.put(to, payload).await?;
                Ok(())
            }
        })
        .await?;
        self.inner.counters.bytes(Op::Put, len);
        Ok(())
    }

    /// Writes a local file as an object, in parallel parts where it is large and
    /// with at most [`PARTS_IN_FLIGHT`] parts in memory. Returns its
    /// length in bytes.
    ///
    /// # Errors
    /// When the file cannot be read or the store cannot take it; then no object
    /// is there.
    pub async fn put_file(&self, key: &ObjectKey, file: &FilePath) -> Result<u64, StoreError> {
        put_file(self, key, file).await
    }

    /// Writes an object if none of this name exists. Sent once.
    ///
    /// # Errors
    /// After an error of kind `Retry` the object may or may not be there.
    pub async fn create(&self, key: &ObjectKey, bytes: Bytes) -> Result<Create, StoreError> {
        let path = self.path(Op::Create, &key.to_string())?;
        let len = bytes.len() as u64;
        let payload = PutPayload::from_bytes(bytes);
        let sent = self
            .once(Op::Create, async {
                self.inner.objects.put_opts(&path, payload, PutMode::Create.into()).await?;
                Ok(())
            })
            .await;
        match sent {
            Ok(()) => {
                self.inner.counters.bytes(Op::Create, len);
                Ok(Create::Done)
            }
            Err(Attempt::Exists) => Ok(Create::Exists),
            Err(attempt) => Err(self.error(attempt, Op::Create, &path, 1)),
        }
    }

    /// Makes sure that an object which a failed [`Store::create`] left behind
    /// outlives a power cut: its file may be there and its folder not synced.
    /// Remote stores need nothing.
    ///
    /// # Errors
    /// When the file system cannot promise it.
    pub async fn settle(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.path(Op::Create, &key.to_string())?;
        let Below::Directory(local) = self.inner.below.clone() else { return Ok(()) };
        self.once(Op::Create, sync(local, path.clone()))
            .await
            .map_err(|attempt| self.error(attempt, Op::Create, &path, 1))
    }

    /// Reads an object of at most `max` bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::TooLarge`] before anything is
    /// read; when the store does not answer.
    pub async fn get(&self, key: &ObjectKey, max: u64) -> Result<Bytes, StoreError> {
        let path = self.path(Op::Get, &key.to_string())?;
        let (objects, from) = (&self.inner.objects, &path);
        let body = self
            .repeat(Op::Get, &path, || async move {
                let answer = objects.get(from).await?;
                let len = answer.meta.size;
                if len > max {
                    return Err(Attempt::TooLarge { max, found: len });
                }
                whole_body(answer, len).await
            })
            .await?;
        self.inner.counters.bytes(Op::Get, body.len() as u64);
        Ok(body)
    }

    /// Reads the bytes `range` of an object: all of them, or an error.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Length`] where the object ends
    /// before the range does; when the store does not answer.
    pub async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        let path = self.path(Op::GetRange, &key.to_string())?;
        let (objects, from, asked) = (&self.inner.objects, &path, &range);
        let got = self
            .repeat(Op::GetRange, &path, || async move {
                let options = GetOptions::new().with_range(Some(asked.clone()));
                let answer = objects.get_opts(from, options).await?;
                if answer.meta.size < asked.end {
                    return Err(Attempt::Short { expected: asked.end, found: answer.meta.size });
                }
                if answer.range != *asked {
                    let got = &answer.range;
                    return Err(Attempt::Failed(
                        format!("asked for bytes {asked:?}, the answer is for {got:?}").into(),
                    ));
                }
                whole_body(answer, asked.end - asked.start).await
            })
            .await;
        match got {
            Ok(body) => {
                self.inner.counters.bytes(Op::GetRange, body.len() as u64);
                Ok(body)
            }
            // A range behind the end looks like any failure to the library below.
            Err(error @ StoreError::Unavailable { .. }) => match self.head(key).await {
                Ok(Some(found)) if found < range.end => {
                    let attempt = Attempt::Short { expected: range.end, found };
                    Err(self.error(attempt, Op::GetRange, &path, 1))
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The length of an object in bytes, `None` where there is no such object.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn head(&self, key: &ObjectKey) -> Result<Option<u64>, StoreError> {
        let path = self.path(Op::Head, &key.to_string())?;
        let (objects, of) = (&self.inner.objects, &path);
        let found =
            self.repeat(Op::Head, &path, || async move { Ok(objects.head(of).await?.size) }).await;
        match found {
            Ok(len) => Ok(Some(len)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When an object was last written, in milliseconds since 1970 by the store's
    /// clock; `None` where there is no such object.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn modified_ms(&self, key: &ObjectKey) -> Result<Option<i64>, StoreError> {
        let path = self.path(Op::Head, &key.to_string())?;
        let (objects, of) = (&self.inner.objects, &path);
        let modified = self.repeat(Op::Head, &path, || async move {
            Ok(objects.head(of).await?.last_modified.timestamp_millis())
        });
        match modified.await {
            Ok(modified) => Ok(Some(modified)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The time by the store's own clock, in milliseconds since 1970: writes a
    /// small object, looks when the store says that was, deletes it. `nonce` is
    /// unique to this call.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn now_ms(
        &self,
        cluster: &ClusterName,
        writer: &WriterId,
        nonce: [u8; 16],
    ) -> Result<i64, StoreError> {
        let key = ObjectKey::Probe { cluster: cluster.clone(), writer: writer.clone(), nonce };
        self.put(&key, Bytes::from_static(b"tierd asks for the time")).await?;
        let now = self.modified_ms(&key).await?;
        self.delete(&key).await?;
        now.ok_or_else(|| StoreError::NotFound { path: key.to_string(), store: self.to_string() })
    }

    /// All objects below `folder`, in no order, as they arrive. A listing may miss
    /// what was just written: nothing that must be right may rest on it.
    pub fn list(
        &self,
        folder: &str,
    ) -> impl Stream<Item = Result<Listed, StoreError>> + Send + use<> {
        let store = self.clone();
        let start = self.path(Op::List, folder.trim_end_matches('/')).map(|path| {
            store.inner.counters.request(Op::List);
            (store.inner.objects.list(Some(&path)), path)
        });
        futures::stream::once(async move { start })
            .map_ok(move |(objects, path)| {
                let store = store.clone();
                futures::stream::try_unfold(objects, move |mut objects| {
                    let (store, path) = (store.clone(), path.clone());
                    async move {
                        let limit = store.inner.limits.request;
                        let next = tokio::time::timeout(limit, objects.next()).await;
                        let attempt = match next {
                            Ok(None) => return Ok(None),
                            Ok(Some(Ok(meta))) => {
                                let name = meta.location.as_ref();
                                let name = name.strip_prefix(&store.inner.prefix).unwrap_or(name);
                                let listed = Listed {
                                    name: name.to_owned(),
                                    length: meta.size,
                                    modified_ms: meta.last_modified.timestamp_millis(),
                                };
                                return Ok(Some((listed, objects)));
                            }
                            Ok(Some(Err(error))) => Attempt::from(error),
                            Err(_) => Attempt::Timeout(limit),
                        };
                        store.inner.counters.failure(Op::List);
                        Err(store.error(attempt, Op::List, &path, 1))
                    }
                })
            })
            .try_flatten()
    }

    /// The names of the folders directly inside `folder`, in no order.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list_folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = self.path(Op::List, folder.trim_end_matches('/'))?;
        let (objects, of) = (&self.inner.objects, &path);
        let found = self
            .repeat(Op::List, &path, || async move {
                Ok(objects.list_with_delimiter(Some(of)).await?.common_prefixes)
            })
            .await?;
        Ok(found.iter().filter_map(|folder| folder.filename().map(str::to_owned)).collect())
    }

    /// Copies an object inside the store, over whatever is there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for `from`; when the store cannot.
    pub async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StoreError> {
        let from = self.path(Op::Copy, &from.to_string())?;
        let to = self.path(Op::Copy, &to.to_string())?;
        let (objects, one, two) = (&self.inner.objects, &from, &to);
        self.repeat(Op::Copy, &from, || async move { Ok(objects.copy(one, two).await?) }).await
    }

    /// Deletes an object. That it is not there is what was asked for.
    ///
    /// # Errors
    /// When the store cannot.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.path(Op::Delete, &key.to_string())?;
        let (objects, of) = (&self.inner.objects, &path);
        let deleted =
            self.repeat(Op::Delete, &path, || async move { Ok(objects.delete(of).await?) }).await;
        match deleted {
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Sees whether the store can be trusted with a commit: creates an object,
    /// is refused a second one in its place, reads the first back, deletes it.
    /// To be called before the first write; `nonce` is unique to this call.
    ///
    /// # Errors
    /// [`StoreError::NotCreateOnly`], or why the store cannot be written.
    pub async fn probe(
        &self,
        cluster: &ClusterName,
        writer: &WriterId,
        nonce: [u8; 16],
    ) -> Result<(), StoreError> {
        let key = ObjectKey::Probe { cluster: cluster.clone(), writer: writer.clone(), nonce };
        let first = Bytes::from_static(b"tierd probe 1");
        let there = async || match self.get(&key, PROBE_BYTES_MAX).await {
            Ok(found) => Ok(found == first),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        // The name is unique. What exists is ours, from a request whose answer was lost;
        // or the store did not know, and is asked again; or it says so to everything.
        let mut created = false;
        for _ in 0..PROBES {
            let done = self.create(&key, first.clone()).await? == Create::Done;
            created = done || there().await?;
            if created {
                break;
            }
        }
        let refused = created
            && self.create(&key, Bytes::from_static(b"tierd probe 2")).await? == Create::Exists
            && there().await?;
        self.delete(&key).await?;
        if refused { Ok(()) } else { Err(StoreError::NotCreateOnly { store: self.to_string() }) }
    }

    /// The library's name for one of ours. `Path::from` would escape what is
    /// not ASCII; `Path::parse` keeps it.
    fn path(&self, op: Op, name: &str) -> Result<Path, StoreError> {
        Path::parse(format!("{}{name}", self.inner.prefix)).map_err(|error| StoreError::Defect {
            op,
            path: name.to_owned(),
            store: self.to_string(),
            source: Box::new(error),
        })
    }

    fn error(&self, attempt: Attempt, op: Op, path: &Path, attempts: u32) -> StoreError {
        let path = path.as_ref();
        let path = path.strip_prefix(&self.inner.prefix).unwrap_or(path);
        attempt.into_error(&self.inner.name, op, path, attempts)
    }

    /// One attempt, given up after [`REQUEST_TIMEOUT`] or [`COMPLETE_TIMEOUT`].
    async fn once<T>(
        &self,
        op: Op,
        request: impl Future<Output = Result<T, Attempt>> + Send,
    ) -> Result<T, Attempt> {
        let Limits { request: limit, complete, .. } = self.inner.limits;
        self.within(if op == Op::Copy { complete } else { limit }, op, request).await
    }

    /// One attempt: counted, and given up after `limit`.
    async fn within<T>(
        &self,
        limit: Duration,
        op: Op,
        request: impl Future<Output = Result<T, Attempt>> + Send,
    ) -> Result<T, Attempt> {
        self.inner.counters.request(op);
        let span = tracing::debug_span!("store_request", op = op.as_str());
        let answer = tokio::time::timeout(limit, request.instrument(span))
            .await
            .unwrap_or(Err(Attempt::Timeout(limit)));
        if !matches!(answer, Ok(_) | Err(Attempt::NotFound | Attempt::Exists)) {
            self.inner.counters.failure(op);
        }
        answer
    }

    /// Up to [`ATTEMPTS_MAX`] attempts at a request that changes nothing when
    /// repeated.
    async fn repeat<T, F: Future<Output = Result<T, Attempt>> + Send>(
        &self,
        op: Op,
        path: &Path,
        request: impl Fn() -> F + Send,
    ) -> Result<T, StoreError> {
        let mut attempts = 1;
        loop {
            match self.once(op, request()).await {
                Ok(value) => return Ok(value),
                Err(attempt) if attempts < ATTEMPTS_MAX && attempt.may_repeat() => {
                    tokio::time::sleep(self.inner.wait(attempts)).await;
                    attempts += 1;
                }
                Err(attempt) => return Err(self.error(attempt, op, path, attempts)),
            }
        }
    }
}

/// The body of an answer, which must be exactly `len` bytes.
async fn whole_body(answer: GetResult, len: u64) -> Result<Bytes, Attempt> {
    let cut = |found: u64| {
        Attempt::Failed(format!("the answer ended after {found} of {len} bytes").into())
    };
    let body = match answer.payload {
        GetResultPayload::File(..) => answer.bytes().await?,
        GetResultPayload::Stream(mut pieces) => {
            let Some(first) = pieces.try_next().await? else {
                return if len == 0 { Ok(Bytes::new()) } else { Err(cut(0)) };
            };
            if first.len() as u64 == len {
                first
            } else {
                let mut body = BytesMut::from(first);
                while (body.len() as u64) < len {
                    let Some(piece) = pieces.try_next().await? else { break };
                    body.extend_from_slice(&piece);
                }
                body.freeze()
            }
        }
    };
    if body.len() as u64 == len { Ok(body) } else { Err(cut(body.len() as u64)) }
}

#[cfg(test)]
mod tests;
