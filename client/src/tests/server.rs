//! The scripted server, and a relay in front of it whose connections can be cut.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::stream::{self, Stream, StreamExt};
use tierd_proto::v1;
use tierd_proto::v1::archive_server::{Archive, ArchiveServer};
use tierd_proto::v1::fetch_archived_response::Frame;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Notify;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use crate::client::{ArchiveClient, ClientOptions};
use crate::tests::{batch_bytes, data, hasty, header, trailer};

type FrameStream = Pin<Box<dyn Stream<Item = Result<v1::FetchArchivedResponse, Status>> + Send>>;
type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchArchivedResponse, Status>> + Send>>;
type SearchStream = Pin<Box<dyn Stream<Item = Result<v1::SearchResponse, Status>> + Send>>;
type ListStream = Pin<Box<dyn Stream<Item = Result<v1::ListArchivesResponse, Status>> + Send>>;

/// What the server does next in a call of `FetchArchived`. After the last act
/// the stream ends.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Send(Frame),
    Fail(tonic::Code),
    /// Nothing, for ever.
    Hang,
    /// Cuts every connection.
    Cut,
    /// A complete answer from the offset asked for up to this one, in batches
    /// of ten offsets.
    Tens(i64),
}

/// An answer that ends as it should.
pub(crate) fn complete(frames: impl IntoIterator<Item = Frame>) -> Vec<Act> {
    frames.into_iter().chain([Frame::End(v1::End {})]).map(Act::Send).collect()
}

/// An answer that stops after `frames`.
pub(crate) fn broken(frames: impl IntoIterator<Item = Frame>) -> Vec<Act> {
    frames.into_iter().map(Act::Send).collect()
}

fn tens(from: i64, to: i64) -> Vec<Act> {
    let batches: Vec<_> = (from..to).step_by(10).map(|base| batch_bytes(base, 10, 39)).collect();
    let count = u32::try_from(batches.len()).unwrap();
    let closed = trailer(to, 100 * u64::from(count), count);
    complete([header("orders", 0)].into_iter().chain(batches.into_iter().map(data)).chain([closed]))
}

#[derive(Debug, Default)]
pub(crate) struct Script {
    calls: Mutex<VecDeque<Vec<Act>>>,
    requests: Mutex<Vec<v1::PartitionRequest>>,
    cut: Notify,
    pub(crate) describe: Mutex<VecDeque<Result<v1::DescribeArchiveResponse, Status>>>,
    pub(crate) list: Mutex<VecDeque<Result<Vec<v1::ListArchivesResponse>, Status>>>,
    pub(crate) watch: Mutex<VecDeque<Result<Vec<v1::WatchArchivedResponse>, Status>>>,
    pub(crate) explain: Mutex<VecDeque<v1::ExplainFetchResponse>>,
    pub(crate) search: Mutex<VecDeque<Result<Vec<v1::SearchResponse>, Status>>>,
}

impl Script {
    pub(crate) fn new(calls: impl IntoIterator<Item = Vec<Act>>) -> Arc<Self> {
        Arc::new(Self { calls: Mutex::new(calls.into_iter().collect()), ..Self::default() })
    }

    /// The partitions asked for so far, one a call.
    pub(crate) fn requests(&self) -> Vec<v1::PartitionRequest> {
        self.requests.lock().unwrap().clone()
    }
}

struct Player(Arc<Script>);

#[tonic::async_trait]
impl Archive for Player {
    type FetchArchivedStream = FrameStream;
    type ListArchivesStream = ListStream;
    type WatchArchivedStream = WatchStream;
    type SearchStream = SearchStream;

