//! `tierd delete`: takes a topic, a partition, or what lies before an offset out of
//! the archive.

use clap::Args;

use super::compact::{HEADS, conclude, show};
use super::{Change, Outcome, output};
use crate::compact::Retained;
use crate::config::Config;
use crate::record::TopicName;

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// The topic
    topic: String,
    /// Only this partition of it
    partition: Option<i32>,
    /// Only what lies before this offset
    #[arg(long, value_name = "OFFSET")]
    before_offset: Option<i64>,
    /// This life of the topic [default: the newest]
    #[arg(long, value_name = "NUMBER")]
    incarnation: Option<u32>,
    #[command(flatten)]
    change: Change,
}

pub(super) async fn delete(
    args: DeleteArgs,
    config: Config,
    json: bool,
) -> anyhow::Result<Outcome> {
    let rooms = args.change.rooms(&config)?;
    let compactor = rooms.compactor();
    let topic = TopicName::new(&args.topic)?;
    let life = match args.incarnation {
        Some(number) => Some(number),
        None => rooms.catalog.incarnations(&topic).await?.last().map(|newest| newest.number),
    };
    let wanted = super::wanted(&rooms, Some(&topic), args.partition).await?;
    let wanted: Vec<_> = wanted.into_iter().filter(|(_, number)| Some(*number) == life).collect();
    if wanted.is_empty() {
        anyhow::bail!("nothing of {topic} is archived in that life of it; see `tierd ls`");
    }
    let before = args.before_offset.unwrap_or(i64::MAX);
    let mut table = output::Table::new(HEADS);
    for (tp, incarnation) in wanted {
        let Some(base) = rooms.catalog.load(&tp, Some(incarnation)).await? else { continue };
        let planned = Retained::cut(base, before).await?;
        if !planned.is_needed() {
            continue;
        }
        let done = match args.change.confirm {
            true => compactor.retain(planned, |base| Retained::cut(base, before)).await?,
            false => planned,
        };
        show(&done, json, &mut table)?;
    }
    conclude(&table, json, args.change.confirm)
}
