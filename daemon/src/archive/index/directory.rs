//! Owns the folder that Tantivy writes a segment's files to: a plain scratch
//! folder, without syncs, locks, memory maps and lists of managed files.
//!
//! Tantivy reads one small file back (the field norms) while it finishes a
//! segment; nothing else is read here. The first I/O error is kept, because
//! Tantivy turns some of them into text on the way up.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tantivy::directory::error::{DeleteError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    AntiCallToken, FileHandle, OwnedBytes, TerminatingWrite, WatchCallback, WatchHandle, WritePtr,
};

/// A scratch folder as Tantivy sees it.
#[derive(Clone, Debug)]
pub(super) struct ScratchDirectory {
    folder: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What Tantivy writes "atomically": its own lists, of no use to us.
    lists: HashMap<PathBuf, Vec<u8>>,
    failure: Option<(PathBuf, io::Error)>,
}

impl ScratchDirectory {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), shared: Arc::default() }
    }

    /// The first I/O error since the last call, and the file it befell.
    pub(super) fn take_failure(&self) -> Option<(PathBuf, io::Error)> {
        self.shared().failure.take()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the facts of `error` and gives it on.
    fn note(&self, path: &Path, error: io::Error) -> io::Error {
        let mut shared = self.shared();
        if shared.failure.is_none() {
            let copy = match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            };
            shared.failure = Some((self.folder.join(path), copy));
        }
        error
    }
}

impl tantivy::Directory for ScratchDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        match fs::read(self.folder.join(path)) {
            Ok(bytes) => Ok(Arc::new(OwnedBytes::new(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(OpenReadError::FileDoesNotExist(path.to_owned()))
            }
            Err(error) => {
                Err(OpenReadError::wrap_io_error(self.note(path, error), path.to_owned()))
            }
        }
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        fs::remove_file(self.folder.join(path)).map_err(|error| DeleteError::IoError {
            io_error: Arc::new(self.note(path, error)),
            filepath: path.to_owned(),
        })
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        if self.shared().lists.contains_key(path) {
            return Ok(true);
        }
        let found = self.folder.join(path).try_exists();
        found.map_err(|error| OpenReadError::wrap_io_error(self.note(path, error), path.to_owned()))
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let file = File::create_new(self.folder.join(path)).map_err(|error| {
            OpenWriteError::wrap_io_error(self.note(path, error), path.to_owned())
        })?;
        let file = ScratchFile { file, path: path.to_owned(), directory: self.clone() };
        Ok(BufWriter::new(Box::new(file)))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        let list = self.shared().lists.get(path).cloned();
        list.ok_or_else(|| OpenReadError::FileDoesNotExist(path.to_owned()))
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.shared().lists.insert(path.to_owned(), data.to_vec());
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        // Scratch: what a crash leaves of it is thrown away.
        Ok(())
    }

    fn watch(&self, _: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}

struct ScratchFile {
    file: File,
    path: PathBuf,
    directory: ScratchDirectory,
}

impl Write for ScratchFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| self.directory.note(&self.path, error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl TerminatingWrite for ScratchFile {
    fn terminate_ref(&mut self, _: AntiCallToken) -> io::Result<()> {
        self.file.flush()
    }
}
