//! Owns a store that fails, as told or by a seed: answers that get lost, answers
//! that lie, bodies that end early, objects that vanish, requests that wait.
//!
//! Who decides is a [`Judge`]: a script of what to fail next, a seed, or a scheduler
//! that holds every request until it is its turn ([`crate::gate`]). A seeded store
//! also lets other tasks run before every request, so that tasks on one thread
//! interleave differently with every seed and alike with one.

mod answer;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
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
    /// 429: the request has no effect.
    Throttled,
    /// 403: the credentials have expired. The request has no effect.
    Denied,
    /// The request takes effect and its answer is lost.
    LostResponse,
    /// 409 without effect: some stores answer so when they do not know.
    Conflict,
    /// 409 after the request took effect, as a repetition inside a client gets.
    ConflictAfterLanding,
    /// 412 after the request took effect, as a repetition inside a client gets.
    PreconditionAfterLanding,
    /// A create replaces what is there, as stores do that know no conditions.
    Overwrite,
    /// The body ends before its length.
    ShortBody,
    /// The connection breaks in the middle of the body.
    Reset,
    /// 200 where 206 was asked for: the whole object instead of a range.
    WholeBody,
    /// A bit of the body is another one; which, by this number.
    Flip(u64),
    /// 404 for an object that is there.
    Vanished,
    /// A listing that lacks some names and has the others in another order.
    Stale(u64),
    /// The request waits until it gets a permit, then goes on.
    Hold(Arc<Semaphore>),
    /// No answer comes, and the request takes effect when somebody runs it.
    Late(Later),
    /// Nobody is there any more to send the request, or to hear of it.
    Silent,
    /// The request takes effect, and nobody is there any more to hear of it.
    SilentAfterLanding,
}

