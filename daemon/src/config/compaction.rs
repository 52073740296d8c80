//! Owns the settings of compaction: what each topic keeps, as the file says it and
//! as plain values.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::compact::gc::GRACE_DEFAULT;
use crate::compact::merge::TARGET_BYTES_DEFAULT;
use crate::compact::retention::Limits;
use crate::compact::{BYTES_PER_SECOND_DEFAULT, EVERY_DEFAULT, Policy};
use crate::record::TopicName;

/// What `[compaction]` may say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CompactionConfig {
    /// Whether a running daemon compacts; it does where nothing is said.
    pub enabled: Option<bool>,
    /// How often it looks, as `10m`.
    pub every: Option<String>,
    /// Bytes it moves a second at most, as `32MiB`.
    pub bytes_per_second: Option<String>,
    /// How long what was dropped stays readable, as `24h`.
    pub grace: Option<String>,
    /// What topics keep: the first that matches decides.
    pub topics: Vec<TopicPolicy>,
}

/// What the topics that match keep. What is not said is kept for ever.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TopicPolicy {
    /// Names of topics; `*` stands for anything.
    pub topics: String,
    /// Age of records, as `30d`.
    pub retention_time: Option<String>,
    /// Bytes of archives of each partition, as `100GiB`.
    pub retention_bytes: Option<String>,
    /// Offsets of each partition before its end.
    pub retention_offsets: Option<u64>,
    /// How long an older life of a topic is kept once a newer one began, as `7d`.
    pub old_incarnations: Option<String>,
    /// Bytes of log, unpacked, to merge small neighbours into, as `512MiB`; 0 merges none.
    pub merge_target: Option<String>,
}

impl CompactionConfig {
    /// How often a running daemon looks.
    ///
    /// # Errors
    /// When it is no duration.
    pub fn every(&self) -> anyhow::Result<Duration> {
        duration("every", self.every.as_deref(), EVERY_DEFAULT)
    }

    /// Bytes that a running daemon moves a second.
    ///
    /// # Errors
    /// When it is no number of bytes.
    pub fn bytes_per_second(&self) -> anyhow::Result<u64> {
        self.bytes_per_second.as_deref().map_or(Ok(BYTES_PER_SECOND_DEFAULT), parse_bytes)
    }

    /// How long what was dropped stays.
    ///
    /// # Errors
    /// When it is no duration.
    pub fn grace(&self) -> anyhow::Result<Duration> {
        duration("grace", self.grace.as_deref(), GRACE_DEFAULT)
    }

    /// What `topic` keeps.
    ///
    /// # Errors
    /// When a limit is none.
    pub fn policy(&self, topic: &TopicName) -> anyhow::Result<Policy> {
        let rule = self.topics.iter().find(|rule| topic.matches(&rule.topics));
        rule.map_or_else(|| TopicPolicy::default().policy(), TopicPolicy::policy)
    }

    /// Refuses what cannot be meant, before anything is done by it.
    ///
    /// # Errors
    /// Names the first setting that is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        self.grace()?;
        self.every()?;
        self.bytes_per_second()?;
        for rule in &self.topics {
            rule.policy().with_context(|| format!("compaction of topics {:?}", rule.topics))?;
            anyhow::ensure!(
                !rule.topics.is_empty(),
                "an entry of compaction.topics names no topics; say topics = \"*\" for all"
            );
        }
        Ok(())
    }
}

impl TopicPolicy {
    fn policy(&self) -> anyhow::Result<Policy> {
        let time = |key, text: &Option<String>| {
            let text = text.as_deref();
            text.map(|text| duration(key, Some(text), Duration::ZERO)).transpose()
        };
        let bytes = self.retention_bytes.as_deref().map(parse_bytes).transpose()?;
        let limits = Limits {
            time: time("retention-time", &self.retention_time)?,
            bytes,
            offsets: self.retention_offsets,
        };
        let old_incarnations = time("old-incarnations", &self.old_incarnations)?;
        let merge_target =
            self.merge_target.as_deref().map_or(Ok(TARGET_BYTES_DEFAULT), parse_bytes)?;
        let merge_target = Some(merge_target).filter(|target| *target > 0);
        Ok(Policy { limits, old_incarnations, merge_target })
    }
}

/// Bytes as people write them: `1500`, `64KiB`, `100 GiB`, `5TB`.
///
/// # Errors
/// When `text` is no such number.
pub fn parse_bytes(text: &str) -> anyhow::Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        "KB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "TB" => Some(1_000_000_000_000),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    bytes
        .with_context(|| format!("{text:?} is no number of bytes; give one as 1500, 64MiB, 100GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        let read = ["0", "1500", "64KiB", "100 GiB", "5TB", "7B"].map(|t| parse_bytes(t).unwrap());
        assert_eq!(read, [0, 1500, 64 << 10, 100 << 30, 5_000_000_000_000, 7]);
        for wrong in ["", "GiB", "1.5GiB", "-1", "64Kib", "99999999999TiB", "1 2"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_nothing_is_kept_for_ever() {
        let text = "every = '1m'\nbytes-per-second = '1MiB'\nenabled = false\ngrace = '1h'\n[[topics]]\ntopics = 'logs.*'\nretention-time = '7d'\n\
                    retention-bytes = '1GiB'\nretention-offsets = 9\nold-incarnations = '2d'\nmerge-target = '0'\n\
                    [[topics]]\ntopics = '*'\nretention-offsets = 5\n";
        let config: CompactionConfig = toml::from_str(text).unwrap();
        config.check().unwrap();
        assert_eq!(config.grace().unwrap(), Duration::from_secs(3600));
        let of = |topic: &str| config.policy(&TopicName::new(topic).unwrap()).unwrap();
        let week = Duration::from_secs(7 * 86_400);
        let limits = Limits { time: Some(week), bytes: Some(1 << 30), offsets: Some(9) };
        let kept = Some(Duration::from_secs(2 * 86_400));
        assert_eq!(of("logs.app"), Policy { limits, old_incarnations: kept, merge_target: None });
        assert_eq!((config.enabled, config.every().unwrap().as_secs()), (Some(false), 60));
        assert_eq!(config.bytes_per_second().unwrap(), 1 << 20);
        assert_eq!(of("orders").limits, Limits { offsets: Some(5), ..Limits::default() });
        let nothing = CompactionConfig::default();
        let kept = Policy { merge_target: Some(TARGET_BYTES_DEFAULT), ..Policy::default() };
        assert_eq!(nothing.policy(&TopicName::new("x").unwrap()).unwrap(), kept);
        assert_eq!(nothing.grace().unwrap(), GRACE_DEFAULT);
    }

    #[test]
    fn a_limit_that_is_none_is_refused_with_its_rule() {
        for (rule, word) in [
            ("topics = 'a'\nretention-time = 'soon'", "retention-time"),
            ("topics = 'a'\nretention-bytes = 'much'", "much"),
            ("retention-offsets = 3", "names no topics"),
        ] {
            let config: CompactionConfig = toml::from_str(&format!("[[topics]]\n{rule}")).unwrap();
            let error = format!("{:#}", config.check().unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        assert!(toml::from_str::<CompactionConfig>("retention = '7d'").is_err());
    }
}
