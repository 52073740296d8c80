//! What is told of a request that went wrong, and what of it took effect.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, GetResult, GetResultPayload, Result};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use bytes::Bytes;

use super::Fault;

fn failed(why: &'static str) -> Error {
    Error::Generic { store: "faults", source: why.into() }
}

pub(super) fn unavailable() -> Error {
    failed("503 Service Unavailable")
}

fn denied(path: &Path) -> Error {
    Error::PermissionDenied { path: path.to_string(), source: "403 ExpiredToken".into() }
}

fn conflict(path: &Path) -> Error {
    Error::AlreadyExists { path: path.to_string(), source: "409 Conflict".into() }
}

fn precondition(path: &Path) -> Error {
    Error::Precondition { path: path.to_string(), source: "412 Precondition Failed".into() }
}

fn vanished(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "404 Not Found".into() }
}

/// What is told of a request that does not take effect, if it does not.
pub(super) async fn refused(fault: Option<&Fault>, path: &Path) -> Result<()> {
    match fault {
        Some(Fault::Unavailable) => Err(unavailable()),
        Some(Fault::Throttled) => Err(failed("429 Too Many Requests")),
        Some(Fault::Denied) => Err(denied(path)),
        Some(Fault::Conflict) => Err(conflict(path)),
        Some(Fault::Vanished) => Err(vanished(path)),
        Some(Fault::Silent) => futures::future::pending().await,
        _ => Ok(()),
    }
}

/// Sends a request that changes something, as far as it is sent, and tells of it what
/// is told.
pub(super) async fn effect<T: Send + 'static>(
    fault: Option<Fault>,
    path: &Path,
    request: BoxFuture<'static, Result<T>>,
) -> Result<T> {
    refused(fault.as_ref(), path).await?;
    if let Some(Fault::Late(later)) = fault {
        later.all().push(request.map(drop).boxed());
        return Err(failed("connection timed out"));
    }
    let done = request.await;
    match fault {
        Some(Fault::LostResponse) => done.and(Err(unavailable())),
        Some(Fault::ConflictAfterLanding) => done.and(Err(conflict(path))),
        Some(Fault::PreconditionAfterLanding) => done.and(Err(precondition(path))),
        Some(Fault::SilentAfterLanding) => futures::future::pending().await,
        _ => done,
    }
}

/// The answer to a read, spoiled.
pub(super) async fn spoiled(fault: Option<Fault>, answer: GetResult) -> Result<GetResult> {
    let (Some(fault), false) = (fault, answer.meta.size == 0) else { return Ok(answer) };
    let (meta, range) = (answer.meta.clone(), answer.range.clone());
    let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
    let body = whole(answer.into_stream()).await?;
    let half = body.slice(..body.len() / 2);
    let pieces = match fault {
        Fault::ShortBody => vec![Ok(half)],
        Fault::Reset => vec![Ok(half), Err(failed("connection reset by peer"))],
        Fault::Flip(which) => vec![Ok(flipped(&body, which))],
        Fault::SilentAfterLanding => futures::future::pending().await,
        _ => vec![Ok(body)],
    };
    let payload = GetResultPayload::Stream(futures::stream::iter(pieces).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

fn flipped(body: &Bytes, which: u64) -> Bytes {
    let mut body = body.to_vec();
    let bits = (body.len() as u64 * 8).max(1);
    if let Some(byte) = body.get_mut((which % bits / 8) as usize) {
        *byte ^= 1 << (which % 8);
    }
    body.into()
}

/// A listing of `all` that misses about a fourth, in any order.
pub(super) fn stale<T>(mut all: Vec<T>, seed: u64) -> Vec<T> {
    let mut random = StdRng::seed_from_u64(seed);
    all.retain(|_| !random.random_bool(0.25));
    all.shuffle(&mut random);
    all
}

async fn whole(mut pieces: BoxStream<'static, Result<Bytes>>) -> Result<Bytes> {
    let mut body = Vec::new();
    while let Some(piece) = pieces.try_next().await? {
        body.extend_from_slice(&piece);
    }
    Ok(body.into())
}
