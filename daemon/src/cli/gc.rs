//! `tierd gc`: shows, and with `--confirm` deletes, what nobody needs any more.

use clap::Args;
use serde_json::json;

use super::{Change, Outcome, output};
use crate::compact::gc::{Grace, Litter, Swept, When};
use crate::config::{self, Config};
use crate::record::TopicName;
use crate::store::Listed;

/// Rows shown to a person; `--json` shows all.
const ROWS_MAX: usize = 100;

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Only this topic
    topic: Option<String>,
    /// Only this partition of it
    #[arg(requires = "topic")]
    partition: Option<i32>,
    /// How long what was dropped stays readable, by the store's clock [default: 24h]
    #[arg(long, value_name = "TIME")]
    grace: Option<String>,
    #[command(flatten)]
    change: Change,
}

pub(super) async fn gc(args: GcArgs, config: Config, json: bool) -> anyhow::Result<Outcome> {
    let rooms = args.change.rooms(&config)?;
    let compactor = rooms.compactor();
    let grace = match args.grace.as_deref() {
        Some(given) => config::duration("grace", Some(given), std::time::Duration::ZERO)?,
        None => config.compaction.grace()?,
    };
    let grace = Grace { now_ms: compactor.store_now_ms().await?, grace };
    let topic = args.topic.as_deref().map(TopicName::new).transpose()?;
    let mut shown =
        Shown { json, table: output::Table::new(HEADS), rows: 0, sums: Sums::default() };
    let bar = indicatif::ProgressBar::new_spinner().with_message("looking");
    for (tp, incarnation) in super::wanted(&rooms, topic.as_ref(), args.partition).await? {
        let survey = compactor.survey(&tp, incarnation, grace).await?;
        bar.inc(1);
        survey.litter.iter().try_for_each(|one| shown.show(one))?;
        shown.sums.live(survey.live);
        if args.change.confirm {
            shown.sums.swept = shown.sums.swept.plus(compactor.sweep(survey, grace).await?);
        }
    }
    // What lies beside the partitions is nobody's in particular.
    if topic.is_none() {
        let strays = compactor.strays(grace).await?;
        strays.litter.iter().try_for_each(|one| shown.show(one))?;
        if args.change.confirm {
            shown.sums.swept = shown.sums.swept.plus(compactor.sweep_strays(&strays).await?);
        }
        if !strays.lists_unfinished {
            eprintln!(
                "tierd: this store does not list unfinished uploads; give the bucket a rule that \
                 drops them after a day"
            );
        }
    }
    bar.finish_and_clear();
    shown.conclude(args.change.confirm)?;
    Ok(Outcome::Well)
}

const HEADS: &[&str] = &["goes", ">size", "why", "object"];

/// What is printed, and what it adds up to.
struct Shown {
    json: bool,
    table: output::Table,
    rows: usize,
    sums: Sums,
}

#[derive(Default)]
struct Sums {
    now: Swept,
    later: Swept,
    needed: Swept,
    swept: Swept,
}

impl Sums {
    fn live(&mut self, (objects, bytes): (u64, u64)) {
        self.needed = self.needed.plus(Swept { objects, bytes });
    }
}

impl Shown {
    fn show(&mut self, one: &Litter) -> anyhow::Result<()> {
        let Listed { name, length, .. } = &one.object;
        let sum = Swept { objects: 1, bytes: *length };
        match one.when {
            When::Now => self.sums.now = self.sums.now.plus(sum),
            _ => self.sums.later = self.sums.later.plus(sum),
        }
        if self.json {
            let at = if let When::At(ms) = one.when { Some(ms) } else { None };
            return output::json_line(&json!({
                "object": name, "bytes": length, "why": one.why.as_str(),
                "goes": goes(one.when), "at": at,
            }));
        }
        self.rows += 1;
        if self.rows <= ROWS_MAX {
            let (size, why) = (output::bytes(*length), one.why.as_str().to_owned());
            self.table.row(vec![goes(one.when), size, why, name.clone()]);
        }
        Ok(())
    }

    fn conclude(self, confirmed: bool) -> anyhow::Result<()> {
        let Sums { now, later, needed, swept } = self.sums;
        if self.json {
            let of = |sum: Swept| json!({ "objects": sum.objects, "bytes": sum.bytes });
            return output::json_line(&json!({
                "now": of(now), "later": of(later), "needed": of(needed), "deleted": of(swept),
            }));
        }
        if !self.table.is_empty() {
            self.table.print()?;
        }
        if self.rows > ROWS_MAX {
            output::say(&format!("and {} more; --json lists all\n", self.rows - ROWS_MAX))?;
        }
        let of = |sum: Swept| format!("{} objects ({})", sum.objects, output::bytes(sum.bytes));
        output::say(&format!("needed: {}\n", of(needed)))?;
        if confirmed {
            return output::say(&format!("deleted: {}; later: {}\n", of(swept), of(later)));
        }
        output::say(&format!("may go now: {}; later: {}\n", of(now), of(later)))?;
        let more = if now.objects + later.objects > 0 {
            "nothing was deleted; add --confirm to delete what may go now\n"
        } else {
            "nothing to delete\n"
        };
        output::say(more)
    }
}

fn goes(when: When) -> String {
    match when {
        When::Now => "now".to_owned(),
        When::OnceTaken => "after the next commit".to_owned(),
        When::At(ms) => output::time(Some(ms)),
        When::WithItsBlock => "with its block".to_owned(),
    }
}
