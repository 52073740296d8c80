//! One replica's WAL: the batches of the log, in its own order, cut into segments at
//! its own borders.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use tierd_tests::chronik::{FrameParts, Style};

use super::TOPIC;

/// Most batches of a segment.
const SEGMENT_BATCHES_MAX: u32 = 8;

#[derive(Debug)]
pub(super) struct Replica {
    root: PathBuf,
    /// What it will have written in the end, in the order it writes it.
    batches: Vec<Bytes>,
    written: usize,
    segment: u64,
    /// Batches that the segment still takes.
    room: u32,
}

impl Replica {
    /// A replica that writes `log` below `root`, a few batches out of order.
    pub(super) fn new(root: &Path, log: &[Bytes], random: &mut StdRng) -> Self {
        let mut batches = log.to_vec();
        let disorder = if random.random_bool(0.5) { 0.0 } else { 0.2 };
        for at in 1..batches.len() {
            if random.random_bool(disorder) {
                let back = at - random.random_range(1..=at.min(6));
                batches[back..=at].rotate_right(1);
            }
        }
        fs::create_dir_all(root).unwrap();
        Self { root: root.to_owned(), batches, written: 0, segment: 0, room: 0 }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.written == self.batches.len()
    }

    /// Writes up to `count` batches; the last write is at `wall_ms`.
    pub(super) fn append(&mut self, count: usize, wall_ms: i64, random: &mut StdRng) {
        for _ in 0..count.min(self.batches.len() - self.written) {
            if self.room == 0 {
                self.roll();
                self.room = random.random_range(1..=SEGMENT_BATCHES_MAX);
            }
            let wire = &self.batches[self.written];
            let frame = FrameParts::of_batch(TOPIC, 0, wire, Style::CURRENT).unwrap().encode();
            let folder = self.root.join(TOPIC).join("0");
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join(format!("wal_0_{}.log", self.segment));
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(&frame).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_millis(wall_ms as u64)).unwrap();
            self.written += 1;
            self.room -= 1;
        }
    }

    /// What comes next goes to a segment of its own.
    pub(super) fn roll(&mut self) {
        self.segment += 1;
        self.room = 0;
    }
}
