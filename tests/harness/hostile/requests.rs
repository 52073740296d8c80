//! Bytes as a call over gRPC.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tierd::archive::batches_in;
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::grpc;
use tierd::listen::{Bound, ListenAddress, Reach};
use tierd_proto::v1::fetch_archived_response::Frame;
use tierd_proto::v1::{self, PartitionRequest, Selection};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::world::{Size, World};

/// Longest answer to one call: honest ones take milliseconds.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a stream without an end is followed.
const FOLLOWED: Duration = Duration::from_millis(2);
/// Largest message of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Records of each archive.
const RECORDS: usize = 150;

/// A daemon's services over a small archive, and a client of theirs.
struct Served {
    runtime: Runtime,
    channel: Channel,
    _world: World,
}

impl Served {
    fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (world, address) = runtime.block_on(async {
            let size = Size {
                partitions: vec![("t", 0, 3), ("t", 1, 1), ("u", 0, 1)],
                records: RECORDS,
                one_without_index_in: 3,
            };
            let world = World::of(11, &size).await;
            let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
            let rooms = Rooms::over(world.store.clone(), &config).expect("rooms");
            rooms.reports.open();
            let address = ListenAddress::parse("127.0.0.1:0", Reach::Loopback).expect("an address");
            let bound = address.bind().await.expect("a port");
            let Bound::Tcp(_, address) = &bound else { unreachable!("TCP was asked for") };
            let address = *address;
            let Rooms { fetcher, searcher, watermarks, metrics, .. } = rooms;
            let stop = CancellationToken::new();
            tokio::spawn(grpc::serve(
                fetcher,
                searcher,
                Some(watermarks),
                metrics,
                grpc::FETCHES_BYTES_MAX,
                vec![bound],
                stop,
            ));
            (world, address)
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = runtime.block_on(endpoint.connect()).expect("a connection");
        Self { runtime, channel, _world: world }
    }
}

/// For calls that only read.
fn readers() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(Served::start)
}

/// For calls after which the archive is another one.
fn writers() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(Served::start)
}

/// The calls; from [`FIRST_WRITE`] on they change something.
const METHODS: [&str; 13] = [
    "FetchArchived",
    "DescribeArchive",
    "ListArchives",
    "ListOffsets",
    "OffsetForLeaderEpoch",
    "ListAbortedTransactions",
    "GetReplicaState",
    "ExplainFetch",
    "WatchArchived",
    "Search",
    "ReportPartitionState",
    "AdvanceLogStart",
    "DeletePartition",
];
const FIRST_WRITE: usize = 10;

/// The first byte chooses the call, the others are its message, sent as they are.
pub fn requests(bytes: &[u8]) {
    let Some((method, message)) = bytes.split_first() else { return };
    let method = usize::from(*method) % METHODS.len();
    let served = if method < FIRST_WRITE { readers() } else { writers() };
    served.runtime.block_on(async {
        let most = if METHODS[method] == "WatchArchived" { FOLLOWED } else { ANSWER_MAX };
        let called = call(served.channel.clone(), METHODS[method], message);
        let Ok(answered) = tokio::time::timeout(most, called).await else {
            assert_eq!(most, FOLLOWED, "{} has no end", METHODS[method]);
            return;
        };
        if let Err(status) = answered {
            let own = [Code::Internal, Code::Unknown, Code::DataLoss, Code::Unimplemented];
            // A message that does not decode is the caller's, whatever tonic calls it.
            let undecoded = status.message().contains("failed to decode Protobuf message");
            assert!(undecoded || !own.contains(&status.code()), "{}: {status:?}", METHODS[method]);
        }
    });
}

async fn call(channel: Channel, method: &str, message: &[u8]) -> Result<(), Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    client.ready().await.expect("the server lives");
    let path = PathAndQuery::try_from(format!("/tierd.v1.Archive/{method}")).expect("a path");
    let request = Request::new(message.to_vec());
    let mut answer = client.server_streaming(request, path, Raw).await?.into_inner();
    while let Some(message) = answer.message().await? {
        if method == "FetchArchived" {
            let message = v1::FetchArchivedResponse::decode(message).expect("its message");
            if let Some(Frame::Data(data)) = message.frame {
                batches_in(data.batches).for_each(|batch| drop(batch.expect("a whole batch")));
            }
        }
    }
    Ok(())
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let (topic, tp) =
        ("t".to_owned(), v1::TopicPartition { topic: "t".into(), ..Default::default() });
    let partition = PartitionRequest { topic: "t".into(), fetch_offset: 20, ..Default::default() };
    let selection = Selection { key: Some(b"key-1"[..].into()), ..Default::default() };
    let selected = PartitionRequest { selection: Some(selection.clone()), ..partition.clone() };
    let fetch = v1::FetchArchivedRequest { partitions: vec![partition], ..Default::default() };
    let messages: [(usize, Vec<u8>); 15] = [
        (0, fetch.encode_to_vec()),
        (
            0,
            v1::FetchArchivedRequest {
                partitions: vec![selected],
                max_bytes: Some(1000),
                replica_id: None,
            }
            .encode_to_vec(),
        ),
        (
            1,
            v1::DescribeArchiveRequest { partitions: vec![tp], gaps_from: Some(3) }.encode_to_vec(),
        ),
        (
            2,
            v1::ListArchivesRequest {
                topic: topic.clone(),
                partition: Some(0),
                incarnation: Some(0),
            }
            .encode_to_vec(),
        ),
        (
            3,
            v1::ListOffsetsRequest {
                partitions: vec![v1::OffsetQuery { topic: topic.clone(), ..Default::default() }],
            }
            .encode_to_vec(),
        ),
        (
            4,
            v1::OffsetForLeaderEpochRequest {
                partitions: vec![v1::EpochQuery { topic: topic.clone(), ..Default::default() }],
            }
            .encode_to_vec(),
        ),
        (
            5,
            v1::ListAbortedTransactionsRequest {
                topic: topic.clone(),
                range: Some(v1::OffsetRange { first: 0, last: 100 }),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            6,
            v1::GetReplicaStateRequest {
                topic: topic.clone(),
                offset: Some(50),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (7, v1::ExplainFetchRequest { fetch: Some(fetch) }.encode_to_vec()),
        (8, v1::WatchArchivedRequest::default().encode_to_vec()),
        (
            9,
            v1::SearchRequest {
                topic: topic.clone(),
                selection: Some(selection),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            9,
            v1::SearchRequest {
                query: "value.city:Berlin AND (offset:[1 TO 5] OR NOT x:y)".into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            10,
            v1::ReportPartitionStateRequest {
                broker_started_at_ms: Some(5),
                partitions: vec![v1::PartitionReport {
                    topic: topic.clone(),
                    ..Default::default()
                }],
            }
            .encode_to_vec(),
        ),
        (
            11,
            v1::AdvanceLogStartRequest { topic: topic.clone(), offset: 9, ..Default::default() }
                .encode_to_vec(),
        ),
        (
            12,
            v1::DeletePartitionRequest { topic, partition: 1, ..Default::default() }
                .encode_to_vec(),
        ),
    ];
    messages.map(|(method, message)| [&[method as u8], &message[..]].concat()).to_vec()
}
