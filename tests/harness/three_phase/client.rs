//! A Kafka client that fetches, and shows the whole answer.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{
    ApiKey, FetchRequest, FetchResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

/// The last version with topic names and without flexible fields.
const VERSION: i16 = 11;
/// Largest answer taken, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection to a broker.
#[derive(Debug)]
pub struct KafkaClient {
    stream: TcpStream,
    correlation_id: i32,
}

impl KafkaClient {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn connect(bootstrap: &str) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(bootstrap)?, correlation_id: 0 })
    }

    /// Fetches from several partitions, each from an offset; `max_bytes` for each
    /// and for all.
    ///
    /// # Errors
    /// When the broker hangs up or answers something else.
    pub fn fetch_many(
        &mut self,
        partitions: &[(&str, i32, i64)],
        committed: bool,
        max_bytes: i32,
    ) -> Result<Vec<PartitionData>> {
        let topic = |&(topic, partition, offset): &(&str, i32, i64)| {
            let partition = FetchPartition::default()
                .with_partition(partition)
                .with_fetch_offset(offset)
                .with_partition_max_bytes(max_bytes);
            FetchTopic::default()
                .with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
                .with_partitions(vec![partition])
        };
        let request = FetchRequest::default()
            .with_max_bytes(max_bytes)
            .with_isolation_level(i8::from(committed))
            .with_topics(partitions.iter().map(topic).collect());
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(ApiKey::Fetch as i16)
            .with_request_api_version(VERSION)
            .with_correlation_id(self.correlation_id);
        let mut out = BytesMut::new();
        out.put_i32(0);
        header.encode(&mut out, ApiKey::Fetch.request_header_version(VERSION))?;
        request.encode(&mut out, VERSION)?;
        let len = i32::try_from(out.len() - 4)?;
        out[..4].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&out)?;

        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        let len = usize::try_from(i32::from_be_bytes(len))?;
        ensure!(len <= ANSWER_BYTES_MAX, "an answer of {len} bytes");
        let mut answer = vec![0; len];
        self.stream.read_exact(&mut answer)?;
        let mut answer = Bytes::from(answer);
        let version = ApiKey::Fetch.response_header_version(VERSION);
        let header = ResponseHeader::decode(&mut answer, version)?;
        ensure!(header.correlation_id == self.correlation_id, "the answer to another request");
        let response = FetchResponse::decode(&mut answer, VERSION)?;
        Ok(response.responses.into_iter().flat_map(|topic| topic.partitions).collect())
    }

    /// Fetches from one partition.
    ///
    /// # Errors
    /// As [`Self::fetch_many`].
    pub fn fetch(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        committed: bool,
        max_bytes: i32,
    ) -> Result<PartitionData> {
        let mut answer = self.fetch_many(&[(topic, partition, offset)], committed, max_bytes)?;
        answer.pop().context("no partition in the answer")
    }
}
