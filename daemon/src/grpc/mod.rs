//! Owns the gRPC surface: services, limits on what a caller may ask.
//!
//! Does not own what is served: that is `fetch` and `search`; nor what a message means, which
//! `proto/tierd/v1/archive.proto` documents. Knows nothing of WALs, of the object
//! store or of the index.

mod admission;
mod answers;
mod archive;
mod convert;
mod frames;
mod report;
mod search;
mod watch;

use std::io;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tierd_proto::v1::archive_server::ArchiveServer;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::admission::Admission;
use crate::catalog::Watermarks;
use crate::fetch::Fetcher;
use crate::listen::{ACCEPT_PAUSE, Bound};
use crate::metrics::Metrics;
use crate::search::Searcher;

/// Bytes of one request: a thousand partitions with the longest names.
const REQUEST_BYTES_MAX: usize = 512 << 10;
/// Streams of one connection at once; a broker multiplexes all its fetches on one.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Connections that are silent this long are asked whether they still live.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Memory that all fetches may hold together where there is plenty, in bytes: 29 readers
/// that are slow and read without a limit, or some 340 broker fetches of 1 MiB.
pub const FETCHES_BYTES_MAX: u64 = 1 << 30;
/// Streams that may still run after the listeners closed.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Why the gRPC server stopped or could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("the gRPC server on {address} failed: {source}")]
    Transport {
        /// Where it listened.
        address: String,
        /// What tonic says.
        source: tonic::transport::Error,
    },
    /// The compiled-in descriptors do not decode, which is a defect.
    #[error("the gRPC reflection service does not start: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves `fetcher` and `searcher` on `bound` until `stop` is cancelled, then lets
/// streams drain for at most [`DRAIN_MAX`]. Health turns to `NOT_SERVING` first.
/// `watermarks` are those of the indexer in this process, where there is one. Fetches
/// may hold `fetches_bytes` of memory together, [`FETCHES_BYTES_MAX`] at most; where that
/// is less than the largest fetch may take, one runs at a time.
///
/// # Errors
/// When a listener fails. All listeners stop together.
pub async fn serve(
    fetcher: Fetcher,
    searcher: Searcher,
    watermarks: Option<Watermarks>,
    metrics: Metrics,
    fetches_bytes: u64,
    bound: Vec<Bound>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let (mut health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ArchiveServer<archive::ArchiveService>>().await;
    let closing = CancellationToken::new();
    let admission = Admission::new(fetches_bytes);
    let closes = closing.clone();
    let service =
        archive::ArchiveService::new(fetcher, searcher, watermarks, metrics, admission, closes);
    let service = ArchiveServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    // grpcurl 1.8.6 knows only v1alpha, buf and newer grpcurl ask for v1.
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tierd_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(service)
        .add_service(health_service)
        .add_service(descriptors().build_v1()?)
        .add_service(descriptors().build_v1alpha()?);

    let servers = bound.into_iter().map(|bound| serve_one(bound, routes.clone(), closing.clone()));
    let mut servers = std::pin::pin!(futures::future::try_join_all(servers));
    tokio::select! {
        ended = &mut servers => return ended.map(|_| ()),
        () = stop.cancelled() => {}
    }
    for service in ["", ArchiveServer::<archive::ArchiveService>::NAME] {
        turn_away(&mut health, service).await;
    }
    closing.cancel();
    match tokio::time::timeout(DRAIN_MAX, servers).await {
        Ok(ended) => ended.map(|_| ()),
        Err(_) => {
            tracing::warn!(seconds = DRAIN_MAX.as_secs(), "streams were cut that did not drain");
            Ok(())
        }
    }
}

/// Says that `service` does not serve, and ends the streams that watch it: they
/// would never end by themselves, and the drain would wait for them.
async fn turn_away(health: &mut HealthReporter, service: &str) {
    health.set_service_status(service, ServingStatus::NotServing).await;
    // Who watches still gets the last status, then the end.
    health.clear_service_status(service).await;
    health.set_service_status(service, ServingStatus::NotServing).await;
}

/// The connections of `incoming`, with a pause behind each that could not be accepted,
/// which the server asks for again at once.
fn paused<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    address: &str,
    stop: &CancellationToken,
) -> impl Stream<Item = io::Result<S>> {
    incoming.then(move |accepted| async move {
        if let Err(error) = &accepted {
            tracing::warn!(%error, address, "cannot accept a gRPC connection");
            // Over when the pause is, or when told to stop.
            let _ = tokio::time::timeout(ACCEPT_PAUSE, stop.cancelled()).await;
        }
        accepted
    })
}

async fn serve_one(
    bound: Bound,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let address = bound.to_string();
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_routes(routes);
    let stopped = stop.clone().cancelled_owned();
    let ended = match bound {
        Bound::Tcp(listener, _) => {
            let incoming =
                tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            server.serve_with_incoming_shutdown(paused(incoming, &address, &stop), stopped).await
        }
        Bound::Unix(listener, path) => {
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            let ended = server
                .serve_with_incoming_shutdown(paused(incoming, &address, &stop), stopped)
                .await;
            drop(path);
            ended
        }
    };
    ended.map_err(|source| ServeError::Transport { address, source })
}
