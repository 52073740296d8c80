//! A broker in its second life with a real `tierd run` beside it: the WAL files of
//! its first life are archived and gone, those of the second are local only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{GapPolicy, ThreePhase};
use crate::fixture;
use crate::process::{Served, Tierd};

/// Longer than a tick of the clock that stamps files.
const TICK: Duration = Duration::from_millis(25);
/// Longest wait for what should be released.
const PATIENCE: Duration = Duration::from_secs(60);

/// Topics of the fixtures whose segment 0 alone is of the first life: one was
/// written by a race over segments 1 and 2, one has no other segment.
const RACED: [&str; 2] = ["busy", "clicks.日本_1"];

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// In order, by SIGTERM.
    Terminate,
    /// By SIGKILL.
    Kill,
}

/// A partition, and the first segment of the broker's present life.
#[derive(Clone, Debug)]
pub struct Life {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Segments below are of the life before.
    pub from: u64,
    /// End of the offsets in those.
    pub end: i64,
}

/// The broker, the daemon, and what lies between them.
#[derive(Debug)]
pub struct Scene {
    /// The broker.
    pub broker: ThreePhase,
    tierd: Tierd,
    daemon: Option<Served>,
    folder: tempfile::TempDir,
}

impl Scene {
    /// Takes a copy of `wal` as a broker's, archives what is of its first life with
    /// the daemon `binary`, and deletes that.
    ///
    /// # Errors
    /// When files cannot be copied, or it is not released within a minute.
    pub fn set(binary: &str, wal: &Path, lives: &[Life], policy: GapPolicy) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("wal");
        for life in lives {
            take_over(wal, &copy, life, |id| id < life.from)?;
        }
        sleep(TICK);
        File::create(folder.path().join("broker-started"))?;
        sleep(TICK);
        for life in lives {
            take_over(wal, &copy, life, |id| id >= life.from)?;
        }
        let endpoint = format!("unix:{}", folder.path().join("tierd.sock").display());
        let broker = ThreePhase::start(&copy, &endpoint, policy)?;
        let tierd = Tierd::new(binary, folder.path());
        let mut scene = Self { broker, tierd, daemon: None, folder };
        scene.start();
        for life in lives {
            scene.delete_what_is_released(life)?;
        }
        Ok(scene)
    }

    /// The fixtures, where the newest file of a partition is of the second life, of
    /// the racing ones all. The topic with overlaps was not written to again.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn of_fixtures(binary: &str) -> Result<Self> {
        let lives = fixture::batches().into_iter().map(|((topic, partition), batches)| {
            let newest = batches.iter().map(|batch| batch.order.0).max().unwrap_or(0);
            let from = if RACED.contains(&&*topic) { 1 } else { newest };
            let old = batches.iter().filter(|batch| batch.order.0 < from);
            let end = old.map(|batch| batch.last + 1).max().unwrap_or(0);
            Life { topic, partition, from, end }
        });
        let lives: Vec<Life> = lives.collect();
        Self::set(binary, &fixture::wal(), &lives, GapPolicy::Refuse)
    }

    fn delete_what_is_released(&self, life: &Life) -> Result<()> {
        let (topic, partition) = (&life.topic, life.partition);
        let through = self.broker.await_release(topic, partition, life.end, PATIENCE)?;
        let deleted = self.broker.delete_segments(topic, partition, life.from, through)?;
        ensure!(deleted > 0, "{topic}-{partition} had no old segment");
        Ok(())
    }

    /// Starts the daemon, on the same store, WAL and socket.
    pub fn start(&mut self) {
        let path = |name| self.folder.path().join(name).display().to_string();
        let (wal, started) = (self.folder.path().join("wal"), path("broker-started"));
        let socket = format!("unix:{}", path("tierd.sock"));
        // A hole between two old segments is no one's to fill.
        let waits = ["--settle", "1s", "--gap-timeout", "1s"];
        let flags = [&["--broker-started-at", &started, "--listen", &socket], &waits[..]].concat();
        self.daemon = Some(self.tierd.live(&wal, &flags));
    }

    /// Ends the daemon.
    pub fn stop(&mut self, how: Stop) {
        let Some(daemon) = self.daemon.take() else { return };
        if how == Stop::Terminate {
            daemon.terminate();
            assert_eq!(daemon.wait(), 0, "the daemon ends in order");
        }
    }

    /// The broker's WAL directory.
    #[must_use]
    pub fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }
}

/// Copies the chosen segments of a partition; they are as new as the copy.
fn take_over(from: &Path, to: &Path, life: &Life, chosen: impl Fn(u64) -> bool) -> Result<()> {
    let partition = Path::new(&life.topic).join(life.partition.to_string());
    fs::create_dir_all(to.join(&partition))?;
    for entry in fs::read_dir(from.join(&partition))? {
        let name = entry?.file_name();
        let text = name.to_str().context("a segment is UTF-8")?;
        let id = text.trim_end_matches(".log").rsplit('_').next().context("a segment has an id")?;
        if chosen(id.parse()?) {
            let bytes = fs::read(from.join(&partition).join(&name))?;
            fs::write(to.join(&partition).join(&name), bytes)?;
        }
    }
    Ok(())
}
