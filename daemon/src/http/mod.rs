//! Owns the HTTP surface: probes and the page of metrics.
//!
//! Does not own what they say: that is `health` and `metrics`. Tells no data,
//! takes no commands, and asks neither the object store nor the broker: during an
//! outage of theirs a daemon must not be restarted, nor its Pod be unready.
//!
//! | path | 200 when | for |
//! |---|---|---|
//! | `/livez` | no watched loop is stuck | livenessProbe |
//! | `/readyz` | gRPC is served and no stop was asked for | readinessProbe |
//! | `/startupz` | gRPC was served once | startupProbe |
//! | `/metrics` | always | Prometheus |

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::health::{Health, Phase};
use crate::listen::{ACCEPT_PAUSE, Bound};
use crate::metrics::{self, Metrics};

/// Connections at once: a kubelet's three probes, a few scrapers, a person.
const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's line and headers.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest wait for a request's head, also on a connection that is kept open:
/// longer than the usual 10 s between probes, so that they may share one.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(20);
/// Answers that may still be written after the listener closed.
const DRAIN_MAX: Duration = Duration::from_secs(2);

const TEXT: &str = "text/plain; charset=utf-8";

type Answer = Response<Full<Bytes>>;
type Stream = Either<TcpStream, UnixStream>;

/// What the pages show. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Site {
    /// For the probes.
    pub health: Health,
    /// For the page of metrics.
    pub metrics: Metrics,
}

impl Site {
    /// The answer to one request.
    fn answer(&self, method: &Method, path: &str) -> Answer {
        let page = match path {
            "/livez" => self.livez(),
            "/readyz" => self.phase(|phase| phase == Phase::Serving),
            "/startupz" => self.phase(|phase| phase != Phase::Starting),
            "/metrics" => self.metrics(),
            _ => line(
                StatusCode::NOT_FOUND,
                "no such page: try /livez, /readyz, /startupz, /metrics",
            ),
        };
        if page.status() == StatusCode::NOT_FOUND || [Method::GET, Method::HEAD].contains(method) {
            return page;
        }
        let mut refused = line(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refused
    }

    fn livez(&self) -> Answer {
        match self.health.live() {
            Ok(()) => line(StatusCode::OK, "live"),
            Err(stuck) => line(StatusCode::SERVICE_UNAVAILABLE, &stuck.to_string()),
        }
    }

    fn phase(&self, good: impl FnOnce(Phase) -> bool) -> Answer {
        let phase = self.health.phase();
        let status = if good(phase) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        line(status, &phase.to_string())
    }

    fn metrics(&self) -> Answer {
        match self.metrics.page() {
            Ok(page) => text(StatusCode::OK, metrics::MEDIA_TYPE, page),
            Err(error) => line(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

fn line(status: StatusCode, text: &str) -> Answer {
    self::text(status, TEXT, format!("{text}\n"))
}

fn text(status: StatusCode, media_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

/// Serves `site` on `bound` until `stop` is cancelled, then ends the answers under
/// way, for at most `DRAIN_MAX`.
pub async fn serve(bound: Bound, site: Site, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&bound, &slots) => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                connections.spawn(connection(stream, slot, site.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, address = %bound, "cannot accept an HTTP connection");
                // Over when the pause is, or when told to stop.
                let _ = tokio::time::timeout(ACCEPT_PAUSE, stop.cancelled()).await;
            }
        }
    }
    drop(bound);
    connections.close();
    if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::debug!(connections = connections.len(), "HTTP connections were cut");
    }
}

/// The next connection, once there is room for it.
async fn accept(
    bound: &Bound,
    slots: &Arc<Semaphore>,
) -> io::Result<(Stream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let stream = match bound {
        Bound::Tcp(listener, _) => Either::Left(listener.accept().await?.0),
        Bound::Unix(listener, _) => Either::Right(listener.accept().await?.0),
    };
    Ok((stream, slot))
}

async fn connection(
    stream: Stream,
    slot: OwnedSemaphorePermit,
    site: Site,
    stop: CancellationToken,
) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let answer = site.answer(request.method(), request.uri().path());
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection failed");
    }
    drop(slot);
}

#[cfg(test)]
mod tests;
