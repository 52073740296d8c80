//! Owns the names of the entries of an archive: the only ones that may occur.
//!
//! ```text
//! metadata.json | {base:020}.log | {base:020}.overlap.log | index/{file}
//! | .tierd/keys | .tierd/batches | .tierd/toc | .tierd/footer    in this order
//! ```

use std::fmt;

use super::error::ArchiveError;

/// Longest file name inside `index/`: 32 hexadecimal digits, a dot, an extension.
const INDEX_NAME_MAX: usize = 64;
/// Digits of an offset in a name, as in a Kafka log directory.
const OFFSET_DIGITS: usize = 20;

/// An entry of an archive. Ordered as the entries are in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum EntryName {
    /// What the archive is, for people.
    Metadata,
    /// The chain, named by its first base offset.
    Log(i64),
    /// What the chain superseded, named by the least base offset.
    OverlapLog(i64),
    /// A file of the search index.
    Index(String),
    /// Which keys it may hold.
    Keys,
    /// The list of all batches.
    Batches,
    /// The table of contents.
    Toc,
    /// The footer.
    Footer,
}

impl EntryName {
    /// The entry called `name`.
    ///
    /// # Errors
    /// For every name that no archive has; among them all that could leave a folder.
    pub(super) fn parse(name: &str) -> Result<Self, ArchiveError> {
        let found = match name {
            "metadata.json" => Some(Self::Metadata),
            ".tierd/keys" => Some(Self::Keys),
            ".tierd/batches" => Some(Self::Batches),
            ".tierd/toc" => Some(Self::Toc),
            ".tierd/footer" => Some(Self::Footer),
            _ => match name.strip_prefix("index/") {
                Some(file) => is_index_file(file).then(|| Self::Index(file.to_owned())),
                None => log_name(name),
            },
        };
        // A hostile name may be huge; an error line must not be.
        found.ok_or_else(|| {
            let shown: String = name.chars().take(100).collect();
            ArchiveError::corrupt("entry names", format!("{shown:?} is not one an archive has"))
        })
    }
}

fn is_index_file(file: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.';
    file.len() <= INDEX_NAME_MAX
        && file.bytes().all(plain)
        && file.bytes().next().is_some_and(|first| first != b'.')
}

fn log_name(name: &str) -> Option<EntryName> {
    let stem = name.strip_suffix(".log")?;
    let (digits, overlap) = match stem.strip_suffix(".overlap") {
        Some(digits) => (digits, true),
        None => (stem, false),
    };
    if digits.len() != OFFSET_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let base = digits.parse().ok()?;
    Some(if overlap { EntryName::OverlapLog(base) } else { EntryName::Log(base) })
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata => f.write_str("metadata.json"),
            Self::Log(base) => write!(f, "{base:0OFFSET_DIGITS$}.log"),
            Self::OverlapLog(base) => write!(f, "{base:0OFFSET_DIGITS$}.overlap.log"),
            Self::Index(file) => write!(f, "index/{file}"),
            Self::Keys => f.write_str(".tierd/keys"),
            Self::Batches => f.write_str(".tierd/batches"),
            Self::Toc => f.write_str(".tierd/toc"),
            Self::Footer => f.write_str(".tierd/footer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_printing_and_parsing_and_sort_as_they_lie() {
        let names = [
            EntryName::Metadata,
            EntryName::Log(0),
            EntryName::Log(i64::MAX),
            EntryName::OverlapLog(7),
            EntryName::Index("00ff.term".to_owned()),
            EntryName::Index("meta.json".to_owned()),
            EntryName::Keys,
            EntryName::Batches,
            EntryName::Toc,
            EntryName::Footer,
        ];
        assert!(names.is_sorted());
        for name in names {
            assert_eq!(EntryName::parse(&name.to_string()).unwrap(), name);
        }
    }

    #[test]
    fn names_that_no_archive_has_are_refused() {
        for bad in [
            "",
            "/metadata.json",
            "./metadata.json",
            "../metadata.json",
            "metadata.json/",
            "index/",
            "index/..",
            "index/.managed.json",
            "index/.tantivy-writer.lock",
            "index/../x",
            "index/a/b",
            "index/A.term",
            "0.log",
            "-0000000000000000001.log",
            "+0000000000000000001.log",
            "99999999999999999999.log",
            "00000000000000000000.log.log",
            "00000000000000000000.overlap.overlap.log",
            ".tierd/other",
            &"x".repeat(1 << 20),
        ] {
            let error = EntryName::parse(bad).unwrap_err().to_string();
            assert!(error.len() < 300, "{error}");
        }
    }
}
