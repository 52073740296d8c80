//! `tierd search`: finds records in the archive, straight from the store or through
//! a daemon.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;
use tierd_client as client;

use super::finding::{Finding, Found};
use super::{Outcome, output, records};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::record::{HeaderCondition, Selection, TopicName};
use crate::search::{Deliver, LIMIT_MAX, Order, Scope, SearchRequest};

/// Hits of one answer: what a table waits for, and the pages of a long search.
const PAGE_HITS: u32 = 1_000;
/// Hits shown where nothing is said: what a person reads.
const LIMIT_SHOWN: u64 = 100;

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    /// The topic [default: all]
    topic: Option<String>,
    /// The partition [default: all]
    partition: Option<i32>,
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
    /// Offsets from A on and below B; either may be left out
    #[arg(long, value_name = "A..B")]
    offsets: Option<String>,
    /// The producer's id
    #[arg(long, value_name = "ID")]
    producer_id: Option<i64>,
    /// Stop after this many hits; 0 for all
    #[arg(long, value_name = "N", default_value_t = LIMIT_SHOWN)]
    limit: u64,
    /// Which hits come first
    #[arg(long, value_name = "ORDER", default_value = "newest")]
    order: OrderArg,
    /// Go on where an earlier search ended; it says how
    #[arg(long, value_name = "TOKEN")]
    page: Option<String>,
    /// Answer with what was found after this long, as 10s
    #[arg(long, value_name = "TIME")]
    time_limit: Option<humantime::Duration>,
    /// json: one line a record; refs: where the records are; raw: batches that hold
    /// nothing but the records
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    /// Say on stderr which archives were searched, and what it cost
    #[arg(long)]
    explain: bool,
    /// Search through a running daemon: HOST:PORT or unix:PATH [default: straight from --store]
    #[arg(long, value_name = "ADDR", env = "TIERD_ENDPOINT")]
    endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OrderArg {
    Newest,
    Oldest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Refs,
    Raw,
}

impl SearchArgs {
    fn request(&self) -> anyhow::Result<SearchRequest> {
        let topic = self.topic.as_deref().map(TopicName::new).transpose()?;
        Ok(SearchRequest {
            scope: Scope { topic, partition: self.partition, incarnation: None },
            selection: self.selection()?,
            order: match self.order {
                OrderArg::Newest => Order::Newest,
                OrderArg::Oldest => Order::Oldest,
            },
            limit: PAGE_HITS.min(LIMIT_MAX),
            deliver: match self.format {
                Format::Refs => Deliver::Refs,
                Format::Json => Deliver::Records,
                Format::Raw => Deliver::Batches,
            },
            page: self.page.clone(),
            time_limit: self.time_limit.map(Into::into),
        })
    }

