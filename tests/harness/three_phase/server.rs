//! The Kafka protocol in front of the three phases, as far as consumers need it
//! that assign partitions by hand.
//!
//! No fetch sessions, no groups: FindCoordinator names this broker, so that clients
//! with a group id are content, and no call of a group is offered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse, FindCoordinatorResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest,
    ProduceResponse, ProducerId, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes, decode_request_header_from_buffer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::read::{Ask, UNKNOWN_TOPIC_OR_PARTITION};
use super::{Core, lock};

/// Largest request taken, in bytes: consumers send no data.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Longest wait for data that does not come, whatever a client asks.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// Pause before an answer of errors alone, for clients that ask again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
const NODE: BrokerId = BrokerId(1);
const UNSUPPORTED_VERSION: i16 = 35;
const READ_COMMITTED: i8 = 1;

const POLICY_VIOLATION: i16 = 44;

/// The calls and their versions. Produce is refused, partition by partition; but a
/// librdkafka that does not find it here takes the broker for one without magic 2.
const CALLS: [(ApiKey, i16, i16); 6] = [
    (ApiKey::Produce, 3, 7),
    (ApiKey::Fetch, 4, 12),
    (ApiKey::ListOffsets, 1, 7),
    (ApiKey::Metadata, 0, 9),
    (ApiKey::FindCoordinator, 0, 3),
    (ApiKey::ApiVersions, 0, 3),
];

/// Serves until the runtime ends. Where.
pub(super) async fn listen(core: Arc<Core>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let core = Arc::clone(&core);
            tokio::spawn(async move {
                // A client that goes away in the middle is its own affair.
                let _ = serve(&core, stream, address).await;
            });
        }
    });
    Ok(address)
}

async fn serve(core: &Core, mut stream: TcpStream, address: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let len = usize::try_from(stream.read_i32().await?)?;
        ensure!(len <= REQUEST_BYTES_MAX, "a request of {len} bytes");
        let mut request = vec![0; len];
        stream.read_exact(&mut request).await?;
        let answer = answer(core, request.into(), address).await?;
        stream.write_all(&answer).await?;
    }
}

async fn answer(core: &Core, mut request: Bytes, address: SocketAddr) -> Result<Bytes> {
    let header = decode_request_header_from_buffer(&mut request)?;
    let key = ApiKey::try_from(header.request_api_key).ok().context("an unknown call")?;
    let version = header.request_api_version;
    let offered = CALLS.iter().any(|(k, low, high)| *k == key && (*low..=*high).contains(&version));
    let mut out = BytesMut::new();
    out.put_i32(0);
    ResponseHeader::default()
        .with_correlation_id(header.correlation_id)
        .encode(&mut out, key.response_header_version(version))?;
    match key {
        // Clients that are newer than the broker learn its versions by this error.
        ApiKey::ApiVersions if !offered => {
            versions().with_error_code(UNSUPPORTED_VERSION).encode(&mut out, 0)?;
        }
        _ if !offered => bail!("{key:?} version {version} is not offered"),
        ApiKey::ApiVersions => versions().encode(&mut out, version)?,
        ApiKey::Metadata => {
            let request = MetadataRequest::decode(&mut request, version)?;
            metadata(core, &request, version, address).encode(&mut out, version)?;
        }
        ApiKey::FindCoordinator => {
            let (host, port) = place(address);
            FindCoordinatorResponse::default()
                .with_node_id(NODE)
                .with_host(host)
                .with_port(port)
                .encode(&mut out, version)?;
        }
        ApiKey::ListOffsets => {
            let request = ListOffsetsRequest::decode(&mut request, version)?;
            list_offsets(core, &request).await.encode(&mut out, version)?;
        }
        ApiKey::Fetch => {
            let request = FetchRequest::decode(&mut request, version)?;
            fetch(core, &request).await.encode(&mut out, version)?;
        }
        ApiKey::Produce => {
            let request = ProduceRequest::decode(&mut request, version)?;
            refuse(&request).encode(&mut out, version)?;
        }
        other => bail!("{other:?} is not offered"),
    }
    let len = i32::try_from(out.len() - 4)?;
    out[..4].copy_from_slice(&len.to_be_bytes());
    Ok(out.freeze())
}

fn versions() -> ApiVersionsResponse {
    let call = |(key, low, high): &(ApiKey, i16, i16)| {
        ApiVersion::default()
            .with_api_key(*key as i16)
            .with_min_version(*low)
            .with_max_version(*high)
    };
    ApiVersionsResponse::default().with_api_keys(CALLS.iter().map(call).collect())
}

fn place(address: SocketAddr) -> (StrBytes, i32) {
    (StrBytes::from_string(address.ip().to_string()), address.port().into())
}

