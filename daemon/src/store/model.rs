//! Owns the model of a remote store: the objects of a store at hand, answered at the
//! pace of a network that is given in two numbers.
//!
//! ```text
//!  time of one request = latency + bytes of its body / bandwidth
//! ```
//!
//! **The time is waited, not computed.** What is measured through the model is how
//! well the code overlaps its requests with each other and with its own work, and a
//! sum of computed times would have to guess that. The time is the model's own
//! nevertheless: what the store beneath needs for a body passes within the latency,
//! so that figures hardly depend on the disk of the machine they were taken on.
//!
//! Requests do not slow each other down: bandwidth is that of one request, as object
//! stores limit it. A listing costs a request for every thousand objects. A body is
//! held whole while it is waited for.
//!
//! The library's own `ThrottledStore` cannot read from a directory and takes no time
//! for the bytes of a put.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

/// Objects that one request for a listing tells, as S3 does.
const LISTED_A_PAGE: usize = 1_000;

/// How long requests take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// From a request to the first byte of its answer.
    pub latency: Duration,
    /// Bytes a second of one request's body, either way; 0 for no limit.
    pub bandwidth: u64,
}

impl Model {
    /// The time of one request with a body of `bytes`.
    #[must_use]
    pub fn time(&self, bytes: u64) -> Duration {
        self.latency + self.transfer(bytes)
    }

    fn transfer(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000;
        let nanos = nanos.checked_div(u128::from(self.bandwidth)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What `work` brings, not before the time of a request with a body of `bytes`.
    async fn paced<T>(self, bytes: u64, work: impl Future<Output = T>) -> T {
        tokio::join!(work, wait(self.time(bytes))).0
    }
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Answers from the store below, at the model's pace.
#[derive(Debug)]
pub(super) struct ModelStore {
    pub(super) below: Arc<dyn ObjectStore>,
    pub(super) model: Model,
}

impl fmt::Display for ModelStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model of {:?} over {}", self.model.latency, self.below)
    }
}

#[async_trait::async_trait]
impl ObjectStore for ModelStore {
    async fn put_opts(&self, to: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        let bytes = body.content_length() as u64;
        self.model.paced(bytes, self.below.put_opts(to, body, how)).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let below = self.model.paced(0, self.below.put_multipart_opts(to, how)).await?;
        Ok(Box::new(ModelUpload { below, model: self.model }))
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        let head = how.head;
        let read = async {
            let answer = self.below.get_opts(from, how).await?;
            if head {
                return Ok::<_, Error>((answer, 0));
            }
            let (meta, range) = (answer.meta.clone(), answer.range.clone());
            let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
            let body = answer.bytes().await?;
            let bytes = body.len() as u64;
            let payload = GetResultPayload::Stream(stream::iter([Ok(body)]).boxed());
            Ok((GetResult { payload, meta, range, attributes, extensions }, bytes))
        };
        let (answer, bytes) = self.model.paced(0, read).await?;
        wait(self.model.transfer(bytes)).await;
        Ok(answer)
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let bytes = ranges.iter().map(|range| range.end - range.start).sum();
        self.model.paced(bytes, self.below.get_ranges(from, ranges)).await
    }

    fn delete_stream(
        &self,
        which: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let model = self.model;
        let paced = which.then(move |path| model.paced(0, async { path }));
        self.below.delete_stream(paced.boxed())
    }

    fn list(&self, folder: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (latency, listed) = (self.model.latency, self.below.list(folder));
        let first = async move {
            wait(latency).await;
            listed
        };
        let page = move |(number, object): (usize, _)| async move {
            if number > 0 && number % LISTED_A_PAGE == 0 {
                wait(latency).await;
            }
            object
        };
        first.into_stream().flatten().enumerate().then(page).boxed()
    }

    async fn list_with_delimiter(&self, folder: Option<&Path>) -> Result<ListResult> {
        self.model.paced(0, self.below.list_with_delimiter(folder)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.model.paced(0, self.below.copy_opts(from, to, how)).await
    }
}

#[derive(Debug)]
struct ModelUpload {
    below: Box<dyn MultipartUpload>,
    model: Model,
}

#[async_trait::async_trait]
impl MultipartUpload for ModelUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (model, bytes) = (self.model, part.content_length() as u64);
        let sent = self.below.put_part(part);
        model.paced(bytes, sent).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.model.paced(0, self.below.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.model.paced(0, self.below.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::store::{ClusterName, ObjectKey, Store, WriterId};

    #[test]
    fn time_is_latency_and_transfer() {
        let model = Model { latency: Duration::from_millis(30), bandwidth: 80 << 20 };
        assert_eq!(model.time(0), Duration::from_millis(30));
        assert_eq!(model.time(8 << 20), Duration::from_millis(130));
        let unlimited = Model { bandwidth: 0, ..model };
        assert_eq!(unlimited.time(u64::MAX), Duration::from_millis(30));
        assert!(Model { bandwidth: 1, ..model }.time(u64::MAX) > Duration::from_secs(1 << 30));
    }

    /// What one request takes at least, in milliseconds: a sleep may last longer on
    /// a busy machine, never shorter.
    #[tokio::test]
    async fn every_request_is_charged_what_the_model_says_and_answered_as_before() {
        let model = Model { latency: Duration::from_millis(5), bandwidth: 1 << 20 };
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
        let store = store.paced(model);
        let (cluster, writer) = (ClusterName::new("c").unwrap(), WriterId::new("w").unwrap());
        let key = ObjectKey::Probe { cluster, writer, nonce: [0; 16] };
        let clock = SystemClock::new();
        let mut begun = Duration::ZERO;
        let mut passed = |what: &str, ms| {
            let (now, least) = (clock.monotonic(), Duration::from_millis(ms));
            assert!(now - begun >= least, "{what} took {:?}, not {least:?}", now - begun);
            begun = now;
        };
        let body = Bytes::from(vec![7; 32 << 10]);
        store.put(&key, body.clone()).await.unwrap();
        passed("put", 5 + 31);
        assert_eq!(store.get_range(&key, 0..16 << 10).await.unwrap(), body.slice(..16 << 10));
        passed("get of half", 5 + 15);
        assert_eq!(store.get(&key, 1 << 20).await.unwrap(), body);
        passed("get", 5 + 31);
        assert_eq!(store.head(&key).await.unwrap(), Some(32 << 10));
        passed("head", 5);
        store.list_folders("").await.unwrap();
        passed("list", 5);
        store.delete(&key).await.unwrap();
        passed("delete", 5);
        assert_eq!(store.head(&key).await.unwrap(), None);
        passed("head of nothing", 5);
    }
}
