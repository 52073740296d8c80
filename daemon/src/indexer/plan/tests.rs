use super::*;
use crate::wal::FrameFlags;

/// A frame of `segment` at `position` with offsets `base..=last`.
fn frame(segment: u32, position: u64, base: i64, last: i64) -> Frame {
    let at = FrameRef {
        position,
        frame_len: 100,
        base,
        last_delta: u32::try_from(last - base).unwrap(),
        wire_len: 61,
        wire_crc32c: position as u32,
        leader_epoch: -1,
        flags: FrameFlags::default(),
    };
    Frame { segment, at, known: false, truncated: false }
}

fn gap(base: i64, last: i64, kind: GapKind) -> Gap {
    Gap { range: OffsetRange::new(base, last).unwrap(), kind }
}

fn new() -> Archived {
    Archived { is_new: true, ..Archived::default() }
}

/// The offsets a run serves, batch by batch.
fn served(frames: &[Frame], run: &Run) -> Vec<(i64, i64)> {
    run.chain.iter().map(|&i| (frames[i as usize].base(), frames[i as usize].last())).collect()
}

#[test]
fn frames_out_of_order_become_one_run_in_offset_order() {
    let mut frames = [frame(0, 0, 0, 0), frame(0, 1, 9, 19), frame(0, 2, 1, 8)];
    let plan = plan(&mut frames, &new(), &[]);
    assert_eq!(plan.runs.len(), 1);
    assert_eq!(served(&frames, &plan.runs[0]), [(0, 0), (1, 8), (9, 19)]);
    assert!(plan.gaps.is_empty() && plan.latecomers.is_empty());
}

#[test]
fn a_hole_splits_the_log_and_is_declared() {
    let mut frames = [frame(0, 0, 0, 4), frame(0, 1, 8, 9)];
    let plan = plan(&mut frames, &new(), &[]);
    assert_eq!(plan.runs.len(), 2);
    assert_eq!(plan.gaps, [gap(5, 7, GapKind::Missing)]);
    assert_eq!(plan.runs[1].start, 8);
}

#[test]
fn a_log_that_begins_late_has_a_gap_before_its_first_batch() {
    let mut frames = [frame(0, 0, 100, 109)];
    assert_eq!(plan(&mut frames, &new(), &[]).gaps, [gap(0, 99, GapKind::BeforeFirst)]);
}

#[test]
fn a_hole_beside_a_damaged_range_is_damaged() {
    let mut frames = [frame(0, 0, 0, 4), frame(0, 9, 8, 9)];
    let suspect = [OffsetRange::new(5, 7).unwrap()];
    assert_eq!(plan(&mut frames, &new(), &suspect).gaps, [gap(5, 7, GapKind::Damaged)]);
}

#[test]
fn the_newest_batch_that_holds_an_offset_is_served_and_the_older_lies_beneath() {
    let mut frames = [frame(0, 0, 0, 9), frame(1, 0, 0, 4)];
    let plan = plan(&mut frames, &new(), &[]);
    // Offset 5 is only in the older, longer batch, which begins below 5.
    assert_eq!(served(&frames, &plan.runs[0]), [(0, 4), (0, 9)]);
    assert!(plan.runs[0].overlaps.is_empty());

    let mut frames = [frame(0, 0, 0, 4), frame(1, 0, 0, 9)];
    let plan = super::plan(&mut frames, &new(), &[]);
    assert_eq!(served(&frames, &plan.runs[0]), [(0, 9)]);
    assert_eq!(plan.runs[0].overlaps.len(), 1);
}

#[test]
fn what_is_committed_stays_served_and_other_bytes_come_late() {
    let archived = Archived { through: 10, gaps: Vec::new(), is_new: false };
    let mut frames = [frame(1, 0, 0, 9), frame(1, 1, 8, 12)];
    let plan = plan(&mut frames, &archived, &[]);
    assert_eq!(plan.runs.len(), 1);
    assert_eq!(plan.runs[0].start, 10);
    assert_eq!(served(&frames, &plan.runs[0]), [(8, 12)]);
    assert_eq!(plan.latecomers, [0]);
}

#[test]
fn a_batch_inside_a_declared_gap_fills_it() {
    let archived = Archived { through: 20, gaps: vec![gap(5, 9, GapKind::Missing)], is_new: false };
    let mut frames = [frame(0, 7, 6, 8)];
    let plan = plan(&mut frames, &archived, &[]);
    assert_eq!(plan.runs.len(), 1);
    assert!(plan.runs[0].fill);
    assert_eq!((plan.runs[0].start, plan.runs[0].end), (6, 9));
    assert!(plan.gaps.is_empty());
}

#[test]
fn one_batch_may_fill_a_gap_and_grow_the_log() {
    let archived = Archived { through: 15, gaps: vec![gap(5, 9, GapKind::Missing)], is_new: false };
    let mut frames = [frame(0, 7, 8, 20)];
    let plan = plan(&mut frames, &archived, &[]);
    assert_eq!(plan.runs.iter().map(|run| run.start).collect::<Vec<_>>(), [8, 15]);
    assert!(plan.gaps.is_empty() && plan.latecomers.is_empty());
}

