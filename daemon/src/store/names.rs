//! Owns the names that folders of a store are called after, besides topics:
//! [`ClusterName`] and [`WriterId`]. Each is checked once, where it is made.

use std::fmt;
use std::sync::Arc;

/// Longest name, in bytes of UTF-8: a file name holds 255, and six are kept
/// for what a file system appends while it writes.
pub const NAME_BYTES_MAX: usize = 249;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {name:?} is not valid: {why}; use 1 to 249 bytes of letters, digits, '.', '_' and '-'"
)]
pub struct NameError {
    what: &'static str,
    name: String,
    why: &'static str,
}

fn check(what: &'static str, name: &str) -> Result<Arc<str>, NameError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it is longer than 249 bytes"
    } else if name == "." || name == ".." {
        "it names a directory"
    } else if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        "it holds a character that no name may have"
    } else {
        return Ok(Arc::from(name));
    };
    // A hostile name may be huge; an error line must not be.
    Err(NameError { what, name: name.chars().take(64).collect(), why })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// Invariants: 1 to 249 bytes of UTF-8; not `.` or `..`; every character
        /// is a letter or digit in the Unicode sense, or one of `.`, `_`, `-`.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `name` against the invariants.
            ///
            /// # Errors
            /// Names the rule that is broken.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check($what, name).map(Self)
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name! {
    /// The name of the broker cluster whose data a folder of the store holds.
    ClusterName, "cluster name"
}

name! {
    /// The name of one tierd that writes, by default its host's.
    WriterId, "writer id"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_folder_is_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "a%b", &"x".repeat(250)] {
            assert!(ClusterName::new(bad).is_err(), "{bad:?}");
            assert!(WriterId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["default", "kafka-0.kafka.svc", "東京", &"x".repeat(249)] {
            assert_eq!(ClusterName::new(good).unwrap().as_str(), good);
            assert_eq!(WriterId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn the_message_says_what_was_named() {
        let error = WriterId::new("a/b").unwrap_err().to_string();
        assert!(error.starts_with("writer id \"a/b\" is not valid"), "{error}");
    }
}