    async fn fetch_archived(
        &self,
        request: Request<v1::FetchArchivedRequest>,
    ) -> Result<Response<FrameStream>, Status> {
        let partition = request.into_inner().partitions.remove(0);
        let from = partition.fetch_offset;
        self.0.requests.lock().unwrap().push(partition);
        let Some(mut acts) = self.0.calls.lock().unwrap().pop_front() else {
            return Err(Status::unimplemented("the script is over"));
        };
        if let Some(Act::Fail(code)) = acts.first() {
            return Err(Status::new(*code, "as the script says"));
        }
        if let Some(Act::Tens(to)) = acts.first() {
            acts = tens(from, *to);
        }
        let script = Arc::clone(&self.0);
        let frames = stream::iter(acts).then(move |act| {
            let script = Arc::clone(&script);
            async move {
                match act {
                    Act::Send(frame) => Ok(v1::FetchArchivedResponse { frame: Some(frame) }),
                    Act::Fail(code) => Err(Status::new(code, "as the script says")),
                    Act::Hang | Act::Tens(_) => std::future::pending().await,
                    Act::Cut => {
                        script.cut.notify_waiters();
                        std::future::pending().await
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(frames)))
    }

    async fn describe_archive(
        &self,
        _: Request<v1::DescribeArchiveRequest>,
    ) -> Result<Response<v1::DescribeArchiveResponse>, Status> {
        self.0.describe.lock().unwrap().pop_front().unwrap().map(Response::new)
    }

    async fn list_archives(
        &self,
        _: Request<v1::ListArchivesRequest>,
    ) -> Result<Response<ListStream>, Status> {
        let archives = self.0.list.lock().unwrap().pop_front().unwrap()?;
        Ok(Response::new(Box::pin(stream::iter(archives.into_iter().map(Ok)))))
    }

    async fn watch_archived(
        &self,
        _: Request<v1::WatchArchivedRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let messages = self.0.watch.lock().unwrap().pop_front().unwrap()?;
        Ok(Response::new(Box::pin(stream::iter(messages.into_iter().map(Ok)))))
    }

    async fn explain_fetch(
        &self,
        _: Request<v1::ExplainFetchRequest>,
    ) -> Result<Response<v1::ExplainFetchResponse>, Status> {
        Ok(Response::new(self.0.explain.lock().unwrap().pop_front().unwrap()))
    }

    async fn list_aborted_transactions(
        &self,
        _: Request<v1::ListAbortedTransactionsRequest>,
    ) -> Result<Response<v1::ListAbortedTransactionsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn report_partition_state(
        &self,
        _: Request<v1::ReportPartitionStateRequest>,
    ) -> Result<Response<v1::ReportPartitionStateResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn advance_log_start(
        &self,
        _: Request<v1::AdvanceLogStartRequest>,
    ) -> Result<Response<v1::AdvanceLogStartResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn delete_partition(
        &self,
        _: Request<v1::DeletePartitionRequest>,
    ) -> Result<Response<v1::DeletePartitionResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn get_replica_state(
        &self,
        _: Request<v1::GetReplicaStateRequest>,
    ) -> Result<Response<v1::GetReplicaStateResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn list_offsets(
        &self,
        _: Request<v1::ListOffsetsRequest>,
    ) -> Result<Response<v1::ListOffsetsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn offset_for_leader_epoch(
        &self,
        _: Request<v1::OffsetForLeaderEpochRequest>,
    ) -> Result<Response<v1::OffsetForLeaderEpochResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn search(
        &self,
        _: Request<v1::SearchRequest>,
    ) -> Result<Response<SearchStream>, Status> {
        let pieces = self.0.search.lock().unwrap().pop_front().unwrap()?;
        Ok(Response::new(Box::pin(stream::iter(pieces.into_iter().map(Ok)))))
    }
}

/// Serves on a socket file.
pub(crate) fn serve_unix(script: &Arc<Script>, path: &std::path::Path) {
    let listener = UnixListener::bind(path).unwrap();
    let player = ArchiveServer::new(Player(Arc::clone(script)));
    let incoming = UnixListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(player).serve_with_incoming(incoming),
    );
}

/// Serves on loopback, behind a relay; gives the relay's `HOST:PORT`.
pub(crate) async fn serve(script: &Arc<Script>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let player = ArchiveServer::new(Player(Arc::clone(script)));
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(player).serve_with_incoming(incoming),
    );

    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = relay.local_addr().unwrap().to_string();
    let script = Arc::clone(script);
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = relay.accept().await {
            let script = Arc::clone(&script);
            tokio::spawn(async move {
                let mut inside = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut outside, &mut inside) => {}
                    () = script.cut.notified() => {}
                }
            });
        }
    });
    endpoint
}

/// A server that plays `calls`, and a client of it.
pub(crate) async fn play(
    calls: impl IntoIterator<Item = Vec<Act>>,
) -> (Arc<Script>, ArchiveClient) {
    play_with(calls, hasty()).await
}

pub(crate) async fn play_with(
    calls: impl IntoIterator<Item = Vec<Act>>,
    options: ClientOptions,
) -> (Arc<Script>, ArchiveClient) {
    let script = Script::new(calls);
    let endpoint = serve(&script).await;
    (script, ArchiveClient::with_options(&endpoint, options).unwrap())
}
