//! One replica's WAL: the batches of the log, in its own order, cut into segments at
//! its own borders.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use tierd_tests::audit::range_of;
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
    /// The greatest last offset of every segment on disk.
    on_disk: BTreeMap<u64, i64>,
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
        Self {
            root: root.to_owned(),
            batches,
            written: 0,
            segment: 0,
            on_disk: BTreeMap::new(),
            room: 0,
        }
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
            let path = self.path(self.segment);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let last = self.on_disk.entry(self.segment).or_insert(-1);
            *last = (*last).max(range_of(wire).1);
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(&frame).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_millis(wall_ms as u64)).unwrap();
            self.written += 1;
            self.room -= 1;
        }
    }

    /// Deletes every segment that lies wholly below `through`, as the broker may.
    pub(super) fn delete_below(&mut self, through: i64) -> usize {
        let writing = (self.room > 0).then_some(self.segment);
        let below = |id: u64, last: i64| last < through && Some(id) != writing;
        let gone: Vec<u64> = self
            .on_disk
            .iter()
            .filter(|(id, last)| below(**id, **last))
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            fs::remove_file(self.path(*id)).unwrap();
            self.on_disk.remove(id);
        }
        gone.len()
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.root.join(TOPIC).join("0").join(format!("wal_0_{segment}.log"))
    }

    /// What comes next goes to a segment of its own.
    pub(super) fn roll(&mut self) {
        self.segment += 1;
        self.room = 0;
    }
}
