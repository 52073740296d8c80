//! Owns uploads that were begun and never ended: what a killed writer leaves
//! behind beside the objects.
//!
//! A directory holds them as files called like the object with `#` and a number
//! behind, which no listing shows. S3 keeps them out of sight and lists them when asked
//! for (see [`super::s3_uploads`]); here they are called in the same way, with what S3
//! calls an upload behind the `#`. Azure drops blocks that were not committed after a
//! week by itself. For Google's storage, and servers that speak S3 and cannot list them,
//! a rule of the bucket has to drop them.

use std::io;
use std::path::{Path as FilePath, PathBuf};

use object_store::path::Path;

use super::error::Attempt;
use super::s3_uploads::S3Uploads;
use super::upload::blocking;
use super::{Below, Listed, Op, Store, StoreError};

/// What stands between an object's name and the number of an attempt at it.
const MARK: char = '#';

impl Store {
    /// The unfinished uploads below `folder`, `None` where this store cannot tell.
    ///
    /// # Errors
    /// When the directory cannot be read or the bucket does not answer.
    pub async fn unfinished(&self, folder: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        let path = self.path(Op::List, folder.trim_end_matches('/'))?;
        let local = match &self.inner.below {
            Below::Directory(local) => local,
            Below::S3(uploads) => return self.unfinished_in(uploads, &path).await,
            Below::Any => return Ok(None),
        };
        let failed = |error| self.error(Attempt::from_io(error), Op::List, &path, 1);
        let Ok(root) = local.path_to_filesystem(&path) else { return Ok(None) };
        let name = path.to_string();
        let found = blocking(move || {
            let mut found = Vec::new();
            walk(&root, &name, &mut found)?;
            Ok(found)
        });
        found.await.map(Some).map_err(failed)
    }

    /// The unfinished uploads of a bucket. One that refuses to list them cannot tell: it
    /// may not let us, or not know how.
    async fn unfinished_in(
        &self,
        uploads: &S3Uploads,
        folder: &Path,
    ) -> Result<Option<Vec<Listed>>, StoreError> {
        let prefix = format!("{folder}/");
        let begun = match self.repeat(Op::List, folder, || uploads.begun(&prefix)).await {
            Err(error @ StoreError::Denied { .. }) => {
                tracing::warn!(%error, "unfinished uploads cannot be listed");
                return Ok(None);
            }
            other => other?,
        };
        let mut found = Vec::new();
        for upload in begun {
            let failed = |attempt| self.error(attempt, Op::List, folder, 1);
            let modified_ms = upload.begun_ms().map_err(failed)?;
            let length = match self.repeat(Op::List, folder, || uploads.bytes(&upload)).await {
                // Ended or given up meanwhile.
                Err(StoreError::NotFound { .. }) => continue,
                other => other?,
            };
            let key = upload.key.strip_prefix(&self.inner.prefix).unwrap_or(&upload.key);
            found.push(Listed { name: format!("{key}{MARK}{}", upload.id), length, modified_ms });
        }
        Ok(Some(found))
    }

    /// Deletes one of [`Self::unfinished`].
    ///
    /// # Errors
    /// When the file cannot be removed or the bucket does not answer.
    pub async fn drop_unfinished(&self, upload: &Listed) -> Result<(), StoreError> {
        let Some((object, attempt)) = upload.name.rsplit_once(MARK) else { return Ok(()) };
        let path = self.path(Op::Delete, object)?;
        let local = match &self.inner.below {
            Below::Directory(local) => local,
            Below::S3(uploads) => {
                return self.repeat(Op::Delete, &path, || uploads.abort(&path, attempt)).await;
            }
            Below::Any => return Ok(()),
        };
        let failed = |error| self.error(Attempt::from_io(error), Op::Delete, &path, 1);
        let Ok(file) = local.path_to_filesystem(&path) else { return Ok(()) };
        let mut file = file.into_os_string();
        file.push(format!("{MARK}{attempt}"));
        let file = PathBuf::from(file);
        let removed = blocking(move || match std::fs::remove_file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
        removed.await.map_err(failed)
    }
}

fn walk(folder: &FilePath, name: &str, found: &mut Vec<Listed>) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        let name = if name.is_empty() { file.clone() } else { format!("{name}/{file}") };
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &name, found)?;
        } else if is_upload(&file) {
            let about = entry.metadata()?;
            let modified = about.modified()?.duration_since(std::time::UNIX_EPOCH);
            let modified_ms = modified.map_or(0, |since| since.as_millis() as i64);
            found.push(Listed { name, length: about.len(), modified_ms });
        }
    }
    Ok(())
}

fn is_upload(file: &str) -> bool {
    file.rsplit_once(MARK).is_some_and(|(_, attempt)| {
        !attempt.is_empty() && attempt.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_shows_what_a_killed_upload_left_and_drops_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("default/orders/archive");
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["1-a.tar.gz", "1-a.tar.gz#1", "1-b.tar.gz#12", "odd#name"] {
            std::fs::write(folder.join(file), b"abc").unwrap();
        }
        let store = Store::open(&format!("file://{}", dir.path().display())).unwrap();
        let mut found = store.unfinished("default").await.unwrap().unwrap();
        found.sort();
        let names: Vec<_> = found.iter().map(|upload| upload.name.as_str()).collect();
        let wanted =
            ["default/orders/archive/1-a.tar.gz#1", "default/orders/archive/1-b.tar.gz#12"];
        assert_eq!(names, wanted);
        assert!(found.iter().all(|upload| upload.length == 3 && upload.modified_ms > 0));
        store.drop_unfinished(&found[0]).await.unwrap();
        store.drop_unfinished(&found[0]).await.unwrap();
        assert_eq!(store.unfinished("default").await.unwrap().unwrap(), found[1..]);
        assert!(folder.join("1-a.tar.gz").is_file());
        assert_eq!(store.unfinished("absent").await.unwrap(), Some(vec![]));
    }

    #[tokio::test]
    async fn other_stores_say_that_they_cannot_tell() {
        assert_eq!(Store::open("memory:").unwrap().unfinished("default").await.unwrap(), None);
    }
}
