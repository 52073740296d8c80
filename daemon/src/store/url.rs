//! Owns how a store is named on a command line: `file:///absolute/dir` and
//! `memory:`. What is not understood is refused with what is.

use std::path::PathBuf;

use super::error::StoreError;

/// What this version understands, for people.
pub const UNDERSTOOD: &str = "file:///absolute/dir or memory:";

/// A store's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory of this machine, absolute.
    Local(PathBuf),
    /// The memory of this process, empty at first and gone at its end.
    Memory,
}

impl StoreUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`StoreError::Url`] with the reason and with what is understood.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let refuse = |why: String| StoreError::Url { url: text.chars().take(200).collect(), why };
        let Some((scheme, rest)) = text.split_once(':') else {
            let hint = if text.starts_with('/') {
                format!("; did you mean file://{text}?")
            } else {
                String::new()
            };
            return Err(refuse(format!("it has no scheme{hint}")));
        };
        match scheme {
            "memory" if matches!(rest, "" | "//" | "///") => Ok(Self::Memory),
            "memory" => Err(refuse("memory: takes no path".to_owned())),
            "file" => {
                let parsed = url::Url::parse(text).map_err(|e| refuse(e.to_string()))?;
                if !rest.starts_with("//") {
                    return Err(refuse("file: is followed by three slashes".to_owned()));
                }
                if let Some(host) = parsed.host_str() {
                    return Err(refuse(format!(
                        "{host:?} stands where a host would; an absolute path needs three slashes: file:///{host}{}",
                        parsed.path().trim_end_matches('/')
                    )));
                }
                if parsed.query().is_some() || parsed.fragment().is_some() {
                    return Err(refuse("'?' and '#' in a path are written %3F and %23".to_owned()));
                }
                match parsed.to_file_path() {
                    Ok(path) if path.parent().is_some() => Ok(Self::Local(path)),
                    Ok(_) => Err(refuse("it names no directory below /".to_owned())),
                    Err(()) => Err(refuse("it is not a path".to_owned())),
                }
            }
            other => Err(refuse(format!("the scheme {other:?} is not known"))),
        }
    }
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
    fn a_mistyped_url_gets_one_line_that_says_what_is_understood() {
        for (text, why) in [
            ("flie:///x", "the scheme \"flie\" is not known"),
            ("file://relative", "file:///relative"),
            ("file://relative/dir/", "file:///relative/dir"),
            ("file:/x", "three slashes"),
            ("file:x", "three slashes"),
            ("file:///", "no directory"),
            ("file:///a?b", "%3F"),
            ("s3:/b", "the scheme \"s3\" is not known"),
            ("s3://bucket/prefix", "the scheme \"s3\" is not known"),
            ("/srv/tierd", "did you mean file:///srv/tierd?"),
            ("", "no scheme"),
            ("memory:x", "takes no path"),
        ] {
            let line = StoreUrl::parse(text).unwrap_err().to_string();
            assert!(line.contains(why), "{text}: {line}");
            assert!(line.contains(UNDERSTOOD), "{text}: {line}");
            assert!(!line.contains('\n'), "{text}: {line}");
        }
    }
}
