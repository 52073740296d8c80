//! A broker as far as its WAL shows it: frames out of offset order, rotation, the
//! creation race that truncates files with acknowledged frames, torn tails when it
//! is killed, and offsets issued again after a restart. It knows every frame it
//! ever wrote and which of them are still on disk.
//!
//! The rules are those of the WAL specification, 4.3, 4.4, 5 and 6.2; only sizes are
//! smaller and chances higher.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tierd::record::{BatchHeader, CanonicalRecord, Codec};

use crate::chronik::{FrameParts, Style, sample_batch};

/// Longer than a tick of the clock that stamps files: what was written before the
/// start of a process is older than it.
const START_TAKES: Duration = Duration::from_millis(25);

/// One broker and its WAL.
#[derive(Debug)]
pub struct Broker {
    root: PathBuf,
    started: PathBuf,
    rotate_bytes: u64,
    rng: StdRng,
    serial: u64,
    partitions: Vec<Partition>,
}

/// One partition of it.
#[derive(Debug)]
struct Partition {
    topic: String,
    number: i32,
    next_offset: i64,
    /// Offsets assigned, not yet on disk.
    reserved: Vec<Bytes>,
    /// Segment that is written, once this process wrote.
    active: Option<u64>,
    /// Segments of earlier processes end before this id.
    own_from: u64,
    /// Whole frames by segment.
    on_disk: BTreeMap<u64, Vec<Bytes>>,
    /// Every batch of which a whole frame was ever on disk.
    written: Vec<Bytes>,
}

impl Broker {
    /// A broker that writes to `root` and touches `started` at every start. It does
    /// not run yet.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new(
        root: &Path,
        started: &Path,
        partitions: &[(&str, i32)],
        rotate_bytes: u64,
        seed: u64,
    ) -> Result<Self> {
        fs::create_dir_all(root)?;
        let partition = |&(topic, number): &(&str, i32)| Partition {
            topic: topic.to_owned(),
            number,
            next_offset: 0,
            reserved: Vec::new(),
            active: None,
            own_from: 0,
            on_disk: BTreeMap::new(),
            written: Vec::new(),
        };
        Ok(Self {
            root: root.to_owned(),
            started: started.to_owned(),
            rotate_bytes,
            rng: StdRng::seed_from_u64(seed),
            serial: 0,
            partitions: partitions.iter().map(partition).collect(),
        })
    }

    /// Starts a process: never reopens a file, and takes the next offset from the
    /// highest segment that holds a frame, from that one only.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn start(&mut self) -> Result<()> {
        std::thread::sleep(START_TAKES);
        // Making a file anew, or emptying it, sets its time to now.
        File::create(&self.started)?;
        for partition in &mut self.partitions {
            let highest = partition.on_disk.values().rev().find(|frames| !frames.is_empty());
            let last = highest.into_iter().flatten().map(|wire| range(wire).1).max();
            partition.next_offset = last.map_or(0, |last| last + 1);
            partition.own_from = partition.on_disk.keys().next_back().map_or(0, |id| id + 1);
            partition.active = None;
        }
        Ok(())
    }

    /// Writes a few batches to every partition.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn produce(&mut self) -> Result<()> {
        let (root, rotate_bytes) = (&self.root, self.rotate_bytes);
        for partition in &mut self.partitions {
            for _ in 0..self.rng.random_range(1..5) {
                self.serial += 1;
                partition.reserve(self.rng.random_range(1..12), self.serial)?;
            }
            if partition.active.is_none() {
                partition.race(root, &mut self.rng)?;
            }
            // Queueing is another step than reserving: some come later, in any order.
            partition.reserved.shuffle(&mut self.rng);
            let later = self.rng.random_range(0..3);
            while partition.reserved.len() > later {
                partition.commit(root, rotate_bytes)?;
            }
        }
        Ok(())
    }

    /// Ends the process in order: everything reserved is on disk.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn stop(&mut self) -> Result<()> {
        for partition in &mut self.partitions {
            while partition.active.is_some() && !partition.reserved.is_empty() {
                partition.commit(&self.root, self.rotate_bytes)?;
            }
            partition.active = None;
        }
        Ok(())
    }

    /// Kills the process: what was reserved is lost, and a frame may be cut off.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn kill(&mut self) -> Result<()> {
        for partition in &mut self.partitions {
            if let (Some(id), Some(wire)) = (partition.active, partition.reserved.pop()) {
                let frame = partition.frame(&wire)?;
                let keep = self.rng.random_range(1..frame.len());
                partition.append(&self.root, id, &frame[..keep])?;
            }
            partition.reserved.clear();
            partition.active = None;
        }
        Ok(())
    }

    /// Topics and numbers of the partitions.
    #[must_use]
    pub fn partitions(&self) -> Vec<(String, i32)> {
        self.partitions.iter().map(|p| (p.topic.clone(), p.number)).collect()
    }

    /// Every batch that was ever whole on disk, sorted.
    #[must_use]
    pub fn written(&self, topic: &str, number: i32) -> Vec<Bytes> {
        sorted(self.of(topic, number).flat_map(|partition| partition.written.iter()))
    }

    /// The batches that are on disk, in segments of earlier processes, sorted.
    #[must_use]
    pub fn closed(&self, topic: &str, number: i32) -> Vec<Bytes> {
        sorted(self.of(topic, number).flat_map(|partition| {
            partition.on_disk.range(..partition.own_from).flat_map(|(_, frames)| frames)
        }))
    }

    /// The batches that are on disk, sorted.
    #[must_use]
    pub fn surviving(&self, topic: &str, number: i32) -> Vec<Bytes> {
        sorted(self.of(topic, number).flat_map(|partition| partition.on_disk.values().flatten()))
    }

    fn of(&self, topic: &str, number: i32) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(move |p| p.topic == topic && p.number == number)
    }
}

