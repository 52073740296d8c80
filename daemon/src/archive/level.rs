//! Owns the levels of the search index: what of a record can be searched for, the
//! words for them, and which topic gets which.
//!
//! ```text
//!  none                    nothing
//!  keys                    offset, timestamp, key, headers, producer
//!  full, full:text         and the value as text, in words of any script, lower case
//!  full:text:whitespace    the same, cut at white space, as it is written
//!  full:text:raw           the whole value as one word
//!  full:json               and the value as JSON: each field by its path, its texts in
//!                          words as in full:text, numbers and times for ranges
//! ```
//!
//! An archive says its level in its metadata and summary. Levels are numbers there, so
//! a new one goes to the end of the list.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::ArchiveError;
use crate::record::TopicName;

/// What of a record can be searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IndexLevel {
    /// Nothing: no index is written.
    None,
    /// Offset, timestamp, key, headers, producer.
    #[default]
    Keys,
    /// The value too.
    Full(ValueIndex),
}

/// How values are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueIndex {
    /// As text, where they are UTF-8.
    Text(Tokenizer),
    /// As JSON, where they are an object: every field by its path, words of texts,
    /// and numbers that ranges find.
    Json,
}

/// How text is cut into words; Tantivy's own, by Tantivy's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tokenizer {
    /// At everything that is no letter or digit, in lower case.
    #[default]
    Default,
    /// At white space, as it is written.
    Whitespace,
    /// Not at all.
    Raw,
}

impl Tokenizer {
    /// Tantivy's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Whitespace => "whitespace",
            Self::Raw => "raw",
        }
    }
}

impl IndexLevel {
    /// The level as archives, settings and flags write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Keys => "keys",
            Self::Full(ValueIndex::Text(Tokenizer::Default)) => "full:text",
            Self::Full(ValueIndex::Text(Tokenizer::Whitespace)) => "full:text:whitespace",
            Self::Full(ValueIndex::Text(Tokenizer::Raw)) => "full:text:raw",
            Self::Full(ValueIndex::Json) => "full:json",
        }
    }

    /// Every level, in the order of their numbers in summaries.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Keys,
        Self::Full(ValueIndex::Text(Tokenizer::Default)),
        Self::Full(ValueIndex::Text(Tokenizer::Whitespace)),
        Self::Full(ValueIndex::Text(Tokenizer::Raw)),
        Self::Full(ValueIndex::Json),
    ];

    /// Its number in a summary: its place in the list above.
    pub(super) fn code(self) -> u8 {
        Self::ALL.iter().position(|level| *level == self).unwrap_or(0) as u8
    }

    pub(super) fn from_code(part: &'static str, code: u8) -> Result<Self, ArchiveError> {
        let unknown = || ArchiveError::Unknown { part, what: format!("index level {code}") };
        Self::ALL.get(usize::from(code)).copied().ok_or_else(unknown)
    }
}

impl fmt::Display for IndexLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "index level {0:?} is not one; give none, keys, full:text, full:text:whitespace, \
     full:text:raw or full:json"
)]
pub struct IndexLevelError(String);

impl FromStr for IndexLevel {
    type Err = IndexLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "full" {
            return Ok(Self::Full(ValueIndex::Text(Tokenizer::Default)));
        }
        let found = Self::ALL.into_iter().find(|level| level.as_str() == text);
        found.ok_or_else(|| IndexLevelError(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for IndexLevel {
    type Error = IndexLevelError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IndexLevel> for String {
    fn from(level: IndexLevel) -> Self {
        level.as_str().to_owned()
    }
}

/// One rule of [`IndexRules`]: `PATTERN=LEVEL`, or a table of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRule {
    /// Which topics, see [`TopicName::matches`].
    pub topics: String,
    /// What is indexed of them.
    pub level: IndexLevel,
}

impl FromStr for IndexRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (topics, level) =
            text.split_once('=').ok_or("give PATTERN=LEVEL, as orders-*=full:json")?;
        let level = level.parse().map_err(|error: IndexLevelError| error.to_string())?;
        Ok(Self { topics: topics.to_owned(), level })
    }
}

/// Which topic gets which level: that of the first rule that fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexRules(Vec<IndexRule>);

impl IndexRules {
    /// Rules in the order in which they are looked at.
    #[must_use]
    pub fn new(rules: Vec<IndexRule>) -> Self {
        Self(rules)
    }

    /// The level of `topic`; `None` where no rule fits.
    #[must_use]
    pub fn level_of(&self, topic: &TopicName) -> Option<IndexLevel> {
        let rule = self.0.iter().find(|rule| topic.matches(&rule.topics));
        rule.map(|rule| rule.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_survives_its_word_and_its_number() {
        for level in IndexLevel::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
            assert_eq!(IndexLevel::from_code("x", level.code()).unwrap(), level);
        }
        assert!(IndexLevel::from_code("x", 6).is_err());
        assert_eq!("full".parse(), Ok(IndexLevel::Full(ValueIndex::Text(Tokenizer::Default))));
        let error = "ful".parse::<IndexLevel>().unwrap_err().to_string();
        assert!(error.contains("full:json"), "{error}");
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rules = ["orders-1=none", "orders*=full:json", "*-日=full:text"];
        let rules = IndexRules::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let of = |topic: &str| rules.level_of(&TopicName::new(topic).unwrap());
        let is = |topic: &str, level: &str| assert_eq!(of(topic), Some(level.parse().unwrap()));
        is("orders-1", "none");
        is("orders-12", "full:json");
        is("orders", "full:json");
        is("clicks-日", "full:text");
        assert_eq!(of("clicks"), None);
        assert!("orders".parse::<IndexRule>().is_err());
        assert!("orders=ful".parse::<IndexRule>().unwrap_err().contains("full:json"));
    }
}