/// Requests without an answer that are still on their way.
#[derive(Clone, Default)]
pub struct Later(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl Later {
    /// How many are on their way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether none is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Lets number `which` take effect.
    pub async fn land(&self, which: usize) {
        let request = self.all().remove(which);
        request.await;
    }

    fn all(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Later({})", self.len())
    }
}

/// Decides what becomes of a request, before it is sent.
#[async_trait]
pub trait Judge: Send + Sync {
    /// What goes wrong with this request, if anything. May take its time.
    async fn judge(&self, op: Op, path: &str) -> Option<Fault>;
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

/// The judge that was told what to fail.
#[derive(Default)]
struct Scripted(Mutex<Plan>);

impl Scripted {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Judge for Scripted {
    /// The fault of the next request, after a pause that lets others go first.
    async fn judge(&self, op: Op, path: &str) -> Option<Fault> {
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

fn choose(plan: &mut Plan, op: Op, name: &str) -> Option<Fault> {
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
            let possible = passing(op);
            possible[rng.random_range(0..possible.len())].clone()
        }
        (None, None) => return None,
    };
    plan.injected.push((op, name.to_owned(), format!("{fault:?}")));
    Some(fault)
}

/// What may happen to a request in passing, on a store that keeps what it has.
#[must_use]
pub fn passing(op: Op) -> &'static [Fault] {
    match op {
        Op::Create => &[
            Fault::Unavailable,
            Fault::Throttled,
            Fault::LostResponse,
            Fault::Conflict,
            Fault::ConflictAfterLanding,
            Fault::PreconditionAfterLanding,
        ],
        Op::Get => &[Fault::Unavailable, Fault::Throttled, Fault::ShortBody, Fault::Reset],
        Op::GetRange => &[
            Fault::Unavailable,
            Fault::Throttled,
            Fault::ShortBody,
            Fault::Reset,
            Fault::WholeBody,
        ],
        Op::Head | Op::List => &[Fault::Unavailable, Fault::Throttled],
        _ => &[Fault::Unavailable, Fault::Throttled, Fault::LostResponse],
    }
}

/// Fails requests on their way to the store below.
pub struct FaultStore {
    below: Arc<dyn ObjectStore>,
    script: Arc<Scripted>,
    judge: Arc<dyn Judge>,
}

impl FaultStore {
    /// Fails nothing until told to.
    #[must_use]
    pub fn new(below: Arc<dyn ObjectStore>) -> Arc<Self> {
        let script = Arc::<Scripted>::default();
        let judge: Arc<dyn Judge> = Arc::<Scripted>::clone(&script);
        Arc::new(Self { below, script, judge })
    }

    /// Fails each request with probability `chance`, decided by `seed`.
    #[must_use]
    pub fn seeded(below: Arc<dyn ObjectStore>, seed: u64, chance: f64) -> Arc<Self> {
        let store = Self::new(below);
        store.script.plan().seeded = Some((StdRng::seed_from_u64(seed), chance));
        store
    }

    /// Fails what `judge` says.
    #[must_use]
    pub fn judged(below: Arc<dyn ObjectStore>, judge: Arc<dyn Judge>) -> Arc<Self> {
        Arc::new(Self { below, script: Arc::default(), judge })
    }

    /// Fails the next `times` requests of `op` to objects whose name holds `part`.
    pub fn inject(&self, op: Op, part: &str, fault: Fault, times: u32) {
        self.script.plan().scripts.push(Script { op, part: part.to_owned(), fault, times });
    }

    /// Fails nothing any more.
    pub fn heal(&self) {
        let mut plan = self.script.plan();
        plan.scripts.clear();
        if let Some((_, chance)) = &mut plan.seeded {
            *chance = 0.0;
        }
    }

    /// What was failed so far: sort, object, fault.
    #[must_use]
    pub fn injected(&self) -> Vec<(Op, String, String)> {
        self.script.plan().injected.clone()
    }

    async fn next(&self, op: Op, path: &Path) -> Option<Fault> {
        self.judge.judge(op, path.as_ref()).await
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
        let mode = match fault {
            Some(Fault::Overwrite) => PutMode::Overwrite,
            _ => how.mode.clone(),
        };
        let (below, at) = (Arc::clone(&self.below), to.clone());
        let how = PutOptions { mode, ..how };
        let sent = async move { below.put_opts(&at, body, how).await }.boxed();
        answer::effect(fault, to, sent).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let fault = self.next(Op::Multipart, to).await;
        let (below, at) = (Arc::clone(&self.below), to.clone());
        let sent = async move { below.put_multipart_opts(&at, how).await }.boxed();
        let below = answer::effect(fault, to, sent).await?;
        let below = Arc::new(tokio::sync::Mutex::new(below));
        Ok(Box::new(FaultyUpload { below, to: to.clone(), judge: Arc::clone(&self.judge) }))
    }

    async fn get_opts(&self, from: &Path, how: GetOptions) -> Result<GetResult> {
        let fault = self.next(Op::of_get(&how), from).await;
        answer::refused(fault.as_ref(), from).await?;
        let how = match &fault {
            Some(Fault::WholeBody) => GetOptions { range: None, ..how },
            _ => how,
        };
        let got = self.below.get_opts(from, how).await?;
        answer::spoiled(fault, got).await
    }

    async fn get_ranges(&self, from: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        answer::refused(self.next(Op::GetRange, from).await.as_ref(), from).await?;
        self.below.get_ranges(from, ranges).await
    }

    fn delete_stream(
        &self,
        which: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (below, judge) = (Arc::clone(&self.below), Arc::clone(&self.judge));
        let deleted = which.and_then(move |path| {
            let (below, judge) = (Arc::clone(&below), Arc::clone(&judge));
            async move {
                let fault = judge.judge(Op::Delete, path.as_ref()).await;
                let one = futures::stream::iter([Ok(path.clone())]).boxed();
                let sent = async move {
                    below.delete_stream(one).try_collect::<Vec<_>>().await.map(|_| ())
                };
                answer::effect(fault, &path, sent.boxed()).await?;
                Ok(path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, folder: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (below, judge) = (Arc::clone(&self.below), Arc::clone(&self.judge));
        let folder = folder.cloned();
        let listed = async move {
            let path = folder.clone().unwrap_or_default();
            let fault = judge.judge(Op::List, path.as_ref()).await;
            if let Err(error) = answer::refused(fault.as_ref(), &path).await {
                return futures::stream::iter([Err(error)]).boxed();
            }
            let all = below.list(folder.as_ref());
            match fault {
                Some(Fault::Stale(seed)) => match all.try_collect().await {
                    Ok(all) => futures::stream::iter(answer::stale(all, seed)).map(Ok).boxed(),
                    Err(error) => futures::stream::iter([Err(error)]).boxed(),
                },
                _ => all,
            }
        };
        futures::stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, folder: Option<&Path>) -> Result<ListResult> {
        let path = &folder.cloned().unwrap_or_default();
        let fault = self.next(Op::List, path).await;
        answer::refused(fault.as_ref(), path).await?;
        let mut found = self.below.list_with_delimiter(folder).await?;
        if let Some(Fault::Stale(seed)) = fault {
            found.objects = answer::stale(found.objects, seed);
            found.common_prefixes = answer::stale(found.common_prefixes, seed);
        }
        Ok(found)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        let fault = self.next(Op::Copy, to).await;
        let (below, one, two) = (Arc::clone(&self.below), from.clone(), to.clone());
        let sent = async move { below.copy_opts(&one, &two, how).await }.boxed();
        answer::effect(fault, to, sent).await
    }
}

type Upload = Arc<tokio::sync::Mutex<Box<dyn MultipartUpload>>>;

struct FaultyUpload {
    below: Upload,
    to: Path,
    judge: Arc<dyn Judge>,
}

impl fmt::Debug for FaultyUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyUpload({})", self.to)
    }
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        // Parts have their order from when they are asked for.
        let sent = match self.below.try_lock() {
            Ok(mut below) => below.put_part(part),
            Err(_) => futures::future::ready(Err(answer::unavailable())).boxed(),
        };
        let (judge, to) = (Arc::clone(&self.judge), self.to.clone());
        let judged = async move {
            let fault = judge.judge(Op::Part, to.as_ref()).await;
            answer::effect(fault, &to, sent).await
        };
        judged.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.judge.judge(Op::Complete, self.to.as_ref()).await;
        let below = Arc::clone(&self.below);
        let sent = async move { below.lock().await.complete().await }.boxed();
        answer::effect(fault, &self.to, sent).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.below.lock().await.abort().await
    }
}
