//! `tierd reindex`: shows, and with `--confirm` carries out, giving archives another
//! index level.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{Change, Outcome, output};
use crate::archive::{IndexLevel, IndexRule};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::compact::reindex::{Reindexed, plan};
use crate::compact::{Compactor, JobRequests};
use crate::config::Config;
use crate::record::{TopicName, TopicPartition};
use crate::task::Pace;

#[derive(Debug, Args)]
pub(super) struct ReindexArgs {
    /// Only this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only this partition of it
    #[arg(long, requires = "topic")]
    partition: Option<i32>,
    /// What can be searched for afterwards, whatever the settings say: none, keys,
    /// full:text, full:text:whitespace, full:text:raw or full:json
    #[arg(long, value_name = "LEVEL")]
    level: Option<IndexLevel>,
    /// What is indexed of which topics, as 'orders-*=full:json'; the first that fits
    /// counts. Topics that nothing fits stay as they are [default: what the settings say]
    #[arg(long, value_name = "PATTERN=LEVEL", env = "TIERD_INDEX", value_delimiter = ',')]
    index: Vec<IndexRule>,
    /// Scratch; may be wiped [default: below the user's cache folder]
    #[arg(long, value_name = "DIR", env = "TIERD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    change: Change,
}

pub(super) async fn reindex(
    args: ReindexArgs,
    mut config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    config.data_dir = args.data_dir.or(config.data_dir);
    if !args.index.is_empty() {
        config.index = Some(args.index);
    }
    anyhow::ensure!(
        args.level.is_some() || config.index.is_some(),
        "nothing says which level archives are to have; give --level LEVEL, \
         --index PATTERN=LEVEL or [[index]] in the settings"
    );
    let rules = config.index();
    let rooms = args.change.rooms(&config)?;
    let compactor = rooms.compactor();
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let wanted = super::wanted(&rooms, topic.as_ref(), args.partition).await?;
    let confirmed = args.change.confirm;
    let scratch = if confirmed { Some(scratch(&config)?) } else { None };
    let mut shown = Shown { json, sums: BTreeMap::new(), left: 0, bar: bar() };
    let mut ended = Ok(());
    for (tp, incarnation) in wanted {
        let level = args.level.or_else(|| rules.level_of(tp.topic()));
        let (Some(level), Ok(())) = (level, &ended) else { continue };
        let base = match rooms.catalog.load(&tp, Some(incarnation)).await {
            Ok(Some(base)) => base,
            Ok(None) => continue,
            Err(error) => {
                shown.leave(&tp, &error);
                continue;
            }
        };
        ended = match &scratch {
            Some(scratch) => carry_out(&compactor, base, level, scratch.path(), &mut shown).await,
            None => match plan(&base, level).await {
                Ok(entries) => entries.iter().try_for_each(|was| shown.show(was, level, None)),
                Err(error) => {
                    shown.leave(&tp, &error);
                    Ok(())
                }
            },
        };
    }
    let outcome = shown.conclude(confirmed)?;
    ended.map(|()| outcome)
}

fn scratch(config: &Config) -> anyhow::Result<tempfile::TempDir> {
    let data = config.data_dir()?;
    std::fs::create_dir_all(&data)?;
    Ok(tempfile::Builder::new().prefix("reindex-").tempdir_in(data)?)
}

fn bar() -> indicatif::ProgressBar {
    indicatif::ProgressBar::new_spinner().with_message("archives")
}

/// One archive after the other. One that cannot be read is told and stays as it is.
async fn carry_out(
    compactor: &Compactor,
    base: Arc<Snapshot>,
    level: IndexLevel,
    scratch: &Path,
    shown: &mut Shown,
) -> anyhow::Result<()> {
    let tp = base.tp().clone();
    let mut work = match compactor.reindex(base, level).await {
        Ok(work) => work,
        Err(error) => {
            shown.leave(&tp, &error);
            return Ok(());
        }
    };
    let pace = Pace::unlimited();
    while let Some(done) = work.step(scratch, &pace).await? {
        match done {
            Reindexed::Committed { was, is } => shown.show(&was, level, Some(&is))?,
            Reindexed::Left { entry, error } => shown.leave(&entry.key(), &error),
            Reindexed::Overtaken => {}
        }
    }
    Ok(())
}

