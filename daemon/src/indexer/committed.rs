//! Owns what may be archived of a log whose committed end the broker reports: what
//! lies above may be truncated, and then another batch takes its offsets. Pure.
//!
//! A batch that shares offsets with one that waits is of an older or a newer
//! lineage of the same stretch; which of them stays shows when both are below the
//! end. So it waits too.
//!
//! Where the newer one is not ready, the older may lie below the end alone. It is told
//! by its leader epoch, when the broker reports which epoch each offset is of.

use std::collections::HashSet;

use super::plan::Frame;
use crate::reports::Lineage;

/// Marks the frames that the broker took back, by the lineage it reported.
pub(super) fn mark_truncated(frames: &mut [Frame], lineage: &Lineage) {
    for frame in frames {
        frame.truncated = lineage.took_back(frame.base(), frame.at.leader_epoch);
    }
}

/// Takes the frames out that must wait until the committed end, `stable_end`, has
/// passed them; says in which segments they are.
pub(super) fn hold_back(frames: &mut Vec<Frame>, stable_end: Option<i64>) -> HashSet<u32> {
    let Some(mut end) = stable_end else { return HashSet::new() };
    let mut by_last: Vec<(i64, i64)> = frames.iter().map(|f| (f.last(), f.base())).collect();
    by_last.sort_unstable();
    // What reaches the end moves it down to its base, and so on.
    while let Some((_, base)) = by_last.pop_if(|(last, _)| *last >= end) {
        end = end.min(base);
    }
    let mut waiting = HashSet::new();
    frames.retain(|frame| {
        let waits = frame.last() >= end;
        if waits {
            waiting.insert(frame.segment);
        }
        !waits
    });
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{FrameFlags, FrameRef};

    fn frame((at, (base, last)): (usize, &(i64, i64))) -> Frame {
        Frame {
            segment: at as u32,
            at: FrameRef {
                base: *base,
                last_delta: (last - base) as u32,
                position: at as u64,
                frame_len: 0,
                wire_len: 0,
                wire_crc32c: at as u32,
                leader_epoch: -1,
                flags: FrameFlags::default(),
            },
            known: false,
            truncated: false,
        }
    }

    fn kept(ranges: &[(i64, i64)], stable_end: Option<i64>) -> (Vec<(i64, i64)>, Vec<u32>) {
        let mut frames: Vec<Frame> = ranges.iter().enumerate().map(frame).collect();
        let mut waiting: Vec<u32> = hold_back(&mut frames, stable_end).into_iter().collect();
        waiting.sort_unstable();
        (frames.iter().map(|frame| (frame.base(), frame.last())).collect(), waiting)
    }

    #[test]
    fn nothing_waits_where_nothing_is_reported() {
        assert_eq!(kept(&[(0, 9), (10, 19)], None), (vec![(0, 9), (10, 19)], vec![]));
    }

    #[test]
    fn a_batch_waits_until_the_end_has_passed_its_last_offset() {
        let log = [(0, 9), (10, 19), (20, 29)];
        assert_eq!(kept(&log, Some(19)), (vec![(0, 9)], vec![1, 2]));
        assert_eq!(kept(&log, Some(20)), (vec![(0, 9), (10, 19)], vec![2]));
        assert_eq!(kept(&log, Some(0)), (vec![], vec![0, 1, 2]));
    }

    #[test]
    fn what_shares_offsets_with_a_batch_that_waits_does_too() {
        // 0 and 1 are of an older leader; 2 took their offsets over.
        let log = [(10, 14), (15, 19), (12, 25), (0, 9)];
        assert_eq!(kept(&log, Some(20)), (vec![(0, 9)], vec![0, 1, 2]));
        assert_eq!(kept(&log, Some(26)).1, Vec::<u32>::new());
    }

    #[test]
    fn a_batch_of_another_epoch_than_its_offset_has_was_truncated() {
        let mut frames: Vec<Frame> =
            [(0, 9), (10, 19), (10, 14)].iter().enumerate().map(frame).collect();
        for (frame, epoch) in frames.iter_mut().zip([0, 0, 1]) {
            frame.at.leader_epoch = epoch;
        }
        mark_truncated(&mut frames, &Lineage::new(vec![(0, 0), (1, 10)]));
        assert_eq!(
            frames.iter().map(|frame| frame.truncated).collect::<Vec<_>>(),
            [false, true, false]
        );
        mark_truncated(&mut frames, &Lineage::default());
        assert!(frames.iter().all(|frame| !frame.truncated), "nothing is reported");
    }
}
