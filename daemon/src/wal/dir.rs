//! Owns which files under the WAL root are segments.
//!
//! ```text
//!  {root}/{topic}/{partition}/wal_{partition}_{id}.log
//!         |       |           regular file; the number is the folder's; id is a u64
//!         |       canonical decimal: no sign, no padding
//!         not beginning "__": those trees are the broker's own
//! ```
//!
//! Anything else is somebody else's file. Where a file looks like a segment and
//! breaks the rule, or cannot be read, that is a finding, never a failure of
//! the others. A folder that vanishes during the walk is a deleted topic.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{PartitionDir, SegmentFile, WalError, WalFormat};
use crate::record::{TopicName, TopicPartition};

const NOT_A_FILE: &str = "is not a regular file";

/// Trees of the broker itself begin so.
const INTERNAL_PREFIX: &str = "__";

/// A WAL directory, opened for reading.
#[derive(Clone, Debug)]
pub struct WalDir {
    root: PathBuf,
    format: WalFormat,
}

/// What a walk over the directory found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Partitions with at least one segment, ascending by topic, then number.
    pub partitions: Vec<PartitionDir>,
    /// What looks like a segment and is not taken, and what could not be read: one
    /// line each for the operator.
    pub findings: Vec<String>,
}

impl WalDir {
    /// Opens the directory that holds the topic folders.
    ///
    /// # Errors
    /// When it is missing, is no directory, or cannot be looked at.
    pub fn open(root: &Path, format: WalFormat) -> Result<Self, WalError> {
        match fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => Ok(Self { root: root.to_owned(), format }),
            Ok(_) => Err(WalError::RootNotDirectory { path: root.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(WalError::RootMissing { path: root.to_owned() })
            }
            Err(error) => Err(WalError::io("open the WAL directory", root, error)),
        }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How the broker writes it.
    #[must_use]
    pub fn format(&self) -> WalFormat {
        self.format
    }

    /// Walks the directory: names and sizes only, no segment is opened.
    ///
    /// # Errors
    /// Only when the root itself cannot be listed.
    pub fn partitions(&self) -> Result<Listing, WalError> {
        match self.format {
            WalFormat::Chronik => list_chronik(&self.root),
        }
    }

    /// The one segment at `path`, for looking at it alone: topic, partition and id
    /// come from the last three parts of the path.
    ///
    /// # Errors
    /// When there is none, or its name and place are not those of a segment.
    pub fn segment(
        path: &Path,
        format: WalFormat,
    ) -> Result<(TopicPartition, SegmentFile), WalError> {
        let full = path.canonicalize().map_err(|error| WalError::io("open", path, error))?;
        let found = match format {
            WalFormat::Chronik => one_chronik(&full),
        };
        let (tp, id) = found.map_err(|why| WalError::NotASegment { path: path.to_owned(), why })?;
        let metadata = full.metadata().map_err(|error| WalError::io("read", path, error))?;
        let segment = segment(id, path.to_owned(), &metadata)
            .map_err(|error| WalError::io("read", path, error))?;
        let segment = segment.ok_or_else(|| WalError::NotASegment {
            path: path.to_owned(),
            why: NOT_A_FILE.to_owned(),
        })?;
        Ok((tp, segment))
    }
}

/// Topic, partition and id by the last three parts of `path`.
fn one_chronik(path: &Path) -> Result<(TopicPartition, u64), String> {
    let rule = "a segment is TOPIC/PARTITION/wal_PARTITION_ID.log";
    let name = |path: &Path| path.file_name().and_then(OsStr::to_str).map(str::to_owned);
    let (Some(file), Some(folder)) = (name(path), path.parent()) else { return Err(rule.into()) };
    let (group, id) = segment_name(&file).ok_or(rule)?;
    let partition = name(folder).filter(|name| is_canonical_decimal(name)).ok_or(rule)?;
    let topic = folder.parent().and_then(Path::file_name).ok_or(rule)?;
    let id = segment_id(group, id, &partition)?;
    Ok((named(topic, &partition)?, id))
}

fn list_chronik(root: &Path) -> Result<Listing, WalError> {
    let mut listing = Listing::default();
    let topics = match fs::read_dir(root) {
        Ok(topics) => topics,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(WalError::RootMissing { path: root.to_owned() });
        }
        Err(error) => return Err(WalError::io("list the WAL directory", root, error)),
    };
    for entry in topics {
        let entry = entry.map_err(|error| WalError::io("list the WAL directory", root, error))?;
        if !entry.file_name().to_string_lossy().starts_with(INTERNAL_PREFIX) {
            listing.topic(&entry);
        }
    }
    listing.look_one_level_down(root);
    listing.partitions.sort_by(|a, b| a.tp.cmp(&b.tp));
    listing.findings.sort();
    Ok(listing)
}

