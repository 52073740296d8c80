//! Owns the names of what is read and written: topics, partitions, offset ranges.
//!
//! Each type is checked once, where it is made, and cannot be wrong afterwards.

use std::fmt;
use std::sync::Arc;

/// Longest topic name, in bytes of UTF-8 (Kafka's own limit).
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// A topic's name.
///
/// Invariants: 1 to 249 bytes of UTF-8; not `.` or `..`; every character is a
/// letter or digit in the Unicode sense, or one of `.`, `_`, `-`. The same rule
/// as the first broker's, which allows more than Apache Kafka does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// Why a text is not a topic name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic name {name:?} is not valid: {why}; use 1 to 249 bytes of letters, digits, '.', '_' and '-'"
)]
pub struct TopicNameError {
    name: String,
    why: &'static str,
}

impl TopicName {
    /// Checks `name` against the invariants.
    ///
    /// # Errors
    /// Names the rule that is broken.
    pub fn new(name: &str) -> Result<Self, TopicNameError> {
        let why = if name.is_empty() {
            "it is empty"
        } else if name.len() > TOPIC_NAME_BYTES_MAX {
            "it is longer than 249 bytes"
        } else if name == "." || name == ".." {
            "it names a directory"
        } else if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')) {
            "it holds a character that no topic may have"
        } else {
            return Ok(Self(Arc::from(name)));
        };
        // A hostile name may be huge; an error line must not be.
        Err(TopicNameError { name: name.chars().take(64).collect(), why })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is what `pattern` says, in which `*` stands for anything.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        let mut parts = pattern.split('*');
        let Some(mut rest) = parts.next().and_then(|first| self.0.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = pattern.rsplit_once('*').map(|(_, last)| last) else {
            return rest.is_empty();
        };
        let middle = pattern.matches('*').count() - 1;
        for part in parts.take(middle) {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// One partition of one topic. `partition` is zero or greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    topic: TopicName,
    partition: i32,
}

/// A partition number below zero.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("partition {0} is not valid: partitions are numbered from 0")]
pub struct PartitionError(pub i32);

impl TopicPartition {
    /// The partition numbered `partition` of `topic`.
    ///
    /// # Errors
    /// When `partition` is negative.
    pub fn new(topic: TopicName, partition: i32) -> Result<Self, PartitionError> {
        if partition < 0 { Err(PartitionError(partition)) } else { Ok(Self { topic, partition }) }
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The partition's number, zero or greater.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A range of offsets with both ends inside: `base..=last`, never empty,
/// `0 <= base <= last < i64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetRange {
    base: i64,
    last: i64,
}

impl OffsetRange {
    /// The range from `base` to `last`, or `None` where that breaks the invariant.
    #[must_use]
    pub const fn new(base: i64, last: i64) -> Option<Self> {
        if base < 0 || last < base || last == i64::MAX { None } else { Some(Self { base, last }) }
    }

    /// The first offset inside.
    #[must_use]
    pub const fn base(self) -> i64 {
        self.base
    }

    /// The last offset inside.
    #[must_use]
    pub const fn last(self) -> i64 {
        self.last
    }

    /// The first offset after the range.
    #[must_use]
    pub const fn end(self) -> i64 {
        self.last + 1
    }

    /// Whether `offset` lies inside.
    #[must_use]
    pub const fn contains(self, offset: i64) -> bool {
        self.base <= offset && offset <= self.last
    }

    /// Whether the two ranges share an offset.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.base <= other.last && other.base <= self.last
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.base, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_people_expect() {
        for (pattern, name, wanted) in [
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("", "orders", false),
            ("*", "orders", true),
            ("ord*", "orders", true),
            ("*ers", "orders", true),
            ("o*er*s", "orders", true),
            ("o*x*s", "orders", false),
            ("*rs*", "orders", true),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("a**b", "ab", true),
            ("日*", "日本", true),
        ] {
            let topic = TopicName::new(name).unwrap();
            assert_eq!(topic.matches(pattern), wanted, "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn a_topic_name_may_hold_letters_of_any_script() {
        for good in ["orders", "clicks.日本_1", ".hidden", "...", "_schemas", &"x".repeat(249)] {
            assert_eq!(TopicName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_topic_name_that_could_leave_its_folder_is_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a:b", "a\0", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_range_is_never_empty_and_never_below_zero() {
        assert_eq!(OffsetRange::new(3, 2), None);
        assert_eq!(OffsetRange::new(-1, 2), None);
        assert_eq!(OffsetRange::new(0, i64::MAX), None);
        let range = OffsetRange::new(3, 5).unwrap();
        assert!(range.contains(3) && range.contains(5) && !range.contains(6));
        assert_eq!(range.end(), 6);
        assert!(range.overlaps(OffsetRange::new(5, 9).unwrap()));
        assert!(!range.overlaps(OffsetRange::new(6, 9).unwrap()));
    }
}
