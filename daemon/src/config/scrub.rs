//! Owns the settings of the scrub.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::{duration, parse_bytes};
use crate::upkeep::{SCRUB_EVERY_DEFAULT, SCRUB_RATE_DEFAULT, ScrubOptions};

/// What `[scrub]` may say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ScrubConfig {
    /// Bytes a daemon reads a second to find damage, as `4MiB`; `0` for no rounds.
    pub rate: Option<String>,
    /// From the beginning of a round over all archives to the next, as `7d`.
    pub every: Option<String>,
}

impl ScrubConfig {
    /// How to scrub. Where there are no rounds, what reads found damaged is still looked
    /// at again, at the rate that is used where nothing is said.
    ///
    /// # Errors
    /// When the rate is no number of bytes or the time none.
    pub fn options(&self) -> anyhow::Result<ScrubOptions> {
        let rate = self.rate.as_deref().map_or(Ok(SCRUB_RATE_DEFAULT.get()), parse_bytes)?;
        let every = duration("scrub.every", self.every.as_deref(), SCRUB_EVERY_DEFAULT)?;
        let (bytes_per_second, every) = match NonZeroU64::new(rate) {
            Some(rate) => (rate, Some(every)),
            None => (SCRUB_RATE_DEFAULT, None),
        };
        Ok(ScrubOptions { bytes_per_second, every })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_scrub_is_slow_and_rare_unless_told_and_can_be_turned_off() {
        let read = |text: &str| toml::from_str::<ScrubConfig>(text).unwrap().options();
        let default = read("").unwrap();
        let week = Some(SCRUB_EVERY_DEFAULT);
        assert_eq!((default.bytes_per_second.get(), default.every), (4 << 20, week));
        let told = read("rate = '1GiB'\nevery = '1h'").unwrap();
        assert_eq!(told.bytes_per_second.get(), 1 << 30);
        assert_eq!(told.every, Some(Duration::from_secs(3600)));
        assert_eq!(read("rate = '0'").unwrap().every, None);
        assert!(read("rate = 'fast'").is_err() && read("every = 'often'").is_err());
        assert!(toml::from_str::<ScrubConfig>("speed = '1'").is_err());
    }
}
