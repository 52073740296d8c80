//! Owns the settings: what `tierd.toml` may say, and what holds without it.
//!
//! Precedence is flag, environment, file, default. The command line reads flags
//! and environment and lays them over what is loaded here. A key that nobody
//! knows is an error: a misspelt limit must not be no limit.

mod compaction;
mod memory;
mod scrub;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::archive::{IndexRule, IndexRules};
use crate::catalog::{ClusterName, WriterId};
use crate::indexer::{GAP_TIMEOUT_DEFAULT, LiveOptions, STANDBY_WAIT};
use crate::listen::{ListenAddress, Reach};
use crate::wal::BrokerStart;
use crate::wal::classify::{ARCHIVE_IDLE_DEFAULT, ROTATED_BYTES_MIN, Rules, SETTLE_DEFAULT};

pub use compaction::{CompactionConfig, TopicPolicy, parse_bytes};
pub use memory::memory_limit;
pub use scrub::ScrubConfig;

/// Where a daemon listens when nothing is said.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:9095";
/// Where probes and metrics are served when nothing is said.
pub const HTTP_DEFAULT: &str = "127.0.0.1:9096";
/// The cluster's name when nothing is said.
pub const CLUSTER_DEFAULT: &str = "default";

/// How to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("use text or json".to_owned()),
        }
    }
}

/// What `tierd.toml` may say. Every key is optional.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where archives live.
    pub store: Option<String>,
    /// Name of the broker's cluster.
    pub cluster: Option<String>,
    /// The broker's WAL directory.
    pub wal_dir: Option<PathBuf>,
    /// Scratch and caches; may be wiped at any time.
    pub data_dir: Option<PathBuf>,
    /// Who writes, in manifests.
    pub writer_id: Option<String>,
    /// Where to serve gRPC.
    pub listen: Option<Vec<String>>,
    /// Where to serve probes and metrics.
    pub http: Option<String>,
    /// How long a segment is unchanged before it passes for rotated, as `30s`.
    pub settle: Option<String>,
    /// How long a segment that may still grow is unchanged before its batches are
    /// archived, as `10m`.
    pub archive_idle: Option<String>,
    /// How long missing offsets are waited for, as `1h`.
    pub gap_timeout: Option<String>,
    /// When the broker started: a time, or a file touched when it starts.
    pub broker_started_at: Option<String>,
    /// Whether segments of the broker's are deleted once every batch in them is
    /// archived; by default none is.
    pub reclaim: Option<bool>,
    /// Bytes from which on a segment may pass for rotated, for brokers that rotate
    /// earlier than at 128 MiB.
    pub rotated_bytes_min: Option<u64>,
    /// What is indexed of which topics: the first rule that fits counts.
    pub index: Option<Vec<IndexRule>>,
    /// What to log.
    pub log: Option<String>,
    /// How to log.
    pub log_format: Option<LogFormat>,
    /// What becomes of archives once they are committed.
    #[serde(default)]
    pub compaction: CompactionConfig,
    /// How damage is looked for in the background.
    #[serde(default)]
    pub scrub: ScrubConfig,
}

