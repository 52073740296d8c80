//! Owns the frames of one partition's answer: their order, pieces of large
//! batches, and the rules every batch must keep before it is handed out. Pure:
//! frames in, whole batches out. Knows nothing of connections or retries.
//!
//! ```text
//! header  data*  trailer  end
//!         data = whole batches | piece (continued)* last piece
//! ```

use bytes::{Bytes, BytesMut};
use tierd_proto::v1;
use tierd_proto::v1::fetch_archived_response::Frame;

use crate::batch::{batch_len, batches_in};
use crate::convert::bounds;
use crate::error::ArchiveError;
use crate::types::{Bounds, FetchArgs, Overlaps};

/// Whole batches out of one frame, or one batch out of several.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    pub(crate) first_base: i64,
    /// The highest last offset plus one.
    pub(crate) next_offset: i64,
    pub(crate) count: u32,
}

/// What a frame gave.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// Nothing to hand out yet.
    Nothing,
    Batches(Whole),
    Trailer(Box<v1::PartitionTrailer>),
}

/// Rebuilds one partition's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    topic: String,
    partition: i32,
    fetch_offset: i64,
    upper_bound: Option<i64>,
    served: bool,
    /// Whether batches that hold nothing wanted are passed by.
    selected: bool,
    batch_bytes_max: usize,

    opened: bool,
    bounds: Option<Bounds>,
    pieces: BytesMut,
    next_offset: Option<i64>,
    least_base: i64,
    bytes: u64,
    batches: u32,
}

impl Answer {
    /// The answer to `args` read from `fetch_offset` on.
    pub(crate) fn new(args: &FetchArgs, fetch_offset: i64, batch_bytes_max: usize) -> Self {
        Self {
            topic: args.topic.clone(),
            partition: args.partition,
            fetch_offset,
            upper_bound: args.upper_bound,
            served: args.overlaps == Overlaps::Served,
            selected: args.selection.is_some(),
            batch_bytes_max,
            opened: false,
            bounds: None,
            pieces: BytesMut::new(),
            next_offset: None,
            least_base: 0,
            bytes: 0,
            batches: 0,
        }
    }

