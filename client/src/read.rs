//! Owns the reading of one partition over broken connections: it asks, hands out
//! whole batches, and after a failure asks again behind the last of them.
//!
//! What may be resumed that way is a read of the served log without a list of
//! aborted transactions. The list comes last and is for what its own answer
//! sent; and superseded batches cannot be told apart by offset. Such a read,
//! once it handed something out, reports its failure, and who collects it begins
//! anew.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tierd_proto::v1;

use crate::answer::{Accepted, Answer, Whole};
use crate::client::Inner;
use crate::convert::{self, Details, Place};
use crate::error::ArchiveError;
use crate::retry::{Deadline, Retries};
use crate::types::{AbortedTransactions, Bounds, End, FetchArgs, Isolation, Outcome, Overlaps};

/// How much later than ours the daemon's deadline of a call is: ours decides, and
/// is the one told.
const DEADLINE_GRACE: Duration = Duration::from_millis(100);

/// Frames awaited after the trailer: `End`, and the end of the stream. Reading
/// them tells the daemon that the call ended well.
const FRAMES_AFTER_TRAILER: usize = 2;

/// How an answer ended.
#[derive(Debug)]
pub(crate) struct Finish {
    pub(crate) end: End,
    pub(crate) aborted: Option<AbortedTransactions>,
}

/// One step of a read.
#[derive(Debug)]
pub(crate) enum Step {
    Batches(Whole),
    Finished(Finish),
}

#[derive(Debug)]
struct Open {
    frames: tonic::Streaming<v1::FetchArchivedResponse>,
    answer: Answer,
}

/// A read of one partition, from `args.fetch_offset` to its end.
#[derive(Debug)]
pub(crate) struct PartitionRead {
    inner: Arc<Inner>,
    args: FetchArgs,
    /// Whether the deadline is one for the whole read, and the daemon's too.
    tell_deadline: bool,
    position: i64,
    delivered: u64,
    bounds: Option<Bounds>,
    open: Option<Open>,
}

impl PartitionRead {
    pub(crate) fn new(inner: Arc<Inner>, args: FetchArgs, tell_deadline: bool) -> Self {
        Self {
            position: args.fetch_offset,
            inner,
            args,
            tell_deadline,
            delivered: 0,
            bounds: None,
            open: None,
        }
    }

    /// Where it goes on.
    pub(crate) fn position(&self) -> i64 {
        self.position
    }

    /// Bytes of batches handed out.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The newest bounds known.
    pub(crate) fn bounds(&self) -> Option<Bounds> {
        self.bounds
    }

    /// Whether what was handed out stands by itself, whatever follows.
    pub(crate) fn is_resumable(&self) -> bool {
        // A selection leaves nothing to a list of aborted transactions.
        let listed = self.args.isolation == Isolation::ReadCommitted;
        self.args.overlaps == Overlaps::Served && (!listed || self.args.selection.is_some())
    }

    /// The next whole batches, or the end.
    ///
    /// # Errors
    /// When retries are used up or of no use. What was handed out before stays
    /// good if [`Self::is_resumable`].
    pub(crate) async fn next(
        &mut self,
        retries: &mut Retries<'_>,
        deadline: Deadline,
    ) -> Result<Step, ArchiveError> {
        loop {
            match self.step(deadline).await {
                Ok(Some(step)) => {
                    // What a read that cannot be resumed handed out is no
                    // progress until it is complete.
                    if self.is_resumable() {
                        retries.progress();
                    }
                    return Ok(step);
                }
                Ok(None) => {}
                Err(error) => {
                    self.open = None;
                    if self.delivered > 0 && !self.is_resumable() {
                        return Err(error);
                    }
                    retries.pause(error, deadline).await?;
                }
            }
        }
    }

