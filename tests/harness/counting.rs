//! Owns a store that counts: every request with its object and its bytes.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// A sort of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// An object written whole.
    Put,
    /// An object written only where there is none.
    Create,
    /// An upload in parts begun.
    Multipart,
    /// A part of an upload.
    Part,
    /// An upload in parts ended.
    Complete,
    /// An object read whole.
    Get,
    /// A range of an object read.
    GetRange,
    /// An object's length asked for.
    Head,
    /// Names listed.
    List,
    /// An object copied.
    Copy,
    /// An object deleted.
    Delete,
}

impl Op {
    /// What a read asks for.
    #[must_use]
    pub fn of_get(options: &GetOptions) -> Self {
        match (options.head, &options.range) {
            (true, _) => Self::Head,
            (false, Some(_)) => Self::GetRange,
            (false, None) => Self::Get,
        }
    }

    /// What a write asks for.
    #[must_use]
    pub fn of_put(options: &PutOptions) -> Self {
        if matches!(options.mode, PutMode::Create) { Self::Create } else { Self::Put }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its sort.
    pub op: Op,
    /// The object, or the folder listed.
    pub path: String,
    /// Bytes of objects sent, or that the answer holds.
    pub bytes: u64,
}

type Log = Arc<Mutex<Vec<Request>>>;

/// Counts what goes to the store below.
#[derive(Debug)]
pub struct CountingStore {
    below: Arc<dyn ObjectStore>,
    log: Log,
}

impl CountingStore {
    /// Counts what goes to `below`.
    #[must_use]
    pub fn new(below: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { below, log: Log::default() })
    }

    /// Every request so far, in the order they were sent.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests of `op` to objects whose name holds `part`, and their bytes.
    #[must_use]
    pub fn count(&self, op: Op, part: &str) -> (usize, u64) {
        let log = self.requests();
        let of = log.iter().filter(|request| request.op == op && request.path.contains(part));
        of.fold((0, 0), |(count, bytes), request| (count + 1, bytes + request.bytes))
    }

    /// Forgets what was counted.
    pub fn reset(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn note(&self, op: Op, path: &Path, bytes: u64) {
        note(&self.log, op, path, bytes);
    }
}

fn note(log: &Log, op: Op, path: &Path, bytes: u64) {
    let request = Request { op, path: path.to_string(), bytes };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(request);
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counting {}", self.below)
    }
}

#[async_trait]
impl ObjectStore for CountingStore {
    async fn put_opts(&self, to: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.note(Op::of_put(&how), to, body.content_length() as u64);
        self.below.put_opts(to, body, how).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.note(Op::Multipart, to, 0);
        let below = self.below.put_multipart_opts(to, how).await?;
        Ok(Box::new(CountingUpload { below, to: to.clone(), log: Arc::clone(&self.log) }))
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        let op = Op::of_get(&how);
        let answer = self.below.get_opts(from, how).await;
        let range = answer.as_ref().map_or(0..0, |answer| answer.range.clone());
        self.note(op, from, if op == Op::Head { 0 } else { range.end - range.start });
        answer
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        for range in ranges {
            self.note(Op::GetRange, from, range.end - range.start);
        }
        self.below.get_ranges(from, ranges).await
    }

    fn delete_stream(
        &self,
        which: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let log = Arc::clone(&self.log);
        let noted = which.inspect(move |path| {
            if let Ok(path) = path {
                note(&log, Op::Delete, path, 0);
            }
        });
        self.below.delete_stream(noted.boxed())
    }

    fn list(&self, folder: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.note(Op::List, folder.unwrap_or(&Path::ROOT), 0);
        self.below.list(folder)
    }

    async fn list_with_delimiter(&self, folder: Option<&Path>) -> Result<ListResult> {
        self.note(Op::List, folder.unwrap_or(&Path::ROOT), 0);
        self.below.list_with_delimiter(folder).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.note(Op::Copy, to, 0);
        self.below.copy_opts(from, to, how).await
    }
}

#[derive(Debug)]
struct CountingUpload {
    below: Box<dyn MultipartUpload>,
    to: Path,
    log: Log,
}

#[async_trait]
impl MultipartUpload for CountingUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        note(&self.log, Op::Part, &self.to, part.content_length() as u64);
        self.below.put_part(part).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        note(&self.log, Op::Complete, &self.to, 0);
        self.below.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.below.abort().await
    }
}
