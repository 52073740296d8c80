//! Owns looking: what lies in a partition's folder and beside the partitions, and
//! what its manifests say of it. Changes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;

use super::judge::{Facts, When, Why, judge, to_ask};
use super::{Grace, Litter, PartitionSurvey, Strays};
use crate::catalog::{CatalogError, Committed, Snapshot, closable};
use crate::compact::{CompactError, Compactor};
use crate::record::TopicPartition;
use crate::store::{Listed, ObjectKey, PartitionKey, keys};

/// Manifests asked one by one for what they referenced first. More are asked by
/// the next run.
const ASKED_MAX: usize = 64;
/// Superseded manifests for which a block is ended before it is full. Each block leaves
/// an object for ever, and two of its manifests for a while.
const ENDED_FROM: usize = 128;

impl Compactor {
    /// Looks through one partition.
    ///
    /// # Errors
    /// When store or catalog cannot be read.
    pub async fn survey(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        grace: Grace,
    ) -> Result<PartitionSurvey, CompactError> {
        let cluster = self.catalog.cluster().clone();
        let of = PartitionKey { cluster, tp: tp.clone(), incarnation };
        // The listing first: what it shows is not newer than what the manifest says.
        let listed = self.listed(&of.to_string()).await?;
        let newest = self.catalog.newest(tp, incarnation).await?;
        let Some(newest) = newest else { return self.uncommitted(of, listed, grace).await };
        let (needed, number) = references(newest.snapshot()).await?;
        let settled = self.settled(&newest, &listed, grace).await?;
        let held = match &settled {
            Some(settled) if settled.number() == number => needed.clone(),
            Some(settled) => references(settled).await?.0,
            None => HashSet::new(),
        };
        let settled = settled.map_or(0, |settled| settled.number());
        let newest_at_ms = listed_manifests(&listed)
            .find_map(|(listed, at)| (listed == number).then_some(at))
            .unwrap_or(grace.now_ms);
        let open = self.catalog.first_open(&of).await?;
        let mut facts = Facts {
            newest: number,
            needed: &needed,
            settled,
            held: &held,
            asked: &HashMap::new(),
            closable: closable(newest.snapshot().next_number(), settled).max(open),
            newest_at_ms,
            grace,
        };
        let to_ask = listed.iter().filter_map(|(key, object)| to_ask(key, object, &facts));
        let to_ask: BTreeSet<u64> = to_ask.take(ASKED_MAX).collect();
        let mut asked = HashMap::new();
        for number in to_ask {
            let referenced = match self.catalog.older(&newest, number).await {
                Ok(older) => references(&older).await?.0,
                // The partition began anew behind it; what it had then is needed now.
                Err(CatalogError::Gone { .. }) if number < open => HashSet::new(),
                // Its block ended before it, so nobody ever took the number.
                Err(CatalogError::Gone { .. })
                    if self.is_skipped(&newest, &listed, number).await? =>
                {
                    HashSet::new()
                }
                Err(error) => return Err(error.into()),
            };
            asked.insert(number, referenced);
        }
        facts.asked = &asked;
        let to_end =
            self.is_ours(newest.snapshot(), grace.now_ms) && waits(&listed, &newest, &facts);
        let judged = |key: &ObjectKey, object: &Listed| judge(key, object, &facts);
        let (litter, live) = part(listed, judged);
        let survey = PartitionSurvey {
            of,
            newest: Some(newest),
            litter,
            live,
            settled,
            to_take: None,
            to_end,
        };
        Ok(with_number_to_take(survey))
    }

    /// Whether a block ended before manifest `number`.
    async fn is_skipped(
        &self,
        newest: &Committed,
        listed: &[(ObjectKey, Listed)],
        number: u64,
    ) -> Result<bool, CompactError> {
        let before = listed_manifests(listed).map(|(listed, _)| listed).filter(|n| *n < number);
        let Some(before) = before.max() else { return Ok(false) };
        Ok(self.catalog.older(newest, before).await?.next_number() > number)
    }

    /// A partition that nobody has committed to: what lies there is a writer's who
    /// is at work, or was killed before his first commit and comes back. Only in
    /// a life of the topic that is over nobody comes back.
    async fn uncommitted(
        &self,
        of: PartitionKey,
        listed: Vec<(ObjectKey, Listed)>,
        grace: Grace,
    ) -> Result<PartitionSurvey, CompactError> {
        let lives = self.catalog.incarnations(of.tp.topic()).await?;
        let over = lives.last().is_some_and(|newest| newest.number > of.incarnation);
        let facts = Facts {
            newest: 0,
            needed: &HashSet::new(),
            settled: 0,
            held: &HashSet::new(),
            asked: &HashMap::new(),
            closable: 0,
            newest_at_ms: grace.now_ms,
            grace,
        };
        let (litter, live) = part(listed, |key, object| judge(key, object, &facts));
        let survey = PartitionSurvey {
            of,
            newest: None,
            litter,
            live,
            settled: 0,
            to_take: None,
            to_end: false,
        };
        Ok(if over { with_number_to_take(survey) } else { survey })
    }

