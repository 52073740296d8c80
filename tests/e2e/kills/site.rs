//! A WAL beside a bucket, everything that was ever written to it, and what must hold
//! of both at any moment and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use tierd::record::TopicPartition;
use tierd::store::{ObjectKey, Store};
use tierd_tests::audit::{audit, range_of};
use tierd_tests::bucket::Bucket;
use tierd_tests::chronik::WalWriter;
use tierd_tests::process::Tierd;
use tierd_tests::world::{catalog, tp};

use super::ends;
use crate::{TIERD, block_on};

/// What was written to one segment.
#[derive(Clone)]
struct Segment {
    /// Below the WAL's folder.
    path: PathBuf,
    of: TopicPartition,
    batches: Vec<Bytes>,
    bytes: Vec<u8>,
}

/// What is known of one partition.
#[derive(Clone, Default)]
struct Known {
    written: BTreeSet<Bytes>,
    /// Log start before the work, and after it.
    start: i64,
    becomes: i64,
    /// The most that was told.
    archived_through: i64,
    releasable_through: i64,
}

impl Known {
    fn end(&self) -> i64 {
        self.written.iter().map(|wire| range_of(wire).1 + 1).max().unwrap_or(0)
    }
}

pub(super) struct Site {
    folder: tempfile::TempDir,
    segments: Vec<Segment>,
    known: BTreeMap<TopicPartition, Known>,
}

