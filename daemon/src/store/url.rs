//! Owns how a store is named on a command line: `file:///absolute/dir`,
//! `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` and
//! `memory:`. What is not understood is refused with what is.
//!
//! A URL names a place and nothing else. Who we are there and how it is reached
//! comes from the environment (see [`super::remote`]): a URL stands in process
//! lists, settings and logs, so one that could hold a credential is refused and
//! the part that could hold it is not repeated.

use std::fmt;
use std::path::PathBuf;

use object_store::path::Path;

use super::error::StoreError;

/// What this version understands, for people.
pub const UNDERSTOOD: &str = "file:///absolute/dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory:";

/// Longest part of a URL that a message repeats, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// A kind of remote store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Amazon S3, or a server that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Provider {
    const ALL: [Self; 3] = [Self::S3, Self::Gcs, Self::Azure];

    /// The scheme of its URLs.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }

    /// What it calls the first part of a name.
    #[must_use]
    pub const fn bucket_word(self) -> &'static str {
        match self {
            Self::S3 | Self::Gcs => "bucket",
            Self::Azure => "container",
        }
    }

    /// How the names of the environment variables begin that it is set up by.
    #[must_use]
    pub const fn variables(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Gcs => "GOOGLE_",
            Self::Azure => "AZURE_",
        }
    }
}

/// A bucket or container, and the folder in it that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Whose.
    pub provider: Provider,
    /// The bucket's or container's name.
    pub name: String,
    /// Taken as it stands, without slashes around it; may be empty.
    pub prefix: String,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.provider.scheme(), self.name)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// A store's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory of this machine, absolute.
    Local(PathBuf),
    /// The memory of this process, empty at first and gone at its end.
    Memory,
    /// A bucket of a remote store.
    Remote(Bucket),
}

impl StoreUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`StoreError::Url`] with the reason and with what is understood.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let refuse = |why: String| StoreError::Url { url: shown(text), why };
        let Some((scheme, rest)) = text.split_once(':') else {
            let hint = if text.starts_with('/') {
                format!("; did you mean file://{}?", shown(text))
            } else {
                String::new()
            };
            return Err(refuse(format!("it has no scheme{hint}")));
        };
        if let Some(provider) = Provider::ALL.into_iter().find(|known| known.scheme() == scheme) {
            return bucket(provider, rest).map(Self::Remote).map_err(refuse);
        }
        match scheme {
            "memory" if matches!(rest, "" | "//" | "///") => Ok(Self::Memory),
            "memory" => Err(refuse("memory: takes no path".to_owned())),
            "file" => directory(text, rest).map(Self::Local).map_err(refuse),
            other => Err(refuse(format!("the scheme {:?} is not known", shown(other)))),
        }
    }
}

/// The path of a `file:` URL, or why there is none.
fn directory(text: &str, rest: &str) -> Result<PathBuf, String> {
    let parsed = url::Url::parse(text).map_err(|error| error.to_string())?;
    if !rest.starts_with("//") {
        return Err("file: is followed by three slashes".to_owned());
    }
    if let Some(host) = parsed.host_str() {
        return Err(format!(
            "{host:?} stands where a host would; an absolute path needs three slashes: file:///{host}{}",
            parsed.path().trim_end_matches('/')
        ));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err("'?' and '#' in a path are written %3F and %23".to_owned());
    }
    match parsed.to_file_path() {
        Ok(path) if path.parent().is_some() => Ok(path),
        Ok(_) => Err("it names no directory below /".to_owned()),
        Err(()) => Err("it is not a path".to_owned()),
    }
}

/// The bucket that stands after the colon, or why there is none.
fn bucket(provider: Provider, rest: &str) -> Result<Bucket, String> {
    let (scheme, word, variables) =
        (provider.scheme(), provider.bucket_word(), provider.variables());
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(format!("{scheme}: is followed by two slashes and a {word}"));
    };
    if rest.contains(['?', '#']) {
        return Err(format!(
            "a store takes no '?' or '#'; credentials belong in {variables}* environment variables"
        ));
    }
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if name.contains('@') {
        return Err(format!("credentials belong in {variables}* environment variables"));
    }
    if name.contains(':') {
        return Err(format!(
            "the address of a server belongs in an {variables}* environment variable, not before the {word}"
        ));
    }
    if name.is_empty() {
        return Err(format!("it names no {word}"));
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '$')) {
        return Err(format!("{name:?} cannot be the name of a {word}"));
    }
    // The library would drop further slashes at either end.
    let doubled = prefix.starts_with('/') || prefix.ends_with("//");
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    match Path::parse(prefix) {
        Ok(_) if !doubled => {
            Ok(Bucket { provider, name: name.to_owned(), prefix: prefix.to_owned() })
        }
        _ => Err("its prefix has an empty part, a '.' or '..', or a control character".to_owned()),
    }
}