impl Partition {
    fn reserve(&mut self, count: i32, serial: u64) -> Result<()> {
        let wire =
            sample_batch(self.next_offset, count, 40 + (serial % 200) as usize, Codec::None)?;
        // No two batches are the same bytes, also at offsets that are issued again.
        let sample = CanonicalRecord::from_wire(wire)?;
        let mut entries = sample.decode()?;
        entries[0].key = Some(format!("serial-{serial}").into());
        let batch = CanonicalRecord::from_entries(*sample.header(), entries)?;
        self.reserved.push(batch.to_kafka_batch()?);
        self.next_offset += i64::from(count);
        Ok(())
    }

    /// The first writes of a process: several files are created at once, some again
    /// while they hold frames, and any of them may stay the active one.
    fn race(&mut self, root: &Path, rng: &mut StdRng) -> Result<()> {
        let first = self.own_from;
        let last = first + rng.random_range(0..3);
        for id in first..=last {
            self.create(root, id)?;
            if rng.random_bool(0.6)
                && let Some(wire) = self.reserved.pop()
            {
                self.write(root, id, wire)?;
            }
            if rng.random_bool(0.2) {
                self.create(root, id)?;
            }
        }
        self.active = Some(rng.random_range(first..=last));
        Ok(())
    }

    /// Writes one batch to the active segment, and rotates when it is large enough.
    fn commit(&mut self, root: &Path, rotate_bytes: u64) -> Result<()> {
        let (Some(id), Some(wire)) = (self.active, self.reserved.pop()) else { return Ok(()) };
        if self.write(root, id, wire)? >= rotate_bytes {
            // The successor may exist and hold frames: it is truncated.
            self.create(root, id + 1)?;
            self.active = Some(id + 1);
        }
        Ok(())
    }

    fn create(&mut self, root: &Path, id: u64) -> Result<()> {
        let path = self.path(root, id);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        File::create(path)?;
        self.on_disk.insert(id, Vec::new());
        Ok(())
    }

    /// Appends a whole frame; returns the size of the segment.
    fn write(&mut self, root: &Path, id: u64, wire: Bytes) -> Result<u64> {
        let frame = self.frame(&wire)?;
        let len = self.append(root, id, &frame)?;
        self.on_disk.entry(id).or_default().push(wire.clone());
        self.written.push(wire);
        Ok(len)
    }

    fn append(&self, root: &Path, id: u64, bytes: &[u8]) -> Result<u64> {
        let mut file = OpenOptions::new().append(true).open(self.path(root, id))?;
        file.write_all(bytes)?;
        Ok(file.metadata()?.len())
    }

    fn frame(&self, wire: &Bytes) -> Result<Vec<u8>> {
        Ok(FrameParts::of_batch(&self.topic, self.number, wire, Style::CURRENT)?.encode())
    }

    fn path(&self, root: &Path, id: u64) -> PathBuf {
        let folder = root.join(&self.topic).join(self.number.to_string());
        folder.join(format!("wal_{}_{id}.log", self.number))
    }
}

/// First and last offset of a batch.
fn range(wire: &Bytes) -> (i64, i64) {
    BatchHeader::decode(wire).map_or((0, 0), |header| (header.base_offset, header.last_offset()))
}

fn sorted<'a>(wires: impl Iterator<Item = &'a Bytes>) -> Vec<Bytes> {
    let mut wires: Vec<Bytes> = wires.cloned().collect();
    wires.sort_unstable();
    wires
}