#[test]
fn a_known_batch_serves_what_nobody_serves_and_lies_beneath_nothing() {
    // A run was killed after this batch had filled the gap before offset 10.
    let archived = Archived { through: 15, gaps: Vec::new(), is_new: false };
    let known = |frame| Frame { known: true, ..frame };
    let mut frames = [known(frame(0, 7, 8, 20))];
    let plan = plan(&mut frames, &archived, &[]);
    assert_eq!(plan.runs.len(), 1);
    assert_eq!((plan.runs[0].start, served(&frames, &plan.runs[0])), (15, vec![(8, 20)]));

    // A newer one serves these offsets: the known one is not archived again.
    let mut frames = [known(frame(0, 7, 8, 20)), frame(1, 0, 15, 20)];
    let plan = super::plan(&mut frames, &archived, &[]);
    assert_eq!(served(&frames, &plan.runs[0]), [(15, 20)]);
    assert!(plan.runs[0].overlaps.is_empty() && plan.latecomers.is_empty());
}

#[test]
fn many_gaps_and_many_frames_do_not_multiply() {
    // 20 000 gaps over 200 000 frames: a plan that scans all frames for each gap
    // takes minutes.
    let gaps = (0..20_000).map(|i| gap(i * 20 + 10, i * 20 + 19, GapKind::Missing)).collect();
    let archived = Archived { through: 400_000, gaps, is_new: false };
    let mut frames: Vec<Frame> =
        (0..200_000_i64).map(|i| frame(0, i as u64, i * 2, i * 2 + 1)).collect();
    let plan = plan(&mut frames, &archived, &[]);
    assert_eq!((plan.runs.len(), plan.latecomers.len()), (20_000, 100_000));
    assert!(plan.runs.iter().all(|run| run.fill && run.chain.len() == 5));
}

#[test]
fn a_cut_keeps_what_lies_before_the_hole_and_every_fill_and_latecomer() {
    let archived = Archived { through: 20, gaps: vec![gap(5, 9, GapKind::Missing)], is_new: false };
    let mut frames = [
        frame(0, 0, 5, 9),
        frame(0, 1, 12, 13),
        frame(0, 2, 20, 24),
        frame(0, 3, 30, 34),
        frame(0, 4, 40, 44),
        frame(1, 5, 41, 42),
    ];
    let whole = plan(&mut frames, &archived, &[]);
    let starts = |plan: &Plan| plan.runs.iter().map(|run| run.start).collect::<Vec<_>>();

    let mut none = whole.clone();
    none.cut(0);
    assert_eq!((starts(&none), none.gaps.len()), (vec![5, 20], 0));
    let mut one = whole.clone();
    one.cut(1);
    assert_eq!((starts(&one), one.gaps), (vec![5, 20, 30], vec![gap(25, 29, GapKind::Missing)]));
    let mut all = whole.clone();
    all.cut(2);
    assert_eq!((all, whole.latecomers.len()), (whole, 1));
}

type Ranges = Vec<(i64, i64)>;

/// The rule of the design, offset by offset, with no cleverness.
fn brute_force(frames: &[Frame], through: i64) -> (Ranges, Ranges) {
    let (mut chain, mut holes) = (Vec::new(), Vec::new());
    let mut next = through;
    let end = frames.iter().map(Frame::last).max().unwrap_or(-1);
    while next <= end {
        let newest = frames
            .iter()
            .filter(|f| f.base() <= next && next <= f.last())
            .max_by_key(|f| f.order());
        if let Some(newest) = newest {
            chain.push((newest.base(), newest.last()));
            next = newest.last() + 1;
        } else {
            let resume = frames.iter().map(Frame::base).filter(|&b| b > next).min().unwrap();
            holes.push((next, resume - 1));
            next = resume;
        }
    }
    (chain, holes)
}

proptest::proptest! {
    #[test]
    fn the_plan_equals_brute_force_on_any_wal(
        shapes in proptest::collection::vec((0i64..60, 0i64..12, 0u32..4), 0..40),
        through in 0i64..30,
    ) {
        let mut frames: Vec<Frame> = shapes
            .iter()
            .enumerate()
            .map(|(i, &(base, len, segment))| frame(segment, i as u64, base, base + len))
            .collect();
        let archived = Archived { through, gaps: Vec::new(), is_new: through == 0 };
        let plan = plan(&mut frames, &archived, &[]);
        let (chain, holes) = brute_force(&frames, through);
        let planned: Vec<_> = plan.runs.iter().flat_map(|run| served(&frames, run)).collect();
        proptest::prop_assert_eq!(planned, chain);
        let gaps: Vec<_> = plan.gaps.iter().map(|g| (g.range.base(), g.range.last())).collect();
        proptest::prop_assert_eq!(gaps, holes);

        // Every frame is in the plan once: served, beneath, or late.
        let mut all: Vec<u32> = plan.runs.iter().flat_map(|r| r.chain.iter().chain(&r.overlaps)).copied().collect();
        all.extend(&plan.latecomers);
        all.sort_unstable();
        proptest::prop_assert_eq!(all, (0..frames.len() as u32).collect::<Vec<_>>());
    }
}
