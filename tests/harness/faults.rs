//! Owns a store that fails, as told or by a seed: answers that get lost, answers
//! that lie, bodies that end early, objects that vanish, requests that wait.
//!
//! A seeded store also lets other tasks run before every request, so that tasks
//! on one thread interleave differently with every seed and alike with one.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;

use crate::counting::Op;

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// 503: the request has no effect.
    Unavailable,
    /// The request takes effect and its answer is lost.
    LostResponse,
    /// 409 without effect: some stores answer so when they do not know.
    Conflict,
    /// 409 after the request took effect, as a repetition inside a client gets.
    ConflictAfterLanding,
    /// A create replaces what is there, as stores do that know no conditions.
    Overwrite,
    /// The body ends before its length.
    ShortBody,
    /// 404 for an object that is there.
    Vanished,
    /// The request waits until it gets a permit, then goes on.
    Hold(Arc<Semaphore>),
}

struct Script {
    op: Op,
    part: String,
    fault: Fault,
    times: u32,
}

#[derive(Default)]
struct Plan {
    scripts: Vec<Script>,
    seeded: Option<(StdRng, f64)>,
    injected: Vec<(Op, String, String)>,
}

/// Fails requests on their way to the store below.
pub struct FaultStore {
    below: Arc<dyn ObjectStore>,
    plan: Arc<Mutex<Plan>>,
}

impl FaultStore {
    /// Fails nothing until told to.
    #[must_use]
    pub fn new(below: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { below, plan: Arc::default() })
    }

    /// Fails each request with probability `chance`, decided by `seed`.
    #[must_use]
    pub fn seeded(below: Arc<dyn ObjectStore>, seed: u64, chance: f64) -> Arc<Self> {
        let store = Self::new(below);
        store.plan().seeded = Some((StdRng::seed_from_u64(seed), chance));
        store
    }

    /// Fails the next `times` requests of `op` to objects whose name holds `part`.
    pub fn inject(&self, op: Op, part: &str, fault: Fault, times: u32) {
        self.plan().scripts.push(Script { op, part: part.to_owned(), fault, times });
    }

    /// Fails nothing any more.
    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.scripts.clear();
        if let Some((_, chance)) = &mut plan.seeded {
            *chance = 0.0;
        }
    }

    /// What was failed so far: sort, object, fault.
    #[must_use]
    pub fn injected(&self) -> Vec<(Op, String, String)> {
        self.plan().injected.clone()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault of the next request, after a pause that lets others go first.
    async fn next(&self, op: Op, path: &Path) -> Option<Fault> {
        let pauses = match &mut self.plan().seeded {
            Some((rng, _)) => rng.random_range(0..4),
            None => 0,
        };
        for _ in 0..pauses {
            tokio::task::yield_now().await;
        }
        let fault = choose(&mut self.plan(), op, path)?;
        if let Fault::Hold(gate) = &fault {
            // A closed gate lets everyone through as well.
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
            return None;
        }
        Some(fault)
    }
}

fn choose(plan: &mut Plan, op: Op, path: &Path) -> Option<Fault> {
    let name = path.as_ref();
    let told = plan
        .scripts
        .iter_mut()
        .find(|script| script.times > 0 && script.op == op && name.contains(&script.part));
    let fault = match (told, &mut plan.seeded) {
        (Some(script), _) => {
            script.times -= 1;
            script.fault.clone()
        }
        (None, Some((rng, chance))) => {
            if !rng.random_bool(*chance) {
                return None;
            }
            let possible = possible(op);
            possible[rng.random_range(0..possible.len())].clone()
        }
        (None, None) => return None,
    };
    plan.injected.push((op, name.to_owned(), format!("{fault:?}")));
    Some(fault)
}

/// What a seed may do to a request.
fn possible(op: Op) -> &'static [Fault] {
    match op {
        Op::Create => {
            &[Fault::Unavailable, Fault::LostResponse, Fault::Conflict, Fault::ConflictAfterLanding]
        }
        Op::Get | Op::GetRange => &[Fault::Unavailable, Fault::ShortBody],
        Op::Head | Op::List => &[Fault::Unavailable],
        _ => &[Fault::Unavailable, Fault::LostResponse],
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "faults", source: "503 Service Unavailable".into() }
}

fn conflict(path: &Path) -> Error {
    Error::AlreadyExists { path: path.to_string(), source: "409 Conflict".into() }
}

fn vanished(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "404 Not Found".into() }
}

