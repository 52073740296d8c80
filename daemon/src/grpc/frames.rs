//! Owns cutting an answer into frames: whole batches, at most 1 MiB each; a
//! larger batch comes in pieces.

use bytes::{Bytes, BytesMut};
use tierd_proto::v1::{DATA_FRAME_BYTES_MAX, Data};

use crate::fetch;

/// The frames of one stretch of batches, in order.
pub(super) fn frames(data: &fetch::Data) -> Vec<Data> {
    let mut frames = Vec::new();
    let (mut from, mut to) = (0, 0);
    for &end in &data.ends {
        if end - from > DATA_FRAME_BYTES_MAX {
            push_whole(data.wire.slice(from..to), &mut frames);
            from = to;
        }
        if end - from > DATA_FRAME_BYTES_MAX {
            push_pieces(&data.wire.slice(from..end), &mut frames);
            from = end;
        }
        to = end;
    }
    push_whole(data.wire.slice(from..to.max(from)), &mut frames);
    frames
}

fn push_whole(batches: Bytes, frames: &mut Vec<Data>) {
    if !batches.is_empty() {
        frames.push(Data { batches, continued: false });
    }
}

fn push_pieces(batch: &Bytes, frames: &mut Vec<Data>) {
    let mut rest = batch.clone();
    while rest.len() > DATA_FRAME_BYTES_MAX {
        let piece = rest.split_to(DATA_FRAME_BYTES_MAX);
        frames.push(Data { batches: piece, continued: true });
    }
    frames.push(Data { batches: rest, continued: false });
}

/// Joins stretches that follow one another, so that small chunks do not become
/// small frames.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    waiting: BytesMut,
}

impl Joiner {
    /// Takes frames in; gives out those that are full.
    pub(super) fn push(&mut self, data: &fetch::Data) -> Vec<Data> {
        let mut out = Vec::new();
        for frame in frames(data) {
            let fits = self.waiting.len() + frame.batches.len() <= DATA_FRAME_BYTES_MAX;
            let small = frame.batches.len() <= DATA_FRAME_BYTES_MAX / 2;
            if fits && small && !frame.continued && !ends_pieces(&out) {
                self.waiting.extend_from_slice(&frame.batches);
            } else {
                out.extend(self.flush());
                out.push(frame);
            }
        }
        out
    }

    /// What still waits.
    pub(super) fn flush(&mut self) -> Option<Data> {
        let batches = self.waiting.split().freeze();
        (!batches.is_empty()).then_some(Data { batches, continued: false })
    }
}

/// Whether the next frame is the last piece of a batch.
fn ends_pieces(out: &[Data]) -> bool {
    out.last().is_some_and(|frame| frame.continued)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(lens: &[usize]) -> fetch::Data {
        let mut wire = Vec::new();
        let mut ends = Vec::new();
        for (i, len) in lens.iter().enumerate() {
            wire.resize(wire.len() + len, i as u8);
            ends.push(wire.len());
        }
        fetch::Data { wire: Bytes::from(wire), ends }
    }

    /// Cuts and joins `lens`, checks every frame, gives their lengths.
    fn lengths(lens: &[usize]) -> Vec<(usize, bool)> {
        let data = data(lens);
        let mut joiner = Joiner::default();
        let mut frames = joiner.push(&data);
        frames.extend(joiner.flush());
        let joined: Vec<u8> = frames.iter().flat_map(|f| f.batches.to_vec()).collect();
        assert_eq!(joined, data.wire);
        assert!(frames.iter().all(|f| f.batches.len() <= DATA_FRAME_BYTES_MAX));
        frames.iter().map(|f| (f.batches.len(), f.continued)).collect()
    }

    const MIB: usize = DATA_FRAME_BYTES_MAX;

    #[test]
    fn small_batches_share_a_frame() {
        assert_eq!(lengths(&[10, 20, 30]), [(60, false)]);
    }

    #[test]
    fn a_batch_never_lies_in_two_frames_if_it_fits_one() {
        assert_eq!(lengths(&[MIB - 5, 10]), [(MIB - 5, false), (10, false)]);
        assert_eq!(lengths(&[MIB, MIB]), [(MIB, false), (MIB, false)]);
    }

    #[test]
    fn a_large_batch_comes_in_pieces_that_hold_nothing_else() {
        assert_eq!(
            lengths(&[7, 2 * MIB + 1, 9]),
            [(7, false), (MIB, true), (MIB, true), (1, false), (9, false)]
        );
    }

    #[test]
    fn no_batches_make_no_frame() {
        assert!(lengths(&[]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_lengths_come_back_whole(lens in proptest::collection::vec(1usize..3 * MIB, 0..6)) {
            lengths(&lens);
        }
    }
}
