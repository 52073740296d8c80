//! Owns the long read: batches as they come, over as many answers as it takes.
//!
//! A read_uncommitted stream is one read that is resumed. A read_committed one
//! goes window by window: the list of aborted transactions comes last in an
//! answer, and its batches are of no use to a consumer before it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};

use crate::client::Inner;
use crate::error::ArchiveError;
use crate::read::{PartitionRead, Step, collect};
use crate::retry::{Deadline, Retries};
use crate::types::{BatchSet, Bounds, End, FetchArgs, Isolation, Overlaps, StreamEnd, StreamItem};

/// Bytes of one read_committed window, held until its list came. It is what a
/// stream holds in memory, and what is read again when a connection breaks.
const WINDOW_BYTES: u64 = 4 << 20;

/// Items of a long read: batches, then one [`StreamItem::End`], or an error and
/// nothing more.
pub struct FetchStream(Pin<Box<dyn Stream<Item = Result<StreamItem, ArchiveError>> + Send>>);

impl FetchStream {
    /// A stream of given items, for an [`ArchiveFetch`](crate::ArchiveFetch) of
    /// your own.
    pub fn new(
        items: impl Stream<Item = Result<StreamItem, ArchiveError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(items))
    }

    /// The next item; `None` after the last. It may be dropped and called again.
    pub async fn next(&mut self) -> Option<Result<StreamItem, ArchiveError>> {
        self.0.next().await
    }
}

impl Stream for FetchStream {
    type Item = Result<StreamItem, ArchiveError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for FetchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FetchStream")
    }
}

