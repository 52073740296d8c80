//! Owns deleting a segment: the only thing that ever changes the broker's WAL, and
//! done only where the operator asked for it.
//!
//! Does not own whether it may be deleted: that is the caller's proof.

use std::fs;

use super::dir::segment;
use super::{SegmentFile, WalError};

/// Deletes `file`, if its name still stands for the very file that was listed: the
/// same number, size and times. Blocking.
///
/// # Errors
/// [`WalError::Changed`] when it is not, [`WalError::Io`] when the system refuses.
pub fn remove(file: &SegmentFile) -> Result<(), WalError> {
    let path = &file.path;
    let metadata =
        fs::symlink_metadata(path).map_err(|error| WalError::io("look at", path, error))?;
    let now = segment(file.id, path.clone(), &metadata)
        .map_err(|error| WalError::io("look at", path, error))?;
    if now.as_ref() != Some(file) {
        let what = "it is not the file that was read, and stays".to_owned();
        return Err(WalError::Changed { path: path.clone(), what });
    }
    fs::remove_file(path).map_err(|error| WalError::io("delete", path, error))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn listed(path: &Path) -> SegmentFile {
        let metadata = fs::symlink_metadata(path).unwrap();
        segment(0, path.to_owned(), &metadata).unwrap().unwrap()
    }

    #[test]
    fn only_the_very_file_that_was_listed_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wal_0_0.log");
        fs::write(&path, b"abc").unwrap();
        let before = listed(&path);
        fs::write(&path, b"abcd").unwrap();
        assert!(remove(&before).unwrap_err().is_change(), "it grew");
        let grown = listed(&path);
        fs::rename(&path, folder.path().join("aside")).unwrap();
        assert!(remove(&grown).unwrap_err().is_change(), "it is gone");
        fs::write(&path, b"abcd").unwrap();
        assert!(remove(&grown).unwrap_err().is_change(), "another file has its name");
        assert_eq!(fs::read(&path).unwrap(), b"abcd");
        remove(&listed(&path)).unwrap();
        assert!(!path.try_exists().unwrap());
    }

    #[test]
    fn a_link_is_not_the_segment() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("wal_0_0.log"), folder.path().join("aside"));
        fs::write(&path, b"abc").unwrap();
        let before = listed(&path);
        fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        assert!(remove(&before).unwrap_err().is_change());
        assert!(aside.try_exists().unwrap());
    }
}