    /// What lies beside the partitions.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn strays(&self, grace: Grace) -> Result<Strays, CompactError> {
        let cluster = self.catalog.cluster();
        let by_age = |object: Listed, key: Option<ObjectKey>, why| {
            let old = object.modified_ms <= grace.cutoff_ms();
            let when = if old { When::Now } else { When::At(grace.free_at(object.modified_ms)) };
            Litter { object, key, why, when }
        };
        let writers = self.listed(&keys::writers_folder(cluster)).await?;
        let probes = writers.into_iter().filter_map(|(key, object)| {
            let is_probe = matches!(key, ObjectKey::Probe { .. });
            is_probe.then(|| by_age(object, Some(key), Why::Probe))
        });
        let mut litter: Vec<_> = probes.collect();
        let unfinished = self.store.unfinished(cluster.as_str()).await?;
        let lists_unfinished = unfinished.is_some();
        let uploads = unfinished.unwrap_or_default().into_iter();
        litter.extend(uploads.map(|object| by_age(object, None, Why::Unfinished)));
        litter.sort_by(|a, b| a.object.name.cmp(&b.object.name));
        Ok(Strays { litter, lists_unfinished })
    }

    /// Objects of ours below `folder`. Others are nobody's business here.
    async fn listed(&self, folder: &str) -> Result<Vec<(ObjectKey, Listed)>, CompactError> {
        let found: Vec<Listed> = self.store.list(folder).try_collect().await?;
        let ours = found.into_iter();
        Ok(ours.filter_map(|one| Some((ObjectKey::decode(&one.name).ok()?, one))).collect())
    }

    /// The last manifest that has had its grace: whoever reads began with it or a
    /// later one. Proposed by the listing, proven by asking for it by name.
    async fn settled(
        &self,
        newest: &Committed,
        listed: &[(ObjectKey, Listed)],
        grace: Grace,
    ) -> Result<Option<Arc<Snapshot>>, CompactError> {
        let number = newest.snapshot().number();
        let of_ours = || listed_manifests(listed).filter(|(listed, _)| *listed <= number);
        let young = of_ours().filter(|(_, at)| *at > grace.cutoff_ms());
        let young = young.map(|(number, _)| number).min().unwrap_or(number + 1);
        let older = of_ours().map(|(number, _)| number).filter(|number| *number < young);
        let Some(settled) = older.max() else { return Ok(None) };
        let of = newest.snapshot().of().clone();
        let written = self.store.modified_ms(&ObjectKey::Manifest { of, number: settled }).await?;
        match written {
            Some(at) if at <= grace.cutoff_ms() => {
                Ok(Some(self.catalog.older(newest, settled).await?))
            }
            _ => Ok(None),
        }
    }
}

/// Whether many manifests would go if their block could close, in a partition that
/// rests: one that is committed to fills its blocks by itself.
fn waits(listed: &[(ObjectKey, Listed)], newest: &Committed, facts: &Facts<'_>) -> bool {
    if facts.settled < newest.snapshot().number() {
        return false;
    }
    let ended = closable(newest.snapshot().next_number(), u64::MAX);
    let waiting = listed_manifests(listed).filter(|(number, at)| {
        (ended..facts.settled).contains(number) && *at <= facts.grace.cutoff_ms()
    });
    waiting.count() >= ENDED_FROM
}

async fn references(snapshot: &Snapshot) -> Result<(HashSet<ObjectKey>, u64), CompactError> {
    Ok((snapshot.references().await?, snapshot.number()))
}

fn listed_manifests(listed: &[(ObjectKey, Listed)]) -> impl Iterator<Item = (u64, i64)> {
    listed.iter().filter_map(|(key, object)| match key {
        ObjectKey::Manifest { number, .. } => Some((*number, object.modified_ms)),
        _ => None,
    })
}

/// Parts what goes from what is needed, of which count and bytes are returned.
fn part(
    listed: Vec<(ObjectKey, Listed)>,
    judge: impl Fn(&ObjectKey, &Listed) -> Option<(Why, When)>,
) -> (Vec<Litter>, (u64, u64)) {
    let (mut litter, mut live) = (Vec::new(), (0, 0));
    for (key, object) in listed {
        match judge(&key, &object) {
            Some((why, when)) => litter.push(Litter { object, key: Some(key), why, when }),
            None => live = (live.0 + 1, live.1 + object.length),
        }
    }
    litter.sort_by(|a, b| a.object.name.cmp(&b.object.name));
    (litter, live)
}

fn with_number_to_take(mut survey: PartitionSurvey) -> PartitionSurvey {
    let waiting = survey.litter.iter().filter(|one| one.when == When::OnceTaken);
    let numbers = waiting.filter_map(|one| super::judge::made_for(one.key.as_ref()?));
    survey.to_take = numbers.max();
    survey
}