impl Config {
    /// Reads `path`; without one, an empty configuration.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or has a key nobody knows.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the settings file {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("settings file {}", path.display()))
    }

    /// The store's URL.
    ///
    /// # Errors
    /// When none is given.
    pub fn store(&self) -> anyhow::Result<&str> {
        self.store
            .as_deref()
            .context("no store is given: add --store file:///DIR or set TIERD_STORE")
    }

    /// The cluster's name.
    ///
    /// # Errors
    /// When it is no name.
    pub fn cluster(&self) -> anyhow::Result<ClusterName> {
        Ok(ClusterName::new(self.cluster.as_deref().unwrap_or(CLUSTER_DEFAULT))?)
    }

    /// Who writes: the id given, else the host's name.
    ///
    /// # Errors
    /// When it is no id.
    pub fn writer_id(&self) -> anyhow::Result<WriterId> {
        let host = || {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            name.trim().to_owned()
        };
        let id = self.writer_id.clone().unwrap_or_else(host);
        WriterId::new(&id).context("no usable host name: give --writer-id NAME")
    }

    /// Where to serve gRPC.
    ///
    /// # Errors
    /// When an address is none.
    pub fn listen(&self) -> anyhow::Result<Vec<ListenAddress>> {
        let given = self.listen.clone().unwrap_or_else(|| vec![LISTEN_DEFAULT.to_owned()]);
        given.iter().map(|text| Ok(text.parse()?)).collect()
    }

    /// Where to serve probes and metrics.
    ///
    /// # Errors
    /// When it is no address.
    pub fn http(&self) -> anyhow::Result<ListenAddress> {
        let given = self.http.as_deref().unwrap_or(HTTP_DEFAULT);
        Ok(ListenAddress::parse(given, Reach::Anyone)?)
    }

    /// What is indexed of which topics.
    #[must_use]
    pub fn index(&self) -> IndexRules {
        IndexRules::new(self.index.clone().unwrap_or_default())
    }

    /// When to archive what, with a broker or, where `offline`, without.
    ///
    /// # Errors
    /// When a duration or the broker's start is none.
    pub fn live(&self, offline: bool) -> anyhow::Result<LiveOptions> {
        let broker = match &self.broker_started_at {
            _ if offline => BrokerStart::Stopped,
            Some(text) => text.parse().context("--broker-started-at")?,
            None => BrokerStart::Unknown,
        };
        let rules = Rules {
            settle: duration("settle", self.settle.as_deref(), SETTLE_DEFAULT)?,
            archive_idle: duration(
                "archive-idle",
                self.archive_idle.as_deref(),
                ARCHIVE_IDLE_DEFAULT,
            )?,
            rotated_bytes_min: self.rotated_bytes_min.unwrap_or(ROTATED_BYTES_MIN),
            ..Rules::default()
        };
        let gap_timeout =
            duration("gap-timeout", self.gap_timeout.as_deref(), GAP_TIMEOUT_DEFAULT)?;
        let reclaim = self.reclaim.unwrap_or(false);
        Ok(LiveOptions { broker, rules, gap_timeout, standby_wait: STANDBY_WAIT, reclaim })
    }

    /// Scratch and caches: the folder given, else one of our own that is keyed by
    /// store and WAL, so that two daemons of one host never share it.
    ///
    /// # Errors
    /// When no store is given.
    pub fn data_dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(given) = &self.data_dir {
            return Ok(given.clone());
        }
        let wal = self.wal_dir.as_deref().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes();
        let mut key = blake3::Hasher::new();
        key.update(self.store()?.as_bytes()).update(&[0]).update(wal);
        let folder = format!("tierd-{}", &key.finalize().to_hex()[..16]);
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = cache.filter(|path| path.is_absolute()).or_else(home);
        Ok(base.unwrap_or_else(std::env::temp_dir).join(folder))
    }
}

pub(crate) fn duration(
    key: &str,
    given: Option<&str>,
    default: Duration,
) -> anyhow::Result<Duration> {
    let Some(text) = given else { return Ok(default) };
    humantime::parse_duration(text).with_context(|| {
        format!("--{key} {text:?} is no duration; give one as 500ms, 30s, 10m, 1h")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = toml::from_str::<Config>("stoer = 'memory:'").unwrap_err().to_string();
        assert!(error.contains("stoer"), "{error}");
    }

    #[test]
    fn every_key_can_be_written_and_read_back() {
        let text = "store = 'memory:'\ncluster = 'c'\nwal-dir = '/w'\ndata-dir = '/d'\n\
                    writer-id = 'w'\nlisten = ['127.0.0.1:1', 'unix:/s']\nhttp = '0.0.0.0:9096'\n\
                    log = 'info'\nlog-format = 'json'\n\
                    settle = '1s'\narchive-idle = '2m'\ngap-timeout = '3h'\n\
                    broker-started-at = '/run/b.pid'\nrotated-bytes-min = 5\n\
                    [[index]]\ntopics = 'orders-*'\nlevel = 'full:json'\n";
        let config: Config = toml::from_str(text).unwrap();
        let live = config.live(false).unwrap();
        assert_eq!(live.broker, BrokerStart::File(PathBuf::from("/run/b.pid")));
        assert_eq!(live.rules.archive_idle, Duration::from_secs(120));
        assert_eq!((live.rules.rotated_bytes_min, live.gap_timeout.as_secs()), (5, 3 * 3600));
        assert_eq!(config.live(true).unwrap().broker, BrokerStart::Stopped);
        let topic = crate::record::TopicName::new("orders-1").unwrap();
        let level = config.index().level_of(&topic).unwrap();
        assert_eq!(level.as_str(), "full:json");
        assert_eq!(config.listen().unwrap().len(), 2);
        assert_eq!(config.http().unwrap().to_string(), "0.0.0.0:9096");
        assert_eq!(config.log_format, Some(LogFormat::Json));
        assert_eq!(config.data_dir().unwrap(), PathBuf::from("/d"));
    }

    #[test]
    fn a_duration_that_is_none_is_refused_with_its_flag() {
        let config = Config { settle: Some("soon".to_owned()), ..Config::default() };
        let error = format!("{:#}", config.live(false).unwrap_err());
        assert!(error.contains("--settle") && error.contains("30s"), "{error}");
    }

    #[test]
    fn the_default_data_folder_differs_by_store_and_by_wal() {
        let of = |store: &str, wal: &str| {
            let (store, wal) = (Some(store.to_owned()), Some(PathBuf::from(wal)));
            Config { store, wal_dir: wal, ..Config::default() }.data_dir().unwrap()
        };
        assert_eq!(of("file:///a", "/w"), of("file:///a", "/w"));
        assert_ne!(of("file:///a", "/w"), of("file:///b", "/w"));
        assert_ne!(of("file:///a", "/w"), of("file:///a", "/v"));
    }
}