impl Listing {
    fn finding(&mut self, path: &Path, why: impl Display) {
        self.findings.push(format!("{}: {why}", path.display()));
    }

    /// Reports an error below the root, unless it says that a topic was deleted.
    fn failed(&mut self, path: &Path, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            self.finding(path, format!("cannot be read: {error}"));
        }
    }

    /// Nothing found, but a folder `wal`: the broker's data directory was given.
    fn look_one_level_down(&mut self, root: &Path) {
        let inner = root.join("wal");
        if self.partitions.is_empty() && inner.is_dir() {
            let why = format!("holds no topic folder; did you mean {}", inner.display());
            self.finding(root, why);
        }
    }

    /// The entries of a folder, as many as can be read.
    fn entries(&mut self, folder: &Path) -> Vec<DirEntry> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.failed(folder, &error);
                return Vec::new();
            }
        };
        let mut read = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => read.push(entry),
                Err(error) => self.failed(folder, &error),
            }
        }
        read
    }

    /// Whether `entry` is a folder. A link is not followed: what it points to may
    /// change, or be listed twice.
    fn is_folder(&mut self, entry: &DirEntry) -> bool {
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => {
                self.finding(&entry.path(), "is a symbolic link, which is not followed");
                false
            }
            Ok(kind) => kind.is_dir(),
            Err(error) => {
                self.failed(&entry.path(), &error);
                false
            }
        }
    }

    fn topic(&mut self, topic: &DirEntry) {
        if !self.is_folder(topic) {
            return;
        }
        for entry in self.entries(&topic.path()) {
            let name = entry.file_name();
            let Some(number) = name.to_str().filter(|name| is_canonical_decimal(name)) else {
                continue;
            };
            if !self.is_folder(&entry) {
                continue;
            }
            let segments = self.segments(&entry.path(), number);
            if segments.is_empty() {
                continue;
            }
            match named(&topic.file_name(), number) {
                Ok(tp) => {
                    self.partitions.push(PartitionDir { tp, path: entry.path(), segments });
                }
                Err(why) => self.finding(&entry.path(), why),
            }
        }
    }

    fn segments(&mut self, folder: &Path, partition: &str) -> Vec<SegmentFile> {
        let mut segments: Vec<SegmentFile> = Vec::new();
        for entry in self.entries(folder) {
            let (name, path) = (entry.file_name(), entry.path());
            let Some((group, id)) = name.to_str().and_then(segment_name) else { continue };
            let id = match segment_id(group, id, partition) {
                Ok(id) => id,
                Err(why) => {
                    self.finding(&path, why);
                    continue;
                }
            };
            match entry.metadata().and_then(|metadata| segment(id, path.clone(), &metadata)) {
                Ok(Some(segment)) => segments.push(segment),
                Ok(None) => self.finding(&path, NOT_A_FILE),
                Err(error) => self.failed(&path, &error),
            }
        }
        // Padding may give one id two names. The broker writes the shortest.
        segments.sort_by_key(|segment| (segment.id, segment.path.as_os_str().len()));
        segments.dedup_by(|second, first| {
            let same = second.id == first.id;
            if same {
                let why = format!("has the same segment id as {}", first.path.display());
                self.finding(&second.path, why);
            }
            same
        });
        segments
    }
}