pub(crate) fn open(inner: Arc<Inner>, args: FetchArgs) -> FetchStream {
    let state = State {
        patience: args.deadline.unwrap_or(inner.options.deadline),
        position: args.fetch_offset,
        inner,
        args,
        sent: 0,
        failures: 0,
        read: None,
        bounds: None,
        ended: None,
    };
    FetchStream::new(stream::unfold(Some(state), |state| async {
        let mut state = state?;
        match state.next().await {
            Ok(StreamItem::End(end)) => Some((Ok(StreamItem::End(end)), None)),
            Ok(item) => Some((Ok(item), Some(state))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct State {
    inner: Arc<Inner>,
    args: FetchArgs,
    /// Longest wait for an item.
    patience: Duration,
    position: i64,
    sent: u64,
    failures: u32,
    read: Option<PartitionRead>,
    bounds: Option<Bounds>,
    /// The end that comes after the batches handed out last.
    ended: Option<End>,
}

impl State {
    async fn next(&mut self) -> Result<StreamItem, ArchiveError> {
        let item = match self.args.isolation {
            Isolation::ReadUncommitted => self.next_read().await?,
            Isolation::ReadCommitted => self.next_window().await?,
        };
        if let StreamItem::Batches(set) = &item {
            self.inner.counters.handed_out(set.batches.len());
            self.sent += set.batches.len() as u64;
            self.position = set.next_offset;
        }
        Ok(item)
    }

    async fn next_read(&mut self) -> Result<StreamItem, ArchiveError> {
        let inner = Arc::clone(&self.inner);
        let mut retries = Retries::new(&inner.options, &inner.counters, &mut self.failures);
        loop {
            let deadline = Deadline::after(self.patience);
            let read = self.read.get_or_insert_with(|| {
                let args = rest(&self.args, self.position, self.sent);
                PartitionRead::new(Arc::clone(&inner), args, false)
            });
            let finish = match read.next(&mut retries, deadline).await {
                Ok(Step::Batches(whole)) => {
                    return Ok(StreamItem::Batches(BatchSet {
                        batches: whole.bytes,
                        next_offset: whole.next_offset,
                        aborted: None,
                    }));
                }
                Ok(Step::Finished(finish)) => finish,
                // Between two answers the stream stands where the first ended.
                Err(ArchiveError::NotArchivedYet { .. }) if self.has_begun() => {
                    return self.end(End::EndOfArchive);
                }
                Err(error) => return Err(error),
            };
            // Batches of a selection may stand far apart, or not come at all.
            let passed = read.position() > self.position;
            self.position = read.position();
            // An answer that ends at a limit of the daemon, or before offsets
            // that go back, is followed by another. Superseded batches cannot be
            // found again by offset.
            let goes_on = matches!(finish.end, End::Limit | End::OffsetsGoBack)
                && self.args.overlaps == Overlaps::Served
                && (read.delivered() > 0 || passed)
                && self.args.max_bytes.is_none_or(|max| self.sent < max);
            self.bounds = read.bounds();
            if !goes_on {
                return self.end(finish.end);
            }
            self.read = None;
        }
    }

    fn has_begun(&self) -> bool {
        self.position > self.args.fetch_offset
    }

    async fn next_window(&mut self) -> Result<StreamItem, ArchiveError> {
        loop {
            if let Some(item) = self.window().await? {
                return Ok(item);
            }
        }
    }

    /// The next window; `None` when a selection left nothing of it.
    async fn window(&mut self) -> Result<Option<StreamItem>, ArchiveError> {
        if let Some(end) = self.ended.take() {
            return self.end(end).map(Some);
        }
        let mut args = rest(&self.args, self.position, self.sent);
        let left = args.max_bytes.unwrap_or(u64::MAX);
        if left == 0 {
            return self.end(End::Limit).map(Some);
        }
        if left > WINDOW_BYTES {
            // The window is ours: a batch larger than it is none of the caller's.
            args.max_bytes = Some(WINDOW_BYTES);
            args.min_one_batch = true;
        }
        let inner = Arc::clone(&self.inner);
        let mut retries = Retries::new(&inner.options, &inner.counters, &mut self.failures);
        let deadline = Deadline::after(self.patience);
        let outcome = collect(&inner, &args, &mut retries, deadline).await;
        self.failures = 0;
        let outcome = match outcome {
            // As between two answers.
            Err(ArchiveError::NotArchivedYet { .. }) if self.has_begun() => {
                return self.end(End::EndOfArchive).map(Some);
            }
            Err(ArchiveError::Gap(gap)) => {
                self.position = self.position.max(gap.range.first);
                return self.end(End::Gap(gap)).map(Some);
            }
            outcome => outcome?,
        };
        self.bounds = outcome.bounds;
        let excused = self.sent == 0 && self.args.min_one_batch;
        if outcome.batches.len() as u64 > left && !excused {
            return self.end(End::Limit).map(Some);
        }
        let passed = outcome.next_offset > self.position;
        self.position = outcome.next_offset;
        if !outcome.is_hit() {
            let goes_on = passed && matches!(outcome.end, End::Limit | End::OffsetsGoBack);
            return if goes_on { Ok(None) } else { self.end(outcome.end).map(Some) };
        }
        if !matches!(outcome.end, End::Limit | End::OffsetsGoBack) {
            self.ended = Some(outcome.end);
        }
        Ok(Some(StreamItem::Batches(BatchSet {
            batches: outcome.batches,
            next_offset: outcome.next_offset,
            aborted: outcome.aborted,
        })))
    }

    fn end(&self, end: End) -> Result<StreamItem, ArchiveError> {
        match end {
            End::Failed(error) => Err(error),
            end => Ok(StreamItem::End(StreamEnd {
                end,
                next_offset: self.position,
                bounds: self.bounds,
            })),
        }
    }
}

/// What is left of `args` after `sent` bytes.
fn rest(args: &FetchArgs, position: i64, sent: u64) -> FetchArgs {
    FetchArgs {
        fetch_offset: position,
        max_bytes: args.max_bytes.map(|max| max.saturating_sub(sent)),
        min_one_batch: args.min_one_batch && sent == 0,
        fetch_offset_epoch: args.fetch_offset_epoch.filter(|_| sent == 0),
        ..args.clone()
    }
}