    fn selection(&self) -> anyhow::Result<Selection> {
        let text = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        let key = match &self.key_base64 {
            Some(coded) => Some(Bytes::from(STANDARD.decode(coded).context("--key-base64")?)),
            None => self.key.as_ref().map(text),
        };
        let (from_offset, until_offset) = match &self.offsets {
            Some(range) => offsets(range)?,
            None => (None, None),
        };
        Ok(Selection {
            key,
            key_prefix: self.key_prefix.as_ref().map(text),
            headers: self.header.iter().map(|given| header(given)).collect(),
            from_ms: self.from.as_deref().map(|given| time("from", given)).transpose()?,
            until_ms: self.to.as_deref().map(|given| time("to", given)).transpose()?,
            from_offset,
            until_offset,
            producer_id: self.producer_id,
        })
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

/// `A..B`, `A..` or `..B`.
fn offsets(given: &str) -> anyhow::Result<(Option<i64>, Option<i64>)> {
    let wrong = || format!("--offsets {given:?} is no range; give one as 100..200, 100.. or ..200");
    let (from, until) = given.split_once("..").with_context(wrong)?;
    let bound = |text: &str| match text {
        "" => Ok(None),
        number => number.parse().map(Some).with_context(wrong),
    };
    Ok((bound(from)?, bound(until)?))
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

pub(super) async fn search(
    args: SearchArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let mut request = args.request()?;
    let mut left = if args.limit == 0 { u64::MAX } else { args.limit };
    let source = match &args.endpoint {
        Some(endpoint) => Finding::daemon(client::ArchiveClient::connect_lazy(endpoint)?),
        None => Finding::store(Rooms::open(&config)?.searcher),
    };
    let mut printer = Printer { format: args.format, json, table: table() };
    let mut hits = 0;
    let end = loop {
        request.limit = u32::try_from(left.min(u64::from(PAGE_HITS))).unwrap_or(PAGE_HITS);
        let mut answer = source.search(request.clone()).await?;
        let end = loop {
            match answer.next().await? {
                Found::End(end) => break end,
                Found::Note { place, kind, message } => {
                    printer.flush()?;
                    eprintln!("tierd: {place}: {kind}: {message}");
                }
                found => printer.print(found)?,
            }
        };
        printer.flush()?;
        hits += end.hits;
        left -= end.hits.min(left);
        let goes_on = end.stopped_by_limit && left > 0;
        match &end.next_page {
            Some(page) if goes_on => request.page = Some(page.clone()),
            _ => break end,
        }
    };
    if args.explain {
        eprint!("{}", end.explained);
    }
    if let Some(page) = &end.next_page {
        eprintln!("tierd: {hits} hits; there may be more: --limit N, or --page {page}");
    }
    if !end.complete {
        eprintln!("tierd: the answer is not complete, see above");
    }
    Ok(if end.complete { Outcome::Well } else { Outcome::CheckFailed })
}

fn table() -> output::Table {
    output::Table::new(&["time", "topic", ">partition", ">offset", "archive"])
}

struct Printer {
    format: Format,
    json: bool,
    table: output::Table,
}

impl Printer {
    fn print(&mut self, found: Found) -> anyhow::Result<()> {
        match (found, self.format) {
            (Found::Batch(wire), _) => Ok(std::io::stdout().lock().write_all(&wire)?),
            (Found::Hit(hit), Format::Refs) if !self.json => {
                self.table.row(vec![
                    output::time(Some(hit.timestamp)),
                    hit.topic,
                    hit.partition.to_string(),
                    hit.offset.to_string(),
                    hit.object,
                ]);
                Ok(())
            }
            (Found::Hit(hit), Format::Refs) => output::json_line(&json!({
                "topic": hit.topic,
                "partition": hit.partition,
                "offset": hit.offset,
                "timestamp": hit.timestamp,
                "archive": hit.object,
            })),
            (Found::Hit(hit), _) => match &hit.record {
                Some(record) => output::json_line(&records::found(&hit, record)),
                None => Ok(()),
            },
            (Found::Note { .. } | Found::End(_), _) => Ok(()),
        }
    }

    /// Prints the rows that wait.
    fn flush(&mut self) -> anyhow::Result<()> {
        let table = std::mem::replace(&mut self.table, table());
        if table.is_empty() { Ok(()) } else { table.print() }
    }
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
    fn ranges_may_be_open() {
        assert_eq!(offsets("5..9").unwrap(), (Some(5), Some(9)));
        assert_eq!(offsets("5..").unwrap(), (Some(5), None));
        assert_eq!(offsets("..9").unwrap(), (None, Some(9)));
        assert!(offsets("5").is_err() && offsets("a..").is_err());
    }

    #[test]
    fn a_header_may_hold_more_than_one_equals_sign() {
        let both = header("a=b=c");
        assert_eq!((&both.name[..], both.value.as_deref()), (&b"a"[..], Some(&b"b=c"[..])));
        assert_eq!(header("a").value, None);
        assert_eq!(header("a=").value.as_deref(), Some(&b""[..]));
    }
}