fn metadata(
    core: &Core,
    request: &MetadataRequest,
    version: i16,
    address: SocketAddr,
) -> MetadataResponse {
    let partitions: Vec<(String, i32)> = lock(&core.partitions).keys().cloned().collect();
    let mut known: Vec<String> = partitions.iter().map(|(topic, _)| topic.clone()).collect();
    known.dedup();
    let asked = request.topics.as_ref().filter(|topics| version > 0 || !topics.is_empty());
    let names = match asked {
        None => known,
        Some(topics) => {
            let names = topics.iter().filter_map(|topic| topic.name.as_ref());
            names.map(|name| name.0.to_string()).collect()
        }
    };
    let topic = |name: String| {
        let own = partitions.iter().filter(|(topic, _)| *topic == name);
        let own: Vec<_> = own.map(|(_, number)| metadata_partition(*number)).collect();
        let error = if own.is_empty() { UNKNOWN_TOPIC_OR_PARTITION } else { 0 };
        MetadataResponseTopic::default()
            .with_error_code(error)
            .with_name(Some(TopicName(StrBytes::from_string(name))))
            .with_partitions(own)
    };
    let (host, port) = place(address);
    let broker =
        MetadataResponseBroker::default().with_node_id(NODE).with_host(host).with_port(port);
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(StrBytes::from_static_str("three-phase")))
        .with_controller_id(NODE)
        .with_topics(names.into_iter().map(topic).collect())
}

fn refuse(request: &ProduceRequest) -> ProduceResponse {
    let topic = |topic: &TopicProduceData| {
        let partition = |asked: &PartitionProduceData| {
            PartitionProduceResponse::default()
                .with_index(asked.index)
                .with_error_code(POLICY_VIOLATION)
                .with_base_offset(-1)
        };
        TopicProduceResponse::default()
            .with_name(topic.name.clone())
            .with_partition_responses(topic.partition_data.iter().map(partition).collect())
    };
    ProduceResponse::default().with_responses(request.topic_data.iter().map(topic).collect())
}

fn metadata_partition(number: i32) -> MetadataResponsePartition {
    MetadataResponsePartition::default()
        .with_partition_index(number)
        .with_leader_id(NODE)
        .with_replica_nodes(vec![NODE])
        .with_isr_nodes(vec![NODE])
}

async fn list_offsets(core: &Core, request: &ListOffsetsRequest) -> ListOffsetsResponse {
    let committed = request.isolation_level == READ_COMMITTED;
    let mut topics = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for asked in &topic.partitions {
            let answer =
                ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
            let found =
                core.find(&topic.name.0, asked.partition_index, asked.timestamp, committed).await;
            partitions.push(match found {
                Ok((offset, timestamp)) => answer.with_offset(offset).with_timestamp(timestamp),
                Err(error) => answer.with_error_code(error),
            });
        }
        topics.push(
            ListOffsetsTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions),
        );
    }
    ListOffsetsResponse::default().with_topics(topics)
}

async fn fetch(core: &Core, request: &FetchRequest) -> FetchResponse {
    let committed = request.isolation_level == READ_COMMITTED;
    let mut left = usize::try_from(request.max_bytes).unwrap_or(0);
    let (mut empty, mut failed) = (true, false);
    let mut topics = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for asked in &topic.partitions {
            let ask = Ask {
                topic: &topic.topic.0,
                partition: asked.partition,
                offset: asked.fetch_offset,
                committed,
                max_bytes: usize::try_from(asked.partition_max_bytes).unwrap_or(0).min(left),
                min_one_batch: empty,
            };
            let read = core.read(&ask).await;
            left = left.saturating_sub(read.records.len());
            empty &= read.records.is_empty();
            failed |= read.error != 0;
            let aborted = |(producer, first): (i64, i64)| {
                AbortedTransaction::default()
                    .with_producer_id(ProducerId(producer))
                    .with_first_offset(first)
            };
            let partition = PartitionData::default()
                .with_partition_index(asked.partition)
                .with_error_code(read.error)
                .with_high_watermark(read.high_watermark)
                .with_last_stable_offset(read.last_stable_offset)
                .with_log_start_offset(0)
                .with_aborted_transactions(
                    read.aborted.map(|all| all.into_iter().map(aborted).collect()),
                )
                .with_records(Some(read.records));
            partitions.push(partition);
        }
        topics.push(
            FetchableTopicResponse::default()
                .with_topic(topic.topic.clone())
                .with_partitions(partitions),
        );
    }
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    match (empty, failed) {
        (true, true) => tokio::time::sleep(ERROR_PAUSE).await,
        (true, false) => tokio::time::sleep(wait.min(WAIT_MAX)).await,
        _ => {}
    }
    FetchResponse::default().with_responses(topics)
}