    /// Takes one frame; `None` when it gave nothing to hand out.
    async fn step(&mut self, deadline: Deadline) -> Result<Option<Step>, ArchiveError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                if let Some(end) = self.used_up() {
                    return Ok(Some(Step::Finished(Finish { end, aborted: None })));
                }
                self.ask(deadline).await?
            }
        };
        let frame = match deadline.limit(open.frames.message()).await? {
            Ok(Some(response)) => response.frame,
            Ok(None) => return Err(ArchiveError::unavailable("the answer stopped before its end")),
            Err(status) => return Err(self.inner.call_error(&status)),
        };
        let accepted = open.answer.accept(frame)?;
        self.bounds = open.answer.bounds().or(self.bounds);
        match accepted {
            Accepted::Nothing => {
                self.open = Some(open);
                Ok(None)
            }
            Accepted::Batches(whole) => {
                // The one place where an answer may go back: behind what an
                // earlier attempt handed out.
                if self.delivered > 0 && self.is_resumable() && whole.first_base < self.position {
                    let finish = Finish { end: End::OffsetsGoBack, aborted: None };
                    return Ok(Some(Step::Finished(finish)));
                }
                self.charge(&whole)?;
                self.open = Some(open);
                Ok(Some(Step::Batches(whole)))
            }
            Accepted::Trailer(trailer) => {
                let finish = self.finish(&trailer)?;
                for _ in 0..FRAMES_AFTER_TRAILER {
                    let Ok(Ok(Some(_))) = deadline.limit(open.frames.message()).await else {
                        break;
                    };
                }
                Ok(Some(Step::Finished(finish)))
            }
        }
    }

    /// The end that a resumed read need not ask for.
    fn used_up(&self) -> Option<End> {
        if self.delivered == 0 {
            None
        } else if self.args.max_bytes.is_some_and(|max| self.delivered >= max) {
            Some(End::Limit)
        } else if self.args.upper_bound.is_some_and(|bound| self.position >= bound) {
            Some(End::UpperBound)
        } else {
            None
        }
    }

    async fn ask(&mut self, deadline: Deadline) -> Result<Open, ArchiveError> {
        let args = FetchArgs {
            fetch_offset: self.position,
            max_bytes: self.args.max_bytes.map(|max| max.saturating_sub(self.delivered)),
            min_one_batch: self.args.min_one_batch && self.delivered == 0,
            // It is the epoch of the first offset, and of no later one.
            fetch_offset_epoch: self.args.fetch_offset_epoch.filter(|_| self.delivered == 0),
            ..self.args.clone()
        };
        let mut request = tonic::Request::new(convert::request(&args));
        if self.tell_deadline {
            request.set_timeout(deadline.remaining() + DEADLINE_GRACE);
        }
        let answer = Answer::new(&args, self.position, self.inner.options.batch_bytes_max);
        let mut grpc = self.inner.grpc();
        match deadline.limit(grpc.fetch_archived(request)).await? {
            Ok(response) => Ok(Open { frames: response.into_inner(), answer }),
            Err(status) => Err(self.inner.call_error(&status)),
        }
    }

    /// Takes batches into account, and refuses what was not asked for.
    fn charge(&mut self, whole: &Whole) -> Result<(), ArchiveError> {
        let delivered = self.delivered + whole.bytes.len() as u64;
        let excused = self.args.min_one_batch && self.delivered == 0 && whole.count == 1;
        if self.args.max_bytes.is_some_and(|max| delivered > max) && !excused {
            return Err(ArchiveError::protocol(format!(
                "{delivered} bytes came where at most {:?} were asked for",
                self.args.max_bytes.unwrap_or_default()
            )));
        }
        self.delivered = delivered;
        self.position = whole.next_offset;
        Ok(())
    }

    /// Reads a trailer.
    fn finish(&mut self, trailer: &v1::PartitionTrailer) -> Result<Finish, ArchiveError> {
        let committed = self.args.isolation == Isolation::ReadCommitted;
        let aborted = trailer.aborted.as_ref().filter(|_| committed).map(convert::aborted);
        let bounds = trailer.bounds.as_ref().map(convert::bounds).or(self.bounds);
        self.bounds = bounds;
        let place = Place {
            topic: &self.args.topic,
            partition: self.args.partition,
            offset: Some(self.position),
            bounds,
        };
        let details = Details {
            message: &trailer.message,
            object: &trailer.object,
            retry_after_ms: trailer.retry_after_ms,
        };
        let status = convert::status(trailer.status, place, details);
        if self.args.selection.is_some() {
            // What was passed by is answered, also where the rest failed.
            self.position = self.position.max(trailer.next_offset);
        }
        let begun = self.position > self.args.fetch_offset;
        let end = match status {
            Ok(()) => convert::end(trailer.end_reason, trailer.gap.as_ref())?,
            // A resumed read may begin exactly where the archive ends.
            Err(ArchiveError::NotArchivedYet { .. }) if begun => End::EndOfArchive,
            Err(error) => {
                let again =
                    self.is_resumable() && matches!(error, ArchiveError::Unavailable { .. });
                let stands = self.is_resumable() || aborted.is_some();
                if again || self.delivered == 0 || !stands {
                    return Err(error);
                }
                End::Failed(error)
            }
        };
        if committed && aborted.is_none() {
            return Err(ArchiveError::protocol(
                "a read_committed answer without a list of aborted transactions",
            ));
        }
        let must_yield = self.args.min_one_batch && self.args.selection.is_none();
        if self.delivered == 0 && end == End::Limit && must_yield {
            return Err(ArchiveError::protocol("at least one batch was asked for and none came"));
        }
        Ok(Finish { end, aborted })
    }
}

/// Reads all of `args` into memory: `args.max_bytes` bounds it.
pub(crate) async fn collect(
    inner: &Arc<Inner>,
    args: &FetchArgs,
    retries: &mut Retries<'_>,
    deadline: Deadline,
) -> Result<Outcome, ArchiveError> {
    loop {
        let mut read = PartitionRead::new(Arc::clone(inner), args.clone(), true);
        match collect_once(&mut read, retries, deadline).await {
            Ok(outcome) => return Ok(outcome),
            // Used up already, or of no use: then this gives the error back.
            Err(error) => retries.pause(error, deadline).await?,
        }
    }
}

async fn collect_once(
    read: &mut PartitionRead,
    retries: &mut Retries<'_>,
    deadline: Deadline,
) -> Result<Outcome, ArchiveError> {
    let mut parts: Vec<Bytes> = Vec::new();
    let mut batch_count = 0;
    let finish = loop {
        match read.next(retries, deadline).await {
            Ok(Step::Batches(whole)) => {
                batch_count += whole.count;
                parts.push(whole.bytes);
            }
            Ok(Step::Finished(finish)) => break finish,
            Err(error) if !parts.is_empty() && read.is_resumable() => {
                break Finish { end: End::Failed(error), aborted: None };
            }
            Err(error) => return Err(error),
        }
    };
    if let (End::Gap(gap), true) = (&finish.end, parts.is_empty()) {
        return Err(ArchiveError::Gap(*gap));
    }
    Ok(Outcome {
        batches: join(parts),
        batch_count,
        next_offset: read.position(),
        end: finish.end,
        aborted: finish.aborted,
        bounds: read.bounds(),
    })
}

fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut joined = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}