/// What a message may repeat of a URL: nothing before an '@' of the host, nothing
/// from a '?' or '#' on, and not more than fits a line.
fn shown(text: &str) -> String {
    let (text, cut) = match text.find(['?', '#']) {
        Some(at) => (&text[..at], "..."),
        None => (text, ""),
    };
    let mut shown = match text.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.split('/').next().unwrap_or_default();
            match host.rfind('@') {
                Some(at) => format!("{scheme}://...{}", &rest[at..]),
                None => text.to_owned(),
            }
        }
        None => text.to_owned(),
    };
    if shown.chars().count() > SHOWN_CHARS_MAX {
        shown = shown.chars().take(SHOWN_CHARS_MAX).chain("...".chars()).collect();
    }
    shown + cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_and_memory_are_understood() {
        for (text, path) in [
            ("file:///srv/tierd", "/srv/tierd"),
            ("file:///srv/tierd/", "/srv/tierd/"),
            ("file:///srv/my dir", "/srv/my dir"),
            ("file:///srv/my%20dir", "/srv/my dir"),
            ("file:///srv/日本", "/srv/日本"),
            ("file://localhost/srv", "/srv"),
        ] {
            assert_eq!(StoreUrl::parse(text).unwrap(), StoreUrl::Local(path.into()), "{text}");
        }
        assert_eq!(StoreUrl::parse("memory:").unwrap(), StoreUrl::Memory);
        assert_eq!(StoreUrl::parse("memory://").unwrap(), StoreUrl::Memory);
    }

    #[test]
    fn a_bucket_of_every_provider_is_understood_and_told_back() {
        use Provider::{Azure, Gcs, S3};
        for (text, provider, name, prefix, told) in [
            ("s3://logs", S3, "logs", "", "s3://logs"),
            ("s3://logs/", S3, "logs", "", "s3://logs"),
            ("s3://my.logs-1/a/b/", S3, "my.logs-1", "a/b", "s3://my.logs-1/a/b"),
            ("gs://my_logs/tierd", Gcs, "my_logs", "tierd", "gs://my_logs/tierd"),
            ("az://logs/日本", Azure, "logs", "日本", "az://logs/日本"),
            ("az://$root", Azure, "$root", "", "az://$root"),
            // As every other tool has it: a prefix is what it says, not escaped.
            ("s3://logs/a%20b c", S3, "logs", "a%20b c", "s3://logs/a%20b c"),
        ] {
            let StoreUrl::Remote(bucket) = StoreUrl::parse(text).unwrap() else { panic!("{text}") };
            assert_eq!(bucket.to_string(), told);
            let wanted = Bucket { provider, name: name.to_owned(), prefix: prefix.to_owned() };
            assert_eq!(bucket, wanted, "{text}");
        }
    }

    #[test]
    fn a_mistyped_url_gets_one_line_that_says_what_is_understood() {
        for (text, why) in [
            ("flie:///x", "the scheme \"flie\" is not known"),
            ("file://relative", "file:///relative"),
            ("file://relative/dir/", "file:///relative/dir"),
            ("file:/x", "three slashes"),
            ("file:x", "three slashes"),
            ("file:///", "no directory"),
            ("file:///a?b", "%3F"),
            ("s3:/b", "followed by two slashes and a bucket"),
            ("az:b", "followed by two slashes and a container"),
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("az://", "names no container"),
            ("s3://a b/c", "\"a b\" cannot be the name of a bucket"),
            ("s3://127.0.0.1:9000/b", "an AWS_* environment variable"),
            ("gs://b/a//c", "empty part"),
            ("gs://b//", "empty part"),
            ("gs://b/a//", "empty part"),
            ("gs://b/../c", "'..'"),
            ("s3://b/a\nb", "control character"),
            ("S3://b", "the scheme \"S3\" is not known"),
            ("https://b.s3.amazonaws.com", "the scheme \"https\" is not known"),
            ("/srv/tierd", "did you mean file:///srv/tierd?"),
            ("", "no scheme"),
            ("memory:x", "takes no path"),
        ] {
            let line = StoreUrl::parse(text).unwrap_err().to_string();
            assert!(line.contains(why), "{text}: {line}");
            assert!(line.contains(UNDERSTOOD), "{text}: {line}");
            assert!(!line.contains('\n'), "{text}: {line}");
            assert!(line.len() < 400, "{text}: {line}");
        }
    }

    #[test]
    fn a_credential_in_a_url_is_refused_and_not_repeated() {
        for text in [
            "s3://AKIAEXAMPLE:hunter2@bucket/prefix",
            "s3://hunter2@bucket",
            "az://container/prefix?sv=2024&sig=hunter2",
            "gs://bucket#hunter2",
            "https://me:hunter2@host/x?y",
            "az://a@b@hunter2@c/d",
        ] {
            let line = StoreUrl::parse(text).unwrap_err().to_string();
            assert!(!line.contains("hunter2"), "{line}");
            assert!(!line.contains("AKIA"), "{line}");
        }
        let line = StoreUrl::parse("az://c?sig=x").unwrap_err().to_string();
        assert!(line.contains("AZURE_* environment variables"), "{line}");
    }

    #[test]
    fn a_huge_url_makes_no_huge_line() {
        let line = StoreUrl::parse(&format!("{}:", "日".repeat(100_000))).unwrap_err().to_string();
        assert!(line.len() < 2000, "{}", line.len());
    }
}