    /// The bounds in the header, once it came.
    pub(crate) fn bounds(&self) -> Option<Bounds> {
        self.bounds
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// [`ArchiveError::Protocol`] when it breaks a rule of the wire. Nothing of
    /// the frame was handed out.
    pub(crate) fn accept(&mut self, frame: Option<Frame>) -> Result<Accepted, ArchiveError> {
        match frame {
            Some(Frame::Header(header)) => self.open(&header),
            Some(Frame::Data(data)) if self.opened => self.data(data),
            Some(Frame::Trailer(trailer)) if self.opened => self.close(trailer),
            Some(_) => Err(ArchiveError::protocol("a frame came out of its order")),
            None => Err(ArchiveError::protocol(
                "a frame of a kind this client does not know; the daemon is newer",
            )),
        }
    }

    fn open(&mut self, header: &v1::PartitionHeader) -> Result<Accepted, ArchiveError> {
        if self.opened || header.topic != self.topic || header.partition != self.partition {
            return Err(ArchiveError::protocol(format!(
                "a header for partition {} of topic '{}' was not asked for",
                header.partition, header.topic
            )));
        }
        self.opened = true;
        self.bounds = header.bounds.as_ref().map(bounds);
        Ok(Accepted::Nothing)
    }

    fn data(&mut self, data: v1::Data) -> Result<Accepted, ArchiveError> {
        if self.pieces.is_empty() && !data.continued {
            return self.whole(data.batches).map(Accepted::Batches);
        }
        self.pieces.extend_from_slice(&data.batches);
        // Checked as soon as it can be, so that a wrong length is not awaited.
        let expected = batch_len(&self.pieces)?;
        if let Some(expected) = expected {
            if expected > self.batch_bytes_max {
                return Err(ArchiveError::protocol(format!(
                    "a record batch of {expected} bytes; at most {} are taken",
                    self.batch_bytes_max
                )));
            }
            if self.pieces.len() > expected {
                return Err(ArchiveError::protocol("the pieces of a batch hold more than it"));
            }
        }
        if data.continued {
            return Ok(Accepted::Nothing);
        }
        if expected != Some(self.pieces.len()) {
            return Err(ArchiveError::protocol("the pieces of a batch hold less than it"));
        }
        let batch = std::mem::take(&mut self.pieces).freeze();
        self.whole(batch).map(Accepted::Batches)
    }

    /// Checks that `bytes` are whole batches in their place.
    fn whole(&mut self, bytes: Bytes) -> Result<Whole, ArchiveError> {
        let mut first_base = None;
        let mut count = 0;
        let mut next_offset = self.next_offset;
        let mut least_base = self.least_base;
        for batch in batches_in(bytes.clone()) {
            let batch = batch?;
            let (base, last) = (batch.base_offset, batch.last_offset);
            if base < least_base {
                return Err(misplaced(base, "goes back"));
            }
            if last < self.fetch_offset {
                return Err(misplaced(base, "ends below the offset asked for"));
            }
            if self.upper_bound.is_some_and(|bound| last >= bound) {
                return Err(misplaced(base, "reaches the upper bound"));
            }
            let next = next_offset.unwrap_or(0).max(last + 1);
            next_offset = Some(next);
            // Superseded batches overlap, but ascend by base all the same.
            least_base = if self.served { next } else { base };
            first_base.get_or_insert(base);
            count += 1;
        }
        let (Some(first_base), Some(next_offset)) = (first_base, next_offset) else {
            return Err(ArchiveError::protocol("a data frame without data"));
        };
        self.next_offset = Some(next_offset);
        self.least_base = least_base;
        self.bytes += bytes.len() as u64;
        self.batches += count;
        Ok(Whole { bytes, first_base, next_offset, count })
    }

    /// A trailer inside a piece voids the piece. What it says must agree with
    /// what came: a difference is a batch lost on the way.
    fn close(&mut self, trailer: v1::PartitionTrailer) -> Result<Accepted, ArchiveError> {
        self.pieces.clear();
        if (trailer.bytes, trailer.batches) != (self.bytes, self.batches) {
            return Err(ArchiveError::protocol(format!(
                "{} batches of {} bytes came, the trailer counts {} of {}",
                self.batches, self.bytes, trailer.batches, trailer.bytes
            )));
        }
        if self.selected {
            let least = self.next_offset.unwrap_or(self.fetch_offset);
            if trailer.next_offset < least {
                return Err(ArchiveError::protocol(format!(
                    "the trailer says to go on at {}, behind which {least} lies",
                    trailer.next_offset
                )));
            }
        } else if let Some(next_offset) = self.next_offset
            && trailer.next_offset != next_offset
        {
            return Err(ArchiveError::protocol(format!(
                "the batches end before offset {next_offset}, the trailer says {}",
                trailer.next_offset
            )));
        }
        Ok(Accepted::Trailer(Box::new(trailer)))
    }
}

fn misplaced(base: i64, why: &str) -> ArchiveError {
    ArchiveError::protocol(format!("the record batch at offset {base} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{batch_bytes, data, header, piece, trailer};

    fn answer() -> Answer {
        let mut answer = Answer::new(&FetchArgs::new("orders", 0, 10), 10, 1 << 20);
        answer.accept(Some(header("orders", 0))).unwrap();
        answer
    }

    fn refusal(answer: &mut Answer, frame: Frame) -> String {
        let error = answer.accept(Some(frame)).unwrap_err();
        assert!(matches!(error, ArchiveError::Protocol { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn pieces_become_one_batch_and_only_when_the_last_came() {
        let batch = batch_bytes(10, 5, 100);
        for cut in 1..batch.len() {
            let mut answer = answer();
            let first = answer.accept(Some(piece(batch.slice(..cut)))).unwrap();
            assert!(matches!(first, Accepted::Nothing));
            let Accepted::Batches(whole) = answer.accept(Some(data(batch.slice(cut..)))).unwrap()
            else {
                panic!("no batch after the last piece")
            };
            assert_eq!(whole.bytes, batch);
            assert_eq!((whole.first_base, whole.next_offset, whole.count), (10, 15, 1));
        }
    }

    #[test]
    fn a_trailer_inside_a_piece_voids_the_piece() {
        let mut answer = answer();
        let batch = batch_bytes(10, 5, 100);
        let count = batch.len() as u64;
        answer.accept(Some(data(batch.clone()))).unwrap();
        answer.accept(Some(piece(batch_bytes(15, 5, 100).slice(..70)))).unwrap();
        let closed = answer.accept(Some(trailer(15, count, 1))).unwrap();
        assert!(matches!(closed, Accepted::Trailer(_)));
    }

    #[test]
    fn pieces_that_hold_more_or_less_than_a_batch_are_refused() {
        let batch = batch_bytes(10, 5, 100);
        let mut short = answer();
        short.accept(Some(piece(batch.slice(..80)))).unwrap();
        assert!(refusal(&mut short, data(batch.slice(80..90))).contains("hold less"));

        let mut long = answer();
        long.accept(Some(piece(batch.clone()))).unwrap();
        assert!(refusal(&mut long, data(batch)).contains("hold more"));

        let mut huge = answer();
        let mut bytes = batch_bytes(10, 1, 0).to_vec();
        bytes[8..12].copy_from_slice(&(1_i32 << 30).to_be_bytes());
        assert!(refusal(&mut huge, piece(bytes.into())).contains("at most"));
    }

    #[test]
    fn batches_out_of_place_are_refused() {
        assert!(refusal(&mut answer(), data(batch_bytes(5, 5, 0))).contains("ends below"));

        let mut back = answer();
        back.accept(Some(data(batch_bytes(8, 5, 0)))).unwrap();
        assert!(refusal(&mut back, data(batch_bytes(12, 5, 0))).contains("goes back"));

        let args = FetchArgs { upper_bound: Some(14), ..FetchArgs::new("orders", 0, 10) };
        let mut bounded = Answer::new(&args, 10, 1 << 20);
        bounded.accept(Some(header("orders", 0))).unwrap();
        assert!(refusal(&mut bounded, data(batch_bytes(10, 5, 0))).contains("upper bound"));

        assert!(refusal(&mut answer(), data(Bytes::new())).contains("without data"));
        let half = batch_bytes(10, 5, 100).slice(..99);
        assert!(refusal(&mut answer(), data(half)).contains("cut short"));
    }

    #[test]
    fn superseded_batches_may_overlap_but_ascend() {
        let args = FetchArgs { overlaps: Overlaps::All, ..FetchArgs::new("orders", 0, 10) };
        let mut all = Answer::new(&args, 10, 1 << 20);
        all.accept(Some(header("orders", 0))).unwrap();
        for (base, count) in [(10, 10), (10, 2), (15, 1), (15, 9)] {
            all.accept(Some(data(batch_bytes(base, count, 0)))).unwrap();
        }
        assert!(refusal(&mut all, data(batch_bytes(14, 9, 0))).contains("goes back"));
    }

    #[test]
    fn a_trailer_that_counts_otherwise_tells_a_lost_batch() {
        let batch = batch_bytes(10, 5, 0);
        let count = batch.len() as u64;
        for (next, bytes, batches) in [(15, count, 2), (15, count + 1, 1), (16, count, 1)] {
            let mut answer = answer();
            answer.accept(Some(data(batch.clone()))).unwrap();
            refusal(&mut answer, trailer(next, bytes, batches));
        }
    }

    #[test]
    fn an_answer_to_a_selection_goes_on_behind_what_was_passed_by_and_never_back() {
        let selection = Some(crate::search::Selection::default());
        let args = FetchArgs { selection, ..FetchArgs::new("orders", 0, 10) };
        let opened = || {
            let mut answer = Answer::new(&args, 10, 1 << 20);
            answer.accept(Some(header("orders", 0))).unwrap();
            answer
        };
        assert!(opened().accept(Some(trailer(90, 0, 0))).is_ok());
        refusal(&mut opened(), trailer(9, 0, 0));
        let batch = batch_bytes(20, 5, 0);
        for (next, fine) in [(24, false), (25, true), (90, true)] {
            let mut answer = opened();
            answer.accept(Some(data(batch.clone()))).unwrap();
            let closed = answer.accept(Some(trailer(next, batch.len() as u64, 1)));
            assert_eq!(closed.is_ok(), fine, "{next}");
        }
    }

    #[test]
    fn frames_out_of_order_or_unknown_are_refused() {
        let mut unopened = Answer::new(&FetchArgs::new("orders", 0, 10), 10, 1 << 20);
        refusal(&mut unopened, data(batch_bytes(10, 5, 0)));
        refusal(&mut unopened, trailer(10, 0, 0));
        refusal(&mut unopened, header("orders", 1));
        refusal(&mut answer(), header("orders", 0));
        refusal(&mut answer(), Frame::End(v1::End {}));
        assert!(answer().accept(None).is_err());
    }
}