fn named(topic: &OsStr, partition: &str) -> Result<TopicPartition, String> {
    let topic = topic.to_str().ok_or("holds segments, but its topic's name is not UTF-8")?;
    let topic = TopicName::new(topic).map_err(|error| format!("holds segments, but {error}"))?;
    let partition = partition
        .parse()
        .map_err(|_| format!("holds segments, but partition {partition} is above 2^31"))?;
    TopicPartition::new(topic, partition).map_err(|error| format!("holds segments, but {error}"))
}

/// The id of a segment whose name says partition `group`, in the folder `partition`.
fn segment_id(group: &str, id: &str, partition: &str) -> Result<u64, String> {
    if group.parse::<u64>() != partition.parse::<u64>() {
        return Err(format!("names partition {group} but lies in the folder of {partition}"));
    }
    id.parse().map_err(|_| "has a segment id above 2^64".to_owned())
}

pub(super) fn segment(
    id: u64,
    path: PathBuf,
    metadata: &Metadata,
) -> io::Result<Option<SegmentFile>> {
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(SegmentFile {
        id,
        path,
        len: metadata.len(),
        modified_ms: unix_ms(metadata.modified()?),
        // Many file systems have no birth time, which is no error.
        created_ms: metadata.created().ok().map(unix_ms),
        inode: metadata.ino(),
    }))
}

/// Milliseconds since 1970; what lies before counts as 0.
pub(super) fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_canonical_decimal(text: &str) -> bool {
    is_decimal(text) && (text == "0" || !text.starts_with('0'))
}

