//! Owns a store whose client dies: at the n-th request that changes something,
//! before or after it took effect. From then on every request fails, as for a
//! process that is no more. What lies below stays as it was at that moment.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// When a client dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// At which request that changes something, from 1.
    pub at: u64,
    /// Whether that request takes effect.
    pub after: bool,
}

/// The store as one mortal client sees it.
#[derive(Debug)]
pub struct MortalStore {
    below: Arc<dyn ObjectStore>,
    life: Arc<Life>,
}

#[derive(Debug)]
struct Life {
    death: Death,
    changes: AtomicU64,
}

/// What becomes of a request.
enum Fate {
    Lives,
    DiesAfter,
}

fn dead() -> Error {
    Error::Generic { store: "mortal", source: "the client is dead".into() }
}

impl Life {
    fn is_over(&self) -> bool {
        self.changes.load(Ordering::SeqCst) >= self.death.at
    }

    fn read(&self) -> Result<()> {
        if self.is_over() { Err(dead()) } else { Ok(()) }
    }

    fn change(&self) -> Result<Fate> {
        match self.changes.fetch_add(1, Ordering::SeqCst) + 1 {
            number if number < self.death.at => Ok(Fate::Lives),
            number if number == self.death.at && self.death.after => Ok(Fate::DiesAfter),
            _ => Err(dead()),
        }
    }
}

fn told<T>(fate: &Fate, done: Result<T>) -> Result<T> {
    match fate {
        Fate::Lives => done,
        Fate::DiesAfter => done.and(Err(dead())),
    }
}

impl MortalStore {
    /// A client of `below` that dies as told.
    #[must_use]
    pub fn new(below: Arc<dyn ObjectStore>, death: Death) -> Arc<Self> {
        Arc::new(Self { below, life: Arc::new(Life { death, changes: AtomicU64::new(0) }) })
    }

    /// Whether it died: with a death beyond the end of the work, all was seen.
    #[must_use]
    pub fn died(&self) -> bool {
        self.life.is_over()
    }
}

impl fmt::Display for MortalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mortal {}", self.below)
    }
}

#[async_trait]
impl ObjectStore for MortalStore {
    async fn put_opts(&self, to: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        let fate = self.life.change()?;
        told(&fate, self.below.put_opts(to, body, how).await)
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.life.read()?;
        let below = self.below.put_multipart_opts(to, how).await?;
        Ok(Box::new(MortalUpload { below, life: Arc::clone(&self.life) }))
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        self.life.read()?;
        self.below.get_opts(from, how).await
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.life.read()?;
        self.below.get_ranges(from, ranges).await
    }

    fn delete_stream(
        &self,
        which: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (below, life) = (Arc::clone(&self.below), Arc::clone(&self.life));
        let deleted = which.and_then(move |path| {
            let (below, life) = (Arc::clone(&below), Arc::clone(&life));
            async move {
                let fate = life.change()?;
                let one = futures::stream::iter([Ok(path.clone())]).boxed();
                let done = below.delete_stream(one).try_collect::<Vec<_>>().await.map(|_| ());
                told(&fate, done)?;
                Ok(path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, folder: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.life.read() {
            Ok(()) => self.below.list(folder),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, folder: Option<&Path>) -> Result<ListResult> {
        self.life.read()?;
        self.below.list_with_delimiter(folder).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        let fate = self.life.change()?;
        told(&fate, self.below.copy_opts(from, to, how).await)
    }
}

#[derive(Debug)]
struct MortalUpload {
    below: Box<dyn MultipartUpload>,
    life: Arc<Life>,
}

#[async_trait]
impl MultipartUpload for MortalUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        match self.life.read() {
            Ok(()) => self.below.put_part(part),
            Err(error) => futures::future::ready(Err(error)).boxed(),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fate = self.life.change()?;
        told(&fate, self.below.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        self.life.read()?;
        self.below.abort().await
    }
}
