//! `tierd search`: finds records in the archive, straight from the store or through
//! a daemon.

use std::io::Write;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;
use tierd_client as client;

use super::finding::{Finding, Found};
use super::picking::PickArgs;
use super::{Outcome, output, records};
use crate::config::Config;
use crate::daemon::Rooms;
use crate::record::{Selection, TopicName};
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
    #[command(flatten)]
    pick: PickArgs,
    /// Offsets from A on and below B; either may be left out
    #[arg(long, value_name = "A..B")]
    offsets: Option<String>,
    /// What to find in values, in Tantivy's language: 'value.city:Berlin AND
    /// value.amount:>100'. Needs archives of an index level full:...
    #[arg(long, value_name = "QUERY")]
    query: Option<String>,
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
            query: self.query.clone(),
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
        let (from_offset, until_offset) = match &self.offsets {
            Some(range) => offsets(range)?,
            None => (None, None),
        };
        Ok(Selection { from_offset, until_offset, ..self.pick.selection()? })
    }
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
    fn ranges_may_be_open() {
        assert_eq!(offsets("5..9").unwrap(), (Some(5), Some(9)));
        assert_eq!(offsets("5..").unwrap(), (Some(5), None));
        assert_eq!(offsets("..9").unwrap(), (None, Some(9)));
        assert!(offsets("5").is_err() && offsets("a..").is_err());
    }
}
