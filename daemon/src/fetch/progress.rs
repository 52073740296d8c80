//! Owns how far an answer has come and where it must end: limits and bounds. Pure but
//! for handing events to whoever asked.

use super::types::{Data, EndReason, FetchEvent, Isolation, PartitionHeader, PartitionRequest};
use super::{FetchError, Sink, state_of};
use crate::catalog::Snapshot;
use crate::record::batch::BATCH_HEADER_BYTES;
use crate::record::{CanonicalRecord, OffsetRange};

/// How far one answer has come.
pub(super) struct Progress {
    /// Not sent before something follows it: until then another manifest may answer.
    header: Option<PartitionHeader>,
    /// Next offset to serve.
    pub(super) next: i64,
    /// The offsets that the batches sent are served at.
    pub(super) served: Option<OffsetRange>,
    /// The last offset of the last batch of a selection that was sent.
    pub(super) sent_through: Option<i64>,
    pub(super) bytes: u64,
    pub(super) batches: u64,
    max_bytes: u64,
    min_one_batch: bool,
}

impl Progress {
    pub(super) fn new(request: &PartitionRequest, snapshot: &Snapshot) -> Self {
        let header = PartitionHeader { tp: request.tp.clone(), state: Some(state_of(snapshot)) };
        Self {
            header: Some(header),
            next: request.offset,
            served: None,
            sent_through: None,
            bytes: 0,
            batches: 0,
            max_bytes: request.max_bytes,
            min_one_batch: request.min_one_batch,
        }
    }

    /// Sends the header, if it was not sent yet.
    pub(super) async fn send_header(&mut self, sink: &Sink) -> Result<(), FetchError> {
        match self.header.take() {
            Some(header) => send(sink, FetchEvent::Header(header)).await,
            None => Ok(()),
        }
    }

    /// Sends batches that were taken into account by [`Self::sent`].
    pub(super) async fn send_data(&mut self, sink: &Sink, data: Data) -> Result<(), FetchError> {
        self.send_header(sink).await?;
        send(sink, FetchEvent::Data(data)).await
    }

    /// Whether a batch of `len` bytes may still be sent.
    pub(super) fn admits(&self, len: usize) -> bool {
        self.bytes + len as u64 <= self.max_bytes || (self.batches == 0 && self.min_one_batch)
    }

    /// Takes a batch into account that is served as far as `last`, and goes on behind
    /// its end.
    pub(super) fn sent(&mut self, batch: &CanonicalRecord, last: i64, len: usize) {
        let range = batch.range();
        let base = self.served.map_or(range.base().max(self.next), OffsetRange::base);
        self.served = OffsetRange::new(base, last);
        self.next = self.next.max(range.end());
        self.bytes += len as u64;
        self.batches += 1;
    }

    /// Takes a batch of a selection into account; where to go on is told apart. What is
    /// aborted was taken out of it, so it is not served in the sense of the list.
    pub(super) fn picked(&mut self, range: OffsetRange, len: usize) {
        self.sent_through = Some(range.last());
        self.bytes += len as u64;
        self.batches += 1;
    }

    /// Goes on at `next`, if that is not behind already.
    pub(super) fn pass(&mut self, next: i64) {
        self.next = self.next.max(next);
    }

    /// Whether no batch at all can follow, so that nothing need be read to know it.
    pub(super) fn is_full(&self) -> bool {
        !self.admits(BATCH_HEADER_BYTES)
    }

    /// Bytes that are worth reading ahead for.
    pub(super) fn wanted(&self) -> u64 {
        self.max_bytes.saturating_sub(self.bytes).max(1)
    }
}

/// First offset that must not be served, and what an answer that reaches it says.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) offset: i64,
    pub(super) reason: EndReason,
}

/// The bound of `request`: its own where that is the lower, else the archive's.
/// For read_committed without a bound that is the last stable offset.
pub(super) fn bound(request: &PartitionRequest, snapshot: &Snapshot) -> Bound {
    bound_of(request.isolation, request.upper_bound, snapshot)
}

/// As [`bound`], of whatever asks for records.
pub(super) fn bound_of(
    isolation: Isolation,
    upper_bound: Option<i64>,
    snapshot: &Snapshot,
) -> Bound {
    let through = snapshot.archived_through();
    let (offset, reason) = match (isolation, upper_bound) {
        (_, Some(bound)) if bound < through => (bound, EndReason::UpperBound),
        (Isolation::ReadCommitted, None) => {
            (snapshot.last_stable_offset().min(through), EndReason::EndOfArchive)
        }
        _ => (through, EndReason::EndOfArchive),
    };
    Bound { offset, reason }
}

/// Hands `event` to whoever asked.
pub(super) async fn send(sink: &Sink, event: FetchEvent) -> Result<(), FetchError> {
    sink.send(event).await.map_err(|_| FetchError::Cancelled)
}
