//! Owns reading a partition to its end, through a daemon or straight from the
//! store: one face for both.

use std::sync::Arc;

use bytes::Bytes;
use tierd_client::{ArchiveClient, FetchStream, StreamItem};
use tokio::sync::mpsc;

use crate::fetch::{
    EVENTS_QUEUED_MAX, EndReason, FetchEvent, FetchRequest, Fetcher, Overlaps, PartitionRequest,
    PartitionTrailer, Status,
};
use crate::read::{ReadStats, ReadTotals};
use crate::record::OffsetRange;

/// Bytes of one answer of the store: what is held in memory at once.
const ANSWER_BYTES: u64 = 8 << 20;

/// A part of what is read, in order.
#[derive(Debug)]
pub(super) enum Part {
    /// Whole batches.
    Batches {
        wire: Bytes,
        /// Producer and first offset of the aborted transactions in them, with
        /// the offset of the marker; read_committed only.
        aborted: Vec<Aborted>,
    },
    /// A declared gap on the way.
    Gap { range: OffsetRange, kind: String },
    /// There is no more.
    End,
}

/// One aborted transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aborted {
    pub(super) producer_id: i64,
    pub(super) offsets: OffsetRange,
}

/// A partition being read.
pub(super) enum Reading {
    Store(StoreReading),
    Daemon(DaemonReading),
}

impl Reading {
    pub(super) async fn next(&mut self) -> anyhow::Result<Part> {
        match self {
            Self::Store(reading) => reading.next().await,
            Self::Daemon(reading) => reading.next().await,
        }
    }

    /// What reading has cost so far; a daemon keeps that to itself.
    pub(super) fn cost(&self) -> Option<ReadTotals> {
        match self {
            Self::Store(reading) => Some(reading.stats.totals()),
            Self::Daemon(_) => None,
        }
    }
}

/// Reads straight from the store.
pub(super) struct StoreReading {
    fetcher: Fetcher,
    request: PartitionRequest,
    /// Bytes that may still be read.
    left: u64,
    /// Whether batches were handed out: only the first may be larger than `left`.
    begun: bool,
    stats: Arc<ReadStats>,
    events: Option<mpsc::Receiver<FetchEvent>>,
    waiting: Vec<Bytes>,
    ended: bool,
}

impl StoreReading {
    pub(super) fn new(fetcher: Fetcher, request: PartitionRequest) -> Self {
        let left = request.max_bytes;
        let stats = Arc::new(ReadStats::default());
        Self {
            fetcher,
            request,
            left,
            begun: false,
            stats,
            events: None,
            waiting: Vec::new(),
            ended: false,
        }
    }

    async fn next(&mut self) -> anyhow::Result<Part> {
        if self.ended {
            return Ok(Part::End);
        }
        let all = self.request.overlaps == Overlaps::All;
        let events = self.events.get_or_insert_with(|| {
            let mut request = self.request.clone();
            // An answer that names overlaps cannot be resumed, so it is taken whole.
            request.max_bytes = if all { self.left } else { self.left.min(ANSWER_BYTES) };
            // Where the limit is ours, a batch larger than it must come all the same.
            request.min_one_batch &= !self.begun || self.left > ANSWER_BYTES;
            start(self.fetcher.clone(), request, Arc::clone(&self.stats))
        });
        while let Some(event) = events.recv().await {
            match event {
                FetchEvent::Header(_) => {}
                FetchEvent::Data(data) if all => {
                    return Ok(Part::Batches { wire: data.wire, aborted: Vec::new() });
                }
                FetchEvent::Data(data) => self.waiting.push(data.wire),
                FetchEvent::Trailer(trailer) => return self.finish(trailer),
            }
        }
        anyhow::bail!("the read stopped without an answer, which is a defect of tierd")
    }

