//! Owns the flags that pick records, which `fetch` and `search` share.

use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use tierd_client as client;

use crate::record::{HeaderCondition, Selection};

/// Which records.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct PickArgs {
    /// Exactly this key
    #[arg(long, value_name = "KEY", conflicts_with = "key_base64")]
    key: Option<String>,
    /// Exactly this key, for bytes that are no text
    #[arg(long, value_name = "BASE64")]
    key_base64: Option<String>,
    /// A key that begins so
    #[arg(long, value_name = "PREFIX")]
    key_prefix: Option<String>,
    /// A header with this value, or with any; may be given more than once
    #[arg(long, value_name = "NAME[=VALUE]")]
    header: Vec<String>,
    /// Records from this time on: 2026-03-01, 2026-03-01T12:00:00Z or milliseconds
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    from: Option<String>,
    /// Records before this time
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    to: Option<String>,
    /// The producer's id
    #[arg(long, value_name = "ID")]
    producer_id: Option<i64>,
}

impl PickArgs {
    /// What the flags say; everything where there are none.
    pub(super) fn selection(&self) -> anyhow::Result<Selection> {
        let text = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        let key = match &self.key_base64 {
            Some(coded) => Some(Bytes::from(STANDARD.decode(coded).context("--key-base64")?)),
            None => self.key.as_ref().map(text),
        };
        Ok(Selection {
            key,
            key_prefix: self.key_prefix.as_ref().map(text),
            headers: self.header.iter().map(|given| header(given)).collect(),
            from_ms: self.from.as_deref().map(|given| time("from", given)).transpose()?,
            until_ms: self.to.as_deref().map(|given| time("to", given)).transpose()?,
            producer_id: self.producer_id,
            ..Selection::default()
        })
    }
}

/// The same in the client's words.
pub(super) fn for_client(of: Selection) -> client::Selection {
    let header = |of: HeaderCondition| client::HeaderCondition { name: of.name, value: of.value };
    client::Selection {
        key: of.key,
        key_prefix: of.key_prefix,
        headers: of.headers.into_iter().map(header).collect(),
        from_ms: of.from_ms,
        until_ms: of.until_ms,
        from_offset: of.from_offset,
        until_offset: of.until_offset,
        producer_id: of.producer_id,
    }
}

/// `NAME=VALUE`, or a name alone.
fn header(given: &str) -> HeaderCondition {
    let (name, value) = match given.split_once('=') {
        Some((name, value)) => (name, Some(Bytes::copy_from_slice(value.as_bytes()))),
        None => (given, None),
    };
    HeaderCondition { name: Bytes::copy_from_slice(name.as_bytes()), value }
}

/// Milliseconds since 1970 of a number, a day or a time, which are in UTC.
fn time(flag: &str, given: &str) -> anyhow::Result<i64> {
    if let Ok(ms) = given.parse() {
        return Ok(ms);
    }
    let day = format!("{given}T00:00:00Z");
    let parsed =
        humantime::parse_rfc3339_weak(given).or_else(|_| humantime::parse_rfc3339_weak(&day));
    let parsed = parsed.with_context(|| {
        format!(
            "--{flag} {given:?} is no time; give 2026-03-01, 2026-03-01T12:00:00Z or milliseconds"
        )
    })?;
    let since = parsed.duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_days_times_or_milliseconds() {
        assert_eq!(time("from", "2023-11-14").unwrap(), 1_699_920_000_000);
        assert_eq!(time("from", "2023-11-14T22:13:20.123Z").unwrap(), 1_700_000_000_123);
        assert_eq!(time("from", "2023-11-14 22:13:20").unwrap(), 1_700_000_000_000);
        assert_eq!(time("from", "-5").unwrap(), -5);
        let error = format!("{:#}", time("to", "yesterday").unwrap_err());
        assert!(error.contains("--to") && error.contains("2026-03-01"), "{error}");
    }

    #[test]
    fn a_header_may_hold_more_than_one_equals_sign() {
        let both = header("a=b=c");
        assert_eq!((&both.name[..], both.value.as_deref()), (&b"a"[..], Some(&b"b=c"[..])));
        assert_eq!(header("a").value, None);
        assert_eq!(header("a=").value.as_deref(), Some(&b""[..]));
    }
}