impl Site {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("wal")).unwrap();
        Self { folder, segments: Vec::new(), known: BTreeMap::new() }
    }

    /// The same WAL in a folder of its own, with nothing told yet.
    pub(super) fn copy(&self) -> Self {
        let mut copy = Self::new();
        for segment in &self.segments {
            let to = copy.wal().join(&segment.path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, &segment.bytes).unwrap();
        }
        copy.segments = self.segments.clone();
        copy.known = self.known.clone();
        copy
    }

    pub(super) fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    pub(super) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Writes a whole segment.
    pub(super) fn segment(&mut self, topic: &str, partition: i32, id: u64, batches: &[Bytes]) {
        let mut segment = WalWriter::create(&self.wal(), topic, partition, id).unwrap();
        for batch in batches {
            segment.append(batch).unwrap();
        }
        let path = segment.finish().unwrap();
        self.archived_only(topic, partition, batches);
        let bytes = std::fs::read(&path).unwrap();
        let path = path.strip_prefix(self.wal()).unwrap().to_owned();
        let of = tp(topic, partition);
        self.segments.push(Segment { path, of, batches: batches.to_vec(), bytes });
    }

    /// Takes in batches that are archived and in no segment any more.
    pub(super) fn archived_only(&mut self, topic: &str, partition: i32, batches: &[Bytes]) {
        let known = self.known.entry(tp(topic, partition)).or_default();
        known.written.extend(batches.iter().cloned());
    }

    /// Takes every segment out of the WAL.
    pub(super) fn drop_segments(&mut self) {
        for segment in self.segments.drain(..) {
            std::fs::remove_file(self.folder.path().join("wal").join(segment.path)).unwrap();
        }
    }

    /// What is done next keeps the last `most` offsets of every partition.
    pub(super) fn keep_last(&mut self, most: i64) {
        for known in self.known.values_mut() {
            known.becomes = known.start.max(known.end() - most);
        }
    }

    /// What is done next cuts a partition before an offset.
    pub(super) fn cut(&mut self, topic: &str, partition: i32, before: i64) {
        let known = self.known.get_mut(&tp(topic, partition)).unwrap();
        known.becomes = known.start.max(before.min(known.end()));
    }

    pub(super) fn command(&self, bucket: &Bucket, args: &[&str]) -> Command {
        let tierd = Tierd::new(TIERD, self.folder.path());
        let mut command = tierd.on_store(&bucket.url(), &bucket.environment()).command();
        command.args(args);
        if args.first() == Some(&"run") {
            command.arg("--wal-dir").arg(self.wal());
        }
        command
    }

    /// The batches in segments that are there, which are as they were written.
    fn in_the_wal(&self, what: &str) -> BTreeSet<(&TopicPartition, &Bytes)> {
        let mut found = BTreeSet::new();
        for Segment { path, of, batches, bytes } in &self.segments {
            match std::fs::read(self.wal().join(path)) {
                Ok(now) => assert!(now == *bytes, "{what}: {} was changed", path.display()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => panic!("{what}: {error}"),
            }
            found.extend(batches.iter().map(|batch| (of, batch)));
        }
        found
    }

    /// What holds at any moment: no batch is in neither tier, none is archived twice,
    /// and the watermarks are true and never go back.
    pub(super) fn check_whole(&mut self, bucket: &Bucket, what: &str) {
        let wal = self.in_the_wal(what);
        let wal: BTreeSet<(TopicPartition, Bytes)> =
            wal.into_iter().map(|(of, batch)| (of.clone(), batch.clone())).collect();
        let store = Store::new(bucket.objects(), "");
        // Ledgers are read as the writer whose they are.
        let reader = catalog(&store, "test");
        for (of, known) in &mut self.known {
            let found = block_on(audit(&store, &reader, of));
            let found = found.unwrap_or_else(|error| panic!("{what}: {of}: {error:#}"));
            let (mut archived, mut log_start, mut through) = (BTreeSet::new(), 0, 0);
            if let Some(found) = found {
                log_start = found.snapshot.log_start();
                through = found.snapshot.archived_through();
                let all = found.served.len() + found.beneath.len();
                archived.extend(found.served.into_iter().chain(found.beneath));
                assert_eq!(archived.len(), all, "{what}: {of}: a batch is archived twice");
            }
            assert!(archived.is_subset(&known.written), "{what}: {of}: nobody wrote this");
            let starts = [known.start, known.becomes];
            assert!(starts.contains(&log_start), "{what}: {of}: log start {log_start}, {starts:?}");
            let ledger = block_on(reader.ledger(of)).unwrap();
            let releasable = ledger.map_or(0, |ledger| ledger.releasable_through());
            assert!(releasable <= through, "{what}: {of}: {releasable} beyond {through}");
            assert!(through >= known.archived_through, "{what}: {of}: back to {through}");
            assert!(releasable >= known.releasable_through, "{what}: {of}: back to {releasable}");
            (known.archived_through, known.releasable_through) = (through, releasable);
            for batch in &known.written {
                let (base, last) = range_of(batch);
                let needed = last >= log_start && !archived.contains(batch);
                let kept = wal.contains(&(of.clone(), batch.clone()));
                assert!(!needed || kept, "{what}: {of}: {base} to {last} is in neither tier");
                assert!(!needed || last >= releasable, "{what}: {of}: {base} may be deleted");
                assert!(!needed || last >= through, "{what}: {of}: {base} is not archived");
            }
        }
    }

    /// What holds when all is done: everything from the log start on is archived once,
    /// without a gap, and served.
    pub(super) fn check_done(&mut self, bucket: &Bucket, what: &str) {
        self.check_whole(bucket, what);
        let store = Store::new(bucket.objects(), "");
        let reader = catalog(&store, "test");
        for (of, known) in &mut self.known {
            let found = block_on(audit(&store, &reader, of)).unwrap();
            let found = found.unwrap_or_else(|| panic!("{what}: nothing of {of} is archived"));
            assert_eq!(found.snapshot.log_start(), known.becomes, "{what}: {of}: log start");
            assert_eq!(found.snapshot.archived_through(), known.end(), "{what}: {of}: the end");
            assert!(found.gaps.is_empty() && found.beneath.is_empty(), "{what}: {of}");
            let served: BTreeSet<Bytes> = found.served.into_iter().collect();
            let needed = known.written.iter().filter(|wire| range_of(wire).1 >= known.becomes);
            let missing = needed.filter(|wire| !served.contains(*wire)).count();
            assert_eq!(missing, 0, "{what}: {of}: batches are not served");
            known.start = known.becomes;
        }
        let scratch = self.folder.path().join("data/scratch");
        if scratch.is_dir() {
            let left = std::fs::read_dir(scratch).unwrap().map(Result::unwrap);
            let left = left.filter(|entry| entry.file_type().unwrap().is_dir()).count();
            assert_eq!(left, 0, "{what}: killed processes left their scratch behind");
        }
    }

    /// A collection leaves nothing that nobody needs, and all that somebody does.
    pub(super) fn collect(&mut self, bucket: &Bucket, what: &str) {
        let gc = self.command(bucket, &["gc", "--confirm", "--grace", "0s"]);
        let _ = ends(bucket, gc, None, what);
        self.check_done(bucket, &format!("{what}, and collected"));
        let objects = bucket.objects();
        let store = Store::new(std::sync::Arc::clone(&objects), "");
        let reader = catalog(&store, "test");
        let mut needed = BTreeSet::new();
        for of in self.known.keys() {
            let newest = block_on(reader.load(of, None)).unwrap().unwrap();
            needed.extend(block_on(newest.references()).unwrap().iter().map(ObjectKey::to_string));
        }
        let all: Vec<_> = block_on(objects.list(None).try_collect()).unwrap();
        let all: BTreeSet<String> = all.into_iter().map(|one| one.location.to_string()).collect();
        for name in &all {
            let waits = matches!(
                ObjectKey::decode(name).unwrap(),
                ObjectKey::Manifest { .. }
                    | ObjectKey::Closed { .. }
                    | ObjectKey::Incarnation { .. }
                    | ObjectKey::Ledger { .. }
            );
            assert!(waits || needed.contains(name), "{what}: {name} is left behind");
        }
        let gone: Vec<_> = needed.difference(&all).collect();
        assert!(gone.is_empty(), "{what}: {gone:?} are gone");
        assert_eq!(bucket.unfinished(), 0, "{what}: uploads are left unfinished");
    }

    /// tierd's own word on it.
    pub(super) fn verify(&self, bucket: &Bucket, what: &str) {
        let _ = ends(bucket, self.command(bucket, &["verify", "--deep"]), None, what);
    }
}