/// The two numbers of `wal_{partition}_{id}.log`, as text.
fn segment_name(name: &str) -> Option<(&str, &str)> {
    let (partition, id) = name.strip_prefix("wal_")?.strip_suffix(".log")?.split_once('_')?;
    (is_decimal(partition) && is_decimal(id)).then_some((partition, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"abc").unwrap();
    }

    fn list(root: &Path) -> (Vec<String>, Vec<String>) {
        let listing = WalDir::open(root, WalFormat::Chronik).unwrap().partitions().unwrap();
        let show = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
        let segments = listing
            .partitions
            .iter()
            .flat_map(|p| p.segments.iter().map(|s| format!("{} {}", p.tp, show(&s.path))))
            .collect();
        let prefix = format!("{}/", root.display());
        let findings = listing.findings.iter().map(|line| line.replace(&prefix, "")).collect();
        (segments, findings)
    }

    #[test]
    fn segments_come_by_topic_then_partition_then_id_as_numbers() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "b/10/wal_10_0.log",
            "b/9/wal_9_10.log",
            "b/9/wal_9_9.log",
            "a/0/wal_0_0.log",
            "tmp/0/wal_0_3.log",
            ".hidden/0/wal_0_0.log",
            "日本/0/wal_0_18446744073709551615.log",
        ] {
            touch(root.path(), path);
        }
        let (segments, findings) = list(root.path());
        assert_eq!(
            segments,
            [
                ".hidden-0 .hidden/0/wal_0_0.log",
                "a-0 a/0/wal_0_0.log",
                "b-9 b/9/wal_9_9.log",
                "b-9 b/9/wal_9_10.log",
                "b-10 b/10/wal_10_0.log",
                "tmp-0 tmp/0/wal_0_3.log",
                "日本-0 日本/0/wal_0_18446744073709551615.log",
            ]
        );
        assert!(findings.is_empty(), "{findings:?}");
    }

    #[test]
    fn what_the_broker_keeps_beside_segments_is_ignored() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "__meta/__raft_metadata/0/wal_0_0.log",
            "__meta/0/wal_0_0.log",
            "__raft_internal/0/wal_0_0.log",
            "tmp/compact_orders_0.wal",
            "compaction.conf",
            "a/0/checkpoint.json",
            "a/0/wal_0_1.log.tmp",
            "a/0/wal_0.log",
            "a/0/wal_0_-1.log",
            "a/00/wal_0_0.log",
            "a/+1/wal_1_0.log",
            "a/-1/wal_-1_0.log",
            "a/0/deeper/wal_0_0.log",
            "wal_0_0.log",
        ] {
            touch(root.path(), path);
        }
        fs::create_dir_all(root.path().join("empty/0")).unwrap();
        assert_eq!(list(root.path()), (vec![], vec![]));
    }

    #[test]
    fn what_looks_like_a_segment_and_is_not_taken_is_a_finding() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "a/0/wal_0_7.log",
            "a/0/wal_0_007.log",
            "a/0/wal_0_99999999999999999999.log",
            "a/3/wal_0_0.log",
            "a/4294967296/wal_4294967296_0.log",
            "no topic/0/wal_0_0.log",
        ] {
            touch(root.path(), path);
        }
        fs::create_dir_all(root.path().join("a/0/wal_0_8.log")).unwrap();
        let (segments, findings) = list(root.path());
        assert_eq!(segments, ["a-0 a/0/wal_0_7.log"]);
        let expected = [
            "wal_0_007.log: has the same segment id",
            "wal_0_8.log: is not a regular file",
            "above 2^64",
            "a/3/wal_0_0.log: names partition 0 but lies in the folder of 3",
            "partition 4294967296 is above 2^31",
            "no topic/0: holds segments, but topic name",
        ];
        assert_eq!(findings.len(), expected.len(), "{findings:#?}");
        for part in expected {
            assert!(findings.iter().any(|f| f.contains(part)), "{part} in {findings:#?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_reported_and_not_followed() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), "a/0/wal_0_0.log");
        std::os::unix::fs::symlink(root.path().join("a"), root.path().join("b")).unwrap();
        let target = root.path().join("a/0/wal_0_0.log");
        std::os::unix::fs::symlink(target, root.path().join("a/0/wal_0_1.log")).unwrap();
        let (segments, findings) = list(root.path());
        assert_eq!(segments, ["a-0 a/0/wal_0_0.log"]);
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn the_data_directory_given_instead_of_its_wal_is_a_finding() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), "wal/a/0/wal_0_0.log");
        let (segments, findings) = list(root.path());
        assert!(segments.is_empty());
        assert!(findings[0].contains("did you mean"), "{findings:?}");
    }

    #[test]
    fn one_segment_is_known_by_the_end_of_its_path() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), "some/where/orders/12/wal_12_7.log");
        let path = root.path().join("some/where/orders/12/wal_12_7.log");
        let (tp, segment) = WalDir::segment(&path, WalFormat::Chronik).unwrap();
        assert_eq!((tp.to_string(), segment.id, segment.len), ("orders-12".into(), 7, 3));
        for bad in ["a/1/wal_2_7.log", "a/01/wal_1_7.log", "a b/1/wal_1_7.log", "a/1/other.log"] {
            touch(root.path(), bad);
            let error = WalDir::segment(&root.path().join(bad), WalFormat::Chronik).unwrap_err();
            assert!(matches!(error, WalError::NotASegment { .. }), "{error}");
        }
        let missing = WalDir::segment(&root.path().join("a/1/wal_1_0.log"), WalFormat::Chronik);
        assert!(matches!(missing.unwrap_err(), WalError::Io { .. }));
    }

    #[test]
    fn a_root_that_is_missing_or_a_file_is_refused_with_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let missing = WalDir::open(&root.path().join("wal"), WalFormat::Chronik).unwrap_err();
        assert!(matches!(missing, WalError::RootMissing { .. }));
        assert!(missing.to_string().contains("does not exist; give the folder"));
        touch(root.path(), "file");
        let file = WalDir::open(&root.path().join("file"), WalFormat::Chronik).unwrap_err();
        assert!(matches!(file, WalError::RootNotDirectory { .. }));
    }
}
