//! Owns following what the daemon tells of each partition, over restarts of the
//! daemon: what was handed out already is not handed out again.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use tierd_proto::v1;
use tonic::Streaming;

use crate::client::Inner;
use crate::convert;
use crate::error::ArchiveError;
use crate::retry::{Deadline, Retries};
use crate::types::TopicPartition;

/// How far one partition has come. Within one incarnation nothing in it moves back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Which life of the topic the broker's log belongs to.
    pub incarnation: u32,
    /// Number of the manifest it was checked against.
    pub generation: u64,
    /// End (exclusive) of what the archive answers. It permits no deletion.
    pub archived_through: i64,
    /// End (exclusive) of what the broker may delete of the log beside this
    /// daemon; 0 for nothing. A segment may go that lies wholly below it and was
    /// closed before this was told: one written later, with offsets issued again, is
    /// not covered by it.
    pub releasable_through: i64,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// A partition's newest state.
    Watermark(Watermark),
    /// Everything known when the watch began has been told. Once.
    InitialComplete,
}

/// Follows watermarks: first all there are, then each change. It has no end.
pub struct ArchiveWatch {
    inner: Arc<Inner>,
    request: v1::WatchArchivedRequest,
    messages: Option<Streaming<v1::WatchArchivedResponse>>,
    waiting: VecDeque<WatchItem>,
    told: HashMap<(String, i32), Watermark>,
    complete: bool,
    failures: u32,
}

impl ArchiveWatch {
    pub(crate) fn new(inner: Arc<Inner>, partitions: &[TopicPartition]) -> Self {
        let partitions = partitions.iter().map(convert::topic_partition).collect();
        Self {
            inner,
            request: v1::WatchArchivedRequest { partitions },
            messages: None,
            waiting: VecDeque::new(),
            told: HashMap::new(),
            complete: false,
            failures: 0,
        }
    }

    /// Waits for what is next, for as long as it takes. A broken connection or a
    /// restarted daemon is followed again; nothing is told twice. May be dropped
    /// while it waits, and called again.
    ///
    /// # Errors
    /// When the daemon could not be reached [`ClientOptions::retries`] times in a
    /// row, or refuses. Called again, it tries again.
    ///
    /// [`ClientOptions::retries`]: crate::ClientOptions::retries
    pub async fn next(&mut self) -> Result<WatchItem, ArchiveError> {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return Ok(item);
            }
            match self.receive().await {
                Ok(message) => {
                    self.failures = 0;
                    self.take(message);
                }
                Err(error) => {
                    self.messages = None;
                    let Inner { options, counters, .. } = &*self.inner;
                    let deadline = Deadline::after(options.deadline);
                    let mut retries = Retries::new(options, counters, &mut self.failures);
                    if let Err(error) = retries.pause(error, deadline).await {
                        self.failures = 0;
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<v1::WatchArchivedResponse, ArchiveError> {
        let messages = match &mut self.messages {
            Some(messages) => messages,
            None => {
                let mut grpc = self.inner.grpc();
                let begin = grpc.watch_archived(self.request.clone());
                let begun = Deadline::after(self.inner.options.deadline).limit(begin).await?;
                let begun = begun.map_err(|status| self.inner.call_error(&status))?;
                self.messages.insert(begun.into_inner())
            }
        };
        match messages.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(ArchiveError::unavailable("the daemon ended the watch")),
            Err(status) => Err(self.inner.call_error(&status)),
        }
    }

    /// Queues what is news in `message`.
    fn take(&mut self, message: v1::WatchArchivedResponse) {
        for mark in message.partitions {
            let mark = convert::watermark(mark);
            let key = (mark.topic.clone(), mark.partition);
            if self.told.get(&key) != Some(&mark) {
                self.told.insert(key, mark.clone());
                self.waiting.push_back(WatchItem::Watermark(mark));
            }
        }
        if message.initial_complete && !self.complete {
            self.complete = true;
            self.waiting.push_back(WatchItem::InitialComplete);
        }
    }
}

impl fmt::Debug for ArchiveWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveWatch").field("partitions", &self.told.len()).finish_non_exhaustive()
    }
}
