//! Fetches as the tests ask them: of a fetcher, and over gRPC with a client that is
//! not ours, as a broker would generate one, on a connection on which the server can
//! have little on its way.

use anyhow::Result;
use tierd::fetch::{self, Caller, Isolation, Overlaps};
use tierd::record::TopicPartition;
use tierd_proto::v1::archive_client::ArchiveClient;
use tierd_proto::v1::fetch_archived_response::Frame;
use tierd_proto::v1::{self, FetchArchivedRequest, PartitionRequest};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::process::Served;

/// A connection to a daemon, with windows of a few KiB.
///
/// # Errors
/// When nothing listens.
pub async fn connect(daemon: &Served) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", daemon.address))?;
    let narrow = endpoint.initial_stream_window_size(16 << 10);
    Ok(narrow.initial_connection_window_size(64 << 10).connect().await?)
}

/// All of partition 0 of `topic` from `offset` on.
#[must_use]
pub fn request(topic: &str, offset: i64) -> FetchArchivedRequest {
    let partition =
        PartitionRequest { topic: topic.to_owned(), fetch_offset: offset, ..Default::default() };
    FetchArchivedRequest { partitions: vec![partition], ..Default::default() }
}

/// The served log of a partition from `offset` on, to be asked of a fetcher.
#[must_use]
pub fn all_from(tp: &TopicPartition, offset: i64) -> fetch::PartitionRequest {
    fetch::PartitionRequest {
        tp: tp.clone(),
        incarnation: None,
        offset,
        max_bytes: u64::MAX,
        min_one_batch: true,
        upper_bound: None,
        isolation: Isolation::ReadUncommitted,
        overlaps: Overlaps::Served,
        selection: None,
        caller: Caller::default(),
    }
}

/// What came so far.
#[derive(Debug, Default)]
pub struct Answer {
    /// Batches on the wire.
    pub wire: Vec<u8>,
    /// One for each partition that is answered.
    pub trailers: Vec<v1::PartitionTrailer>,
    /// Whether the answer was sent to its end.
    pub ended: bool,
}

impl Answer {
    /// Takes in a message.
    pub fn take(&mut self, message: v1::FetchArchivedResponse) {
        match message.frame {
            Some(Frame::Data(data)) => self.wire.extend_from_slice(&data.batches),
            Some(Frame::Trailer(trailer)) => self.trailers.push(trailer),
            Some(Frame::End(_)) => self.ended = true,
            Some(Frame::Header(_)) | None => {}
        }
    }

    /// Takes in all that comes; fails where the stream does.
    ///
    /// # Errors
    /// The stream's.
    pub async fn take_all(
        &mut self,
        stream: &mut Streaming<v1::FetchArchivedResponse>,
    ) -> Result<()> {
        while let Some(message) = stream.message().await? {
            self.take(message);
        }
        Ok(())
    }
}

/// One fetch to its end.
///
/// # Errors
/// When the call fails.
pub async fn fetch(daemon: &Served, request: FetchArchivedRequest) -> Result<Answer> {
    let mut client = ArchiveClient::new(connect(daemon).await?);
    let mut stream = client.fetch_archived(request).await?.into_inner();
    let mut answer = Answer::default();
    answer.take_all(&mut stream).await?;
    anyhow::ensure!(answer.ended, "the answer has no end");
    Ok(answer)
}
