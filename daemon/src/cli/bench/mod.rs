//! `tierd bench`: the one harness for what is said about speed.
//!
//! Every figure is a ratio of two things measured in one run, or a time against a
//! model store ([`crate::store::Model`]) whose pace is given by two numbers. The data
//! is made, the same every time; every answer is compared with what is known of it,
//! so that nothing fast and wrong is measured. All of it lies in a temporary folder
//! (below `TMPDIR`), which goes at the end, also after Ctrl-C.

mod data;
mod lookup;
mod measure;
mod merge;
mod scan;
mod stage;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Outcome, output};
use crate::daemon::Signals;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Keys and times looked up over many small archives in a model store
    Lookup(lookup::LookupArgs),
    /// A key found through the index against reading every batch, at several sizes
    Scan(scan::ScanArgs),
    /// Small archives merged, against copying the same objects
    Merge(merge::MergeArgs),
}

/// What a benchmark found.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Report {
    Lookup(lookup::Lookups),
    Scan(scan::Scans),
    Merge(merge::Merges),
}

pub(super) async fn bench(args: BenchArgs, json: bool) -> anyhow::Result<Outcome> {
    let mut signals = Signals::listen()?;
    let report = tokio::select! {
        report = run(&args.bench) => report?,
        // What was under way is dropped, and its folder with it.
        () = signals.next() => anyhow::bail!("interrupted"),
    };
    match &report {
        report if json => output::json_line(report)?,
        Report::Lookup(found) => found.print()?,
        Report::Scan(found) => found.print()?,
        Report::Merge(found) => found.print()?,
    }
    Ok(Outcome::Well)
}

async fn run(bench: &Bench) -> anyhow::Result<Report> {
    Ok(match bench {
        Bench::Lookup(args) => Report::Lookup(lookup::run(args).await?),
        Bench::Scan(args) => Report::Scan(scan::run(args).await?),
        Bench::Merge(args) => Report::Merge(merge::run(args).await?),
    })
}
