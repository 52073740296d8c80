//! Owns the settings: what `tierd.toml` may say, and what holds without it.
//!
//! Precedence is flag, environment, file, default. The command line reads flags
//! and environment and lays them over what is loaded here. A key that nobody
//! knows is an error: a misspelt limit must not be no limit.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::catalog::{ClusterName, WriterId};
use crate::listen::{ListenAddress, Reach};

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
    /// What to log.
    pub log: Option<String>,
    /// How to log.
    pub log_format: Option<LogFormat>,
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
                    log = 'info'\n\
                    log-format = 'json'\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.listen().unwrap().len(), 2);
        assert_eq!(config.http().unwrap().to_string(), "0.0.0.0:9096");
        assert_eq!(config.log_format, Some(LogFormat::Json));
        assert_eq!(config.data_dir().unwrap(), PathBuf::from("/d"));
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
