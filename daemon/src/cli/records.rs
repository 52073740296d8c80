//! Owns the line of JSON that one record becomes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use super::finding::{FoundHit, FoundRecord};
use crate::record::{BatchError, CanonicalRecord};

/// One record as `tierd fetch` and `tierd search` print it with `--format json`. Bytes are text where they
/// are UTF-8, else `{"base64": …}`; null stays null.
#[derive(Debug, Serialize)]
pub(super) struct RecordLine<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp: i64,
    key: Value,
    value: Value,
    headers: Vec<(Value, Value)>,
    /// Bytes of key, value and headers that a daemon left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    omitted_bytes: Option<u64>,
}

/// The line of a record that a search found.
pub(super) fn found<'a>(hit: &'a FoundHit, record: &FoundRecord) -> RecordLine<'a> {
    RecordLine {
        topic: &hit.topic,
        partition: hit.partition,
        offset: hit.offset,
        timestamp: hit.timestamp,
        key: text(record.key.as_deref()),
        value: text(record.value.as_deref()),
        headers: record
            .headers
            .iter()
            .map(|(name, value)| (text(Some(name)), text(value.as_deref())))
            .collect(),
        omitted_bytes: (record.omitted_bytes > 0).then_some(record.omitted_bytes),
    }
}

/// Calls `line` for every data record of `batch` at or above `from`. Control
/// batches have none.
pub(super) fn lines(
    topic: &str,
    partition: i32,
    batch: &CanonicalRecord,
    from: i64,
    mut line: impl FnMut(&RecordLine<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if batch.header().is_control() {
        return Ok(());
    }
    let entries = batch.entries().map_err(unreadable)?;
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        if entry.offset < from {
            continue;
        }
        line(&RecordLine {
            topic,
            partition,
            offset: entry.offset,
            timestamp: batch.timestamp(&entry),
            key: text(entry.key.as_deref()),
            value: text(entry.value.as_deref()),
            headers: entry
                .headers
                .iter()
                .map(|header| (text(Some(&header.name)), text(header.value.as_deref())))
                .collect(),
            omitted_bytes: None,
        })?;
    }
    Ok(())
}

fn unreadable(error: BatchError) -> anyhow::Error {
    anyhow::Error::new(error)
        .context("the batch is archived as it was written; read it with --format raw")
}

fn text(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => Value::from(text),
        Some((bytes, Err(_))) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_apart_from_text_that_looks_like_them() {
        assert_eq!(text(None), Value::Null);
        assert_eq!(text(Some(b"")), Value::from(""));
        assert_eq!(text(Some("日本".as_bytes())), Value::from("日本"));
        assert_eq!(text(Some(&[0xff, 0x00])), json!({ "base64": "/wA=" }));
    }
}