    /// Hands out what one answer brought and decides where the next begins.
    fn finish(&mut self, trailer: PartitionTrailer) -> anyhow::Result<Part> {
        self.events = None;
        let wire = Bytes::from(std::mem::take(&mut self.waiting).concat());
        if self.begun && trailer.bytes > self.left {
            self.ended = true;
            return Ok(Part::End);
        }
        self.begun |= trailer.bytes > 0;
        let goes_on = trailer.next_offset > self.request.offset;
        self.left = self.left.saturating_sub(trailer.bytes);
        self.request.offset = trailer.next_offset;
        let gap = match (trailer.status, trailer.end) {
            (Status::Ok, EndReason::Gap(gap)) => Some(gap),
            (Status::Ok, EndReason::Limit | EndReason::OffsetsGoBack) => {
                self.ended = self.left == 0 || !goes_on;
                None
            }
            (Status::Ok, _) => {
                self.ended = true;
                None
            }
            _ if wire.is_empty() => anyhow::bail!(trailer.message),
            // What came before is good; the next answer says why it ends.
            _ => None,
        };
        if !wire.is_empty() {
            let aborted = trailer.aborted.unwrap_or_default().transactions;
            let aborted = aborted.iter().filter_map(|aborted| {
                let offsets = OffsetRange::new(aborted.first_offset, aborted.last_offset)?;
                Some(Aborted { producer_id: aborted.producer_id, offsets })
            });
            return Ok(Part::Batches { wire, aborted: aborted.collect() });
        }
        let Some(gap) = gap else {
            // A selection may have left nothing of this answer.
            self.ended |= !goes_on;
            let nothing = Part::Batches { wire, aborted: Vec::new() };
            return Ok(if self.ended { Part::End } else { nothing });
        };
        self.request.offset = gap.range.end();
        Ok(Part::Gap { range: gap.range, kind: gap.kind.to_string() })
    }
}

fn start(
    fetcher: Fetcher,
    request: PartitionRequest,
    stats: Arc<ReadStats>,
) -> mpsc::Receiver<FetchEvent> {
    let (sink, events) = mpsc::channel(EVENTS_QUEUED_MAX);
    tokio::spawn(async move {
        let request = FetchRequest { partitions: vec![request], max_bytes: u64::MAX };
        // It fails only when the receiver is gone.
        let _ = fetcher.fetch(request, &sink, &stats).await;
    });
    events
}

/// Reads through a daemon.
pub(super) struct DaemonReading {
    client: ArchiveClient,
    args: tierd_client::FetchArgs,
    stream: Option<FetchStream>,
}

impl DaemonReading {
    pub(super) fn new(client: ArchiveClient, args: tierd_client::FetchArgs) -> Self {
        Self { client, args, stream: None }
    }

    async fn next(&mut self) -> anyhow::Result<Part> {
        let stream = self.stream.get_or_insert_with(|| self.client.fetch_stream(self.args.clone()));
        match stream.next().await.transpose()? {
            Some(StreamItem::Batches(set)) => {
                let aborted = set.aborted.map(|list| list.transactions).unwrap_or_default();
                let aborted = aborted.iter().filter_map(|aborted| {
                    let offsets = OffsetRange::new(aborted.first_offset, aborted.last_offset)?;
                    Some(Aborted { producer_id: aborted.producer_id, offsets })
                });
                let aborted = aborted.collect();
                let read = set.batches.len() as u64;
                self.args.max_bytes = self.args.max_bytes.map(|left| left.saturating_sub(read));
                Ok(Part::Batches { wire: set.batches, aborted })
            }
            Some(StreamItem::End(end)) => {
                self.stream = None;
                match end.end {
                    tierd_client::End::Gap(gap) => {
                        self.args.fetch_offset = gap.range.last + 1;
                        let range = OffsetRange::new(gap.range.first, gap.range.last);
                        let range = range
                            .ok_or_else(|| anyhow::anyhow!("the daemon named an empty gap"))?;
                        Ok(Part::Gap { range, kind: gap.kind.to_string() })
                    }
                    _ => Ok(Part::End),
                }
            }
            None => Ok(Part::End),
        }
    }
}
