//! Owns when the broker started, as the operator tells it: a time, or a file that
//! is touched at every start.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use super::classify::Broker;
use super::dir::unix_ms;

/// Where the start of the broker is to be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerStart {
    /// No broker runs on this WAL.
    Stopped,
    /// Nobody says.
    Unknown,
    /// Milliseconds since 1970. A later restart makes it only too early, which is
    /// safe.
    At(i64),
    /// The last modification of this file, looked at anew each time.
    File(PathBuf),
}

/// A text that is neither a time nor a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} does not say when the broker started: give a time like 2026-02-14T00:28:07Z, or the path of a file that is touched when it starts"
)]
pub struct BrokerStartError {
    text: String,
}

impl BrokerStart {
    /// What is known of the broker now, where the wall clock shows `now_ms`. A start
    /// in the future is no start: it would close what is being written.
    #[must_use]
    pub fn broker(&self, now_ms: i64) -> Broker {
        let since_ms = match self {
            Self::Stopped => return Broker::Stopped,
            Self::Unknown => None,
            Self::At(at) => Some(*at),
            // A file that is not there (yet) says nothing.
            Self::File(path) => fs::metadata(path).and_then(|m| m.modified()).ok().map(unix_ms),
        };
        Broker::Running { since_ms: since_ms.filter(|since| *since <= now_ms) }
    }
}

impl FromStr for BrokerStart {
    type Err = BrokerStartError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(at) = rfc3339_ms(text) {
            return Ok(Self::At(at));
        }
        // A date that does not parse is a mistyped time, not a file.
        let like_a_time = text.len() >= 10
            && text.bytes().take(10).all(|byte| byte.is_ascii_digit() || byte == b'-');
        if text.is_empty() || like_a_time {
            return Err(BrokerStartError { text: text.to_owned() });
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

impl fmt::Display for BrokerStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("no broker runs"),
            Self::Unknown => f.write_str("nobody says when the broker started"),
            Self::At(ms) => {
                let since = Duration::from_millis(u64::try_from(*ms).unwrap_or(0));
                let at = humantime::format_rfc3339_millis(UNIX_EPOCH + since);
                write!(f, "the broker started at {at}")
            }
            Self::File(path) => write!(f, "{} is touched at its start", path.display()),
        }
    }
}

/// An RFC 3339 time with `Z` or an offset of hours and minutes.
fn rfc3339_ms(text: &str) -> Option<i64> {
    let parse = |text: &str| humantime::parse_rfc3339(text).ok().map(unix_ms);
    if let Some(utc) = text.strip_suffix(['Z', 'z']) {
        return parse(&format!("{utc}Z"));
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    let east = match offset.get(..1)? {
        "+" => minutes,
        "-" => -minutes,
        _ => return None,
    };
    Some(parse(&format!("{local}Z"))? - east * 60_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_771_028_887_000;

    #[test]
    fn a_time_is_read_in_any_zone() {
        for text in [
            "2026-02-14T00:28:07Z",
            "2026-02-14T00:28:07.000z",
            "2026-02-14T01:58:07+01:30",
            "2026-02-13T19:28:07-05:00",
        ] {
            assert_eq!(text.parse(), Ok(BrokerStart::At(AT)), "{text}");
        }
    }

    #[test]
    fn a_path_is_a_file_and_a_mistyped_time_is_refused() {
        let file = BrokerStart::File(PathBuf::from("/run/broker.pid"));
        assert_eq!("/run/broker.pid".parse(), Ok(file));
        for text in ["", "2026-02-14", "2026-02-14T00:28", "2026-02-14T00:28:07"] {
            let error = text.parse::<BrokerStart>().unwrap_err().to_string();
            assert!(error.contains("2026-02-14T00:28:07Z"), "{error}");
        }
    }

    #[test]
    fn a_start_in_the_future_is_not_believed() {
        let start = BrokerStart::At(AT);
        assert_eq!(start.broker(AT), Broker::Running { since_ms: Some(AT) });
        assert_eq!(start.broker(AT - 1), Broker::Running { since_ms: None });
    }

    #[test]
    fn a_file_is_looked_at_anew_and_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("started");
        let start = BrokerStart::File(path.clone());
        assert_eq!(start.broker(i64::MAX), Broker::Running { since_ms: None });
        for seconds in [1000, 2000] {
            let file = fs::File::create(&path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
            let since_ms = Some(seconds as i64 * 1000);
            assert_eq!(start.broker(i64::MAX), Broker::Running { since_ms });
        }
    }
}
