//! Owns the scratch folder: what a killed process left in it goes when the next
//! one begins, unless another is at work in the same folder.
//!
//! Processes at work hold a shared lock; who gets it exclusively is alone and may
//! clear up.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Name of the file that is locked.
const LOCK: &str = "lock";

/// A scratch folder in use.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    /// Held for as long as this process may have files here.
    _lock: File,
}

impl Scratch {
    /// Makes `folder` where it is missing and empties it where nobody else uses it.
    /// Blocking.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = File::create(folder.join(LOCK))?;
        if lock.try_lock().is_ok() {
            clear(folder)?;
            // Whoever comes in between finds nothing of ours to clear.
            lock.unlock()?;
        }
        lock.lock_shared()?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_a_living_one_has_is_kept() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("scratch");
        let left = folder.join("archive-x");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("archive.tar.gz"), b"half").unwrap();
        let first = Scratch::open(&folder).unwrap();
        assert!(!left.try_exists().unwrap(), "left behind by a killed process");

        let ours = first.folder().join("archive-y");
        fs::create_dir(&ours).unwrap();
        let second = Scratch::open(&folder).unwrap();
        assert!(ours.try_exists().unwrap(), "another process is at work");
        drop((first, second));
        Scratch::open(&folder).unwrap();
        assert!(!ours.try_exists().unwrap());
    }
}