/// The last is shown of what was done.
const HEADS: &[&str] =
    &["topic", ">partition", ">life", "level", "becomes", ">archives", ">size", ">becomes"];

/// What was or would be done to the archives of one level in one partition.
#[derive(Default)]
struct Sum {
    archives: u64,
    was_bytes: u64,
    is_bytes: u64,
    cost: JobRequests,
}

/// What was shown so far.
struct Shown {
    json: bool,
    sums: BTreeMap<(TopicPartition, u32, &'static str, &'static str), Sum>,
    /// Archives and partitions that could not be read.
    left: u64,
    bar: indicatif::ProgressBar,
}

impl Shown {
    fn show(
        &mut self,
        was: &ArchiveEntry,
        level: IndexLevel,
        is: Option<&ArchiveEntry>,
    ) -> anyhow::Result<()> {
        let (of, range, before) = (was.of(), was.summary.range, was.summary.index_level);
        let cost = JobRequests::of(std::slice::from_ref(was));
        let of_partition = (of.tp.clone(), of.incarnation, before.as_str(), level.as_str());
        let sum = self.sums.entry(of_partition).or_default();
        sum.archives += 1;
        sum.was_bytes += was.summary.length;
        sum.is_bytes += is.map_or(0, |is| is.summary.length);
        sum.cost.reads += cost.reads;
        sum.cost.writes += cost.writes;
        self.bar.inc(1);
        if !self.json {
            return Ok(());
        }
        output::json_line(&json!({
            "topic": of.tp.topic().as_str(), "partition": of.tp.partition(),
            "incarnation": of.incarnation, "first": range.base(), "last": range.last(),
            "level": before.as_str(), "becomes": level.as_str(),
            "object": was.key().to_string(), "bytes": was.summary.length,
            "new_object": is.map(|is| is.key().to_string()),
            "new_bytes": is.map(|is| is.summary.length),
            "reads": cost.reads, "writes": cost.writes,
        }))
    }

    /// Tells what could not be read and stays as it is.
    fn leave(&mut self, what: &impl Display, error: &impl Display) {
        self.left += 1;
        self.bar.suspend(|| eprintln!("tierd: {what} stays as it is: {error}"));
    }

    fn conclude(self, confirmed: bool) -> anyhow::Result<Outcome> {
        self.bar.finish_and_clear();
        if !self.json {
            self.print(confirmed)?;
        }
        Ok(if self.left == 0 { Outcome::Well } else { Outcome::CheckFailed })
    }

    fn print(&self, confirmed: bool) -> anyhow::Result<()> {
        if self.sums.is_empty() {
            return output::say("nothing to do\n");
        }
        let mut table = output::Table::new(if confirmed { HEADS } else { &HEADS[..7] });
        let mut all = Sum::default();
        for ((tp, incarnation, was, is), sum) in &self.sums {
            table.row(vec![
                tp.topic().to_string(),
                tp.partition().to_string(),
                incarnation.to_string(),
                (*was).to_owned(),
                (*is).to_owned(),
                sum.archives.to_string(),
                output::bytes(sum.was_bytes),
                output::bytes(sum.is_bytes),
            ]);
            all.archives += sum.archives;
            all.was_bytes += sum.was_bytes;
            all.is_bytes += sum.is_bytes;
            all.cost.reads += sum.cost.reads;
            all.cost.writes += sum.cost.writes;
        }
        table.print()?;
        let (archives, bytes) = (all.archives, output::bytes(all.was_bytes));
        let JobRequests { reads, writes } = all.cost;
        output::say(&match confirmed {
            true => format!(
                "{archives} archives of {bytes} were read and written anew as {}; tierd gc frees \
                 the old ones once its grace time has passed\n",
                output::bytes(all.is_bytes)
            ),
            false => format!(
                "{archives} archives of {bytes} would be read with about {reads} requests and \
                 written with about {writes}; both are stored until gc frees the old ones\n\
                 nothing was changed; add --confirm to do this\n"
            ),
        })
    }
}