/// What is told of a request with an effect, once it took effect.
fn told<T>(fault: Option<&Fault>, path: &Path, done: Result<T>) -> Result<T> {
    match fault {
        Some(Fault::LostResponse) => done.and(Err(unavailable())),
        Some(Fault::ConflictAfterLanding) => done.and(Err(conflict(path))),
        _ => done,
    }
}

/// What is told of a request that does not take effect, if it does not.
fn refused(fault: Option<&Fault>, path: &Path) -> Result<()> {
    match fault {
        Some(Fault::Unavailable) => Err(unavailable()),
        Some(Fault::Conflict) => Err(conflict(path)),
        Some(Fault::Vanished) => Err(vanished(path)),
        _ => Ok(()),
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.below)
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.below)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, to: &Path, body: PutPayload, how: PutOptions) -> Result<PutResult> {
        let fault = self.next(Op::of_put(&how), to).await;
        refused(fault.as_ref(), to)?;
        let mode = match fault {
            Some(Fault::Overwrite) => PutMode::Overwrite,
            _ => how.mode.clone(),
        };
        let how = PutOptions { mode, ..how };
        told(fault.as_ref(), to, self.below.put_opts(to, body, how).await)
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        refused(self.next(Op::Multipart, to).await.as_ref(), to)?;
        let below = self.below.put_multipart_opts(to, how).await?;
        Ok(Box::new(FaultyUpload { below, to: to.clone(), plan: Arc::clone(&self.plan) }))
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        let fault = self.next(Op::of_get(&how), from).await;
        refused(fault.as_ref(), from)?;
        let answer = self.below.get_opts(from, how).await?;
        if !matches!(fault, Some(Fault::ShortBody)) {
            return Ok(answer);
        }
        let (meta, range) = (answer.meta.clone(), answer.range.clone());
        let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
        let body = whole(answer.into_stream()).await?;
        let short = body.slice(..body.len() / 2);
        let payload = GetResultPayload::Stream(futures::stream::iter([Ok(short)]).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        refused(self.next(Op::GetRange, from).await.as_ref(), from)?;
        self.below.get_ranges(from, ranges).await
    }

    fn delete_stream(
        &self,
        which: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (below, plan) = (Arc::clone(&self.below), Arc::clone(&self.plan));
        let deleted = which.and_then(move |path| {
            let fault =
                choose(&mut plan.lock().unwrap_or_else(PoisonError::into_inner), Op::Delete, &path);
            let below = Arc::clone(&below);
            async move {
                refused(fault.as_ref(), &path)?;
                let one = futures::stream::iter([Ok(path.clone())]).boxed();
                let done = below.delete_stream(one).try_collect::<Vec<_>>().await.map(|_| ());
                told(fault.as_ref(), &path, done)?;
                Ok(path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, folder: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = &folder.cloned().unwrap_or_default();
        match choose(&mut self.plan(), Op::List, path) {
            Some(_) => futures::stream::iter([Err(unavailable())]).boxed(),
            None => self.below.list(folder),
        }
    }

    async fn list_with_delimiter(&self, folder: Option<&Path>) -> Result<ListResult> {
        let path = &folder.cloned().unwrap_or_default();
        refused(self.next(Op::List, path).await.as_ref(), path)?;
        self.below.list_with_delimiter(folder).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        let fault = self.next(Op::Copy, to).await;
        refused(fault.as_ref(), to)?;
        told(fault.as_ref(), to, self.below.copy_opts(from, to, how).await)
    }
}

struct FaultyUpload {
    below: Box<dyn MultipartUpload>,
    to: Path,
    plan: Arc<Mutex<Plan>>,
}

impl FaultyUpload {
    fn next(&self, op: Op) -> Option<Fault> {
        choose(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner), op, &self.to)
    }
}

impl fmt::Debug for FaultyUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyUpload({})", self.to)
    }
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        match self.next(Op::Part) {
            Some(_) => futures::future::ready(Err(unavailable())).boxed(),
            None => self.below.put_part(part),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.next(Op::Complete);
        refused(fault.as_ref(), &self.to)?;
        told(fault.as_ref(), &self.to, self.below.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        self.below.abort().await
    }
}

async fn whole(mut pieces: BoxStream<'static, Result<Bytes>>) -> Result<Bytes> {
    let mut body = Vec::new();
    while let Some(piece) = pieces.try_next().await? {
        body.extend_from_slice(&piece);
    }
    Ok(body.into())
}
